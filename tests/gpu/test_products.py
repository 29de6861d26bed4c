"""fp8 products of a Hopper GPU are those of the emulation, at the sizes of 8x13B and with odd numbers of rows."""

import pytest
import torch

import megatron_jmed.parallel  # noqa: F401  (its patches come before Megatron-Core)
from megatron_jmed.kernels.quantize import dequantize
from megatron_jmed.model.head import head_losses
from megatron_jmed.model.linear import Products, product

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
HIDDEN, FFN, ROWS = 5120, 13824, 1032
DEVICE = torch.device("cuda")


def distance(found, exact) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("rows", [ROWS, 8, 1, 0])
@pytest.mark.parametrize("fp8", ["blockwise", "tensorwise"])
def test_y_and_dx_are_the_products_of_the_quantised_operands(fp8, rows):
    torch.manual_seed(0)
    how, weight = Products(fp8), (torch.randn(2 * FFN, HIDDEN, device=DEVICE) / 70).bfloat16()
    x, grad = torch.randn(rows, HIDDEN, device=DEVICE).bfloat16(), torch.randn(rows, 2 * FFN, device=DEVICE).bfloat16()
    for left, right in ((x, how.weight(weight)[0]), (grad, how.weight(weight)[1])):
        left = how.tokens(left)
        found = product(left, right, torch.bfloat16)
        assert found.shape == (rows, len(right[0]))
        if rows:
            # K = 27,648 for dx: a tensor core that kept 14 bits of the sum would be off by more
            assert distance(found, dequantize(*left).double() @ dequantize(*right).double().t()) < 4e-3


@pytest.mark.parametrize("fp8", ["blockwise", "tensorwise"])
def test_fp8_weight_gradients_are_those_of_the_quantised_operands(fp8):
    torch.manual_seed(1)
    how = Products(fp8, is_wgrad_fp8=True)
    grad, x = torch.randn(ROWS, 1024, device=DEVICE).bfloat16(), torch.randn(ROWS, 512, device=DEVICE).bfloat16()
    weight = torch.empty(1024, 512, device=DEVICE, dtype=torch.bfloat16)
    assert distance(how.weight_gradient(weight, grad, x), grad.double().t() @ x.double()) < 0.06


def test_a_wrong_scale_would_be_seen():
    torch.manual_seed(2)
    how, x = Products("blockwise"), torch.randn(ROWS, HIDDEN, device=DEVICE).bfloat16()
    weight = torch.randn(512, HIDDEN, device=DEVICE).bfloat16()
    values, scales = how.tokens(x)
    exact = dequantize(values, scales).double() @ dequantize(*how.weight(weight)[0]).double().t()
    wrong = scales.clone()
    wrong[:, 3] *= 2
    assert distance(product((values, wrong), how.weight(weight)[0], torch.bfloat16), exact) > 0.05


def test_the_head_in_chunks_never_holds_all_logits():
    from types import SimpleNamespace

    from megatron_jmed.config import ParallelConfig
    from megatron_jmed.parallel import World, start_groups, stop_groups

    groups = start_groups(ParallelConfig(), World(0, 1, 0), seed=1)
    tokens, vocabulary, chunk = 4096, 99584, 512
    hidden = torch.randn(tokens, 1, 1024, device=DEVICE).bfloat16().requires_grad_()
    weight = torch.nn.Parameter((torch.randn(vocabulary, 1024, device=DEVICE) / 32).bfloat16())
    weight.main_grad = torch.zeros(vocabulary, 1024, device=DEVICE)
    labels = torch.randint(0, vocabulary, (1, tokens), device=DEVICE)
    layer = SimpleNamespace(weight=weight, sequence_parallel=False, allreduce_dgrad=False, tp_group=groups.tp)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    losses = head_losses(layer, hidden, labels, None, chunk, is_accumulating=True)
    (losses.sum() / tokens).backward()
    peak = torch.cuda.max_memory_allocated() - before
    expected = torch.nn.functional.cross_entropy((hidden[:chunk, 0] @ weight.t()).double(), labels[0, :chunk], reduction="none")
    stop_groups()
    assert distance(losses[0, :chunk].detach(), expected.detach()) < 1e-5
    # the stand-in gradient of the weight and the logits of a chunk, and not half of all logits
    assert peak < 2 * vocabulary * 1024 + tokens * vocabulary
