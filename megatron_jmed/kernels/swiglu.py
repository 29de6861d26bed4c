"""SwiGLU times the routing probability, the step between an expert's two GEMMs, and its gradient, each in one pass.

    s = 1 / (1 + exp(-g))        silu(g) = g s        y = silu(g) u p
    dg = dy p u (s + silu(g) (1 - s))        du = dy p silu(g)        dp = sum over F of dy silu(g) u

g and u are the halves of fc1_R2F (gate first, as Megatron-Core lays them), p the probability of the row: Megatron-Core multiplies
it in here, before fc2, so that unpermuting is a plain sum. Inside fp32; the result in the precision of fc1, in fp8 with 1x128
scales (quantize_triton.py), or both: fp8 for the next GEMM, plain for a weight gradient in bf16. The backward pass reads fc1 and
computes y anew, so y need not be kept. dp is summed over 128 columns in the kernel and over the groups afterwards, always in the
same order. Legend: R rows (routed tokens, with padding), F width of the expert, G = ceil(F / 128).
"""

import torch

from megatron_jmed.kernels.launch import ceil_div, jit, launch, runs_on, tl
from megatron_jmed.kernels.quantize_triton import FP8_MAX, GROUP, TINY, Rows, empty_rows, pointers, reference_rows, store_tile


def swiglu_reference(fc1_R2F: torch.Tensor, probs_R: torch.Tensor) -> torch.Tensor:
    gate, up = fc1_R2F.chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up * probs_R[:, None]


def swiglu_backward_reference(grad_RF: torch.Tensor, fc1_R2F: torch.Tensor,
                              probs_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(grad_fc1_R2F, grad_probs_R)."""
    gate, up = fc1_R2F.chunk(2, dim=1)
    sigmoid = torch.sigmoid(gate)
    silu, weighted = gate * sigmoid, grad_RF * probs_R[:, None]
    grad_gate = weighted * up * (sigmoid + silu * (1 - sigmoid))
    return torch.cat([grad_gate, weighted * silu], dim=1), (grad_RF * silu * up).sum(1)


@jit
def load_tile(fc1, probs, R, F, BLOCK_R: tl.constexpr, GROUP: tl.constexpr):
    """What both passes read of a program's rows and columns, and where they stand."""
    num_groups = tl.cdiv(F, GROUP)
    group = tl.program_id(0) % num_groups
    row = tl.program_id(0) // num_groups * BLOCK_R + tl.arange(0, BLOCK_R)
    column = group * GROUP + tl.arange(0, GROUP)
    inside_row = row < R
    inside = inside_row[:, None] & (column < F)[None, :]
    at_gate = row.to(tl.int64)[:, None] * (2 * F) + column[None, :]
    gate = tl.load(fc1 + at_gate, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(fc1 + F + at_gate, mask=inside, other=0.0).to(tl.float32)
    prob = tl.load(probs + row, mask=inside_row, other=0.0).to(tl.float32)[:, None]
    at_scale = group.to(tl.int64) * R + row
    return inside_row, inside, at_gate, row.to(tl.int64)[:, None] * F + column[None, :], at_scale, gate, up, prob


@jit
def _forward(fc1, probs, plain, values, scales, R, F, BLOCK_R: tl.constexpr, GROUP: tl.constexpr,
             PLAIN: tl.constexpr, FP8: tl.constexpr, MAX: tl.constexpr, LEAST: tl.constexpr):
    inside_row, inside, _, at, at_scale, gate, up, prob = load_tile(fc1, probs, R, F, BLOCK_R, GROUP)
    result = gate * tl.sigmoid(gate) * up * prob
    store_tile(result, at, inside, inside_row, at_scale, plain, values, scales, PLAIN, FP8, MAX, LEAST)


@jit
def _backward(grad, fc1, probs, plain, values, scales, grad_probs, R, F, BLOCK_R: tl.constexpr, GROUP: tl.constexpr,
              PLAIN: tl.constexpr, FP8: tl.constexpr, MAX: tl.constexpr, LEAST: tl.constexpr):
    inside_row, inside, at, at_given, at_scale, gate, up, prob = load_tile(fc1, probs, R, F, BLOCK_R, GROUP)
    given = tl.load(grad + at_given, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(grad_probs + at_scale, tl.sum(given * silu * up, axis=1), mask=inside_row)
    grad_gate = given * prob * up * (sigmoid + silu * (1 - sigmoid))
    store_tile(grad_gate, at, inside, inside_row, at_scale, plain, values, scales, PLAIN, FP8, MAX, LEAST)
    at_scale += tl.cdiv(F, GROUP).to(tl.int64) * R
    store_tile(given * prob * silu, at + F, inside, inside_row, at_scale, plain, values, scales, PLAIN, FP8, MAX, LEAST)


def swiglu(fc1_R2F: torch.Tensor, probs_R: torch.Tensor, output: str = "plain") -> Rows:
    """silu(gate) * up * prob as rows [R, F]; `output` is "plain", "fp8" or "both"."""
    if not runs_on(fc1_R2F.device):
        return reference_rows(swiglu_reference(fc1_R2F.float(), probs_R.float()), fc1_R2F, output)
    num_rows, width = len(fc1_R2F), fc1_R2F.shape[1] // 2
    assert fc1_R2F.is_contiguous() and probs_R.is_contiguous() and probs_R.shape == (num_rows,)
    out = empty_rows(num_rows, width, fc1_R2F, output)
    launch(_forward, ceil_div(num_rows, 32) * ceil_div(width, GROUP), fc1_R2F, probs_R, *pointers(out, fc1_R2F), num_rows, width,
           BLOCK_R=32, GROUP=GROUP, PLAIN=output != "fp8", FP8=output != "plain", MAX=FP8_MAX, LEAST=TINY, num_warps=4)
    return out


def swiglu_backward(grad_RF: torch.Tensor, fc1_R2F: torch.Tensor, probs_R: torch.Tensor,
                    output: str = "plain") -> tuple[Rows, torch.Tensor]:
    """(gradient of fc1 as rows [R, 2F], gradient of the probabilities [R] in fp32)."""
    if not runs_on(fc1_R2F.device):
        grad_fc1, grad_probs = swiglu_backward_reference(grad_RF.float(), fc1_R2F.float(), probs_R.float())
        return reference_rows(grad_fc1, fc1_R2F, output), grad_probs
    num_rows, width = grad_RF.shape
    assert grad_RF.is_contiguous() and fc1_R2F.is_contiguous() and probs_R.is_contiguous()
    assert fc1_R2F.shape == (num_rows, 2 * width) and probs_R.shape == (num_rows,)
    out = empty_rows(num_rows, 2 * width, fc1_R2F, output)
    if output != "plain" and width % GROUP:
        raise ValueError(f"a width of {width} has no whole groups of {GROUP}; fp8 rows need a multiple")
    partial_GR = torch.empty(ceil_div(width, GROUP), num_rows, device=grad_RF.device)
    launch(_backward, ceil_div(num_rows, 16) * len(partial_GR), grad_RF, fc1_R2F, probs_R, *pointers(out, fc1_R2F), partial_GR,
           num_rows, width, BLOCK_R=16, GROUP=GROUP, PLAIN=output != "fp8", FP8=output != "plain", MAX=FP8_MAX, LEAST=TINY,
           num_warps=4)
    return out, partial_GR.sum(0)
