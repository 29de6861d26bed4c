"""The arithmetic of a run against published numbers and numbers worked out by hand."""

import pytest

from megatron_jmed.config import load_config, recipe_config
from megatron_jmed.train.estimate import (
    checkpoint_bytes,
    count_parameters,
    flops_a_token,
    source_plans,
    stage_memory,
)

PUBLISHED_VOCABULARY = 99_487


@pytest.mark.parametrize(("recipe", "vocab_size", "total", "active"), [
    ("llmjp_8x13b", PUBLISHED_VOCABULARY, 73_162_828_800, 22_200_806_400),
    ("llmjp_8x13b", 99_584, 73_163_822_080, 22_201_799_680),
    ("llmjp_8x1p8b", PUBLISHED_VOCABULARY, 9_266_362_368, 2_924_279_808),
])
def test_parameters_are_the_published_ones(recipe, vocab_size, total, active):
    counts = count_parameters(recipe_config(recipe).model, vocab_size)
    assert (counts.total, counts.active) == (total, active)


PARENT = ("model.num_experts=0", "model.router_topk=0", "parallel.ep=1")  # llm-jp-3-13b


@pytest.mark.parametrize(("tied", "ends"), [("false", 1_018_746_880), ("true", 1_018_746_880 // 2)])
def test_parameters_of_the_dense_13b_are_the_published_ones(tied, ends):
    model = load_config("llmjp_8x13b", [*PARENT, f"model.tied_embeddings={tied}"]).model
    counts = count_parameters(model, PUBLISHED_VOCABULARY)
    assert counts.total == counts.active == 12_688_184_320 + ends


def test_flops_of_the_dense_13b_are_those_worked_out_by_hand_and_the_same_with_tied_embeddings():
    matrices = 40 * (4 * 5120 * 5120 + 3 * 5120 * 13_824) + 99_584 * 5120
    for tied in ("false", "true"):
        config = load_config("llmjp_8x13b", [*PARENT, f"model.tied_embeddings={tied}"])
        assert flops_a_token(config) == 6 * matrices + 40 * 6 * 4096 * 5120


@pytest.mark.parametrize("tp", [1, 2])
def test_memory_of_the_dense_13b_is_worked_out_by_hand(tp):
    config = load_config("llmjp_8x13b", [*PARENT, f"parallel.tp={tp}"])
    stages = [stage_memory(config, 64, stage) for stage in range(4)]
    matrices, norms = 10 * (4 * 5120 * 5120 + 3 * 5120 * 13_824), 10 * 2 * 5120
    assert stages[1].params_on_rank == matrices // tp + norms
    assert stages[1].optimizer == 12 * stages[1].params_on_rank / (64 // 4 // tp)
    kept = [stage_memory(load_config("llmjp_8x13b", [*PARENT, f"budget.recompute={r}"]), 64, 0).activations
            for r in ("full", "selective", "none")]
    assert kept[0] < kept[1] < kept[2]


def test_checkpoint_of_8x13b_is_1_02_terabytes():
    assert checkpoint_bytes(recipe_config("llmjp_8x13b")) / 1e12 == pytest.approx(1.02, abs=0.005)


def memory_gb(world_size: int, tp: int, pp: int, ep: int) -> float:
    """The most that a rank of 8x13B holds in weights, gradients and optimizer, in GB; experts are split over tp as well."""
    config = load_config("llmjp_8x13b", [f"parallel.{word}" for word in (
        f"tp={tp}", f"pp={pp}", f"ep={ep}", f"etp={tp}", f"sequence_parallel={str(tp > 1).lower()}")])
    stages = [stage_memory(config, world_size, stage) for stage in range(config.parallel.pp)]
    return max(m.weights + m.gradients + m.optimizer for m in stages) / 1e9


@pytest.mark.parametrize(("world_size", "tp", "pp", "ep", "published"), [
    (64, 1, 2, 8, 54.8), (64, 1, 4, 8, 36.0), (128, 1, 4, 8, 29.0), (256, 2, 4, 4, 20.9),
])
def test_memory_of_8x13b_is_the_published_one(world_size, tp, pp, ep, published):
    assert memory_gb(world_size, tp, pp, ep) == pytest.approx(published, rel=0.01)


def test_parameters_of_all_stages_are_the_models():
    for recipe in ("tiny", "llmjp_8x13b"):
        config = recipe_config(recipe)
        stages = [stage_memory(config, 64, stage).stage_params for stage in range(config.parallel.pp)]
        assert sum(stages) == count_parameters(config.model, config.padded_vocab_size).total


def test_flops_of_8x13b_at_4096_are_those_worked_out_by_hand():
    attention_weights, router, two_experts = 4 * 5120 * 5120, 8 * 5120, 2 * 3 * 5120 * 13_824
    head = 99_584 * 5120
    matrices = 40 * (attention_weights + router + two_experts) + head
    scores = 40 * 2 * 2 * 4096 * 5120 / 2 * 3  # QK and PV, 2 FLOPs a product, half masked, once forward and twice backward
    assert flops_a_token(recipe_config("llmjp_8x13b")) == 6 * matrices + scores
    assert flops_a_token(recipe_config("llmjp_8x13b")) / 1e9 == pytest.approx(135.2, abs=0.1)


def test_recomputing_more_keeps_less():
    kept = [stage_memory(load_config("llmjp_8x13b", [f"budget.recompute={r}"]), 64, 0).activations
            for r in ("full", "selective", "none")]
    assert kept[0] < kept[1] < kept[2]


def test_epochs_follow_from_share_and_size_on_disk_or_as_declared():
    blend = '[{name="a", path="a", weight=3, num_tokens=1000000}, {name="b", path="b", weight=1}, {name="c", path="c", weight=4}]'
    config = load_config("tiny", [f"data.blend={blend}", "data.valid_ratio=0.1"])
    total = config.num_steps * config.tokens_per_step
    a, b, c = source_plans(config, known_tokens={"b": 50_000})
    assert (a.share, b.share, c.share) == (0.375, 0.125, 0.5)
    assert a.tokens == pytest.approx(0.375 * total)
    assert a.epochs == pytest.approx(0.375 * total / 900_000)
    assert b.epochs == pytest.approx(0.125 * total / 45_000)
    assert c.epochs is None
