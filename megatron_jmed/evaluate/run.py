"""What does a run folder hold?

In: a run folder (config.json, metrics.jsonl, and optionally blend.json, run.json, scores/*.json,
checkpoints/step_*/state.json). Out: one `Run` of plain values for the report. Invariant: each step appears once. A
run that was resumed writes some steps again; whatever it recorded after the step it resumed from belongs to an
abandoned branch and is dropped (and counted).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.score import load_scores

NUMBERS = (
    "step", "tokens", "loss", "aux_loss", "grad_norm", "lr",
    "tokens_per_second", "tflops_per_second_per_gpu", "step_seconds",
)  # fmt: skip
BLEND_FIELDS = ("name", "lang", "num_tokens", "num_documents", "planned_tokens", "epochs")


@dataclass(frozen=True)
class Metrics:
    """Training and validation records by step; how many were replaced; whether the last line is cut; alarms in their order."""

    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    num_replaced: int = 0
    is_cut: bool = False
    alarms: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Run:
    """All that a report is made of; what the folder lacks is empty."""

    name: str
    config: dict[str, Any]
    metrics: Metrics
    blend: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    checkpoints: list[dict[str, Any]]
    facts: dict[str, Any]


def read_run(folder: Path | str) -> Run:
    """Read a run folder; ExamError when it is none, or when one of its files is damaged."""
    folder = Path(folder)
    if not (folder / "config.json").is_file() and not (folder / "metrics.jsonl").is_file():
        raise ExamError(
            f"{folder}: no run folder; expected config.json or metrics.jsonl in it, as training writes them"
        )
    return Run(
        name=folder.resolve().name,
        config=_read_object(folder / "config.json"),
        metrics=read_metrics(folder / "metrics.jsonl"),
        blend=_read_blend(folder / "blend.json"),
        scores=[load_scores(path) for path in sorted(folder.glob("scores/*.json"))],
        checkpoints=_read_checkpoints(folder / "checkpoints"),
        facts=_read_facts(folder / "run.json"),
    )


def read_metrics(path: Path) -> Metrics:
    """The metrics file, each step once; an absent file is an empty one, a cut last line is a run still going."""
    if not path.is_file():
        return Metrics([], [])
    whole, _, cut = path.read_text(encoding="utf-8").rpartition("\n")
    training: dict[int, dict[str, Any]] = {}
    validation: dict[int, dict[str, Any]] = {}
    alarms: list[dict[str, Any]] = []
    num_replaced = 0
    for number, line in enumerate(whole.split("\n") if whole else [], start=1):
        record = _parse_record(f"{path}:{number}", line)
        step = record["step"]
        if "loss" in record or "skipped" in record:
            abandoned = [s for s in training if s >= step], [s for s in validation if s > step]
            num_replaced += sum(map(len, abandoned))
            alarms = [alarm for alarm in alarms if alarm["step"] < step]
            for records, steps in zip((training, validation), abandoned, strict=True):
                for old in steps:
                    del records[old]
        if "loss" in record:
            training[step] = record
        if "valid_loss" in record:
            num_replaced += step in validation
            validation[step] = record
        if "alarm" in record:
            alarms.append(record["alarm"])
    in_order = [[records[step] for step in sorted(records)] for records in (training, validation)]
    return Metrics(in_order[0], in_order[1], num_replaced, bool(cut), tuple(alarms))


def _parse_record(place: str, line: str) -> dict[str, Any]:
    try:
        record = _with_numbers(json.loads(line))
    except json.JSONDecodeError as error:
        raise ExamError(f"{place}: not JSON ({error}); expected one JSON object a line") from None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ExamError(f"{place}: step: missing; expected one JSON object a line with a whole number `step`")
    for key in NUMBERS:
        if not isinstance(record.get(key, 0), int | float | None):
            raise ExamError(f"{place}: {key}: {record[key]!r}; expected a number")
    if "tokens" not in record:
        raise ExamError(f"{place}: tokens: missing; expected the number of tokens trained on so far")
    if not {"loss", "valid_loss", "alarm", "save", "skipped"} & set(record):
        raise ExamError(f"{place}: neither loss nor valid_loss nor alarm nor save nor skipped; expected one of them in every line")
    load = record.get("expert_load") or []
    if not all(isinstance(layer, list) and layer and len(layer) == len(load[0]) for layer in load):
        raise ExamError(f"{place}: expert_load: expected for every layer a list of as many shares as experts")
    if not isinstance(record.get("valid_loss", {}), dict):
        raise ExamError(f"{place}: valid_loss: {record['valid_loss']!r}; expected a loss for every source")
    return record


def _with_numbers(value: Any) -> Any:
    """JSON has no NaN: training writes a number that is not finite as a string."""
    if isinstance(value, dict):
        return {key: _with_numbers(inner) for key, inner in value.items()}
    return float(value) if value in ("nan", "inf", "-inf") else value


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an absent file is an empty one."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExamError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ExamError(f"{path}: a {type(value).__name__}; expected a JSON object")
    return value


def _read_facts(path: Path) -> dict[str, Any]:
    facts = _read_object(path)
    starts = facts.get("starts", [])
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise ExamError(f"{path}: starts: expected a list of JSON objects, one a start of the run")
    return facts


def _read_blend(path: Path) -> list[dict[str, Any]]:
    sources = _read_object(path).get("sources", [])
    for source in sources:
        missing = [name for name in BLEND_FIELDS if name not in source]
        if missing:
            raise ExamError(f"{path}: sources: {source.get('name', source)} lacks {', '.join(missing)}")
    return sources


def _read_checkpoints(folder: Path) -> list[dict[str, Any]]:
    """Step and tokens of every complete checkpoint (its state.json is written last)."""
    states = [
        (int(path.parent.name.removeprefix("step_")), _read_object(path)) for path in folder.glob("step_*/state.json")
    ]
    return [{"step": step, "tokens": state.get("tokens")} for step, state in sorted(states, key=lambda item: item[0])]
