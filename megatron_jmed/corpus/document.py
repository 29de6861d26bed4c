"""Which records of a source are documents, and which cannot be used, and why?

In: raw batches from reader.py. Out: Documents and BadRecords; and a place where bad records are kept, filed by
reason, until there are too many of them.
Invariant: every record becomes exactly one Document or one BadRecord, in order, and a bad record is kept without loss.
"""

import base64
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from megatron_jmed.corpus.manifest import OutputFile, sha256_file
from megatron_jmed.corpus.reader import RawBatch, find_source, read_batches
from megatron_jmed.errors import CorpusError

UNKNOWN = "unknown"
NUL = "\0"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Document:
    """One text; `meta` holds the record's other fields."""

    id: str
    text: str
    source: str
    lang: str
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that is not a document; `raw` is what stood in the file (for Parquet: the row as JSON)."""

    file: str
    line: int  # from 1
    reason: str
    raw: bytes


def read_documents(source: str | Path, text_field: str = "text") -> Iterator[Document]:
    """Stream the documents of a source in this process; CorpusError at the first bad record."""
    for batch in read_batches(find_source(source), text_field):
        for record in parse_batch(batch, text_field):
            if isinstance(record, BadRecord):
                raise CorpusError(f"{record.file}:{record.line}: {record.reason}")
            yield record


# ---- records to documents


def parse_batch(batch: RawBatch, text_field: str = "text") -> Iterator[Document | BadRecord]:
    """Turn each record of a batch into a Document or a BadRecord, in order."""
    parse = {"jsonl": parse_lines, "arrow": _parse_arrow, "text": _parse_text}[batch.kind]
    for offset, (record, raw) in enumerate(parse(batch.payload, text_field)):
        line = batch.first_line + offset
        if isinstance(record, dict):
            reason = _text_problem(record, text_field)
            if reason:
                yield BadRecord(batch.file, line, reason, raw())
            else:
                yield _document(record, text_field, batch.file, line)
        else:
            yield BadRecord(batch.file, line, record, raw())


def parse_lines(payload: bytes, text_field: str) -> Iterator[tuple[Any, Any]]:
    """Yield (record, how to get its raw bytes) for each line; a string in place of a record is the reason it is bad."""
    for line in payload.removesuffix(b"\n").split(b"\n"):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            record = _line_problem(line)
        else:
            record = record if isinstance(record, dict) else "not_an_object"
        yield record, lambda line=line: line


def _line_problem(line: bytes) -> str:
    """Say why a line is no JSON."""
    if not line.strip():
        return "blank_line"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return "invalid_utf8"
    try:
        # The standard library accepts escapes of lone surrogates, which UTF-8 cannot hold.
        accepted = json.dumps(json.loads(text), ensure_ascii=False)
    except (ValueError, RecursionError):
        return "broken_json"
    return "lone_surrogate" if LONE_SURROGATE.search(accepted) else "broken_json"


def _parse_arrow(payload: bytes, text_field: str) -> Iterator[tuple[Any, Any]]:
    """Like `parse_lines` for Parquet rows; a damaged string makes only its own row bad."""
    import pyarrow

    table = pyarrow.ipc.open_stream(payload).read_all()
    columns = {name: _arrow_values(table.column(name)) for name in table.column_names}
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        bad = any(isinstance(value, UnicodeDecodeError) for value in values)
        yield "invalid_utf8" if bad else row, lambda row=row: _row_as_json(row)


def _arrow_values(column: Any) -> list[Any]:
    """A column as Python values; a string that is no UTF-8 becomes its UnicodeDecodeError."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
        return column.to_pylist()
    return [None if value is None else _decoded(value) for value in column.cast(pyarrow.large_binary()).to_pylist()]


def _decoded(value: bytes) -> str | UnicodeDecodeError:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        return error


def _row_as_json(row: dict[str, Any]) -> bytes:
    return orjson.dumps(row, default=_json_value, option=orjson.OPT_NON_STR_KEYS)


def _json_value(value: Any) -> Any:
    """What JSON has no word for: bytes (also those of damaged strings) as base64, all else as text."""
    value = value.object if isinstance(value, UnicodeDecodeError) else value
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else str(value)


def _parse_text(payload: bytes, text_field: str) -> Iterator[tuple[Any, Any]]:
    """Like `parse_lines` for a plain text file: the whole of it is one record."""
    try:
        record: Any = {text_field: payload.decode("utf-8")}
    except UnicodeDecodeError:
        record = "invalid_utf8"
    yield record, lambda: payload


def _text_problem(record: dict[str, Any], text_field: str) -> str | None:
    """Say why a record has no usable text, or None."""
    if text_field not in record:
        return "missing_text"
    text = record[text_field]
    if not isinstance(text, str):
        return "text_not_string"
    if NUL in text:
        return "nul_in_text"
    return None if text.strip() else "empty_text"


def _document(record: dict[str, Any], text_field: str, file: str, line: int) -> Document:
    text = record.pop(text_field)
    identity = record.pop("id", None)
    source, lang = record.pop("source", None), record.pop("lang", None)
    return Document(
        id=f"{file}:{line}" if identity is None else str(identity),
        text=text,
        source=source if isinstance(source, str) and source else UNKNOWN,
        lang=lang if isinstance(lang, str) and lang else UNKNOWN,
        meta=record,
    )


# ---- documents to records


def document_line(document: Document) -> bytes:
    """One JSON line that `parse_batch` reads as the same document; the text is always under "text".

    A field of meta that is itself called "text" (the text was read from another field) goes under "text_".
    """
    record = {"id": document.id, "text": document.text, "source": document.source, "lang": document.lang}
    meta = {f"{name}_" if name in record else name: value for name, value in document.meta.items()}
    return _json_line(record | meta)


def removed_line(document: Document, file: str, line: int, reason: str, detail: str) -> bytes:
    """One JSON line that holds a removed document with everything it had, and where it came from."""
    origin = {"file": file, "line": line, "reason": reason, "detail": detail}
    record = {"id": document.id, "text": document.text, "source": document.source, "lang": document.lang}
    return _json_line(origin | record | {"meta": document.meta})


def _json_line(record: dict[str, Any]) -> bytes:
    return orjson.dumps(record, default=_json_value, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE)


# ---- what was removed


class RemovedRecords:
    """Keeps bad records in FOLDER/REASON.jsonl, counts them, and refuses more than `max_bad` of them."""

    def __init__(self, folder: Path, max_bad: int | None) -> None:
        self.folder = folder
        self.max_bad = max_bad
        self.counts: Counter[str] = Counter()
        self._streams: dict[str, BinaryIO] = {}
        self._first: BadRecord | None = None
        self._is_resumed = False

    def sync(self) -> dict[str, tuple[int, int]]:
        """Make what was kept survive a power failure; rows and bytes by reason, for `resume`."""
        for stream in self._streams.values():
            stream.flush()
            os.fsync(stream.fileno())
        return {reason: (self.counts[reason], stream.tell()) for reason, stream in sorted(self._streams.items())}

    def resume(self, kept: dict[str, tuple[int, int]]) -> None:
        """Keep the given rows and bytes of what an earlier run left in the folder, and nothing else of it."""
        for path in self.folder.glob("*.jsonl"):
            if path.stem not in kept:
                path.unlink()
        self._is_resumed = bool(kept)
        for reason, (rows, num_bytes) in kept.items():
            self._streams[reason] = open(self.folder / f"{reason}.jsonl", "r+b")
            self._streams[reason].truncate(num_bytes)
            self._streams[reason].seek(num_bytes)
            self.counts[reason] = rows

    def add(self, bad: BadRecord) -> None:
        """Keep one record; CorpusError if the budget is spent."""
        self._first = self._first or bad
        self._stream(bad.reason).write(_kept_line(bad))
        self.counts[bad.reason] += 1
        if self.max_bad is not None and self.counts.total() > self.max_bad:
            self.close()
            place = "one" if self._is_resumed else "the first"
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.counts.items()))
            raise CorpusError(
                f"{self._first.file}:{self._first.line}: {self._first.reason}; this is {place} of more than "
                f"{self.max_bad} bad record(s) ({reasons}), kept in {self.folder}; "
                f"mend the source or allow more with --max-bad"
            )

    def close(self) -> list[OutputFile]:
        """Finish the files and describe them, in order of name; paths are relative to the folder's parent."""
        files = []
        for reason, stream in sorted(self._streams.items()):
            stream.close()
            path = self.folder / f"{reason}.jsonl"
            name = f"{self.folder.name}/{path.name}"
            files.append(
                OutputFile(path=name, rows=self.counts[reason], bytes=path.stat().st_size, sha256=sha256_file(path))
            )
        return files

    def _stream(self, reason: str) -> BinaryIO:
        if reason not in self._streams:
            self.folder.mkdir(exist_ok=True)
            self._streams[reason] = open(self.folder / f"{reason}.jsonl", "wb")
        return self._streams[reason]


def _kept_line(bad: BadRecord) -> bytes:
    """One JSON line that holds a bad record without loss: as text where it is UTF-8, else in base64."""
    line: dict[str, Any] = {"file": bad.file, "line": bad.line, "reason": bad.reason}
    try:
        line["raw"] = bad.raw.decode("utf-8")
    except UnicodeDecodeError:
        line["raw_base64"] = base64.b64encode(bad.raw).decode("ascii")
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
