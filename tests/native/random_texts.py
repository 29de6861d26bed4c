"""Random strings that hit where two tokenizers part, and how many of them the native core encodes unlike sentencepiece.

    python tests/native/random_texts.py MODEL NUMBER [SEED]     prints the number of strings that differ (0 is right)

One in ten is malformed UTF-8 (as bytes); the others are str of very different kinds, up to 20,000 characters long.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece

from megatron_jmed.native import _core, sums_in_double

LITERALS = ("<s>", "</s>", "<unk>", "<0x41>", "<EOD>", "<MASK>", "▁", " ", "  ", "\n", "\t", "\u3000", "\x00", "\ufeff", "\ufffd")
SCRIPTS = ((0x20, 0x7F), (0xA0, 0x250), (0x3041, 0x30FF), (0x4E00, 0x9FFF), (0xFF01, 0xFFEF),
           (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF))


class RandomTexts:
    """Makes one text after the other; the same seed makes the same texts."""

    def __init__(self, pieces: list[str], seed: int) -> None:
        self.rng = random.Random(seed)
        self.pieces = pieces
        kinds = (self.any_characters, self.supplementary, self.one_script, self.pieces_in_a_row, self.cut_pieces, self.run,
                 self.controls, self.literals, self.mixture)
        self.kinds = (*kinds, self.sentence, self.malformed)
        # Words that return, as they do in real text: the core keeps them, and must give what a new search would give.
        self.words = ["".join(self.rng.choices(pieces, k=self.rng.randrange(1, 5)))[:24].replace("▁", "") for _ in range(3000)]

    def __iter__(self) -> Iterator[str | bytes]:
        while True:
            yield self.rng.choice(self.kinds)()

    def size(self) -> int:
        return int(2 ** self.rng.uniform(0, 6))

    def points(self, low: int, high: int) -> str:
        chosen = (self.rng.randrange(low, high) for _ in range(self.size()))
        return "".join(chr(point) for point in chosen if not 0xD800 <= point < 0xE000)

    def any_characters(self) -> str:
        return self.points(0, 0x110000 if self.rng.random() < 0.5 else 0x10000)

    def supplementary(self) -> str:
        return self.points(0x10000, 0x110000)

    def one_script(self) -> str:
        return self.points(*self.rng.choice(SCRIPTS))

    def pieces_in_a_row(self) -> str:
        return "".join(self.rng.choices(self.pieces, k=max(1, self.size() // 3))).replace("▁", self.rng.choice(" ▁"))

    def cut_pieces(self) -> str:
        return "".join(piece[self.rng.randrange(len(piece)) :] for piece in self.rng.choices(self.pieces, k=6))

    def run(self) -> str:
        unit = self.rng.choice((self.rng.choice(self.pieces), self.any_characters()[:1], self.rng.choice(LITERALS)))
        return unit * (20_000 // max(1, len(unit)) if self.rng.random() < 0.001 else self.size() * 4)

    def sentence(self) -> str:
        num = 20_000 if self.rng.random() < 0.0005 else self.size()
        return self.rng.choice((" ", " ", "  ", "▁", "\n ")).join(self.rng.choices(self.words, k=num))

    def controls(self) -> str:
        return self.points(0, 0x20) + self.points(0x7F, 0xA0)

    def literals(self) -> str:
        return "".join(self.rng.choices(LITERALS, k=self.size() // 2))

    def mixture(self) -> str:
        middle = self.rng.choice(LITERALS) + self.pieces_in_a_row() + self.any_characters()[:2]
        return self.one_script() + middle + self.one_script()

    def malformed(self) -> bytes:
        """Broken UTF-8: noise, or a text with a byte removed, changed or cut off."""
        if self.rng.random() < 0.3:
            return self.rng.randbytes(self.size())
        data = bytearray(self.mixture().encode())
        at = self.rng.randrange(len(data))
        data[at : at + self.rng.randrange(3)] = self.rng.randbytes(self.rng.randrange(3))
        return bytes(data[: self.rng.randrange(len(data) + 1)])


def piece_texts(processor: sentencepiece.SentencePieceProcessor) -> list[str]:
    pieces = [processor.id_to_piece(id_) for id_ in range(len(processor))]
    return [piece for id_, piece in enumerate(pieces) if not (processor.is_control(id_) or processor.is_byte(id_))]


def count_differing(model: Path, number: int, seed: int = 0) -> tuple[int, int, list[str | bytes]]:
    """Compare `number` random texts: (texts compared, their characters, the texts whose ids differ)."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    unigram = _core.Unigram(model.read_bytes())
    double = sums_in_double(sentencepiece.__version__)
    texts = iter(RandomTexts(piece_texts(processor), seed))
    differing: list[str | bytes] = []
    done = num_characters = 0
    while done < number:
        chunk = [next(texts) for _ in range(min(20_000, number - done))]
        ids, lengths, characters = unigram.encode(chunk, double_sums=double)
        found = np.split(ids, np.cumsum(lengths)[:-1])
        expected = processor.encode(chunk, num_threads=1)
        differing += [text for text, a, b in zip(chunk, found, expected, strict=True) if not np.array_equal(a, b)]
        done += len(chunk)
        num_characters += int(characters.sum())
    return done, num_characters, differing


if __name__ == "__main__":
    model, number, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0
    done, num_characters, differing = count_differing(model, number, seed)
    print(f"{model.name}, sentencepiece {sentencepiece.__version__}, seed {seed}: "
          f"{done:,} random texts, {num_characters:,} characters, {len(differing):,} differ")
    for text in differing[:5]:
        print(ascii(text[:200]))
