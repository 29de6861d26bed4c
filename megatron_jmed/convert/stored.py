"""A tensor that lies in a file as plain bytes: where, of what kind, and how to read it without its neighbours.

Read with pread and not through a memory map: pages of a map count as this process's memory for as long as it is open,
which would make the memory of a conversion grow with the model.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_jmed.errors import CheckpointError

_MOST_BYTES_A_READ = 1 << 30  # Linux reads at most 2 GiB in one call


def prefer_huge_pages() -> None:
    """Ask torch for memory in pages of 2 MiB: most of a conversion's time goes into new pages otherwise.

    To be called first thing in a program; torch looks once, at its first large tensor.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@dataclass(frozen=True)
class StoredTensor:
    """`shape` values of `dtype`, row after row, from byte `offset` of the file `path`."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """The tensor, in memory of its own; CheckpointError if the file ends before it."""
        flat = torch.empty(self.num_bytes, dtype=torch.uint8)
        read_into(self.path, self.offset, memoryview(flat.numpy()))
        return flat.view(self.dtype).view(self.shape)

    def part(self, index: int) -> "StoredTensor":
        """The tensor at `index` of the first dimension."""
        shape = self.shape[1:]
        return StoredTensor(self.path, self.offset + index * torch.Size(shape).numel() * self.dtype.itemsize, self.dtype, shape)


def read_into(path: Path, offset: int, buffer: memoryview) -> None:
    """Fill `buffer` from byte `offset` on; CheckpointError if the file is absent or too short."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    try:
        done = 0
        while done < len(buffer):
            count = os.preadv(descriptor, [buffer[done: done + _MOST_BYTES_A_READ]], offset + done)
            if not count:
                raise CheckpointError(f"{path}: ends at byte {offset + done}, in the middle of a tensor; it is truncated")
            done += count
    finally:
        os.close(descriptor)


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of `tensor`, row after row, as they lie in a file."""
    return memoryview(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())


def checksum(tensor: torch.Tensor) -> str:
    """SHA-256 of the tensor's bytes, in hexadecimal."""
    return hashlib.sha256(raw_bytes(tensor)).hexdigest()
