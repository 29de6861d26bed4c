"""What did this run do, on one page?

In: a run folder (see `run_folder`). Out: `report.html`, one file that needs no network: headline figures first, then
pictures, then tables, then the whole configuration. Invariant: the page is a pure function of the folder, says in
words what the folder lacks, and never shows a score without its interval and its chance level.
"""

import json
import statistics
from html import escape
from pathlib import Path
from typing import Any

from megatron_jmed.evaluate.page import details, page, section, table
from megatron_jmed.evaluate.report_data import blend_figures, blend_tables, count
from megatron_jmed.evaluate.report_exams import exam_notes, exam_parts, exam_tiles
from megatron_jmed.evaluate.report_plan import plain, plan_tables, start_tables
from megatron_jmed.evaluate.report_training import END_RECORDS, expert_figures, finite, is_dense, load_ratios, training_parts
from megatron_jmed.evaluate.run import Run, read_run
from megatron_jmed.evaluate.svg import short_number

ALL_SOURCES = "all"  # the name under which the trainer writes the loss over every source

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
        section("Training", training_parts(run), "no training step is in metrics.jsonl"),
        section("Experts", expert_figures(run), "the model is dense: it has no experts" if is_dense(run) else
                "no expert load was recorded"),
        section("Data", [*blend_figures(run), *blend_tables(run)], "no blend.json is in the run folder"),
        section("Exams", exam_parts(run.scores), "no exam was taken"),
        section("Checkpoints", _checkpoint_tables(run), "no checkpoint was saved"),
        section("Plan", plan_tables(run), "no budget or no step was recorded"),
        section("Environment", start_tables(run), "no run.json is in the run folder"),
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
    if is_dense(run):
        parts.append("dense")
    elif {"num_experts", "router_topk"} <= set(model):
        parts.append(f"{model['num_experts']} experts, {model['router_topk']} for each token")
    layout = [f"{key} {parallel[key]}" for key in ("tp", "pp", "ep", "cp") if parallel.get(key)]
    parts += [", ".join(layout)] if layout else []
    parts += [run.config["precision"]["compute"]] if "compute" in run.config.get("precision", {}) else []
    return " · ".join(parts) or "Report of one training run"


def _tiles(run: Run) -> str:
    tiles = [*_progress_tiles(run), *exam_tiles(run.scores)]
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
    losses = finite(steps, "loss")[-END_RECORDS:]
    if losses:
        tiles.append(("Training loss", f"{statistics.fmean(losses):.3f}", f"mean of the last {len(losses)} records"))
    if run.metrics.validation:
        last = run.metrics.validation[-1]
        by_source = {name: loss for name, loss in last["valid_loss"].items() if name != ALL_SOURCES}
        value = last["valid_loss"].get(ALL_SOURCES, statistics.fmean(by_source.values()))
        note = f"{len(by_source)} sources" if len(by_source) > 1 else "one source"
        tiles.append(("Validation loss", f"{value:.3f}", f"{note}, step {last['step']:,}"))
    speed, tflops = finite(steps, "tokens_per_second"), finite(steps, "tflops_per_second_per_gpu")
    if speed:
        note = f"{statistics.median(tflops):.4g} TFLOP/s per GPU; medians" if tflops else "median"
        tiles.append(("Tokens per second", short_number(statistics.median(speed)), note))
    ratios = load_ratios(run)
    if ratios:
        layer, worst = max(enumerate(map(max, ratios)), key=lambda item: item[1])
        tiles.append(("Busiest expert", f"{worst:.2f} ×", f"the mean load of its layer (layer {layer})"))
    return tiles


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
        num_bad = sum(key in r for r in steps) - len(finite(steps, key))
        if num_bad:
            notes.append(f"{key} was not a finite number at {num_bad} of {len(steps)} steps.")
    notes += [f"Alarm {alarm['name']} at step {alarm['step']} ({alarm['action']}): {alarm['sentence']}."
              for alarm in run.metrics.alarms]
    if steps and not run.metrics.validation:
        notes.append("No validation was run.")
    notes += exam_notes(run.scores)
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if notes else ""


# --- tables --------------------------------------------------------------------------------------------------------


def _checkpoint_tables(run: Run) -> list[str]:
    rows = [[f"{c['step']:,}", count(c["tokens"])] for c in run.checkpoints]
    return [table("", ["step", "tokens"], rows, num_texts=0)] if rows else []


def _config_parts(run: Run) -> list[str]:
    if not run.config:
        return []
    rows = []
    for group, names in CONFIG_SUMMARY.items():
        found = [(name.rpartition(".")[2], _look_up(run.config, name)) for name in names]
        words = " · ".join(f"{name} {plain(value)}" for name, value in found if value is not None)
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
