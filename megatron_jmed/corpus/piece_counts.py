"""How many characters, bytes and pieces, in which scripts, do the documents of a token set hold, by group?

In: a token set on disk, its tokenizer, the group of each document. Out: exact counts of every chunk of documents, made in
this process or in several, in order. No text is decoded but what is spelled in bytes: a group's counts are its histogram of
ids times the table of pieces (piece_table.py). Memory: some chunks of tokens, one histogram a group.
Invariant: the sums do not depend on the workers, nor on where the chunks end.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_jmed.corpus.indexed import read_whole_documents
from megatron_jmed.corpus.piece_table import SCRIPTS, PieceTable, load_pieces, script_of
from megatron_jmed.corpus.pool import each_in_order
from megatron_jmed.errors import CorpusError

CHUNK_TOKENS = 2**21
LENGTHS_AT_ONCE = 2**20


@dataclass(frozen=True)
class _Chunk:
    """Consecutive documents of a token set."""

    bin_path: Path
    tokenizer: Path
    dtype: str
    first: int
    offset: int  # in tokens
    lengths: np.ndarray
    groups: np.ndarray
    num_groups: int


@dataclass(frozen=True)
class PieceCounts:
    """What one chunk holds."""

    first: int
    num_tokens: int
    characters: np.ndarray  # of each document
    utf8_bytes: np.ndarray  # of each document
    digests: np.ndarray  # of each document's ids
    histogram: np.ndarray  # [group, id]
    scripts: np.ndarray  # [group, script]: what the histogram does not tell


def count_pieces(
    bin_path: Path, tokenizer: Path, groups: np.ndarray, num_groups: int, workers: int
) -> Iterator[PieceCounts]:
    """Count chunk after chunk, here or in several processes, a bounded number ahead; `groups` has one for each document."""
    chunks = _chunks(bin_path, tokenizer, groups, num_groups)
    return each_in_order(workers, lambda: "; use fewer --workers and run again", _count, chunks)


def _chunks(bin_path: Path, tokenizer: Path, groups: np.ndarray, num_groups: int) -> Iterator[_Chunk]:
    """Cut a token set into runs of whole documents of about CHUNK_TOKENS."""
    index = read_whole_documents(bin_path.with_suffix(".idx"))
    first = offset = 0
    while first < len(index.lengths):
        block = np.array(index.lengths[first : first + LENGTHS_AT_ONCE], dtype=np.int32)
        num = max(1, int(np.searchsorted(np.cumsum(block, dtype=np.int64), CHUNK_TOKENS, side="right")))
        lengths = block[:num]
        dtype = index.dtype.str
        yield _Chunk(bin_path, tokenizer, dtype, first, offset, lengths, groups[first : first + num], num_groups)
        first, offset = first + num, offset + int(lengths.sum(dtype=np.int64))


def _count(chunk: _Chunk) -> PieceCounts:
    """Count one chunk."""
    table = load_pieces(chunk.tokenizer)
    num_tokens = int(chunk.lengths.sum(dtype=np.int64))
    start = chunk.offset * np.dtype(chunk.dtype).itemsize
    ids = np.fromfile(chunk.bin_path, dtype=chunk.dtype, count=num_tokens, offset=start)
    if len(ids) and int(ids.max()) >= table.size:
        raise CorpusError(f"{chunk.bin_path} holds id {int(ids.max())}, the tokenizer has {table.size} pieces")
    ends = np.cumsum(chunk.lengths, dtype=np.int64)
    bounds = np.concatenate([[0], ends])
    stripped = _stripped_spaces(ids, bounds, table)
    token_groups = np.repeat(chunk.groups.astype(np.int64), chunk.lengths)
    flat = np.bincount(token_groups * table.size + ids, minlength=chunk.num_groups * table.size)
    scripts = _byte_scripts(ids, token_groups, chunk.num_groups, table)
    scripts[:, SCRIPTS.index("space")] -= np.bincount(chunk.groups, stripped, chunk.num_groups).astype(np.int64)
    return PieceCounts(
        first=chunk.first,
        num_tokens=num_tokens,
        characters=_sums(table.characters[ids], bounds) - stripped,
        utf8_bytes=_sums(table.utf8_bytes[ids], bounds) - stripped,
        digests=_digests(ids, bounds),
        histogram=flat.reshape(chunk.num_groups, table.size),
        scripts=scripts,
    )


def _sums(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    return np.diff(np.concatenate([[0], np.cumsum(values, dtype=np.int64)])[bounds])


def _stripped_spaces(ids: np.ndarray, bounds: np.ndarray, table: PieceTable) -> np.ndarray:
    """1 for each document whose decoding takes a leading space off."""
    if not table.strips_space or not len(ids):
        return np.zeros(len(bounds) - 1, dtype=np.int64)
    first = np.minimum(bounds[:-1], len(ids) - 1)
    first = np.where(table.is_special[ids[first]], first + 1, first)  # past <s>
    inside = first < bounds[1:]
    return (inside & table.starts_with_space[ids[np.where(inside, first, 0)]]).astype(np.int64)


def _byte_scripts(ids: np.ndarray, token_groups: np.ndarray, num_groups: int, table: PieceTable) -> np.ndarray:
    """Scripts of the characters that are spelled in byte pieces."""
    counts = np.zeros((num_groups, len(SCRIPTS)), dtype=np.int64)
    places = np.flatnonzero(table.byte[ids] >= 0)
    data, groups = table.byte[ids[places]].astype(np.uint8), token_groups[places]
    for group in np.unique(groups):
        # UTF-8 finds its own beginnings, so characters can be decoded end to end.
        for character, count in Counter(data[groups == group].tobytes().decode("utf-8", "replace")).items():
            counts[group, script_of(character)] += count
    return counts


def _digests(ids: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    data, size = ids.tobytes(), ids.itemsize
    hashes = b"".join(
        hashlib.blake2b(data[a * size : b * size], digest_size=8).digest()
        for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    )
    return np.frombuffer(hashes, dtype="<u8")
