"""Which questions does an exam ask, and which answers count as right?

In: a folder in the layout of IgakuQA (the Japanese National Medical Examination): a folder of year folders, or one
year folder, holding `NNN-X.jsonl` (examination number, paper) and optionally `NNN-X_metadata.jsonl`. Translations
(`_translate`) are left alone. Out: a list of `Question`, in the order of year, paper and line.
Invariant: every line of every paper becomes exactly one `Question`, or the exam is refused with file, line and field.

Three things the data ask of the reader:
* A question with no choices wants a number; its `answers` hold the number's text and `kind` is "numeric".
* Questions worth 0 points were withdrawn by the ministry. They stay questions (and count for accuracy, as in the
  published scores), but give no points.
* Forbidden choices ("kinki", acts that would harm the patient) come in mixed spellings: full width, joined, spaced.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from megatron_jmed.errors import ExamError

EXAM_NAME = "igakuqa"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PAPER_FILE = re.compile(r"(\d{3})-([A-Z])\.jsonl")
YEAR_FOLDER = re.compile(r"\d{4}")

# What the ministry decided after the exam and the answer key cannot say; the published scores follow the same rules.
ALWAYS_CORRECT = frozenset({"116A71"})  # every candidate was given the point
SEVERAL_ACCEPTED = {"112B30": ("a", "d")}  # either answer alone was accepted; the data say "a or d"

Kind = Literal["single", "multiple", "numeric"]


@dataclass(frozen=True)
class Question:
    """One question; picking exactly the letters of any one set in `answers` is right."""

    id: str
    exam: str
    year: int
    text: str
    choices: tuple[str, ...]
    answers: tuple[frozenset[str], ...]
    points: int
    text_only: bool
    always_correct: bool = False
    category: str = "unknown"
    forbidden: frozenset[str] = frozenset()

    @property
    def num_to_pick(self) -> int:
        """How many choices the question asks for (0 when it wants a number)."""
        return len(self.answers[0]) if self.choices else 0

    @property
    def kind(self) -> Kind:
        """How the question is answered: with one letter, several letters, or a number."""
        if not self.choices:
            return "numeric"
        return "multiple" if self.num_to_pick > 1 else "single"

    @property
    def paper(self) -> str:
        """The paper's letter, as in 112A1 -> A."""
        return self.id[3]


def load_exam(folder: Path | str, years: Sequence[int] | None = None) -> list[Question]:
    """Read all questions of `folder`, or of the given `years`; ExamError when anything is missing or malformed."""
    questions: dict[str, Question] = {}
    for paper in _find_papers(Path(folder), years):
        for place, question in _read_paper(paper):
            if question.id in questions:
                _refuse(place, "problem_id", f"{question.id} is also in the year {questions[question.id].year}")
            questions[question.id] = question
    return list(questions.values())


def _find_papers(folder: Path, years: Sequence[int] | None) -> list[Path]:
    """The question files to read, ordered by year and paper."""
    if not folder.is_dir():
        raise ExamError(f"{folder}: no such folder; give a folder of year folders (2018, 2019, ...) or one year folder")
    candidates = [folder.resolve(), *sorted(folder.iterdir())]
    year_folders = [f for f in candidates if f.is_dir() and YEAR_FOLDER.fullmatch(f.name)]
    papers = {int(f.name): files for f in year_folders if (files := _papers_in(f))}
    if not papers:
        raise ExamError(f"{folder}: no exam here; expected 2018/112-A.jsonl and so on, or 112-A.jsonl in a folder 2018")
    missing = sorted(set(years or ()) - set(papers))
    if missing:
        raise ExamError(f"{folder}: no exam of {_listed(missing)}; the folder holds {_listed(sorted(papers))}")
    return [file for year in sorted(papers) if not years or year in years for file in papers[year]]


def _papers_in(year_folder: Path) -> list[Path]:
    return sorted(f for f in year_folder.iterdir() if PAPER_FILE.fullmatch(f.name))


def _read_paper(path: Path) -> Iterator[tuple[str, Question]]:
    """The questions of one file, each with its place (file:line)."""
    metadata_path = path.with_name(f"{path.stem}_metadata.jsonl")
    metadata = _rows_by_id(metadata_path) if metadata_path.exists() else None
    year, prefix = int(path.parent.resolve().name), path.stem.replace("-", "")
    for question_id, (place, row) in (rows := _rows_by_id(path)).items():
        if not re.fullmatch(rf"{prefix}\d+", question_id):
            _refuse(place, "problem_id", f"{question_id!r} is not of this paper; expected {prefix}1, {prefix}2, ...")
        if metadata is not None and question_id not in metadata:
            _refuse(place, "problem_id", f"{question_id} has no line in {metadata_path.name}")
        yield place, _build_question(place, row, year, metadata[question_id] if metadata else None)
    for question_id, (place, _) in (metadata or {}).items():
        if question_id not in rows:
            _refuse(place, "problem_id", f"{question_id} is no question of {path.name}")


def _rows_by_id(path: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """problem_id -> (place, row) of a file in which every id occurs once."""
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    for place, row in _rows(path):
        question_id = _text(place, row, "problem_id")
        if question_id in rows:
            _refuse(place, "problem_id", f"{question_id} occurs twice; the first is at {rows[question_id][0]}")
        rows[question_id] = (place, row)
    return rows


def _build_question(
    place: str, row: dict[str, Any], year: int, metadata: tuple[str, dict[str, Any]] | None
) -> Question:
    question_id = row["problem_id"]
    choices = _texts(place, row, "choices")
    if len(choices) == 1 or len(choices) > len(LETTERS):
        _refuse(place, "choices", f"{len(choices)} choices; expected none (a number is asked) or 2 to {len(LETTERS)}")
    if "text_only" not in row or not isinstance(row["text_only"], bool):
        _refuse(place, "text_only", f"{row.get('text_only')!r}; expected true or false")
    meta_place, meta = metadata if metadata else (place, {})
    return Question(
        id=question_id,
        exam=EXAM_NAME,
        year=year,
        text=_text(place, row, "problem_text"),
        choices=choices,
        answers=_answers(place, row, len(choices)),
        points=_points(place, row),
        text_only=row["text_only"],
        always_correct=question_id in ALWAYS_CORRECT,
        category=(_text(meta_place, meta, "category") if meta else "") or "unknown",
        forbidden=_forbidden(meta_place, meta, len(choices)) if meta else frozenset(),
    )


def _answers(place: str, row: dict[str, Any], num_choices: int) -> tuple[frozenset[str], ...]:
    """The accepted answers; checked against the choices unless a number is asked."""
    accepted = SEVERAL_ACCEPTED.get(row["problem_id"])
    answers = tuple(frozenset(a) for a in accepted) if accepted else (frozenset(_texts(place, row, "answer")),)
    given = frozenset[str]().union(*answers)
    if not given:
        _refuse(place, "answer", "empty; expected at least one letter or number")
    unknown = sorted(given - set(LETTERS[:num_choices])) if num_choices else []
    if unknown:
        last = LETTERS[num_choices - 1]
        _refuse(place, "answer", f"{_listed(unknown)} is none of the {num_choices} choices a to {last}")
    return answers


def _forbidden(place: str, metadata: dict[str, Any], num_choices: int) -> frozenset[str]:
    """Letters of the harmful choices, whatever their spelling: "ｂ", " e" and "bde" all occur."""
    spelled = unicodedata.normalize("NFKC", "".join(_texts(place, metadata, "kinki")))
    letters = frozenset(spelled) - frozenset(" ")
    unknown = sorted(letters - set(LETTERS[:num_choices]))
    if unknown:
        _refuse(place, "kinki", f"{_listed(unknown)} is none of the {num_choices} choices")
    return letters


def _points(place: str, row: dict[str, Any]) -> int:
    points = str(row.get("points"))
    if not re.fullmatch(r"\d+", points):
        _refuse(place, "points", f"{row.get('points')!r}; expected a whole number such as 1")
    return int(points)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file, each with its place (file:line); an empty file or a broken line is refused."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ExamError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise ExamError(f"{path}: empty; expected one JSON object a line")
    for number, line in enumerate(lines, start=1):
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ExamError(f"{place}: not JSON ({error}); expected one JSON object a line") from None
        if not isinstance(row, dict):
            raise ExamError(f"{place}: a {type(row).__name__}; expected one JSON object a line")
        yield place, row


def _text(place: str, row: dict[str, Any], field: str) -> str:
    if not isinstance(row.get(field), str):
        _refuse(place, field, f"{row.get(field)!r}; expected a text")
    return row[field]


def _texts(place: str, row: dict[str, Any], field: str) -> tuple[str, ...]:
    value = row.get(field)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        _refuse(place, field, f"{value!r}; expected a list of texts")
    return tuple(value)


def _listed(items: Sequence[object]) -> str:
    return ", ".join(str(item) for item in items)


def _refuse(place: str, field: str, problem: str) -> NoReturn:
    raise ExamError(f"{place}: {field}: {problem}")
