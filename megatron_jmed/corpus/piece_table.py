"""What does each piece of a tokenizer become in a text: how many characters and bytes, in which scripts?

In: a SentencePiece model. Out: arrays by id. Invariant: what a piece decodes to is fixed, so sums over a text's ids are those
of the text, except for bytes that the tokenizer fell back to and one leading space that decoding strips.
"""

import functools
import unicodedata
from pathlib import Path

import numpy as np

from megatron_jmed.corpus.sentencepiece_model import open_sentencepiece

SCRIPTS = ("kanji", "hiragana", "katakana", "latin", "digits", "punctuation", "space", "other")
SPACE_MARK = "▁"


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
        self.processor = open_sentencepiece(path)
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
