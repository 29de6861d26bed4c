"""How are patterns tried only where their first words stand, so that most of a text is passed over at a scan's speed?

In: patterns with the literal beginnings that their matches can have, and a text. Out: each pattern's matches, by place.
All beginnings of all patterns are looked for in one pass (see scan.py); "0" in them stands for any digit.
Invariant: the same matches as trying the pattern at every place, if each match begins with one of its anchors.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from megatron_jmed.corpus.scan import characters_of, finder, stretches

DIGITS = {"0": characters_of(r"\d")}
# Long enough for any number that has no label: the pattern NUMBER_RUN confirms.
NUMBER_STRETCHES = stretches(r"[+(\d)\-. ]", 9)


class Anchors:
    """Which patterns begin with which words."""

    def __init__(self, anchors: Mapping[re.Pattern[str], Iterable[str]]) -> None:
        self.anchors = {pattern: tuple(words) for pattern, words in anchors.items()}
        self.find = finder(self.anchors.values(), DIGITS)
        self.number = {id(pattern): number for number, pattern in enumerate(self.anchors)}  # patterns are slow to hash


class Scanned:
    """A text, and where the patterns of some Anchors may match."""

    def __init__(self, text: str, anchors: Anchors) -> None:
        self.text = text
        self.found = anchors.find(text)
        self.number = anchors.number
        self.number_stretches = NUMBER_STRETCHES(text)

    def is_empty(self) -> bool:
        """Whether no pattern can match."""
        return not (self.number_stretches or any(self.found))

    def places(self, pattern: re.Pattern[str]) -> Sequence[int]:
        """Where a match can begin, in order."""
        return self.found[self.number[id(pattern)]]

    def matches(self, pattern: re.Pattern[str], overlapping: bool = True) -> Iterator[re.Match[str]]:
        """Yield the matches that begin at an anchor; unless `overlapping`, none that begins within the one before."""
        end = 0
        for place in self.places(pattern):
            if (overlapping or place >= end) and (match := pattern.match(self.text, place)):
                end = match.end()
                yield match
