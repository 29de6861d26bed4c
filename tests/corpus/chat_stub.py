"""A real HTTP server that speaks /v1/chat/completions and translates by rule: every English word becomes a Japanese one.

What stands in a text decides how it misbehaves. Also a program: `python chat_stub.py PORT_FILE LOG DELAY` writes each text it is
asked to LOG."""

import contextlib
import json
import re
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SYLLABLES = ["かん", "じゃ", "の", "けつ", "あつ", "は", "たか", "い", "ので", "くすり", "を", "のみ", "ます", "しん", "ぞう"]


def translated(text: str) -> str:
    """About 0.4 characters for each of the text, and the same for the same text; numbers and line ends stay."""
    text = re.sub(r"[A-Za-z]+ ?", lambda word: SYLLABLES[sum(map(ord, word[0])) % len(SYLLABLES)], text)
    return re.sub(r"\. ?", "。", text)


class ChatStub:
    """Serves until `close`; `busy` are the status codes of the first answers, `answer` replaces the rule if it is given."""

    def __init__(self, busy: tuple[int, ...] = (), key: str | None = None, delay: float = 0.0, log: Path | None = None):
        self.busy, self.key, self.delay, self.log = list(busy), key, delay, log
        self.asked: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.now, self.most_at_once, self.lock = 0, 0, threading.Lock()
        self.nonsense: bytes | None = None
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"owner": self}))
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def reply(self, words: dict[str, Any]) -> tuple[int, Any]:
        text = words["messages"][-1]["content"].partition("\n\n")[2]
        with self.lock:
            if self.busy:
                return self.busy.pop(0), {"error": {"message": "come back later"}}
            self.asked[text] += 1
            self.requests.append(words)
            if self.log:
                with open(self.log, "a", encoding="utf-8") as stream:
                    stream.write(json.dumps(text) + "\n")
        if "UNFIT" in text:
            return 400, {"error": {"message": "This model's maximum context length is 10 tokens."}}
        finish, answer = "stop", translated(text)
        if "ENDLESS" in text:
            finish = "length"
        elif "FORBIDDEN" in text:
            finish, answer = "content_filter", None
        elif "SILENT" in text:
            answer = "  \n"
        elif "UNTOUCHED" in text:
            answer = f"Here you are: {text}"
        elif "GERMAN" in text:
            answer = "Der Patient wurde wegen einer Lungenentzündung aufgenommen und mit Antibiotika behandelt. " * 2
        elif "SHORT" in text:
            answer = "かんじゃです。"
        elif "CHATTY" in text:
            answer *= 6
        message = {"role": "assistant", "content": answer}
        return 200, {"id": "1", "object": "chat.completion", "model": words["model"],
                     "choices": [{"index": 0, "message": message, "finish_reason": finish}]}


class Handler(BaseHTTPRequestHandler):
    owner: ChatStub

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body, owner = self.rfile.read(int(self.headers["Content-Length"])), self.owner
        with owner.lock:
            owner.now += 1
            owner.most_at_once = max(owner.most_at_once, owner.now)
        time.sleep(owner.delay)
        if self.path != "/v1/chat/completions":
            status, answer = 404, {"error": {"message": "no such path"}}
        elif owner.key and self.headers["Authorization"] != f"Bearer {owner.key}":
            status, answer = 401, {"error": {"message": "no valid key"}}
        else:
            status, answer = owner.reply(json.loads(body))
        with owner.lock:
            owner.now -= 1
        data = owner.nonsense or json.dumps(answer).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0.01")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # a client that was killed
            self.wfile.write(data)


if __name__ == "__main__":
    stub = ChatStub(delay=float(sys.argv[3]), log=Path(sys.argv[2]))
    Path(sys.argv[1]).write_text(stub.address, encoding="utf-8")
    stub.thread.join()
