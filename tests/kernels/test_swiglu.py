"""SwiGLU times probability and its gradient against fp64 autograd."""

import pytest
import torch
from agreement import agree, difficult_rows, distance, with_one_scale_wrong

from megatron_jmed.kernels.quantize_triton import OUTPUTS, quantize_rows_reference
from megatron_jmed.kernels.swiglu import swiglu, swiglu_backward, swiglu_backward_reference, swiglu_reference


def inputs(num_rows, width, device):
    probs = torch.rand(num_rows, device=device)
    if num_rows > 4:
        probs[4] = 0  # a row of padding
    return difficult_rows(num_rows, 2 * width, device), probs, torch.randn(num_rows, width).bfloat16().to(device)


def exact(fc1, probs, grad):
    """(y, its gradients) by autograd in fp64."""
    fc1, probs = fc1.double().requires_grad_(), probs.double().requires_grad_()
    result = swiglu_reference(fc1, probs)
    result.backward(grad.double())
    return result.detach(), fc1.grad, probs.grad


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("num_rows, width", [(37, 256), (1, 128), (0, 128)])
def test_forward_and_backward_are_those_of_fp64(device, output, num_rows, width):
    fc1, probs, grad = inputs(num_rows, width, device)
    result, grad_fc1, grad_probs = exact(fc1, probs, grad)
    assert agree(swiglu(fc1, probs, output), result)
    rows, found_probs = swiglu_backward(grad, fc1, probs, output)
    assert agree(rows, grad_fc1)
    assert num_rows == 0 or distance(found_probs, grad_probs) < 1e-5


def test_a_width_that_is_no_multiple_of_128_works_unquantised(device):
    fc1, probs, grad = inputs(5, 200, device)
    result, grad_fc1, grad_probs = exact(fc1, probs, grad)
    rows, found_probs = swiglu_backward(grad, fc1, probs)
    assert agree(swiglu(fc1, probs), result) and agree(rows, grad_fc1) and distance(found_probs, grad_probs) < 1e-5
    with pytest.raises(ValueError, match="whole groups"):
        swiglu_backward(torch.zeros(4, 192).bfloat16().to(device), torch.zeros(4, 384).bfloat16().to(device), probs[:4], "both")


def test_one_wrong_scale_fails_the_comparison(device):
    fc1, probs, grad = inputs(37, 256, device)
    result, grad_fc1, _ = exact(fc1, probs, grad)
    assert not agree(with_one_scale_wrong(swiglu(fc1, probs, "fp8")), result)
    assert not agree(with_one_scale_wrong(swiglu_backward(grad, fc1, probs, "fp8")[0]), grad_fc1)


def test_the_quantised_rows_are_the_fp32_rows_quantised_once(device):
    """Not rounded to bf16 on the way: the relative error is that of E4M3 alone."""
    fc1, probs, _ = inputs(64, 256, device)
    values, scales = quantize_rows_reference(swiglu_reference(fc1.float(), probs))
    found = swiglu(fc1, probs, "fp8")
    assert (found.values_RK.view(torch.uint8) != values.view(torch.uint8)).float().mean() < 1e-3
    torch.testing.assert_close(found.scales_RG, scales, rtol=1e-6, atol=0)


def test_without_a_kernel_the_reference_gives_the_same_rows():
    fc1, probs, grad = inputs(9, 128, torch.device("cpu"))
    result, grad_fc1, grad_probs = exact(fc1, probs, grad)
    rows, found_probs = swiglu_backward(grad, fc1, probs, "both")
    assert agree(swiglu(fc1, probs, "both"), result) and agree(rows, grad_fc1) and distance(found_probs, grad_probs) < 1e-5


def test_the_written_gradient_is_that_of_autograd():
    fc1, probs, grad = torch.randn(3, 8).double(), torch.rand(3).double(), torch.randn(3, 4).double()
    _, grad_fc1, grad_probs = exact(fc1, probs, grad)
    found = swiglu_backward_reference(grad, fc1, probs)
    torch.testing.assert_close(found, (grad_fc1, grad_probs), rtol=1e-12, atol=1e-14)
