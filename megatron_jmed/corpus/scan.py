"""What is in a text, so that what cannot apply need not be tried?

In: sets of characters and words, as the patterns that are the reference write them. Out: counts of a text's characters,
the places where words begin, a text with characters replaced. The native core answers in one pass over the text where it
is compiled, the patterns themselves where it is not. Nothing is decided here: whoever asks knows what follows.
Invariant: both ways give the same answer, since the core's tables are made by trying the patterns on the code points.
"""

import re
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np

from megatron_jmed.corpus.code_map import NUM_CODE_POINTS
from megatron_jmed.native import _core

NATIVE = hasattr(_core, "Scanner")
# Above are unassigned and private code points and selectors of variants: the sets in use hold all of them or none.
NUM_TRIED = 0x40000
EDGE = ""  # in place of a set: the beginning or the end of the text
Set = str  # a character class as patterns write it: [ぁ-ゖ]
Question = Set | tuple[Set, Set]


# ---- counts


def counter(questions: Mapping[str, Question], native: bool = NATIVE) -> Callable[[str], tuple]:
    """Make a function from a text to the named counts, with `longest_run` of one character added.

    A set counts its characters; a pair of sets the places where one of the first stands right before one of the second.
    """
    seen = namedtuple("Seen", [*questions, "longest_run"])
    if not native:
        patterns = [re.compile(_as_pattern(question)) for question in questions.values()]
        return lambda text: seen(*(sum(map(len, pattern.findall(text))) for pattern in patterns), _longest_run(text))
    pairs = [question if isinstance(question, tuple) else (None, question) for question in questions.values()]
    sets = sorted({one for pair in pairs for one in pair if one})
    class_of, members = _classes(sets)
    num_classes = 1 + int(class_of.max())
    bits = {EDGE: 1, None: 2**num_classes - 1} | {
        one: sum(2**number for number in numbers) for one, numbers in zip(sets, members, strict=True)
    }
    count, make = _core.Scanner(class_of.tobytes(), num_classes, [(bits[a], bits[b]) for a, b in pairs]).count, seen._make
    return lambda text: make(count(text))


def stretches(of: Set, shortest: int, native: bool = NATIVE) -> Callable[[str], list[tuple[int, int]]]:
    """Make a function from a text to the (start, end) of each stretch of at least `shortest` characters of a set."""
    if not native:
        pattern = re.compile(f"{of}{{{shortest},}}")
        return lambda text: [match.span() for match in pattern.finditer(text)]
    class_of, [numbers] = _classes([of])
    scanner = _core.Scanner(class_of.tobytes(), 1 + int(class_of.max()), [])
    wanted = sum(2**number for number in numbers)
    return lambda text: scanner.stretches(text, wanted, shortest)


def _as_pattern(question: Question) -> str:
    """A pattern whose matches are as long together as there are cases."""
    if not isinstance(question, tuple):
        return f"{question}+"
    before, after = question
    if not before:
        return rf"\A{after}"
    return before + (f"(?={after})" if after else r"\Z")


def _longest_run(text: str) -> int:
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    starts = np.flatnonzero(np.diff(points, prepend=points[:1] + 1, append=points[-1:] + 1))
    return int(np.diff(starts).max(initial=0))


@cache
def _code_points_to_try() -> str:
    return np.arange(NUM_TRIED + 1, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")


def _members(of: Set) -> Iterator[tuple[int, int]]:
    """Yield the ranges [start, end) of code points that are in a set."""
    for match in re.finditer(f"{of}+", _code_points_to_try()):
        start, end = match.span()
        yield start, NUM_CODE_POINTS if end > NUM_TRIED else end


def _classes(sets: Sequence[Set]) -> tuple[np.ndarray, list[list[int]]]:
    """A class from 1 on for each code point, such that each set is some of the classes; and which, for each set."""
    bits = np.zeros(NUM_CODE_POINTS, np.uint64)
    for number, one in enumerate(sets):
        for start, end in _members(one):
            bits[start:end] |= np.uint64(1 << number)
    # Neighbours are alike nearly everywhere: only where something changes is worth sorting.
    changes = np.flatnonzero(np.diff(bits, prepend=~bits[:1]))
    kinds, classes = np.unique(bits[changes], return_inverse=True)
    class_of = np.repeat((classes + 1).astype(np.uint8), np.diff(changes, append=NUM_CODE_POINTS))
    return class_of, [[c + 1 for c, kind in enumerate(kinds) if int(kind) >> n & 1] for n in range(len(sets))]


# ---- words


def characters_of(of: Set) -> str:
    """The characters of a set."""
    return "".join(chr(point) for start, end in _members(of) for point in range(start, end))


def finder(
    groups: Iterable[Iterable[str]], alike: Mapping[str, str] | None = None, native: bool = NATIVE
) -> Callable[[str], list[Sequence[int]]]:
    """Make a function from a text to the places where the words of each group begin: in order, each once.

    `alike`: what a character of the words stands for, such as {"a": "aA"}; the others must not occur in words.
    """
    groups = [sorted(set(group)) for group in groups]
    alike = alike or {}
    if not native:
        one_for_all = list(_code_points_to_try())  # asked for a character, str.translate is fast where nothing is missing
        for character, others in alike.items():
            for other in others:
                one_for_all[ord(other)] = character
        return lambda text: _places(text, groups, one_for_all)
    characters = sorted({character for words in groups for word in words for character in word})
    symbols = {character: number for number, character in enumerate(characters, 1)}
    symbol_of = np.zeros(NUM_CODE_POINTS, np.uint16)
    symbol_of[[ord(character) for character in characters]] = list(symbols.values())
    for character, others in alike.items():
        if wrong := set(others) & symbols.keys() - {character}:
            raise ValueError(f"words hold {', '.join(sorted(wrong))}, for which {character} stands")
        symbol_of[[ord(other) for other in others]] = symbols.get(character, 0)
    words = [[symbols[character] for character in word] for words in groups for word in words]
    group_of = [number for number, words in enumerate(groups) for _ in words]
    return _core.Words(symbol_of.tobytes(), words, group_of).find


def _places(text: str, groups: list[list[str]], one_for_all: list[str]) -> list[list[int]]:
    text = text.translate(one_for_all)
    return [sorted({place for word in words for place in _places_of(word, text)}) for words in groups]


def _places_of(word: str, text: str) -> Iterator[int]:
    place = text.find(word)
    while place >= 0:
        yield place
        place = text.find(word, place + 1)


# ---- replacing, pieces


def folder(to: Mapping[int, str | int], native: bool = NATIVE) -> Callable[[str], str]:
    """Make a function that replaces characters one for one, all below U+10000, as str.translate does."""
    if not native:
        return lambda text: text.translate(to)
    table = np.arange(0x10000, dtype=np.uint16)
    for one, other in to.items():
        table[one] = ord(other) if isinstance(other, str) else other
    return _core.Fold(table.tobytes())


def num_different_pieces(text: str, width: int, native: bool = NATIVE) -> int:
    """How many different pieces of `width` characters a text holds."""
    if native:
        return _core.num_different_pieces(text, width)
    return len({text[start : start + width] for start in range(len(text) - width + 1)})
