"""When rows agree with exact ones: element by element, within what the format's rounding allows."""

import torch

from megatron_jmed.kernels.quantize_triton import GROUP, Rows


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The norm of the difference over the norm; infinite where a NaN is found."""
    relative = ((found.double() - exact).norm() / exact.norm().clamp(min=1e-300)).item()
    return relative if relative == relative else float("inf")


def is_plain_close(found: torch.Tensor, exact: torch.Tensor, slack: float = 1e-5) -> bool:
    """Half a unit of the last place of bf16 (2^-8 of the number), and `slack` of the row's largest for the fp32 arithmetic."""
    if found.numel() == 0:
        return found.shape == exact.shape
    unit = 2.0**-8 if found.dtype == torch.bfloat16 else 2.0**-22
    # The last summand: numbers below the smallest normal one may be flushed to zero.
    allowed = unit * exact.abs() + slack * exact.abs().amax(1, keepdim=True) + torch.finfo(found.dtype).tiny
    return bool(((found.double() - exact).abs() <= allowed).all())


def is_quantized_close(rows: Rows, exact: torch.Tensor, slack: float = 1e-5) -> bool:
    """Half a unit of E4M3: 2^-4 of the number, or 2^-10 of the scale among subnormals; scales are amax / 448 to `slack`."""
    if exact.numel() == 0:
        return rows.values_RK.shape == exact.shape
    amax_RG = exact.unflatten(1, (-1, GROUP)).abs().amax(2)
    scales_RG = torch.where(amax_RG <= 2.0**-100, 1.0, amax_RG / 448)
    spread = scales_RG.repeat_interleave(GROUP, 1)
    allowed = torch.maximum(2.0**-4 * exact.abs(), 2.0**-10 * spread) * 1.001 + slack * spread * 448
    right_scales = ((rows.scales_RG.double() - scales_RG).abs() <= slack * scales_RG).all()
    return bool(right_scales and ((rows.dequantize() - exact).abs() <= allowed).all())


def agree(rows: Rows, exact: torch.Tensor, slack: float = 1e-5) -> bool:
    """Every form that a kernel returned."""
    plain = rows.plain_RK is None or is_plain_close(rows.plain_RK, exact, slack)
    return plain and (rows.values_RK is None or is_quantized_close(rows, exact, slack))


def with_one_scale_wrong(rows: Rows) -> Rows:
    """The negative control: the same rows, one scale of a group that is not empty 2 % off."""
    broken = rows.scales_RG.clone()
    row, column = divmod(int(rows.values_RK.float().abs().argmax()), rows.values_RK.shape[1])
    broken[row, column // GROUP] *= 1.02
    return rows._replace(scales_RG=broken)


def difficult_rows(num_rows: int, width: int, device: torch.device) -> torch.Tensor:
    """bf16 rows of very different sizes: a row of zeros, one outlier 1e4 times the rest, a row of tiny numbers."""
    rows = torch.randn(num_rows, width) * torch.exp(2 * torch.randn(num_rows, 1))
    if num_rows > 3:
        rows[0] = 0
        rows[1, width // 3] = 1e4
        rows[2] *= 1e-20
    return rows.bfloat16().to(device)
