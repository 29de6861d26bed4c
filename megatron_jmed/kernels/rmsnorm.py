"""RMSNorm and its gradient, each in one pass over the rows, fp32 inside.

    r_t = 1 / sqrt(mean_h x_th^2 + eps)        y = x r w
    dx = r (dy w - x r^2 mean_h(dy w x))        dw = sum over t of dy x r

The result is in the precision of x, in fp8 with 1x128 scales (quantize_triton.py), or both. r_T is kept for the backward pass. dw:
program p sums the rows p, p + P, ... and the P partial sums are added afterwards, with P fixed at 256 on every machine: the same
bits every time and everywhere. Rows are independent, so a sequence-parallel rank calls this on its own share of the tokens and
all-reduces dw. Legend: T tokens, H hidden. Source: Zhang and Sennrich, arXiv 1910.07467.
"""

import torch

from megatron_jmed.kernels.launch import jit, launch, runs_on, tl
from megatron_jmed.kernels.quantize_triton import FP8_MAX, GROUP, TINY, Rows, empty_rows, pointers, quantize_tile, reference_rows

NUM_PARTIAL_SUMS = 256


def rmsnorm_reference(x_TH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(y_TH, r_T)."""
    inverse_T = (x_TH.square().mean(1) + eps).rsqrt()
    return x_TH * inverse_T[:, None] * weight_H, inverse_T


def rmsnorm_backward_reference(grad_TH: torch.Tensor, x_TH: torch.Tensor, weight_H: torch.Tensor,
                               inverse_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(grad_x_TH, grad_weight_H)."""
    normal_TH, weighted_TH = x_TH * inverse_T[:, None], grad_TH * weight_H
    grad_x_TH = inverse_T[:, None] * (weighted_TH - normal_TH * (weighted_TH * normal_TH).mean(1, keepdim=True))
    return grad_x_TH, (grad_TH * normal_TH).sum(0)


@jit
def _forward(x, weight, inverse_rms, plain, values, scales, T, H, eps, BLOCK_H: tl.constexpr, GROUP: tl.constexpr,
             PLAIN: tl.constexpr, FP8: tl.constexpr, MAX: tl.constexpr, LEAST: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_H)
    row = tl.load(x + token * H + column, mask=column < H, other=0.0).to(tl.float32)
    inverse = 1 / tl.sqrt_rn(tl.sum(row * row, axis=0) / H + eps)
    tl.store(inverse_rms + token, inverse)
    result = row * inverse * tl.load(weight + column, mask=column < H, other=0.0).to(tl.float32)
    if PLAIN:
        tl.store(plain + token * H + column, result.to(plain.dtype.element_ty), mask=column < H)
    if FP8:
        scaled, scale = quantize_tile(tl.reshape(result, (BLOCK_H // GROUP, GROUP)), MAX, LEAST)
        tl.store(values + token * H + column, tl.reshape(scaled, (BLOCK_H,)).to(values.dtype.element_ty), mask=column < H)
        group = tl.arange(0, BLOCK_H // GROUP)
        tl.store(scales + group.to(tl.int64) * T + token, scale, mask=group < H // GROUP)


@jit
def _backward(grad, x, weight, inverse_rms, grad_x, partial, T, H, PROGRAMS, BLOCK_H: tl.constexpr):
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK_H)
    scale = tl.load(weight + column, mask=column < H, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    for token in range(program, T, PROGRAMS):
        at = tl.cast(token, tl.int64) * H + column
        inverse = tl.load(inverse_rms + token)
        normal = tl.load(x + at, mask=column < H, other=0.0).to(tl.float32) * inverse
        given = tl.load(grad + at, mask=column < H, other=0.0).to(tl.float32)
        total += given * normal
        weighted = given * scale
        mean = tl.sum(weighted * normal, axis=0) / H
        tl.store(grad_x + at, (inverse * (weighted - normal * mean)).to(grad_x.dtype.element_ty), mask=column < H)
    tl.store(partial + program.to(tl.int64) * H + column, total, mask=column < H)


def _block(width: int) -> tuple[int, int]:
    """(numbers a program holds, its warps): a whole row in registers, 16 numbers a thread at most up to a width of 8,192."""
    block = max(GROUP, 1 << (width - 1).bit_length())
    if block > 16384:
        raise ValueError(f"a width of {width} does not fit one program; at most 16384")
    return block, min(16, max(1, block // 512))


def rmsnorm(x_TH: torch.Tensor, weight_H: torch.Tensor, eps: float = 1e-5, output: str = "plain") -> tuple[Rows, torch.Tensor]:
    """(normalised rows [T, H], r_T in fp32 for the backward pass)."""
    if not runs_on(x_TH.device):
        y_TH, inverse_T = rmsnorm_reference(x_TH.float(), weight_H.float(), eps)
        return reference_rows(y_TH, x_TH, output), inverse_T
    num_tokens, width = x_TH.shape
    assert x_TH.is_contiguous() and weight_H.is_contiguous()
    out, inverse_T = empty_rows(num_tokens, width, x_TH, output), torch.empty(num_tokens, device=x_TH.device)
    block, num_warps = _block(width)
    launch(_forward, num_tokens, x_TH, weight_H, inverse_T, *pointers(out, x_TH), num_tokens, width, eps, BLOCK_H=block,
           GROUP=GROUP, PLAIN=output != "fp8", FP8=output != "plain", MAX=FP8_MAX, LEAST=TINY, num_warps=num_warps)
    return out, inverse_T


def rmsnorm_backward(grad_TH: torch.Tensor, x_TH: torch.Tensor, weight_H: torch.Tensor,
                     inverse_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient of x [T, H] in its precision, gradient of the weight [H] in fp32)."""
    if not runs_on(x_TH.device):
        grad_x, grad_weight = rmsnorm_backward_reference(grad_TH.float(), x_TH.float(), weight_H.float(), inverse_T)
        return grad_x.to(x_TH.dtype), grad_weight
    num_tokens, width = x_TH.shape
    assert grad_TH.is_contiguous() and x_TH.is_contiguous() and grad_TH.shape == x_TH.shape
    programs = min(NUM_PARTIAL_SUMS, num_tokens)
    grad_x_TH, partial = torch.empty_like(x_TH), torch.empty(programs, width, device=x_TH.device)
    block, num_warps = _block(width)
    launch(_backward, programs, grad_TH, x_TH, weight_H, inverse_T, grad_x_TH, partial, num_tokens, width, programs,
           BLOCK_H=block, num_warps=num_warps)
    return grad_x_TH, partial.sum(0)
