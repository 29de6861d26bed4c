"""Which texts are worth training on, and in what spelling?

In: a source of documents. Out: a stage folder (see stage.py) of documents in one spelling, without boilerplate lines,
with `lang` as found; what breaks a rule of RULES is filed, as it came, under the rule's name with the numbers.
Three tables decide, in this order: SPELLING, BOILERPLATE, RULES. All but the rules of words count characters.
Invariant: cleaning a cleaned text changes nothing.

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
import string
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pycld2
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from megatron_jmed.corpus.document import UNKNOWN, Document
from megatron_jmed.corpus.language import LANGUAGES, LETTERS, find_language, sample
from megatron_jmed.corpus.manifest import Manifest
from megatron_jmed.corpus.scan import EDGE, counter, finder, num_different_pieces
from megatron_jmed.corpus.stage import Kept, Removed, Transform, run_stage
from megatron_jmed.errors import CorpusError

STAGE = "clean"


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


def clean(source: Path, target: Path, settings: CleanSettings, **words: Any) -> Manifest:
    """Clean every document of a source into TARGET; `words` are those of run_stage (workers, shard, max_bad ...)."""
    choices = {**asdict(settings), "rules": list(settings.rules or RULES), "languages": list(settings.languages)}
    choices["pycld2"] = pycld2.__version__
    return run_stage(STAGE, Path(source), Path(target), choices, partial(make_clean, settings), **words)


def make_clean(settings: CleanSettings) -> Transform:
    """The transform of the stage: spelling, boilerplate, language, rules."""
    return partial(clean_document, settings=settings)


def clean_document(document: Document, settings: CleanSettings) -> Kept | Removed:
    """Return the cleaned document, or the document as it came with the first rule that it breaks."""
    text, counts = normalise(document.text)
    text, num_lines = drop_boilerplate(text)
    if num_lines:
        counts["boilerplate_lines"] = num_lines
    lang, meta = document.lang, document.meta
    if (found := find_language(text)) and found != lang:
        counts[f"lang_{_word(lang)}_to_{found}"] = 1
        lang, meta = found, meta if lang == UNKNOWN else {**meta, "declared_lang": lang}
    look = Look(text, lang, settings)
    for rule in settings.rules or RULES:
        if detail := RULES[rule](look):
            return Removed(document, rule, detail)
    if text is document.text and lang == document.lang:
        return Kept(document, counts)
    return Kept(Document(document.id, text, document.source, lang, meta), counts)


def _word(lang: str) -> str:
    return lang if lang in (*LANGUAGES, UNKNOWN) else "another"


# ---- spelling

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


def _blank_space(text: str) -> str:
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
    "blank_space": _blank_space,
}


def _not_surely_nfc() -> str:
    """The set of characters without which a text is in NFC (Unicode Standard Annex 15: quick check is Yes, class is 0)."""
    points = [chr(point) for point in range(0x30000)]  # no other plane holds any
    decomposed = (unicodedata.decomposition(one).split() for one in points)
    second = {chr(int(parts[1], 16)) for parts in decomposed if len(parts) == 2 and parts[0][0] != "<"}
    second.update(chr(jamo) for jamo in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)))  # Hangul composes by a rule
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


# ---- boilerplate: lines that are nothing but the page's furniture

MAX_BOILERPLATE_CHARACTERS = 120
# Each pattern with words of which one is in every line that it matches, in lower case: it is tried on such lines only.
BOILERPLATE: dict[str, tuple[str, ...]] = {
    r"(続きを|もっと)(読む|見る)": ("続きを読む", "続きを見る", "もっと読む", "もっと見る"),
    r"(この)?(ページ|記事)の?(先頭|上部|トップ|TOP)[へに](戻る)?": (
        *("先頭へ", "先頭に", "上部へ", "上部に", "トップへ", "トップに", "topへ", "topに"),
    ),
    r"(ホーム|トップ(ページ)?|一覧|目次)[へに]戻る": ("へ戻る", "に戻る"),
    r"(前|次)の(ページ|記事)([へに](戻る|進む)?)?": ("前のページ", "次のページ", "前の記事", "次の記事"),
    r"(本文|メイン ?コンテンツ|コンテンツ)[へに]?(移動|スキップ)(する)?": (
        *("本文移動", "本文へ移動", "本文に移動", "本文スキップ", "本文へスキップ", "本文にスキップ"),
        *("コンテンツ移動", "コンテンツへ移動", "コンテンツに移動"),
        *("コンテンツスキップ", "コンテンツへスキップ", "コンテンツにスキップ"),
    ),
    r"(この(ページ|記事)を)?(印刷|シェア|ツイート|ブックマーク)する": (
        *("印刷する", "シェアする", "ツイートする", "ブックマークする"),
    ),
    r"(サイトマップ|プライバシー ?ポリシー|個人情報保護方針|利用規約|クッキーポリシー|スポンサー(ド)?リンク)": (
        *("サイトマップ", "プライバシーポリシー", "プライバシー ポリシー", "個人情報保護方針", "利用規約", "クッキーポリシー"),
        *("スポンサーリンク", "スポンサードリンク"),
    ),
    r"(お問い?合わ?せ|資料請求|ログイン|新規(会員)?登録|会員登録)は(こちら|コチラ)(から)?": ("はこちら", "はコチラ"),
    r".{0,60}(無断(転載|複製|使用).{0,20}(禁止|禁じ|お断り).{0,10})": ("無断転載", "無断複製", "無断使用"),
    r"((copyright|©|\(c\))[ ,]*)+(©|\(c\)|\d{4}|by\b).{0,100}": ("copyright", "©", "(c)"),
    r".{0,80}all rights reserved\.?": ("all rights reserved",),
    r"skip to (the )?(main )?(content|navigation)": ("skip to ",),
    r"(back|return|go) to (the )?top( of (the )?page)?": ("to top", "to the top"),
    r"(share|print|bookmark|email|tweet) this( page| article)?": (
        *("share this", "print this", "bookmark this", "email this", "tweet this"),
    ),
    r"(click here|read more|learn more|continue reading|show more|see more)( (to|about|on) .{1,60})?": (
        *("click here", "read more", "learn more", "continue reading", "show more", "see more"),
    ),
    r"(privacy policy|terms (of (use|service)|(and|&) conditions)|cookie (policy|settings|preferences)|site ?map)": (
        *("privacy policy", "terms of use", "terms of service", "terms and conditions", "terms & conditions"),
        *("cookie policy", "cookie settings", "cookie preferences", "sitemap", "site map"),
    ),
    r"(subscribe|sign up)( now| here)? (to|for) (our|the) .{0,40}(newsletter|mailing list|updates)": (
        *("newsletter", "mailing list", "updates"),
    ),
    r"(follow|find|like) us on .{1,40}": (" us on ",),
    r"(this (site|website)|we) uses? cookies.{0,80}": ("use cookies", "uses cookies"),
    r"(advertisement|sponsored (content|links?)|loading(\.\.\.|…)?)": (
        *("advertisement", "sponsored content", "sponsored link", "loading"),
    ),
}
BOILERPLATE_LINE = re.compile(rf"\W*(?:{'|'.join(BOILERPLATE)})[\s.。>»›→＞|]*", re.IGNORECASE)
# What re.IGNORECASE takes for the same letter.
LETTERS_ALIKE = {letter: letter + letter.upper() for letter in string.ascii_lowercase} | {"i": "iIİı", "k": "kK\u212a", "s": "sSſ"}
BOILERPLATE_WORDS = finder([[word for words in BOILERPLATE.values() for word in words]], LETTERS_ALIKE)


def drop_boilerplate(text: str) -> tuple[str, int]:
    """The text without its boilerplate lines, and how many they were."""
    [places] = BOILERPLATE_WORDS(text)
    if not places:
        return text, 0
    kept, num_dropped, done, end = [], 0, 0, -1
    for place in places:
        if place < end:
            continue
        start, end = text.rfind("\n", 0, place) + 1, text.find("\n", place)
        end = len(text) if end < 0 else end
        if end - start <= MAX_BOILERPLATE_CHARACTERS and BOILERPLATE_LINE.fullmatch(text, start, end):
            kept.append(text[done:start])
            num_dropped, done = num_dropped + 1, end + 1
    return (_blank_space("".join((*kept, text[done:]))) if num_dropped else text), num_dropped


# ---- rules

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


def clean_settings(rules: Iterable[str] = (), changes: Iterable[str] = ()) -> CleanSettings:
    """Settings from words such as 'min_letters=30'; CorpusError for an unknown name or a value of another type."""
    chosen: dict[str, Any] = {"rules": tuple(rules)}
    names = [field.name for field in fields(CleanSettings) if field.name != "rules"]
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or name not in names:
            raise CorpusError(f"--set {change!r} is not NAME=VALUE with a name out of {', '.join(names)}")
        chosen[name] = tuple(value.split(",")) if name == "languages" else value
    try:
        return TypeAdapter(CleanSettings).validate_python(chosen)
    except ValidationError as error:
        problems = "; ".join(f"{problem['loc'][0]}: {problem['msg']}, got {problem['input']!r}" for problem in error.errors())
        raise CorpusError(f"--set: {problems}") from None
