"""What did this run do, on one page?

In: a run folder (see `run_folder`). Out: `report.html`, one file that needs no network: headline figures first, then
pictures, then tables, then the whole configuration. Invariant: the page is a pure function of the folder, says in
words what the folder lacks, and never shows a score without its interval and its chance level.
"""

import json
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from megatron_jmed.evaluate.page import details, figure, page, section, table
from megatron_jmed.evaluate.run import Run, read_run
from megatron_jmed.evaluate.score import METHODS
from megatron_jmed.evaluate.svg import (
    Bar,
    Interval,
    Line,
    Panel,
    bar_chart,
    heat_map,
    interval_chart,
    line_chart,
    short_number,
)

ALL_SOURCES = "all"  # the name under which the trainer writes the loss over every source
TOKENS_AXIS = "tokens trained on"
END_RECORDS = 10  # "at the end" means the mean over this many last records, so that one odd batch does not decide
MIN_CATEGORY = 5  # smaller categories go to the table only: their interval covers nearly everything
METHOD_NAMES = {"sum": "sum", "per_token": "per token"}

# The decisions a reader asks for first; the whole config follows below them.
CONFIG_SUMMARY = {
    "Model": ("model.num_layers", "model.hidden_size", "model.num_attention_heads", "model.ffn_hidden_size",
              "model.num_experts", "model.router_topk", "model.vocab_size"),
    "Layout": ("parallel.tp", "parallel.pp", "parallel.ep", "parallel.cp", "parallel.dispatcher"),
    "Precision": ("precision.compute", "precision.fp8_recipe", "precision.fp8_wgrad", "precision.bf16_first_layers",
                  "precision.bf16_last_layers", "precision.backend"),
    "Optimizer": ("optim.peak_lr", "optim.min_lr", "optim.warmup_tokens", "optim.schedule", "optim.weight_decay",
                  "optim.clip_grad"),
    "Budget": ("budget.total_tokens", "budget.seq_length", "budget.global_batch_size", "budget.micro_batch_size",
               "budget.recompute"),
    "Start": ("init", "seed"),
}  # fmt: skip


def write_report(run_folder: Path | str, target: Path | str | None = None) -> Path:
    """Write the report of a run, by default as report.html in its folder; the file appears whole or not at all."""
    target = Path(target or Path(run_folder) / "report.html")
    page = render_report(read_run(run_folder))
    partial = target.with_name(target.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(target)
    return target


def render_report(run: Run) -> str:
    """The whole page as HTML."""
    name = run.config.get("name") or run.name
    sections = [
        section("Training", _training_parts(run), "no training step is in metrics.jsonl"),
        section("Experts", _expert_figures(run), "the model is dense: it has no experts" if _is_dense(run) else
                "no expert load was recorded"),
        section("Data", [*_blend_figures(run), *_blend_tables(run)], "no blend.json is in the run folder"),
        section("Exams", [part for s in run.scores for part in _exam_parts(s)], "no exam was taken"),
        section("Checkpoints", _checkpoint_tables(run), "no checkpoint was saved"),
        section("Run", _run_tables(run), "no run.json is in the run folder"),
        section("Configuration", _config_parts(run), "no config.json is in the run folder"),
    ]
    body = [
        f"<header><h1>{escape(name)}</h1><p>{escape(_subtitle(run))}</p></header>",
        _tiles(run),
        _notes(run),
        *sections,
    ]
    return page(f"Report: {name}", body)


# --- headline ------------------------------------------------------------------------------------------------------


def _subtitle(run: Run) -> str:
    model, parallel = run.config.get("model", {}), run.config.get("parallel", {})
    parts = []
    if {"num_layers", "hidden_size"} <= set(model):
        parts.append(f"{model['num_layers']} layers of width {model['hidden_size']}")
    if _is_dense(run):
        parts.append("dense")
    elif {"num_experts", "router_topk"} <= set(model):
        parts.append(f"{model['num_experts']} experts, {model['router_topk']} for each token")
    layout = [f"{key} {parallel[key]}" for key in ("tp", "pp", "ep", "cp") if parallel.get(key)]
    parts += [", ".join(layout)] if layout else []
    parts += [run.config["precision"]["compute"]] if "compute" in run.config.get("precision", {}) else []
    return " · ".join(parts) or "Report of one training run"


def _tiles(run: Run) -> str:
    tiles = [*_progress_tiles(run), *_exam_tiles(run)]
    cells = [
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(note)}</small></div>'
        for name, value, note in tiles
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _progress_tiles(run: Run) -> list[tuple[str, str, str]]:
    steps = run.metrics.training
    if not steps:
        return [("Training", "none", "no step was recorded")]
    tokens, planned = steps[-1]["tokens"], run.config.get("budget", {}).get("total_tokens")
    share = f"{tokens / planned:.0%} of {short_number(planned)} planned; " if planned else ""
    tiles = [("Tokens", short_number(tokens), f"{share}{steps[-1]['step']:,} steps")]
    losses = _finite(steps, "loss")[-END_RECORDS:]
    if losses:
        tiles.append(("Training loss", f"{statistics.fmean(losses):.3f}", f"mean of the last {len(losses)} records"))
    if run.metrics.validation:
        last = run.metrics.validation[-1]
        by_source = {name: loss for name, loss in last["valid_loss"].items() if name != ALL_SOURCES}
        value = last["valid_loss"].get(ALL_SOURCES, statistics.fmean(by_source.values()))
        note = f"{len(by_source)} sources" if len(by_source) > 1 else "one source"
        tiles.append(("Validation loss", f"{value:.3f}", f"{note}, step {last['step']:,}"))
    speed, tflops = _finite(steps, "tokens_per_second"), _finite(steps, "tflops_per_second_per_gpu")
    if speed:
        note = f"{statistics.median(tflops):.4g} TFLOP/s per GPU; medians" if tflops else "median"
        tiles.append(("Tokens per second", short_number(statistics.median(speed)), note))
    ratios = _load_ratios(run)
    if ratios:
        layer, worst = max(enumerate(map(max, ratios)), key=lambda item: item[1])
        tiles.append(("Busiest expert", f"{worst:.2f} ×", f"the mean load of its layer (layer {layer})"))
    return tiles


def _exam_tiles(run: Run) -> list[tuple[str, str, str]]:
    tiles = []
    for scores in run.scores:
        s = scores["accuracy"]["sum"]
        value = "–" if s["accuracy"] is None else f"{s['accuracy']:.1%}"
        note = s["verdict"] if s["chance"] is None else f"{_interval(s)}; chance {s['chance']:.1%}: {s['verdict']}"
        tiles.append((f"{scores['exam']}, accuracy", value, note))
    return tiles or [("Exams", "none", "no exam was taken")]


def _notes(run: Run) -> str:
    """What the reader must know before believing the pictures, in words."""
    steps, notes = run.metrics.training, []
    if run.metrics.num_replaced:
        notes.append(
            f"{run.metrics.num_replaced} records were replaced after a resume; the last record of a step counts."
        )
    if run.metrics.is_cut:
        notes.append(
            "The last line of metrics.jsonl is incomplete (the run is still going, or was killed) and was left out."
        )
    for key in ("loss", "grad_norm"):
        num_bad = sum(key in r for r in steps) - len(_finite(steps, key))
        if num_bad:
            notes.append(f"{key} was not a finite number at {num_bad} of {len(steps)} steps.")
    notes += [f"Alarm {alarm['name']} at step {alarm['step']} ({alarm['action']}): {alarm['sentence']}."
              for alarm in run.metrics.alarms]
    if steps and not run.metrics.validation:
        notes.append("No validation was run.")
    for scores in run.scores:
        notes += [
            f"{scores['exam']}: {count} of {scores['num_questions']} questions were not scored ({reason})."
            for reason, count in scores["not_scored"].items()
        ]
        luck = [
            METHOD_NAMES[m] for m in METHODS if scores["accuracy"][m]["verdict"] == "not distinguishable from chance"
        ]
        if luck:
            notes.append(f"{scores['exam']} (compared by {' and by '.join(luck)}): not distinguishable from chance.")
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if notes else ""


# --- training ------------------------------------------------------------------------------------------------------


def _training_parts(run: Run) -> list[str]:
    """Left the loss, right what was validated and how fast it went."""
    steps = run.metrics.training
    if not steps:
        return []
    panels = _panels(steps, [("loss", "training loss (nats per token)"), ("aux_loss", "router auxiliary loss"),
                             ("grad_norm", "gradient norm"), ("lr", "learning rate")])  # fmt: skip
    alt = "Training loss, gradient norm and learning rate over tokens"
    caption = "Lines are means of neighbouring steps; the band reaches from their smallest to their largest value."
    loss = figure("Loss, gradient and learning rate", caption, line_chart(alt, panels, TOKENS_AXIS))
    right = [*_validation_figures(run.metrics.validation), *_speed_figures(run)]
    return [loss, f'<div class="stack">{"".join(right)}</div>']


def _validation_figures(records: Sequence[dict[str, Any]]) -> list[str]:
    if not records:
        return []
    sources = sorted({source for record in records for source in record["valid_loss"]})
    lines = []
    for source in sources:
        mine = [r for r in records if source in r["valid_loss"]]
        lines.append(Line(source, [r["tokens"] for r in mine], [r["valid_loss"][source] for r in mine], dots=True))
    chart = line_chart(
        "Validation loss of each source over tokens", [Panel("validation loss (nats per token)", lines)], TOKENS_AXIS,
        panel_height=190,
    )  # fmt: skip
    return [figure("Validation loss by source", "Held-out text of each source of the blend.", chart, sources)]


def _speed_figures(run: Run) -> list[str]:
    panels = _panels(
        run.metrics.training,
        [("tokens_per_second", "tokens per second, whole job"), ("tflops_per_second_per_gpu", "TFLOP/s per GPU"),
         ("step_seconds", "seconds per step")],
        from_zero=True,
    )  # fmt: skip
    if not panels:
        return []
    chart = line_chart("Throughput over tokens", panels, TOKENS_AXIS, panel_height=130)
    return [
        figure(
            "Throughput", "Medians are at the top of the page; short dips are usually checkpoints or validation.", chart
        )
    ]


def _panels(steps: Sequence[dict[str, Any]], wanted: Sequence[tuple[str, str]], from_zero: bool = False) -> list[Panel]:
    """A panel for every wanted key that was recorded."""
    panels = []
    for key, label in wanted:
        mine = [r for r in steps if r.get(key) is not None]
        if not mine:
            continue
        line = Line(key, [r["tokens"] for r in mine], [r[key] for r in mine], banded=True)
        panels.append(Panel(label, [line], from_zero=from_zero or key == "lr", may_be_log=key == "grad_norm"))
    return panels


def _finite(records: Sequence[dict[str, Any]], key: str) -> list[float]:
    values = [r[key] for r in records if r.get(key) is not None]
    return [value for value in values if abs(value) < float("inf")]


# --- experts -------------------------------------------------------------------------------------------------------


def _is_dense(run: Run) -> bool:
    return run.config.get("model", {}).get("num_experts") == 0


def _load_ratios(run: Run) -> list[list[float]]:
    """Layers x experts: the load of an expert relative to the mean of its layer, over the last records."""
    records = [r["expert_load"] for r in run.metrics.training if r.get("expert_load")][-END_RECORDS:]
    if not records:
        return []
    means = [[statistics.fmean(shares) for shares in zip(*layer, strict=True)] for layer in zip(*records, strict=True)]
    return [[share * len(layer) / (sum(layer) or 1) for share in layer] for layer in means]


def _expert_figures(run: Run) -> list[str]:
    ratios = _load_ratios(run)
    if not ratios:
        return []
    by_expert = [list(column) for column in zip(*ratios, strict=True)]
    heat = heat_map("Load of every expert in every layer relative to its layer's mean", by_expert, "expert", "layer")
    key = '<ul class="legend"><li><i class="hot"></i>above the mean</li><li><i class="cold"></i>below</li></ul>'
    caption = f"1 is an equal share; colour is full at the double and the half. Mean of the last {END_RECORDS} records."
    records = [r for r in run.metrics.training if r.get("expert_load")]
    worst = [[max(layer) * len(layer) / (sum(layer) or 1) for layer in r["expert_load"]] for r in records]
    xs = [r["tokens"] for r in records]
    lines = [Line("worst layer", xs, [max(w) for w in worst], banded=True),
             Line("mean of the layers", xs, [statistics.fmean(w) for w in worst], banded=True)]  # fmt: skip
    worst_case = f"1 is balanced; {len(by_expert)} would be all tokens with one expert."
    panel = Panel("busiest expert / mean load of its layer", lines, marks=((1.0, "balanced"),))
    chart = line_chart("Imbalance of expert load over tokens", [panel], TOKENS_AXIS, width=1130, panel_height=180)
    return [
        figure("Expert load at the end, relative to the layer's mean", caption, key + heat, wide=True),
        figure("Imbalance over time", worst_case, chart, [x.name for x in lines], wide=True),
    ]


# --- data ----------------------------------------------------------------------------------------------------------


def _blend_figures(run: Run) -> list[str]:
    if not run.blend:
        return []
    with_consumed = any("consumed_tokens" in source for source in run.blend)
    kinds = ["planned_tokens", *(["consumed_tokens"] if with_consumed else [])]
    legend = ["planned", "consumed"][: len(kinds)]
    totals = [sum(source.get(kind, 0) for source in run.blend) or 1 for kind in kinds]
    languages = list(dict.fromkeys(source["lang"] for source in run.blend))

    def bar(label: str, sources: Sequence[dict[str, Any]], suffix: str = "") -> Bar:
        shares = [sum(s.get(kind, 0) for s in sources) / total for kind, total in zip(kinds, totals, strict=True)]
        return Bar(label, shares, f"{shares[0]:.1%}{suffix}")

    by_source = [bar(s["name"], [s], f" · {s['epochs']:.3g} epochs") for s in run.blend]
    by_language = [bar(lang or "not stated", [s for s in run.blend if s["lang"] == lang]) for lang in languages]
    by_language.sort(key=lambda row: -row.values[0])
    what = "share of tokens"
    return [
        figure("Blend by source", "Share of the run's tokens, and how often each source is read in the plan.",
                bar_chart("Share of every source in the blend", by_source, what), legend if with_consumed else ()),
        figure("Blend by language", "The same tokens, summed by language.",
                bar_chart("Share of every language in the blend", by_language, what), legend if with_consumed else ()),
    ]  # fmt: skip


def _blend_tables(run: Run) -> list[str]:
    if not run.blend:
        return []
    head = ["source", "language", "documents", "tokens", "planned tokens", "epochs", "consumed tokens"]
    rows = [
        [s["name"], s["lang"], _count(s["num_documents"]), _count(s["num_tokens"]), _count(s["planned_tokens"]),
         f"{s['epochs']:.3f}", _count(s.get("consumed_tokens"))]
        for s in run.blend
    ]  # fmt: skip
    return [table("Sources", head, rows, num_texts=2)]


# --- exams ---------------------------------------------------------------------------------------------------------


def _exam_parts(scores: dict[str, Any]) -> list[str]:
    title = f"{scores['exam']}: {scores['model']['name']}"
    shots = scores.get("num_shots", 0)
    asked = f"{scores['num_scored']} of {scores['num_questions']} questions scored, {shots} solved examples shown"
    whole = [
        *((f"all ({METHOD_NAMES[m]})", scores["accuracy"][m], True) for m in METHODS),
        *((name, s["sum"], False) for name, s in scores["by_image"].items()),
        *((name, s["sum"], False) for name, s in scores["by_type"].items()),
        *((f"year {name}", s["sum"], False) for name, s in scores["by_year"].items()),
    ]
    large = [
        (name, s["sum"], False)
        for name, s in scores["by_category"].items()
        if s["sum"]["num_scored"] >= MIN_CATEGORY and name != "unknown"
    ]
    large.sort(key=lambda row: -row[1]["accuracy"])
    left = [_exam_figure(f"Accuracy, {title}", f"{asked}. Groups are compared by sum.", whole), _exam_summary(scores)]
    parts = [f'<div class="stack">{"".join(left)}</div>']
    if large:
        caption = (
            f"Compared by sum; categories with at least {MIN_CATEGORY} scored questions, best first. "
            "About one interval in twenty misses the truth by luck alone."
        )
        parts.append(_exam_figure(f"Accuracy by category, {scores['exam']}", caption, large))
    return [*parts, _exam_table(scores)]


def _exam_figure(title: str, caption: str, rows: Sequence[tuple[str, dict[str, Any], bool]]) -> str:
    intervals = [
        Interval(name, s["accuracy"], s["interval_low"], s["interval_high"], s["chance"],
                 f"{s['accuracy']:.1%}  ({s['num_correct']}/{s['num_scored']})", heading)
        for name, s, heading in rows
        if s["accuracy"] is not None
    ]  # fmt: skip
    if not intervals:
        return figure(title, "No question could be scored.", "")
    legend = ["accuracy with 95% interval", "chance"]
    hint = f"{caption} A hollow dot: not distinguishable from chance."
    return figure(title, hint, interval_chart(title, intervals, "accuracy"), legend)


def _exam_summary(scores: dict[str, Any]) -> str:
    """The whole exam in words and numbers, one column for each way of comparing."""
    rows = [
        ("right, of those scored", lambda s: f"{s['num_correct']} of {s['num_scored']}"),
        ("accuracy", lambda s: "–" if s["accuracy"] is None else f"{s['accuracy']:.1%}"),
        ("95% interval", _interval),
        ("chance", lambda s: "–" if s["chance"] is None else f"{s['chance']:.1%}"),
        ("verdict", lambda s: s["verdict"]),
        ("accuracy over all questions", lambda s: f"{s['accuracy_over_all']:.1%}"),
        ("points", lambda s: f"{s['points']} of {s['points_possible']}"),
        ("questions with a forbidden choice picked", lambda s: str(s["num_forbidden_picked"])),
    ]
    head = ["compared by", *(METHOD_NAMES[m] for m in METHODS)]
    cells = [[name, *(value(scores["accuracy"][m]) for m in METHODS)] for name, value in rows]
    note = "“Over all” counts questions that could not be scored as wrong. Forbidden choices would harm the patient."
    return table("The whole exam", head, cells, num_texts=1, note=note, wide=False)


def _exam_table(scores: dict[str, Any]) -> str:
    head = ["group", "compared by", "right", "accuracy", "95% interval", "chance", "verdict", "over all", "points",
            "forbidden picked"]  # fmt: skip
    groups = [("all", scores["accuracy"])]
    for key in ("by_year", "by_type", "by_image", "by_paper", "by_category"):
        groups += list(scores[key].items())
    rows = [_exam_row(name, method, by_method[method]) for name, by_method in groups for method in METHODS]
    return details(f"All scores of {scores['exam']}", table("", head, rows, num_texts=2))


def _exam_row(name: str, method: str, s: dict[str, Any]) -> list[str]:
    right, points = f"{s['num_correct']} / {s['num_scored']}", f"{s['points']} / {s['points_possible']}"
    if s["accuracy"] is None:
        return [name, METHOD_NAMES[method], right, "–", "–", "–", s["verdict"], "–", points, "–"]
    numbers = [
        f"{s['accuracy']:.1%}",
        _interval(s),
        f"{s['chance']:.1%}",
        s["verdict"],
        f"{s['accuracy_over_all']:.1%}",
    ]
    return [name, METHOD_NAMES[method], right, *numbers, points, str(s["num_forbidden_picked"])]


def _interval(s: dict[str, Any]) -> str:
    return f"{100 * s['interval_low']:.1f}–{100 * s['interval_high']:.1f}%"


# --- tables --------------------------------------------------------------------------------------------------------


def _checkpoint_tables(run: Run) -> list[str]:
    rows = [[f"{c['step']:,}", _count(c["tokens"])] for c in run.checkpoints]
    return [table("", ["step", "tokens"], rows, num_texts=0)] if rows else []


def _run_tables(run: Run) -> list[str]:
    starts = run.facts.get("starts", [])
    names = list(dict.fromkeys(name for start in starts for name in start))
    rows = [[_plain(start.get(name, "")) for name in names] for start in starts]
    tables = [table("Starts", [name.replace("_", " ") for name in names], rows, num_texts=len(names))] if rows else []
    others = [[key, _plain(value)] for key, value in run.facts.items() if key != "starts"]
    return tables + ([table("", ["what", "value"], others, num_texts=2)] if others else [])


def _config_parts(run: Run) -> list[str]:
    if not run.config:
        return []
    rows = []
    for group, names in CONFIG_SUMMARY.items():
        found = [(name.rpartition(".")[2], _look_up(run.config, name)) for name in names]
        words = " · ".join(f"{name} {_plain(value)}" for name, value in found if value is not None)
        rows += [[group, words]] if words else []
    whole = f"<pre>{escape(json.dumps(run.config, indent=2, ensure_ascii=False))}</pre>"
    return [
        table("", ["part", "decisions"], rows, num_texts=2) if rows else "",
        details("The whole config.json", whole),
    ]


def _look_up(config: dict[str, Any], dotted: str) -> Any:
    value: Any = config
    for word in dotted.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    return value


def _plain(value: Any) -> str:
    """Texts as they are, large numbers with separators, everything else as JSON."""
    if type(value) is int and value >= 10000:
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
