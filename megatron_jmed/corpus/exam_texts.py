"""Which questions does an exam ask, and in which words?

In: a folder of exam files as others publish them. Out: its questions, each as one file words it.
Invariant: a line or row that is no question is an error, never skipped.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

from megatron_jmed.errors import CorpusError

PAPER = re.compile(r"(\d{3}-[A-Z])(_translate)?\.jsonl")
NOT_QUESTIONS = re.compile(r"\d{3}-[A-Z]_metadata\.jsonl")

Form = Literal["original", "translation"]


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
