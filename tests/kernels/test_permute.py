"""Rows by expert and back against fp64, with experts without tokens and tokens without experts."""

import pytest
import torch
from agreement import agree, difficult_rows, distance, is_plain_close, with_one_scale_wrong

from megatron_jmed.kernels.permute import (
    NOTHING,
    gather_rows,
    gather_rows_reference,
    plan_rows,
    row_probs,
    sum_rows,
    sum_rows_reference,
)
from megatron_jmed.kernels.quantize_triton import OUTPUTS

NUM_EXPERTS, TOPK = 5, 2


def routing(num_tokens, device):
    """Top 2 of 5, the third expert empty, every fifth token dropped by one expert, the last token by all."""
    scores = torch.rand(num_tokens, NUM_EXPERTS)
    scores[:, 2] = -1
    routing_map = torch.zeros(num_tokens, NUM_EXPERTS, dtype=torch.bool).scatter_(1, scores.topk(TOPK).indices, True)
    routing_map[::5] &= scores[::5] == scores[::5].amax(1, keepdim=True)
    routing_map[-1:] = False
    return routing_map.to(device)


@pytest.mark.parametrize("num_tokens, num_rows", [(37, None), (37, 37 * TOPK + NUM_EXPERTS * 15), (1, None), (0, None), (0, 16)])
def test_a_plan_holds_every_token_of_every_expert_once_and_padding(num_tokens, num_rows):
    routing_map = routing(num_tokens, "cpu")
    plan = plan_rows(routing_map, TOPK, num_rows=num_rows)
    begin = 0
    for expert in range(NUM_EXPERTS):
        tokens = routing_map[:, expert].nonzero().flatten().tolist()
        padded = -(-len(tokens) // 16) * 16
        assert plan.padded_E[expert] == padded
        assert plan.source_R[begin : begin + padded].tolist() == tokens + [NOTHING] * (padded - len(tokens))
        assert (plan.expert_R[begin : begin + padded] == expert).all()
        begin += padded
    assert (plan.source_R[begin:] == NOTHING).all() and len(plan.source_R) == (num_rows or begin)
    for token in range(num_tokens):
        rows = [row for row in plan.rows_TK[token].tolist() if row != NOTHING]
        assert [plan.source_R[row] for row in rows] == [token] * int(routing_map[token].sum())
        assert plan.expert_R[rows].tolist() == routing_map[token].nonzero().flatten().tolist()


def test_the_order_is_that_of_megatron_core():
    from megatron.core.transformer.moe.moe_utils import permute, unpermute

    tokens, routing_map = torch.randn(21, 8), routing(21, "cpu")
    expected, _, order = permute(tokens, routing_map)
    plan = plan_rows(routing_map, TOPK, multiple=1)
    rows, _ = gather_rows(tokens, plan)
    assert torch.equal(rows.plain_RK, expected)
    back = unpermute(expected, order, tokens.shape)
    torch.testing.assert_close(sum_rows(rows.plain_RK, plan), back)


def test_a_token_with_more_experts_than_topk_is_our_own_mistake():
    with pytest.raises(AssertionError, match="topk"):
        plan_rows(torch.ones(3, NUM_EXPERTS, dtype=torch.bool), TOPK)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("num_tokens, width", [(37, 256), (1, 128)])
def test_permute_and_its_gradient_are_those_of_fp64(device, output, num_tokens, width):
    tokens = difficult_rows(num_tokens, width, device)
    plan = plan_rows(routing(num_tokens, device), TOPK, num_rows=num_tokens * TOPK + NUM_EXPERTS * 15)
    exact_tokens = tokens.double().requires_grad_()
    exact_rows = gather_rows_reference(exact_tokens, plan.source_R)
    rows, dots = gather_rows(tokens, plan, output)
    assert dots is None and agree(rows, exact_rows.detach())
    grad = torch.randn(len(plan.source_R), width).bfloat16().to(device)
    exact_rows.backward(grad.double())
    grad[plan.source_R == NOTHING] = torch.nan  # what a GEMM left in padding goes nowhere
    assert is_plain_close(sum_rows(grad, plan), exact_tokens.grad)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("num_tokens, width", [(37, 256), (1, 128)])
def test_the_weighted_sum_and_its_gradients_are_those_of_fp64(device, output, num_tokens, width):
    plan = plan_rows(routing(num_tokens, device), TOPK, num_rows=num_tokens * TOPK + NUM_EXPERTS * 15)
    rows, weights = difficult_rows(len(plan.source_R), width, device), torch.rand(len(plan.source_R), device=device)
    exact_rows, exact_weights = rows.double().requires_grad_(), weights.double().requires_grad_()
    result = sum_rows_reference(exact_rows, plan.rows_TK, exact_weights)
    weights[plan.source_R == NOTHING] = torch.nan
    assert is_plain_close(sum_rows(rows, plan, weights), result.detach())
    grad = torch.randn(num_tokens, width).bfloat16().to(device)
    result.backward(grad.double())
    found, dots = gather_rows(grad, plan, output, weights, rows)
    assert agree(found, exact_rows.grad)
    assert (dots.double() - exact_weights.grad).abs().max() <= 1e-5 * (rows.double().norm(dim=1) * width**0.5).max()


def test_sums_are_the_same_bits_every_time(device):
    plan = plan_rows(routing(37, device), TOPK)
    rows = difficult_rows(len(plan.source_R), 256, device)
    assert torch.equal(sum_rows(rows, plan), sum_rows(rows, plan))


def test_one_wrong_scale_or_row_fails_the_comparison(device):
    tokens, plan = difficult_rows(37, 256, device), plan_rows(routing(37, device), TOPK)
    exact = gather_rows_reference(tokens.double(), plan.source_R)
    rows, _ = gather_rows(tokens, plan, "both")
    assert agree(rows, exact)
    assert not agree(with_one_scale_wrong(rows), exact)
    assert not agree(rows._replace(plain_RK=rows.plain_RK.roll(1, 0)), exact)


def test_probabilities_of_rows_carry_their_gradient(device):
    probs, routing_map = torch.rand(37, NUM_EXPERTS, device=device, requires_grad=True), routing(37, device)
    plan = plan_rows(routing_map, TOPK)
    probs_R = row_probs(probs, plan)
    assert torch.equal(probs_R[plan.source_R != NOTHING], probs.T[routing_map.T]) and (probs_R[plan.source_R == NOTHING] == 0).all()
    probs_R.sum().backward()
    assert torch.equal(probs.grad, routing_map.float())


def test_without_a_kernel_the_reference_gives_the_same():
    tokens, plan = difficult_rows(9, 128, "cpu"), plan_rows(routing(9, "cpu"), TOPK)
    rows, dots = gather_rows(tokens, plan, "both", torch.ones(len(plan.source_R)), torch.ones(len(plan.source_R), 128))
    exact = gather_rows_reference(tokens.double(), plan.source_R)
    assert agree(rows, exact) and distance(dots, exact.sum(1)) < 1e-5
    assert is_plain_close(sum_rows(rows.plain_RK, plan), sum_rows_reference(exact, plan.rows_TK))
