"""Which texts are not worth training on?

In: a text in one spelling, without boilerplate, and its language. Out: for each rule of RULES None, or the numbers by which
the text breaks it. All but the rules of words count characters. To change a rule or a threshold, change it here.
Invariant: a rule looks at the text and the settings only.
"""

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated

from megatron_jmed.corpus.language import LANGUAGES, LETTERS, sample
from megatron_jmed.corpus.scan import EDGE, counter, num_different_pieces
from megatron_jmed.errors import CorpusError


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class CleanSettings:
    """The thresholds; shares are of the characters unless the name says otherwise."""

    languages: tuple[str, ...] = ("ja", "en")
    min_letters: int = 10
    max_characters: int = 5_000_000
    min_letters_share: float = 0.4
    max_unreadable_share: float = 0.002
    max_same_character_share: float = 0.2
    max_repeated_lines_share: float = 0.5  # folk tales and songs reach 0.47
    max_repeated_pieces_share: float = 0.5
    min_compressed_share: float = 0.08
    max_cut_lines_share: float = 0.3  # of the lines
    max_characters_without_sentence_end: int = 2000
    min_word_letters: float = 3.0
    max_word_letters: float = 10.0
    min_common_words: int = 2
    min_particles: int = 2
    rules: tuple[str, ...] = ()  # empty: all of RULES

    def __post_init__(self) -> None:
        known = {"rules": list(RULES), "languages": list(LANGUAGES)}
        for name, right in known.items():
            if wrong := [word for word in getattr(self, name) if word not in right]:
                raise CorpusError(f"{name}: there is no {', '.join(wrong)}; choose from {', '.join(right)}")


# ---- what rules look at

MOJIBAKE = re.compile("\ufffd|[縺繧繝][\u0080-\uffff]?|Ã[\x80-\xbf\u0192-\u2122]|â€.|ï¿½")
SAME_CHARACTER = re.compile(r"([^\s])\1{19,}")
SAME_CHARACTER_TIMES = 20
CUT_SIGNS = ("…", "...", "・・・", "続きを読む")
CUT_LINE = re.compile(rf"({'|'.join(map(re.escape, CUT_SIGNS))})$", re.MULTILINE)
SENTENCE_END = re.compile(r"[。．！？!?]|\.(?=\s|$)|[」』）]$", re.MULTILINE)
WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*")
COMMON_WORDS = frozenset(
    ("the", "be", "is", "are", "was", "to", "of", "and", "that", "have", "with", "in", "for", "by", "on", "or", "as")
)
PARTICLES = ("はハ", "がガ", "をヲ", "にニ", "のノ", "でデ", "とト")  # old texts write them in katakana
PIECE_CHARACTERS = 20
SAMPLE_CHARACTERS = 6000
# Cutting and comparing pieces is slow; text of which half came before never compresses worse than this.
COMPRESSED_SHARE_WITHOUT_REPETITION = 0.4
MIN_CHARACTERS_TO_JUDGE = 400  # repetition and prose cannot be judged in a few lines
MIN_WORDS_TO_JUDGE = 50
MIN_LETTERS_TO_JUDGE = 150
COUNT = counter(
    {
        "letters": LETTERS,
        "blanks": "[ \t\n\u3000]",
        "line_ends": "\n",
        "mojibake_starts": "[\ufffd縺繧繝Ãâï]",
        "latin": "[A-Za-z]",
        "latin_runs": ("[A-Za-z]", "[^A-Za-z]"),
        "latin_run_at_end": ("[A-Za-z]", EDGE),
        "word_joints": ("[A-Za-z]", "['’-]"),
    }
)


@dataclass
class Look:
    """A cleaned text with what several rules ask about it."""

    text: str
    lang: str
    settings: CleanSettings

    def __post_init__(self) -> None:
        self.part = sample(self.text, SAMPLE_CHARACTERS)  # looked at where a share is enough: long texts in pieces
        self.seen = COUNT(self.part)

    @property
    def num_letters(self) -> int:
        return self.seen.letters

    @property
    def num_visible(self) -> int:
        return max(1, len(self.part) - self.seen.blanks)

    @cached_property
    def compressed_share(self) -> float:
        """Bytes that zlib needs for each byte; 1 for texts too short to judge."""
        data = self.part.encode()
        return len(zlib.compress(data, 1)) / len(data) if len(self.part) >= MIN_CHARACTERS_TO_JUDGE else 1.0

    @property
    def max_words(self) -> int:
        """No fewer than there are words: runs of Latin letters, of which ' and - join some."""
        return self.seen.latin_runs + self.seen.latin_run_at_end

    @cached_property
    def words(self) -> list[str]:
        return WORD.findall(self.part)


# ---- the rules


def _over(share: float, limit: float, what: str) -> str | None:
    return f"{share:.3f} of {what}, at most {limit}" if share > limit else None


def too_short(look: Look) -> str | None:
    """No letters to learn from: a heading, a number, nothing."""
    few = look.num_letters < look.settings.min_letters
    return f"{look.num_letters} letters, at least {look.settings.min_letters}" if few else None


def too_long(look: Look) -> str | None:
    """Longer than any document: a dump that lost its ends of records."""
    num, limit = len(look.text), look.settings.max_characters
    return f"{num} characters, at most {limit}" if num > limit else None


def language_not_wanted(look: Look) -> str | None:
    """Neither found nor declared to be in a wanted language."""
    wanted = look.settings.languages
    return None if look.lang in wanted else f"{look.lang}, wanted {', '.join(wanted)}"


def few_letters(look: Look) -> str | None:
    """Tables of numbers, code, rulers: few of the visible characters are letters."""
    share, limit = look.num_letters / look.num_visible, look.settings.min_letters_share
    return f"{share:.3f} of the characters are letters, at least {limit}" if share < limit else None


def unreadable(look: Look) -> str | None:
    """Text decoded with the wrong encoding: replacement characters, 縺 and Ã where kana or accents were."""
    found = sum(map(len, MOJIBAKE.findall(look.part))) if look.seen.mojibake_starts else 0
    return _over(found / len(look.part or " "), look.settings.max_unreadable_share, "the characters are unreadable")


def same_character(look: Look) -> str | None:
    """One character over and over (20 or more in a row)."""
    if look.seen.longest_run < SAME_CHARACTER_TIMES:
        return None
    found = sum(len(run[0]) for run in SAME_CHARACTER.finditer(look.part))
    return _over(found / look.num_visible, look.settings.max_same_character_share, "the characters are such runs")


def repeated_lines(look: Look) -> str | None:
    """The same lines again and again: menus, headers and footers of pages."""
    if "\n" not in look.text:
        return None
    lines = [line.strip() for line in look.text.split("\n")]
    again = sum(map(len, lines)) - sum(map(len, set(lines)))
    return _over(again / (len(look.text) or 1), look.settings.max_repeated_lines_share, "the characters are in such lines")


def repeated_pieces(look: Look) -> str | None:
    """The same pieces of 20 characters again and again, also within a line."""
    if look.compressed_share > COMPRESSED_SHARE_WITHOUT_REPETITION:
        return None
    share = 1 - num_different_pieces(look.part, PIECE_CHARACTERS) / (len(look.part) - PIECE_CHARACTERS + 1)
    return _over(share, look.settings.max_repeated_pieces_share, "the pieces came before")


def compresses_away(look: Look) -> str | None:
    """Templates with changing numbers: the text shrinks to almost nothing."""
    share, limit = look.compressed_share, look.settings.min_compressed_share
    return f"compresses to {share:.3f}, at least {limit}" if share < limit else None


def cut_lines(look: Look) -> str | None:
    """Teasers of other pages: many lines end in an ellipsis."""
    if look.seen.line_ends < 3 or not any(sign in look.part for sign in CUT_SIGNS):
        return None
    num_lines = sum(1 for line in look.part.split("\n") if line.strip())
    share = len(CUT_LINE.findall(look.part)) / (num_lines or 1) if num_lines >= 4 else 0.0
    return _over(share, look.settings.max_cut_lines_share, "the lines end in an ellipsis")


def no_sentence(look: Look) -> str | None:
    """A long text without any end of a sentence: lists of names, navigation."""
    num, limit = len(look.part), look.settings.max_characters_without_sentence_end
    return f"{num} characters, no end of a sentence" if num > limit and not SENTENCE_END.search(look.part) else None


def odd_words(look: Look) -> str | None:
    """English whose words are too short (letters apart) or too long (run together, encoded data)."""
    if look.lang != "en" or look.max_words < MIN_WORDS_TO_JUDGE:
        return None
    low, high = look.settings.min_word_letters, look.settings.max_word_letters
    letters, joints = look.seen.latin, look.seen.word_joints
    if low <= letters / look.max_words and (letters + joints) <= high * (look.max_words - joints):
        return None  # whatever the joints join
    mean = sum(map(len, look.words)) / (len(look.words) or 1)
    odd = len(look.words) >= MIN_WORDS_TO_JUDGE and not low <= mean <= high
    return f"{mean:.1f} letters a word, {low} to {high} wanted" if odd else None


def few_common_words(look: Look) -> str | None:
    """English prose cannot do without the, of, and ...; lists of terms and keywords can."""
    if look.lang != "en" or look.max_words < MIN_WORDS_TO_JUDGE:
        return None
    found: set[str] = set()
    limit = look.settings.min_common_words
    for word in WORD.finditer(look.part):
        if (common := word[0].lower()) in COMMON_WORDS:
            found.add(common)
            if len(found) >= limit:
                return None
    few = len(look.words) >= MIN_WORDS_TO_JUDGE and len(found) < limit
    return f"{len(found)} of the commonest words, at least {limit}" if few else None


def few_particles(look: Look) -> str | None:
    """Japanese without any end of a sentence and without は, が, を ...: keywords, names of goods, menus."""
    if look.lang != "ja" or look.num_letters < MIN_LETTERS_TO_JUDGE or SENTENCE_END.search(look.part):
        return None
    found, limit = sum(any(kana in look.part for kana in both) for both in PARTICLES), look.settings.min_particles
    return f"{found} of the commonest particles, no end of a sentence, at least {limit}" if found < limit else None


RULES: dict[str, Callable[[Look], str | None]] = {
    rule.__name__: rule
    for rule in (
        too_short,
        too_long,
        language_not_wanted,
        few_letters,
        unreadable,
        same_character,
        repeated_lines,
        repeated_pieces,
        compresses_away,
        cut_lines,
        no_sentence,
        odd_words,
        few_common_words,
        few_particles,
    )
}
