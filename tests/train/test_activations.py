"""What a layer keeps: worked out by hand for the back end that no CPU can run, counted from autograd for the one it can."""

import pytest

from megatron_jmed.config import load_config
from megatron_jmed.train.activations import head_bytes, kept_head_bytes, layer_bytes
from megatron_jmed.train.estimate import stage_memory
from megatron_jmed.train.machine import BALANCED

T, H, F, V = 4096, 5120, 13_824, 99_584


def test_a_layer_of_8x13b_is_worked_out_by_hand():
    config = load_config("llmjp_8x13b")
    norms, attention, router = 4 * 2 * T * H, 2 * T * 128 * 2 * (40 + 40) + 4 * T * 40, T * (9 * 8 + 28 * 2)
    everything = norms + attention + router + 2 * 2 * T * (H + 3 * F)
    dropped = 2 * T * H + 2 * 2 * T * F
    kept = {recompute: layer_bytes(config, recompute, 1.0).kept for recompute in ("none", "selective", "full")}
    assert kept == {"none": everything, "selective": everything - dropped, "full": 2 * T * H}
    assert layer_bytes(config, "full", 1.0).rebuilt == everything
    assert layer_bytes(config, "selective", 1.0).rebuilt == dropped
    assert layer_bytes(config, "none", 1.0).dispatcher == 2 * (2 * T) * H * 3


def test_imbalance_counts_for_what_experts_keep_and_receive():
    config = load_config("llmjp_8x13b")
    balanced, busy = layer_bytes(config, "none", 1.0), layer_bytes(config, "none", 1.5)
    assert busy.kept - balanced.kept == pytest.approx(0.5 * 2 * 2 * T * (H + 3 * F))
    assert busy.dispatcher - balanced.dispatcher == pytest.approx(0.5 * 2 * 2 * T * 2 * H)


def test_no_rank_is_busier_than_another_where_each_has_every_expert():
    config = load_config("llmjp_8x13b", ["parallel.ep=1"])
    assert layer_bytes(config, "none", 1.5) == layer_bytes(config, "none", 1.0)


def test_splits_divide_what_they_split():
    whole = load_config("llmjp_8x13b")
    context = layer_bytes(whole.model_copy(update={"parallel": whole.parallel.model_copy(update={"cp": 2})}), "none", 1.0)
    tensor = layer_bytes(load_config("llmjp_8x13b", ["parallel.tp=2", "parallel.sequence_parallel=true"]), "none", 1.0)
    assert context.kept == tensor.kept == layer_bytes(whole, "none", 1.0).kept / 2
    experts = layer_bytes(load_config("llmjp_8x13b", ["parallel.tp=2", "parallel.etp=2", "parallel.sequence_parallel=true"]),
                          "none", 1.0)
    assert experts.kept - tensor.kept == 2 * T * H * 2 / 2  # both of the two ranks see all routed tokens of the pair


def test_the_head_of_8x13b_is_worked_out_by_hand():
    config = load_config("llmjp_8x13b")
    loss, head_gradient = T * V * (4 + 2), T * V * 2 + V * H * 2 + 2 * T * H
    assert head_bytes(config) == 2 * 2 * T * H + max(loss, head_gradient)
    assert kept_head_bytes(config) == 2 * 2 * T * H + 4 * T * V


KERNELS = ("precision.backend=jmed", *(f"kernels.{name}=true" for name in ("rmsnorm", "swiglu", "permute", "cross_entropy")))


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("changes", [(), ("precision.compute=bf16",), ("precision.compute=bf16", "model.num_experts=0",
                                                                      "model.router_topk=0"),
                                     ("precision.compute=bf16", *KERNELS), (*KERNELS, "kernels.head_chunk_tokens=100")])
def test_kept_bytes_are_those_that_autograd_keeps(changes, recompute, small_config, groups):
    import torch

    from megatron_jmed.model.build import build_forward_model

    config = small_config(*changes, f"budget.recompute={recompute}")
    model = build_forward_model(config, groups).train()
    weights, kept = {parameter.untyped_storage()._cdata for parameter in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    shape = (config.budget.micro_batch_size, config.budget.seq_length)
    tokens = torch.randint(0, config.model.vocab_size, shape)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = model(tokens, torch.arange(shape[1]).expand(shape), attention_mask=None, labels=tokens)
    counted = sum(storage.nbytes() for storage in kept.values())
    assert losses.shape == shape
    ids_and_angles = 8 * tokens.numel() + (4 * shape[1] * config.model.kv_channels if recompute == "full" else 0)
    predicted = stage_memory(config, 1, 0, BALANCED).activations + kept_head_bytes(config) + ids_and_angles
    assert predicted == pytest.approx(counted, rel=0.01)
