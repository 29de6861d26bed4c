"""What is a question, and what does an exam ask of those who sit it?

Every loader (`igakuqa`, `exam_forms`) returns `Question`s; prompts, answers and scores know nothing else about an exam.
Invariant: picking exactly the letters of any one set in `answers` is right; a question without choices wants a number,
whose text then stands in `answers` in the form of `canonical_number`.
"""

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

LETTERS = "abcdefghijklmnopqrstuvwxyz"
NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")

Kind = Literal["single", "multiple", "numeric"]


@dataclass(frozen=True)
class Question:
    """One question of an exam.

    `answers` holds every accepted set of letters (empty: withdrawn without a right answer). `forbidden` are choices that
    would harm the patient (kinki). `subject` is the field, `category` the finer topic. `show_choices` is False where the
    choices are words to answer with (yes, no, maybe) and no options to read.
    """

    id: str
    exam: str
    text: str
    choices: tuple[str, ...]
    answers: tuple[frozenset[str], ...]
    num_to_pick: int
    points: int = 1
    needs_image: bool = False
    context: str = ""
    show_choices: bool = True
    year: int | None = None
    paper: str = ""
    subject: str = ""
    category: str = ""
    lang: str = ""
    essential: bool = False
    always_correct: bool = False
    withdrawn: bool = False
    forbidden: frozenset[str] = frozenset()

    @property
    def kind(self) -> Kind:
        """How the question is answered: with one letter, several letters, or a number."""
        if not self.choices:
            return "numeric"
        return "multiple" if self.num_to_pick > 1 else "single"


@dataclass(frozen=True)
class ExamRules:
    """What it takes to pass a whole exam; a rule that is None is not asked for.

    `pass_points` of `possible_points` in the questions that are not essential; a share of the points of the essential
    ones; at most `max_forbidden` questions with a forbidden choice picked.
    """

    pass_points: int | None = None
    possible_points: int | None = None
    pass_ratio: float | None = None
    essential_ratio: float | None = None
    max_forbidden: int | None = None
    source: str = ""


def plain(text: str) -> str:
    """A mark of an answer sheet in one spelling: full width becomes narrow, capitals small, no space around."""
    return unicodedata.normalize("NFKC", text).strip().lower()


def canonical_number(text: str) -> str | None:
    """A number in one spelling: "１,２００" and "1200.0" are "1200"; None if the text is no number."""
    words = plain(text)
    if not NUMBER.fullmatch(words):
        return None
    number = Decimal(words.replace(",", "")).normalize()
    return f"{number:f}" if number else "0"
