"""Tensors to fp8 (E4M3) and back, in plain torch: what every fp8 kernel must agree with, and what emulates fp8 on a CPU.

    amax  = max |x_i| over a block, NaN left out     scale = amax / 448, or 1 where amax <= 2**-100 (a block of zeros)
    value = fp8(clamp(x * (448 / amax), -448, 448)), rounded to nearest even              x is about value * scale

A block is 1 x 128 (activations and gradients: one outlier spoils 128 numbers of one token), 128 x 128 (weights: the same block
serves a product from either side) or the whole tensor. Where a dimension is no multiple of 128, the last block is what is there.
`is_power_of_two` rounds the scale up to a power of two: dividing and multiplying are then exact, for up to one bit of range.

Invariants: the arithmetic is fp32; nothing finite overflows; a NaN stays NaN and an infinity becomes NaN together with its block
(infinity times 0), so that a broken step is seen. All values of a block survive to within 2**-4 of themselves, or 2**-10 of the
scale where they are subnormal. Legend: R rows, K columns, r and k their numbers of blocks.
Sources: DeepSeek-V3 (arXiv 2412.19437, section 3.3.2); Micikevicius et al. 2022 (arXiv 2209.05433) for E4M3.
"""

import torch

FP8_MAX = 448.0  # the largest E4M3 number
BLOCK = 128
TINY = 2.0**-100  # below it 448 / amax leaves fp32

Quantized = tuple[torch.Tensor, torch.Tensor]


def quantize_rows_1x128(x_RK: torch.Tensor, is_power_of_two: bool = False) -> Quantized:
    """(values_RK in float8_e4m3fn, scales_Rk in fp32): a scale for every 128 neighbours of a row."""
    return _quantize_blocks(x_RK, 1, is_power_of_two)


def quantize_blocks_128x128(weight_RK: torch.Tensor, is_power_of_two: bool = False) -> Quantized:
    """(values_RK in float8_e4m3fn, scales_rk in fp32): a scale for every square of 128 rows and columns."""
    return _quantize_blocks(weight_RK, BLOCK, is_power_of_two)


def quantize_tensor(x: torch.Tensor, is_power_of_two: bool = False) -> Quantized:
    """(values in float8_e4m3fn, one scale of shape []): current scaling, by the largest number of this very tensor."""
    amax = _amax(x.float().flatten(), 0) if x.numel() else x.new_zeros((), dtype=torch.float32)
    inverse, scale = _scales(amax, is_power_of_two)
    return _cast(x.float() * inverse), scale


def dequantize(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The numbers that any of the three results stands for, in fp32."""
    if scales.dim() == 0:
        return values.float() * scales
    num_rows, num_columns = values.shape
    height = 1 if len(scales) == num_rows else BLOCK
    return values.float() * _spread(scales, height, num_rows, num_columns)


def _quantize_blocks(x_RK: torch.Tensor, height: int, is_power_of_two: bool) -> Quantized:
    num_rows, num_columns = x_RK.shape
    padded = torch.nn.functional.pad(x_RK.float(), (0, -num_columns % BLOCK, 0, -num_rows % height))
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, height))  # [r, height, k, BLOCK]
    inverse_rk, scale_rk = _scales(_amax(_amax(blocks, 3), 1), is_power_of_two)
    return _cast(x_RK.float() * _spread(inverse_rk, height, num_rows, num_columns)), scale_rk


def _spread(scales_rk: torch.Tensor, height: int, num_rows: int, num_columns: int) -> torch.Tensor:
    """One number for every element of its block, cut to [R, K]."""
    by_row = scales_rk.repeat_interleave(height, dim=0)[:num_rows] if height > 1 else scales_rk
    return by_row.repeat_interleave(BLOCK, dim=1)[:, :num_columns]


def _amax(x: torch.Tensor, dim: int) -> torch.Tensor:
    return x.abs().nan_to_num(0.0, torch.inf).amax(dim)


def _scales(amax: torch.Tensor, is_power_of_two: bool) -> Quantized:
    """(what to multiply a block by before it is cast, its scale)."""
    is_empty = amax <= TINY
    amax = torch.where(is_empty, FP8_MAX, amax)
    if not is_power_of_two:
        return torch.where(is_empty, 1.0, FP8_MAX / amax), torch.where(is_empty, 1.0, amax / FP8_MAX)
    mantissa, exponent = torch.frexp(amax / FP8_MAX)  # amax / 448 = mantissa * 2**exponent, mantissa in [1/2, 1)
    scale = torch.ldexp(torch.ones_like(amax), exponent - (mantissa == 0.5).int())
    scale = torch.where(torch.isinf(amax), amax, scale)  # frexp says nothing useful of an infinity
    return 1 / scale, scale


def _cast(scaled: torch.Tensor) -> torch.Tensor:
    # Clamped first: casting what is out of range gives NaN in torch 2.11 and 448 in 2.13. A clamped NaN stays NaN.
    return scaled.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
