"""Every recipe: clean, saved and loaded again unchanged, planned for its cluster, and built rank by rank."""

import itertools
import json

import pytest

from megatron_jmed.config import RunConfig, load_config, problems, recipe_config, save_config
from megatron_jmed.recipes import RECIPES
from megatron_jmed.train.dry_run import print_plan
from megatron_jmed.train.estimate import count_parameters, stage_memory

WORLD = {"tiny": 2, "tiny_sft": 2, "llmjp_8x13b_sft": 64, "llmjp_8x1p8b": 8, "llmjp_8x13b": 64, "llmjp_8x13b_fp8": 64}
# (total, active) parameters with the padded vocabulary of the recipe. The published counts of the LLM-jp models are at
# 99,487 rows: 97 rows x 2 matrices x hidden fewer.
GOLDEN = {
    "tiny": (1_100_352, 508_992),
    "tiny_sft": (1_100_352, 508_992),
    "llmjp_8x1p8b": (9_266_759_680, 2_924_677_120),
    "llmjp_8x13b": (73_163_822_080, 22_201_799_680),
    "llmjp_8x13b_fp8": (73_163_822_080, 22_201_799_680),
    "llmjp_8x13b_sft": (73_163_822_080, 22_201_799_680),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_clean_on_its_world(name):
    assert problems(recipe_config(name), WORLD[name]) == []


@pytest.mark.parametrize("name", RECIPES)
def test_saved_recipe_loads_unchanged(name, tmp_path):
    config = load_config(name)
    save_config(config, tmp_path / "config.json")
    assert load_config(str(tmp_path / "config.json")) == config
    assert RunConfig.model_validate(json.loads((tmp_path / "config.json").read_text())) == config


@pytest.mark.parametrize("name", RECIPES)
def test_golden_parameter_counts(name):
    config = recipe_config(name)
    counts = count_parameters(config.model, config.padded_vocab_size)
    assert (counts.total, counts.active) == GOLDEN[name]


@pytest.mark.parametrize(("name", "total", "active"), [("llmjp_8x13b", 73_162_828_800, 22_200_806_400),
                                                       ("llmjp_8x1p8b", 9_266_362_368, 2_924_279_808)])
def test_published_parameter_counts(name, total, active):
    counts = count_parameters(recipe_config(name).model, vocab_size=99_487)
    assert (counts.total, counts.active) == (total, active)


@pytest.mark.parametrize("name", RECIPES)
def test_dry_run_agrees_with_the_model_that_is_really_built(name, capsys):
    print_plan(recipe_config(name), WORLD[name])
    printed = capsys.readouterr().out
    for number in GOLDEN[name]:
        assert f"{number:,}" in printed


@pytest.mark.parametrize(("tied", "layout"), itertools.product((False, True), (
    "tp=1 pp=1", "tp=2 pp=1", "tp=1 pp=2", "tp=2 pp=4", "tp=1 pp=2 vpp=2")))
def test_dry_run_agrees_with_dense_and_tied_models(tied, layout, capsys):
    """print_plan asserts that every stage that is built holds what the arithmetic says."""
    dense = ["model.num_experts=0", "model.router_topk=0", "parallel.ep=1", *(f"parallel.{word}" for word in layout.split())]
    print_plan(load_config("tiny", ["budget.global_batch_size=32", *dense, f"model.tied_embeddings={str(tied).lower()}"]), 8)
    printed = capsys.readouterr().out
    assert ("hidden 64, dense, tied embeddings" if tied else "hidden 64, dense\n") in printed


def test_every_rank_of_8x13b_on_64_gpus_holds_what_the_arithmetic_says():
    """All 64 ranks are built; together they hold the model: dense parts once a data-parallel rank, experts once an EP group."""
    from megatron_jmed.model.build import build_meta_model
    from megatron_jmed.parallel import start_fake_groups, stop_groups

    config, world_size = recipe_config("llmjp_8x13b"), 64
    total = 0.0
    for rank in range(world_size):
        groups = start_fake_groups(config.parallel, rank, world_size)
        model = build_meta_model(config, groups)
        stage, copies, expert_copies = groups.pp.rank(), groups.dp_cp.size(), groups.expt_dp.size()
        expert = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
        dense = sum(p.numel() for n, p in model.named_parameters() if ".experts." not in n)
        stop_groups()
        assert dense + expert == stage_memory(config, world_size, stage).params_on_rank
        total += dense / copies + expert / expert_copies
    assert total == GOLDEN["llmjp_8x13b"][0]
