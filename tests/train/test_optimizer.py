"""The learning rate is a function of tokens with known corners, and it and the decay reach the weights they should."""

import itertools
import math

import pytest
import torch

from megatron_jmed.config import load_config
from megatron_jmed.errors import ConfigError
from megatron_jmed.model.build import build_data_parallel_model
from megatron_jmed.train.optimizer import build_optimizer, learning_rate, set_learning_rate

WARMUP, STEPS = 10, 120  # of the tiny recipe


def rates(*changes: str) -> list[float]:
    config = load_config("tiny", list(changes))
    assert config.num_steps == STEPS
    return [learning_rate(config, step) for step in range(STEPS)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_warm_up_rises_in_equal_parts_to_the_peak(schedule):
    found = rates(f"optim.schedule={schedule}")
    assert found[:WARMUP] == pytest.approx([3e-3 * (step + 1) / WARMUP for step in range(WARMUP)])
    assert max(found) == found[WARMUP - 1] == 3e-3


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_rate_falls_at_every_step_to_the_minimum_at_the_last(schedule):
    found = rates(f"optim.schedule={schedule}")[WARMUP - 1:]
    assert all(later < earlier for earlier, later in itertools.pairwise(found))
    assert found[-1] == pytest.approx(3e-4, rel=1e-9)


def test_wsd_stays_at_the_peak_and_falls_by_the_root_over_its_last_tokens():
    decay = 40
    found = rates("optim.schedule=wsd", f"optim.decay_tokens={decay * 2048}")
    assert set(found[WARMUP - 1: STEPS - decay]) == {3e-3}
    assert found[STEPS - decay + decay // 4 - 1] == pytest.approx(3e-4 + (3e-3 - 3e-4) * 0.5)  # a quarter of the way: 1 - sqrt(1/4)
    assert found[-1] == pytest.approx(3e-4)


def test_wsd_does_not_know_its_horizon_before_it_decays():
    config = load_config("tiny", ["optim.schedule=wsd", f"optim.decay_tokens={40 * 2048}"])
    longer = load_config("tiny", ["optim.schedule=wsd", f"optim.decay_tokens={40 * 2048}", f"budget.total_tokens={200 * 2048}"])
    assert [learning_rate(config, step) for step in range(80)] == [learning_rate(longer, step) for step in range(80)]


@pytest.mark.parametrize("changes", [("optim.schedule=wsd",), ("optim.decay_tokens=2048",),
                                     ("optim.schedule=wsd", f"optim.decay_tokens={119 * 2048}")])
def test_wsd_needs_its_decay_and_it_must_fit(changes):
    with pytest.raises(ConfigError, match=r"optim\..*decay_tokens"):
        load_config("tiny", list(changes))


def test_half_way_down_is_the_middle_of_peak_and_minimum():
    middle = WARMUP + (STEPS - WARMUP) // 2 - 1
    for schedule in ("cosine", "linear"):
        assert rates(f"optim.schedule={schedule}")[middle] == pytest.approx((3e-3 + 3e-4) / 2)


def test_cosine_follows_the_cosine():
    after_a_tenth = rates()[WARMUP + 11 - 1]  # 11 of the 110 steps of decay
    assert after_a_tenth == pytest.approx(3e-4 + (3e-3 - 3e-4) * (1 + math.cos(math.pi / 10)) / 2)


def test_constant_stays_at_the_peak():
    assert set(rates("optim.schedule=constant")[WARMUP - 1:]) == {3e-3}


def test_without_warm_up_the_first_step_learns_and_the_last_is_the_minimum():
    found = rates("optim.warmup_tokens=0")
    assert 0.99 * 3e-3 < found[0] <= 3e-3
    assert found[-1] == pytest.approx(3e-4)


def test_rate_is_a_function_of_tokens_not_of_batch_size():
    whole, half = load_config("tiny"), load_config("tiny", ["budget.global_batch_size=8"])
    assert half.num_steps == 2 * STEPS
    for step in range(STEPS):
        assert learning_rate(half, 2 * step + 1) == pytest.approx(learning_rate(whole, step))


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_decay_shrinks_matrices_by_rate_times_decay_and_leaves_norms(compute, small_config, groups):
    """With gradients of zero, AdamW only decays."""
    config = small_config(f"precision.compute={compute}", "optim.weight_decay=0.5", "model.vocab_size=64", "model.num_layers=1")
    (model,) = build_data_parallel_model(config, groups)
    optimizer = build_optimizer(config, [model], groups)
    before = {name: p.detach().float().clone() for name, p in model.named_parameters()}
    set_learning_rate(optimizer, config.optim, lr=0.25)
    model.zero_grad_buffer()
    optimizer.zero_grad()
    optimizer.step()
    tolerance = 1e-6 if compute == "fp32" else 2**-7
    norms = [name for name, p in model.named_parameters() if p.dim() == 1]
    assert len(norms) == 3
    for name, parameter in model.named_parameters():
        kept = 1.0 if name in norms else 1 - 0.25 * 0.5
        torch.testing.assert_close(parameter.detach().float(), kept * before[name], rtol=tolerance, atol=0)


def test_every_weight_is_learned_and_masters_are_fp32(small_config, groups):
    config = small_config("precision.compute=bf16", "model.vocab_size=64", "model.num_layers=1")
    (model,) = build_data_parallel_model(config, groups)
    optimizer = build_optimizer(config, [model], groups)
    in_groups = [p for group in optimizer.param_groups for p in group["params"]]
    assert {p.dtype for p in in_groups} == {torch.float32}
    assert sum(p.numel() for p in in_groups) == sum(p.numel() for p in model.parameters())
