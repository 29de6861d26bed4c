"""What kind of language does a token set hold: how long, in which scripts, how varied, how medical?

In: a token set on disk, its SentencePiece model, the group (source and language) of each document, a list of terms.
Out: for each group a dictionary of numbers. Two kinds, never mixed: under "sample" stand measures of a seeded sample of
documents (sentences, lexical diversity, terms), all others are exact counts over every token.

Exact counts need no decoded text. What a piece decodes to is fixed, so characters, bytes and scripts of a group are its
histogram of ids times a table of pieces; only bytes that the tokenizer fell back to are decoded, and one leading space
that decoding strips is taken off. Memory: some chunks of tokens, 21 bytes for each document, one histogram a group.

Lexical diversity is that of pieces with a letter, lower-cased, word marks removed: the type-token ratio (TTR) of
a stretch of fixed length, its moving average over windows (MATTR; Covington and McFall 2010), and the mean length of
stretches that hold a TTR of 0.72 (MTLD; McCarthy and Jarvis 2010). Pieces are words only roughly: compare groups made
with one tokenizer, and Japanese with Japanese.

Invariant: the sums over groups equal the token set's manifest, and the result does not depend on the workers.
"""

import functools
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import zstandard

from megatron_jmed.corpus.indexed import read_whole_documents
from megatron_jmed.corpus.pool import each_in_order
from megatron_jmed.errors import CorpusError

SCRIPTS = ("kanji", "hiragana", "katakana", "latin", "digits", "punctuation", "space", "other")
QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "max": 1.0}
CHUNK_TOKENS = 2**21
HASH_BLOCK_DOCUMENTS = 2**20
SPACE_MARK = "▁"
MTLD_TTR = 0.72
JA_SENTENCE_END = re.compile(r"(?:[。！？!?]|．(?![0-9０-９]))+[」』）)】〕\]”’\"]*|\n+")
EN_SENTENCE_END = re.compile(r"[.!?]+[\"')\]”’]*(?=\s|$)|\n\s*\n")
EN_WORD = re.compile(r"[^\W_]+")


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


# ---- what each piece decodes to


@functools.cache
def script_of(character: str) -> int:
    """The place in SCRIPTS of one character."""
    code, category = ord(character), unicodedata.category(character)
    if 0x3041 <= code <= 0x309F:
        name = "hiragana"
    elif (0x30A1 <= code <= 0x30FF and code != 0x30FB) or 0x31F0 <= code <= 0x31FF or 0xFF66 <= code <= 0xFF9F:
        name = "katakana"
    elif character in "々〆〇" or unicodedata.name(character, "").startswith("CJK "):
        name = "punctuation" if category[0] in "PS" else "kanji"
    elif category == "Nd":
        name = "digits"
    elif category[0] == "Z" or character in "\t\n\r\f\v":
        name = "space"
    elif category[0] == "L" and "LATIN" in unicodedata.name(character, ""):
        name = "latin"
    else:
        name = "punctuation" if category[0] in "PS" else "other"
    return SCRIPTS.index(name)


class PieceTable:
    """What each id of a SentencePiece model contributes to a decoded text."""

    def __init__(self, path: Path) -> None:
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise CorpusError(f"tokenizer {path} is not a SentencePiece model: {error}") from None
        size = len(self.processor)
        self.size = size
        self.is_special = np.array([self.processor.is_control(i) for i in range(size)])
        self.byte = np.full(size, -1, dtype=np.int16)  # which byte a byte piece stands for
        self.characters = np.zeros(size, dtype=np.int32)
        self.utf8_bytes = np.zeros(size, dtype=np.int32)
        self.scripts = np.zeros((size, len(SCRIPTS)), dtype=np.int64)  # byte pieces: nothing, they are decoded
        self.words: list[str | None] = [None] * size
        pieces = [self.processor.id_to_piece(i) for i in range(size)]
        for id_, piece in enumerate(pieces):
            self._add(id_, piece)
        self.starts_with_space = np.array([piece.startswith(SPACE_MARK) for piece in pieces]) & (self.characters > 0)
        marked = [int(i) for i in np.flatnonzero(self.starts_with_space)[:1]]
        # A model that puts a space before each text takes it off again when decoding.
        self.strips_space = bool(marked) and len(self.processor.decode(marked)) < self.characters[marked[0]]

    def _add(self, id_: int, piece: str) -> None:
        if self.processor.is_control(id_):
            return
        if self.processor.is_byte(id_):
            byte = int(piece[3:5], 16)
            self.byte[id_], self.utf8_bytes[id_] = byte, 1
            self.characters[id_] = byte & 0xC0 != 0x80  # all but continuation bytes begin a character
            return
        text = self.processor.decode([id_]) if self.processor.is_unknown(id_) else piece.replace(SPACE_MARK, " ")
        self.characters[id_], self.utf8_bytes[id_] = len(text), len(text.encode())
        for character in text:
            self.scripts[id_, script_of(character)] += 1
        if any(character.isalpha() for character in text):
            self.words[id_] = text.strip().lower()


@functools.cache
def load_pieces(path: Path) -> PieceTable:
    """One table per process."""
    return PieceTable(path)


# ---- exact counts, in this process or in several


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
class _Measured:
    first: int
    num_tokens: int
    characters: np.ndarray  # of each document
    utf8_bytes: np.ndarray  # of each document
    digests: np.ndarray  # of each document's ids
    histogram: np.ndarray  # [group, id]
    scripts: np.ndarray  # [group, script]: what the histogram does not tell


def _measure(chunk: _Chunk) -> _Measured:
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
    return _Measured(
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


def _chunks(bin_path: Path, tokenizer: Path, groups: np.ndarray, num_groups: int) -> Iterator[_Chunk]:
    """Cut a token set into runs of whole documents of about CHUNK_TOKENS."""
    index = read_whole_documents(bin_path.with_suffix(".idx"))
    first = offset = 0
    while first < len(index.lengths):
        block = np.array(index.lengths[first : first + HASH_BLOCK_DOCUMENTS], dtype=np.int32)
        num = max(1, int(np.searchsorted(np.cumsum(block, dtype=np.int64), CHUNK_TOKENS, side="right")))
        lengths = block[:num]
        dtype = index.dtype.str
        yield _Chunk(bin_path, tokenizer, dtype, first, offset, lengths, groups[first : first + num], num_groups)
        first, offset = first + num, offset + int(lengths.sum(dtype=np.int64))


def _measured(chunks: Iterator[_Chunk], workers: int) -> Iterator[_Measured]:
    """Measure chunks here or in several processes, a bounded number ahead, in order."""
    return each_in_order(workers, lambda: "; use fewer --workers and run again", _measure, chunks)


# ---- the profile of a token set


@dataclass(frozen=True)
class Terms:
    """A word list: terms by language."""

    by_lang: dict[str, list[str]] = field(default_factory=dict)

    def of(self, lang: str) -> list[str]:
        """The terms to look for in a language; for an unknown one, all."""
        return self.by_lang[lang] if lang in self.by_lang else [t for terms in self.by_lang.values() for t in terms]


def load_terms(path: str | Path) -> Terms:
    """Read lines of `language TAB term` (# begins a comment); CorpusError for any other line or a repeated term."""
    found: dict[str, list[str]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"list of terms {path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        lang, _, term = (part.strip() for part in line.partition("\t"))
        if not lang or not term:
            raise CorpusError(f"{path}:{number}: {line!r} is not `language TAB term`, such as 'en\tfever'")
        if term.lower() in found.setdefault(lang, []):
            raise CorpusError(f"{path}:{number}: {term!r} stands twice in the list of {lang}")
        found[lang].append(term.lower())
    if not found:
        raise CorpusError(f"{path} holds no term; write lines of `language TAB term`")
    return Terms(found)


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
    for part in _measured(_chunks(bin_path, tokenizer, groups, len(langs)), workers):
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
        "characters_per_token": _ratio(num_characters, num_tokens - special),
        "bytes_per_token": _ratio(num_bytes, num_tokens - special),
        "tokens_of_documents": _quantiles(tokens),
        "characters_of_documents": _quantiles(characters),
        "histogram_tokens": _log_histogram(tokens),
        "histogram_characters": _log_histogram(characters),
        "scripts": dict(zip(SCRIPTS, scripts.tolist(), strict=True)),
        "distinct_pieces": len(share),
        "piece_entropy_bits": round(float(-(share * np.log2(share)).sum()), 4) if len(share) else 0.0,
    }


def _ratio(number: float, of: float) -> float | None:
    return round(number / of, 4) if of else None


def _quantiles(values: np.ndarray) -> dict[str, float]:
    """Quantiles that are lengths of real documents, and the mean."""
    if not len(values):
        return {}
    found = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")
    return {**{name: int(q) for name, q in zip(QUANTILES, found, strict=True)}, "mean": round(float(values.mean()), 2)}


def _log_histogram(values: np.ndarray) -> list[int]:
    """Documents by length: bin k holds lengths from 2**(k/2) up to 2**((k+1)/2); the first also holds 0."""
    if not len(values):
        return []
    bins = np.floor(2 * np.log2(np.maximum(values, 1)) + 1e-9).astype(np.int64)
    return np.bincount(bins).tolist()


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
        "compression_ratio": _ratio(len(whole), len(zstandard.ZstdCompressor(level=9).compress(whole))),
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


def lexical_diversity(words: Sequence[str], window: int) -> dict[str, Any]:
    """TTR of all words, MATTR over windows, MTLD (mean of both directions); None where there are too few words."""
    return {
        "pieces": len(words),
        "ttr": _ratio(len(set(words)), len(words)),
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
        "characters": _quantiles(np.array([len(sentence) for sentence in found], dtype=np.int64)),
        "words": {} if is_ja else _quantiles(np.array([len(sentence.split()) for sentence in found], dtype=np.int64)),
    }


def term_coverage(texts: Sequence[str], terms: Sequence[str], is_ja: bool) -> dict[str, Any]:
    """How many terms occur, how often, and in how many documents.

    English terms are whole words, also with s; Japanese ones any stretch of text, so that one within another counts twice.
    """
    counts: Counter[str] = Counter()
    with_term = 0
    for text in texts:
        low = text.lower()
        spaced = low if is_ja else f" {'  '.join(EN_WORD.findall(low))} "
        here = {term: n for term in terms if (n := _occurrences(spaced, low, term, is_ja))}
        counts.update(here)
        with_term += bool(here)
    num_characters = sum(map(len, texts))
    return {
        "listed": len(terms),
        "found": len(counts),
        "found_share": _ratio(len(counts), len(terms)),
        "documents_share": _ratio(with_term, len(texts)),
        "occurrences": counts.total(),
        "per_1000_characters": _ratio(1000 * counts.total(), num_characters),
        "most_common": [[term, count] for term, count in sorted(counts.items(), key=lambda c: (-c[1], c[0]))[:12]],
    }


def _occurrences(spaced: str, low: str, term: str, is_ja: bool) -> int:
    if is_ja or not term.isascii():
        return low.count(term)
    words = "  ".join(EN_WORD.findall(term))  # two spaces, so that neighbours do not share one
    return spaced.count(f" {words} ") + spaced.count(f" {words}s ")
