"""Cross-entropy of split vocabularies against fp64, whole and in shards of unequal width."""

import pytest
import torch
from agreement import distance

from megatron_jmed.kernels.cross_entropy import (
    all_reduce_statistics,
    gradient_in_place_,
    join_statistics,
    local_statistics,
)

WIDTH = 9001  # more than one block of the kernel, odd


def inputs(num_tokens, device, width=WIDTH):
    """Logits with one huge one and one late one, targets in the first and last column among others, one token switched off."""
    logits = (3 * torch.randn(num_tokens, width)).bfloat16()
    targets, weights = torch.randint(0, width, (num_tokens,)), torch.rand(num_tokens)
    logits[0, width // 2] = 300
    logits[1, -5] = logits[1].max() + 1  # the largest so far, in the kernel's last block
    targets[0], targets[-1], weights[num_tokens // 2] = 0, width - 1, 0
    return logits.to(device), targets.to(device), weights.to(device)


def exact(logits, targets, weights):
    """(loss of each token, gradient of the weighted sum) by torch in fp64."""
    logits = logits.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (loss * weights.double()).sum().backward()
    return loss.detach(), logits.grad


def is_gradient_close(found, expected, weights):
    """Half a unit of bf16, and fp32's rounding of the softmax."""
    allowed = 2.0**-8 * expected.abs() + 1e-6 * weights.double()[:, None]
    return bool(((found.double() - expected).abs() <= allowed).all())


@pytest.mark.parametrize("shards", [[WIDTH], [4096, 4905], [1, 8999, 1]])
def test_loss_and_gradient_are_those_of_fp64(device, shards):
    logits, targets, weights = inputs(5, device)
    expected_loss, expected_gradient = exact(logits, targets, weights)
    parts, firsts = [part.contiguous() for part in logits.split(shards, 1)], [sum(shards[:index]) for index in range(len(shards))]
    whole = join_statistics([local_statistics(part, targets, first) for part, first in zip(parts, firsts, strict=True)])
    assert distance(whole.loss(), expected_loss) < 1e-6
    gradient = torch.cat([gradient_in_place_(part, targets, whole, weights, first)
                          for part, first in zip(parts, firsts, strict=True)], 1)
    assert is_gradient_close(gradient, expected_gradient, weights)
    assert (gradient[2] == 0).all()  # the token that is switched off


def test_one_wrong_statistic_fails_the_comparison(device):
    logits, targets, weights = inputs(5, device)
    expected_loss, expected_gradient = exact(logits, targets, weights)
    right = local_statistics(logits, targets)
    wrong = right._replace(sum_T=right.sum_T * torch.tensor([1, 1.02, 1, 1, 1], device=device))
    assert distance(wrong.loss(), expected_loss) > 1e-5
    assert not is_gradient_close(gradient_in_place_(logits, targets, wrong, weights), expected_gradient, weights)


def test_collectives_join_as_the_pure_function_does(device):
    """A rank's view: reduce_max and reduce_sum see the other shard's numbers."""
    logits, targets, _ = inputs(5, device)
    left, right = logits[:, :4000].contiguous(), logits[:, 4000:].contiguous()
    parts = [local_statistics(left, targets), local_statistics(right, targets, 4000)]
    whole, other = join_statistics(parts), parts[1]

    def reduce_sum(mine):
        return mine + torch.stack([other.sum_T * (other.max_T - whole.max_T).exp(), other.target_T])

    found = all_reduce_statistics(parts[0], lambda mine: torch.maximum(mine, other.max_T), reduce_sum)
    for mine, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=0)


def test_a_nan_among_the_logits_reaches_the_loss(device):
    logits, targets, _ = inputs(3, device)
    logits[1, 77] = torch.nan
    loss = local_statistics(logits, targets).loss()
    assert loss[1].isnan() and not loss[[0, 2]].isnan().any()
