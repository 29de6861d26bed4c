"""How do tokens lie on disk so that Megatron-Core's IndexedDataset reads them?

In: arrays of token ids and lengths. Out: NAME.bin (the ids, one document after the other) and NAME.idx:

    bytes  0-8   MMIDIDX and two zeros          A sequence is a whole document, or
    bytes  9-16  u64 version, 1                 a sentence of one. Document d holds the
    byte  17     u8  code of the id's type      sequences from entry d to entry d + 1,
    bytes 18-25  u64 number of sequences        so that the number of entries is
    bytes 26-33  u64 number of document entries documents + 1
    then         i32 length of each sequence, i64 its byte offset in .bin, i64 document entries (0, 1, 2, ...)

All numbers are little endian. Invariant: both files equal, byte for byte, what megatron-core 0.16's
IndexedDatasetBuilder writes for the same documents.
"""

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron_jmed.corpus.manifest import OutputFile
from megatron_jmed.errors import CorpusError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES = {"int32": 4, "uint16": 8}
# Megatron-Core's own limit, below 2**16; other tools use 65,536 and clash with it.
UINT16_VOCAB_LIMIT = 65_500
DOCUMENTS_PER_WRITE = 2**20
COPY_BYTES = 2**22


def token_dtype(vocab_size: int) -> np.dtype:
    """The type Megatron-Core stores ids of this vocabulary in: uint16 below 65,500 pieces, else int32."""
    return np.dtype("<u2" if vocab_size < UINT16_VOCAB_LIMIT else "<i4")


class TokenWriter:
    """Writes FOLDER/NAME.bin and NAME.lengths (i32) as documents come in, and NAME.idx at the end, in little memory.

    With `num_sequences` documents may have several sequences; where each one's end is NAME.ends (i64) says meanwhile.
    Of what an earlier writer left there, the given numbers are kept (and the tokens read, to hash them).
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        dtype: np.dtype,
        num_documents: int = 0,
        num_tokens: int = 0,
        num_sequences: int | None = None,
    ) -> None:
        self.folder = folder
        self.name = name
        self.dtype = dtype
        self.num_documents, self.num_tokens, self.num_sequences = num_documents, num_tokens, num_sequences
        self._digest = hashlib.sha256()
        self._bin = _reopened(folder / f"{name}.bin", num_tokens * dtype.itemsize, self._digest)
        self._lengths = _reopened(self._path("lengths"), 4 * (num_documents if num_sequences is None else num_sequences))
        self._ends = None if num_sequences is None else _reopened(self._path("ends"), 8 * num_documents)

    def _path(self, table: str) -> Path:
        return self.folder / f"{self.name}.{table}"

    def add(self, tokens: np.ndarray, lengths: np.ndarray, num_sequences_of: np.ndarray | None = None) -> None:
        """Append consecutive documents: all their ids, the number of ids of each sequence, of sequences of each document."""
        assert tokens.dtype == self.dtype and int(lengths.sum()) == len(tokens)
        assert (num_sequences_of is None) == (self._ends is None)
        data = tokens.tobytes()
        self._digest.update(data)
        self._bin.write(data)
        self._lengths.write(lengths.astype("<i4", copy=False).tobytes())
        self.num_tokens += len(tokens)
        if num_sequences_of is None:
            self.num_documents += len(lengths)
        else:
            assert int(num_sequences_of.sum()) == len(lengths)
            self._ends.write((self.num_sequences + np.cumsum(num_sequences_of, dtype="<i8")).tobytes())
            self.num_documents += len(num_sequences_of)
            self.num_sequences += len(lengths)

    def sync(self) -> None:
        """Make what was added survive a power failure."""
        for stream in self._streams():
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self) -> list[OutputFile]:
        """Write the index, flush both files to disk, and describe them."""
        self.close()
        tokens = OutputFile(
            path=f"{self.name}.bin",
            rows=self.num_documents,
            bytes=self.num_tokens * self.dtype.itemsize,
            sha256=self._digest.hexdigest(),
        )
        (self.folder / f"{self.name}.idx").unlink(missing_ok=True)  # it may have a second name, as a published file
        lengths = [np.memmap(self._path("lengths"), "<i4", "r")] if self.num_documents else []
        ends = None
        if self._ends:
            ends = [np.memmap(self._path("ends"), "<i8", "r")] if self.num_documents else []
        return [tokens, write_index(self.folder / f"{self.name}.idx", lengths, self.dtype, ends)]

    def close(self) -> None:
        """Flush and close the files; also right when the run fails."""
        if not self._bin.closed:
            self.sync()
            for stream in self._streams():
                stream.close()

    def _streams(self) -> list[BinaryIO]:
        return [stream for stream in (self._bin, self._lengths, self._ends) if stream]


def _reopened(path: Path, num_bytes: int, digest: Any = None) -> BinaryIO:
    """Open a file for appending after its first bytes, which are hashed; what follows them is cut off."""
    if not num_bytes:
        path.unlink(missing_ok=True)  # it may have a second name, as a published file
    stream = open(path, "r+b" if num_bytes and path.exists() else "w+b")
    found = os.fstat(stream.fileno()).st_size
    if found < num_bytes:
        stream.close()
        raise CorpusError(f"{path} has {found} bytes of the {num_bytes} that were saved; delete {path.parent} and run again")
    if digest:
        for start in range(0, num_bytes, COPY_BYTES):
            digest.update(stream.read(min(COPY_BYTES, num_bytes - start)))
    stream.seek(num_bytes)
    stream.truncate()
    return stream


def write_index(
    path: Path, lengths: Sequence[np.ndarray], dtype: np.dtype, ends: Sequence[np.ndarray] | None = None
) -> OutputFile:
    """Write the .idx file of sequences with these lengths, given in one or more (memory-mapped) pieces.

    `ends` says, in as many pieces, how many sequences of its piece each document and those before it have; without it
    each sequence is a document.
    """
    digest = hashlib.sha256()
    with open(path, "wb") as stream:
        for block in _index_blocks(lengths, dtype, ends):
            digest.update(block)
            stream.write(block)
        num_bytes = stream.tell()
        stream.flush()
        os.fsync(stream.fileno())
    rows = sum(map(len, lengths if ends is None else ends))
    return OutputFile(path=path.name, rows=rows, bytes=num_bytes, sha256=digest.hexdigest())


def _index_blocks(lengths: Sequence[np.ndarray], dtype: np.dtype, ends: Sequence[np.ndarray] | None) -> Iterator[bytes]:
    """The .idx file in blocks, so that no table ever stands in memory as a whole."""
    num = sum(map(len, lengths))
    num_documents = num if ends is None else sum(map(len, ends))
    yield HEADER.pack(MAGIC, VERSION, DTYPE_CODES[dtype.name], num, num_documents + 1)
    for block in _blocks(lengths):
        yield block.astype("<i4", copy=False).tobytes()
    offset = 0
    for block in _blocks(lengths):
        last_bytes = offset + np.cumsum(block, dtype="<i8")
        yield (np.concatenate([[offset], last_bytes[:-1]]) * dtype.itemsize).astype("<i8").tobytes()
        offset = int(last_bytes[-1])
    if ends is None:
        for start in range(0, num + 1, DOCUMENTS_PER_WRITE):
            yield np.arange(start, min(start + DOCUMENTS_PER_WRITE, num + 1), dtype="<i8").tobytes()
        return
    yield bytes(8)
    first = 0
    for piece, ends_of_piece in zip(lengths, ends, strict=True):
        for block in _blocks([ends_of_piece]):
            yield (first + block).astype("<i8", copy=False).tobytes()
        first += len(piece)


def _blocks(lengths: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    for piece in lengths:
        for start in range(0, len(piece), DOCUMENTS_PER_WRITE):
            yield piece[start : start + DOCUMENTS_PER_WRITE]


@dataclass(frozen=True)
class TokenIndex:
    """What an .idx file says: the type of the ids, the length and place of each sequence, and where documents begin and end."""

    dtype: np.dtype
    lengths: np.ndarray  # i32, memory-mapped
    entries: np.ndarray  # i64, memory-mapped; one more than documents
    offsets: np.ndarray  # i64, memory-mapped; the byte in .bin at which each sequence begins

    @property
    def num_documents(self) -> int:
        return len(self.entries) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def num_tokens_bytes(self) -> int:
        return self.num_tokens * self.dtype.itemsize


def read_index(path: Path) -> TokenIndex:
    """Open an .idx file; CorpusError if its header or its size is wrong, or its documents do not hold its sequences."""
    found = path.stat().st_size
    with open(path, "rb") as stream:
        header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        raise CorpusError(f"{path} is truncated: it has {found} bytes, the header alone has {HEADER.size}")
    magic, version, code, num, num_entries = HEADER.unpack(header)
    names = {code: name for name, code in DTYPE_CODES.items()}
    if magic != MAGIC or version != VERSION or code not in names:
        raise CorpusError(f"{path} is not an index of version {VERSION} with ids of type {' or '.join(DTYPE_CODES)}")
    expected = HEADER.size + 4 * num + 8 * num + 8 * num_entries
    if found != expected or num == 0 or num_entries < 2:
        raise CorpusError(f"{path} has {found} bytes, an index of {num} sequences has {expected}: damaged or empty")
    lengths = np.memmap(path, dtype="<i4", mode="r", offset=HEADER.size, shape=(num,))
    entries = np.memmap(path, dtype="<i8", mode="r", offset=HEADER.size + 12 * num, shape=(num_entries,))
    _check_entries(path, entries, num)
    offsets = np.memmap(path, dtype="<i8", mode="r", offset=HEADER.size + 4 * num, shape=(num,))
    return TokenIndex(np.dtype(names[code]).newbyteorder("<"), lengths, entries, offsets)


def _check_entries(path: Path, entries: np.ndarray, num_sequences: int) -> None:
    # As many documents as sequences leave one way to hold them: that table, as large as all others together, is not read.
    is_rising = len(entries) == num_sequences + 1 or all(
        (np.diff(entries[start : start + DOCUMENTS_PER_WRITE + 1]) > 0).all()
        for start in range(0, len(entries) - 1, DOCUMENTS_PER_WRITE)
    )
    if (entries[0], entries[-1]) != (0, num_sequences) or not is_rising:
        raise CorpusError(f"{path} has documents that do not hold its {num_sequences} sequences one after the other: damaged")


def read_whole_documents(path: Path) -> TokenIndex:
    """Open an .idx file for one who takes each sequence for a document; CorpusError if they are sentences."""
    index = read_index(path)
    if index.num_documents != len(index.lengths):
        raise CorpusError(f"{path} holds {len(index.lengths)} sentences of {index.num_documents} documents; this needs "
                          "whole documents: tokenise without --split-sentences")
    return index
