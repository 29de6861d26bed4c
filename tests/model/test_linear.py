"""The products of fp8 layers are those of the quantised operands, forward and backward; the layers that should be fp8 are, all of
them and no others; and what stays bf16 does not change by a bit."""

import pytest
import torch

import megatron_jmed.parallel  # noqa: F401  (the CPU patches come before Megatron-Core)
from megatron_jmed.config import PrecisionConfig
from megatron_jmed.kernels.quantize import dequantize, quantize_blocks_128x128, quantize_rows_1x128, quantize_tensor
from megatron_jmed.model.linear import Products, linear
from megatron_jmed.model.precision import emulation_note, missing_for

FP8 = ("precision.compute=fp8", "precision.backend=jmed", "model.vocab_size=64")
RECIPES = [Products(fp8, is_wgrad_fp8) for fp8 in ("blockwise", "tensorwise") for is_wgrad_fp8 in (True, False)]


def operands(tokens: int = 200, inputs: int = 160, outputs: int = 300):
    """x [2, tokens / 2, inputs] with one outlier, a weight, and the gradient of the output; all bf16."""
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (torch.randn(shape, generator=generator).bfloat16() for shape in
                       ((2, tokens // 2, inputs), (outputs, inputs), (2, tokens // 2, outputs)))
    x[0, tokens // 4, 3] = 300
    return x.requires_grad_(), (weight / 10).requires_grad_(), grad / 1000


def exact(quantize, x: torch.Tensor) -> torch.Tensor:
    return dequantize(*quantize(x)).double()


@pytest.mark.parametrize("recipe", RECIPES)
def test_products_are_those_of_the_quantised_operands(recipe):
    is_blockwise = recipe.fp8 == "blockwise"
    rows, squares = (quantize_rows_1x128, quantize_blocks_128x128) if is_blockwise else (quantize_tensor, quantize_tensor)
    x, weight, grad = operands()
    y = linear(x, weight, recipe)
    grads = torch.autograd.grad(y, (x, weight), grad)
    x, weight, grad = x.detach().flatten(0, 1), weight.detach(), grad.flatten(0, 1)
    expected = [
        exact(rows, x) @ exact(squares, weight).T,
        exact(rows, grad) @ exact(squares, weight),
        exact(rows, grad.T) @ exact(rows, x.T).T if recipe.is_wgrad_fp8 else grad.double().T @ x.double(),
    ]
    plain = [x.double() @ weight.double().T, grad.double() @ weight.double(), grad.double().T @ x.double()]
    for name, found, theirs, bf16 in zip(["y", "dx", "dW"], (y, *grads), expected, plain, strict=True):
        assert found.dtype == torch.bfloat16
        found = found.detach().double().reshape(theirs.shape)
        assert (found - theirs).norm() < 3e-3 * theirs.norm(), name  # the rounding of the result to bf16
        apart = (found - bf16).norm() / bf16.norm()
        if name == "dW" and not recipe.is_wgrad_fp8:
            assert apart < 3e-3
        else:
            assert 0.01 < apart < 0.12, name


def test_a_blockwise_product_bears_an_outlier_better():
    x, weight, _ = operands()
    x = torch.where(x == x.max(), 1e5, x.detach())
    plain, ordinary = x.double() @ weight.double().T, x.abs().amax(-1) < 10
    lost = []
    for fp8 in ("blockwise", "tensorwise"):
        error = linear(x, weight, Products(fp8)).double() - plain
        lost.append(float(error[ordinary].norm() / plain[ordinary].norm()))
    assert lost[0] < 0.04 and lost[1] > 2 * lost[0]


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_expert_without_tokens_gets_no_gradient_and_no_nan(recipe):
    _, weight, _ = operands()
    x = torch.empty(0, 160, dtype=torch.bfloat16, requires_grad=True)
    y = linear(x, weight, recipe)
    grad_x, grad_weight = torch.autograd.grad(y, (x, weight), torch.empty_like(y))
    assert y.shape == (0, 300) and grad_x.shape == (0, 160) and grad_weight.shape == (300, 160) and not grad_weight.any()


def test_what_needs_no_gradient_gets_none():
    x, weight, grad = operands()
    y = linear(x, weight.detach(), RECIPES[0])
    assert torch.autograd.grad(y, x, grad)[0].any()


# ---- the model that is built


def is_fp8(module: torch.nn.Module) -> bool:
    return bool(getattr(module, "how", Products()).fp8)


def fp8_modules(config, groups) -> set[str]:
    from megatron_jmed.model.build import build_model

    return {name for name, module in build_model(config, groups).named_modules() if is_fp8(module)}


LINEARS = {"self_attention.linear_qkv", "self_attention.linear_proj"}
EXPERTS = {f"mlp.experts.local_experts.{expert}.linear_fc{number}" for expert in range(8) for number in (1, 2)}


@pytest.mark.parametrize(("changes", "layers"), [
    ((), [1, 2]),
    (("precision.bf16_first_layers=0", "precision.bf16_last_layers=0"), [0, 1, 2, 3]),
    (("precision.bf16_first_layers=2",), [2]),
])
def test_every_linear_layer_of_the_inner_layers_is_fp8_and_nothing_else(changes, layers, small_config, groups):
    found = fp8_modules(small_config(*FP8, "model.num_layers=4", *changes), groups)
    assert found == {f"decoder.layers.{layer}.{name}" for layer in layers for name in LINEARS | EXPERTS}


def test_dense_layers_are_fp8_too(small_config, groups):
    found = fp8_modules(small_config(*FP8, "model.num_layers=3", "model.num_experts=0", "model.router_topk=0"), groups)
    assert found == {f"decoder.layers.1.{name}" for name in LINEARS | {"mlp.linear_fc1", "mlp.linear_fc2"}}


@pytest.mark.parametrize("backend", ["local", "jmed"])
def test_without_fp8_the_back_end_is_the_local_one(backend, small_config, groups):
    assert fp8_modules(small_config("precision.compute=bf16", f"precision.backend={backend}"), groups) == set()


def test_stages_and_chunks_count_layers_through_the_whole_model(small_config):
    from megatron_jmed.model.build import build_model
    from megatron_jmed.parallel import start_fake_groups, stop_groups

    config = small_config(*FP8, "model.num_layers=8", "parallel.pp=2", "parallel.vpp=2", "precision.bf16_last_layers=3")
    found = {}
    for stage in range(2):
        groups = start_fake_groups(config.parallel, stage, 2)
        for chunk in range(2):
            names = [name for name, module in build_model(config, groups, chunk).named_modules() if is_fp8(module)]
            found[stage, chunk] = {int(name.split(".")[2]) for name in names}
        stop_groups()
    # chunk c of stage s holds two layers from number 2 (2 c + s); layers 1 to 4 are fp8
    assert found == {(0, 0): {1}, (1, 0): {0, 1}, (0, 1): {0}, (1, 1): set()}


# ---- what a machine can do


def test_fp8_of_our_own_runs_anywhere_without_a_gpu_and_says_that_it_is_emulated(monkeypatch):
    precision = PrecisionConfig(compute="fp8", backend="jmed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert missing_for(precision) == [] and emulation_note(precision) == "fp8 emulated on the CPU"
    assert emulation_note(PrecisionConfig(compute="bf16", backend="jmed")) == ""
    assert emulation_note(PrecisionConfig(compute="fp8", backend="te")) == ""


@pytest.mark.parametrize(("capability", "is_refused"), [((8, 0), True), ((9, 0), False)])
def test_fp8_of_our_own_on_a_gpu_needs_hopper(capability, is_refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    found = missing_for(PrecisionConfig(compute="fp8", backend="jmed"))
    assert [("needs a Hopper GPU" in text and str(capability) in text) for text in found] == [True] * is_refused
    assert missing_for(PrecisionConfig(compute="bf16", backend="jmed")) == []


def test_the_escape_hatch_cannot_ask_megatron_core_for_fp8(small_config):
    from megatron_jmed.errors import ConfigError
    from megatron_jmed.model.transformer import transformer_config

    with pytest.raises(ConfigError, match=r"model.mcore.fp8: this field follows"):
        transformer_config(small_config('model.mcore.fp8="e4m3"'))


def test_transformer_engine_is_told_every_word(small_config):
    from megatron_jmed.model.precision import precision_fields

    fields = precision_fields(PrecisionConfig(compute="fp8", backend="te", fp8_wgrad=True, bf16_first_layers=2, bf16_last_layers=0))
    assert fields["fp8"] == "e4m3" and fields["fp8_recipe"] == "blockwise" and fields["fp8_wgrad"] is True
    assert fields["first_last_layers_bf16"] is True
    assert (fields["num_layers_at_start_in_bf16"], fields["num_layers_at_end_in_bf16"]) == (2, 0)
