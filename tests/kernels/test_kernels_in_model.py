"""Every kernel that a config word puts into the model is there, and computes what Megatron-Core's own modules compute.

Once with the kernels' torch references, as a CPU computes, and once with the kernels themselves in Triton's interpreter, so that
what the model hands them (strides, types, empty experts) is what they take.
"""

from types import SimpleNamespace

import interpreter
import pytest
import torch

import megatron_jmed.parallel  # noqa: F401  (the CPU patches come before Megatron-Core)
from megatron_jmed.config import problems
from megatron_jmed.data.batch import batch_from_sample
from megatron_jmed.model.build import FusedHeadModel, build_data_parallel_model
from megatron_jmed.model.experts import Experts
from megatron_jmed.model.fused import FusedAllGatherDispatcher, FusedAlltoAllDispatcher, FusedRMSNorm
from megatron_jmed.model.head import head_losses
from megatron_jmed.model.linear import OwnColumnParallelLinear, Products, hopper_product, product
from megatron_jmed.parallel import device
from megatron_jmed.train.optimizer import build_optimizer
from megatron_jmed.train.step import Stepper

SMALL = ("model.vocab_size=96", "model.vocab_divisor=8", "budget.global_batch_size=4", "budget.micro_batch_size=2",
         "budget.seq_length=16", "optim.warmup_tokens=0", "budget.total_tokens=1024", "precision.backend=jmed")
FP32, BF16 = "precision.compute=fp32", "precision.compute=bf16"
FP8 = ("precision.compute=fp8", "precision.bf16_first_layers=0", "precision.bf16_last_layers=0")


def sample_batches():
    generator = torch.Generator().manual_seed(0)
    while True:
        ids = torch.randint(96, (2, 17), generator=generator)
        yield batch_from_sample({"tokens": ids[:, :-1], "labels": ids[:, 1:], "loss_mask": torch.ones(2, 16),
                                 "dataset_id": torch.zeros(2, dtype=torch.int64),
                                 "position_ids": torch.arange(16).expand(2, 16)}, device())


def trained(config, groups, steps: int = 1):
    """(model, losses, gradient norms) of a few steps from one seed."""
    torch.manual_seed(7)
    model = build_data_parallel_model(config, groups)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    optimizer = build_optimizer(config, model, groups)
    optimizer.reload_model_params()
    stepper, batches = Stepper(config, groups, model, optimizer, ("ids",)), sample_batches()
    numbers = [stepper.train(batches, 1e-2, wants_stop=False) for _ in range(steps)]
    return model[0], [each.loss for each in numbers], [each.grad_norm for each in numbers]


def main_grads(model) -> dict[str, torch.Tensor]:
    return {name: parameter.main_grad.clone() for name, parameter in model.named_parameters()}


def has(model, kind: type) -> bool:
    return any(isinstance(module, kind) for module in model.modules())


def dispatcher(model) -> object:
    return next(module.token_dispatcher for module in model.modules() if hasattr(module, "token_dispatcher"))


SWITCHES = {
    "rmsnorm": (("kernels.rmsnorm=true",), lambda model: has(model, FusedRMSNorm)),
    "swiglu": (("kernels.swiglu=true",), lambda model: has(model, Experts)),
    "permute": (("kernels.permute=true",), lambda model: isinstance(dispatcher(model), FusedAlltoAllDispatcher)),
    "permute_allgather": (("kernels.permute=true", "parallel.dispatcher=allgather"),
                          lambda model: isinstance(dispatcher(model), FusedAllGatherDispatcher)),
    "cross_entropy": (("kernels.cross_entropy=true",), lambda model: has(model, FusedHeadModel)),
    "cross_entropy_in_chunks": (("kernels.cross_entropy=true", "kernels.head_chunk_tokens=5"),
                                lambda model: has(model, FusedHeadModel)),
    "wgrad_accumulation": (("kernels.wgrad_accumulation=true",), lambda model: has(model, OwnColumnParallelLinear)),
    "tied_accumulation": (("kernels.wgrad_accumulation=true", "kernels.cross_entropy=true", "model.tied_embeddings=true"),
                          lambda model: has(model, FusedHeadModel)),
}
ALL = ("kernels.rmsnorm=true", "kernels.swiglu=true", "kernels.permute=true", "kernels.cross_entropy=true",
       "kernels.wgrad_accumulation=true")


@pytest.fixture(params=["references", "kernels"])
def arithmetic(request, monkeypatch) -> None:
    if request.param == "kernels":
        pytest.importorskip("triton", reason="Triton is not installed; pip install 'megatron_jmed[kernels]'")
        interpreter.install(monkeypatch)


@pytest.mark.parametrize("switch", SWITCHES)
def test_with_a_kernel_the_loss_and_every_gradient_are_the_same(switch, arithmetic, small_config, groups):
    changes, is_there = SWITCHES[switch]
    others = tuple(change for change in changes if not change.startswith("kernels"))
    plain, plain_loss, plain_norm = trained(small_config(*SMALL, FP32, *others), groups)
    expected = main_grads(plain)
    fused, loss, norm = trained(small_config(*SMALL, FP32, *changes), groups)
    assert is_there(fused) and not is_there(plain)
    assert loss == pytest.approx(plain_loss, rel=1e-6) and norm == pytest.approx(plain_norm, rel=1e-5)
    for name, grad in main_grads(fused).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-6 * float(expected[name].abs().max()), msg=name)


@pytest.mark.parametrize("precision", [(BF16,), FP8, (*FP8, "precision.fp8_recipe=tensorwise", "precision.fp8_wgrad=true")])
def test_all_kernels_at_once_train_within_the_rounding_of_bf16(precision, arithmetic, small_config, groups):
    wide = ("model.hidden_size=128", "model.ffn_hidden_size=128", "model.num_experts=4", "model.num_layers=1")
    _, plain_losses, plain_norms = trained(small_config(*SMALL, *wide, *precision), groups, steps=2)
    fused, losses, norms = trained(small_config(*SMALL, *wide, *precision, *ALL), groups, steps=2)
    assert losses == pytest.approx(plain_losses, rel=0.02) and norms == pytest.approx(plain_norms, rel=0.05)
    weights = [module.weight for module in fused.modules() if isinstance(module, OwnColumnParallelLinear)]
    assert {weight.grad_added_to_main_grad for weight in weights} == {"precision.fp8_wgrad=true" not in precision}


def test_kept_fp8_weights_change_no_bit_and_are_forgotten_when_weights_change(small_config, groups, monkeypatch):
    kept, anew = (trained(small_config(*SMALL, *FP8, f"kernels.fp8_weight_cache={word}"), groups, steps=3)[1:]
                  for word in ("true", "false"))
    assert kept == anew
    monkeypatch.setattr("megatron_jmed.train.step.forget_fp8_weights", lambda _: None)
    assert trained(small_config(*SMALL, *FP8), groups, steps=3)[1] != kept[0]


def test_the_cache_saves_quantising_in_all_micro_batches_but_the_first(small_config, groups, monkeypatch):
    from megatron_jmed.model import linear

    counts = []
    real = linear.quantize_blocks_128x128
    monkeypatch.setattr(linear, "quantize_blocks_128x128", lambda weight: counts.append(1) or real(weight))
    for word in ("true", "false"):
        counts.append(0)
        trained(small_config(*SMALL, *FP8, f"kernels.fp8_weight_cache={word}"), groups)
    kept, anew = (len(part.split("0")[0]) for part in "".join(map(str, counts[1:])).split("0", 1))
    assert anew == 4 * kept  # two micro-batches, forward and backward


# ---- the head


@pytest.mark.parametrize("chunk_tokens", [0, 3])
@pytest.mark.parametrize("is_accumulating", [False, True])
def test_the_head_gives_the_loss_and_gradients_of_fp64(chunk_tokens, is_accumulating, groups):
    hidden = torch.randn(4, 2, 16).bfloat16().requires_grad_()
    weight = torch.nn.Parameter(torch.randn(50, 16).bfloat16())
    weight.main_grad = torch.ones(50, 16)
    labels, weights = torch.randint(0, 50, (2, 4)), torch.rand(2, 4)
    weights[0, 1] = 0
    exact_hidden, exact_weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = torch.nn.functional.cross_entropy((exact_hidden @ exact_weight.t()).flatten(0, 1), labels.t().flatten(),
                                                 reduction="none").view(4, 2).t()
    (expected * weights).sum().backward()
    layer = SimpleNamespace(weight=weight, sequence_parallel=False, allreduce_dgrad=False, tp_group=groups.tp)
    losses = head_losses(layer, hidden, labels, None, chunk_tokens, is_accumulating)
    (losses * weights).sum().backward()
    grad_weight = weight.main_grad - 1 if is_accumulating else weight.grad

    def distance(found, exact):
        return float((found.double() - exact).norm() / exact.norm())

    assert losses.dtype == torch.float32 and distance(losses.detach(), expected.detach()) < 1e-2  # the logits are bf16
    assert distance(hidden.grad, exact_hidden.grad) < 2e-2 and distance(grad_weight, exact_weight.grad) < 2e-2
    assert not hidden.grad[1, 0].any()  # the token that is switched off


# ---- what a Hopper GPU is given: shapes, types and strides are checked by torch on the meta device


@pytest.mark.parametrize("wgrad", [False, True])
@pytest.mark.parametrize("fp8", ["blockwise", "tensorwise"])
def test_operands_have_the_layout_that_cublaslt_wants(fp8, wgrad):
    tokens, inputs, outputs = 8192, 5120, 27648
    x, weight, grad = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in
                       ((tokens, inputs), (outputs, inputs), (tokens, outputs)))
    how = Products(fp8, wgrad)
    assert product(how.tokens(x), how.weight(weight)[0], torch.bfloat16).shape == (tokens, outputs)
    assert product(how.tokens(grad), how.weight(weight)[1], torch.bfloat16).shape == (tokens, inputs)
    if wgrad:
        assert product(how.tokens(grad.t()), how.tokens(x.t()), torch.bfloat16).shape == (outputs, inputs)


def test_a_wrong_layout_is_refused():
    how = Products("blockwise")
    x, weight = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((256, 640), (512, 640)))
    values, scales = how.tokens(x)
    with pytest.raises(ValueError, match="sums over 600 numbers; a Hopper GPU takes multiples of 128"):
        hopper_product((values[:, :600], scales), how.weight(weight)[0], torch.bfloat16)
    with pytest.raises((RuntimeError, ValueError)):
        hopper_product((values, scales[:, :3]), how.weight(weight)[0], torch.bfloat16)


# ---- the words


@pytest.mark.parametrize(("changes", "complaint"), [
    (("precision.backend=local", "kernels.swiglu=true"), 'kernels.swiglu=true needs precision.backend="jmed", not "local"'),
    (("kernels.head_chunk_tokens=8",), "kernels.head_chunk_tokens=8 cuts what kernels.cross_entropy computes"),
    (("model.num_experts=0", "model.router_topk=0", "kernels.permute=true"), "kernels.permute=true without experts"),
])
def test_words_that_cannot_work_are_refused(changes, complaint, small_config):
    from megatron_jmed.errors import ConfigError

    with pytest.raises(ConfigError) as caught:
        found = problems(small_config("precision.backend=jmed", *changes))
        raise ConfigError("\n".join(found))
    assert complaint in str(caught.value)
