"""Cross-entropy over a vocabulary that is split between ranks, from bf16 logits and never with fp32 ones in memory.

    m = max_v z_v        s = sum_v exp(z_v - m)        loss = m + log s - z_target        dz_v = a (exp(z_v - m) / s - [v = target])

Pass 1 reads the local logits once, keeping m and s as it goes (a larger m' multiplies s by exp(m - m')), and yields three fp32
numbers a token. The ranks' numbers are joined by one maximum and one sum:

    m = max_i m_i        s = sum_i s_i exp(m_i - m)        z_target = sum_i z_i, 0 on the ranks that do not hold the target

Pass 2 reads the logits again and writes the gradient over them: 6 bytes a logit in all. a is the weight of the token in the loss
(loss mask over number of tokens), so a = 0 switches a token off. A target that no rank holds counts as z = 0: mask such tokens.
Nothing here talks to other ranks: the caller all-reduces.
Legend: T tokens, V local vocabulary, H hidden. Source: Milakov and Gimelshein, arXiv 1805.02867.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from megatron_jmed.kernels.launch import ceil_div, jit, launch, runs_on, tl

BLOCK_V = 8192


class Statistics(NamedTuple):
    """What is known of each token's logits, fp32 [T] each."""

    max_T: torch.Tensor
    sum_T: torch.Tensor
    target_T: torch.Tensor

    def loss(self) -> torch.Tensor:
        return self.max_T + self.sum_T.log() - self.target_T


def local_statistics_reference(logits_TV: torch.Tensor, targets_T: torch.Tensor, first_id: int = 0) -> Statistics:
    max_T = logits_TV.amax(1)
    local_T = targets_T - first_id
    held = (local_T >= 0) & (local_T < logits_TV.shape[1])
    target_T = logits_TV.gather(1, torch.where(held, local_T, 0)[:, None])[:, 0]
    return Statistics(max_T, (logits_TV - max_T[:, None]).exp().sum(1), torch.where(held, target_T, 0.0))


def gradient_reference(logits_TV: torch.Tensor, targets_T: torch.Tensor, whole: Statistics, weights_T: torch.Tensor,
                       first_id: int = 0) -> torch.Tensor:
    hit_TV = torch.arange(logits_TV.shape[1], device=logits_TV.device) == (targets_T - first_id)[:, None]
    softmax_TV = (logits_TV - whole.max_T[:, None]).exp() / whole.sum_T[:, None]
    return (softmax_TV - hit_TV.to(softmax_TV.dtype)) * weights_T[:, None]


@jit
def _statistics(logits, targets, max_out, sum_out, target_out, V, first_id, BLOCK_V: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK_V)
    highest = -float("inf")
    total = 0.0
    for start in range(0, V, BLOCK_V):
        z = tl.load(logits + token * V + start + lane, mask=start + lane < V, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(z, axis=0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(z - higher), axis=0)
        highest = higher
    target = tl.load(targets + token) - first_id
    held = (target >= 0) & (target < V)
    tl.store(target_out + token, tl.load(logits + token * V + target, mask=held, other=0.0).to(tl.float32))
    tl.store(max_out + token, highest)
    tl.store(sum_out + token, total)


@jit
def _gradient(logits, targets, max_in, sum_in, weights, V, first_id, BLOCK_V: tl.constexpr):
    num_blocks = tl.cdiv(V, BLOCK_V)
    token = (tl.program_id(0) // num_blocks).to(tl.int64)
    column = tl.program_id(0) % num_blocks * BLOCK_V + tl.arange(0, BLOCK_V)
    z = tl.load(logits + token * V + column, mask=column < V, other=-float("inf")).to(tl.float32)
    weight = tl.load(weights + token).to(tl.float32)
    softmax = tl.exp(z - tl.load(max_in + token)) * (1 / tl.load(sum_in + token))
    gradient = (softmax - tl.where(column == tl.load(targets + token) - first_id, 1.0, 0.0)) * weight
    tl.store(logits + token * V + column, gradient.to(logits.dtype.element_ty), mask=column < V)


def local_statistics(logits_TV: torch.Tensor, targets_T: torch.Tensor, first_id: int = 0) -> Statistics:
    """The statistics of this rank's logits; `first_id` is the vocabulary id of their first column, targets are int64 ids."""
    if not runs_on(logits_TV.device):
        return local_statistics_reference(logits_TV.float(), targets_T, first_id)
    num_tokens, width = logits_TV.shape
    assert logits_TV.is_contiguous() and targets_T.is_contiguous() and targets_T.shape == (num_tokens,)
    max_T, sum_T, target_T = (torch.empty(num_tokens, device=logits_TV.device) for _ in range(3))
    launch(_statistics, num_tokens, logits_TV, targets_T, max_T, sum_T, target_T, width, first_id, BLOCK_V=BLOCK_V, num_warps=16)
    return Statistics(max_T, sum_T, target_T)


def join_statistics(parts: list[Statistics]) -> Statistics:
    """The statistics of the whole vocabulary from those of its shards; pure."""
    max_T = torch.stack([part.max_T for part in parts]).amax(0)
    sum_T = torch.stack([part.sum_T * (part.max_T - max_T).exp() for part in parts]).sum(0)
    return Statistics(max_T, sum_T, torch.stack([part.target_T for part in parts]).sum(0))


def all_reduce_statistics(local: Statistics, reduce_max: Callable[[torch.Tensor], torch.Tensor],
                          reduce_sum: Callable[[torch.Tensor], torch.Tensor]) -> Statistics:
    """Collective through its arguments: `join_statistics` by one maximum [T] and one sum [2, T] over the ranks.

    Both arguments return the reduced tensor.
    """
    max_T = reduce_max(local.max_T.clone())
    sum_T, target_T = reduce_sum(torch.stack([local.sum_T * (local.max_T - max_T).exp(), local.target_T]))
    return Statistics(max_T, sum_T, target_T)


def gradient_in_place_(logits_TV: torch.Tensor, targets_T: torch.Tensor, whole: Statistics, weights_T: torch.Tensor,
                       first_id: int = 0) -> torch.Tensor:
    """The logits, overwritten with the gradient of sum(weights_T * loss_T); `whole` covers all shards."""
    if not runs_on(logits_TV.device):
        return logits_TV.copy_(gradient_reference(logits_TV.float(), targets_T, whole, weights_T.float(), first_id))
    num_tokens, width = logits_TV.shape
    assert logits_TV.is_contiguous() and targets_T.is_contiguous() and weights_T.is_contiguous()
    launch(_gradient, num_tokens * ceil_div(width, BLOCK_V), logits_TV, targets_T, whole.max_T, whole.sum_T, weights_T,
           width, first_id, BLOCK_V=BLOCK_V, num_warps=16)
    return logits_TV
