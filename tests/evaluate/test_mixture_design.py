"""Designs are feasible, spread out, repeatable; their files are runs that the trainer takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_jmed.config import load_config
from megatron_jmed.corpus.blend_plan import Plan, load_sources
from megatron_jmed.errors import CorpusError
from megatron_jmed.evaluate.mixture_design import design_runs, feasible_points

REPO = Path(__file__).parents[2]
GROUPS = ("en", "ja", "ja+mt")


def source(name: str, tokens: int, lang: str, **words) -> dict:
    return {"name": name, "path": f"no/such/{name}", "num_tokens": tokens, "lang": lang, "domain": "medical", **words}


def plan_of(**words) -> Plan:
    sources = [source("a", 400, "en"), source("b", 300, "ja"), source("c", 150, "ja", origin="machine_translated")]
    return Plan.model_validate({"total_tokens": 1000, "valid_ratio": 0, "sources": sources, **words})


def shares(design) -> np.ndarray:
    return np.array([list(run.shares.values()) for run in design.runs if not run.is_base])


@pytest.mark.parametrize("method", ["maximin", "d-optimal", "lattice"])
def test_every_mixture_is_one_that_the_planner_can_read(method):
    plan = plan_of(max_epochs=2, langs={"ja": [0.3, 0.8]})
    design = design_runs(plan, load_sources(plan), 10, [1, 2], method)
    points = shares(design)
    assert len(points) == 10 and [run.seed for run in design.runs if run.is_base] == [1, 2]
    assert points.sum(1) == pytest.approx(np.ones(10))
    assert (points[:, 0] <= 0.7 + 1e-9).all() and (points[:, 0] >= 0.2 - 1e-9).all()  # what is left for Japanese
    assert (points[:, 2] <= 0.3 + 1e-9).all()  # two epochs of 150 in 1000
    for run in design.runs:
        assert max(each.epochs for each in run.blend.sources) <= 2 + 1e-6
    assert design.as_dict() == design_runs(plan, load_sources(plan), 10, [1, 2], method).as_dict()


def test_the_feasible_points_are_those_within_the_caps():
    plan = plan_of(max_epochs=2)
    found = {tuple(np.rint(10 * point).astype(int)) for point in feasible_points(plan, load_sources(plan), GROUPS, 10)}
    expected = {(en, ja, 10 - en - ja) for en in range(11) for ja in range(11 - en)
                if en <= 8 and ja <= 6 and 10 - en - ja <= 3}
    assert found == expected


def test_maximin_leaves_smaller_holes_than_d_optimal_which_is_more_efficient():
    plan = plan_of()
    spread, extreme = (design_runs(plan, load_sources(plan), 10, [1], method).coverage for method in ("maximin", "d-optimal"))
    assert spread["largest_hole"] < extreme["largest_hole"] and spread["d_efficiency"] < extreme["d_efficiency"]
    assert spread["ranges"] == {group: [0.0, 1.0] for group in GROUPS} and spread["nearest_pair"] > 0.1
    assert all(value < 0 for value in spread["correlations"].values())


def test_a_mixture_that_is_repeated_gets_another_seed():
    plan = plan_of()
    runs = design_runs(plan, load_sources(plan), 14, [], "d-optimal").runs
    unlike = {(run.seed, *(round(share, 6) for share in run.shares.values())) for run in runs}
    assert len(unlike) == 14 and {run.seed for run in runs} != {1}


def test_what_cannot_be_designed_is_said():
    plan = plan_of(max_epochs=1, total_tokens=850)
    with pytest.raises(CorpusError, match="only 1 mixtures in steps of 1/17 are feasible, and 4 are asked"):
        design_runs(plan, load_sources(plan), 4, [1], steps=17)
    alone = Plan.model_validate({"total_tokens": 100, "sources": [source("a", 400, "en"), source("b", 300, "en")]})
    with pytest.raises(CorpusError, match="all of one group, 'en'"):
        design_runs(alone, load_sources(alone), 4, [1])


# ---- the tool


def write_plan(folder: Path) -> None:
    """The example's plan without its shares of languages and caps."""
    text = (REPO / "examples/data/blend.toml").read_text(encoding="utf-8")
    text = text.replace("[langs]\nja = 0.6\nen = 0.4\n", "").replace("max_epochs = 8\n", "")
    (folder / "plan.toml").write_text(text, encoding="utf-8")


def tool(folder: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.run([sys.executable, str(REPO / "tools/design_mixtures.py"), *words], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=120)


def test_the_tool_writes_runs_that_the_trainer_takes(tmp_path):
    write_plan(tmp_path)
    words = ("plan.toml", "tiny", "study", "--runs", "4", "--base-seeds", "5,6", "parallel.ep=1", "init=runs/start")
    done = tool(tmp_path, *words)
    assert done.returncode == 0 and "feasible mixtures" in done.stdout, done.stderr
    design = json.loads((tmp_path / "study/design.json").read_text())
    assert [run["name"] for run in design["runs"]] == ["mix_1", "mix_2", "mix_3", "mix_4", "base_seed_5", "base_seed_6"]
    for run in design["runs"]:
        config = load_config(str(tmp_path / f"study/blends/{run['name']}.toml"))
        assert config.seed == run["seed"] and config.init == "runs/start"
        assert config.run_folder == f"study/runs/{run['name']}"
        assert config.budget.total_tokens == 245_760 and config.data.valid_ratio == 0.05
        weights = {each.name: each.weight for each in config.data.blend}
        assert weights == pytest.approx({"texts_ja": run["shares"]["ja"], "texts_en": run["shares"]["en"]})
    assert any(0 in run["shares"].values() for run in design["runs"])  # and yet both sources are validated
    assert tool(tmp_path, *words).returncode == 0
    other = tool(tmp_path, *words, "--method", "d-optimal")
    assert other.returncode == 2 and "holds another design (6 runs, maximin)" in other.stderr


@pytest.mark.parametrize(("words", "complaint"), [
    (("--runs", "1"), "--runs 1 is too few"),
    (("nonsense",), "'nonsense' is no change; write section.word=value"),
    (("model.num_layer=4",), "did you mean 'num_layers'"),
])
def test_wrong_words_are_refused(words, complaint, tmp_path):
    write_plan(tmp_path)
    done = tool(tmp_path, "plan.toml", "tiny", "study", "--runs", "2", *words)
    assert done.returncode == 2 and complaint in done.stderr and "Traceback" not in done.stderr, done.stderr
