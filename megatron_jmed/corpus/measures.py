"""Which numbers describe values, words and sentences?

In: values of documents, words in order, texts. Out: numbers for JSON, rounded, None where there is nothing to measure.
Invariant: no measure depends on how the texts were made.

Lexical diversity of words: the type-token ratio (TTR) of a stretch of fixed length, its moving average over windows (MATTR;
Covington and McFall 2010), and the mean length of stretches that hold a TTR of 0.72 (MTLD; McCarthy and Jarvis 2010).
Sentences end by a plainer rule than that of sentences.py, which cuts texts for training.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "max": 1.0}
MTLD_TTR = 0.72
JA_SENTENCE_END = re.compile(r"(?:[。！？!?]|．(?![0-9０-９]))+[」』）)】〕\]”’\"]*|\n+")
EN_SENTENCE_END = re.compile(r"[.!?]+[\"')\]”’]*(?=\s|$)|\n\s*\n")


def ratio(number: float, of: float) -> float | None:
    return round(number / of, 4) if of else None


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Quantiles that are lengths of real documents, and the mean."""
    if not len(values):
        return {}
    found = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")
    return {**{name: int(q) for name, q in zip(QUANTILES, found, strict=True)}, "mean": round(float(values.mean()), 2)}


def log_histogram(values: np.ndarray) -> list[int]:
    """Documents by length: bin k holds lengths from 2**(k/2) up to 2**((k+1)/2); the first also holds 0."""
    if not len(values):
        return []
    bins = np.floor(2 * np.log2(np.maximum(values, 1)) + 1e-9).astype(np.int64)
    return np.bincount(bins).tolist()


# ---- words


def lexical_diversity(words: Sequence[str], window: int) -> dict[str, Any]:
    """TTR of all words, MATTR over windows, MTLD (mean of both directions); None where there are too few words."""
    return {
        "pieces": len(words),
        "ttr": ratio(len(set(words)), len(words)),
        "mattr": _mattr(words, window),
        "mtld": round((_mtld(words) + _mtld(words[::-1])) / 2, 2) if len(words) >= window else None,
    }


def _mattr(words: Sequence[str], window: int) -> float | None:
    if len(words) < window:
        return None
    inside = Counter(words[:window])
    total = len(inside)
    for left, right in zip(words, words[window:], strict=False):
        inside[right] += 1
        inside[left] -= 1
        if not inside[left]:
            del inside[left]
        total += len(inside)
    return round(total / window / (len(words) - window + 1), 4)


def _mtld(words: Sequence[str]) -> float:
    """Mean length of the stretches in which the type-token ratio stays above MTLD_TTR; the rest counts in part."""
    factors, types, length = 0.0, set[str](), 0
    for word in words:
        types.add(word)
        length += 1
        if len(types) <= MTLD_TTR * length:
            factors, types, length = factors + 1, set[str](), 0
    if length:
        factors += (1 - len(types) / length) / (1 - MTLD_TTR)
    return len(words) / factors if factors else float(len(words))


# ---- sentences


def sentences(text: str, is_ja: bool) -> list[str]:
    """Cut a text into sentences that hold a letter or digit.

    Japanese: after 。！？ (also !? and ．not before a digit) with the closing brackets that follow, and at line ends.
    English: after . ! ? with closing quotes before white space, and at blank lines; abbreviations end sentences too.
    """
    found, start = [], 0
    for end in (JA_SENTENCE_END if is_ja else EN_SENTENCE_END).finditer(text):
        found.append(text[start : end.end()].strip())
        start = end.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if any(map(str.isalnum, sentence))]


def sentence_lengths(texts: Sequence[str], is_ja: bool) -> dict[str, Any]:
    """Lengths of the sentences in characters, and in words where words are separated."""
    found = [sentence for text in texts for sentence in sentences(text, is_ja)]
    return {
        "rule": "ja" if is_ja else "en",
        "sentences": len(found),
        "characters": quantiles(np.array([len(sentence) for sentence in found], dtype=np.int64)),
        "words": {} if is_ja else quantiles(np.array([len(sentence.split()) for sentence in found], dtype=np.int64)),
    }
