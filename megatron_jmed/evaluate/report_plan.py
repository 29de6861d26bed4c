"""Did the run do what was planned?

In: a `Run`. Out: tables (HTML text): tokens, steps, hours and tokens of each source against the plan, which is the run's
config.json and blend.json; environment and versions of every start.
"""

import json
import statistics
from typing import Any

from megatron_jmed.evaluate.page import table
from megatron_jmed.evaluate.report_data import count
from megatron_jmed.evaluate.report_training import finite
from megatron_jmed.evaluate.run import Run

HOUR = 3600.0


def plan_tables(run: Run) -> list[str]:
    budget, steps = run.config.get("budget", {}), run.metrics.training
    if not budget.get("total_tokens") or not steps:
        return []
    planned, done = budget["total_tokens"], steps[-1]["tokens"]
    tokens_a_step = budget.get("seq_length", 0) * budget.get("global_batch_size", 0)
    rows = [_row("tokens", planned, done)]
    if tokens_a_step:
        rows.append(_row("steps", planned // tokens_a_step, steps[-1]["step"]))
    every = budget.get("save_every_tokens") or 0
    if every and run.checkpoints:
        rows.append(["checkpoints", f"every {count(every)} tokens", f"{len(run.checkpoints)} kept", ""])
    rows += _time_rows(run, planned)
    for source in run.blend:
        fact = source.get("consumed_tokens")
        rows.append(_row(f"tokens of {source['name']}", source["planned_tokens"], fact))
    return [table("Plan against fact", ["what", "planned", "fact", "fact / plan"], rows, num_texts=1)]


def _row(name: str, planned: float, fact: float | None) -> list[str]:
    if fact is None:
        return [name, count(int(planned)), "–", "–"]
    return [name, count(int(planned)), count(int(fact)), f"{fact / planned:.1%}" if planned else "–"]


def _time_rows(run: Run, planned_tokens: int) -> list[list[str]]:
    """Hours of computing: those of the steps that were taken, and what their pace would need for all tokens."""
    seconds, speed = finite(run.metrics.training, "step_seconds"), finite(run.metrics.training, "tokens_per_second")
    if not seconds or not speed:
        return []
    pace = statistics.median(speed)
    return [["hours in steps", f"{planned_tokens / pace / HOUR:,.2f} at the median pace", f"{sum(seconds) / HOUR:,.2f}", ""]]


def start_tables(run: Run) -> list[str]:
    """Every start of the run: when, where, with what."""
    starts = run.facts.get("starts", [])
    flat = [{**{k: v for k, v in start.items() if k != "versions"}, **start.get("versions", {})} for start in starts]
    names = list(dict.fromkeys(name for start in flat for name in start))
    varying = [name for name in names if name in ("time", "step") or len({str(start.get(name)) for start in flat}) > 1]
    shared = [[name.replace("_", " "), plain(flat[-1].get(name, ""))] for name in names if name not in varying]
    tables = []
    if flat and varying:
        rows = [[plain(start.get(name, "")) for name in varying] for start in flat]
        tables.append(table("Starts", [name.replace("_", " ") for name in varying], rows, num_texts=len(varying)))
    if shared:
        tables.append(table("The same at every start", ["what", "value"], shared, num_texts=2))
    others = [[key, plain(value)] for key, value in run.facts.items() if key != "starts"]
    return tables + ([table("", ["what", "value"], others, num_texts=2)] if others else [])


def plain(value: Any) -> str:
    """Texts as they are, large numbers with separators, everything else as JSON."""
    if type(value) is int and value >= 10000:
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
