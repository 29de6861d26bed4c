"""Which public exams can be read from one file, and in which form may one write one's own?

In: one file. Out: its `Question`s, each with its place. `FORMS` is the table: a form is known by the fields of its first row.

| form | file | right answer |
|---|---|---|
| own | JSONL: id, question, choices, answer; see `OWN_FIELDS` | letters, or a number where there are no choices |
| jmedbench | JSONL: sample_id, question, options, answer_idx, metadata | position from 0 |
| medqa | JSONL: question, options {"A": ...} or [{"key", "value"}], answer_idx | letter |
| medmcqa | JSONL: id, question, opa to opd, cop | position, from 1 (as published) or from 0 (as on the hub) |
| pubmedqa | JSON: PMID -> QUESTION, CONTEXTS, final_decision; or JSONL: pubid, question, context, final_decision | yes, no, maybe |
| mmlu | CSV without a header: question, choices, letter (MMLU, JMMLU) | letter |

One's own exam, one JSON object a line; only the first four fields are needed:

    {"id": "1", "question": "...", "choices": ["...", "..."], "answer": "b", "points": 3, "essential": true, "forbidden": ["d"]}

`choices` may also name their letters ({"a": "...", "b": "..."}). `answer` is a letter ("b"), several that belong together
(["a", "d"]), several of which each is accepted ([["a"], ["d"]]), or a number as text where `choices` is empty. A `rules.json`
beside it may hold the fields of `ExamRules`.
Invariant: every row becomes exactly one `Question`, or the file is refused with line and field.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.question import LETTERS, Question, plain
from megatron_jmed.evaluate.rows import (
    Row,
    checked_choices,
    csv_rows,
    flag_of,
    json_entries,
    json_lines,
    letters_of,
    number_answer,
    read_text,
    refuse,
    text_of,
    texts_of,
    whole_number_of,
)

OWN_FIELDS = frozenset({
    "id", "question", "choices", "answer", "pick", "points", "forbidden", "needs_image", "essential", "withdrawn", "context",
    "year", "paper", "subject", "category", "lang",
})  # fmt: skip
DECISIONS = ("yes", "no", "maybe")
GROUND_TRUTH = "test_ground_truth.json"  # PubMedQA: which of its labelled questions are the test

Placed = Iterator[tuple[str, Question]]


def read_file(path: Path) -> Placed:
    """The questions of one file in any of the forms."""
    if path.suffix == ".csv":
        return _mmlu(path)
    if path.suffix == ".json":
        return _pubmedqa(path, json_entries(path))
    first = next(json_lines(path))[1]
    for needed, form in FORMS:
        if needed <= set(first):
            return form(path)
    known = "; ".join(f"{', '.join(sorted(needed))}" for needed, _ in FORMS)
    raise ExamError(f"{path}:1: fields {', '.join(sorted(first))}; expected those of a known form: {known}")


# --- one's own -----------------------------------------------------------------------------------------------------


def _own(path: Path) -> Placed:
    for place, row in json_lines(path):
        unknown = sorted(set(row) - OWN_FIELDS)
        if unknown:
            refuse(place, unknown[0], f"no field of an exam; choose from {', '.join(sorted(OWN_FIELDS))}")
        choices = checked_choices(place, "choices", _listed_choices(place, row))
        withdrawn = flag_of(place, row, "withdrawn", False)
        answers = _own_answers(place, row.get("answer"), len(choices), withdrawn)
        num_to_pick = whole_number_of(place, row, "pick", max(map(len, answers), default=1) if choices else 0)
        if any(len(answer) != num_to_pick for answer in answers) and choices:
            refuse(place, "pick", f"{num_to_pick}, but an answer has {len(answers[0])} letters")
        yield place, Question(
            id=_identifier(place, row, "id"),
            exam=path.stem,
            text=text_of(place, row, "question"),
            choices=choices,
            answers=answers,
            num_to_pick=num_to_pick,
            points=whole_number_of(place, row, "points", 1),
            withdrawn=withdrawn,
            needs_image=flag_of(place, row, "needs_image", False),
            essential=flag_of(place, row, "essential", False),
            forbidden=letters_of(place, "forbidden", texts_of(place, {"forbidden": [], **row}, "forbidden"), len(choices)),
            year=whole_number_of(place, row, "year") if row.get("year") is not None else None,
            **{name: text_of(place, row, name) for name in ("context", "paper", "subject", "category", "lang") if name in row},
        )


def _listed_choices(place: str, row: Row, field: str = "choices") -> tuple[str, ...]:
    """Choices as a list, or by their letters: {"a": ..., "b": ...}, or as [{"key": "a", "value": ...}]."""
    given = row.get(field)
    if isinstance(given, list) and given and all(isinstance(choice, dict) for choice in given):
        given = {str(choice.get("key")): choice.get("value") for choice in given}
    if not isinstance(given, dict):
        return texts_of(place, row, field)
    if [plain(name) for name in given] != list(LETTERS[: len(given)]):
        refuse(place, field, f"by the letters {', '.join(given)}; expected a, b, c, ... in this order")
    return tuple(text_of(place, given, name) for name in given)


def _own_answers(place: str, value: Any, num_choices: int, withdrawn: bool) -> tuple[frozenset[str], ...]:
    if value in (None, "", []):
        if withdrawn:
            return ()
        refuse(place, "answer", "missing; expected a letter, letters, or a number (or withdrawn: true)")
    ways = value if isinstance(value, list) and all(isinstance(way, list) for way in value) else [value]
    answers = []
    for way in ways:
        marks = [way] if isinstance(way, str) else way
        if not isinstance(marks, list) or not marks or not all(isinstance(mark, str) and mark.strip() for mark in marks):
            refuse(place, "answer", f'{value!r}; expected "b", ["a", "d"], or [["a"], ["d"]]')
        read = letters_of(place, "answer", marks, num_choices) if num_choices else number_answer(place, "answer", marks)
        answers.append(read)
    return tuple(answers)


def _identifier(place: str, row: Row, field: str) -> str:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        refuse(place, field, f"{value!r}; expected a text or a whole number")
    return str(value)


# --- public forms --------------------------------------------------------------------------------------------------


def _mmlu(path: Path) -> Placed:
    """MMLU and JMMLU: one subject a file, the question's id is SUBJECT/ROW, as the corpus' contamination report has it."""
    subject = path.stem
    for suffix in ("_test", "_dev", "_val"):
        subject = subject.removesuffix(suffix)
    for number, (place, row) in enumerate(csv_rows(path), start=1):
        if len(row) < 4:
            raise ExamError(f"{place}: {len(row)} columns; expected question, choices, letter of the right one")
        choices, mark = checked_choices(place, "choices", row[1:-1]), plain(row[-1])
        if mark not in LETTERS[: len(choices)] or len(mark) != 1:
            refuse(place, f"column {len(row)}", f"{row[-1]!r}; expected a letter from A to {LETTERS[len(choices) - 1].upper()}")
        yield place, Question(f"{path.stem}/{number}", "mmlu", row[0], choices, (frozenset(mark),), 1, subject=subject)


def _jmedbench(path: Path) -> Placed:
    for place, row in json_lines(path):
        choices = checked_choices(place, "options", texts_of(place, row, "options"))
        position = whole_number_of(place, row, "answer_idx")
        if position >= len(choices):
            refuse(place, "answer_idx", f"{position} is none of the {len(choices)} options 0 to {len(choices) - 1}")
        metadata = row.get("metadata") or {}
        context = metadata.get("context") if isinstance(metadata, dict) else None
        exam = str(metadata.get("source", path.parent.name)) if isinstance(metadata, dict) else path.parent.name
        yield place, _single(
            _identifier(place, row, "sample_id"), exam, text_of(place, row, "question"), choices, LETTERS[position],
            context=context or "", show_choices=not exam.startswith("pubmedqa"),
        )  # fmt: skip


def _medqa(path: Path) -> Placed:
    for number, (place, row) in enumerate(json_lines(path), start=1):
        choices = checked_choices(place, "options", _listed_choices(place, row, "options"))
        mark = plain(text_of(place, row, "answer_idx"))
        answer = letters_of(place, "answer_idx", [mark], len(choices))
        if len(answer) != 1:
            refuse(place, "answer_idx", f"{row['answer_idx']!r}; expected one letter")
        category = row.get("meta_info") if isinstance(row.get("meta_info"), str) else ""
        text = text_of(place, row, "question")
        yield place, _single(f"{path.stem}/{number}", "medqa", text, choices, mark, subject=category, lang="en")


def _medmcqa(path: Path) -> Placed:
    rows = list(json_lines(path))
    first = _first_position(path, [row.get("cop") for _, row in rows])
    for place, row in rows:
        choices = tuple(text_of(place, row, name) for name in ("opa", "opb", "opc", "opd"))
        position = row["cop"]
        if isinstance(position, bool) or not isinstance(position, int) or not first <= position < first + 4:
            refuse(place, "cop", f"{position!r}; expected {first} to {first + 3} (the test split has no public answers)")
        yield place, _single(
            _identifier(place, row, "id"), "medmcqa", text_of(place, row, "question"), choices, LETTERS[position - first],
            subject=row.get("subject_name") or "", category=row.get("topic_name") or "", lang="en",
        )  # fmt: skip


def _first_position(path: Path, positions: list[Any]) -> int:
    """0 or 1: where this file begins to count the options; its own numbers tell."""
    if (0 in positions) == (4 in positions):
        found = ", ".join(sorted({str(p) for p in positions})[:8])
        raise ExamError(f"{path}: cop: {found}; cannot tell whether options are counted from 0 (then 0 occurs) or from 1 (then 4)")
    return 0 if 0 in positions else 1


def _pubmedqa(path: Path, rows: Iterator[tuple[str, Row]] | None = None) -> Placed:
    """PubMedQA's labelled questions; the test's alone where `test_ground_truth.json` lies beside them."""
    truth = path.with_name(GROUND_TRUTH)
    is_test = set(json.loads(read_text(truth))) if truth.exists() else None
    for place, row in rows or json_lines(path):
        key = row.get("_key", "pubid" if "pubid" in row else "")
        question_id = _identifier(place, row, "pubid") if key == "pubid" else key
        if is_test is not None and question_id not in is_test:
            continue
        names = ("QUESTION", "CONTEXTS") if "QUESTION" in row else ("question", "contexts")
        inside = row.get("context") if names[1] == "contexts" and isinstance(row.get("context"), dict) else row
        decision = plain(text_of(place, row, "final_decision"))
        if decision not in DECISIONS:
            refuse(place, "final_decision", f"{row['final_decision']!r}; expected yes, no or maybe")
        context = "\n".join(texts_of(place, inside, names[1]))
        yield place, _single(question_id, "pubmedqa", text_of(place, row, names[0]), DECISIONS, LETTERS[DECISIONS.index(decision)],
                             context=context, show_choices=False, lang="en")  # fmt: skip


def _single(question_id: str, exam: str, text: str, choices: tuple[str, ...], letter: str, **more: Any) -> Question:
    return Question(question_id, exam, text, choices, (frozenset(letter),), 1, **more)


FORMS: tuple[tuple[frozenset[str], Callable[[Path], Placed]], ...] = (
    (frozenset({"sample_id", "question", "options", "answer_idx"}), _jmedbench),
    (frozenset({"question", "options", "answer_idx"}), _medqa),
    (frozenset({"id", "question", "opa", "opb", "opc", "opd", "cop"}), _medmcqa),
    (frozenset({"pubid", "question", "context", "final_decision"}), _pubmedqa),
    (frozenset({"id", "question", "choices", "answer"}), _own),
)
