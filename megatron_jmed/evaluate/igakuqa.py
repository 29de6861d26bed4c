"""Which questions do the Japanese national exams ask, as IgakuQA (physicians) and YakugakuQA (pharmacists) publish them?

In: a folder of year folders, or one year folder, holding `NNN-X.jsonl` (examination number, paper), and optionally
`NNN-X_metadata.jsonl` (IgakuQA) or `metadata_NNN.jsonl` (YakugakuQA). Translations (`_translate`) are left alone.
Out: `Question`s in the order of year, paper and line.
Invariant: every line of every paper becomes exactly one `Question`, or the exam is refused with file, line and field.

Four things the data ask of the reader:
* A question with no choices wants a number.
* Questions worth 0 points were withdrawn by the ministry. They stay questions (and count for accuracy, as in the
  published scores), but give no points. Where there is no right answer at all (解なし), nothing is scored.
* Forbidden choices ("kinki", acts that would harm the patient) come in mixed spellings: full width, joined, spaced.
* YakugakuQA numbers its choices from 1, writes "any two of these" (いずれか2つ) into the last answer, and has questions
  whose choices are pictures.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.question import LETTERS, ExamRules, Question, plain
from megatron_jmed.evaluate.rows import (
    Row,
    checked_choices,
    flag_of,
    json_lines,
    letters_of,
    number_answer,
    refuse,
    text_of,
    texts_of,
    whole_number_of,
)

PAPER_FILE = re.compile(r"(\d{3})-([A-Z])\.jsonl")
YEAR_FOLDER = re.compile(r"\d{4}")
ESSENTIAL_PAPERS = frozenset("BE")  # of the physicians' exam, since its 112th holding

# What the ministry decided after the exam and the answer key cannot say; the published scores follow the same rules.
ALWAYS_CORRECT = frozenset({"116A71"})  # every candidate was given the point
SEVERAL_ACCEPTED = {"112B30": ("a", "d")}  # either answer alone was accepted; the data say "a or d"

NO_ANSWER = "解なし"
ANY_OF = re.compile(r"いずれか([1-9一二三])つ")
IMAGES = "IMAGES"  # what YakugakuQA writes instead of choices that are pictures
KANJI = {"一": 1, "二": 2, "三": 3}

# Points needed, of how many, in the questions that are not essential (the ministry's announcements of each March).
# Essential questions: 80 % of their points; forbidden choices: at most 3 questions.
_PASS_LINES = {2018: (208, 299), 2019: (209, 296), 2020: (217, 299)}


def rules_of(year: int | None, exam: str) -> ExamRules | None:
    """The physicians' pass rules; a year whose line is not known here is judged by the other two rules only."""
    if exam != "igakuqa" or year not in range(2018, 2027):
        return None
    points, possible = _PASS_LINES.get(year, (None, None))
    return ExamRules(points, possible, None, 0.8, 3, "the ministry's announcement")


def is_year_layout(folder: Path) -> bool:
    return bool(_year_folders(folder))


def load_years(folder: Path, years: Sequence[int] | None = None) -> Iterator[tuple[str, Question]]:
    """All questions of `folder`, or of the given `years`, each with its place."""
    papers = {int(f.name): _papers_in(f) for f in _year_folders(folder)}
    if not papers:
        raise ExamError(f"{folder}: no exam here; expected 2018/112-A.jsonl and so on, or 112-A.jsonl in a folder 2018")
    missing = sorted(set(years or ()) - set(papers))
    if missing:
        raise ExamError(f"{folder}: no exam of {_listed(missing)}; the folder holds {_listed(sorted(papers))}")
    for year in sorted(papers):
        if not years or year in years:
            yield from _read_year(papers[year], year)


def _year_folders(folder: Path) -> list[Path]:
    candidates = [folder.resolve(), *sorted(folder.iterdir())]
    return [f for f in candidates if f.is_dir() and YEAR_FOLDER.fullmatch(f.name) and _papers_in(f)]


def _papers_in(year_folder: Path) -> list[Path]:
    return sorted(f for f in year_folder.iterdir() if PAPER_FILE.fullmatch(f.name))


def _read_year(papers: list[Path], year: int) -> Iterator[tuple[str, Question]]:
    num_before = 0  # YakugakuQA's metadata count the questions of a year through
    for path in papers:
        rows = _rows_by_id(path)
        metadata, wholes = _metadata(path, rows, num_before)
        prefix = path.stem.replace("-", "")
        for question_id, (place, row) in rows.items():
            if not re.fullmatch(rf"{prefix}\d+", question_id):
                refuse(place, "problem_id", f"{question_id!r} is not of this paper; expected {prefix}1, {prefix}2, ...")
            if wholes and question_id not in metadata:
                refuse(place, "problem_id", f"{question_id} has no line in {wholes}")
            yield place, _build_question(place, row, year, metadata.get(question_id))
        for question_id, (place, _) in metadata.items():
            if question_id not in rows:
                refuse(place, "problem_id", f"{question_id} is no question of {path.name}")
        num_before += len(rows)


def _metadata(path: Path, rows: dict[str, Any], num_before: int) -> tuple[dict[str, tuple[str, Row]], str]:
    """Metadata of the paper's questions by their id, and the name of the file that holds them ("" if there is none)."""
    own = path.with_name(f"{path.stem}_metadata.jsonl")
    if own.exists():
        return dict(_rows_by_id(own)), own.name
    number = path.stem[:3]
    of_year = path.with_name(f"metadata_{number}.jsonl")
    if not of_year.exists():
        return {}, ""
    lines = _rows_by_id(of_year, may_repeat=True)  # as published, some of these files hold every line several times
    keys = {f"{number}{num_before + i:03d}": question_id for i, question_id in enumerate(rows, start=1)}
    return {question_id: lines[key] for key, question_id in keys.items() if key in lines}, of_year.name


def _rows_by_id(path: Path, may_repeat: bool = False) -> dict[str, tuple[str, Row]]:
    """problem_id -> (place, row) of a file in which every id occurs once (or, with `may_repeat`, with the same row)."""
    rows: dict[str, tuple[str, Row]] = {}
    for place, row in json_lines(path):
        question_id = text_of(place, row, "problem_id")
        if question_id in rows and not (may_repeat and rows[question_id][1] == row):
            refuse(place, "problem_id", f"{question_id} occurs twice; the first is at {rows[question_id][0]}")
        rows[question_id] = (place, row)
    return rows


def _build_question(place: str, row: Row, year: int, metadata: tuple[str, Row] | None) -> Question:
    question_id = row["problem_id"]
    is_physicians = "comment" not in row
    are_images = row.get("choices") == IMAGES
    choices = (IMAGES,) * 5 if are_images else checked_choices(place, "choices", texts_of(place, row, "choices"))
    num_choices = len(LETTERS) if are_images else len(choices)
    answers, num_to_pick = _answers(place, row, num_choices)
    meta_place, meta = metadata or (place, {})
    points = whole_number_of(place, row, "points")
    kinki = texts_of(meta_place, meta, "kinki") if "kinki" in meta else ()
    return Question(
        id=question_id,
        exam="igakuqa" if is_physicians else "yakugakuqa",
        year=year,
        paper=question_id[3],
        lang="ja",
        text=text_of(place, row, "problem_text"),
        choices=choices,
        answers=answers,
        num_to_pick=num_to_pick,
        points=points,
        needs_image=not flag_of(place, row, "text_only"),
        essential=is_physicians and year >= 2018 and question_id[3] in ESSENTIAL_PAPERS,
        always_correct=question_id in ALWAYS_CORRECT,
        withdrawn=points == 0 or not answers,
        subject=text_of(meta_place, meta, "category") if metadata else "",
        forbidden=letters_of(meta_place, "kinki", kinki, num_choices),
    )


def _answers(place: str, row: Row, num_choices: int) -> tuple[tuple[frozenset[str], ...], int]:
    """The accepted answers, and how many choices one of them picks."""
    marks = texts_of(place, row, "answer")
    if not any(mark.strip() for mark in marks):
        refuse(place, "answer", "empty; expected at least one letter or number")
    if NO_ANSWER in "".join(marks):
        return (), 1
    if not num_choices:
        return (number_answer(place, "answer", marks),), 0
    if accepted := SEVERAL_ACCEPTED.get(row["problem_id"]):
        return tuple(frozenset(a) for a in accepted), 1
    any_of = ANY_OF.search("".join(map(plain, marks)))
    letters = letters_of(place, "answer", [re.split("[（(]", mark)[0] for mark in marks], num_choices)
    if not any_of:
        return (letters,), len(letters)
    num_to_pick = KANJI.get(any_of[1]) or int(any_of[1])
    return tuple(frozenset(some) for some in combinations(sorted(letters), num_to_pick)), num_to_pick


def _listed(items: Sequence[object]) -> str:
    return ", ".join(str(item) for item in items)
