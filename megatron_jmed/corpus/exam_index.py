"""Which questions of some exams stand in a text, word for word or nearly?

In: `ExamText`s, then texts. Out: for each text the questions found in it (`ExamIndex.find`).
Invariant: the answer does not depend on spaces, width, punctuation, letter case, or the order of a question's choices.

How a question is found. A text becomes a row of symbols (symbols.py): characters for a question in Japanese script,
words for one without. The stem and each choice of a question are units of their own, so that shuffled or labelled
choices change nothing. All n-grams of the units are hashed into one table.
An n-gram that more than `max_questions` questions share ("which of the following is correct") carries no weight and is
left out. Where n-grams of one question gather within a window of about twice its length (and room for a note on each
choice), the question is judged (exam_question.py) by the share of each unit's n-grams that stand there.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_jmed.corpus.exam_question import RULES, Hit, Question, Rule, build_question
from megatron_jmed.corpus.exam_texts import ExamText
from megatron_jmed.corpus.symbols import (
    FIRST_JAPANESE,
    gram_hashes,
    is_japanese,
    joined_symbols,
    symbol_codes,
    symbol_hashes,
    symbol_map,
)
from megatron_jmed.corpus.words import MULTIPLIER, Codes, Hashes
from megatron_jmed.native import _core

PIECE_CHARACTERS = 2**17
SLOT_BITS = 23
ANYWHERE = 2**31


class _Table:
    """The questions of one kind of symbol, and where in them each n-gram of weight stands."""

    def __init__(self, texts: Iterable[ExamText], words: bool, rule: Rule) -> None:
        self.words, self.rule = words, rule
        self.questions = [build_question(text, words, rule) for text in texts]
        self.not_testable: list[ExamText] = []
        units = [unit for question in self.questions for unit in question.units]
        of_unit = [i for i, question in enumerate(self.questions) for _ in question.units]
        hashes = np.concatenate([np.zeros(0, np.uint64), *(unit.hashes for unit in units)])
        unit_ids = np.repeat(np.arange(len(units)), [unit.hashes.size for unit in units])
        ids = [question.text.question_id for question in self.questions]
        _, number = np.unique(ids, return_inverse=True) if ids else (None, np.zeros(0, np.int64))
        self.question_of_unit = np.array(of_unit, np.int64)
        light = self._light(hashes, number[self.question_of_unit[unit_ids]] if ids else unit_ids)
        order = np.argsort(hashes[light], kind="stable")
        self.keys, self.begins = np.unique(hashes[light][order], return_index=True)
        self.begins = np.r_[self.begins, light.sum()].astype(np.int64)
        self.postings = unit_ids[light][order]
        self.slots = np.zeros(1 << SLOT_BITS, np.bool_)
        self.slots[_slot(self.keys)] = True
        num_grams = np.bincount(self.postings, minlength=len(units))
        first = 0
        for question in self.questions:
            last = first + len(question.units)
            question.weigh(first, num_grams[first:last])
            first = last
            if not question.is_testable():
                self.not_testable.append(question.text)
        self.num_needed = np.array([question.num_needed for question in self.questions])
        self.overlap = 2 * max((question.window for question in self.questions), default=0) * (6 if words else 1)

    def _light(self, hashes: Hashes, questions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which n-grams few enough questions share."""
        if not hashes.size:
            return np.zeros(0, np.bool_)
        order = np.lexsort((questions, hashes))
        new_gram = np.r_[True, hashes[order][1:] != hashes[order][:-1]]
        new_pair = new_gram | (np.diff(questions[order], prepend=-1) != 0)
        group = np.cumsum(new_gram) - 1
        light = np.zeros(hashes.size, np.bool_)
        light[order] = (np.bincount(group[new_pair]) <= self.rule.max_questions)[group]
        return light

    def native(self) -> "_core.GramTable":
        """What the screen needs of it."""
        # `_judge` looks at one window; a stem without weight is found by its symbols, and its n-grams may be anywhere.
        windows = [question.window if question.num_grams[0] else ANYWHERE for question in self.questions]
        questions = self.question_of_unit[self.postings]
        return _core.GramTable(self.rule.n, self.keys, self.begins, questions, self.num_needed, windows)

    def find(self, codes: Codes) -> Iterator[Hit]:
        """The questions in one piece of text."""
        symbols, starts = symbol_hashes(codes, self.words)
        hashes = gram_hashes(symbols, self.rule.n)
        positions = np.flatnonzero(self.slots[_slot(hashes)])
        if not positions.size:
            return
        keys = np.minimum(np.searchsorted(self.keys, hashes[positions]), self.keys.size - 1)
        same = self.keys[keys] == hashes[positions]
        positions, keys = positions[same], keys[same]
        if not positions.size:
            return
        counts = self.begins[keys + 1] - self.begins[keys]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        units = self.postings[np.repeat(self.begins[keys], counts) + within]
        positions, keys = np.repeat(positions, counts), np.repeat(keys, counts)
        questions = self.question_of_unit[units]
        # Chance hits are many: only questions with enough of them are looked at one by one.
        enough = (np.bincount(questions, minlength=self.num_needed.size) >= self.num_needed)[questions]
        if not enough.any():
            return
        positions, keys, units, questions = positions[enough], keys[enough], units[enough], questions[enough]
        order = np.argsort(questions, kind="stable")
        numbers, begins = np.unique(questions[order], return_index=True)
        for number, some in zip(numbers, np.split(order, begins[1:]), strict=True):
            hit = self._judge(self.questions[number], positions[some], keys[some], units[some], codes, starts)
            if hit:
                yield hit

    def _judge(
        self,
        question: Question,
        positions: NDArray[np.int64],
        keys: NDArray[np.int64],
        units: NDArray[np.int64],
        codes: Codes,
        starts: NDArray[np.int64],
    ) -> Hit | None:
        """Score a question where most of its n-grams gather."""
        width = question.window
        ends = np.searchsorted(positions, positions + width)
        best = int(np.argmax(ends - np.arange(positions.size)))
        inside = slice(best, ends[best])
        distinct = np.unique(keys[inside] * question.num_grams.size + units[inside] - question.first_unit)
        found = np.bincount(distinct % question.num_grams.size, minlength=question.num_grams.size)
        scores = found / np.maximum(question.num_grams, 1)
        first, last = positions[best] - width // 2, positions[ends[best] - 1] + width // 2
        begin, end = starts[max(0, first)], starts[last] if last < starts.size else codes.size
        text = joined_symbols(codes[begin:end], self.words)
        for i, unit in enumerate(question.units):
            if not question.num_grams[i]:
                scores[i] = unit.symbols in text
        return question.verdict(scores)



class ExamIndex:
    """All questions of some exams, ready to be looked for in texts of any language."""

    def __init__(self, texts: Sequence[ExamText], rules: dict[str, Rule] | None = None) -> None:
        rules = rules or RULES
        japanese = [text for text in texts if is_japanese(text.stem)]
        alphabetic = [text for text in texts if not is_japanese(text.stem)]
        self.characters = _Table(japanese, False, rules["characters"])
        self.words = _Table(alphabetic, True, rules["words"])
        self.question_ids = sorted({text.question_id for text in texts})
        self.not_testable = [*self.characters.not_testable, *self.words.not_testable]
        self._overlap = max(self.characters.overlap, self.words.overlap)

    @functools.cached_property
    def _screen(self) -> "_core.Screen | None":
        """What says without Python of most texts that no question can stand in them; None where there is no core."""
        if symbol_map() is None:
            return None
        tables = [table.native() for table in (self.characters, self.words)]
        letters = 2 * self.words.rule.min_evidence
        return _core.Screen(*tables, FIRST_JAPANESE, letters, step=PIECE_CHARACTERS, overlap=self._overlap)

    def may_hold(self, texts: list[str]) -> NDArray[np.bool_]:
        """Whether enough of one question's n-grams stand together in each text, which every finding needs."""
        if self._screen is None:
            return np.ones(len(texts), np.bool_)
        return self._screen.may_hold(symbol_map(), texts)

    def find(self, text: str) -> list[Hit]:
        """The questions that stand in a text, each at most once in each form, sorted; memory does not grow with the text."""
        if not self.may_hold([text])[0]:
            return []
        best: dict[tuple[str, str], Hit] = {}
        for begin in range(0, max(1, len(text)), PIECE_CHARACTERS):
            codes = symbol_codes(text[begin : begin + PIECE_CHARACTERS + self._overlap])
            for table in self._tables(codes):
                for hit in table.find(codes):
                    key = (hit.question_id, hit.form)
                    best[key] = max(best.get(key, hit), hit, key=lambda h: h.overlap)
        return [best[key] for key in sorted(best)]

    def _tables(self, codes: Codes) -> Iterator[_Table]:
        """What a text without the script cannot hold need not be looked for; a declared language may be wrong."""
        if self.characters.questions and (codes >= FIRST_JAPANESE).any():
            yield self.characters
        # Fewer letters cannot make up enough words.
        letters = np.count_nonzero(codes) - np.count_nonzero(codes >= FIRST_JAPANESE)
        if self.words.questions and letters >= 2 * self.words.rule.min_evidence:
            yield self.words


def _slot(hashes: Hashes) -> Hashes:
    return (hashes * MULTIPLIER) >> np.uint64(64 - SLOT_BITS)
