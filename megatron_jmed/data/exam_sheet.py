"""An exam as rows of token ids, so that the model that is being trained can answer it without leaving the job.

In: a sheet (JSON lines, made by tools/prepare_exam.py): first a header, then a line a question with the ids of its prompt
(`prefix`) and of each option (`continuations`). Out: this rank's batches, an option a row; only the option's tokens count in the
loss, so that a row's summed loss is minus the log-likelihood of the option.
Invariant: row r is the r-th option of the sheet in its order, on every layout; rows that fill up the last step count for nothing.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_jmed.config import RunConfig
from megatron_jmed.corpus.manifest import sha256_file
from megatron_jmed.data.batch import Batch, batch_from_sample
from megatron_jmed.errors import CorpusError
from megatron_jmed.parallel import Groups

FORMAT = "exam sheet 1"  # as evaluate/sheet.py writes it: the two rooms meet on disk


@dataclass(frozen=True)
class ExamSheet:
    """`rows` holds (ids, how many at the end are the option's)."""

    name: str
    path: str
    sha256: str
    tokenizer_sha256: str
    rows: tuple[tuple[tuple[int, ...], int], ...]


def load_sheet(path: str | Path, vocab_size: int, seq_length: int) -> ExamSheet:
    """Read a sheet; CorpusError where it is none, or where an option does not fit the model or its sequences."""
    path = Path(path)
    if not path.is_file():
        raise CorpusError(f"exam sheet {path} does not exist; make it with tools/prepare_exam.py")
    lines = path.read_bytes().split(b"\n")
    header = _object(path, lines[0])
    if (header.get("format") != FORMAT or not isinstance(header.get("name"), str)
            or not isinstance(header.get("tokenizer_sha256"), str)):
        raise CorpusError(f"{path}: no exam sheet, its first line is no header of {FORMAT!r}; make it with tools/prepare_exam.py")
    rows = [row for number, line in enumerate(lines[1:], start=2) if line for row in _rows(f"{path}:{number}", line)]
    if not rows:
        raise CorpusError(f"{path}: no question after the header; make the sheet again with tools/prepare_exam.py")
    longest, largest = max(len(ids) for ids, _ in rows), max(max(ids) for ids, _ in rows)
    if longest > seq_length + 1:
        raise CorpusError(f"{path}: an option with its prompt is {longest} tokens long, budget.seq_length={seq_length}; make the "
                          f"sheet again with --max-tokens {seq_length}")
    if largest >= vocab_size:
        raise CorpusError(f"{path}: token id {largest} is beyond model.vocab_size={vocab_size}; the sheet is another tokenizer's")
    return ExamSheet(header["name"], str(path), sha256_file(path), header["tokenizer_sha256"], tuple(rows))


def _object(place: str | Path, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:  # also of bytes that are no UTF-8
        raise CorpusError(f"{place}: no exam sheet ({error}); make it with tools/prepare_exam.py") from None
    if not isinstance(found, dict):
        raise CorpusError(f"{place}: no exam sheet, not a JSON object; make it with tools/prepare_exam.py")
    return found


def _rows(place: str, line: bytes) -> list[tuple[tuple[int, ...], int]]:
    """An option a row; the prompt has a token at least, as what is scored is predicted from what stands before."""
    question = _object(place, line)
    prefix, options = question.get("prefix"), question.get("continuations")
    if not _are_ids(prefix):
        raise CorpusError(f"{place}: 'prefix' must be the prompt's token ids; make the sheet again with tools/prepare_exam.py")
    if not isinstance(options, list) or not options or not all(map(_are_ids, options)):
        raise CorpusError(f"{place}: 'continuations' must be the token ids of each option; make the sheet again with "
                          "tools/prepare_exam.py")
    return [(tuple(prefix + option), len(option)) for option in options]


def _are_ids(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and all(type(number) is int and number >= 0 for number in found)


def num_sheet_steps(config: RunConfig, sheet: ExamSheet) -> int:
    """Global batches that all rows fill."""
    return -(-len(sheet.rows) // config.budget.global_batch_size)


def sheet_batches(config: RunConfig, sheet: ExamSheet, groups: Groups, device: torch.device) -> Iterator[Batch]:
    """This rank's micro-batches of all rows; `source_B` is the row's number."""
    size, batch = config.budget.micro_batch_size, config.budget.global_batch_size
    for start in range(0, num_sheet_steps(config, sheet) * batch, size * groups.dp.size()):
        first = start + groups.dp.rank() * size
        yield batch_from_sample(_sample(sheet, range(first, first + size), config.budget.seq_length), device,
                                groups.cp.rank(), groups.cp.size())


def _sample(sheet: ExamSheet, numbers: range, seq_length: int) -> dict[str, Any]:
    tokens, labels = torch.zeros(2, len(numbers), seq_length, dtype=torch.int64)
    mask = torch.zeros(len(numbers), seq_length)
    for place, number in enumerate(numbers):
        if number < len(sheet.rows):
            ids, num_scored = sheet.rows[number]
            tokens[place, : len(ids) - 1], labels[place, : len(ids) - 1] = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
            mask[place, len(ids) - 1 - num_scored : len(ids) - 1] = 1
    return {"tokens": tokens, "labels": labels, "loss_mask": mask, "position_ids": torch.arange(seq_length).expand_as(tokens),
            "dataset_id": torch.tensor([number if number < len(sheet.rows) else 0 for number in numbers])}
