"""How alike are two texts, from a few hundred numbers each, and which texts are worth comparing at all?

In: a text and its language. Out: a key that equal texts share, a MinHash signature, and one key per LSH band.
Invariant: the same text gives the same numbers in any process, on any machine, and whatever stands beside it.

MinHash. Let A and B be the sets of n-grams of two texts and J = |A & B| / |A | B| their Jaccard similarity. Under a
random order of all n-grams, the first one of A | B lies in both sets with probability J; hence the smallest hash
values of A and B agree with probability J, and the share of agreeing values among P = bands x rows hash functions
estimates J with standard error sqrt(J (1 - J) / P): 0.028 at J = 0.8 and P = 200 (Broder 1997).
LSH. Two texts are compared if in at least one band all rows agree: probability 1 - (1 - J^rows)^bands, an S-shaped
curve that is steep near (1 / bands)^(1 / rows), 0.74 for 20 x 10 (Indyk and Motwani 1998).
Hash functions: h -> g((a h + c) mod 2^32) with odd a and g(x) = m (x xor x / 2^16) mod 2^32, on n-grams that a 64-bit
mixer has spread before. Without g the rows of a band depend on each other: texts at J = 0.45 met three times too often.

Everything is said here in Python; `sign` does the same in the native core, ten to sixteen times as fast, where there is one.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import xxhash

from megatron_jmed.corpus.code_map import NUM_CODE_POINTS, all_characters, code_map
from megatron_jmed.corpus.words import word_hashes, word_spans
from megatron_jmed.native import _core

Unit = Literal["character", "word"]
CHARACTER_LANGS = ("ja", "zh", "ko", "th")
# Marks that NFKC leaves apart although writers use them for one another; and invisible ones, which go.
INVISIBLE = "\u00ad\u200b\u200c\u200d\u2060\ufeff"
FOLDED = str.maketrans("、。「」『』〜‐‑–—―−“”‘’", ',.""""~------""\'\'', INVISIBLE)
WORD = re.compile(r"\w+")
SPACE = re.compile(r"\s")
CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
CJK_SHARE = 0.1
# Bounds the memory for one long text: this many n-grams are hashed at once, and `bands x rows` times the smaller.
CHUNK_UNITS = 2**20
MIX_3 = np.uint32(0x7FEB352D)
BLOCK_NGRAMS = 2**10
GOLDEN, MIX_1, MIX_2 = (np.uint64(word) for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def normalised(text: str) -> str:
    """The text as it is compared: width, case, punctuation's variants and white space folded. Never written anywhere."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(FOLDED)
    return " ".join(text.casefold().split())


def _with_spaces(text: str) -> str:
    """As `normalised`, but white space stays in number and place, each a space: a form that can be put together of parts."""
    return SPACE.sub(" ", unicodedata.normalize("NFKC", text).translate(FOLDED).casefold())


def exact_key(folded: str) -> bytes:
    """128 bits that two texts share if they differ in nothing but what `normalised` folds and in white space."""
    return xxhash.xxh3_128_digest(folded.replace(" ", "").encode())


def unit_of(lang: str, folded: str) -> Unit:
    """Count n-grams in characters or in words: by the document's language or, where it is not said, by its script."""
    unit = _unit_of_lang(lang)
    if unit == "by_script":
        return "character" if len(CJK.findall(folded[:2000])) >= CJK_SHARE * len(folded[:2000]) else "word"
    return unit


@cache
def _unit_of_lang(lang: str) -> Literal["character", "word", "by_script"]:
    if lang.split("-")[0].split("_")[0].lower() in CHARACTER_LANGS:
        return "character"
    return "by_script" if lang == "unknown" else "word"


def units_of(folded: str, unit: Unit) -> np.ndarray:
    """The text as numbers (uint64), one per character (white space left out) or word; a text without words by character."""
    codes = np.frombuffer(folded.encode("utf-32-le"), "<u4")
    if unit == "word" and len(words := word_hashes(codes, *word_spans(_in_words()[codes]))):
        return words
    return codes[codes != ord(" ")].astype(np.uint64)


@cache
def _in_words() -> np.ndarray:
    """Whether each code point belongs to a word, as Python's \\w has it: bool, [code points]."""
    marks = np.zeros(NUM_CODE_POINTS, bool)
    for run in WORD.finditer(all_characters()):
        marks[run.start() : run.end()] = True
    return marks


def ngram_hashes(units: np.ndarray, ngram: int) -> np.ndarray:
    """64-bit hashes of all runs of `ngram` units, repeated ones included; a shorter text is one n-gram."""
    width = min(ngram, len(units))
    hashes = np.full(max(len(units) - width + 1, 0), width, np.uint64)
    for offset in range(width):
        hashes = (hashes + units[offset : offset + len(hashes)]) * GOLDEN
    return mixed(hashes)


def mixed(numbers: np.ndarray) -> np.ndarray:
    """Spread 64-bit numbers so that each bit depends on all bits (the finaliser of SplitMix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * MIX_1
    numbers = (numbers ^ (numbers >> np.uint64(27))) * MIX_2
    return numbers ^ (numbers >> np.uint64(31))


@dataclass(frozen=True)
class MinHash:
    """`bands` x `rows` hash functions drawn from `seed`, over n-grams of `ngram` units."""

    ngram: int = 5
    bands: int = 20
    rows: int = 10
    seed: int = 0

    @property
    def num_hashes(self) -> int:
        return self.bands * self.rows

    @cached_property
    def _functions(self) -> tuple[np.ndarray, np.ndarray]:
        # Own drawing, not numpy's: its generators may change between versions, and signatures must not.
        drawn = mixed((np.arange(1, self.num_hashes + 1, dtype=np.uint64) + np.uint64(self.seed * 2**20)) * GOLDEN)
        factors, summands = (drawn >> np.uint64(32)).astype(np.uint32), drawn.astype(np.uint32)
        return (factors | np.uint32(1))[:, None], summands[:, None]

    def signature(self, units: np.ndarray) -> np.ndarray:
        """The smallest value of each hash function over the text's n-grams: uint32, [bands x rows]."""
        factors, summands = self._functions
        smallest = np.full(self.num_hashes, 2**32 - 1, np.uint32)
        for start in range(0, max(len(units) - self.ngram + 1, 1), CHUNK_UNITS):
            hashes = ngram_hashes(units[start : start + CHUNK_UNITS + self.ngram - 1], self.ngram)
            high = (hashes >> np.uint64(32)).astype(np.uint32)
            for block in range(0, len(high), BLOCK_NGRAMS):
                values = factors * high[None, block : block + BLOCK_NGRAMS]
                values += summands
                values ^= values >> np.uint32(16)
                values *= MIX_3
                np.minimum(smallest, values.min(axis=1), out=smallest)
        return smallest

    def sign(self, texts: Sequence[str], langs: Sequence[str]) -> tuple[list[bytes], np.ndarray]:
        """The exact keys of texts, and their signatures: uint32, [texts, bands x rows]."""
        signer = _signer(self)
        if signer is None:
            # A text of invisible characters alone folds to nothing: it is compared as it is.
            folded = [normalised(text) or text for text in texts]
            units = [units_of(text, unit_of(lang, text)) for text, lang in zip(folded, langs, strict=True)]
            signatures = np.array([self.signature(one) for one in units], np.uint32).reshape(len(units), self.num_hashes)
            return list(map(exact_key, folded)), signatures
        kinds = bytes(NATIVE_UNITS[_unit_of_lang(lang)] for lang in langs)
        signatures, symbols, ends = signer.sign(_fold_map(), list(texts), kinds)
        symbols, ends = memoryview(symbols), [0, *ends.tolist()]
        return [xxhash.xxh3_128_digest(symbols[begin:end]) for begin, end in pairwise(ends)], signatures

    def band_keys(self, signatures: np.ndarray) -> np.ndarray:
        """One 64-bit key per band, equal where all rows of the band are: [documents, bands x rows] -> [documents, bands]."""
        rows = signatures.astype(np.uint64).reshape(len(signatures), self.bands, self.rows)
        keys = np.broadcast_to(np.arange(self.bands, dtype=np.uint64), rows.shape[:2])
        for row in range(self.rows):
            keys = mixed((keys + rows[:, :, row]) * GOLDEN)
        return keys

    def found_share(self, jaccard: float) -> float:
        """The probability that two texts of this similarity are compared: 1 - (1 - J^rows)^bands."""
        return 1 - (1 - jaccard**self.rows) ** self.bands


def similarity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of signatures row by row: [pairs, hashes], [pairs, hashes] -> [pairs]."""
    return (left == right).mean(axis=1)


# ---- the native core


NATIVE_UNITS = {"character": 0, "word": 1, "by_script": 2}


@cache
def _fold_map() -> "_core.CodeMap | None":
    return code_map(_with_spaces)


@cache
def _signer(minhash: MinHash) -> "_core.Signer | None":
    """What signs in the native core; None where there is no core, or one that disagrees."""
    if _fold_map() is None:
        return None
    factors, summands = minhash._functions
    return _core.Signer(minhash.ngram, factors.ravel(), summands.ravel(), _in_words())
