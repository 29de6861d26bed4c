"""What must somebody know who downloads this model?

In: a `Run`, and what only people know (licence, base model). Out: README.md for a Hugging Face folder: the metadata block that the
hub reads (language, licence, library, base model, scores as a model index), then the same facts in words.
Invariant: nothing stands here that is neither in the run folder nor said by the caller; what is not known is said to be not known.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.report_exams import METHOD_NAMES, exam_notes, first_of, interval_text, latest_of_each, percent
from megatron_jmed.evaluate.report_training import END_RECORDS, finite, is_dense
from megatron_jmed.evaluate.run import Run, read_run
from megatron_jmed.evaluate.svg import short_number


@dataclass(frozen=True)
class CardWords:
    """What the run does not know: the licence's name on the hub, the base model's id there."""

    licence: str = "other"
    base_model: str | None = None


def write_card(run_folder: Path, hf_folder: Path, words: CardWords = CardWords()) -> Path:
    """Write HF_FOLDER/README.md; ExamError where the folder is no model's, whose README.md would be written over."""
    if not (hf_folder / "config.json").is_file():
        raise ExamError(f"{hf_folder}: no Hugging Face folder (no config.json); give the one that tools/export_hf.py wrote")
    target = hf_folder / "README.md"
    partial = target.with_name("README.md.partial")
    partial.write_text(render_card(read_run(run_folder), words), encoding="utf-8")
    partial.replace(target)
    return target


def render_card(run: Run, words: CardWords) -> str:
    name = str(run.config.get("name") or run.name)
    facts = [_training(run), _data(run), _scores(run), _limits(run)]
    parts = [_metadata(run, words, name), f"# {name}", _what_it_is(run, words), *facts]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(run: Run, words: CardWords, name: str) -> str:
    """The hub's YAML block; every value is written as JSON, which YAML reads."""
    fields: dict[str, Any] = {
        "language": sorted({s["lang"] for s in run.blend if s["lang"]}) or None,
        "license": words.licence,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": words.base_model,
        "tags": ["medical", *([] if is_dense(run) else ["moe"]), "megatron-core"],
        "model-index": [{"name": name, "results": [_result(s) for s in latest_of_each(run.scores)]}] if run.scores else None,
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items() if value is not None]
    return "\n".join(["---", *lines, "---"])


def _result(scores: dict[str, Any]) -> dict[str, Any]:
    metrics = [{"type": "accuracy", "name": f"accuracy ({METHOD_NAMES[m]})", "value": round(scores["accuracy"][m]["accuracy"], 4)}
               for m in scores["methods"] if scores["accuracy"][m]["accuracy"] is not None]
    return {"task": {"type": "question-answering", "name": "multiple choice"},
            "dataset": {"type": scores["exam"], "name": scores["exam"]}, "metrics": metrics}  # fmt: skip


def _what_it_is(run: Run, words: CardWords) -> str:
    model = run.config.get("model", {})
    kind = "A dense language model" if is_dense(run) else "A Mixture-of-Experts language model"
    labels = {"num_layers": "layers", "num_experts": "experts", "router_topk": "of them for each token"}
    shape = [f"{model[key]} {label}" for key, label in labels.items() if model.get(key)]
    start = f", trained from {words.base_model or '`' + str(run.config.get('init', 'not known')) + '`'}"
    width = f"width {model.get('hidden_size', 'not known')}"
    return f"{kind} ({', '.join([*shape, width])}){start} with megatron_jmed."


def _training(run: Run) -> str:
    steps = run.metrics.training
    if not steps:
        return "## Training\n\nNo step was recorded."
    losses = finite(steps, "loss")[-END_RECORDS:]
    optim, budget, precision = (run.config.get(part, {}) for part in ("optim", "budget", "precision"))
    facts = [
        ("tokens", f"{steps[-1]['tokens']:,} in {steps[-1]['step']:,} steps"),
        ("training loss at the end", f"{statistics.fmean(losses):.4f} nats a token" if losses else "not finite"),
        ("validation loss at the end", _validation(run)),
        ("sequence length, batch", f"{budget.get('seq_length', '?')} tokens, {budget.get('global_batch_size', '?')} sequences"),
        ("learning rate", f"{optim.get('peak_lr', '?')} to {optim.get('min_lr', '?')}, {optim.get('schedule', '?')}"),
        ("precision", str(precision.get("compute", "?"))),
        ("alarms", str(len(run.metrics.alarms))),
        ("code, libraries", _environment(run)),
    ]
    return "## Training\n\n" + _table(["what", "value"], [list(fact) for fact in facts])


def _validation(run: Run) -> str:
    if not run.metrics.validation:
        return "not validated"
    return ", ".join(f"{name} {loss:.4f}" for name, loss in sorted(run.metrics.validation[-1]["valid_loss"].items()))


def _environment(run: Run) -> str:
    starts = run.facts.get("starts", [])
    if not starts:
        return "not recorded"
    last = starts[-1]
    versions = [f"{name} {version}" for name, version in last.get("versions", {}).items()]
    return ", ".join([f"megatron_jmed {last.get('code_version', '?')}", f"{last.get('world_size', '?')} ranks", *versions])


def _data(run: Run) -> str:
    if not run.blend:
        return "## Trained on\n\nNot recorded."
    total = sum(s.get("consumed_tokens", s["planned_tokens"]) for s in run.blend) or 1
    rows = []
    for s in run.blend:
        read = s.get("consumed_tokens", s["planned_tokens"])
        rows.append([s["name"], s["lang"] or "not stated", short_number(read), f"{read / total:.1%}", f"{s['epochs']:.2f}"])
    return "## Trained on\n\n" + _table(["source", "language", "tokens read", "share", "epochs"], rows)


def _scores(run: Run) -> str:
    if not run.scores:
        return "## Scores\n\nNo exam was taken."
    rows = []
    for scores in latest_of_each(run.scores):
        s = first_of(scores)
        clean = scores["by_contamination"].get("clean", {}).get(scores["methods"][0])
        rows.append([scores["exam"], f"{scores.get('template', '?')}, {METHOD_NAMES[scores['methods'][0]]}", percent(s["accuracy"]),
                     interval_text(s), percent(s["chance"]), percent(clean["accuracy"]) if clean else "not checked",
                     f"{s['points']} / {s['points_possible']}"])  # fmt: skip
    head = ["exam", "put", "accuracy", "95% interval", "chance", "on the clean questions", "points"]
    notes = "\n".join(f"- {note}" for note in exam_notes(run.scores))
    return "\n\n".join(["## Scores", _table(head, rows), notes]).rstrip()


def _limits(run: Run) -> str:
    said = "This is a research model. Its answers are no medical advice, and it was not tested for use in care."
    if run.scores:
        picked = sum(first_of(scores)["num_forbidden_picked"] for scores in latest_of_each(run.scores))
        said += f" In the exams above it picked {picked} choices that would harm a patient."
    return f"## Limits\n\n{said}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
