"""How does a stage that looks at one document at a time run over many files, and survive being killed?

In: a source, and a function that makes the stage's transform (Document -> Kept or Removed). Out:
TARGET/documents/<one .jsonl.zst per input file>, TARGET/removed/REASON.jsonl.zst for removed documents,
TARGET/removed/REASON.jsonl for records that are no documents, and manifest.json last.
While it runs, TARGET/.parts/NUMBER holds what became of one input file: written under another name, synced, renamed
when whole. A rerun keeps a part whose record names the same input hash, settings and code, and does the others.
With shard (i, n) the run takes every n-th file and writes TARGET/shard-i-of-n; `merge_shards` publishes the whole.
Invariant: documents keep the order of the source, every record is kept or filed under a reason, and the published
files are the same, byte for byte, for any number of workers or shards and however often the run was killed.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import pickle
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path

import zstandard
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from tqdm import tqdm

from megatron_jmed.corpus.document import (
    BadRecord,
    Document,
    RemovedRecords,
    document_line,
    parse_batch,
    removed_line,
)
from megatron_jmed.corpus.manifest import (
    MANIFEST_NAME,
    PARTIAL_NAME,
    Counts,
    GroupCounts,
    InputFile,
    Manifest,
    OutputFile,
    check_files,
    code_version,
    load_manifest,
    open_target,
    publish,
    sha256_file,
    sync_folder,
)
from megatron_jmed.corpus.pool import fewer_workers, worker_pool
from megatron_jmed.corpus.reader import READABLE, SHARD_FOLDER, Source, find_source, read_batches
from megatron_jmed.errors import CorpusError

DOCUMENTS, REMOVED, PARTS, RECORD = "documents", "removed", ".parts", "record.json"
OUTPUT_NAMES = (DOCUMENTS, REMOVED)
ZSTD_LEVEL = 3
MAX_GROUPS = 1000
OTHER = "(other)"
REASON = re.compile(r"[a-z][a-z0-9_]*")
NUMBERED = re.compile(r"^\d{6}-")
SECONDS_BETWEEN_LOG_LINES = 30.0


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


def parse_shard(text: str) -> tuple[int, int]:
    """'2/8' is the second of eight shards; CorpusError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match:
        raise CorpusError(f"--shard {text!r} is not of the form i/n, for example 1/8 for the first of eight")
    return int(match[1]), int(match[2])


def run_stage(
    stage: str,
    source: Path,
    target: Path,
    settings: dict[str, JsonValue],
    make_transform: Callable[[], Transform],
    *,
    workers: int = 1,
    text_field: str = "text",
    max_bad: int = 100,
    shard: tuple[int, int] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    licence: str | None = None,
) -> Manifest:
    """Send every document of a source through a transform; a finished target is left as it is.

    `make_transform` must be picklable; it is called once in each worker. Raises CorpusError for what the user can mend:
    a damaged file, more than `max_bad` bad records, a target of another run, a dead worker, a full disk.
    """
    _check_words(workers, max_bad, shard)
    found, target = find_source(source), Path(target)
    licence = licence or found.licence()
    choices = {**settings, "text_field": text_field, "max_bad": max_bad, "licence": licence}
    details: dict[str, JsonValue] = {"num_source_files": len(found.files)}
    numbered = list(enumerate(found.files))
    if shard:
        if (target / MANIFEST_NAME).exists() and not overwrite:
            raise CorpusError(f"{target} holds a finished result already; choose another target, or use --overwrite")
        index, num_shards = shard
        numbered, target = numbered[index - 1 :: num_shards], target / f"shard-{index}-of-{num_shards}"
        choices["shard"] = f"{index}/{num_shards}"
        details["source_files_sha256"] = key_hash([found.name(path) for path in found.files])
    mine = Source(found.root, [path for _, path in numbered], found.manifests, found.ignored)
    inputs = mine.inputs()
    with contextlib.ExitStack() as stack:
        if interrupted := (target / PARTS).exists():
            stack.enter_context(sole_writer(target))
            if not (target / MANIFEST_NAME).exists():
                # Says that what stands here is a run of ours, also if it was killed before or after .partial existed.
                (target / PARTIAL_NAME).mkdir(exist_ok=True)
        if finished := open_target(target, stage, choices, inputs, (*OUTPUT_NAMES, PARTS), overwrite):
            shutil.rmtree(target / PARTS, ignore_errors=True)
            count = finished.counts.documents
            print(f"{target} is finished already ({count} documents); nothing to do", file=sys.stderr)
            return finished
        stack.enter_context(clear_about_disk(target))
        if not interrupted:
            stack.enter_context(sole_writer(target))
        if found.ignored:
            first = ", ".join(found.ignored[:5])
            print(f"ignored {len(found.ignored)} file(s) of other kinds in {source}: {first}", file=sys.stderr)
        tasks = _tasks(mine, numbered, inputs, target, stage, choices)
        parts = _all_parts(tasks, make_transform, workers, max_bad, progress)
        counts = sum_counts([part.counts for part in parts])
        if not shard and not counts.documents and not counts.dropped:
            raise CorpusError(f"{source} holds no record: its {len(found.files)} file(s) are empty")
        details["counts"] = dict(sorted(_sum_numbers([part.details for part in parts]).items()))
        folders = [task.folder for task in tasks]
        keep_removed = _link_removed if shard else join_removed
        for folder, part in zip(folders, parts, strict=True):
            link_or_copy(folder / f"{DOCUMENTS}.jsonl.zst", target / PARTIAL_NAME / part.documents.path)
        manifest = Manifest(
            stage=stage,
            settings=choices,
            code_version=code_version(),
            source=str(source),
            inputs=inputs,
            ignored_inputs=found.ignored,
            files=[part.documents for part in parts],
            removed_files=keep_removed(zip(folders, [part.removed for part in parts], strict=True), target),
            counts=counts,
            details=details,
            licence=licence,
        )
        publish(target, manifest, OUTPUT_NAMES)
        shutil.rmtree(target / PARTS)
    return manifest


def merge_shards(target: Path, overwrite: bool = False) -> Manifest:
    """Publish what the shards in TARGET made, as one unsharded run would have; CorpusError if one is missing or differs."""
    target = Path(target)
    shards = sorted(path for path in target.glob("*") if SHARD_FOLDER.fullmatch(path.name))
    if not shards:
        if (target / MANIFEST_NAME).exists():
            return load_manifest(target)
        raise CorpusError(f"{target} holds no shard-i-of-n folder; run the stage with --shard 1/n to n/n first")
    manifests = _load_shards(target, shards)
    first = manifests[0]
    settings = {name: value for name, value in first.settings.items() if name != "shard"}
    unique = {file.path: file for manifest in manifests for file in manifest.inputs}
    inputs = sorted(unique.values(), key=lambda file: Path(file.path))
    (target / PARTIAL_NAME).mkdir(exist_ok=True)
    names = [path.name for path in shards]
    if not (finished := open_target(target, first.stage, settings, inputs, (*OUTPUT_NAMES, *names), overwrite)):
        with clear_about_disk(target):
            finished = _publish_shards(target, manifests, settings, inputs)
    for path in shards:
        shutil.rmtree(path)
    return finished


def _load_shards(target: Path, shards: list[Path]) -> list[Manifest]:
    """The manifests of shards 1 to n; CorpusError unless all are there, finished, and of one run."""
    totals = {int(path.name.split("-")[-1]) for path in shards}
    if len(totals) > 1:
        raise CorpusError(f"{target} holds shards of {sorted(totals)} runs; delete those that do not belong together")
    num_shards = totals.pop()
    wanted = [target / f"shard-{index}-of-{num_shards}" for index in range(1, num_shards + 1)]
    if missing := [path.name for path in wanted if not (path / MANIFEST_NAME).exists()]:
        raise CorpusError(f"{target}: {len(missing)} of {num_shards} shards are not finished: {', '.join(missing[:10])}")
    manifests = [load_manifest(path) for path in wanted]
    for path, manifest in zip(wanted, manifests, strict=True):
        check_files(path, manifest)
        for what, there, first in (
            ("stage", manifest.stage, manifests[0].stage),
            ("code version", manifest.code_version, manifests[0].code_version),
            ("settings", manifest.settings | {"shard": ""}, manifests[0].settings | {"shard": ""}),
            ("source files", manifest.details["source_files_sha256"], manifests[0].details["source_files_sha256"]),
        ):
            if there != first:
                raise CorpusError(f"{path}: {what} {there!r} differ from {first!r} of shard 1; run that shard again")
    if (there := sum(len(manifest.files) for manifest in manifests)) != manifests[0].details["num_source_files"]:
        raise CorpusError(f"{target}: the shards hold {there} files of {manifests[0].details['num_source_files']}")
    return manifests


def _publish_shards(
    target: Path, manifests: list[Manifest], settings: dict[str, JsonValue], inputs: list[InputFile]
) -> Manifest:
    num_shards = len(manifests)
    folders = [target / f"shard-{index}-of-{num_shards}" for index in range(1, num_shards + 1)]
    for folder, manifest in zip(folders, manifests, strict=True):
        for file in manifest.files:
            link_or_copy(folder / file.path, target / PARTIAL_NAME / file.path)
    first = manifests[0]
    merged = first.model_copy(
        update={
            "settings": settings,
            "inputs": inputs,
            "files": sorted((file for manifest in manifests for file in manifest.files), key=lambda file: file.path),
            "removed_files": join_removed(_removed_by_file(folders, manifests), target),
            "counts": sum_counts([manifest.counts for manifest in manifests]),
            "details": {
                "num_source_files": first.details["num_source_files"],
                "counts": dict(sorted(_sum_numbers([manifest.details["counts"] for manifest in manifests]).items())),
            },
        }
    )
    publish(target, merged, OUTPUT_NAMES)
    return merged


def _tasks(
    source: Source,
    numbered: list[tuple[int, Path]],
    inputs: list[InputFile],
    target: Path,
    stage: str,
    choices: dict[str, JsonValue],
) -> list[Task]:
    # What does not change the output of one file (the budget, the shard) is left out, so that its part is reused.
    same = {name: value for name, value in choices.items() if name not in ("max_bad", "licence", "shard")}
    hashes = file_hashes(source, inputs)
    seed = [stage, same, code_version()]
    return [
        Task(
            root=source.root,
            path=path,
            text_field=str(choices["text_field"]),
            max_bad=int(choices["max_bad"]),
            folder=target / PARTS / f"{number:06d}",
            output=output_name(number, source.name(path)),
            key=key_hash([*seed, number, source.name(path), hashes[source.name(path)]]),
        )
        for number, path in numbered
    ]


def _check_words(workers: int, max_bad: int, shard: tuple[int, int] | None) -> None:
    problems = []
    if workers < 1:
        problems.append(f"--workers {workers} is too small; at least 1 is needed")
    if max_bad < 0:
        problems.append(f"--max-bad {max_bad} is negative; 0 allows no bad record")
    if shard and not 1 <= shard[0] <= shard[1]:
        problems.append(f"--shard {shard[0]}/{shard[1]} does not exist; shards of n are 1/n to n/n")
    if problems:
        raise CorpusError("; ".join(problems))


def key_hash(value: JsonValue) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def output_name(number: int, name: str) -> str:
    """Numbered, because the next stage reads in order of name; numbers and folders of earlier stages are left out."""
    for suffix in sorted(READABLE, key=len, reverse=True):
        name = name.removesuffix(suffix)
    parts = [NUMBERED.sub("", part) for part in name.split("/") if part != DOCUMENTS]
    return f"{DOCUMENTS}/{number:06d}-{'-'.join(parts)}.jsonl.zst"


def file_hashes(source: Source, inputs: list[InputFile]) -> dict[str, str]:
    """The SHA-256 of each file by name: of plain files as just computed, of others as their stage recorded it."""
    hashes = {file.path: file.sha256 for file in inputs}
    for path in source.manifests:
        folder = path.parent
        hashes |= {source.name(folder / file.path): file.sha256 for file in load_manifest(folder).files}
    return hashes


@contextlib.contextmanager
def sole_writer(target: Path) -> Iterator[None]:
    """Refuse a second run on the same target; the lock ends with the process, however it ends."""
    parts = target / PARTS
    parts.mkdir(parents=True, exist_ok=True)
    with open(target / PARTS / "lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CorpusError(f"another run is writing {target}; wait for it, or end it") from None
        except OSError as error:  # a network file system without locks
            print(f"{target}: no lock ({error.strerror}); make sure that no other run writes here", file=sys.stderr)
        yield


@contextlib.contextmanager
def clear_about_disk(target: Path) -> Iterator[None]:
    """Turn a full disk into an error that says what is there and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        whole = len(list((target / PARTS).glob(f"??????/{RECORD}")))
        raise CorpusError(
            f"the disk that holds {target} is full ({error.strerror}); {whole} input file(s) are finished and kept: "
            f"make room and run the same command again"
        ) from None


# ---- one input file


def _all_parts(
    tasks: list[Task], make_transform: Callable[[], Transform], workers: int, max_bad: int, progress: bool
) -> list[Part]:
    """Do the files that have no whole part yet; the parts in the order of the tasks."""
    for folder in {task.folder.parent for task in tasks}:
        for leftover in folder.glob("*.tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    parts = {task: part for task in tasks if (part := whole_part(task))}
    todo = [task for task in tasks if task not in parts]
    if parts:
        print(f"{len(parts)} of {len(tasks)} file(s) were finished by an earlier run", file=sys.stderr)
    interval = 0.5 if sys.stderr.isatty() else SECONDS_BETWEEN_LOG_LINES
    total = sum(task.path.stat().st_size for task in tasks)
    with tqdm(total=total, unit="B", unit_scale=True, disable=not progress, mininterval=interval) as bar:
        bar.update(sum(task.path.stat().st_size for task in parts))
        for task, part in _made_parts(todo, make_transform, workers):
            parts[task] = part
            bar.update(task.path.stat().st_size)
            _check_budget(parts, max_bad)
        _check_budget(parts, max_bad)
    return [parts[task] for task in tasks]


def _check_budget(parts: dict[Task, Part], max_bad: int) -> None:
    """RemovedRecords watches the budget within a file; this watches their sum."""
    num_bad = sum(part.num_bad for part in parts.values())
    if num_bad > max_bad:
        worst = max(parts, key=lambda task: parts[task].num_bad)
        raise CorpusError(
            f"{num_bad} bad record(s) in {len(parts)} file(s), more than {max_bad}; {worst.path} has most of them "
            f"({parts[worst].num_bad}), kept in {worst.folder / REMOVED}; mend the source or allow more with --max-bad"
        )


def _made_parts(
    tasks: list[Task], make_transform: Callable[[], Transform], workers: int
) -> Iterator[tuple[Task, Part]]:
    """Do each file, here (one worker) or in several processes; in the order in which they are finished."""
    if workers == 1 or len(tasks) < 2:
        transform = make_transform() if tasks else None
        for task in tasks:
            assert transform is not None
            yield task, make_part(task, transform)
        return
    pickled = pickle.dumps(make_transform)
    # The largest first, so that no worker is left alone with one at the end.
    largest_first = sorted(tasks, key=lambda task: -task.path.stat().st_size)
    with worker_pool(min(workers, len(tasks)), fewer_workers(workers)) as pool:
        futures = {pool.submit(_make_part_in_worker, task, pickled): task for task in largest_first}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _make_part_in_worker(task: Task, pickled: bytes) -> Part:
    return make_part(task, _transform_of_worker(pickled))


@functools.cache
def _transform_of_worker(pickled: bytes) -> Transform:
    """One transform per worker process."""
    return pickle.loads(pickled)()


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


def make_part(task: Task, transform: Transform) -> Part:
    """Send one file through the transform, into a folder that gets its name when it is whole."""
    temporary = task.folder.with_name(f"{task.folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    bad = RemovedRecords(temporary / REMOVED, task.max_bad)
    with contextlib.ExitStack() as stack:
        stack.callback(bad.close)
        writer = _PartWriter(temporary, stack)
        for file, line, record in _numbered_records(task):
            if isinstance(record, BadRecord):
                bad.add(record)
            else:
                writer.add(transform(record), file, line)
    part = Part(
        key=task.key,
        documents=_output_file(temporary / f"{DOCUMENTS}.jsonl.zst", task.output, writer.counts.documents),
        removed=sorted([*bad.close(), *writer.removed_files()], key=lambda file: file.path),
        num_bad=bad.counts.total(),
        counts=writer.counts.result(bad.counts),
        details=dict(sorted(writer.details.items())),
    )
    (temporary / RECORD).write_text(part.model_dump_json(indent=2) + "\n", encoding="utf-8")
    _sync_files(temporary)
    if task.folder.exists():
        shutil.rmtree(task.folder)
    os.replace(temporary, task.folder)
    sync_folder(task.folder.parent)
    return part


def _numbered_records(task: Task) -> Iterator[tuple[str, int, Document | BadRecord]]:
    for batch in read_batches(Source(task.root, [task.path]), task.text_field):
        for offset, record in enumerate(parse_batch(batch, task.text_field)):
            yield batch.file, batch.first_line + offset, record


class _PartWriter:
    """Writes what the transform returned for one file, and counts it."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.counts = _Counting()
        self.details: Counter[str] = Counter()
        self._folder, self._stack = folder, stack
        self._kept = self._open(folder / f"{DOCUMENTS}.jsonl.zst")
        self._removed: dict[str, zstandard.ZstdCompressionWriter] = {}

    def add(self, result: Kept | Removed, file: str, line: int) -> None:
        if isinstance(result, Kept):
            self._kept.write(document_line(result.document))
            self.counts.keep(result.document)
            self.details.update(result.counts)
        else:
            self._removed_stream(result.reason).write(
                removed_line(result.document, file, line, result.reason, result.detail)
            )
            self.counts.dropped[result.reason] += 1

    def removed_files(self) -> list[OutputFile]:
        names = [(f"{REMOVED}/{reason}.jsonl.zst", reason) for reason in sorted(self._removed)]
        return [_output_file(self._folder / name, name, self.counts.dropped[reason]) for name, reason in names]

    def _removed_stream(self, reason: str) -> zstandard.ZstdCompressionWriter:
        if reason not in self._removed:
            assert REASON.fullmatch(reason), f"reason {reason!r} is to name a file: lower-case letters, digits and _"
            (self._folder / REMOVED).mkdir(exist_ok=True)
            self._removed[reason] = self._open(self._folder / REMOVED / f"{reason}.jsonl.zst")
        return self._removed[reason]

    def _open(self, path: Path) -> zstandard.ZstdCompressionWriter:
        # One thread: with more, the frame's bytes would depend on their number.
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
        return self._stack.enter_context(compressor.stream_writer(open(path, "wb"), closefd=True))


class _Counting:
    """Counts kept documents by source and language; names beyond the first MAX_GROUPS share one line."""

    def __init__(self) -> None:
        self.documents = 0
        self.dropped: Counter[str] = Counter()
        self._by_source: dict[str, list[int]] = {}
        self._by_lang: dict[str, list[int]] = {}

    def keep(self, document: Document) -> None:
        self.documents += 1
        for groups, name in ((self._by_source, document.source), (self._by_lang, document.lang)):
            name = name if name in groups or len(groups) < MAX_GROUPS else OTHER
            group = groups.setdefault(name, [0, 0])
            group[0] += 1
            group[1] += len(document.text)

    def result(self, bad: Counter[str]) -> Counts:
        by_source, by_lang = (
            {name: GroupCounts(documents=documents, characters=characters) for name, (documents, characters) in groups}
            for groups in (self._by_source.items(), self._by_lang.items())
        )
        return sum_counts([Counts(dropped=dict(self.dropped + bad), by_source=by_source, by_lang=by_lang)])


# ---- all input files


def sum_counts(all_counts: Iterable[Counts]) -> Counts:
    """Add up; the totals are those of the languages, so that they cannot disagree."""
    all_counts = list(all_counts)
    by_source = _sum_groups([counts.by_source for counts in all_counts])
    by_lang = _sum_groups([counts.by_lang for counts in all_counts])
    documents, characters = (
        sum(getattr(group, name) for group in by_lang.values()) for name in ("documents", "characters")
    )
    assert documents == sum(group.documents for group in by_source.values())
    dropped = dict(sorted(_sum_numbers([counts.dropped for counts in all_counts]).items()))
    return Counts(documents=documents, characters=characters, dropped=dropped, by_source=by_source, by_lang=by_lang)


def _sum_numbers(tables: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for table in tables:
        total.update(table)
    return total


def _sum_groups(tables: Iterable[dict[str, GroupCounts]]) -> dict[str, GroupCounts]:
    total: dict[str, GroupCounts] = {}
    for table in tables:
        for name, group in table.items():
            name = name if name in total or len(total) < MAX_GROUPS else OTHER
            old = total.get(name, GroupCounts())
            total[name] = GroupCounts(
                documents=old.documents + group.documents, characters=old.characters + group.characters
            )
    return dict(sorted(total.items()))


def _output_file(path: Path, name: str, rows: int) -> OutputFile:
    return OutputFile(path=name, rows=rows, bytes=path.stat().st_size, sha256=sha256_file(path))


def _sync_files(folder: Path) -> None:
    """Make what stands in a folder survive a power failure, before its rename says that it is whole."""
    for path in sorted(folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)


def link_or_copy(old: Path, new: Path) -> None:
    """A second name for a finished file, so that a killed run finds the first; a copy where links are not possible."""
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(old, new)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV):
            raise
        shutil.copyfile(old, new)


def _link_removed(parts: Iterable[tuple[Path, list[OutputFile]]], target: Path) -> list[OutputFile]:
    """A shard's removed records stay apart by input file, so that the merge can put all in the order of the source."""
    linked = []
    for folder, files in parts:
        for file in files:
            name = f"{REMOVED}/{folder.name}/{Path(file.path).name}"
            link_or_copy(folder / file.path, target / PARTIAL_NAME / name)
            linked.append(file.model_copy(update={"path": name}))
    return linked


def _removed_by_file(shards: list[Path], manifests: list[Manifest]) -> Iterator[tuple[Path, list[OutputFile]]]:
    """What `_link_removed` kept apart in all shards, in the order of the input files."""
    found = [(file, shard) for shard, manifest in zip(shards, manifests, strict=True) for file in manifest.removed_files]
    for file, shard in sorted(found, key=lambda pair: pair[0].path):
        folder, name = Path(file.path).parent, Path(file.path).name
        yield shard / folder, [file.model_copy(update={"path": name})]


def join_removed(parts: Iterable[tuple[Path, list[OutputFile]]], target: Path) -> list[OutputFile]:
    """Append the parts' removed records to one file per reason, in order; zstd frames may follow each other."""
    rows: Counter[str] = Counter()
    for folder, files in parts:
        for file in files:
            name = f"{REMOVED}/{Path(file.path).name}"
            joined = target / PARTIAL_NAME / name
            joined.parent.mkdir(exist_ok=True)
            with open(folder / file.path, "rb") as stream, open(joined, "ab") as out:
                shutil.copyfileobj(stream, out, 2**20)
            rows[name] += file.rows
    files = [_output_file(target / PARTIAL_NAME / name, name, rows[name]) for name in sorted(rows)]
    if files:
        _sync_files(target / PARTIAL_NAME / REMOVED)
    return files
