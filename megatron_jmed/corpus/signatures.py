"""Where are the comparison keys of millions of texts kept, and how are they found again?

In: one source file at a time. Out: a folder of runs, each some ten thousand consecutive documents as plain arrays:
`keys` (row 0: upper half of the exact key; rows 1 to bands: LSH keys; each row sorted) with `places` (which document
each key belongs to), `lower` (other half of the exact key), `signatures` (lowest 16 bits of each MinHash value) and
ids. Rows are sorted, so that all keys of a range are read from each run in one piece, without a central index.
Invariant: documents are numbered through, in the order of the sources, their files and lines; what a folder holds
depends on its file and the MinHash settings alone; a folder is renamed into place when it is whole.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from megatron_jmed.corpus.document import BadRecord, Document, RemovedRecords, parse_batch
from megatron_jmed.corpus.manifest import sync_folder
from megatron_jmed.corpus.minhash import MinHash
from megatron_jmed.corpus.reader import Source, read_batches

RECORD = "record.json"
EXACT_ROW = 0


class SignedFile(BaseModel):
    """What is in the folder of one source file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: str  # hash of everything that decides the content
    runs: list[int]  # documents in each
    num_bad: int


@dataclass(frozen=True)
class SignTask:
    """One source file; `folder` is where its runs will be."""

    root: Path
    path: Path
    text_field: str
    max_bad: int
    folder: Path
    key: str
    minhash: MinHash
    run_documents: int  # bounds the memory; does not change which duplicates are found


def bytes_per_document(minhash: MinHash) -> int:
    """Memory that a document costs while its run is being made, with a typical id."""
    return 6 * minhash.num_hashes + 3 * 16 * (minhash.bands + 1) + 100


def signed_file(task: SignTask) -> SignedFile | None:
    """What an earlier run left for this file, if it is whole and made from the same things."""
    try:
        signed = SignedFile.model_validate_json((task.folder / RECORD).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return signed if signed.key == task.key else None


def sign_file(task: SignTask) -> SignedFile:
    """Compute the keys of every document of one file; CorpusError if it is damaged or has too many bad records."""
    temporary = task.folder.with_name(f"{task.folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    bad = RemovedRecords(temporary / "bad", task.max_bad)
    runs, run = [], _NewRun(task.minhash)
    try:
        for batch in read_batches(Source(task.root, [task.path]), task.text_field):
            documents = []
            for record in parse_batch(batch, task.text_field):
                if isinstance(record, BadRecord):
                    bad.add(record)
                else:
                    documents.append(record)
            while documents:
                room = task.run_documents - len(run.ids)
                run.add(documents[:room])
                documents = documents[room:]
                if len(run.ids) == task.run_documents:
                    runs.append(run.save(temporary, len(runs)))
                    run = _NewRun(task.minhash)
    finally:
        bad.close()
    if run.ids:
        runs.append(run.save(temporary, len(runs)))
    signed = SignedFile(key=task.key, runs=runs, num_bad=bad.counts.total())
    (temporary / RECORD).write_text(signed.model_dump_json() + "\n", encoding="utf-8")
    sync_folder(temporary)
    if task.folder.exists():
        shutil.rmtree(task.folder)
    os.replace(temporary, task.folder)
    return signed


class _NewRun:
    """Collects the keys of consecutive documents."""

    def __init__(self, minhash: MinHash) -> None:
        self.minhash = minhash
        self.ids: list[bytes] = []
        self._exact: list[bytes] = []
        self._signatures: list[np.ndarray] = []

    def add(self, documents: list[Document]) -> None:
        exact, signatures = self.minhash.sign([one.text for one in documents], [one.lang for one in documents])
        self.ids += [one.id.encode("utf-8", "surrogatepass") for one in documents]
        self._exact += exact
        self._signatures.append(signatures)

    def save(self, folder: Path, number: int) -> int:
        """Write the run's arrays; the number of its documents."""
        exact = np.frombuffer(b"".join(self._exact), "<u8").reshape(-1, 2)
        signatures = np.concatenate(self._signatures)
        keys = np.concatenate([exact[:, :1], self.minhash.band_keys(signatures)], axis=1).T
        places = np.argsort(keys, axis=1, kind="stable").astype(np.uint32)
        arrays = {
            "keys": np.take_along_axis(keys, places, axis=1),
            "places": places,
            "lower": exact[:, 1],
            "signatures": signatures.astype(np.uint16),
            "id_ends": np.cumsum([len(identity) for identity in self.ids]),
            "id_bytes": np.frombuffer(b"".join(self.ids), np.uint8),
        }
        for name, array in arrays.items():
            with open(folder / f"{number:06d}-{name}.npy", "wb") as stream:
                _save(stream, np.ascontiguousarray(array))
                stream.flush()
                os.fsync(stream.fileno())
        return len(self.ids)


def _save(stream: BinaryIO, array: np.ndarray) -> None:
    """As np.save, which reports a full disk by an error without its number, so that nobody knows it for one."""
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
    stream.write(array.reshape(-1).view(np.uint8))


# ---- finding them again


@dataclass
class Run:
    """A finished run; its arrays stay on disk and are mapped when they are first needed."""

    folder: Path
    number: int
    first: int  # number of its first document
    file: int  # which source file it belongs to
    size: int
    _arrays: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, object]:
        # A worker maps the files itself; pickled, the arrays would travel to it in full.
        return self.__dict__ | {"_arrays": {}}

    def array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            self._arrays[name] = np.load(self.folder / f"{self.number:06d}-{name}.npy", mmap_mode="r")
        return self._arrays[name]


@dataclass
class Signatures:
    """All runs of a corpus, in its order."""

    runs: list[Run]

    @classmethod
    def of(cls, folders: list[Path], files: list[SignedFile]) -> "Signatures":
        runs, first = [], 0
        for file, (folder, signed) in enumerate(zip(folders, files, strict=True)):
            for number, size in enumerate(signed.runs):
                runs.append(Run(folder, number, first, file, size))
                first += size
        return cls(runs)

    @cached_property
    def num_documents(self) -> int:
        return self.runs[-1].first + self.runs[-1].size if self.runs else 0

    @cached_property
    def _firsts(self) -> np.ndarray:
        return np.array([run.first for run in self.runs], np.int64)

    def key_range(self, row: int, part: int, num_parts: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys of one row in the given part of the whole 64-bit range, and their documents; unsorted."""
        low, high = (np.uint64(min(2**64 * edge // num_parts, 2**64 - 1)) for edge in (part, part + 1))
        keys, documents = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for run in self.runs:
            row_keys = run.array("keys")[row]
            start, stop = np.searchsorted(row_keys, np.array([low, high], np.uint64))
            stop = run.size if part == num_parts - 1 else stop
            keys.append(np.array(row_keys[start:stop]))
            documents.append(run.first + run.array("places")[row, start:stop].astype(np.int64))
        return np.concatenate(keys), np.concatenate(documents)

    def values(self, name: str, documents: np.ndarray) -> np.ndarray:
        """The entries of `lower` or `signatures` for the given documents."""
        found: np.ndarray | None = None
        for run, where in self._by_run(documents):
            entries = run.array(name)[documents[where] - run.first]
            if found is None:
                found = np.empty((len(documents), *entries.shape[1:]), entries.dtype)
            found[where] = entries
        assert found is not None, "at least one document must be asked for"
        return found

    def document_id(self, document: int) -> str:
        """The id of a document; of one that was read without an id: its file and line."""
        run = self.runs[int(np.searchsorted(self._firsts, document, side="right")) - 1]
        ends, place = run.array("id_ends"), document - run.first
        start = int(ends[place - 1]) if place else 0
        return run.array("id_bytes")[start : int(ends[place])].tobytes().decode("utf-8", "surrogatepass")

    def _by_run(self, documents: np.ndarray) -> Iterator[tuple[Run, np.ndarray]]:
        owners = np.searchsorted(self._firsts, documents, side="right") - 1
        order = np.argsort(owners, kind="stable")
        cuts = np.flatnonzero(np.diff(owners[order])) + 1
        for where in np.split(order, cuts):
            if len(where):
                yield self.runs[int(owners[where[0]])], where
