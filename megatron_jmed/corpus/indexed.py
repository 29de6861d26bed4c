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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


def token_dtype(vocab_size: int) -> np.dtype:
    """The type Megatron-Core stores ids of this vocabulary in: uint16 below 65,500 pieces, else int32."""
    return np.dtype("<u2" if vocab_size < UINT16_VOCAB_LIMIT else "<i4")


class TokenWriter:
    """Writes FOLDER/NAME.bin as documents come in, and NAME.idx at the end; holds 4 bytes of memory per document."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype) -> None:
        self.folder = folder
        self.name = name
        self.dtype = dtype
        self._lengths: list[np.ndarray] = []
        self._bin = open(folder / f"{name}.bin", "wb")
        self._digest = hashlib.sha256()

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append consecutive documents: all their ids, and the number of ids of each."""
        assert tokens.dtype == self.dtype and int(lengths.sum()) == len(tokens)
        data = tokens.tobytes()
        self._digest.update(data)
        self._bin.write(data)
        self._lengths.append(lengths)

    def finish(self) -> list[OutputFile]:
        """Write the index, flush both files to disk, and describe them."""
        num_bytes = self._bin.tell()
        self.close()
        lengths = np.concatenate([np.empty(0, "<i4"), *self._lengths])
        tokens = OutputFile(
            path=f"{self.name}.bin", rows=len(lengths), bytes=num_bytes, sha256=self._digest.hexdigest()
        )
        return [tokens, write_index(self.folder / f"{self.name}.idx", lengths, self.dtype)]

    def close(self) -> None:
        """Flush and close the .bin file; also right when the run fails."""
        if not self._bin.closed:
            self._bin.flush()
            os.fsync(self._bin.fileno())
            self._bin.close()


def write_index(path: Path, lengths: np.ndarray, dtype: np.dtype) -> OutputFile:
    """Write the .idx file of documents with these lengths."""
    digest = hashlib.sha256()
    with open(path, "wb") as stream:
        for block in _index_blocks(lengths, dtype):
            digest.update(block)
            stream.write(block)
        num_bytes = stream.tell()
        stream.flush()
        os.fsync(stream.fileno())
    return OutputFile(path=path.name, rows=len(lengths), bytes=num_bytes, sha256=digest.hexdigest())


def _index_blocks(lengths: np.ndarray, dtype: np.dtype) -> Iterator[bytes]:
    """The .idx file in pieces, so that the 8-byte tables never stand in memory as a whole."""
    num = len(lengths)
    starts = range(0, num, DOCUMENTS_PER_WRITE)
    yield HEADER.pack(MAGIC, VERSION, DTYPE_CODES[dtype.name], num, num + 1)
    yield lengths.astype("<i4", copy=False).tobytes()
    offset = 0
    for start in starts:
        ends = offset + np.cumsum(lengths[start : start + DOCUMENTS_PER_WRITE], dtype="<i8")
        yield (np.concatenate([[offset], ends[:-1]]) * dtype.itemsize).astype("<i8").tobytes()
        offset = int(ends[-1])
    for start in range(0, num + 1, DOCUMENTS_PER_WRITE):
        yield np.arange(start, min(start + DOCUMENTS_PER_WRITE, num + 1), dtype="<i8").tobytes()


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
