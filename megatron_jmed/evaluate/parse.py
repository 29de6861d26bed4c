"""Which choices does a written answer pick?

In: what a model wrote, and the question. Out: letters (or a number), and whether the answer came in the form that was asked
for. The form is a last line `Answer: c` (several: `Answer: a, d`; a number: `Answer: 26`). Models obey it in only a part of
their answers, so other ways of saying it are read as well, in this order; the first that finds something decides:

    1. the last line `Answer: c` (compliant), any other such line
    2. 「正解は c」 「答え：c」 "the answer is c" (the last one)
    3. an answer that begins with letters: "c", "(c)", "c. 肺炎", "a、d"
    4. an answer that is, or begins with, one choice's words

Invariant: text never turns into letters by accident: a letter counts only where no other letter or digit touches it ("a fever" at
the start is read as a choice only if nothing but a mark follows), and a letter beyond the choices is no answer.
"""

import re
import unicodedata
from dataclasses import dataclass

from megatron_jmed.evaluate.question import LETTERS, Question, canonical_number

ANSWER_LINE = re.compile(r"^\s*answer\s*[:：]\s*(.+?)\s*$", re.IGNORECASE)
SAYS = re.compile(
    r"(?:正解|正答|解答|回答|答え|答)(?:の(?:選択肢|記号|番号))?\s*(?:は|:|=)\s*[「『【(]*|"
    r"(?:(?:correct|best|final|right)\s+)*(?:answer|choice|option)s?\s*(?:is|are|:)\s*[(\"']*",
    re.IGNORECASE,
)
# Letters with marks around and between: c | (c) | a, d | a、d | ad | a and d | 選択肢c
_ONE = r"(?:選択肢|option\s*)?[(\[{<「『【]*([a-z]{1,5}|\d{1,2})[)\]}>」』】]*"
_BETWEEN = r"[ \t]*(?:,|、|・|/|&|\+|と|および|及び|and\b|[ \t])[ \t]*"
_END = r"(?![a-z0-9])"
LETTER_LIST = re.compile(rf"{_ONE}{_END}(?:{_BETWEEN}{_ONE}{_END})*", re.IGNORECASE)
ONE = re.compile(_ONE + _END, re.IGNORECASE)
BETWEEN = re.compile(_BETWEEN, re.IGNORECASE)
ARTICLE = re.compile(r"(?:an?|the)\s+(?=[a-z]{2})", re.IGNORECASE)
AFTER_LEADING = re.compile(r"\s*(?:$|[\n.,:、。:)\]】」]|です|が正|が適|を選)|\s+[^\x00-\x7f]")
FIRST_NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?")
THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
MARKUP = re.compile(r"\*\*|__|`|\$|\\boxed|\\text|\\mathrm")


@dataclass(frozen=True)
class Answer:
    """What was picked (letters in order, or one number; empty: nothing readable), and whether in the form asked for."""

    picked: tuple[str, ...]
    is_compliant: bool


NO_ANSWER = Answer((), False)


def parse_answer(text: str, question: Question) -> Answer:
    """Read the answer to `question` from `text`."""
    words = _tidy(text)
    lines = [line for line in words.split("\n") if line.strip()]
    asked = [match[1] for line in lines if (match := ANSWER_LINE.match(line))]
    read = _read_number if not question.choices else _read_letters
    if asked:
        last_line = ANSWER_LINE.match(lines[-1])
        for said in reversed(asked):
            if picked := read(said, question):
                return Answer(picked, bool(last_line) and said == asked[-1] and _is_bare(said, question))
    for match in reversed(list(SAYS.finditer(words))):
        if picked := read(words[match.end():], question):
            return Answer(picked, False)
    return Answer(_read_leading(words.strip(), question), False)


def _tidy(text: str) -> str:
    return MARKUP.sub("", THINKING.sub("", unicodedata.normalize("NFKC", text)))


def _is_bare(said: str, question: Question) -> bool:
    """Whether the line holds the letters (or the number) and nothing else."""
    found = (FIRST_NUMBER if not question.choices else LETTER_LIST).match(said)
    return bool(found) and not said[found.end():].strip(" .。)")


def _read_letters(said: str, question: Question) -> tuple[str, ...]:
    """Letters at the beginning of `said`; else one choice's own words there ("a fever" is fever, if that is a choice)."""
    said = said.lstrip()
    if article := ARTICLE.match(said):
        choice = _choice_at_start(said, question) or _choice_at_start(said[article.end():], question)
        if choice:
            return choice
    if found := LETTER_LIST.match(said):
        letters: list[str] = []
        for part in BETWEEN.split(found[0]):
            if mark := ONE.match(part):
                letters += _letters_of(mark[1].lower(), question)
        if letters:
            return tuple(sorted(set(letters)))
    return _choice_at_start(said, question)


def _letters_of(mark: str, question: Question) -> list[str]:
    """Letters of one mark: "c", "ad", or "3" counted from 1; nothing if one of them is no choice, or it is a word."""
    if mark.isdecimal():
        position = int(mark)
        return [LETTERS[position - 1]] if 0 < position <= len(question.choices) else []
    is_list = len(mark) == 1 or (len(set(mark)) == len(mark) and list(mark) == sorted(mark) and question.num_to_pick > 1)
    known = all(letter in LETTERS[: len(question.choices)] for letter in mark)
    return list(mark) if is_list and known else []


def _choice_at_start(said: str, question: Question) -> tuple[str, ...]:
    """The letter of the longest choice with whose words `said` begins."""
    words = said.strip().strip("「『\"'").casefold()
    tidied = [_tidy(choice).strip().casefold() for choice in question.choices]
    found = [i for i, choice in enumerate(tidied) if choice and words.startswith(choice)]
    best = max(found, key=lambda i: len(tidied[i]), default=None)
    return () if best is None else (LETTERS[best],)


def _read_number(said: str, question: Question) -> tuple[str, ...]:
    found = FIRST_NUMBER.search(said.split("\n")[0])
    number = canonical_number(found[0].strip(",")) if found else None
    return () if number is None else (number,)


def _read_leading(words: str, question: Question) -> tuple[str, ...]:
    """An answer that says nothing before its letters, its choice or its number."""
    if not question.choices:
        found = FIRST_NUMBER.match(words)
        number = canonical_number(found[0].strip(",")) if found else None
        return () if number is None else (number,)
    found = LETTER_LIST.match(words)
    if found and AFTER_LEADING.match(words[found.end():]) and (picked := _read_letters(words, question)):
        return picked
    return _choice_at_start(words, question)
