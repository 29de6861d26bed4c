"""Which documents hold a question of an exam, word for word or nearly, in the exam's language or in translation?

In: exam folders (`exam_texts`) and texts. Out: for each text the questions found in it (`ExamIndex.find`), and a stage
that removes or flags such documents and writes TARGET/contamination.json: question -> the documents that hold it.
Invariant: the answer does not depend on spaces, width, punctuation, letter case, or the order of a question's choices.

How a question is found. A text becomes a row of symbols: letters and digits of its NFKC form, in lower case; single
characters for a question in Japanese script, words for one without. The stem and each choice of a question are units
of their own, so that shuffled or labelled choices change nothing. All n-grams of the units are hashed into one table.
An n-gram that more than `max_questions` questions share ("which of the following is correct") carries no weight and is
left out. Where n-grams of one question gather within a window of about twice its length (and room for a
note on each choice), each unit gets a score from 0
to 1: the share of its n-grams that stand there; a unit without any n-gram of weight must stand there whole.
* A stem of at least `long_stem` symbols of weight is enough by itself: its score must reach `coverage`.
* A shorter one needs its choices: the stem's score and the mean score of the choices must each reach `coverage`, and
  what was found must come to `min_evidence` symbols. A question that cannot reach that is listed as not testable.
"""

import csv
import functools
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from megatron_jmed.corpus.code_map import NUM_CODE_POINTS, PAGE, all_characters, code_map, joining_characters
from megatron_jmed.corpus.document import Document, read_documents
from megatron_jmed.corpus.manifest import MANIFEST_NAME, Manifest, load_manifest
from megatron_jmed.corpus.stage import Kept, Removed, Transform, merge_shards, run_stage
from megatron_jmed.corpus.words import MULTIPLIER, Codes, Hashes, word_hashes, word_spans
from megatron_jmed.errors import CorpusError
from megatron_jmed.native import _core

STAGE = "decontaminate"
REASON = "exam_question"
REPORT_NAME = "contamination.json"
META_FIELD = "contamination"

PAPER = re.compile(r"(\d{3}-[A-Z])(_translate)?\.jsonl")
NOT_QUESTIONS = re.compile(r"\d{3}-[A-Z]_metadata\.jsonl")
FIRST_JAPANESE = 0x3040  # hiragana; everything below that is a letter is an alphabet
NUM_CODES = 0x30000  # beyond: two blocks of rare Chinese characters, left out
RECOMPOSE = 0xFFFFFFFF
PIECE_CHARACTERS = 2**17
SLOT_BITS = 23
ANYWHERE = 2**31
EPSILON = 1e-6  # more than the rounding of a few sums
GRAM_BASE = 0xF1357AEA2E62A9C5

Action = Literal["remove", "flag"]
Form = Literal["original", "translation"]


# ---- exams


@dataclass(frozen=True)
class ExamText:
    """One question as one exam file words it; `choices` may be empty."""

    question_id: str
    form: Form
    stem: str
    choices: tuple[str, ...]


def exam_texts(folder: Path | str) -> list[ExamText]:
    """Read all questions below a folder, in the order of their files; CorpusError for what is no question.

    Known forms: IgakuQA papers (112-A.jsonl, its translation 112-A_translate.jsonl; 112-A_metadata.jsonl is left
    alone), JMMLU tables (SUBJECT.csv: question, four choices, answer; no header; question id SUBJECT/ROW), and any
    other .jsonl with `id`, `question`, `choices`. Other files are left alone.
    """
    root = Path(folder)
    if not root.is_dir():
        raise CorpusError(f"{root}: " + ("a file; give the folder that holds it" if root.exists() else "no such exam folder"))
    texts = [text for path in sorted(root.rglob("*")) if path.is_file() for text in _texts_of_file(path)]
    if not texts:
        raise CorpusError(f"{root} holds no exam; expected 112-A.jsonl, SUBJECT.csv, or .jsonl with id, question, choices")
    return texts


def _texts_of_file(path: Path) -> Iterator[ExamText]:
    if path.suffix == ".csv":
        yield from _read_table(path)
    elif paper := PAPER.fullmatch(path.name):
        end = "_en" if paper[2] else ""
        yield from _read_lines(path, "translation" if end else "original", f"problem_text{end}", f"choices{end}")
    elif path.suffix == ".jsonl" and not NOT_QUESTIONS.fullmatch(path.name):
        yield from _read_lines(path, "original", "question", "choices")


def _read_table(path: Path) -> Iterator[ExamText]:
    with open(path, encoding="utf-8-sig", newline="") as stream:
        for number, row in enumerate(csv.reader(stream), start=1):
            if len(row) != 6:
                raise CorpusError(f"{path}: row {number} has {len(row)} columns; expected question, 4 choices, answer")
            yield ExamText(f"{path.stem}/{number}", "original", row[0], tuple(row[1:5]))


def _read_lines(path: Path, form: Form, stem_field: str, choices_field: str) -> Iterator[ExamText]:
    id_field = "id" if stem_field == "question" else "problem_id"
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), start=1):
        try:
            row = orjson.loads(line)
            question_id, stem, choices = row[id_field], row[stem_field], row[choices_field]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            wanted = f"{id_field}, {stem_field}, {choices_field}"
            what = f"no field {error}" if isinstance(error, KeyError) else error
            raise CorpusError(f"{path}:{number}: {what}; expected an object with {wanted}") from None
        if isinstance(choices, dict):  # by their letters
            choices = list(choices.values())
        if not (isinstance(stem, str) and isinstance(choices, list) and all(isinstance(c, str) for c in choices)):
            raise CorpusError(f"{path}:{number}: {stem_field} must be a string, {choices_field} a list of strings")
        yield ExamText(str(question_id), form, stem, tuple(choices))


# ---- text to symbols to hashes


@functools.cache
def _code_table() -> Codes:
    """Code point -> code point of its normal form, 0 for what is left out, RECOMPOSE for what needs its neighbours."""
    table = np.zeros(NUM_CODES, np.uint32)
    characters, changing = all_characters(), _changing_pages()
    for first in range(0, NUM_CODES, PAGE):
        page = characters[first : first + PAGE]
        if first not in changing:
            table[first : first + PAGE] = [ord(character) if character.isalnum() else 0 for character in page]
            continue
        for code, character in enumerate(page, start=first):
            normal = _normal(character)
            if unicodedata.combining(character) or character in "ﾞﾟ":
                table[code] = RECOMPOSE
            elif any(c.isalnum() for c in normal):
                table[code] = ord(normal) if len(normal) == 1 else RECOMPOSE
    return table


@functools.cache
def _changing_pages() -> set[int]:
    """The pages with a character that is not its own normal form, or joins others."""
    characters = all_characters()
    lowered = {first for first in range(0, len(characters), PAGE) if not _is_lower(characters[first : first + PAGE])}
    return lowered | joining_characters(characters)[1]


def _is_lower(text: str) -> bool:
    return text.lower() == text


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def symbol_codes(text: str) -> Codes:
    """The normal form of a text, one code point for each of its letters and digits and 0 for everything else."""
    codes = _look_up(text)
    if (codes == RECOMPOSE).any():
        codes = _normal_codes(text)
    return codes


def _normal_codes(text: str) -> Codes:
    """The codes of a text by way of its whole normal form."""
    codes = _look_up(_normal(text))
    codes[codes == RECOMPOSE] = 0
    return codes


def _look_up(text: str) -> Codes:
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    table = _code_table()
    return table[points] if not points.size or points.max() < NUM_CODES else table[np.where(points < NUM_CODES, points, 0)]


@functools.cache
def _symbol_map() -> "_core.CodeMap | None":
    """`_normal_codes` for the native core; None where there is none.

    `symbol_codes` goes by the whole normal form only if a character of the text needs its neighbours. Where a character
    would come out otherwise without that, or joins others untold, its texts are not screened: a few rare ones, and the
    capital sigma, whose lower case depends on where the word ends.
    """
    characters, table = all_characters(), _code_table().tolist() + [0] * (NUM_CODE_POINTS - NUM_CODES)
    unsure = {character for character in joining_characters(characters)[0] if table[ord(character)] != RECOMPOSE}
    for character in (c for first in _changing_pages() for c in characters[first : first + PAGE]):
        if (normal := _normal(character)) == character:
            continue
        code, codes = table[ord(character)], {table[ord(c)] % RECOMPOSE for c in normal}
        if (code != RECOMPOSE and codes != {code}) or "Σ" in unicodedata.normalize("NFKC", character):
            unsure.add(character)
    return code_map(_normal_symbols, frozenset(unsure))


def _normal_symbols(text: str) -> str:
    return _normal_codes(text).astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def gram_hashes(symbols: Hashes, n: int) -> Hashes:
    """A polynomial hash of each n consecutive symbols, by doubling; empty if there are fewer than n."""
    if symbols.size < n:
        return np.zeros(0, np.uint64)
    total, width, block, block_width = None, 0, symbols, 1
    while True:
        power = np.uint64(pow(GRAM_BASE, block_width, 2**64))
        if n & block_width:
            size = symbols.size - width - block_width + 1
            total = block if total is None else total[:size] * power + block[width : width + size]
            width += block_width
        if width == n:
            return total
        block = block[:-block_width] * power + block[block_width:]
        block_width *= 2


# ---- the index


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
class _Unit:
    symbols: str  # as `_joined` puts them
    num_symbols: int
    hashes: Hashes  # distinct


@dataclass
class _Question:
    text: ExamText
    stem: _Unit
    choices: list[_Unit]
    first_unit: int = 0
    num_grams: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # with weight, by unit
    num_needed: float = 0.0

    @property
    def units(self) -> list[_Unit]:
        return [self.stem, *self.choices]

    @property
    def window(self) -> int:
        return 2 * sum(unit.num_symbols for unit in self.units) + 60 + 40 * len(self.choices)


class _Table:
    """The questions of one kind of symbol, and where in them each n-gram of weight stands."""

    def __init__(self, texts: Iterable[ExamText], words: bool, rule: Rule) -> None:
        self.words, self.rule = words, rule
        self.questions = [self._question(text) for text in texts]
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
            question.first_unit, last = first, first + len(question.units)
            question.num_grams, first = num_grams[first:last], last
            # What any verdict below needs at least of the stem, or of all units where the stem has no weight.
            of_stem = rule.coverage * (question.num_grams[0] or question.num_grams.sum() / 3)
            question.num_needed = max(of_stem, self._least_grams(question))
            if not self._testable(question):
                self.not_testable.append(question.text)
        self.num_needed = np.array([question.num_needed for question in self.questions])
        self.overlap = 2 * max((question.window for question in self.questions), default=0) * (6 if words else 1)

    def _least_grams(self, question: _Question) -> float:
        """How many n-grams of weight any verdict but that of a long stem needs: the stem's share, and the cheapest choices'.

        A choice without any n-gram of weight may count in full; of the others the mean score asks for the rest, which
        costs least where there are few n-grams.
        """
        stem, *choices = question.num_grams.tolist()
        if stem and stem + self.rule.n - 1 >= self.rule.long_stem:
            return self.rule.coverage * stem
        needed, left = self.rule.coverage * stem, self.rule.coverage * len(choices) - EPSILON
        for num_grams in sorted(choices):
            share = min(1.0, max(0.0, left))
            needed, left = needed + share * num_grams, left - 1
        return needed - EPSILON

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

    def _question(self, text: ExamText) -> _Question:
        return _Question(text, self._unit(text.stem), [self._unit(choice) for choice in text.choices])

    def _unit(self, text: str) -> _Unit:
        codes = symbol_codes(text)
        symbols, _ = self._symbols(codes)
        return _Unit(_joined(codes, self.words), symbols.size, np.unique(gram_hashes(symbols, self.rule.n)))

    def _symbols(self, codes: Codes) -> tuple[Hashes, NDArray[np.int64]]:
        """The symbols of a text, and where each begins in `codes`."""
        if self.words:
            starts, ends = word_spans(codes != 0)
            return word_hashes(codes, starts, ends), starts
        positions = np.flatnonzero(codes)
        return codes[positions].astype(np.uint64), positions

    def _testable(self, question: _Question) -> bool:
        return self._verdict(question, np.ones(len(question.units))) is not None and bool(question.num_grams.any())

    def native(self) -> "_core.GramTable":
        """What the screen needs of it."""
        # `_judge` looks at one window; a stem without weight is found by its symbols, and its n-grams may be anywhere.
        windows = [question.window if question.num_grams[0] else ANYWHERE for question in self.questions]
        questions = self.question_of_unit[self.postings]
        return _core.GramTable(self.rule.n, self.keys, self.begins, questions, self.num_needed, windows)

    def find(self, codes: Codes) -> Iterator[Hit]:
        """The questions in one piece of text."""
        symbols, starts = self._symbols(codes)
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
        question: _Question,
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
        text = _joined(codes[begin:end], self.words)
        for i, unit in enumerate(question.units):
            if not question.num_grams[i]:
                scores[i] = unit.symbols in text
        return self._verdict(question, scores)

    def _verdict(self, question: _Question, scores: NDArray[np.float64]) -> Hit | None:
        rule, text = self.rule, question.text
        weights = np.where(question.num_grams > 0, question.num_grams + rule.n - 1, 0)
        if weights[0] >= rule.long_stem and scores[0] >= rule.coverage:
            return Hit(text.question_id, text.form, "stem", round(float(scores[0]), 3))
        sizes = np.array([unit.num_symbols for unit in question.units])
        # A stem of common n-grams says nothing; a short choice does, as all are asked for within one window.
        evidence = float(weights[0] * scores[0] + (sizes[1:] * scores[1:]).sum())
        choices = float(scores[1:].mean()) if question.choices else 1.0
        if min(scores[0], choices) < rule.coverage or evidence < rule.min_evidence:
            return None
        overlap = float((sizes * scores).sum() / sizes.sum())
        return Hit(text.question_id, text.form, "stem_and_choices", round(overlap, 3))


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
        if _symbol_map() is None:
            return None
        tables = [table.native() for table in (self.characters, self.words)]
        letters = 2 * self.words.rule.min_evidence
        return _core.Screen(*tables, FIRST_JAPANESE, letters, step=PIECE_CHARACTERS, overlap=self._overlap)

    def may_hold(self, texts: list[str]) -> NDArray[np.bool_]:
        """Whether enough of one question's n-grams stand together in each text, which every finding needs."""
        if self._screen is None:
            return np.ones(len(texts), np.bool_)
        return self._screen.may_hold(_symbol_map(), texts)

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


def is_japanese(text: str) -> bool:
    """Whether at least a tenth of a text's letters and digits are kana or Chinese characters (a translation may keep some)."""
    codes = symbol_codes(text)
    return 10 * np.count_nonzero(codes >= FIRST_JAPANESE) >= max(1, np.count_nonzero(codes))


def _slot(hashes: Hashes) -> Hashes:
    return (hashes * MULTIPLIER) >> np.uint64(64 - SLOT_BITS)


def _joined(codes: Codes, words: bool) -> str:
    """Symbols as a string in which a unit can be looked for: characters as they are, words each between spaces."""
    if not words:
        return codes[codes != 0].tobytes().decode("utf-32-le")
    text = np.where(codes == 0, np.uint32(32), codes).astype(np.uint32).tobytes().decode("utf-32-le")
    return f" {' '.join(text.split())} "


# ---- the stage


def decontaminate(
    source: Path,
    target: Path,
    exams: Sequence[Path],
    action: Action = "remove",
    overwrite: bool = False,
    shard: tuple[int, int] | None = None,
    **words: Any,
) -> Manifest:
    """Remove (or flag in `meta`) the documents of `source` that hold a question, and write TARGET/contamination.json.

    A shard has no such report: it is about the whole corpus, so `merge_decontaminated` writes it. `words` go to
    `run_stage`: workers, text_field, max_bad, progress, licence.
    """
    texts = _all_texts(exams)
    settings = {
        "action": action,
        "exams": [path.name for path in map(Path, exams)],
        "exams_sha256": _exams_sha256(texts),
        "rules": {name: asdict(rule) for name, rule in RULES.items()},
    }
    make = functools.partial(make_transform, tuple(map(Path, exams)), action)
    if shard:
        return run_stage(STAGE, source, target, settings, make, overwrite=overwrite, shard=shard, **words)
    _delete_old_report(Path(target), overwrite)
    manifest = run_stage(STAGE, source, target, settings, make, overwrite=overwrite, **words)
    return _with_report(Path(target), manifest, texts)


def merge_decontaminated(
    target: Path, exams: Sequence[Path], overwrite: bool = False, max_bad: int | None = None
) -> Manifest:
    """Publish the shards in TARGET as one run with these exams would have, with its report."""
    target, texts = Path(target), _all_texts(exams)
    shards = [path.parent for path in sorted(target.glob(f"shard-*-of-*/{MANIFEST_NAME}"))]
    is_left = (target / MANIFEST_NAME).exists() and not overwrite
    for folder in shards or ([target] if is_left else []):
        manifest = load_manifest(folder)
        if manifest.stage != STAGE:
            raise CorpusError(f"{folder} is the result of stage {manifest.stage!r}; merge it with its own tool")
        if manifest.settings["exams_sha256"] != _exams_sha256(texts):
            there = ", ".join(manifest.settings["exams"])
            raise CorpusError(f"{folder} was made with other exams ({there}, or other questions in them); give the same --exams")
    return _with_report(target, merge_shards(target, overwrite, max_bad, (REPORT_NAME, f"{REPORT_NAME}.tmp")), texts)


def _exams_sha256(texts: Sequence[ExamText]) -> str:
    lines = "\n".join(json.dumps(asdict(text), ensure_ascii=False, sort_keys=True) for text in texts)
    return hashlib.sha256(lines.encode()).hexdigest()


def _delete_old_report(target: Path, overwrite: bool) -> None:
    """Unless the target is finished and stays: no report may stand beside documents that it is not about."""
    # It is no output of the runner either, which refuses a folder with files it does not know.
    if overwrite or not (target / MANIFEST_NAME).exists():
        for old in (REPORT_NAME, f"{REPORT_NAME}.tmp"):
            (target / old).unlink(missing_ok=True)


def _with_report(target: Path, manifest: Manifest, texts: Sequence[ExamText]) -> Manifest:
    if not (target / REPORT_NAME).exists():
        write_report(target, texts, manifest.settings["action"])
    return manifest


def _all_texts(exams: Sequence[Path]) -> list[ExamText]:
    texts = [text for folder in exams for text in exam_texts(folder)]
    twice = [key for key, num in Counter((text.question_id, text.form) for text in texts).items() if num > 1]
    if twice:
        raise CorpusError(f"{len(twice)} question(s) occur twice in the exams, first {twice[0][0]} ({twice[0][1]})")
    return texts


def make_transform(exams: Sequence[Path], action: Action) -> Transform:
    """What each worker does with a document."""
    index = ExamIndex(_all_texts(exams))
    return functools.partial(_treat, index, action)


def _treat(index: ExamIndex, action: Action, document: Document) -> Kept | Removed:
    hits = index.find(document.text)
    if not hits:
        return Kept(document)
    found = [asdict(hit) for hit in hits]
    flagged = replace(document, meta={**document.meta, META_FIELD: found})
    if action == "flag":
        return Kept(flagged, {"flagged": 1})
    return Removed(flagged, REASON, ", ".join(hit.question_id for hit in hits))


def write_report(target: Path, texts: Sequence[ExamText], action: Action) -> None:
    """Collect the findings that the stage left with its documents into TARGET/contamination.json."""
    removed = target / "removed" / f"{REASON}.jsonl.zst"
    # The kept documents are read only if findings may stand there: they are nearly all of the corpus.
    places = sorted((target / "documents").rglob("*.jsonl.zst")) if action == "flag" else [removed] if removed.exists() else []
    questions: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in places:
        for document in read_documents(path):
            meta = document.meta["meta"] if path == removed else document.meta
            for hit in meta.get(META_FIELD) or ():
                where = {"document": document.id, "source": document.source, "removed": path == removed}
                questions[hit["question_id"]].append({**where, **{k: v for k, v in hit.items() if k != "question_id"}})
    index = ExamIndex(texts)
    report = {
        "format_version": 1,
        "num_questions": len(index.question_ids),
        "question_ids": index.question_ids,
        "not_testable": [{"question_id": text.question_id, "form": text.form} for text in index.not_testable],
        "questions": dict(sorted(questions.items())),
    }
    temporary = target / f"{REPORT_NAME}.tmp"
    temporary.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, target / REPORT_NAME)
