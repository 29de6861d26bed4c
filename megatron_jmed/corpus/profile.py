"""What kind of language does a token set hold: how long, in which scripts, how varied, how medical?

In: a token set on disk, its SentencePiece model, the group (source and language) of each document, a list of terms.
Out: for each group a dictionary of numbers. Two kinds, never mixed: under "sample" stand measures of a seeded sample of
documents (sentences, lexical diversity, terms), all others are exact counts over every token (piece_counts.py).
Lexical diversity is that of pieces with a letter, lower-cased, word marks removed. Pieces are words only roughly: compare
groups made with one tokenizer, and Japanese with Japanese.
Memory: 21 bytes for each document beside what counting needs.
Invariant: the sums over groups equal the token set's manifest, and the result does not depend on the workers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from megatron_jmed.corpus.indexed import read_whole_documents
from megatron_jmed.corpus.measures import lexical_diversity, log_histogram, quantiles, ratio, sentence_lengths
from megatron_jmed.corpus.piece_counts import count_pieces
from megatron_jmed.corpus.piece_table import SCRIPTS, PieceTable, load_pieces
from megatron_jmed.corpus.terms import Terms, term_coverage
from megatron_jmed.errors import CorpusError

HASH_BLOCK_DOCUMENTS = 2**20


@dataclass(frozen=True)
class ProfileSettings:
    """How much of each group the sampled measures look at."""

    seed: int = 1
    sample_documents: int = 2000
    sample_tokens: int = 500_000
    document_tokens: int = 4096  # of one sampled document no more than its first so many tokens
    lexical_pieces: int = 50_000
    mattr_window: int = 500
    shown_documents: int = 3
    shown_characters: int = 280

    def __post_init__(self) -> None:
        small = {name: value for name, value in vars(self).items() if value < (0 if name == "seed" else 1)}
        if small:
            raise CorpusError(f"profile settings are too small: {small}; seed at least 0, all others at least 1")


# ---- the profile of a token set


def profile_token_set(
    bin_path: Path,
    tokenizer: Path,
    groups: np.ndarray,
    langs: Sequence[str],
    terms: Terms,
    settings: ProfileSettings,
    workers: int = 1,
    advance: Any = None,
) -> list[dict[str, Any]]:
    """The profile of each group; `groups` names the group of each document, `langs` the language of each group.

    `advance`, if given, is called with the number of tokens done. Errors: CorpusError for ids beyond the tokenizer.
    """
    table = load_pieces(tokenizer)
    lengths = read_whole_documents(bin_path.with_suffix(".idx")).lengths
    characters = np.zeros(len(lengths), dtype=np.int32)
    utf8_bytes, digests = np.zeros(len(lengths), dtype=np.int32), np.zeros(len(lengths), dtype=np.uint64)
    histogram = np.zeros((len(langs), table.size), dtype=np.int64)
    scripts = np.zeros((len(langs), len(SCRIPTS)), dtype=np.int64)
    for part in count_pieces(bin_path, tokenizer, groups, len(langs), workers):
        here = slice(part.first, part.first + len(part.characters))
        characters[here], utf8_bytes[here], digests[here] = part.characters, part.utf8_bytes, part.digests
        histogram += part.histogram
        scripts += part.scripts
        if advance:
            advance(part.num_tokens)
    scripts += histogram @ table.scripts
    repeated = _repeated(digests)
    profiles = []
    for group, lang in enumerate(langs):
        mine = np.flatnonzero(groups == group)
        profile = _exact(table, histogram[group], scripts[group], lengths[mine], characters[mine], utf8_bytes[mine])
        profile["repeated_documents"] = int(repeated[mine].sum())
        profile["sample"] = _sampled(bin_path, table, mine, lang, profile["scripts"], terms, settings)
        profiles.append(profile)
    return profiles


def _repeated(digests: np.ndarray) -> np.ndarray:
    """True for each document whose ids equal those of an earlier document of the set."""
    repeated = np.ones(len(digests), dtype=bool)
    repeated[np.unique(digests, return_index=True)[1]] = False
    return repeated


def _exact(
    table: PieceTable,
    histogram: np.ndarray,
    scripts: np.ndarray,
    tokens: np.ndarray,
    characters: np.ndarray,
    utf8_bytes: np.ndarray,
) -> dict[str, Any]:
    num_tokens, special = int(tokens.sum(dtype=np.int64)), int(histogram[table.is_special].sum())
    num_characters, num_bytes = int(characters.sum(dtype=np.int64)), int(utf8_bytes.sum(dtype=np.int64))
    share = histogram[(histogram > 0) & ~table.is_special] / max(1, num_tokens - special)
    return {
        "documents": len(tokens),
        "tokens": num_tokens,
        "special_tokens": special,
        "byte_tokens": int(histogram[table.byte >= 0].sum()),
        "characters": num_characters,
        "utf8_bytes": num_bytes,
        "characters_per_token": ratio(num_characters, num_tokens - special),
        "bytes_per_token": ratio(num_bytes, num_tokens - special),
        "tokens_of_documents": quantiles(tokens),
        "characters_of_documents": quantiles(characters),
        "histogram_tokens": log_histogram(tokens),
        "histogram_characters": log_histogram(characters),
        "scripts": dict(zip(SCRIPTS, scripts.tolist(), strict=True)),
        "distinct_pieces": len(share),
        "piece_entropy_bits": round(float(-(share * np.log2(share)).sum()), 4) if len(share) else 0.0,
    }


# ---- the sample


def choose_documents(documents: np.ndarray, seed: int, count: int) -> np.ndarray:
    """At most `count` document numbers, in the order of a seeded hash of the number."""
    best = np.empty(0, dtype=np.int64)
    for start in range(0, len(documents), HASH_BLOCK_DOCUMENTS):
        pool = np.concatenate([best, documents[start : start + HASH_BLOCK_DOCUMENTS]])
        best = pool[np.argsort(_mixed(pool, seed), kind="stable")[:count]]
    return best


def _mixed(numbers: np.ndarray, seed: int) -> np.ndarray:
    """SplitMix64 (Steele, Lea, Flood 2014) of each number."""
    offset = np.uint64((seed * 0x9E3779B97F4A7C15) & (2**64 - 1))
    mixed = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + offset
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _sampled(
    bin_path: Path,
    table: PieceTable,
    documents: np.ndarray,
    lang: str,
    scripts: dict[str, int],
    terms: Terms,
    settings: ProfileSettings,
) -> dict[str, Any]:
    """Measures of a sample of a group's documents."""
    chosen = choose_documents(documents, settings.seed, settings.sample_documents)
    parts, used = [], 0
    for ids in _read_documents(bin_path, chosen, settings.document_tokens):
        if parts and used + len(ids) > settings.sample_tokens:
            break
        parts.append(ids)
        used += len(ids)
    texts = [table.processor.decode(ids.tolist()) for ids in parts]
    is_ja = lang == "ja" or (lang != "en" and scripts["hiragana"] > scripts["latin"])
    words = [word for ids in parts for id_ in ids.tolist() if (word := table.words[id_]) is not None]
    whole = "\n".join(texts).encode("utf-8", "replace")
    return {
        "documents": len(parts),
        "tokens": used,
        "characters": sum(map(len, texts)),
        "compression_ratio": ratio(len(whole), len(zstandard.ZstdCompressor(level=9).compress(whole))),
        "lexical": lexical_diversity(words[: settings.lexical_pieces], settings.mattr_window),
        "sentences": sentence_lengths(texts, is_ja),
        "terms": term_coverage(texts, terms.of(lang), is_ja),
        "shown": [
            {"document": int(number), "text": text[: settings.shown_characters], "cut": len(text) > settings.shown_characters}
            for number, text in zip(chosen[: settings.shown_documents].tolist(), texts, strict=False)
        ],
    }


def _read_documents(bin_path: Path, chosen: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """The first ids of the chosen documents."""
    index = read_whole_documents(bin_path.with_suffix(".idx"))
    ends = np.cumsum(index.lengths, dtype=np.int64)
    tokens = np.memmap(bin_path, dtype=index.dtype, mode="r")
    for number in chosen.tolist():
        start = int(ends[number] - index.lengths[number])
        yield np.array(tokens[start : min(int(ends[number]), start + most)])
