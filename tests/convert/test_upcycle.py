"""Drop-Upcycling changes exactly the stated share of each expert, with the parent's statistics, the same however it is
computed; and without any change the mixture computes what its parent did."""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_jmed.convert.names import rows
from megatron_jmed.convert.source import open_weights
from megatron_jmed.convert.upcycle import Upcycled, UpcycleSettings
from megatron_jmed.convert.weights import export_weights, import_weights
from megatron_jmed.errors import ConfigError

FFN = 48


def row_of(weights, end):
    (row,) = (row for row in rows(weights.model) if row.key.endswith(end))
    return row


def expert_matrices(weights, layer, expert):
    """gate, up [F, H] and down [F, H] (transposed: one row a dimension)."""
    gate, up = weights.get(row_of(weights, "linear_fc1.weight"), (layer, expert)).chunk(2)
    return gate, up, weights.get(row_of(weights, "linear_fc2.weight"), (layer, expert)).t()


def parent_matrices(weights, layer):
    gate, up = weights.get(row_of(weights, "mlp.linear_fc1.weight"), (layer,)).chunk(2)
    return gate, up, weights.get(row_of(weights, "mlp.linear_fc2.weight"), (layer,)).t()


def upcycled(llama: Path, **settings) -> tuple[Upcycled, object]:
    parent = open_weights(llama)
    return Upcycled(parent, UpcycleSettings(**{"num_experts": 4} | settings)), parent


def changed_rows(ours, parents):
    return (ours != parents).any(dim=1)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
def test_exactly_the_share_of_rows_is_new_and_the_same_in_all_three_matrices(llama, ratio):
    weights, parent = upcycled(llama, ratio=ratio)
    for layer, expert in itertools.product(range(2), range(4)):
        changed = [changed_rows(ours, theirs) for ours, theirs in
                   zip(expert_matrices(weights, layer, expert), parent_matrices(parent, layer), strict=True)]
        assert changed[0].sum() == int(ratio * FFN)
        assert torch.equal(changed[0], changed[1]) and torch.equal(changed[0], changed[2])
        assert changed[0].nonzero().flatten().tolist() == weights.selected(layer, expert).tolist()


def test_experts_differ_pairwise_and_by_layer(llama):
    weights, _ = upcycled(llama)
    sets = {(layer, expert): tuple(weights.selected(layer, expert).tolist()) for layer in range(2) for expert in range(4)}
    assert len(set(sets.values())) == 8
    for a, b in itertools.combinations(range(4), 2):
        for ours, theirs in zip(expert_matrices(weights, 0, a), expert_matrices(weights, 0, b), strict=True):
            assert not torch.equal(ours, theirs)


def test_new_rows_have_the_mean_and_deviation_of_the_block_they_replace(llama):
    """Over n values the mean errs by s / sqrt(n), the deviation by s / sqrt(2 n): five times that is allowed."""
    weights, parent = upcycled(llama, ratio=0.5)
    for layer, expert in itertools.product(range(2), range(4)):
        selected = weights.selected(layer, expert)
        for ours, theirs in zip(expert_matrices(weights, layer, expert), parent_matrices(parent, layer), strict=True):
            new, old = ours[selected].double(), theirs[selected].double()
            std = old.std(correction=0)
            assert abs(new.mean() - old.mean()) < 5 * std / new.numel() ** 0.5
            assert abs(new.std() - std) < 5 * std / (2 * new.numel()) ** 0.5
            assert abs(torch.corrcoef(torch.stack([new.flatten(), old.flatten()]))[0, 1]) < 5 / new.numel() ** 0.5


def test_everything_else_is_the_parents(llama):
    weights, parent = upcycled(llama)
    for row in rows(weights.model):
        if ".mlp.router." in row.key or row.stacked == "by layer and expert":
            continue
        key = row.key.replace("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight")
        (of_parent,) = (other for other in rows(parent.model) if other.key == key)
        for index, _ in row.slices(weights.model):
            assert torch.equal(weights.get(row, index), parent.get(of_parent, index))


def test_router_rows_have_the_stated_deviation(llama):
    weights, _ = upcycled(llama, num_experts=64, router_std=0.3)
    router = weights.get(row_of(weights, "router.weight"), (1,))
    assert router.shape == (64, 32)
    assert router.std().item() == pytest.approx(0.3, rel=5 / (2 * router.numel()) ** 0.5)


@pytest.mark.parametrize(("settings", "router_std"), [({"method": "drop", "ratio": 0.0}, 0.02), ({"method": "copy"}, 3.0),
                                                      ({"method": "noise", "noise": 0.0}, 0.5)])
def test_without_change_any_router_gives_the_parents_logits(llama, settings, router_std, tmp_path):
    weights, _ = upcycled(llama, router_std=router_std, **settings)
    export_weights(weights, tmp_path / "moe")
    tokens = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        parent, child = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(tokens).logits
                         for folder in (llama, tmp_path / "moe"))
    assert (parent - child).abs().max() < 2e-6 * parent.abs().max()  # two routing weights sum to 1 up to rounding


def test_change_does_change_the_logits(llama, tmp_path):
    weights, _ = upcycled(llama, ratio=0.5)
    export_weights(weights, tmp_path / "moe")
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        parent, child = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(tokens).logits
                         for folder in (llama, tmp_path / "moe"))
    assert (parent - child).abs().max() > 1e-2 * parent.abs().max()


def test_result_does_not_depend_on_threads_or_order(llama, tmp_path):
    for workers in (1, 3):
        import_weights(upcycled(llama)[0], tmp_path / f"by_{workers}", workers=workers)
    one, three = ((tmp_path / f"by_{workers}/checksums.json").read_text() for workers in (1, 3))
    assert one == three
    weights, _ = upcycled(llama)
    row = row_of(weights, "linear_fc1.weight")
    backwards = {index: weights.get(row, index) for index, _ in reversed(list(row.slices(weights.model)))}
    again, _ = upcycled(llama)
    assert all(torch.equal(again.get(row, index), tensor) for index, tensor in backwards.items())


def test_seed_decides(llama):
    first, other = upcycled(llama, seed=1)[0], upcycled(llama, seed=2)[0]
    row = row_of(first, "linear_fc2.weight")
    assert torch.equal(first.get(row, (0, 0)), upcycled(llama, seed=1)[0].get(row, (0, 0)))
    assert not torch.equal(first.get(row, (0, 0)), other.get(row, (0, 0)))


def test_noise_has_the_stated_size(llama):
    weights, parent = upcycled(llama, method="noise", noise=0.1)
    for ours, theirs in zip(expert_matrices(weights, 1, 2), parent_matrices(parent, 1), strict=True):
        assert (ours - theirs).std().item() == pytest.approx(0.1 * theirs.std().item(), rel=0.1)


@pytest.mark.parametrize(("settings", "said"), [({"ratio": 1.5}, "ratio=1.5"), ({"aux_loss_coeff": -1.0}, "aux_loss_coeff=-1.0"),
                                                ({"router_topk": 5}, "router_topk=5"),
                                                ({"num_experts": 0}, "num_experts=0"), ({"noise": -1.0}, "noise=-1.0")])
def test_settings_that_cannot_work_are_refused(llama, settings, said):
    with pytest.raises(ConfigError, match=said):
        upcycled(llama, **settings)


def test_model_with_experts_is_refused(mixtral):
    with pytest.raises(ConfigError, match="4 experts already"):
        Upcycled(open_weights(mixtral), UpcycleSettings())
