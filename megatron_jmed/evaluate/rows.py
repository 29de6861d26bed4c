"""How are exam files read, so that every mistake in them is named with file, line and field?

In: JSONL, JSON and CSV files in UTF-8, with or without a byte order mark. Out: rows with their place (file:line), and
fields of the type that was asked for. Invariant: nothing is guessed and nothing is skipped; what does not fit is an ExamError.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.question import LETTERS, canonical_number, plain

Row = Mapping[str, Any]


def refuse(place: str, field: str, problem: str) -> NoReturn:
    raise ExamError(f"{place}: {field}: {problem}")


def read_text(path: Path) -> str:
    """The whole file without its byte order mark; ExamError when it cannot be read or is empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ExamError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    if not text.strip():
        raise ExamError(f"{path}: empty; expected questions")
    return text


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file, each with its place."""
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ExamError(f"{place}: not JSON ({error}); expected one JSON object a line") from None
        if not isinstance(row, dict):
            raise ExamError(f"{place}: a {type(row).__name__}; expected one JSON object a line")
        yield place, row


def json_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of one JSON object, or of a list of objects, each with its place (file: key)."""
    try:
        whole = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ExamError(f"{path}: not JSON ({error})") from None
    entries = whole.items() if isinstance(whole, dict) else enumerate(whole) if isinstance(whole, list) else ()
    for key, row in entries:
        if not isinstance(row, dict):
            raise ExamError(f"{path}: {key}: a {type(row).__name__}; expected a JSON object")
        yield f"{path}: {key}", {"_key": str(key)} | row


def csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    for row in reader:
        yield f"{path}:{reader.line_num}", row


# --- fields --------------------------------------------------------------------------------------------------------


def text_of(place: str, row: Row, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        refuse(place, field, f"{value!r}; expected a text")
    return value


def texts_of(place: str, row: Row, field: str) -> tuple[str, ...]:
    value = row.get(field)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        refuse(place, field, f"{value!r}; expected a list of texts")
    return tuple(value)


def flag_of(place: str, row: Row, field: str, default: bool | None = None) -> bool:
    value = row.get(field, default)
    if not isinstance(value, bool):
        refuse(place, field, f"{value!r}; expected true or false")
    return value


def whole_number_of(place: str, row: Row, field: str, default: int | None = None) -> int:
    """A whole number, also as a text ("1", "１")."""
    value = row.get(field, default)
    words = plain(str(value))
    if isinstance(value, bool) or not words.isdecimal():
        refuse(place, field, f"{value!r}; expected a whole number such as 1")
    return int(words)


def checked_choices(place: str, field: str, choices: Sequence[str]) -> tuple[str, ...]:
    if len(choices) == 1 or len(choices) > len(LETTERS):
        refuse(place, field, f"{len(choices)} choices; expected none (a number is asked) or 2 to {len(LETTERS)}")
    return tuple(choices)


def letters_of(place: str, field: str, marks: Sequence[str], num_choices: int) -> frozenset[str]:
    """The letters of an answer, whatever their spelling: "ｃ", "C", "3" (counted from 1) and "bd" all occur."""
    letters: set[str] = set()
    for mark in marks:
        spelled = plain(mark).replace(" ", "")
        if spelled.isdecimal():
            place_in_list = int(spelled)
            spelled = LETTERS[place_in_list - 1] if 0 < place_in_list <= len(LETTERS) else spelled
        letters |= set(spelled)
    unknown = sorted(letters - set(LETTERS[:num_choices]))
    if unknown:
        last = LETTERS[num_choices - 1]
        refuse(place, field, f"{', '.join(unknown)} is none of the {num_choices} choices a to {last}")
    return frozenset(letters)


def number_answer(place: str, field: str, marks: Sequence[str]) -> frozenset[str]:
    """The answer of a question without choices."""
    numbers = [canonical_number(mark) for mark in marks]
    if len(numbers) != 1 or numbers[0] is None:
        refuse(place, field, f"{list(marks)!r}; a question without choices wants one number")
    return frozenset([numbers[0]])


def write_once(path: Path, text: str) -> None:
    """Write a file that others will be made of; ExamError where another one stands, such as the exam itself."""
    if path.exists() and path.read_bytes() != text.encode():
        raise ExamError(f"{path}: is there already and holds something else; delete it or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
