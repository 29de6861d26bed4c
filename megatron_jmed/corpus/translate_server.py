"""How does a model behind an OpenAI-compatible server translate many pieces at once?

In: prompts. Out: an Answer for each, as soon as it is there, from POST ADDRESS/v1/chat/completions; `concurrency` at a time.
Waits and asks again, longer each time, on 429, 5xx, a lost connection and an answer that is none, and keeps to Retry-After.
A piece that the server calls unfit (400, 413, 422, finish_reason "content_filter") is refused, not an error, unless all are.
The key, where one is needed, is read from OPENAI_API_KEY and goes nowhere but into the request's header.
Invariant: an answer is only what the server says is a whole message of the assistant; anything else is named.
"""

import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue

from megatron_jmed.corpus.translate_quality import Answer
from megatron_jmed.errors import CorpusError

KEY_VARIABLE = "OPENAI_API_KEY"
BUSY = (408, 409, 429, 500, 502, 503, 504, 529)
UNFIT = (400, 413, 422)
MAX_WAIT_SECONDS = 60.0
TRIES_BEFORE_THE_FIRST_ANSWER = 3  # a wrong address should not take minutes to show
MAX_REFUSED_IN_A_ROW = 10
FINISHES = {"stop": "stop", "length": "length", "content_filter": "refused"}


@dataclass
class ChatServer:
    """One model of a server. `body` are further fields of the request; null takes a field out (say "temperature")."""

    address: str
    model: str
    body: dict[str, JsonValue]
    concurrency: int
    tries: int
    timeout_seconds: float
    first_wait_seconds: float
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _answered: int = 0
    _refused_in_a_row: int = 0

    def __post_init__(self) -> None:
        address = self.address.rstrip("/")
        self._url = (address if address.endswith("/v1") else f"{address}/v1") + "/chat/completions"

    def translate(self, prompts: Sequence[str], keep: Callable[[int, Answer], None]) -> None:
        """Give each answer to `keep`, in the thread that asked and before it asks again.

        CorpusError ends it: what was not begun is not asked, but what is on its way is kept, for it is paid for.
        """

        def ask_and_keep(number: int) -> None:
            if answer := self._ask(prompts[number]):
                keep(number, answer)

        pool = ThreadPoolExecutor(self.concurrency)
        try:
            asked = [pool.submit(ask_and_keep, number) for number in range(len(prompts))]
            for future in as_completed(asked):
                future.result()
        finally:
            self._stopped.set()
            pool.shutdown()
            self._stopped.clear()

    def _ask(self, prompt: str) -> Answer | None:
        """The answer; None if another request ended the work before there was one."""
        words: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": prompt}], **self.body}
        words = {name: value for name, value in words.items() if value is not None}
        request = json.dumps(words, ensure_ascii=False).encode("utf-8", "surrogatepass")
        wait = self.first_wait_seconds
        for tried in range(1, self.tries + 1):
            if self._stopped.is_set():
                return None
            problem, is_busy, asked_to_wait = "", False, 0.0
            try:
                return self._count(self._send(request))
            except urllib.error.HTTPError as error:
                said = error.read()[:300].decode(errors="replace").strip()
                problem = f"answered {error.code}: {said}"
                if error.code in UNFIT:
                    return self._count(Answer("", "refused", problem))
                if error.code not in BUSY:
                    raise CorpusError(f"{self._url}: {problem}{self._hint(error.code)}") from None
                is_busy, asked_to_wait = True, _seconds(error.headers.get("Retry-After"))
            except _NoAnswer as error:
                problem = str(error)
            except (OSError, http.client.HTTPException) as error:
                problem = f"cannot be reached: {getattr(error, 'reason', None) or error or type(error).__name__}"
            if tried == self.tries or not (is_busy or self._answered or tried < TRIES_BEFORE_THE_FIRST_ANSWER):
                raise CorpusError(f"{self._url}: {problem} (asked {tried} times); what was answered before is kept: "
                                  "mend the server, then run the same command again")
            self._stopped.wait(min(max(wait, asked_to_wait), MAX_WAIT_SECONDS))
            wait *= 2
        raise AssertionError("the last try returns or raises")

    def _send(self, request: bytes) -> Answer:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        with urllib.request.urlopen(urllib.request.Request(self._url, request, headers), timeout=self.timeout_seconds) as reply:
            data = reply.read()
        try:
            choice = json.loads(data)["choices"][0]
            text, finish = choice["message"]["content"], choice["finish_reason"]
        except (ValueError, LookupError, TypeError):
            said = data[:120].decode(errors="replace")
            raise _NoAnswer(f"did not answer with a chat completion but {said!r}; an OpenAI-compatible server is needed") from None
        if finish not in FINISHES or not isinstance(text, str | None):
            raise _NoAnswer(f"answered with finish_reason {finish!r} and content of type {type(text).__name__}")
        # A lone surrogate, which an escape in JSON may hold, is no text.
        text = (text or "").encode("utf-8", "replace").decode()
        return Answer(text, FINISHES[finish], "content_filter" if finish == "content_filter" else "")

    def _count(self, answer: Answer) -> Answer:
        """Remember that the server works; CorpusError if it refuses everything, for then it is the request that is wrong."""
        with self._lock:
            if answer.finish != "refused":
                self._answered, self._refused_in_a_row = self._answered + 1, 0
                return answer
            self._refused_in_a_row += 1
            if self._refused_in_a_row >= MAX_REFUSED_IN_A_ROW:
                raise CorpusError(f"{self._url}: refused {self._refused_in_a_row} pieces one after another: {answer.detail}")
        return answer

    def _hint(self, code: int) -> str:
        if code in (401, 403):
            return f"; is the key in {KEY_VARIABLE} right?" if os.environ.get(KEY_VARIABLE) else f"; set its key in {KEY_VARIABLE}"
        return f"; is the address right, and is {self.model!r} a model it has?" if code == 404 else ""


class _NoAnswer(Exception):
    """The server sent something, but not what the protocol says."""


def _seconds(retry_after: str | None) -> float:
    """The wait that a server asks for; it may also give a date, for which our own wait has to do."""
    try:
        return float(retry_after or 0)
    except ValueError:
        return 0.0
