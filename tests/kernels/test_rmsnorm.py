"""RMSNorm and its gradient against fp64 autograd and torch's own."""

import pytest
import torch
from agreement import agree, difficult_rows, distance, is_plain_close, with_one_scale_wrong

from megatron_jmed.kernels.quantize_triton import OUTPUTS
from megatron_jmed.kernels.rmsnorm import rmsnorm, rmsnorm_backward, rmsnorm_reference

EPS = 1e-5


def inputs(num_tokens, width, device):
    weight = (1 + 0.3 * torch.randn(width)).bfloat16().to(device)
    return difficult_rows(num_tokens, width, device), weight, torch.randn(num_tokens, width).bfloat16().to(device)


def exact(x, weight, grad):
    """(y, gradients of x and weight) by torch's autograd in fp64."""
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    result = torch.nn.functional.rms_norm(x, weight.shape, weight, EPS)
    result.backward(grad.double())
    return result.detach(), x.grad, weight.grad


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("num_tokens, width", [(37, 384), (1, 128), (0, 128)])
def test_forward_and_backward_are_those_of_fp64(device, output, num_tokens, width):
    x, weight, grad = inputs(num_tokens, width, device)
    result, grad_x, grad_weight = exact(x, weight, grad)
    rows, inverse = rmsnorm(x, weight, EPS, output)
    assert agree(rows, result)
    found_x, found_weight = rmsnorm_backward(grad, x, weight, inverse)
    assert is_plain_close(found_x, grad_x)
    assert num_tokens == 0 or distance(found_weight, grad_weight) < 1e-5


def test_more_rows_than_partial_sums(device):
    """Programs with two rows and programs with one; the same bits every time."""
    x, weight, grad = inputs(300, 128, device)
    _, _, grad_weight = exact(x, weight, grad)
    _, inverse = rmsnorm(x, weight, EPS)
    found = rmsnorm_backward(grad, x, weight, inverse)[1]
    assert distance(found, grad_weight) < 1e-5
    assert torch.equal(found, rmsnorm_backward(grad, x, weight, inverse)[1])


def test_a_width_that_is_no_power_of_two_nor_multiple_of_128(device):
    x, weight, grad = inputs(5, 200, device)
    result, grad_x, _ = exact(x, weight, grad)
    rows, inverse = rmsnorm(x, weight, EPS)
    assert agree(rows, result) and is_plain_close(rmsnorm_backward(grad, x, weight, inverse)[0], grad_x)


def test_one_wrong_scale_fails_the_comparison(device):
    x, weight, _ = inputs(7, 256, device)
    exact_rows, _ = rmsnorm_reference(x.double(), weight.double(), EPS)
    assert not agree(with_one_scale_wrong(rmsnorm(x, weight, EPS, "fp8")[0]), exact_rows)


def test_without_a_kernel_the_reference_gives_the_same():
    x, weight, grad = inputs(9, 128, torch.device("cpu"))
    result, grad_x, grad_weight = exact(x, weight, grad)
    rows, inverse = rmsnorm(x, weight, EPS, "both")
    found_x, found_weight = rmsnorm_backward(grad, x, weight, inverse)
    assert agree(rows, result) and is_plain_close(found_x, grad_x) and distance(found_weight, grad_weight) < 1e-5


def test_a_row_too_wide_for_one_program_is_refused(device):
    with pytest.raises(ValueError, match="16384"):
        rmsnorm(torch.zeros(1, 16512, device=device), torch.ones(16512, device=device))
