"""A step learns, says what it did, and its gradient is that of the mean loss; a validation changes nothing."""

import itertools
import math

import pytest
import torch

from megatron_jmed.data.batch import Batch
from megatron_jmed.model.build import build_data_parallel_model
from megatron_jmed.train.optimizer import build_optimizer
from megatron_jmed.train.step import Stepper

SMALL = ("model.vocab_size=128", "budget.global_batch_size=4", "budget.micro_batch_size=2", "budget.seq_length=16")


def micro_batch(seed: int, sources: tuple[int, ...] = (0, 1)) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(128, (len(sources), 17), generator=generator)
    return Batch(
        tokens_BS=ids[:, :-1], labels_BS=ids[:, 1:], loss_mask_BS=torch.ones(len(sources), 16),
        position_ids_BS=torch.arange(16).expand(len(sources), 16), source_B=torch.tensor(sources),
    )


@pytest.fixture
def build(small_config, groups):
    """build(change, ...): (model, stepper) of two sources, always from the same weights."""

    def built(*changes: str):
        from megatron.core import tensor_parallel

        tensor_parallel.model_parallel_cuda_manual_seed(7)
        config = small_config(*SMALL, *changes)
        (model,) = build_data_parallel_model(config, groups)
        optimizer = build_optimizer(config, [model], groups)
        return model, Stepper(config, groups, [model], optimizer, ("ja", "en"))

    return built


def forever():
    return itertools.cycle([micro_batch(0), micro_batch(1)])


def token_losses(model, batch: Batch) -> torch.Tensor:
    return model(batch.tokens_BS, batch.position_ids_BS, attention_mask=None, labels=batch.labels_BS)


def weights(model) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_loss_falls_when_one_batch_is_repeated(build):
    _, stepper = build()
    batches = forever()
    losses = [stepper.train(batches, lr=0.01, wants_stop=False).loss for _ in range(25)]
    assert losses[0] == pytest.approx(math.log(128), abs=0.15)  # it knows nothing yet
    assert losses[-1] < 1.0


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_a_step_without_rate_changes_no_weight_and_one_with_a_rate_changes_all(compute, build):
    model, stepper = build(f"precision.compute={compute}")
    before = weights(model)
    stepper.train(forever(), lr=0.0, wants_stop=False)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    stepper.train(forever(), lr=0.05, wants_stop=False)
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_loss_is_the_mean_over_all_tokens_and_by_source(build):
    model, stepper = build()
    first, second = micro_batch(0, sources=(0, 1)), micro_batch(1, sources=(1, 1))
    first.loss_mask_BS[0, :8] = 0  # half of the only sequence of source 0 does not count
    model.eval()
    with torch.no_grad():
        losses = torch.cat([token_losses(model, batch).flatten() for batch in (first, second)])
    masks = torch.cat([first.loss_mask_BS.flatten(), second.loss_mask_BS.flatten()])
    numbers = stepper.train(iter([first, second]), lr=0.0, wants_stop=False)
    assert numbers.loss == pytest.approx(float((losses * masks).sum() / 56), rel=1e-5)
    assert numbers.loss_by_source == pytest.approx(
        {"ja": float(losses[8:16].mean()), "en": float(losses[16:].mean())}, rel=1e-5)


def test_a_source_that_was_not_read_is_not_reported(build):
    _, stepper = build()
    numbers = stepper.train(iter([micro_batch(0, (1, 1)), micro_batch(1, (1, 1))]), lr=0.0, wants_stop=False)
    assert set(numbers.loss_by_source) == {"en"}
    assert numbers.loss == numbers.loss_by_source["en"]


DENSE = ("model.num_experts=0", "model.router_topk=0")
TIED = ("model.tied_embeddings=true",)


def test_dense_model_learns_and_speaks_of_no_experts(build):
    _, stepper = build(*DENSE)
    batches = forever()
    numbers = [stepper.train(batches, lr=0.01, wants_stop=False) for _ in range(25)]
    assert numbers[0].loss == pytest.approx(math.log(128), abs=0.15) and numbers[-1].loss < 1.0
    assert all(n.expert_load == [] and n.aux_loss == 0.0 for n in numbers)


@pytest.mark.parametrize("kind", [(), DENSE, TIED, (*DENSE, *TIED)])
def test_gradient_norm_is_that_of_the_mean_loss(kind, build):
    model, stepper = build("model.aux_loss_coeff=0", "optim.clip_grad=1e9", *kind)
    losses = torch.cat([token_losses(model.module, batch).flatten() for batch in (micro_batch(0), micro_batch(1))])
    gradients = torch.autograd.grad(losses.mean(), list(model.module.parameters()))
    expected = torch.sqrt(sum((gradient.double() ** 2).sum() for gradient in gradients))
    numbers = stepper.train(forever(), lr=0.0, wants_stop=False)
    assert numbers.grad_norm == pytest.approx(float(expected), rel=1e-4)


def test_expert_load_is_shares_by_layer(build):
    _, stepper = build()
    load = stepper.train(forever(), lr=0.0, wants_stop=False).expert_load
    assert [len(row) for row in load] == [8, 8]
    assert [sum(row) for row in load] == pytest.approx([1.0, 1.0])
    # 64 tokens each go to 2 experts: every share is a whole number of 128ths
    assert all(share * 128 == pytest.approx(round(share * 128)) and 0 <= share <= 0.5 for row in load for share in row)


def test_router_z_is_the_mean_square_of_the_logsumexp_of_the_logits(build):
    """A router of weights 0 has logits 0 for all experts: logsumexp log E; and also where activations are recomputed."""
    from megatron.core.transformer.moe.router import TopKRouter

    for change in ("budget.recompute=none", "budget.recompute=full"):
        model, stepper = build(change)
        routers = [module for module in model.modules() if isinstance(module, TopKRouter)]
        with torch.no_grad():
            routers[0].weight.zero_()
        numbers = stepper.train(forever(), lr=0.0, wants_stop=False)
        num_experts = len(numbers.expert_load[0])
        assert numbers.router_z[0] == pytest.approx(math.log(num_experts) ** 2)
        assert numbers.router_z[1] != pytest.approx(numbers.router_z[0])


def test_auxiliary_loss_of_a_fresh_router_is_near_balance_and_one_lazy_router_far(build):
    model, stepper = build()
    assert stepper.train(forever(), lr=0.0, wants_stop=False).aux_loss == pytest.approx(1.0, abs=0.1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("router.weight"):
                parameter.zero_()  # ties: the same two experts get every token, with even probabilities over all
    load = stepper.train(forever(), lr=0.0, wants_stop=False).expert_load
    assert all(sorted(row)[-2:] == [0.5, 0.5] for row in load)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputing_activations_changes_no_number(recompute, build):
    kept = build("budget.recompute=none")[1].train(forever(), lr=0.0, wants_stop=False)
    again = build(f"budget.recompute={recompute}")[1].train(forever(), lr=0.0, wants_stop=False)
    assert again.loss == kept.loss and again.expert_load == kept.expert_load
    assert again.aux_loss == pytest.approx(kept.aux_loss, rel=1e-6)
    assert again.grad_norm == pytest.approx(kept.grad_norm, rel=1e-5)


def test_validation_changes_neither_weights_nor_the_next_step(build):
    model, stepper = build()
    before = weights(model)
    valid = stepper.validate(forever(), num_steps=2)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    after_validation = stepper.train(forever(), lr=0.01, wants_stop=False)
    alone = build()[1].train(forever(), lr=0.01, wants_stop=False)
    assert after_validation == alone
    assert valid.loss == pytest.approx(alone.loss, rel=1e-6)
    assert valid.loss_by_source == pytest.approx(alone.loss_by_source, rel=1e-6)


def test_validation_reads_the_steps_it_was_told_to(build):
    _, stepper = build()
    batches = (micro_batch(seed) for seed in range(100))
    stepper.validate(batches, num_steps=3)
    assert torch.equal(next(batches).tokens_BS, micro_batch(6).tokens_BS)


@pytest.mark.parametrize("wants_stop", [True, False])
def test_a_wish_to_stop_is_in_the_numbers(wants_stop, build):
    assert build()[1].train(forever(), lr=0.0, wants_stop=wants_stop).is_stop_asked is wants_stop


def test_same_weights_and_batches_give_the_same_numbers(build):
    first, second = (build()[1].train(forever(), lr=0.01, wants_stop=False) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("wants_stop", [False, True])
def test_a_skipped_step_changes_nothing_but_hears_a_wish_to_stop(build, wants_stop):
    model, stepper = build()
    batches = forever()
    stepper.train(batches, lr=0.01, wants_stop=False)
    before = weights(model)
    numbers = stepper.skip(wants_stop)
    assert numbers.is_skipped and numbers.is_stop_asked == wants_stop and math.isnan(numbers.loss)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    _, other = build()
    batches = forever()
    other.train(batches, lr=0.01, wants_stop=False)
    assert stepper.train(forever(), lr=0.01, wants_stop=False).loss == other.train(forever(), lr=0.01, wants_stop=False).loss
# ---- updates that are not applied


def poisoned(batch: Batch) -> Batch:
    """The batch with an infinite weight on one token, as a loss that overflows would give."""
    batch.loss_mask_BS[0, 0] = math.inf
    return batch


def optimizer_state(optimizer) -> list[tuple[torch.Tensor, ...]]:
    return [tuple(state[name].clone() for name in ("exp_avg", "exp_avg_sq", "step"))
            for part in optimizer.chained_optimizers for state in part.optimizer.state.values()]


@pytest.mark.parametrize("overlap", [(), ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")])
@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_moments(compute, overlap, build):
    model, stepper = build(f"precision.compute={compute}", *overlap)
    assert stepper.train(forever(), lr=0.01, wants_stop=False).skipped_in_a_row == 0
    stepper.validate(forever(), num_steps=1)  # with overlap_param_gather only a forward pass brings the new weights
    before, moments = weights(model), optimizer_state(stepper._optimizer)
    numbers = [stepper.train(iter([poisoned(micro_batch(0)), micro_batch(1)]), lr=0.01, wants_stop=False) for _ in range(2)]
    assert [n.skipped_in_a_row for n in numbers] == [1, 2] and not math.isfinite(numbers[0].grad_norm)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    assert moments and all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and b[2] == a[2] + 2 for a, b in
                           zip(moments, optimizer_state(stepper._optimizer), strict=True))
    after = stepper.train(forever(), lr=0.01, wants_stop=False)
    stepper.validate(forever(), num_steps=1)
    assert after.skipped_in_a_row == 0 and math.isfinite(after.grad_norm)
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_the_very_first_update_can_be_skipped(build):
    model, stepper = build()
    before = weights(model)
    assert stepper.train(iter([poisoned(micro_batch(0)), micro_batch(1)]), lr=0.01, wants_stop=False).skipped_in_a_row == 1
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    assert all(step == 1 for *_, step in optimizer_state(stepper._optimizer))
    assert stepper.train(forever(), lr=0.01, wants_stop=False).skipped_in_a_row == 0


@pytest.mark.parametrize(("action", "is_skipped"), [("skip_step", True), ("warn", False)])
def test_a_spike_of_the_gradient_norm_is_skipped_only_where_asked(action, is_skipped, build):
    model, stepper = build(f"watch.grad_norm_spike={action}", "watch.min_steps=8")
    for _ in range(8):
        assert stepper.train(forever(), lr=0.0, wants_stop=False).skipped_in_a_row == 0
    with torch.no_grad():
        model.module.output_layer.weight.mul_(30)
        before = weights(model)
    numbers = stepper.train(forever(), lr=0.01, wants_stop=False)
    assert numbers.skipped_in_a_row == is_skipped
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)) is is_skipped


def test_a_wish_to_save_is_in_the_numbers(build):
    _, stepper = build()
    for wish in (True, False):
        numbers = stepper.train(forever(), lr=0.0, wants_stop=False, wants_save=wish)
        assert numbers.is_save_asked is wish and not numbers.is_stop_asked
