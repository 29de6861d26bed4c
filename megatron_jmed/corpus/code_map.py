"""How does the native core learn what each character becomes, without Unicode data of its own?

In: a function `form` (str -> str) that begins with NFKC and then treats each character by itself. Out: a CodeMap of
the native core that gives what `form` gives, for whole lists of texts; or None where the core is not compiled.
Invariant: what the core knows is the running interpreter's unicodedata, so both sides agree under any version of it.

NFKC changes a character by itself, except where characters join: one whose decomposition begins with a combining mark
(canonical class not 0), or with the second half of a composition, may be reordered or composed with what precedes it.
A text may be cut before every other character, and its parts be mapped apart (Unicode Standard Annex 15, "stable code
points"). So the table marks the joining ones, and a run of them with the character before goes to `form` itself.
"""

import unicodedata
from collections.abc import Callable

import numpy as np

from megatron_jmed.native import _core

NUM_CODE_POINTS = 0x110000
PAGE = 256
STAYS = "a"
HANGUL_SECONDS = {*map(chr, range(0x1161, 0x1176)), *map(chr, range(0x11A8, 0x11C3))}  # composed by rule, not by table
LAST_MARK = "\u0345"  # canonical class 240
PROBES = (
    "",
    " \t患者は、３８．５℃の発熱\u3000と　咳。\r\n",
    "ｶﾞﾝ ﾊﾟﾙｽ か\u3099\u0301 e\u0301\u0323q\u0307\u0323 \u0301x",
    "The “first” – Ⅳ ½ ﬁ ß İI Σας … \u00ad\u200b\ufeff",
    "\u1112\u1161\u11ab 한국 \u0344 \u09c7\u09be 𠮷 \U0001d7d8 \ufdfa \x1c\x85",
)


def code_map(form: Callable[[str], str], unsure: frozenset[str] = frozenset()) -> "_core.CodeMap | None":
    """The table of `form`; texts with a character of `unsure` are left to the caller. None without a core that agrees."""
    if not hasattr(_core, "CodeMap"):
        return None
    made = _core.CodeMap(*_tables(form, unsure), form)
    sure = [text for text in PROBES if not unsure.intersection(text)]
    return made if made.map(sure) == [form(text) for text in sure] else None


def all_characters() -> str:
    """Every code point in its order, surrogates too."""
    return np.arange(NUM_CODE_POINTS, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")


def _tables(form: Callable[[str], str], unsure: frozenset[str]) -> tuple[np.ndarray, np.ndarray]:
    """The entry of each code point, and the expansions end to end, as native/code_map.hpp has them."""
    entries = np.arange(NUM_CODE_POINTS, dtype=np.uint32)
    expansions: list[str] = []
    num_expanded = 0
    characters = all_characters()
    joining, one_by_one = joining_characters(characters)
    for first in range(0, NUM_CODE_POINTS, PAGE):
        if first in one_by_one:
            continue
        page = characters[first : first + PAGE]
        formed = form(page)
        if formed == page:
            continue
        # Each character between two that stay as they are: where one became several or none, the places would shift.
        formed = form(STAYS + STAYS.join(page))
        if len(formed) == 2 * PAGE and formed[::2] == STAYS * PAGE:
            entries[first : first + PAGE] = np.frombuffer(formed[1::2].encode("utf-32-le", "surrogatepass"), "<u4")
        else:
            one_by_one.add(first)
    for first in one_by_one:
        for code in range(first, first + PAGE):
            character = chr(code)
            formed = form(character)
            if character in joining:
                entries[code] = _core.CodeMap.JOINING
            elif len(formed) == 1:
                entries[code] = ord(formed)
            else:
                entries[code] = _core.CodeMap.EXPANSION | len(formed) << _core.CodeMap.OFFSET_BITS | num_expanded
                expansions.append(formed)
                num_expanded += len(formed)
    for character in unsure:
        entries[ord(character)] = _core.CodeMap.UNSURE
    codes = "".join(expansions).encode("utf-32-le", "surrogatepass")
    return entries, np.frombuffer(codes, "<u4")


def joining_characters(characters: str) -> tuple[set[str], set[int]]:
    """The characters that may join what precedes them, and the pages where a character decomposes or joins."""
    decomposing, pages = [], set()
    for first in range(0, NUM_CODE_POINTS, PAGE):
        page = characters[first : first + PAGE]
        # After a mark of the highest class, any other mark is out of order.
        if not unicodedata.is_normalized("NFKD", LAST_MARK + LAST_MARK.join(page)):
            pages.add(first)
            decomposing += page
    joining = {character for character in decomposing if unicodedata.combining(character)}
    seconds = set(HANGUL_SECONDS)
    for character in decomposing:
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            seconds.add(chr(int(parts[1], 16)))
    joining |= seconds
    joining.update(c for c in decomposing if unicodedata.normalize("NFKD", c)[0] in joining)
    pages.update(ord(character) // PAGE * PAGE for character in joining)
    return joining, pages
