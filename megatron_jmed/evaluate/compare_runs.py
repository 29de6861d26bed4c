"""How do several runs compare?

In: run folders. Out: one page that needs no network: a table of headline figures, then losses of all runs in one picture, then
every exam that more than one run has sat.
Invariant: runs are compared on the same axis (tokens), and exams only where the same questions were put in the same way.
"""

import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.page import figure, page, section, table
from megatron_jmed.evaluate.report_exams import METHOD_NAMES, first_of, interval_text, latest_of_each, percent, sitting_key
from megatron_jmed.evaluate.report_training import END_RECORDS, TOKENS_AXIS, finite, load_ratios
from megatron_jmed.evaluate.run import Run, read_run
from megatron_jmed.evaluate.score_table import passed_as_text
from megatron_jmed.evaluate.svg import Interval, Line, Panel, interval_chart, line_chart, short_number

ALL_SOURCES = "all"


def write_comparison(run_folders: Sequence[Path], target: Path) -> Path:
    """Write the comparison page of at least two runs; it appears whole or not at all."""
    if len(run_folders) < 2:
        raise ExamError(f"{len(run_folders)} run folder; a comparison needs at least two")
    runs = [read_run(folder) for folder in run_folders]
    names = _names(runs, run_folders)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(render_comparison(runs, names), encoding="utf-8")
    partial.replace(target)
    return target


def _names(runs: Sequence[Run], folders: Sequence[Path]) -> list[str]:
    """The runs' own names, or their folders where names repeat."""
    names = [str(run.config.get("name") or run.name) for run in runs]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def render_comparison(runs: Sequence[Run], names: Sequence[str]) -> str:
    sections = [
        section("Runs", [_headline(runs, names), *_differences(runs, names)], ""),
        section("Losses", _loss_figures(runs, names), "no step was recorded"),
        section("Exams", _exam_figures(runs, names), "no exam was sat by more than one run in the same way"),
    ]
    title = f"Comparison: {', '.join(names)}"
    return page(title, [f"<header><h1>{escape(title)}</h1><p>{len(runs)} runs</p></header>", *sections])


def _headline(runs: Sequence[Run], names: Sequence[str]) -> str:
    head = ["run", "tokens", "steps", "training loss", "validation loss", "tokens per second", "busiest expert", "alarms"]
    rows = []
    for run, name in zip(runs, names, strict=True):
        steps = run.metrics.training
        losses, speed, ratios = finite(steps, "loss")[-END_RECORDS:], finite(steps, "tokens_per_second"), load_ratios(run)
        valid = run.metrics.validation[-1]["valid_loss"] if run.metrics.validation else {}
        value = valid.get(ALL_SOURCES, statistics.fmean(valid.values()) if valid else None)
        rows.append([
            name, f"{steps[-1]['tokens']:,}" if steps else "–", f"{steps[-1]['step']:,}" if steps else "–",
            f"{statistics.fmean(losses):.4f}" if losses else "–", "–" if value is None else f"{value:.4f}",
            short_number(statistics.median(speed)) if speed else "–",
            f"{max(map(max, ratios)):.2f} ×" if ratios else "–", str(len(run.metrics.alarms)),
        ])  # fmt: skip
    return table("Headline figures", head, rows, num_texts=1, note=f"Training loss: mean of the last {END_RECORDS} records.")


def _differences(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """The words of the config in which the runs differ."""
    flat = [dict(_flattened("", run.config)) for run in runs]
    words = list(dict.fromkeys(word for config in flat for word in config))
    differing = [word for word in words if len({config.get(word) for config in flat}) > 1]
    rows = [[word, *(config.get(word, "–") for config in flat)] for word in differing]
    return [table("Where their configs differ", ["word", *names], rows, num_texts=len(names) + 1)] if rows else []


def _flattened(prefix: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flattened(f"{prefix}.{key}" if prefix else key, inner)]
    return [(prefix, str(value))]


def _loss_figures(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    training, validation = [], []
    for run, name in zip(runs, names, strict=True):
        steps = [r for r in run.metrics.training if r.get("loss") is not None]
        training.append(Line(name, [r["tokens"] for r in steps], [r["loss"] for r in steps], banded=True))
        checked = [(r["tokens"], r["valid_loss"].get(ALL_SOURCES, statistics.fmean(r["valid_loss"].values())))
                   for r in run.metrics.validation if r["valid_loss"]]  # fmt: skip
        validation.append(Line(name, [x for x, _ in checked], [y for _, y in checked], dots=True))
    figures = []
    for title, lines in (("Training loss", training), ("Validation loss", validation)):
        if any(line.xs for line in lines):
            panel = Panel(f"{title.lower()} (nats per token)", lines)
            chart = line_chart(f"{title} of every run over tokens", [panel], TOKENS_AXIS, panel_height=240)
            figures.append(figure(title, "Validation is over every source where that was recorded.", chart, names, of_lines=True))
    return figures


def _exam_figures(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    groups: dict[object, list[tuple[str, dict]]] = {}
    for run, name in zip(runs, names, strict=True):
        for scores in latest_of_each(run.scores):
            groups.setdefault(sitting_key(scores), []).append((name, scores))
    parts = []
    for group in groups.values():
        if len({name for name, _ in group}) < 2:
            continue
        exam, rows, cells = group[0][1]["exam"], [], []
        for name, scores in group:
            s = first_of(scores)
            verdicts = [by_method[scores["methods"][0]]["passed"] for by_method in scores.get("passing", {}).values()]
            right, points = f"{s['num_correct']} / {s['num_scored']}", f"{s['points']} / {s['points_possible']}"
            passed = ", ".join(map(passed_as_text, verdicts)) or "–"
            cells.append([name, right, percent(s["accuracy"]), interval_text(s), percent(s["chance"]), points, passed])
            if s["accuracy"] is not None:
                ends = s["interval_low"], s["interval_high"]
                rows.append(Interval(name, s["accuracy"], *ends, s["chance"], percent(s["accuracy"])))
        method = METHOD_NAMES[group[0][1]["methods"][0]]
        caption = f"Compared by {method}. Overlapping intervals: use tools/take_exam.py --base for a paired test."
        parts.append(figure(f"Accuracy, {exam}", caption, interval_chart(f"Accuracy in {exam}", rows, "accuracy"),
                            ["accuracy with 95% interval", "chance"]))
        head = ["run", "right", "accuracy", "95% interval", "chance", "points", "passed"]
        parts.append(table(exam, head, cells, num_texts=1, wide=False))
    return parts
