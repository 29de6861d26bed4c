"""Which questions does an exam ask, by which rules is it passed, and which questions may serve as solved examples?

In: a folder of year folders (`igakuqa`), a file, or a folder of files (`exam_forms`). Out: `Exam`, its questions in the order of
the files. A file that says by its name to be for training (train, dev, val, validation: `train.jsonl`, `anatomy_dev.csv`) is
never asked; its questions are the solved examples. Invariant: ids are unique, and no question is skipped.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.exam_forms import GROUND_TRUTH, read_file
from megatron_jmed.evaluate.igakuqa import is_year_layout, load_years, rules_of
from megatron_jmed.evaluate.question import ExamRules, Question
from megatron_jmed.evaluate.rows import read_text, refuse

RULES_NAME = "rules.json"
FOR_TRAINING = re.compile(r"(?:^|[_.-])(?:train|dev|val|validation)$")
SUFFIXES = (".csv", ".json", ".jsonl")


@dataclass(frozen=True)
class Exam:
    """The questions asked, the questions of the training split, and the rules (year -> rules, or None -> rules for all)."""

    questions: list[Question]
    training: list[Question]
    rules: dict[int | None, ExamRules]


def load_exam(path: Path | str, years: Sequence[int] | None = None) -> Exam:
    """Read the exam at `path`, or its questions of the given `years`; ExamError when anything is missing or malformed."""
    path = Path(path)
    if not path.exists():
        raise ExamError(f"{path}: no such exam; give a folder of year folders (2018, 2019, ...), a file, or a folder of files")
    if path.is_dir() and is_year_layout(path):
        questions = _unique(load_years(path, years))
        found = {q.year: rules_of(q.year, q.exam) for q in questions}
        return Exam(questions, [], {year: rules for year, rules in found.items() if rules})
    files = [path] if path.is_file() else _files_in(path)
    asked = [file for file in files if path.is_file() or not FOR_TRAINING.search(file.stem)]
    training = [file for file in files if file not in asked]
    if not asked:
        raise ExamError(f"{path}: only files for training ({training[0].name}); expected a test file beside them, or name one file")
    questions = _unique(placed for file in asked for placed in read_file(file))
    if years:
        questions = _of_years(path, questions, years)
    rules = _own_rules(path if path.is_dir() else path.parent)
    return Exam(questions, _unique(p for file in training for p in read_file(file)), {None: rules} if rules else {})


def _files_in(folder: Path) -> list[Path]:
    files = [f for f in sorted(folder.iterdir()) if f.suffix in SUFFIXES and f.name not in (RULES_NAME, GROUND_TRUTH)]
    if not files:
        raise ExamError(f"{folder}: no exam here; expected 2018/112-A.jsonl and so on, or files ending in {', '.join(SUFFIXES)}")
    return files


def _of_years(path: Path, questions: list[Question], years: Sequence[int]) -> list[Question]:
    missing = sorted(set(years) - {q.year for q in questions})
    if missing:
        raise ExamError(f"{path}: no question of {', '.join(map(str, missing))}")
    return [q for q in questions if q.year in years]


def _unique(placed: Iterable[tuple[str, Question]] | Iterator[tuple[str, Question]]) -> list[Question]:
    places: dict[str, str] = {}
    questions = []
    for place, question in placed:
        if question.id in places:
            refuse(place, "id", f"{question.id} occurs twice; the first is at {places[question.id]}")
        places[question.id] = place
        questions.append(question)
    return questions


def _own_rules(folder: Path) -> ExamRules | None:
    """The rules.json beside one's own exam."""
    path = folder / RULES_NAME
    if not path.exists():
        return None
    try:
        words: Any = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ExamError(f"{path}: not JSON ({error})") from None
    known = {field.name: field.type for field in fields(ExamRules)}
    if not isinstance(words, dict) or set(words) - set(known):
        unknown = ", ".join(sorted(set(words) - set(known))) if isinstance(words, dict) else "no object"
        raise ExamError(f"{path}: {unknown}; choose from {', '.join(known)}")
    for name, value in words.items():
        if name != "source" and (isinstance(value, bool) or not isinstance(value, int | float | None)):
            refuse(str(path), name, f"{value!r}; expected a number")
    return ExamRules(**words)
