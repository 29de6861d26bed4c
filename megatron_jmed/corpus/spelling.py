"""In which one spelling does a text stand?

In: a text. Out: the same text in the spelling of SPELLING, whose steps are taken in order, and the names of those that
changed something. Invariant: a spelled text is not changed again; a step is only left out where it would change nothing.

Which characters change, and why not simply NFKC: NFKC also turns （）！？：into ASCII, ① into 1, ㎎ into mg, ㌍ into
カロリー, m² into m2, ～ into ~, the ideographic space into a space and 﨑 (in names) into 崎: it loses what was
written, and Japanese punctuation *is* full width. So:
* nfc: canonical composition (か + ゛ as two characters, as some file systems and PDF readers write them, into が). CJK
  compatibility ideographs (U+F900-FAFF, U+2F800-2FA1F) are left out: NFC would replace variants found in names.
* line_ends: CR LF, CR, vertical tab, form feed, NEL, U+2028 and U+2029 into a line feed.
* controls: C0 and C1 controls (not tab, line feed), soft hyphen, zero-width space, word joiner, byte order mark,
  direction marks and noncharacters go. Zero-width (non-)joiners and variation selectors stay: they change what is seen.
* spaces: no-break and typographic spaces into a space; the ideographic space stays (it indents and separates names).
* half_width_katakana: with their sound marks and the half-width 。「」、・ into full width, the way they are read.
* full_width_letters: Ａ-Ｚ, ａ-ｚ, ０-９ into ASCII: one word must not have two spellings (ＣＴ, CT); also ．and ，between
  two digits, since they belong to the number. Other full-width punctuation stays.
* wave_dash: ～ (U+FF5E, what Windows writes) into 〜 (U+301C, what JIS means). Dashes and minus signs stay.
* blank_space: white space at line ends goes; more than one blank line becomes one; blank lines at both ends go.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial

from megatron_jmed.corpus.code_map import HANGUL_SECONDS
from megatron_jmed.corpus.scan import EDGE, counter

LINE_SPACE = " \t\u3000"
NOT_COMPATIBILITY_IDEOGRAPHS = re.compile("[^\uf900-\ufaff\U0002f800-\U0002fa1f]+")
LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
CONTROLS = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufdd0-\ufdef\ufffe\uffff]+"
)
SPACES = re.compile("[\xa0\u2000-\u200a\u202f\u205f]")
HALF_WIDTH_KATAKANA = re.compile("[\uff61-\uff9f]+")
FULL_WIDTH_LETTERS = re.compile("[０-９Ａ-Ｚａ-ｚ]+")
FULL_WIDTH_POINT = re.compile("(?<=[0-9])[．，](?=[0-9])")
TO_ASCII = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
BLANK_LINES = re.compile(r"\n{3,}")


def _nfc(text: str) -> str:
    if unicodedata.is_normalized("NFC", text):
        return text
    return NOT_COMPATIBILITY_IDEOGRAPHS.sub(lambda run: unicodedata.normalize("NFC", run[0]), text)


def _full_width(run: re.Match[str]) -> str:
    # A sound mark that stands alone would become a combining one and change the character before it.
    return unicodedata.normalize("NFKC", run[0]).replace("\u3099", "゛").replace("\u309a", "゜")


def _half_width(text: str) -> str:
    text = FULL_WIDTH_LETTERS.sub(lambda run: run[0].translate(TO_ASCII), text)
    return FULL_WIDTH_POINT.sub(lambda point: point[0].translate(TO_ASCII), text) if "．" in text or "，" in text else text


def blank_space(text: str) -> str:
    """The text without white space at line ends, nor more than one blank line together, nor any at both ends."""
    # Not a pattern: one for white space before line ends takes quadratic time on a line of spaces.
    return BLANK_LINES.sub("\n\n", "\n".join([line.rstrip(LINE_SPACE) for line in text.split("\n")])).strip("\n")


SPELLING: dict[str, Callable[[str], str]] = {
    "line_ends": partial(LINE_ENDS.sub, "\n"),
    "controls": partial(CONTROLS.sub, ""),
    "spaces": partial(SPACES.sub, " "),
    "half_width_katakana": partial(HALF_WIDTH_KATAKANA.sub, _full_width),
    "full_width_letters": _half_width,
    "nfc": _nfc,
    "wave_dash": lambda text: text.replace("～", "〜"),
    "blank_space": blank_space,
}


def _not_surely_nfc() -> str:
    """The set of characters without which a text is in NFC (Unicode Standard Annex 15: quick check is Yes, class is 0)."""
    points = [chr(point) for point in range(0x30000)]  # no other plane holds any
    decomposed = (unicodedata.decomposition(one).split() for one in points)
    second = {chr(int(parts[1], 16)) for parts in decomposed if len(parts) == 2 and parts[0][0] != "<"}
    second |= HANGUL_SECONDS
    doubtful = (one for one in points if unicodedata.combining(one) or one in second or not unicodedata.is_normalized("NFC", one))
    return f"[{''.join(doubtful)}]"


# What must be in the text that comes for a step to change anything; no step makes what an earlier one looks for.
MAY_CHANGE = counter(
    {
        "line_ends": "[\r\x0b\x0c\x85\u2028\u2029]",
        "controls": CONTROLS.pattern.removesuffix("+"),
        "spaces": SPACES.pattern,
        "half_width_katakana": HALF_WIDTH_KATAKANA.pattern.removesuffix("+"),
        "full_width_letters": "[０-９Ａ-Ｚａ-ｚ．，]",
        "nfc": _not_surely_nfc(),
        "wave_dash": "～",
        "space_at_line_end": (f"[{LINE_SPACE}]", "\n"),
        "space_at_end": (f"[{LINE_SPACE}]", EDGE),
        "blank_lines": ("\n", "\n"),
        "blank_line_at_start": (EDGE, "\n"),
        "blank_line_at_end": ("\n", EDGE),
    }
)


def _steps(text: str) -> Iterator[str]:
    """Yield the steps of SPELLING that may change a text."""
    seen = MAY_CHANGE(text)
    *one_by_one, last = SPELLING
    if any(seen[: len(one_by_one)]):
        yield from (step for step in one_by_one if getattr(seen, step))
    # Where the first three find something, lines and spaces are not yet what they will be.
    unsettled = seen.line_ends or seen.controls or seen.spaces or seen.space_at_line_end or seen.space_at_end
    if unsettled or seen.blank_line_at_start or seen.blank_line_at_end or (seen.blank_lines and "\n\n\n" in text):
        yield last


def normalise(text: str) -> tuple[str, dict[str, int]]:
    """The text in one spelling, and which steps of SPELLING changed it."""
    counts = {}
    for name in _steps(text):
        before, text = text, SPELLING[name](text)
        if text != before:
            counts[f"changed_{name}"] = 1
    return text, counts
