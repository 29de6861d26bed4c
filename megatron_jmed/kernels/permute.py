"""Tokens to experts and back: each expert's rows together and padded, gathered in one pass; summed back in one pass.

    permute:    row_r = x[source(r)], zero where r is padding                         backward: dx_t = sum of drow_r over t's rows
    unpermute:  y_t = sum over t's rows of w_r row_r      backward: drow_r = w_r dy[source(r)],  dw_r = <row_r, dy[source(r)]>

so each is the other's gradient, and two kernels do for all four: `gather_rows` and `sum_rows`. A sum runs over the rows of a token
in the order of its experts, in fp32 and without atomics: the same bits every time. Padding makes the rows of each expert a
multiple of 16, which fp8 GEMMs ask for; its rows are zeros and its gradients go nowhere. Rows come in the precision of the
tokens, in fp8 with 1x128 scales (quantize_triton.py), or both.

Order: by expert, then by token, as Megatron-Core's `permute`.
Legend: T tokens, E experts, K most experts a token, R rows, H hidden.
"""

from typing import NamedTuple

import torch

from megatron_jmed.kernels.launch import ceil_div, jit, launch, runs_on, tl
from megatron_jmed.kernels.quantize_triton import FP8_MAX, GROUP, TINY, Rows, empty_rows, pointers, reference_rows, store_tile

NOTHING = -1  # a row of padding, or a token with fewer than K experts


class RowPlan(NamedTuple):
    """Where each row comes from and where each token's rows are; integer tensors on the device of the routing map."""

    source_R: torch.Tensor  # int32: token of the row, or NOTHING
    expert_R: torch.Tensor  # int32: expert of the row, padding included; the last expert where rows were asked for beyond need
    rows_TK: torch.Tensor  # int32: rows of the token in the order of its experts, or NOTHING
    padded_E: torch.Tensor  # int64: rows of each expert with its padding, what a grouped GEMM is told


def plan_rows(routing_map_TE: torch.Tensor, topk: int, multiple: int = 16, num_rows: int | None = None) -> RowPlan:
    """The rows of a routing (bool [T, E], at most `topk` true a token).

    `num_rows` fixes R without asking the device; it must hold every padded expert, as T * topk + E * (multiple - 1) does. Left
    out, R is exact and the host waits for the device.
    """
    num_tokens, num_experts = routing_map_TE.shape
    counts_E = routing_map_TE.sum(0)
    padded_E = (counts_E + multiple - 1) // multiple * multiple
    ends_E = padded_E.cumsum(0)
    if num_rows is None:
        num_rows = int(ends_E[-1])
        assert num_tokens == 0 or int(routing_map_TE.sum(1).max()) <= topk, "a token has more experts than topk"
    device = routing_map_TE.device
    # The place of (token, expert): start of the expert + tokens before this one with the same expert.
    row_TE = (ends_E - padded_E) + routing_map_TE.cumsum(0) - 1
    token_TE = torch.arange(num_tokens, device=device)[:, None].expand(-1, num_experts)
    source_R = torch.full((num_rows + 1,), NOTHING, dtype=torch.int32, device=device)
    target_TE = torch.where(routing_map_TE, row_TE, num_rows)  # what is not routed lands in one row more, cut off below
    source_R.scatter_(0, target_TE.flatten(), token_TE.flatten().int())
    rows_TK = torch.full((num_tokens, topk + 1), NOTHING, dtype=torch.int32, device=device)
    slot_TE = torch.where(routing_map_TE, routing_map_TE.cumsum(1) - 1, topk)
    rows_TK.scatter_(1, slot_TE, row_TE.int())
    expert_R = torch.searchsorted(ends_E, torch.arange(num_rows, device=device), right=True).clamp(max=num_experts - 1)
    return RowPlan(source_R[:num_rows], expert_R.int(), rows_TK[:, :topk].contiguous(), padded_E)


def row_probs(probs_TE: torch.Tensor, plan: RowPlan) -> torch.Tensor:
    """The probability of each row [R], 0 for padding; plain torch, so that autograd carries it back."""
    probs_R = probs_TE[plan.source_R.clamp(min=0).long(), plan.expert_R.long()]
    return torch.where(plan.source_R != NOTHING, probs_R, 0.0)


def gather_rows_reference(tokens_TH: torch.Tensor, source_R: torch.Tensor, weights_R: torch.Tensor | None = None) -> torch.Tensor:
    rows_RH = tokens_TH[source_R.clamp(min=0).long()] if len(tokens_TH) else tokens_TH.new_zeros(len(source_R), tokens_TH.shape[1])
    rows_RH = rows_RH if weights_R is None else rows_RH * weights_R[:, None]
    return torch.where((source_R != NOTHING)[:, None], rows_RH, 0.0)


def sum_rows_reference(rows_RH: torch.Tensor, rows_TK: torch.Tensor, weights_R: torch.Tensor | None = None) -> torch.Tensor:
    weighted = rows_RH if weights_R is None else rows_RH * weights_R[:, None]
    # A row of zeros at the end stands for NOTHING; the kernel skips it, so that a NaN elsewhere stays where it is.
    return torch.cat([weighted, weighted.new_zeros(1, weighted.shape[1])])[rows_TK.long()].sum(1)


@jit
def _gather(tokens, source, weights, other, plain, values, scales, dots, R, H, BLOCK_R: tl.constexpr, GROUP: tl.constexpr,
            WEIGHTS: tl.constexpr, DOTS: tl.constexpr, PLAIN: tl.constexpr, FP8: tl.constexpr,
            MAX: tl.constexpr, LEAST: tl.constexpr):
    group = tl.program_id(0) % tl.cdiv(H, GROUP)
    row = tl.program_id(0) // tl.cdiv(H, GROUP) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = group * GROUP + tl.arange(0, GROUP)
    inside_row = row < R
    inside = inside_row[:, None] & (column < H)[None, :]
    token = tl.load(source + row, mask=inside_row, other=-1)
    at = row.to(tl.int64)[:, None] * H + column[None, :]
    at_scale = group.to(tl.int64) * R + row
    at_token = token.to(tl.int64)[:, None] * H + column[None, :]
    tile = tl.load(tokens + at_token, mask=inside & (token >= 0)[:, None], other=0.0).to(tl.float32)
    if DOTS:
        row_tile = tl.load(other + at, mask=inside & (token >= 0)[:, None], other=0.0).to(tl.float32)
        tl.store(dots + at_scale, tl.sum(row_tile * tile, axis=1), mask=inside_row)
    if WEIGHTS:
        # Padding may carry any weight, even NaN.
        tile *= tl.load(weights + row, mask=inside_row & (token >= 0), other=0.0).to(tl.float32)[:, None]
    store_tile(tile, at, inside, inside_row, at_scale, plain, values, scales, PLAIN, FP8, MAX, LEAST)


@jit
def _sum(rows, rows_of_token, weights, out, T, H, K: tl.constexpr, BLOCK_T: tl.constexpr, GROUP: tl.constexpr,
         WEIGHTS: tl.constexpr):
    group = tl.program_id(0) % tl.cdiv(H, GROUP)
    token = tl.program_id(0) // tl.cdiv(H, GROUP) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = group * GROUP + tl.arange(0, GROUP)
    inside_token = token < T
    inside = inside_token[:, None] & (column < H)[None, :]
    total = tl.zeros((BLOCK_T, GROUP), tl.float32)
    for k in tl.static_range(K):
        row = tl.load(rows_of_token + token.to(tl.int64) * K + k, mask=inside_token, other=-1)
        here = inside & (row >= 0)[:, None]
        tile = tl.load(rows + row.to(tl.int64)[:, None] * H + column[None, :], mask=here, other=0.0).to(tl.float32)
        if WEIGHTS:
            tile *= tl.load(weights + row, mask=row >= 0, other=0.0).to(tl.float32)[:, None]
        total += tile
    tl.store(out + token.to(tl.int64)[:, None] * H + column[None, :], total.to(out.dtype.element_ty), mask=inside)


def gather_rows(tokens_TH: torch.Tensor, plan: RowPlan, output: str = "plain", weights_R: torch.Tensor | None = None,
                dot_with_RH: torch.Tensor | None = None) -> tuple[Rows, torch.Tensor | None]:
    """(rows [R, H], <row of dot_with, unweighted gathered row> [R] in fp32 where dot_with_RH is given).

    Permute: `gather_rows(x, plan, output)`. Gradient of unpermute: tokens are dy, weights_R and dot_with_RH those of the forward
    pass; the dot products are the gradient of the weights. Padding gets zero rows and zero dots.
    """
    source_R, (num_tokens, width), num_rows = plan.source_R, tokens_TH.shape, len(plan.source_R)
    if not runs_on(tokens_TH.device) or num_tokens == 0:
        weights = None if weights_R is None else weights_R.float()
        rows = reference_rows(gather_rows_reference(tokens_TH.float(), source_R, weights), tokens_TH, output)
        if dot_with_RH is None:
            return rows, None
        dots_R = (dot_with_RH.float() * gather_rows_reference(tokens_TH.float(), source_R)).sum(1)
        return rows, torch.where(source_R != NOTHING, dots_R, 0.0)
    assert all(t is None or t.is_contiguous() for t in (tokens_TH, weights_R, dot_with_RH))
    assert dot_with_RH is None or dot_with_RH.shape == (num_rows, width)
    out = empty_rows(num_rows, width, tokens_TH, output)
    dots = tokens_TH if dot_with_RH is None else torch.empty(ceil_div(width, GROUP), num_rows, device=tokens_TH.device)
    launch(_gather, ceil_div(num_rows, 32) * ceil_div(width, GROUP), tokens_TH, source_R,
           tokens_TH if weights_R is None else weights_R, tokens_TH if dot_with_RH is None else dot_with_RH,
           *pointers(out, tokens_TH), dots, num_rows, width, BLOCK_R=32, GROUP=GROUP, WEIGHTS=weights_R is not None,
           DOTS=dot_with_RH is not None, PLAIN=output != "fp8", FP8=output != "plain", MAX=FP8_MAX, LEAST=TINY, num_warps=4)
    return out, None if dot_with_RH is None else dots.sum(0)


def sum_rows(rows_RH: torch.Tensor, plan: RowPlan, weights_R: torch.Tensor | None = None) -> torch.Tensor:
    """The (weighted) sum of each token's rows [T, H]: unpermute, and the gradient of permute."""
    if not runs_on(rows_RH.device):
        weights = None if weights_R is None else weights_R.float()
        return sum_rows_reference(rows_RH.float(), plan.rows_TK, weights).to(rows_RH.dtype)
    (num_tokens, topk), width = plan.rows_TK.shape, rows_RH.shape[1]
    assert rows_RH.is_contiguous() and (weights_R is None or weights_R.is_contiguous())
    out_TH = torch.empty(num_tokens, width, dtype=rows_RH.dtype, device=rows_RH.device)
    launch(_sum, ceil_div(num_tokens, 32) * ceil_div(width, GROUP), rows_RH, plan.rows_TK,
           rows_RH if weights_R is None else weights_R, out_TH, num_tokens, width,
           K=topk, BLOCK_T=32, GROUP=GROUP, WEIGHTS=weights_R is not None, num_warps=4)
    return out_TH
