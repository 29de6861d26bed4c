"""The output layer and the cross-entropy as one function that never holds fp32 logits (kernels/cross_entropy.py).

    logits = h W^T        loss_t = log sum_v exp(logits_tv) - logits_t,target        dlogits = g_t (softmax - target)

The logits of all tokens are kept in the precision of the hidden states and turned into their own gradient in place. With
`chunk_tokens` those of so many tokens exist at a time and are computed anew in the backward pass: a third product of the head for
a bound on its memory. Megatron-Core's own loss holds the logits twice in fp32 besides.
Legend: T tokens, H hidden, V this rank's part of the vocabulary.
"""

from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region, gather_from_sequence_parallel_region

from megatron_jmed.kernels.cross_entropy import Statistics, all_reduce_statistics, gradient_in_place_, local_statistics
from megatron_jmed.model.linear import add_to_main_grad


def head_losses(layer: ColumnParallelLinear, hidden_SBH: torch.Tensor, labels_BS: torch.Tensor, weight_VH: torch.Tensor | None,
                chunk_tokens: int, is_accumulating: bool) -> torch.Tensor:
    """The loss of each token [B, S] in fp32. Collective over the tensor-parallel ranks.

    `layer`: the output layer, of which only the weight is used, or `weight_VH` where it is the embedding's.
    """
    if layer.sequence_parallel:
        hidden_SBH = gather_from_sequence_parallel_region(hidden_SBH, tensor_parallel_output_grad=True, group=layer.tp_group)
    elif layer.allreduce_dgrad:
        hidden_SBH = copy_to_tensor_model_parallel_region(hidden_SBH, group=layer.tp_group)
    labels_SB = labels_BS.t().contiguous()
    losses = _HeadLoss.apply(hidden_SBH.flatten(end_dim=1), layer.weight if weight_VH is None else weight_VH, labels_SB.flatten(),
                             layer.tp_group, chunk_tokens or labels_SB.numel(), is_accumulating)
    return losses.view_as(labels_SB).t().contiguous()


def real_token_losses(logits_BSV: torch.Tensor, labels_BS: torch.Tensor, vocab_size: int,
                      tp: torch.distributed.ProcessGroup) -> torch.Tensor:
    """The loss of each token [B, S] in fp32 over the `vocab_size` real tokens: the rows that only pad the vocabulary, which a
    training loss includes, are in no exported model; their logits are overwritten. Collective over the tensor-parallel ranks."""
    first_id = tp.rank() * logits_BSV.size(-1)
    logits_BSV[..., max(0, vocab_size - first_id):] = torch.finfo(logits_BSV.dtype).min
    statistics = _joined(local_statistics(logits_BSV.flatten(end_dim=1), labels_BS.flatten(), first_id), tp)
    return statistics.loss().view_as(labels_BS)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TH, weight_VH, targets_T, tp_group, chunk_tokens: int, is_accumulating: bool):
        first_id = tp_group.rank() * len(weight_VH)
        found, logits = [], None
        for part in _parts(len(hidden_TH), chunk_tokens):
            logits = hidden_TH[part] @ weight_VH.t()
            found.append(_joined(local_statistics(logits, targets_T[part], first_id), tp_group))
        whole = Statistics(*(torch.cat(numbers) for numbers in zip(*found, strict=True)))
        ctx.save_for_backward(hidden_TH, targets_T, logits if len(found) == 1 else None, *whole)
        ctx.weight, ctx.first_id, ctx.chunk_tokens, ctx.is_accumulating = weight_VH, first_id, chunk_tokens, is_accumulating
        return whole.loss()

    @staticmethod
    def backward(ctx: Any, grad_T):
        hidden_TH, targets_T, kept, *whole = ctx.saved_tensors
        weight_VH, grad_hidden_TH, grad_weight = ctx.weight, torch.empty_like(hidden_TH), None
        for part in _parts(len(hidden_TH), ctx.chunk_tokens):
            logits = hidden_TH[part] @ weight_VH.t() if kept is None else kept
            statistics = Statistics(*(numbers[part] for numbers in whole))
            gradient_in_place_(logits, targets_T[part], statistics, grad_T[part].float().contiguous(), ctx.first_id)
            torch.mm(logits, weight_VH, out=grad_hidden_TH[part])
            grad_weight = _add_weight_gradient(grad_weight, weight_VH, logits, hidden_TH[part], ctx.is_accumulating)
        return grad_hidden_TH, grad_weight.to(weight_VH.dtype), None, None, None, None


def _add_weight_gradient(before, weight_VH, grad_TV, hidden_TH, is_accumulating: bool) -> torch.Tensor:
    """`before` (None at first) and this part's; several parts are added up in fp32."""
    if is_accumulating and getattr(weight_VH, "main_grad", None) is not None:
        return add_to_main_grad(weight_VH, grad_TV, hidden_TH)
    part = grad_TV.t() @ hidden_TH
    return part if before is None else before.float().add_(part)


def _parts(num_tokens: int, chunk_tokens: int) -> list[slice]:
    return [slice(start, start + chunk_tokens) for start in range(0, num_tokens, chunk_tokens)]


def _joined(local: Statistics, tp_group: torch.distributed.ProcessGroup) -> Statistics:
    """The statistics of the whole vocabulary. Collective over the tensor-parallel ranks: one maximum and one sum."""
    def reduced(numbers: torch.Tensor, operation: torch.distributed.ReduceOp) -> torch.Tensor:
        torch.distributed.all_reduce(numbers, op=operation, group=tp_group)
        return numbers

    if tp_group.size() == 1:
        return local
    return all_reduce_statistics(local, partial(reduced, operation=torch.distributed.ReduceOp.MAX),
                                 partial(reduced, operation=torch.distributed.ReduceOp.SUM))
