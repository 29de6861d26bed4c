"""Design the runs of a mixture study: which blends to train, so that few runs say the most about languages and origins of text.

`python tools/design_mixtures.py PLAN.toml RECIPE STUDY [--runs 12] [--base-seeds 1,2,3] [--method maximin] [--tokens N] [changes]`
PLAN.toml is a blend plan (examples/data/blend.toml); its shares and epoch caps bound what is feasible. Writes STUDY/design.json and
one experiment a run, STUDY/blends/NAME.toml, for torchrun or `launch/sweep.py --grid @STUDY/blends/...`. Changes
(model.num_layers=4) go into every run: a small proxy model, its token budget. All sources are validated in every run, also
those that it does not read.
"""

import argparse
import json
import tomllib
from pathlib import Path

from megatron_jmed.config import load_config
from megatron_jmed.corpus.blend_plan import Plan, load_plan, load_sources
from megatron_jmed.errors import ConfigError, run_tool
from megatron_jmed.evaluate.mixture_design import Design, DesignedRun, design_runs
from megatron_jmed.run_folder import write_json


def main() -> None:
    words = _arguments()
    changes = [_line(change) for change in words.changes]
    plan = load_plan(words.plan, words.tokens)
    design = design_runs(plan, load_sources(plan), words.runs, words.base_seeds, words.method, words.steps)
    _refuse_another(words.study / "design.json", design)
    (words.study / "blends").mkdir(parents=True, exist_ok=True)
    for run in design.runs:
        path = words.study / "blends" / f"{run.name}.toml"
        path.write_text(_experiment(words.recipe, changes, plan, run, words.study), encoding="utf-8")
        config = load_config(str(path))  # every problem of the recipe and the changes is said before anything runs
    write_json(words.study / "design.json", design.as_dict())
    print(_table(design, config.num_steps, words.study))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, metavar="PLAN.toml")
    parser.add_argument("recipe")
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of the study")
    parser.add_argument("--runs", type=int, default=12, metavar="N", help="mixtures (default: %(default)s)")
    parser.add_argument("--base-seeds", type=_numbers, default=[1, 2, 3], metavar="SEED,SEED",
                        help="the plan's own blend is run with each (default: 1,2,3)")
    parser.add_argument("--method", choices=["maximin", "d-optimal", "lattice"], default="maximin")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="candidates have shares in N-ths (default: %(default)s)")
    parser.add_argument("--tokens", type=int, metavar="N", help="token budget of a run instead of the plan's total_tokens")
    parser.add_argument("changes", nargs="*", metavar="section.word=value")
    words = parser.parse_intermixed_args()
    for name, least in (("runs", 2), ("steps", 1)):
        if getattr(words, name) < least:
            raise ConfigError(f"--{name} {getattr(words, name)} is too few; at least {least}")
    return words


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _experiment(recipe: str, changes: list[str], plan: Plan, run: DesignedRun, study: Path) -> str:
    """The TOML of one run; sources without a weight are named, so that all runs are validated on the same texts."""
    shares = ", ".join(f"{group} {share:.1%}" for group, share in run.shares.items())
    lines = [f"# {shares}; by tools/design_mixtures.py", f"recipe = {json.dumps(recipe)}", f"name = {json.dumps(run.name)}",
             f"run_folder = {json.dumps(str(study / 'runs' / run.name))}", f"seed = {run.seed}",
             f"budget.total_tokens = {plan.total_tokens}", f"data.valid_ratio = {plan.valid_ratio!r}",
             *changes, "data.blend = ["]
    for each in run.blend.sources:
        words = {"name": each.source.name, "path": each.source.path, "weight": float(each.weight)}
        if len(each.source.langs) == 1:
            words["lang"] = next(iter(each.source.langs))
        if each.source.is_declared:
            words["num_tokens"] = each.source.num_tokens
        text = ", ".join(f"{word} = {json.dumps(value, ensure_ascii=False)}" for word, value in words.items())
        lines.append(f"  {{ {text} }},")
    return "\n".join([*lines, "]", ""])


def _line(change: str) -> str:
    """`model.init=runs/x` -> `model.init = "runs/x"`: values as the command line takes them, strings with or without quotes."""
    word, is_change, value = change.partition("=")
    if not is_change:
        raise ConfigError(f"{change!r} is no change; write section.word=value")
    try:
        tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        value = json.dumps(value, ensure_ascii=False)
    return f"{word} = {value}"


def _refuse_another(path: Path, design: Design) -> None:
    """Runs of one design and files of another would be analysed as one study."""
    if path.exists() and (old := json.loads(path.read_text(encoding="utf-8"))) != json.loads(json.dumps(design.as_dict())):
        raise ConfigError(f"{path} holds another design ({len(old['runs'])} runs, {old['method']}); take another study folder, or "
                          "remove it with its runs")


def _table(design: Design, num_steps: int, study: Path) -> str:
    lines = [f"{'run':16} {'seed':>5} " + " ".join(f"{group:>10}" for group in design.groups)]
    lines += [f"{run.name:16} {run.seed:5} " + " ".join(f"{share:10.1%}" for share in run.shares.values()) for run in design.runs]
    coverage = design.coverage
    correlations = "; ".join(f"{pair} {value:+.2f}" for pair, value in coverage["correlations"].items())
    return "\n".join([
        *lines,
        f"{coverage['num_feasible']} feasible mixtures; the largest hole is {coverage['largest_hole']:.0%} of the distance between "
        f"two pure mixtures, the nearest two mixtures are {coverage['nearest_pair']:.0%} apart; D-efficiency "
        f"{coverage['d_efficiency']:.2f}",
        f"correlations of the shares: {correlations}",
        f"{len(design.runs)} runs of {num_steps} steps: for run in {study}/blends/*.toml; do torchrun ... -m megatron_jmed.train "
        "$run; done",
    ])


if __name__ == "__main__":
    run_tool(main)
