"""Quantised numbers and scales are those of the formulas, written out in fp64; what cannot be stored is seen."""

import math

import pytest
import torch

from megatron_jmed.kernels.quantize import dequantize, quantize_blocks_128x128, quantize_rows_1x128, quantize_tensor

KINDS = {"rows": (quantize_rows_1x128, 1, 128), "blocks": (quantize_blocks_128x128, 128, 128),
         "tensor": (quantize_tensor, None, None)}
SHAPES = [(1, 1), (3, 64), (5, 128), (130, 200), (256, 256), (129, 385)]
# every finite E4M3 number from 0 upwards: s.eeee.mmm with bias 7, and 1111.111 is NaN
E4M3 = torch.tensor([m / 8 * 2.0**-6 for m in range(8)] + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)
                                                           if (e, m) != (15, 7)], dtype=torch.float64)


def nearest(x: torch.Tensor) -> torch.Tensor:
    """fp64 to the nearest E4M3 number, ties to the even mantissa, saturating: by looking at all of them."""
    size = x.abs().clamp(max=448)
    above = torch.searchsorted(E4M3, size.contiguous()).clamp(max=len(E4M3) - 1)
    below = (above - 1).clamp(min=0)
    up, down = E4M3[above] - size, size - E4M3[below]
    pick = torch.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return torch.copysign(E4M3[pick], x)


def random_matrix(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Numbers of very different sizes, one row of outliers, one row of zeros."""
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    x = torch.randn(rows, columns, generator=generator) * torch.logspace(-6, 2, rows)[:, None]
    x[rows // 2, columns // 2] = 3e4
    if rows > 2:
        x[-1] = 0
    return x.to(dtype)


def blocks(x: torch.Tensor, height: int | None, width: int | None):
    """The index of every block, row of blocks by row of blocks."""
    height, width = height or x.size(0), width or x.size(1)
    for r in range(0, x.size(0), height):
        for c in range(0, x.size(1), width):
            yield (r // height, c // width), (slice(r, r + height), slice(c, c + width))


def is_within_rounding(x: torch.Tensor, back: torch.Tensor, scale: float) -> bool:
    """Half a step of E4M3: 2**-4 of a number, and of those that are subnormal 2**-10 of the scale."""
    allowed = torch.clamp(x.double().abs() * 2.0**-4, min=scale * 2.0**-10) * (1 + 1e-5)
    return bool(((back.double() - x.double()).abs() <= allowed).all())


@pytest.mark.parametrize("is_power_of_two", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_scales_are_those_of_the_formulas(kind, shape, is_power_of_two):
    quantize, height, width = KINDS[kind]
    x = random_matrix(*shape)
    values, scales = quantize(x, is_power_of_two)
    assert values.dtype == torch.float8_e4m3fn and scales.dtype == torch.float32 and values.shape == x.shape
    for place, block in blocks(x, height, width):
        amax = float(x[block].abs().max())
        scale = float(scales[place] if height else scales)
        if amax == 0:
            assert scale == 1 and not values[block].double().any()
            continue
        if is_power_of_two:
            assert scale == 2.0 ** math.ceil(math.log2(amax / 448))
            inverse = 1 / scale
        else:
            assert scale == float(torch.tensor(amax) / 448)
            inverse = float(448 / torch.tensor(amax))
        scaled = (x[block].float() * inverse).double()  # the product is rounded to fp32, once, before the cast
        assert torch.equal(values[block].double(), nearest(scaled))
        assert is_within_rounding(x[block], dequantize(values, scales)[block], scale)


def test_an_outlier_spoils_its_own_neighbours_only():
    x = torch.full((256, 256), 1e-3)
    x[0, 0] = 448.0
    lost = {kind: (dequantize(*quantize(x)) - x).abs().gt(1e-4) for kind, (quantize, _, _) in KINDS.items()}
    assert {kind: int(of.sum()) for kind, of in lost.items()} == {"rows": 127, "blocks": 128 * 128 - 1, "tensor": 256 * 256 - 1}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exact_in_fp8_comes_back_exactly(kind):
    quantize = KINDS[kind][0]
    x = torch.cat([E4M3, -E4M3]).float()[None].expand(2, -1)  # both blocks of a row hold 448: E4M3 has 127 numbers
    x = torch.nn.functional.pad(x[:, :127], (0, 1))
    assert torch.equal(dequantize(*quantize(x)), x)
    assert torch.equal(dequantize(*quantize(x * 2.0**-20, True)), x * 2.0**-20)


@pytest.mark.parametrize("is_power_of_two", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_stays_and_an_infinity_becomes_one(kind, is_power_of_two):
    quantize = KINDS[kind][0]
    x = torch.ones(3, 260)
    x[1, 5] = math.nan
    back = dequantize(*quantize(x, is_power_of_two))
    assert torch.equal(back.isnan(), x.isnan())
    assert back[1, 6] == pytest.approx(1, rel=2**-4)
    x[1, 5] = -math.inf
    assert dequantize(*quantize(x, is_power_of_two))[1, :128].isnan().all()


@pytest.mark.parametrize("amax", [0.0, 1e-45, 2.0**-101, 2.0**-99, 3.38e38])
@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_and_largest_numbers_neither_overflow_nor_become_nan(kind, amax):
    back = dequantize(*KINDS[kind][0](torch.full((2, 130), amax)))
    assert back.isfinite().all()
    assert (back - amax).abs().max() <= (amax * 2**-4 if amax > 2.0**-100 else 2.0**-100)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 64), (64, 0)])
def test_no_numbers_give_no_numbers(kind, shape):
    values, scales = KINDS[kind][0](torch.empty(shape))
    assert dequantize(values, scales).shape == shape


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_scale_would_be_noticed(kind):
    """The negative control of the bound above."""
    quantize, height, width = KINDS[kind]
    x = random_matrix(130, 200)
    _, block = next(blocks(x, height, width))
    values, scales = quantize(x)
    scale = float(scales.flatten()[0])
    assert is_within_rounding(x[block], dequantize(values, scales)[block], scale)
    scales.view(-1)[0] *= 2
    assert not is_within_rounding(x[block], dequantize(values, scales)[block], scale)
