"""How is a long document cut into pieces that a model translates at once, and joined again?

In: a text and its language. Out: pieces of at most so many characters, cut at the ends of sentences (sentences.py), each with
the white space that stood before the next. A sentence that is longer than a piece is cut behind a comma or a space.
Invariant: pieces and gaps, put together, are the text without the white space at its ends; line ends between pieces survive
the translation.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_jmed.corpus.sentences import split_sentences

WITHOUT_SPACES = ("ja", "zh", "zh-Hant", "th", "lo", "km", "my")  # languages that put none between sentences
BREAK = re.compile(r"[、，,;；:：]\s*|\s+")


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    gap: str  # the white space before the next piece


def cut(text: str, lang: str, max_characters: int) -> list[Piece]:
    """The pieces of a text, as few as fit from the front; none if it is blank."""
    pieces: list[tuple[int, int]] = []
    for begin, end in _sentences(text, lang, max_characters):
        if pieces and end - pieces[-1][0] <= max_characters:
            pieces[-1] = (pieces[-1][0], end)
        else:
            pieces.append((begin, end))
    begins = [begin for begin, _ in pieces[1:]]
    gaps = [text[end:begin] for (_, end), begin in zip(pieces, begins, strict=False)] + [""]
    return [Piece(text[begin:end], gap) for (begin, end), gap in zip(pieces, gaps[: len(pieces)], strict=True)]


def join(pieces: Sequence[Piece], translated: Sequence[str], to_lang: str) -> str:
    """The translated pieces in order: line ends between them as they were, else a space where the language has spaces."""
    space = "" if to_lang in WITHOUT_SPACES else " "
    parts = []
    for piece, text in zip(pieces, translated, strict=True):
        parts += [text.strip(), piece.gap if "\n" in piece.gap else space]
    return "".join(parts[:-1])


def _sentences(text: str, lang: str, max_characters: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each sentence, none longer than a piece."""
    place = 0
    for sentence in split_sentences(text, lang):
        begin = text.index(sentence, place)
        place = begin + len(sentence)
        while place - begin > max_characters:
            breaks = list(BREAK.finditer(text, begin + max_characters // 2, begin + max_characters))
            end = breaks[-1].end() if breaks else begin + max_characters
            yield begin, begin + len(text[begin:end].rstrip())
            begin = end
        yield begin, place
