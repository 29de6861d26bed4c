"""How do tokens lie on disk so that Megatron-Core's IndexedDataset reads them?

In: arrays of token ids and document lengths. Out: NAME.bin (the ids, one document after the other) and NAME.idx:

    bytes  0-8   MMIDIDX and two zeros          one sequence per document, so that the
    bytes  9-16  u64 version, 1                 number of entries of the last table is
    byte  17     u8  code of the id's type      documents + 1
    bytes 18-25  u64 number of sequences
    bytes 26-33  u64 number of document entries
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

    Of what an earlier writer left there, the given numbers of documents and tokens are kept (and read, to hash them).
    """

    def __init__(self, folder: Path, name: str, dtype: np.dtype, num_documents: int = 0, num_tokens: int = 0) -> None:
        self.folder = folder
        self.name = name
        self.dtype = dtype
        self.num_documents, self.num_tokens = num_documents, num_tokens
        self._digest = hashlib.sha256()
        self._bin = _reopened(folder / f"{name}.bin", num_tokens * dtype.itemsize, self._digest)
        self._lengths = _reopened(self._lengths_path, num_documents * 4)

    @property
    def _lengths_path(self) -> Path:
        return self.folder / f"{self.name}.lengths"

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append consecutive documents: all their ids, and the number of ids of each."""
        assert tokens.dtype == self.dtype and int(lengths.sum()) == len(tokens)
        data = tokens.tobytes()
        self._digest.update(data)
        self._bin.write(data)
        self._lengths.write(lengths.astype("<i4", copy=False).tobytes())
        self.num_documents += len(lengths)
        self.num_tokens += len(tokens)

    def sync(self) -> None:
        """Make what was added survive a power failure."""
        for stream in (self._bin, self._lengths):
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
        lengths = np.memmap(self._lengths_path, "<i4", "r") if self.num_documents else np.empty(0, "<i4")
        return [tokens, write_index(self.folder / f"{self.name}.idx", [lengths], self.dtype)]

    def close(self) -> None:
        """Flush and close the files; also right when the run fails."""
        if not self._bin.closed:
            self.sync()
            self._bin.close()
            self._lengths.close()


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


def write_index(path: Path, lengths: Sequence[np.ndarray], dtype: np.dtype) -> OutputFile:
    """Write the .idx file of documents with these lengths, given in one or more (memory-mapped) pieces."""
    digest = hashlib.sha256()
    with open(path, "wb") as stream:
        for block in _index_blocks(lengths, dtype):
            digest.update(block)
            stream.write(block)
        num_bytes = stream.tell()
        stream.flush()
        os.fsync(stream.fileno())
    return OutputFile(path=path.name, rows=sum(map(len, lengths)), bytes=num_bytes, sha256=digest.hexdigest())


def _index_blocks(lengths: Sequence[np.ndarray], dtype: np.dtype) -> Iterator[bytes]:
    """The .idx file in blocks, so that no table ever stands in memory as a whole."""
    num = sum(map(len, lengths))
    yield HEADER.pack(MAGIC, VERSION, DTYPE_CODES[dtype.name], num, num + 1)
    for block in _blocks(lengths):
        yield block.astype("<i4", copy=False).tobytes()
    offset = 0
    for block in _blocks(lengths):
        ends = offset + np.cumsum(block, dtype="<i8")
        yield (np.concatenate([[offset], ends[:-1]]) * dtype.itemsize).astype("<i8").tobytes()
        offset = int(ends[-1])
    for start in range(0, num + 1, DOCUMENTS_PER_WRITE):
        yield np.arange(start, min(start + DOCUMENTS_PER_WRITE, num + 1), dtype="<i8").tobytes()


def _blocks(lengths: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    for piece in lengths:
        for start in range(0, len(piece), DOCUMENTS_PER_WRITE):
            yield piece[start : start + DOCUMENTS_PER_WRITE]


@dataclass(frozen=True)
class TokenIndex:
    """What an .idx file says: the type of the ids and the length of each document."""

    dtype: np.dtype
    lengths: np.ndarray  # i32, memory-mapped

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def num_tokens_bytes(self) -> int:
        return self.num_tokens * self.dtype.itemsize


def read_index(path: Path) -> TokenIndex:
    """Open an .idx file; CorpusError if its header or its size is wrong."""
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
    if found != expected or num == 0:
        raise CorpusError(f"{path} has {found} bytes, an index of {num} documents has {expected}: damaged or empty")
    lengths = np.memmap(path, dtype="<i4", mode="r", offset=HEADER.size, shape=(num,))
    return TokenIndex(np.dtype(names[code]).newbyteorder("<"), lengths)
