"""Where does a sentence of a text end?

In: a text and its declared language. Out: its sentences, in order, without white space at their ends; none is empty.
Japanese has rules of our own, one pattern that matches sentence after sentence. English has nltk's punkt where nltk and
its data are installed (never downloaded), else rules of our own, one pattern for the ends. A text in any other language,
or in none, goes by its script: as Japanese if a tenth of it is kana or kanji, else as English.
Where a rule is not sure it does not cut: two sentences in one are still text, half a sentence is not.
Invariant: the sentences hold every character of the text, in order, but the white space between them.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, get_args

import orjson
from pydantic import JsonValue

from megatron_jmed.errors import CorpusError

SentenceEngine = Literal["auto", "nltk", "rules"]
SENTENCE_ENGINES = get_args(SentenceEngine)
RULES_VERSION = 1  # goes up with every change of a rule: sentences are part of a token set's record
JAPANESE_CHARACTER = re.compile("[ぁ-ヿ㐀-䶿一-鿿豈-龎ｦ-ﾟ]")
JAPANESE_SHARE = 0.1
SAMPLE_CHARACTERS = 1000

Split = Callable[[str], list[str]]


# ---- Japanese

LINE_ENDS = r"\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029"
BRACKETS = ("「」", "『』", "（）", "()", "【】", "〈〉", "《》", "〔〕", "“”")
OPENERS, CLOSERS = ("".join(re.escape(pair[side]) for pair in BRACKETS) for side in (0, 1))
# A bracket that is not closed within so many characters, or on its line, is taken for one that never is.
MAX_INSIDE, MAX_NESTED_INSIDE, MAX_NESTED = 400, 150, 8
STOP = (
    r"(?:[。！？｡]"
    r"|[!?](?![0-9A-Za-z=&/])"  # in an address or a program it is none
    r"|．(?:(?![0-9０-９])|(?<=[^0-9０-９]．))"  # nor in ３．５
    r"|\.(?<=[ぁ-ヿ一-鿿]\.)(?![0-9A-Za-z.]))"  # some write Japanese with Latin stops
)
PLAIN = f"[^。！？｡!?．.{OPENERS}{LINE_ENDS}]++"
# "1．", "2.1．" or "ア．" before a sentence belongs to it.
LIST_MARKER = rf"(?:[^\S{LINE_ENDS}]*+(?:(?:[0-9０-９]{{1,3}}|[一二三四五六七八九十]{{1,3}}|[a-zA-Zａ-ｚＡ-Ｚア-ン])[．.])++)?+"
# After 「...。」 another speaker's 「 begins a sentence.
SPEAKER = "(?:(?<=[。！？!?][」』])|(?<=[。！？!?][」』]　))[「『]"


def _closed(pair: str) -> str:
    """From an opening bracket to its closing one, with others of its kind inside one level deep."""
    opener, closer = map(re.escape, pair)
    inside = f"[^{opener}{closer}{LINE_ENDS}]"
    nested = f"{opener}{inside}{{0,{MAX_NESTED_INSIDE}}}+{closer}{inside}{{0,{MAX_INSIDE}}}+"
    return f"{opener}{inside}{{0,{MAX_INSIDE}}}+(?:{nested}){{0,{MAX_NESTED}}}+{closer}"


CLOSED = f"(?:{'|'.join(map(_closed, BRACKETS))})"
CLOSING = rf"(?:\s{{0,8}}+[{CLOSERS}]++)?+"  # perhaps on the next line
OTHER = f"(?!{STOP})[^{LINE_ENDS}]"  # an opening bracket alone, a stop that is none
JAPANESE_SENTENCE = re.compile(
    f"{LIST_MARKER}(?:{CLOSED}|{OTHER})?+(?:{PLAIN}|(?!{SPEAKER})(?:{CLOSED}|{OTHER}))*+(?:(?:{STOP}++|[{LINE_ENDS}]++){CLOSING})?+"
)


def split_japanese(text: str) -> list[str]:
    """Cut after 。．！？ and what closes behind them, and at line ends, but not inside brackets or numbers."""
    return _stripped(JAPANESE_SENTENCE.findall(text))


# ---- English

NEVER_LAST = """
adm al approx apr aug capt cf col dec dept dr eds esp feb fig figs gen gov hon incl jan jul jun lt mar messrs mr mrs ms mt nov oct
pres prof rep resp rev sen sep sept sgt st subsp suppl univ viz vs
"""
BEFORE_NUMBERS = "app art ca ch chap eq eqs ex max min no nos p para pp pt ref refs sec sect tab temp vol vols"


def _ends_with(words: str) -> list[str]:
    """Patterns of one length each, as `re` wants them for what stands before a place."""
    by_length = groupby(sorted(words.split(), key=len), key=len)
    return [rf"\b(?i:{'|'.join(alike)})\." for _, alike in by_length]


NO_END = "".join(
    [
        *(f"(?<!{word})" for word in _ends_with(NEVER_LAST)),
        *(rf"(?!(?<={word})\s*+\d)" for word in _ends_with(BEFORE_NUMBERS)),
        r"(?<!\b[A-Z]\.)",  # initials
        r"(?<!\b\w\.\w\.)",  # e.g., i.e., b.i.d., p.o., U.S.
        r"(?<!^\d\.)(?<!^\d\d\.)(?<!^\s\d\.)(?<![a-z]{3}[.!?]\s\d\.)(?<![a-z]{3}[.!?]\s\d\d\.)",  # "1." of a list
    ]
)
ENGLISH_END = re.compile(
    rf"[.!?]++{NO_END}[\"'”’)\]»]*+(?=\s++[^\sa-z.,;:!?)\]])"
    r"|\n(?=[^\S\n]*+\n)"  # a paragraph; one line end alone may be a wrapped line
    r"|\n(?=[^\S\n]*+(?:[-*•・–—]|\(?(?:\d{1,3}|[a-z])[.)])\s)",  # an item of a list
    re.MULTILINE,
)


def split_english(text: str) -> list[str]:
    """Cut after . ! ? before white space and what can begin a sentence, but not after abbreviations."""
    begin, pieces = 0, []
    for match in ENGLISH_END.finditer(text):
        pieces.append(text[begin : match.end()])
        begin = match.end()
    return _stripped([*pieces, text[begin:]])


def _stripped(pieces: Iterable[str]) -> list[str]:
    return [sentence for sentence in map(str.strip, pieces) if sentence]


# ---- any text


def split_sentences(text: str, lang: str, english: Split = split_english) -> list[str]:
    """The sentences of a text in language `lang` ("ja", "en"; by its script if anything else)."""
    is_japanese = lang == "ja" or (lang != "en" and _looks_japanese(text))
    return split_japanese(text) if is_japanese else english(text)


def _looks_japanese(text: str) -> bool:
    sample = text[:SAMPLE_CHARACTERS]
    return len(JAPANESE_CHARACTER.findall(sample)) > JAPANESE_SHARE * len(sample)


@dataclass(frozen=True)
class SentenceSplitter:
    """An engine, and what a manifest says of it."""

    engine: SentenceEngine
    english: Split
    record: dict[str, JsonValue]

    def split(self, text: str, lang: str) -> list[str]:
        return split_sentences(text, lang, self.english)


def load_splitter(engine: SentenceEngine) -> SentenceSplitter:
    """The splitter of an engine, "auto" being nltk where it can be used; CorpusError if nltk is asked for and cannot."""
    rules: dict[str, JsonValue] = {"engine": "rules", "rules": RULES_VERSION}
    if engine != "rules":
        try:
            punkt, version = _load_punkt()
        except (ImportError, LookupError) as error:
            if engine == "nltk":
                why = "nltk is not installed" if isinstance(error, ImportError) else "its English punkt data are not installed"
                raise CorpusError(
                    f"--sentence-engine nltk: {why}; install nltk and its package punkt_tab (NLTK_DATA names the folder), or "
                    f"use --sentence-engine rules"
                ) from None
        else:
            names: dict[str, JsonValue] = {"nltk": version, "punkt_sha256": _punkt_sha256(punkt)}
            return SentenceSplitter("nltk", lambda text: _stripped(punkt.tokenize(text)), rules | {"engine": "nltk"} | names)
    return SentenceSplitter("rules", split_english, rules)


def _load_punkt() -> tuple[Any, str]:
    import nltk
    from nltk.tokenize.punkt import PunktTokenizer

    return PunktTokenizer("english"), nltk.__version__


def _punkt_sha256(punkt: Any) -> str:
    """What the model knows, hashed: its data have no version."""
    known = punkt._params
    parts = [sorted(known.abbrev_types), sorted(map(list, known.collocations)), sorted(known.sent_starters),
             sorted(known.ortho_context.items())]
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()
