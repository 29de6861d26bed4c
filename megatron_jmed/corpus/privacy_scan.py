"""How are patterns tried only where their first word stands, so that most of a text is passed over at memchr's speed?

In: a text, a pattern, and the literal beginnings its matches can have. Out: the matches, by place.
Invariant: the same matches as trying the pattern at every place, if each match begins with one of the anchors.
"""

import re
from collections.abc import Iterator


def places(text: str, anchors: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Yield (place, anchor) for each occurrence of each anchor, also where they overlap."""
    for anchor in anchors:
        place = text.find(anchor)
        while place >= 0:
            yield place, anchor
            place = text.find(anchor, place + 1)


def anchored(
    pattern: re.Pattern[str], anchors: tuple[str, ...], text: str, overlapping: bool = True
) -> Iterator[re.Match[str]]:
    """Yield the pattern's matches that begin at an anchor; unless `overlapping`, none that begins within the one before."""
    end = 0
    for place in sorted({place for place, _ in places(text, anchors)}):
        if (overlapping or place >= end) and (match := pattern.match(text, place)):
            end = match.end()
            yield match
