"""The kernels on real hardware at the widths of LLM-jp-3 8x13B, against fp64 on the same GPU.

The same tests as in tests/kernels at sizes that the interpreter cannot do; tests/kernels runs on the GPU too where there is one.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from agreement import agree, difficult_rows, distance, is_plain_close, with_one_scale_wrong

from megatron_jmed.kernels.accumulate import accumulate_, accumulate_reference, adds_in_the_gemm
from megatron_jmed.kernels.cross_entropy import gradient_in_place_, join_statistics, local_statistics
from megatron_jmed.kernels.permute import gather_rows, gather_rows_reference, plan_rows, sum_rows, sum_rows_reference
from megatron_jmed.kernels.quantize_triton import OUTPUTS, quantize_rows, quantize_rows_reference
from megatron_jmed.kernels.rmsnorm import rmsnorm, rmsnorm_backward
from megatron_jmed.kernels.swiglu import swiglu, swiglu_backward, swiglu_backward_reference, swiglu_reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
HIDDEN, FFN, VOCABULARY, ODD = 5120, 13824, 99584, 1031  # ODD: a number of rows with no power of two in it
DEVICE = torch.device("cuda")


@pytest.fixture(autouse=True)
def seed():
    number = int(os.environ.get("SEED") or int.from_bytes(os.urandom(4), "big"))
    print(f"SEED={number}")
    torch.manual_seed(number)


def test_the_hardware_rounds_every_bf16_number_to_fp8_as_torch_does():
    """Groups that hold 448 have scale 1, so that quantising is the cast alone."""
    numbers = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    numbers = numbers[numbers.abs() <= 448]
    numbers = torch.nn.functional.pad(numbers, (0, -len(numbers) % 127)).view(-1, 127)
    rows = torch.cat([numbers, torch.full((len(numbers), 1), 448.0, dtype=torch.bfloat16)], 1).to(DEVICE)
    values, scales = quantize_rows(rows)
    assert (scales == 1).all()
    assert torch.equal(values.float(), rows.float().to(torch.float8_e4m3fn).float())


def test_quantised_rows_are_those_of_the_reference_bit_by_bit():
    rows = difficult_rows(ODD, FFN, DEVICE)
    values, scales = quantize_rows(rows)
    expected_values, expected_scales = quantize_rows_reference(rows)
    assert torch.equal(values.view(torch.uint8), expected_values.view(torch.uint8)) and torch.equal(scales, expected_scales)


@pytest.mark.parametrize("output", OUTPUTS)
def test_swiglu(output):
    fc1, probs, grad = difficult_rows(ODD, 2 * FFN, DEVICE), torch.rand(ODD, device=DEVICE), difficult_rows(ODD, FFN, DEVICE)
    exact = swiglu_reference(fc1.double(), probs.double())
    exact_grad, exact_probs = swiglu_backward_reference(grad.double(), fc1.double(), probs.double())
    found = swiglu(fc1, probs, output)
    rows, grad_probs = swiglu_backward(grad, fc1, probs, output)
    assert agree(found, exact) and agree(rows, exact_grad)
    assert distance(grad_probs, exact_probs) < 1e-5
    assert torch.equal(grad_probs, swiglu_backward(grad, fc1, probs, output)[1])
    assert output == "plain" or not agree(with_one_scale_wrong(found), exact)


@pytest.mark.parametrize("output", OUTPUTS)
def test_permute_and_back(output):
    scores = torch.rand(ODD, 8, device=DEVICE)
    scores[:, 3] = -1  # an expert without tokens
    routing_map = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(2).indices, True)
    plan = plan_rows(routing_map, 2, num_rows=2 * ODD + 8 * 15)
    tokens, weights = difficult_rows(ODD, HIDDEN, DEVICE), torch.rand(len(plan.source_R), device=DEVICE)
    rows = difficult_rows(len(plan.source_R), HIDDEN, DEVICE)
    found, dots = gather_rows(tokens, plan, output, weights, rows)
    exact = gather_rows_reference(tokens.double(), plan.source_R)
    assert agree(gather_rows(tokens, plan, output)[0], exact) and agree(found, exact * weights[:, None].double())
    assert (dots.double() - (rows.double() * exact).sum(1)).abs().max() <= 1e-5 * (rows.double() * exact).abs().sum(1).max()
    total = sum_rows(rows, plan, weights)
    assert is_plain_close(total, sum_rows_reference(rows.double(), plan.rows_TK, weights.double()))
    assert torch.equal(total, sum_rows(rows, plan, weights))


@pytest.mark.parametrize("output", OUTPUTS)
def test_rmsnorm(output):
    x, grad = difficult_rows(ODD, HIDDEN, DEVICE), torch.randn(ODD, HIDDEN, device=DEVICE).bfloat16()
    weight = (1 + 0.3 * torch.randn(HIDDEN, device=DEVICE)).bfloat16()
    exact_x, exact_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    exact = torch.nn.functional.rms_norm(exact_x, weight.shape, exact_weight, 1e-5)
    exact.backward(grad.double())
    rows, inverse = rmsnorm(x, weight, 1e-5, output)
    grad_x, grad_weight = rmsnorm_backward(grad, x, weight, inverse)
    assert agree(rows, exact.detach()) and is_plain_close(grad_x, exact_x.grad)
    assert distance(grad_weight, exact_weight.grad) < 1e-5
    assert torch.equal(grad_weight, rmsnorm_backward(grad, x, weight, inverse)[1])


@pytest.mark.parametrize("num_shards", [1, 8])
def test_cross_entropy(num_shards):
    num_tokens = 259
    logits = (3 * torch.randn(num_tokens, VOCABULARY, device=DEVICE)).bfloat16()
    targets, weights = torch.randint(0, VOCABULARY, (num_tokens,), device=DEVICE), torch.rand(num_tokens, device=DEVICE)
    exact_logits = logits.double().requires_grad_()
    exact = torch.nn.functional.cross_entropy(exact_logits, targets, reduction="none")
    (exact * weights.double()).sum().backward()
    parts = [part.contiguous() for part in logits.chunk(num_shards, 1)]
    firsts = [index * VOCABULARY // num_shards for index in range(num_shards)]
    whole = join_statistics([local_statistics(part, targets, first) for part, first in zip(parts, firsts, strict=True)])
    assert distance(whole.loss(), exact.detach()) < 1e-6
    found = torch.cat([gradient_in_place_(part, targets, whole, weights, first)
                       for part, first in zip(parts, firsts, strict=True)], 1)
    assert ((found.double() - exact_logits.grad).abs() <= 2.0**-8 * exact_logits.grad.abs() + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_main_grad_grows_by_the_exact_product(dtype):
    grad, x = torch.randn(ODD, HIDDEN, device=DEVICE).to(dtype), torch.randn(ODD, 2048, device=DEVICE).to(dtype)
    main_grad = torch.randn(HIDDEN, 2048, device=DEVICE)
    expected, address = accumulate_reference(main_grad.double(), grad, x), main_grad.data_ptr()
    found = accumulate_(main_grad, grad, x)
    assert found.data_ptr() == main_grad.data_ptr() == address
    assert distance(found, expected) < 1e-5


def test_this_torch_adds_in_the_gemm():
    """Where it does not, accumulate_ falls back to a product and an addition, right but slower."""
    assert adds_in_the_gemm(DEVICE, torch.bfloat16)
