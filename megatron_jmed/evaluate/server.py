"""How does a model behind an OpenAI-compatible server sit an exam?

In: the server's address (`http://host:8000/v1`). Out: what `Backend` promises. Likelihoods come from /completions with `echo` and
`logprobs` (vLLM and others have it): the server's own tokens of prompt and option, each with its log-probability; the seam is found
in them as elsewhere (`seam`). Chat prompts go to /chat/completions, which can only write, not compare.
The key, where one is needed, is read from OPENAI_API_KEY.
Invariant: every answer is checked for what was asked of it; a server that cannot do it is named, never guessed around.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.backend import OptionScores
from megatron_jmed.evaluate.prompt import Prompt
from megatron_jmed.evaluate.seam import split_at_seam

NUM_CONNECTIONS = 8
NUM_TRIES = 4
BUSY = (429, 500, 502, 503, 504)


class Server:
    """One model of a server; `model` may be left out where the server has only one."""

    def __init__(self, address: str, model: str | None = None, timeout_seconds: float = 600.0):
        address = address.rstrip("/")
        self.address = address if address.endswith("/v1") else f"{address}/v1"
        self.timeout_seconds = timeout_seconds
        self.name = model or self._only_model()
        self.identity: dict[str, Any] = {"name": self.name, "server": self.address}

    def score_options(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        """See `Backend`."""
        if any(prompt.is_chat for prompt in prompts):
            raise ExamError("a server cannot compare options behind its chat template; choose another template, or --way generate")
        texts = [prompt.text + rest for prompt, of in zip(prompts, options, strict=True) for rest in ("", *of)]
        with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
            scored = list(pool.map(self._tokens_of, texts))
        results = []
        for of in options:
            (asked, _), *wholes = scored[: len(of) + 1]
            scored = scored[len(of) + 1 :]
            prefix, continuations = split_at_seam(asked, [tokens for tokens, _ in wholes])
            sums = [sum(numbers[len(prefix) :]) for _, numbers in wholes]
            results.append(OptionScores(sums, [len(c) for c in continuations], 0))
        return results

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """See `Backend`."""
        with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
            return list(pool.map(lambda prompt: self._write(prompt, max_new_tokens), prompts))

    def _write(self, prompt: Prompt, max_new_tokens: int) -> str:
        words: dict[str, Any] = {"model": self.name, "max_tokens": max_new_tokens, "temperature": 0}
        if prompt.is_chat:
            reply = self._post("/chat/completions", words | {"messages": [{"role": "user", "content": prompt.text}]})
            text = _field(reply, "choices", 0, "message", "content")
        else:
            reply = self._post("/completions", words | {"prompt": prompt.text})
            text = _field(reply, "choices", 0, "text")
        if not isinstance(text, str):
            raise ExamError(f"{self.address}: answered without a text: {str(reply)[:200]}")
        return text

    def _tokens_of(self, text: str) -> tuple[list[str], list[float]]:
        """The server's tokens of a text, each with its log-probability (of the first it has none: 0)."""
        reply = self._post("/completions", {"model": self.name, "prompt": text, "max_tokens": 1, "temperature": 0, "echo": True,
                                            "logprobs": 1})  # fmt: skip
        tokens = _field(reply, "choices", 0, "logprobs", "tokens")
        numbers = _field(reply, "choices", 0, "logprobs", "token_logprobs")
        num_read = _field(reply, "usage", "prompt_tokens")  # behind them comes the one that was written
        if not isinstance(tokens, list) or not isinstance(numbers, list) or not isinstance(num_read, int):
            raise ExamError(f"{self.address}: gives no log-probabilities of what it reads (echo); take --way generate")
        if not 1 < num_read <= len(tokens) == len(numbers) or None in numbers[1:num_read]:
            raise ExamError(f"{self.address}: log-probabilities of {len(numbers)} tokens for {num_read} read; take --way generate")
        return tokens[:num_read], [0.0, *numbers[1:num_read]]

    def _only_model(self) -> str:
        listed = _field(self._ask(f"{self.address}/models", None), "data")
        names = [str(entry.get("id")) for entry in listed] if isinstance(listed, list) else []
        if len(names) != 1:
            raise ExamError(f"{self.address} has {len(names)} models ({', '.join(names[:8])}); choose one with --model")
        return names[0]

    def _post(self, path: str, words: dict[str, Any]) -> Any:
        return self._ask(self.address + path, json.dumps(words, ensure_ascii=False).encode())

    def _ask(self, url: str, body: bytes | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        for attempt in range(NUM_TRIES):
            try:
                with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=self.timeout_seconds) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                if error.code not in BUSY or attempt == NUM_TRIES - 1:
                    said = error.read()[:300].decode(errors="replace")
                    raise ExamError(f"{url}: answered {error.code}: {said}") from None
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                if attempt == NUM_TRIES - 1:
                    raise ExamError(f"{url}: cannot be reached: {getattr(error, 'reason', error)}") from None
            except ValueError as error:
                raise ExamError(f"{url}: did not answer with JSON ({error}); expected an OpenAI-compatible server") from None
            time.sleep(0.2 * 4**attempt)
        raise AssertionError("the last attempt returns or raises")


def _field(value: Any, *path: str | int) -> Any:
    """A field inside a reply, None where the reply has no such place."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value
