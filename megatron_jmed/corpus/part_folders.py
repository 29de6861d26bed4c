"""How does finished work survive a kill, a second run on the same target, and a full disk?

TARGET/.parts/NAME holds what became of one piece of work: written under another name, synced, renamed when whole, with
RECORD saying what it was made from. Invariant: a folder of that name is whole, and one process at a time writes it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import JsonValue

from megatron_jmed.corpus.manifest import (
    MANIFEST_NAME,
    PARTIAL_NAME,
    InputFile,
    Manifest,
    OutputFile,
    load_manifest,
    open_target,
    sha256_file,
    sync_folder,
)
from megatron_jmed.corpus.reader import Source
from megatron_jmed.errors import CorpusError

PARTS, RECORD, PROGRESS, REMOVED = ".parts", "record.json", "progress.json", "removed"


def key_hash(value: JsonValue) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_hashes(source: Source, inputs: list[InputFile]) -> dict[str, str]:
    """The SHA-256 of each file by name: of plain files as just computed, of others as their stage recorded it."""
    hashes = {file.path: file.sha256 for file in inputs}
    for path in source.manifests:
        folder = path.parent
        hashes |= {source.name(folder / file.path): file.sha256 for file in load_manifest(folder).files}
    return hashes


@contextlib.contextmanager
def opened(
    target: Path,
    stage: str,
    settings: dict[str, JsonValue],
    inputs: list[InputFile],
    output_names: tuple[str, ...],
    overwrite: bool,
) -> Iterator[Manifest | None]:
    """Open a target for the one run that writes it: `open_target` with a lock, finished work kept, clear about the disk."""
    with contextlib.ExitStack() as stack:
        if interrupted := (target / PARTS).exists():
            stack.enter_context(sole_writer(target))
            if not (target / MANIFEST_NAME).exists():
                # Says that what stands here is a run of ours, also if it was killed before or after .partial existed.
                (target / PARTIAL_NAME).mkdir(exist_ok=True)
        finished = open_target(target, stage, settings, inputs, (*output_names, PARTS), overwrite)
        if finished:
            print(f"{target} is finished already ({finished.counts.documents} documents); nothing to do", file=sys.stderr)
        else:
            stack.enter_context(clear_about_disk(target))
            if not interrupted:
                stack.enter_context(sole_writer(target))
        yield finished
        shutil.rmtree(target / PARTS, ignore_errors=True)


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
        kept = "what was saved last is" if (target / PARTS / PROGRESS).exists() else f"{whole} input file(s) are finished and"
        raise CorpusError(
            f"the disk that holds {target} is full ({error.strerror}); {kept} kept: "
            f"make room and run the same command again"
        ) from None


def link_or_copy(old: Path, new: Path) -> None:
    """A second name for a finished file, so that a killed run finds the first; a copy where links are not possible."""
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(old, new)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV):
            raise
        shutil.copyfile(old, new)


# ---- files in such folders


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
    files = [output_file(target / PARTIAL_NAME / name, name, rows[name]) for name in sorted(rows)]
    if files:
        sync_files(target / PARTIAL_NAME / REMOVED)
    return files


def output_file(path: Path, name: str, rows: int) -> OutputFile:
    return OutputFile(path=name, rows=rows, bytes=path.stat().st_size, sha256=sha256_file(path))


def sync_files(folder: Path) -> None:
    """Make what stands in a folder survive a power failure, before its rename says that it is whole."""
    for path in sorted(folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)
