"""Where are the words in a text, and which 64-bit number stands for each?

In: one code point per character (uint32). Out: where words begin and end, and their hashes: the sum of code[i] times
WORD_BASE^i modulo 2^64, then mixed once. Invariant: a word's number depends on its characters alone; native/word_hash.hpp
gives the same.
"""

import functools

import numpy as np
from numpy.typing import NDArray

WORD_BASE = np.uint64(0xD1342543DE82EF95)
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Codes = NDArray[np.uint32]
Hashes = NDArray[np.uint64]
Positions = NDArray[np.int64]


def word_spans(inside: NDArray[np.bool_]) -> tuple[Positions, Positions]:
    """Where words (runs of characters that belong to one) begin and end."""
    padded = np.zeros(inside.size + 2, np.int8)
    padded[1:-1] = inside
    steps = np.diff(padded)
    return np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)


def word_hashes(codes: Codes, starts: Positions, ends: Positions) -> Hashes:
    """The hash of each word, none of which may be empty."""
    if not starts.size:
        return np.zeros(0, np.uint64)
    lengths = ends - starts
    firsts = np.cumsum(lengths) - lengths
    within = np.arange(lengths.sum()) - np.repeat(firsts, lengths)
    terms = codes[np.repeat(starts, lengths) + within] * _powers(int(lengths.max()))[within]
    sums = np.add.reduceat(terms, firsts)
    return (sums ^ (sums >> np.uint64(29))) * MULTIPLIER


def _powers(num: int) -> Hashes:
    """WORD_BASE^i for i < num."""
    return _power_table(1 << max(6, (num - 1).bit_length()))


@functools.lru_cache(maxsize=8)
def _power_table(num: int) -> Hashes:
    factors = np.full(num, WORD_BASE, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)
