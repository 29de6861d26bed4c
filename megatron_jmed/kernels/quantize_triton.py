"""Rows to fp8 (E4M3) with one fp32 scale for every 128 neighbours, inside other kernels or alone.

    amax  = max |x_i| of the group        scale = amax / 448, or 1 where amax <= 2**-100 (a group of zeros)
    value = fp8(clamp(x * (448 / amax), -448, 448)), rounded to nearest even        x is about value * scale

Invariants: nothing finite overflows; a NaN stays NaN and an infinity becomes one, so that a broken step is seen. The division is
done once a group and not once an element: the product can differ from x / scale by one unit of fp8 where both are near a tie.

Layout: values_RK row-major; scales_RG of shape [R, K / 128] and strides (1, R), the layout that cuBLASLt wants for 1x128 blocks
(torch.nn.functional.scaled_mm, BlockWise1x128). Legend: R rows, K columns, G = K / 128 groups.
Source: the tile-wise scaling of DeepSeek-V3 (arXiv 2412.19437, section 3.3.2).
"""

from typing import NamedTuple

import torch

from megatron_jmed.kernels.launch import ceil_div, jit, launch, runs_on, tl

FP8_MAX = 448.0  # the largest E4M3 number
GROUP = 128
TINY = 2.0**-100  # below it 448 / amax leaves fp32
OUTPUTS = ("plain", "fp8", "both")


class Rows(NamedTuple):
    """What a kernel returns: rows in the input's precision, the same rows in fp8, or both (one reading of the inputs)."""

    plain_RK: torch.Tensor | None
    values_RK: torch.Tensor | None
    scales_RG: torch.Tensor | None

    def dequantize(self) -> torch.Tensor:
        """The numbers that the fp8 rows stand for, in fp64 [R, K]."""
        num_rows, width = self.values_RK.shape
        return (self.values_RK.double().view(num_rows, -1, GROUP) * self.scales_RG.double()[..., None]).view(num_rows, width)


def empty_rows(num_rows: int, width: int, like: torch.Tensor, output: str) -> Rows:
    """Uninitialised room for the result of a kernel; `output` is one of OUTPUTS."""
    if output not in OUTPUTS:
        raise ValueError(f"output={output!r}; choose from {OUTPUTS}")
    if output != "plain" and width % GROUP:
        raise ValueError(f"a width of {width} has no whole groups of {GROUP}; fp8 rows need a multiple")
    plain = torch.empty(num_rows, width, dtype=like.dtype, device=like.device) if output != "fp8" else None
    if output == "plain":
        return Rows(plain, None, None)
    values = torch.empty(num_rows, width, dtype=torch.float8_e4m3fn, device=like.device)
    return Rows(plain, values, torch.empty(width // GROUP, num_rows, device=like.device).t())


def reference_rows(rows_RK: torch.Tensor, like: torch.Tensor, output: str) -> Rows:
    """`rows_RK` (fp32 or better) as a kernel would return it."""
    empty_rows(0, rows_RK.shape[1], like, output)
    plain = rows_RK.to(like.dtype) if output != "fp8" else None
    return Rows(plain, None, None) if output == "plain" else Rows(plain, *quantize_rows_reference(rows_RK))


def quantize_rows_reference(rows_RK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The formulas above in torch, fp32 inside."""
    groups = rows_RK.float().unflatten(1, (-1, GROUP))
    amax_RG = groups.abs().nan_to_num(0.0, torch.inf).amax(2)
    empty = amax_RG <= TINY
    # Tensors on both sides: torch goes through a reciprocal, and rounds twice, where one side is a number.
    most_RG = torch.full_like(amax_RG, FP8_MAX)
    inverse_RG = torch.where(empty, 1.0, most_RG / torch.where(empty, 1.0, amax_RG))
    # Clamped first: casting what is out of range gives NaN in torch 2.11 and 448 in 2.13.
    values = (groups * inverse_RG[..., None]).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    scales_GR = torch.where(empty, 1.0, amax_RG / most_RG).t().contiguous()
    return values.flatten(1), scales_GR.t()


def pointers(rows: Rows, unused: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(plain, values, scales) for a kernel; `unused` stands where a kernel, told so by a constexpr, writes nothing."""
    scales = unused if rows.scales_RG is None else rows.scales_RG.t()
    return (unused if rows.plain_RK is None else rows.plain_RK), (unused if rows.values_RK is None else rows.values_RK), scales


@jit
def quantize_tile(tile, MAX: tl.constexpr, LEAST: tl.constexpr):
    """(values still in fp32 [rows, 128], scales [rows]) of an fp32 tile one group wide."""
    amax = tl.max(tl.abs(tile), axis=1)
    some = amax > LEAST
    divisor = tl.where(some, amax, MAX)
    inverse = tl.math.div_rn(MAX + tl.zeros_like(divisor), divisor)
    scale = tl.math.div_rn(divisor, MAX + tl.zeros_like(divisor))
    # Without propagate_nan a NaN would be clamped to -448.
    return tl.clamp(tile * inverse[:, None], -MAX, MAX, propagate_nan=tl.PropagateNan.ALL), scale


@jit
def store_tile(tile, at, inside, inside_row, at_scale, plain, values, scales,
               PLAIN: tl.constexpr, FP8: tl.constexpr, MAX: tl.constexpr, LEAST: tl.constexpr):
    """Write a tile [rows, 128] in the forms that were asked for."""
    if PLAIN:
        tl.store(plain + at, tile.to(plain.dtype.element_ty), mask=inside)
    if FP8:
        scaled, scale = quantize_tile(tile, MAX, LEAST)
        tl.store(values + at, scaled.to(values.dtype.element_ty), mask=inside)
        tl.store(scales + at_scale, scale, mask=inside_row)


@jit
def _quantize(rows, values, scales, R, K, BLOCK_R: tl.constexpr, GROUP: tl.constexpr, MAX: tl.constexpr, LEAST: tl.constexpr):
    num_groups = K // GROUP
    group = tl.program_id(0) % num_groups
    row = tl.program_id(0) // num_groups * BLOCK_R + tl.arange(0, BLOCK_R)
    at = row.to(tl.int64)[:, None] * K + (group * GROUP + tl.arange(0, GROUP))[None, :]
    inside_row = row < R
    inside = inside_row[:, None] & (tl.arange(0, GROUP) < GROUP)[None, :]
    tile = tl.load(rows + at, mask=inside, other=0.0).to(tl.float32)
    store_tile(tile, at, inside, inside_row, group.to(tl.int64) * R + row, rows, values, scales, False, True, MAX, LEAST)


def quantize_rows(rows_RK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(values_RK in float8_e4m3fn, scales_RG in fp32) of contiguous rows."""
    if not runs_on(rows_RK.device):
        return quantize_rows_reference(rows_RK)
    num_rows, width = rows_RK.shape
    assert rows_RK.is_contiguous()
    out = empty_rows(num_rows, width, rows_RK, "fp8")
    _, values, scales = pointers(out, rows_RK)
    launch(_quantize, ceil_div(num_rows, 32) * (width // GROUP), rows_RK, values, scales, num_rows, width,
           BLOCK_R=32, GROUP=GROUP, MAX=FP8_MAX, LEAST=TINY, num_warps=4)
    return out.values_RK, out.scales_RG
