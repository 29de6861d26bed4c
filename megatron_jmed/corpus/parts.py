"""What becomes of one input file: how do its documents go through a stage's transform into one part?

In: a Task (one input file) and a transform (Document -> Kept or Removed). A batch of records at a time is parsed, sent
through the transform and put into bytes, here or in another process; one process writes. Out: a folder with documents.jsonl.zst,
removed/REASON.jsonl.zst (removed documents), removed/REASON.jsonl (records that are no documents) and record.json.
Invariant: every record of the file is kept, in order, or filed under a reason; the folder gets its name when it is
whole, and its bytes depend on the file, the settings and the code alone, not on who did the batches.
"""

import contextlib
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import zstandard
from pydantic import BaseModel, ConfigDict, ValidationError

from megatron_jmed.corpus.counts import Counting
from megatron_jmed.corpus.document import (
    BadRecord,
    Document,
    RemovedRecords,
    document_line,
    parse_batch,
    removed_line,
)
from megatron_jmed.corpus.manifest import Counts, OutputFile, sync_folder
from megatron_jmed.corpus.part_folders import RECORD, REMOVED, output_file, sync_files
from megatron_jmed.corpus.reader import READABLE, RawBatch, Source, read_batches

DOCUMENTS = "documents"
ZSTD_LEVEL = 3
REASON = re.compile(r"[a-z][a-z0-9_]*")
NUMBERED = re.compile(r"^\d{6}-")


@dataclass(frozen=True)
class Kept:
    """The document goes on, perhaps changed; `counts` are added up in the manifest's details."""

    document: Document
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Removed:
    """The document is filed under `reason` (a lower-case word) as it is given here."""

    document: Document
    reason: str
    detail: str = ""


# One that is faster on many documents at once may have `many(list[Document]) -> list[Kept | Removed]` beside.
Transform = Callable[[Document], Kept | Removed]


class Part(BaseModel):
    """What became of one input file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: str  # hash of everything that decides the content
    documents: OutputFile
    removed: list[OutputFile]
    num_bad: int
    counts: Counts
    details: dict[str, int]


@dataclass(frozen=True)
class Task:
    """One input file of a run; `folder` is where its part will be."""

    root: Path
    path: Path
    text_field: str
    max_bad: int
    folder: Path
    output: str  # name below TARGET
    key: str


def output_name(number: int, name: str) -> str:
    """Numbered, because the next stage reads in order of name; numbers and folders of earlier stages are left out."""
    for suffix in sorted(READABLE, key=len, reverse=True):
        name = name.removesuffix(suffix)
    parts = [NUMBERED.sub("", part) for part in name.split("/") if part != DOCUMENTS]
    return f"{DOCUMENTS}/{number:06d}-{'-'.join(parts)}.jsonl.zst"


def whole_part(task: Task) -> Part | None:
    """The part that an earlier run left for this file, if it is whole and made from the same things."""
    try:
        part = Part.model_validate_json((task.folder / RECORD).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    files = [(task.folder / f"{DOCUMENTS}.jsonl.zst", part.documents)]
    files += [(task.folder / file.path, file) for file in part.removed]
    sound = all(path.is_file() and path.stat().st_size == file.bytes for path, file in files)
    return part if sound and part.key == task.key else None


@dataclass(frozen=True)
class DoneBatch:
    """What became of the records of one raw batch, ready to be written."""

    kept: bytes
    removed: dict[str, bytes]  # by reason
    bad: list[BadRecord]
    counts: Counts  # without the bad records
    details: dict[str, int]
    input_bytes: int


def do_batch(batch: RawBatch, text_field: str, transform: Transform) -> DoneBatch:
    """Parse one raw batch and send its documents through the transform."""
    records = list(enumerate(parse_batch(batch, text_field), batch.first_line))
    documents = [record for _, record in records if isinstance(record, Document)]
    many = getattr(transform, "many", None)
    results = iter(many(documents) if many else map(transform, documents))
    kept, removed, bad = [], defaultdict[str, list[bytes]](list), []
    counting, details = Counting(), Counter[str]()
    for line, record in records:
        if isinstance(record, BadRecord):
            bad.append(record)
            continue
        result = next(results)
        if isinstance(result, Kept):
            kept.append(document_line(result.document))
            counting.keep(result.document)
            details.update(result.counts)
        else:
            assert REASON.fullmatch(result.reason), f"reason {result.reason!r} is to name a file: lower-case letters, digits, _"
            removed[result.reason].append(removed_line(result.document, batch.file, line, result.reason, result.detail))
            counting.dropped[result.reason] += 1
    assert next(results, None) is None, "the transform gave more results than it got documents"
    joined = {reason: b"".join(lines) for reason, lines in removed.items()}
    return DoneBatch(b"".join(kept), joined, bad, counting.result(), dict(details), batch.input_bytes)


DoBatches = Callable[[Iterator[RawBatch]], Iterator[DoneBatch]]


def make_part(task: Task, transform: Transform) -> Part:
    """Send one file through the transform, into a folder that gets its name when it is whole."""
    return write_part(task, lambda batches: (do_batch(batch, task.text_field, transform) for batch in batches))


def write_part(task: Task, do_batches: DoBatches, advance: Callable[[int], object] = lambda num_bytes: None) -> Part:
    """The same, with the batches done elsewhere; `advance` is told how many bytes of the file are done."""
    temporary = task.folder.with_name(f"{task.folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    bad = RemovedRecords(temporary / REMOVED, task.max_bad)
    with contextlib.ExitStack() as stack:
        stack.callback(bad.close)
        writer = _PartWriter(temporary, stack)
        for done in do_batches(read_batches(Source(task.root, [task.path]), task.text_field)):
            writer.add(done)
            for record in done.bad:
                bad.add(record)
            advance(done.input_bytes)
    num_bad = bad.counts.total()
    removed = sorted([*bad.close(), *writer.removed_files()], key=lambda file: file.path)
    writer.counts.dropped.update(bad.counts)
    part = Part(
        key=task.key,
        documents=output_file(temporary / f"{DOCUMENTS}.jsonl.zst", task.output, writer.counts.documents),
        removed=removed,
        num_bad=num_bad,
        counts=writer.counts.result(),
        details=dict(sorted(writer.details.items())),
    )
    (temporary / RECORD).write_text(part.model_dump_json(indent=2) + "\n", encoding="utf-8")
    sync_files(temporary)
    if task.folder.exists():
        shutil.rmtree(task.folder)
    os.replace(temporary, task.folder)
    sync_folder(task.folder.parent)
    return part


class _PartWriter:
    """Writes what became of the batches of one file, and counts it."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.counts = Counting()
        self.details: Counter[str] = Counter()
        self._folder, self._stack = folder, stack
        self._kept = self._open(folder / f"{DOCUMENTS}.jsonl.zst")
        self._removed: dict[str, zstandard.ZstdCompressionWriter] = {}

    def add(self, done: DoneBatch) -> None:
        self._kept.write(done.kept)
        for reason, lines in done.removed.items():
            self._removed_stream(reason).write(lines)
        self.counts.add(done.counts)
        self.details.update(done.details)

    def removed_files(self) -> list[OutputFile]:
        names = [(f"{REMOVED}/{reason}.jsonl.zst", reason) for reason in sorted(self._removed)]
        return [output_file(self._folder / name, name, self.counts.dropped[reason]) for name, reason in names]

    def _removed_stream(self, reason: str) -> zstandard.ZstdCompressionWriter:
        if reason not in self._removed:
            (self._folder / REMOVED).mkdir(exist_ok=True)
            self._removed[reason] = self._open(self._folder / REMOVED / f"{reason}.jsonl.zst")
        return self._removed[reason]

    def _open(self, path: Path) -> zstandard.ZstdCompressionWriter:
        # One thread: with more, the frame's bytes would depend on their number.
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
        return self._stack.enter_context(compressor.stream_writer(open(path, "wb"), closefd=True))
