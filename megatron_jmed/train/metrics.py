"""Where the numbers of a run go: RUN/metrics.jsonl, the truth, and from it TensorBoard and wandb where they are asked for.

Invariant: one line of strict JSON for each record, on disk as soon as it is written; a run that resumes has no line of a step that
it will write again, in none of the three.
"""

import json
import math
from pathlib import Path
from typing import Any

from megatron_jmed.config import RunConfig
from megatron_jmed.run_folder import RunFolder
from megatron_jmed.train.alarms import Record


class Metrics:
    """Open from the start of a run at `first_step` to its end; on rank 0 only."""

    def __init__(self, config: RunConfig, folder: RunFolder, first_step: int):
        _drop_records_after(folder.metrics, first_step)
        self._file = open(folder.metrics, "a", encoding="utf-8", buffering=1)
        self._tensorboard = _open_tensorboard(config, folder, first_step) if config.log.tensorboard else None
        self._wandb = _open_wandb(config, folder) if config.log.wandb_project else None

    def write(self, record: Record) -> None:
        """`record` has its step and tokens; numbers may be nested in it once, and may be infinite."""
        self._file.write(json.dumps(_finite(record)) + "\n")
        scalars = _flat_scalars(record)
        if self._tensorboard:
            for name, value in scalars.items():
                self._tensorboard.add_scalar(name, value, record["tokens"])
        if self._wandb:
            self._wandb.log(scalars, step=record["step"])

    def close(self) -> None:
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()
            _wait_for_wandb()


def read_records(path: Path) -> list[Record]:
    """All records of a metrics.jsonl; [] where there is none."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _drop_records_after(path: Path, step: int) -> None:
    """A run that resumes at `step` writes the later steps again: their old lines move to metrics.dropped.jsonl."""
    if not path.exists():
        return
    kept, dropped = [], []
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        try:
            is_later = json.loads(line)["step"] > step
        except (ValueError, KeyError):
            is_later = True  # half a line: the writer was killed
        (dropped if is_later else kept).append(line + "\n")
    if dropped:
        with open(path.with_name("metrics.dropped.jsonl"), "a", encoding="utf-8") as stream:
            stream.writelines(dropped)
    elif text.endswith("\n") or not text:
        return
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(path)


def _open_tensorboard(config: RunConfig, folder: RunFolder, step: int):
    """TensorBoard's writer; what a run that ended badly wrote after `step` is taken back, so that the curve stays one."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder.path / "tensorboard"), purge_step=step * config.tokens_per_step + 1 if step else None)


def _open_wandb(config: RunConfig, folder: RunFolder):
    """wandb's run of this run folder: the same one at every start, so that the curve stays one."""
    import wandb

    return wandb.init(
        id=json.loads(folder.run.read_text(encoding="utf-8"))["wandb_id"],
        resume="allow",
        project=config.log.wandb_project,
        name=config.name,
        dir=str(folder.path),
        mode=config.log.wandb_mode,
        config=config.model_dump(mode="json"),
    )


def _wait_for_wandb() -> None:
    """`finish` of an offline run returns before its file is whole (wandb 0.31); the end of its service does not."""
    import wandb

    wandb.teardown()


def _flat_scalars(numbers: dict[str, Any]) -> dict[str, float]:
    """The numbers as wandb and TensorBoard want them: no nesting, and of the layers the worst: imbalance, entropy, router z."""
    flat = {}
    for name, value in numbers.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{key}": inner for key, inner in value.items()}
        elif isinstance(value, int | float):
            flat[name] = value
    if numbers.get("expert_load"):
        flat["expert_load_max_over_mean"] = max(max(layer) * len(layer) for layer in numbers["expert_load"])
        flat["expert_load_entropy"] = min(map(_entropy, numbers["expert_load"]))
    if numbers.get("router_z"):
        flat["router_z"] = max(numbers["router_z"])
    return flat


def _entropy(shares: list[float]) -> float:
    """Of shares that add up to 1, as a part of the largest possible: 1 is perfect balance, 0 one expert for all."""
    return -math.fsum(share * math.log(share) for share in shares if share > 0) / math.log(max(2, len(shares)))


def _finite(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite is written as a string."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return value
