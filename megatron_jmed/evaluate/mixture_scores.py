"""How did a run of a mixture study score? By validation source, exam, subject, kind and language.

In: a `Run` and its scores files. Out: numbers by target, and which questions were answered right. Invariant: a name means the
same in every run.

| target | larger is better, but for losses |
|---|---|
| valid loss SOURCE | last validation loss, also of sources of weight 0; not of "all", which each run weights by its own blend |
| exam NAME | accuracy over the questions that could be scored |
| exam NAME / VALUE | the same of a subject, a kind or a language, or of all three together, where they vary in the exam |

Groups of fewer than MIN_ITEMS questions, and those of the same questions as another, are left out: the accuracy of the first is
mostly chance, and each target makes the others less sure.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from megatron_jmed.errors import ExamError, some_of
from megatron_jmed.evaluate.correct import is_correct
from megatron_jmed.evaluate.run import Run

LOSS = "valid loss"
ALL_SOURCES = "all"
MIN_ITEMS = 10


def last_losses(run: Run) -> dict[str, float]:
    """The last validation losses by source; ExamError where there is none."""
    if not run.metrics.validation:
        raise ExamError(f"{run.name}: no validation loss in metrics.jsonl; set budget.eval_every_tokens")
    return {source: loss for source, loss in run.metrics.validation[-1]["valid_loss"].items() if source != ALL_SOURCES}


def loss_targets(run: Run) -> dict[str, float]:
    """The last validation losses by target; ExamError where one is not finite."""
    losses = {f"{LOSS} {source}": loss for source, loss in sorted(last_losses(run).items())}
    if broken := [target for target, loss in losses.items() if not math.isfinite(loss)]:
        raise ExamError(f"{run.name}: {some_of(broken)} is not a finite number; the run is broken, leave it out")
    return losses


def scaling_points(run: Run) -> dict[str, Any]:
    """The validation losses of a run over the tokens read."""
    return {
        "run": run.name,
        "points": [
            {
                "tokens": record["tokens"],
                **{
                    f"{LOSS} {source}": loss
                    for source, loss in sorted(record["valid_loss"].items())
                    if source != ALL_SOURCES and math.isfinite(loss)
                },
            }
            for record in run.metrics.validation
        ],
    }


def exam_targets(name: str, scores: Mapping[str, Any], method: str | None) -> tuple[dict[str, float], dict[str, bool]]:
    """Accuracies by target, and which questions were answered right, of one scores file."""
    method = method or scores["methods"][0]
    if method not in scores["methods"]:
        raise ExamError(f"{name}: exam {scores['exam']} was scored by {', '.join(scores['methods'])}, not by {method}")
    records = [record for record in scores["questions"] if record["not_scored"] is None]
    if not records:
        raise ExamError(f"{name}: exam {scores['exam']}: no question could be scored")
    varied = [key for key in ("subject", "type", "lang") if len({record[key] for record in records}) > 1]
    cells: dict[str, list[int]] = defaultdict(list)
    for number, record in enumerate(records):
        values = [record[key] or "unknown" for key in varied]
        for value in sorted({"", *values, *([" / ".join(values)] if len(values) > 1 else [])}):
            cells[value].append(number)
    right, exam = [is_correct(record, method) for record in records], f"exam {scores['exam']}"
    shortest_first = sorted(cells.items(), key=lambda cell: (cell[0].count(" / "), cell[0]))
    distinct = {tuple(numbers): value for value, numbers in reversed(shortest_first) if not value or len(numbers) >= MIN_ITEMS}
    targets = {
        exam + (f" / {value}" if value else ""): sum(right[number] for number in numbers) / len(numbers)
        for numbers, value in sorted(distinct.items(), key=lambda item: item[1])
    }
    return targets, {record["id"]: is_correct(record, method) for record in records}
