"""How are answers that cost money kept, so that no text is asked for twice?

In: keys (hash of everything that decides an answer) and answers. Out: FOLDER/HOST-PID-TIME.jsonl, one for each process that
asked something, a line for each answer, written before its thread asks for another. Read once at the start: only where each answer
lies is held in memory. Invariant: whole lines count, so a kill costs at most the answer that was being written; several
processes, on several machines, may write one folder, and each sees what was there when it began.
"""

import contextlib
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import orjson

BEGIN, KEY_CHARACTERS = b'{"key":"', 64
KEY_END = len(BEGIN) + KEY_CHARACTERS


class AnswerCache:
    """Answers (dictionaries) by key (64 hexadecimal digits)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[Path] = []
        self._places: dict[bytes, tuple[int, int]] = {}  # file, offset
        self._out: BinaryIO | None = None
        self._lock = threading.Lock()
        for path in sorted(folder.glob("*.jsonl")):
            self._read(path)

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> dict[str, Any] | None:
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        with open(self._files[place[0]], "rb") as stream:
            stream.seek(place[1])
            try:
                return orjson.loads(stream.readline())["answer"]
            except (orjson.JSONDecodeError, KeyError):  # damaged after it was written: as if it were not there
                return None

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep an answer, from any thread; it survives the end of this process, however that comes."""
        with self._lock:
            out = self._out = self._out or self._new_file()
            self._places[bytes.fromhex(key)] = (len(self._files) - 1, out.tell())
            out.write(orjson.dumps({"key": key, "answer": answer}, option=orjson.OPT_APPEND_NEWLINE))

    def _new_file(self) -> BinaryIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.jsonl"
        self._files.append(path)
        return open(path, "xb", buffering=0)

    def _read(self, path: Path) -> None:
        number, offset = len(self._files), 0
        self._files.append(path)
        with open(path, "rb") as stream:
            for line in stream:
                if line.startswith(BEGIN) and line.endswith(b"}\n"):
                    with contextlib.suppress(ValueError):  # not a key: damaged
                        self._places[bytes.fromhex(line[len(BEGIN) : KEY_END].decode("ascii"))] = (number, offset)
                offset += len(line)
