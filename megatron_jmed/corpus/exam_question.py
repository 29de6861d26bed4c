"""When does a question of an exam count as found in a text?

In: a question, and how much of its n-grams a place in a text holds. Out: a `Hit`, or None.
Invariant: no verdict is possible with fewer n-grams than `num_needed`, which is what texts are screened by.

Each unit (the stem, each choice) has a score from 0 to 1: the share of its n-grams of weight that stand there; a unit
without any must stand there whole.
* A stem of at least `long_stem` symbols of weight is enough by itself: its score must reach `coverage`.
* A shorter one needs its choices: the stem's score and the mean score of the choices must each reach `coverage`, and
  what was found must come to `min_evidence` symbols. A question that cannot reach that is not testable.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megatron_jmed.corpus.exam_texts import ExamText, Form
from megatron_jmed.corpus.symbols import gram_hashes, joined_symbols, symbol_codes, symbol_hashes
from megatron_jmed.corpus.words import Hashes

EPSILON = 1e-6  # more than the rounding of a few sums


@dataclass(frozen=True)
class Rule:
    """When a question counts as found; symbols are characters for Japanese and words for English."""

    n: int
    coverage: float
    long_stem: int
    min_evidence: int
    max_questions: int = 5


RULES = {"characters": Rule(n=6, coverage=0.6, long_stem=40, min_evidence=20),
         "words": Rule(n=4, coverage=0.6, long_stem=20, min_evidence=10)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hit:
    """A question in a text: the form it has there, what was found of it, and how much (0 to 1)."""

    question_id: str
    form: Form
    kind: Literal["stem", "stem_and_choices"]
    overlap: float


@dataclass(frozen=True)
class Unit:
    """The stem or a choice of a question."""

    symbols: str  # as `joined_symbols` puts them
    num_symbols: int
    hashes: Hashes  # of its n-grams, distinct


def _unit(text: str, words: bool, n: int) -> Unit:
    codes = symbol_codes(text)
    symbols, _ = symbol_hashes(codes, words)
    return Unit(joined_symbols(codes, words), symbols.size, np.unique(gram_hashes(symbols, n)))


@dataclass
class Question:
    """One question of an index, the stem first of its units; the index says which n-grams carry weight."""

    text: ExamText
    rule: Rule
    units: list[Unit]
    first_unit: int = 0  # in the index
    num_grams: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # with weight, by unit
    num_needed: float = 0.0  # n-grams of weight that any verdict needs

    @property
    def window(self) -> int:
        """Within how many symbols it is looked for: room for a note on each choice."""
        return 2 * sum(unit.num_symbols for unit in self.units) + 60 + 40 * (len(self.units) - 1)

    def weigh(self, first_unit: int, num_grams: NDArray[np.int64]) -> None:
        """Take in where the question stands in its index, and how many n-grams of each unit carry weight."""
        self.first_unit, self.num_grams = first_unit, num_grams
        # What any verdict below needs at least of the stem, or of all units where the stem has no weight.
        of_stem = self.rule.coverage * (num_grams[0] or num_grams.sum() / 3)
        self.num_needed = max(of_stem, self._least_grams())

    def _least_grams(self) -> float:
        """How many n-grams of weight any verdict but that of a long stem needs: the stem's share, and the cheapest choices'.

        A choice without any n-gram of weight may count in full; of the others the mean score asks for the rest, which
        costs least where there are few n-grams.
        """
        stem, *choices = self.num_grams.tolist()
        if stem and stem + self.rule.n - 1 >= self.rule.long_stem:
            return self.rule.coverage * stem
        needed, left = self.rule.coverage * stem, self.rule.coverage * len(choices) - EPSILON
        for num_grams in sorted(choices):
            share = min(1.0, max(0.0, left))
            needed, left = needed + share * num_grams, left - 1
        return needed - EPSILON

    def is_testable(self) -> bool:
        return self.verdict(np.ones(len(self.units))) is not None and bool(self.num_grams.any())

    def verdict(self, scores: NDArray[np.float64]) -> Hit | None:
        """What the scores of its units, which stand together, come to."""
        rule, text = self.rule, self.text
        weights = np.where(self.num_grams > 0, self.num_grams + rule.n - 1, 0)
        if weights[0] >= rule.long_stem and scores[0] >= rule.coverage:
            return Hit(text.question_id, text.form, "stem", round(float(scores[0]), 3))
        sizes = np.array([unit.num_symbols for unit in self.units])
        # A stem of common n-grams says nothing; a short choice does, as all are asked for within one window.
        evidence = float(weights[0] * scores[0] + (sizes[1:] * scores[1:]).sum())
        choices = float(scores[1:].mean()) if len(self.units) > 1 else 1.0
        if min(scores[0], choices) < rule.coverage or evidence < rule.min_evidence:
            return None
        overlap = float((sizes * scores).sum() / sizes.sum())
        return Hit(text.question_id, text.form, "stem_and_choices", round(overlap, 3))


def build_question(text: ExamText, words: bool, rule: Rule) -> Question:
    """A question whose units are made of words or of characters, not yet in an index."""
    return Question(text, rule, [_unit(part, words, rule.n) for part in (text.stem, *text.choices)])
