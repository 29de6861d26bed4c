"""A real HTTP server that serves a Hugging Face folder by OpenAI's protocol: /v1/models, /v1/completions (echo, logprobs),
/v1/chat/completions. It tokenizes and computes on its own, one plain forward a text, with nothing of the code under test."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import AutoModelForCausalLM


class TinyServer:
    """Serves until `stop`; `refuse_echo` and `num_busy` make it the kinds of server that also exist."""

    def __init__(self, folder: Path, models: tuple[str, ...] = ("tiny",), refuse_echo: bool = False, num_busy: int = 0):
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.models, self.refuse_echo, self.num_busy = models, refuse_echo, num_busy
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"owner": self}))
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    @torch.no_grad()
    def complete(self, text: str, max_tokens: int) -> tuple[list[int], list[float | None], list[int]]:
        """Tokens of the text with their log-probabilities, and the likeliest tokens behind it."""
        ids = [1, *self.pieces.encode(text)]
        log_p = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        numbers = [None, *(log_p[i - 1, ids[i]].item() for i in range(1, len(ids)))]
        written: list[int] = []
        while len(written) < max_tokens:
            written.append(int(self.model(torch.tensor([ids + written])).logits[0, -1].argmax()))
            if written[-1] == 2:
                break
        return ids, numbers, written


class Handler(BaseHTTPRequestHandler):
    owner: TinyServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.reply(200, {"data": [{"id": name} for name in self.owner.models]})

    def do_POST(self) -> None:
        words = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.owner.lock:
            self.owner.asked.append((self.path, words))
            if self.owner.num_busy > 0:
                self.owner.num_busy -= 1
                return self.reply(503, {"error": "busy"})
            is_chat = self.path == "/v1/chat/completions"
            text = words["messages"][-1]["content"] if is_chat else words["prompt"]
            ids, numbers, written = self.owner.complete(text, words["max_tokens"])
        said = self.owner.pieces.decode([i for i in written if i < self.owner.pieces.vocab_size()])
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": said}} if is_chat else {"text": said}
        if words.get("echo") and not self.owner.refuse_echo:
            names = [self.owner.pieces.id_to_piece(i) for i in ids] + ["?"] * len(written)
            choice["logprobs"] = {"tokens": names, "token_logprobs": numbers + [-1.0] * len(written)}
        return self.reply(200, {"choices": [choice], "usage": {"prompt_tokens": len(ids)}})

    def reply(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
