"""What is left of a text when spaces, width, punctuation and letter case do not count?

In: a text. Out: its row of symbols: letters and digits of its NFKC form, in lower case, one by one or as words; and hashes
of each n that follow each other. Invariant: `symbol_map` lets the native core find the same symbols in every text of which
it is sure.
"""

import functools
import unicodedata

import numpy as np

from megatron_jmed.corpus.code_map import NUM_CODE_POINTS, PAGE, all_characters, code_map, joining_characters
from megatron_jmed.corpus.words import Codes, Hashes, Positions, word_hashes, word_spans
from megatron_jmed.native import _core

FIRST_JAPANESE = 0x3040  # hiragana; everything below that is a letter is an alphabet
NUM_CODES = 0x30000  # beyond: two blocks of rare Chinese characters, left out
RECOMPOSE = 0xFFFFFFFF
GRAM_BASE = 0xF1357AEA2E62A9C5


# ---- the code of each character


@functools.cache
def _code_table() -> Codes:
    """Code point -> code point of its normal form, 0 for what is left out, RECOMPOSE for what needs its neighbours."""
    table = np.zeros(NUM_CODES, np.uint32)
    characters, changing = all_characters(), _changing_pages()
    for first in range(0, NUM_CODES, PAGE):
        page = characters[first : first + PAGE]
        if first not in changing:
            table[first : first + PAGE] = [ord(character) if character.isalnum() else 0 for character in page]
            continue
        for code, character in enumerate(page, start=first):
            normal = _normal(character)
            if unicodedata.combining(character) or character in "ﾞﾟ":
                table[code] = RECOMPOSE
            elif any(c.isalnum() for c in normal):
                table[code] = ord(normal) if len(normal) == 1 else RECOMPOSE
    return table


@functools.cache
def _changing_pages() -> set[int]:
    """The pages with a character that is not its own normal form, or joins others."""
    characters = all_characters()
    lowered = {first for first in range(0, len(characters), PAGE) if not _is_lower(characters[first : first + PAGE])}
    return lowered | joining_characters(characters)[1]


def _is_lower(text: str) -> bool:
    return text.lower() == text


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def symbol_codes(text: str) -> Codes:
    """The normal form of a text, one code point for each of its letters and digits and 0 for everything else."""
    codes = _look_up(text)
    if (codes == RECOMPOSE).any():
        codes = _normal_codes(text)
    return codes


def _normal_codes(text: str) -> Codes:
    """The codes of a text by way of its whole normal form."""
    codes = _look_up(_normal(text))
    codes[codes == RECOMPOSE] = 0
    return codes


def _look_up(text: str) -> Codes:
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    table = _code_table()
    return table[points] if not points.size or points.max() < NUM_CODES else table[np.where(points < NUM_CODES, points, 0)]


@functools.cache
def symbol_map() -> "_core.CodeMap | None":
    """`_normal_codes` for the native core; None where there is none.

    `symbol_codes` goes by the whole normal form only if a character of the text needs its neighbours. Where a character
    would come out otherwise without that, or joins others untold, its texts are not screened: a few rare ones, and the
    capital sigma, whose lower case depends on where the word ends.
    """
    characters, table = all_characters(), _code_table().tolist() + [0] * (NUM_CODE_POINTS - NUM_CODES)
    unsure = {character for character in joining_characters(characters)[0] if table[ord(character)] != RECOMPOSE}
    for character in (c for first in _changing_pages() for c in characters[first : first + PAGE]):
        if (normal := _normal(character)) == character:
            continue
        code, codes = table[ord(character)], {table[ord(c)] % RECOMPOSE for c in normal}
        if (code != RECOMPOSE and codes != {code}) or "Σ" in unicodedata.normalize("NFKC", character):
            unsure.add(character)
    return code_map(_normal_symbols, frozenset(unsure))


def _normal_symbols(text: str) -> str:
    return _normal_codes(text).astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def is_japanese(text: str) -> bool:
    """Whether at least a tenth of a text's letters and digits are kana or Chinese characters (a translation may keep some)."""
    codes = symbol_codes(text)
    return 10 * np.count_nonzero(codes >= FIRST_JAPANESE) >= max(1, np.count_nonzero(codes))


# ---- the symbols in a row


def symbol_hashes(codes: Codes, words: bool) -> tuple[Hashes, Positions]:
    """A number for each symbol, characters or words, and where in `codes` it begins."""
    if words:
        starts, ends = word_spans(codes != 0)
        return word_hashes(codes, starts, ends), starts
    positions = np.flatnonzero(codes)
    return codes[positions].astype(np.uint64), positions


def gram_hashes(symbols: Hashes, n: int) -> Hashes:
    """A polynomial hash of each n consecutive symbols, by doubling; empty if there are fewer than n."""
    if symbols.size < n:
        return np.zeros(0, np.uint64)
    total, width, block, block_width = None, 0, symbols, 1
    while True:
        power = np.uint64(pow(GRAM_BASE, block_width, 2**64))
        if n & block_width:
            size = symbols.size - width - block_width + 1
            total = block if total is None else total[:size] * power + block[width : width + size]
            width += block_width
        if width == n:
            return total
        block = block[:-block_width] * power + block[block_width:]
        block_width *= 2


def joined_symbols(codes: Codes, words: bool) -> str:
    """Symbols as a string in which others can be looked for: characters as they are, words each between spaces."""
    if not words:
        return codes[codes != 0].tobytes().decode("utf-32-le")
    text = np.where(codes == 0, np.uint32(32), codes).astype(np.uint32).tobytes().decode("utf-32-le")
    return f" {' '.join(text.split())} "
