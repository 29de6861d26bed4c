"""How far has a run of tokenising come, so that the next one goes on there after a kill?

Tokenising writes in order, so what is done is a beginning: so many files of the source, so many batches of the next,
so many documents and tokens. Every minute the outputs are synced and then this is replaced, whole, in one rename.
Invariant: whatever is cut off or damaged after it, the outputs up to here are on the disk; it counts for nothing if
anything that decides the tokens (source, settings, code) has changed since.
"""

import os
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from megatron_jmed.corpus.manifest import Counts, sync_folder
from megatron_jmed.corpus.part_folders import PROGRESS
from megatron_jmed.corpus.reader import RawBatch, Source, read_batches

SECONDS_BETWEEN_SAVES = 60.0


class Progress(BaseModel):
    """What is done and on the disk."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: str  # hash of everything that decides the tokens
    file: int = 0  # files before this one are done
    batches: int = 0  # and so many of this one's
    documents: int = 0
    tokens: int = 0
    sequences: int | None = None  # None: as many as documents
    removed: dict[str, tuple[int, int]] = {}  # rows and bytes by reason
    counts: Counts = Counts()

    def save(self, folder: Path) -> None:
        temporary = folder / f"{PROGRESS}.tmp"
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.write(self.model_dump_json() + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, folder / PROGRESS)
        sync_folder(folder)


def load_progress(folder: Path, key: str) -> Progress | None:
    """What an earlier run of the same things saved."""
    try:
        progress = Progress.model_validate_json((folder / PROGRESS).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return progress if progress.key == key else None


def begin(folder: Path, key: str) -> Progress:
    """Nothing is done; an older record goes before the outputs that it speaks of."""
    (folder / PROGRESS).unlink(missing_ok=True)
    sync_folder(folder)
    return Progress(key=key)


def remaining_batches(
    source: Source, text_field: str, progress: Progress, places: deque[tuple[int, int]]
) -> Iterator[RawBatch]:
    """The batches that are not done; `places` gets, for each, (its file, how many of the file's are done with it)."""
    for number, path in enumerate(source.files[progress.file :], progress.file):
        skipped = progress.batches if number == progress.file else 0
        batches = read_batches(Source(source.root, [path]), text_field, fields=("source", "lang"))
        for done, batch in enumerate(islice(batches, skipped, None), skipped + 1):
            places.append((number, done))
            yield batch
