"""Which corpus makes the better model? Runs of different mixtures -> analysis.json, tables (CSV, Parquet) and one page, study.html.

`python tools/analyze_mixture.py RUNS... --target "exam cloze" --out STUDY [--design STUDY/design.json] [--plan PLAN.toml]`
RUNS are run folders, or folders of them. Features of the texts come from --datasheet (tools/describe_corpus.py) or are counted here
with --tokenizer; domains and the planner's constraints come from --plan. Run it in the folder in which the training was started.
The same folders give the same bytes.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_jmed.corpus.blend_plan import load_plan
from megatron_jmed.errors import ExamError, run_tool, some_of
from megatron_jmed.evaluate.mixture_page import render_study
from megatron_jmed.evaluate.mixture_runs import Study, read_study
from megatron_jmed.evaluate.mixture_scores import last_losses
from megatron_jmed.evaluate.mixture_statistics import analyze
from megatron_jmed.evaluate.mixture_tables import write_tables
from megatron_jmed.evaluate.mixture_texts import SourceTexts
from megatron_jmed.evaluate.run import read_run


def main() -> None:
    words = _arguments()
    plan = load_plan(words.plan) if words.plan else None
    design = _read_design(words.design) if words.design else None
    study = read_study(
        words.runs, SourceTexts(words.datasheet, words.tokenizer, words.terms, words.exam_words), design=design,
        domains={source.name: source.domain for source in plan.sources} if plan else None,
        base_losses=last_losses(read_run(words.base_model)) if words.base_model else None,
        method=words.method, allow_unfinished=words.allow_unfinished)  # fmt: skip
    study = _chosen(study, words.target, words.features)
    analysis = analyze(study.runs, words.target, design, plan)
    analysis = _finite(analysis | {"scaling": study.scaling, "notes": [*analysis.get("notes", []), *study.notes]})
    words.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(analysis, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    _write(words.out / "analysis.json", text)
    write_tables(analysis, words.out / "tables")
    _write(words.out / "study.html", render_study(analysis, words.title))
    print(f"{len(study.runs)} runs, {len(analysis['features'])} features, {len(analysis['targets'])} scores")
    print(*study.notes, analysis["proposal"]["text"] if analysis["proposal"] else "no mixture is proposed", sep="\n")
    print(f"the report of the study is at {(words.out / 'study.html').resolve()}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUNS", help="run folders, or folders that hold them")
    parser.add_argument("--target", required=True, help='the score that decides, such as "exam cloze" or "valid loss NAME"')
    parser.add_argument("--out", type=Path, required=True, metavar="STUDY", help="folder to write")
    parser.add_argument("--design", type=Path, help="design.json of tools/design_mixtures.py: says which runs are the base")
    parser.add_argument("--plan", type=Path, help="the blend plan: bounds of a proposal, domains of sources")
    parser.add_argument("--datasheet", type=Path, nargs="+", default=(), help="datasheets of the sources' token sets")
    parser.add_argument("--tokenizer", type=Path, help="their SentencePiece model, to measure what no datasheet describes")
    parser.add_argument("--terms", type=Path, help="list of medical terms, lines of `language TAB term`")
    parser.add_argument(
        "--exam-words", type=Path, nargs="+", default=(), metavar="EXAM", help="exams whose vocabulary is looked for"
    )
    parser.add_argument(
        "--base-model", type=Path, metavar="RUN", help="run of the base model, validated on the sources: perplexity"
    )
    parser.add_argument("--features", nargs="+", metavar="NAME", help="only these features; fewer pairs leave more power")
    parser.add_argument(
        "--method", help="how options are compared (sum, per_token, per_byte, generated); default: the file's first"
    )
    parser.add_argument("--allow-unfinished", action="store_true", help="leave unfinished runs out, and say so")
    parser.add_argument("--title", default="Mixture study")
    return parser.parse_args()


def _read_design(path: Path) -> dict[str, Any]:
    try:
        design = json.loads(path.read_text(encoding="utf-8"))
        names = [run["name"] for run in design["runs"] if isinstance(run["is_base"], bool)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExamError(f"{path}: no design ({error!r}); give the design.json that tools/design_mixtures.py wrote") from None
    if not names:
        raise ExamError(f"{path}: a design without runs")
    return design


def _chosen(study: Study, target: str, features: list[str] | None) -> Study:
    """The study with the features asked for; ExamError where one, or the target, is not there."""
    run = study.runs[0]
    if target not in run.scores:
        said = [note for note in study.notes if repr(target)[1:-1] in note]
        raise ExamError(" ".join([f"--target {target!r}: the runs have {some_of(sorted(run.scores), 20)}.", *said]))
    if features is None:
        return study
    if unknown := [name for name in features if name not in run.features]:
        raise ExamError(f"--features {some_of(unknown)}: the runs have {some_of(list(run.features), 40)}")
    runs = tuple(replace(run, features={name: run.features[name] for name in features}) for run in study.runs)
    return Study(runs, study.scaling, study.notes)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: what could not be computed is null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    run_tool(main)
