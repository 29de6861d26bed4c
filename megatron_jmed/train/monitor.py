"""What is written down about every step.

In: the numbers a step returns. Out: a record of them (metrics.py), alarms, a line on the terminal with rate and time left,
RUN/run.json. Only rank 0 writes; on the others a Monitor does nothing.
"""

import contextlib
import json
import math
import platform
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from megatron_jmed.config import RunConfig, save_config
from megatron_jmed.corpus.manifest import code_version
from megatron_jmed.model.precision import emulation_note
from megatron_jmed.parallel import World, gpu_name
from megatron_jmed.run_folder import RunFolder, write_json
from megatron_jmed.train.alarms import BATCH_ALARMS, Alarm, check, recent
from megatron_jmed.train.beginning import Beginning
from megatron_jmed.train.estimate import flops_a_token
from megatron_jmed.train.machine import peak_tflops
from megatron_jmed.train.metrics import Metrics, read_records
from megatron_jmed.train.screen import Screen
from megatron_jmed.train.step import StepNumbers


class Monitor:
    """Writes the numbers of each step to the run folder."""

    def __init__(self, config: RunConfig, world: World, folder: RunFolder, beginning: Beginning,
                 documents_of_step: Callable[[int], list[str]] | None = None):
        self._config, self._world, self._folder = config, world, folder
        self._is_writer, self._documents_of_step = world.rank == 0, documents_of_step
        self.history = recent([], config.watch)  # on rank 0: what alarms are raised from
        self._peak_tflops = peak_tflops(gpu_name())
        self._flops_a_step = flops_a_token(config) * config.tokens_per_step
        self.restart_clock()
        if not self._is_writer:
            return
        folder.path.mkdir(parents=True, exist_ok=True)
        for marker in (folder.stopped, folder.done):
            marker.unlink(missing_ok=True)
        save_config(config, folder.config)
        _append_start(folder, world, config, beginning.step)
        self._metrics = Metrics(config, folder, beginning.step)
        self.history.extend(recent(read_records(folder.metrics), config.watch))
        self._screen = Screen(config, sys.stdout)
        print(_first_line(config, world), *beginning.contract, sep="\n", flush=True)

    def record_step(self, step: int, lr: float, numbers: StepNumbers) -> list[Alarm]:
        """One line of metrics, and one on the terminal every `log.every_steps`; the same for each alarm that the step raises."""
        seconds = self._seconds_since_lap()
        if not self._is_writer:
            return []
        if numbers.is_skipped:
            return self._record_skip(step, lr)
        tokens_per_step = self._config.tokens_per_step
        rate, tflops = tokens_per_step / seconds, self._flops_a_step / seconds / self._world.size / 1e12
        record = {
            "step": step,
            "tokens": step * tokens_per_step,
            "loss": numbers.loss,
            "aux_loss": numbers.aux_loss,
            "grad_norm": numbers.grad_norm,
            "lr": lr,
            "step_seconds": seconds,
            "tokens_per_second": rate,
            "tflops_per_second_per_gpu": tflops,
            **({"mfu": tflops / self._peak_tflops} if self._peak_tflops else {}),
            "loss_by_source": numbers.loss_by_source,
            "expert_load": numbers.expert_load,
            "router_z": numbers.router_z,
        } | ({"skipped_in_a_row": numbers.skipped_in_a_row} if numbers.skipped_in_a_row else {})
        self._metrics.write(record)
        self.history.append(record)
        left = _clock((self._config.num_steps - step) * seconds)
        if self._screen.is_live:
            self._screen.show(record, left)
        elif step % self._config.log.every_steps == 0 or step == self._config.num_steps:
            print(f"step {step}/{self._config.num_steps}  tokens {step * tokens_per_step:,}  loss {numbers.loss:.4f}  "
                  f"aux {numbers.aux_loss:.3f}  grad norm {numbers.grad_norm:.3f}  lr {lr:.2e}  {rate:,.0f} tokens/s  "
                  f"left {left}", flush=True)
        return [self._raise(alarm) for alarm in check(self.history, self._config.watch)]

    def _raise(self, alarm: Alarm) -> Alarm:
        record = {"step": alarm.step, "tokens": alarm.step * self._config.tokens_per_step, "alarm": alarm._asdict()}
        self._metrics.write(record)
        self.history.append(record)
        self._screen.say(f"ALARM {alarm.name} ({alarm.action}) at step {alarm.step}: {alarm.sentence}", alarm=alarm.name)
        if alarm.name in BATCH_ALARMS and self._documents_of_step:
            self._name_documents(alarm.step)
        return alarm

    def _name_documents(self, step: int) -> None:
        """RUN/alarms/step_N.txt: the documents of the batch, those with most tokens first; the first of them are said."""
        lines = self._documents_of_step(step)
        path = self._folder.alarms / f"step_{step:07d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self._screen.say(f"  it read {len(lines)} documents ({path}): {'; '.join(lines[:3])}{'; ...' if len(lines) > 3 else ''}")

    def _record_skip(self, step: int, lr: float) -> list[Alarm]:
        """A skipped step has no loss, and raises no alarm. `tokens` is where in the schedule the run is, as in every line."""
        self._metrics.write({"step": step, "tokens": step * self._config.tokens_per_step, "lr": lr, "skipped": True})
        self._screen.say(f"step {step}/{self._config.num_steps}  skipped (data.skip_steps)")
        return []

    def record_validation(self, step: int, numbers: StepNumbers) -> None:
        """One line of metrics: the loss of every source, and of all in the blend's proportions."""
        if self._is_writer:
            by_source = numbers.loss_by_source
            weights = {source.name: source.weight for source in self._config.data.blend if source.name in by_source}
            blended = math.fsum(weights[name] * by_source[name] for name in weights) / math.fsum(weights.values())
            self._metrics.write({"step": step, "tokens": step * self._config.tokens_per_step,
                         "valid_loss": {"all": blended, **by_source}})
            details = "  ".join(f"{name} {loss:.4f}" for name, loss in by_source.items())
            self._screen.say(f"step {step}/{self._config.num_steps}  validation loss {blended:.4f}  ({details})")
        self.restart_clock()

    def record_save(self, step: int, target: Path, stall_seconds: float, seconds: float) -> None:
        """One line of metrics about a checkpoint that is whole: how long the loop waited, and how long it took."""
        if self._is_writer:
            self._metrics.write({"step": step, "tokens": step * self._config.tokens_per_step,
                         "save": {"stall_seconds": stall_seconds, "seconds": seconds}})
            self._screen.say(f"saved {target}  ({seconds:.1f} s, of which the training waited {stall_seconds:.1f} s)")

    def restart_clock(self) -> None:
        """Validating and saving are not part of a step's time."""
        self._lap = time.perf_counter()

    def close(self, step: int, stop_reason: str) -> None:
        """Mark how the run ended: RUN/done when the budget is read, RUN/stopped when somebody asked."""
        if not self._is_writer:
            return
        self._metrics.close()
        is_done = step == self._config.num_steps
        reason = stop_reason or "asked by another rank"
        if is_done:
            self._folder.done.write_text(f"{step}\n", encoding="utf-8")
        else:
            self._folder.stopped.write_text(f"{step} {reason}\n", encoding="utf-8")
        self._folder.stop.unlink(missing_ok=True)
        tokens_read = (step - self._config.data.num_skipped(step)) * self._config.tokens_per_step
        print(f"done: {tokens_read:,} tokens read" if is_done else
              f"stopped at step {step} ({reason}); the same command goes on from there",
              flush=True)

    def _seconds_since_lap(self) -> float:
        now = time.perf_counter()
        seconds, self._lap = now - self._lap, now
        return seconds

def _append_start(folder: RunFolder, world: World, config: RunConfig, step: int) -> None:
    """RUN/run.json: one entry each time the run was started, with what started it."""
    content = json.loads(folder.run.read_text(encoding="utf-8")) if folder.run.exists() else {"starts": []}
    content.setdefault("wandb_id", uuid.uuid4().hex[:12])
    content["starts"].append({
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "code_version": code_version(),
        "versions": _versions(),
        "world_size": world.size,
        "layout": " ".join(f"{name}{getattr(config.parallel, name)}" for name in ("tp", "pp", "ep", "etp", "cp")),
        "host": platform.node(),
    })
    write_json(folder.run, content)


def _versions() -> dict[str, str]:
    """What computed this part of the run: Python, the libraries whose numbers it depends on, and the accelerator."""
    found = {"python": platform.python_version()}
    for name in ("torch", "megatron-core", "transformer-engine", "triton", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found | {"accelerator": gpu_name() or "CPU"}


def _first_line(config: RunConfig, world: World) -> str:
    note = emulation_note(config.precision)
    return (f"{config.name}: {config.num_steps} steps of {config.tokens_per_step:,} tokens on {world.size} rank(s), "
            f"run folder {config.run_folder}{note and f', {note}'}")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
