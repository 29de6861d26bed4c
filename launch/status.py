"""How does a run stand? `python launch/status.py RUN...`, on a login node or anywhere that sees the run folders.

For each run: its state, segment, step, tokens, rate, time left, last save, last alarm, last failure, and what the queue says.
A sweep's folder stands for all of its runs (launch/sweep.py). Reads the run folder's files and asks the queue; changes nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a login node need not have the package installed

from launch.run_files import live_job, submitted_ids
from megatron_jmed.config import load_config
from megatron_jmed.errors import ConfigError, run_tool
from megatron_jmed.run_folder import RunFolder

_LAST_BYTES = 4 << 20  # of metrics.jsonl, which grows for months
_RATE_STEPS = 20


@dataclass(frozen=True)
class Status:
    """What the files of a run say; times in seconds, None where nothing is known."""

    run: Path
    state: str
    step: int
    num_steps: int
    tokens: int
    total_tokens: int
    segments: int = 0
    checkpoint: str = ""
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    seconds_since_step: float | None = None
    loss: float | None = None
    alarm: str = ""
    failure: str = ""
    queue: str = ""
    is_live: bool = False  # a job of it is queued or running


def read_status(run: Path) -> Status:
    """The status of a run folder; ConfigError if it is none."""
    folder = RunFolder(run)
    if not folder.config.exists():
        raise ConfigError(f"{run} is no run folder: it has no {folder.config.name}; make one with launch/submit.py")
    config, records = load_config(str(folder.config)), list(_last_records(folder.metrics))
    steps = [record for record in records if "loss" in record]
    alarms = [record["alarm"] for record in records if "alarm" in record]
    rates = [record["tokens_per_second"] for record in steps[-_RATE_STEPS:]]
    latest = folder.latest_checkpoint()
    step = records[-1]["step"] if records else int(latest.name[5:]) if latest else 0
    rate = statistics.median(rates) if rates else None
    left = (config.num_steps - step) * config.tokens_per_step
    live = live_job(folder)
    segments = [line for line in _lines(folder.path / "segments.jsonl") if line["event"] == "start"]
    return Status(
        run=run, state=_state(folder, live, bool(segments), step), step=step, num_steps=config.num_steps,
        tokens=step * config.tokens_per_step, total_tokens=config.num_steps * config.tokens_per_step, segments=len(segments),
        checkpoint=latest.name if latest else "", tokens_per_second=rate, seconds_left=left / rate if rate else None,
        seconds_since_step=time.time() - folder.metrics.stat().st_mtime if steps else None,
        loss=float(steps[-1]["loss"]) if steps else None,
        alarm=f"{alarms[-1]['name']} at step {alarms[-1]['step']}: {alarms[-1]['sentence']}" if alarms else "",
        failure=_last_line(folder.path / "failures.txt"), queue=_queue(folder, live),
        is_live=live is not None,
    )


def _state(folder: RunFolder, live: str | None, has_begun: bool, step: int) -> str:
    if folder.done.exists():
        return "done"
    if live:
        return live.partition("(")[2].rstrip(")").lower()
    if (halted := folder.path / "halted").exists():
        return "stopped" if folder.stopped.exists() else f"halted: {halted.read_text(encoding='utf-8').strip()}"
    if has_begun or not step:
        return "not running" if has_begun else "prepared"
    return "stopped" if folder.stopped.exists() else "begun without a job"


def _queue(folder: RunFolder, live: str | None) -> str:
    """What Slurm says about the job: state, reason of waiting, its expected start, time left."""
    ids = submitted_ids(folder.path / "launch.json")
    if not live:
        return f"job {ids[-1]} is no longer queued" if ids else "never submitted"
    try:
        command = ["squeue", "--noheader", f"--jobs={live.split()[0]}", "--format=%T|%r|%S|%L|%D"]
        words = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip().split("|")
    except (OSError, subprocess.SubprocessError):
        words = []
    if len(words) != 5:
        return f"job {live}"
    state, reason, start, left, nodes = words
    detail = f"{left} left on {nodes} node(s)" if state == "RUNNING" else f"{reason}, expected start {start}"
    return f"job {live.split()[0]} {state}: {detail}"


def lines_of(status: Status) -> Iterator[str]:
    """The status for a person."""
    yield f"{status.run}: {status.state}"
    rate = f", {status.tokens_per_second:,.0f} tokens/s" if status.tokens_per_second else ""
    left = f", {span(status.seconds_left)} left" if status.seconds_left and status.state != "done" else ""
    share = 100 * status.step / status.num_steps
    yield (f"  progress  segment {status.segments}, step {status.step:,} of {status.num_steps:,} ({share:.1f}%), {status.tokens:,} "
           f"of {status.total_tokens:,} tokens{rate}{left}")
    if status.seconds_since_step is not None:
        saved = status.checkpoint or "none"
        yield f"  last      step {span(status.seconds_since_step)} ago, loss {status.loss:.4f}, checkpoint {saved}"
    yield f"  queue     {status.queue}"
    if status.alarm:
        yield f"  alarm     {status.alarm}"
    if status.failure:
        yield f"  failure   {status.failure}"


def table(found: list[Status]) -> Iterator[str]:
    """One line for each run."""
    width = max(len(status.run.name) for status in found)
    yield f"{'run':{width}}  {'step':>15}  {'loss':>8}  {'segments':>8}  state"
    for status in found:
        loss = f"{status.loss:.4f}" if status.loss is not None else "-"
        steps = f"{status.step}/{status.num_steps}"
        yield f"{status.run.name:{width}}  {steps:>15}  {loss:>8}  {status.segments:>8}  {status.state}"


def span(seconds: float) -> str:
    """3725 -> 1:02:05."""
    return str(timedelta(seconds=round(seconds)))


def _last_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records at the end of metrics.jsonl; a line that is being written is left out."""
    if not path.exists():
        return
    with open(path, "rb") as stream:
        begin = max(0, path.stat().st_size - _LAST_BYTES)
        stream.seek(begin)
        lines = stream.read().split(b"\n")
    yield from _objects(path, lines[1 if begin else 0 : -1])


def _objects(path: Path, lines: list[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON object of each line; ConfigError for a line that is none."""
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}: {line[:60]!r} is not JSON ({error}); the file is damaged") from None
        if not isinstance(found, dict):
            raise ConfigError(f"{path}: {line[:60]!r} is no JSON object; the file is damaged")
        yield found


def _lines(path: Path) -> list[dict[str, Any]]:
    return list(_objects(path, path.read_bytes().splitlines())) if path.exists() else []


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return lines[-1] if lines else ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="launch/status.py", description="Say how runs stand.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or a sweep's folder")
    parser.add_argument("--json", action="store_true", help="one JSON object a run")
    words = parser.parse_args()
    runs = [run for path in words.runs for run in (runs_of_sweep(path) or [path])]
    found = [read_status(run) for run in runs]
    if words.json:
        for status in found:
            print(json.dumps(vars(status), default=str))
    elif len(found) > 1:
        print(*table(found), sep="\n")
    else:
        print(*lines_of(found[0]), sep="\n")


def runs_of_sweep(path: Path) -> list[Path]:
    """The run folders of a sweep, in its order; [] if `path` is no sweep."""
    return [path / name for name in read_sweep(path)["runs"]]


def read_sweep(path: Path) -> dict[str, Any]:
    """What sweep.json says; no runs if `path` is no sweep."""
    listed = path / "sweep.json"
    if not listed.exists():
        return {"runs": []}
    try:
        sweep = json.loads(listed.read_text(encoding="utf-8"))
        return sweep | {"runs": [str(name) for name in sweep["runs"]]}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{listed}: does not list a sweep's runs ({error!r}); run launch/sweep.py again, it writes it") from None


if __name__ == "__main__":
    run_tool(main)
