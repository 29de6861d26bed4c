"""The loss of one micro-batch: cross-entropy averaged over the tokens that count, and the same by source.

Legend: B sequences, S tokens in a sequence, C sources of the blend, V this rank's part of the padded vocabulary.
"""

from functools import partial

import torch

from megatron_jmed.data.batch import Batch
from megatron_jmed.model.head import real_token_losses


def loss_function(batch: Batch, num_sources: int, cp: torch.distributed.ProcessGroup):
    """The function that Megatron-Core's schedule calls with the token losses [B, S] on the last pipeline stage.

    It is collective over the context-parallel ranks `cp`, which share the sequences.
    """
    return partial(_masked_loss, batch, num_sources, cp)


def _masked_loss(batch: Batch, num_sources: int, cp: torch.distributed.ProcessGroup, token_losses_BS: torch.Tensor):
    """(sum of losses, number of tokens, {"by_source": [C, 2] sums and counts}).

    The schedule divides the sum by the number of tokens and of micro-batches before the backward pass, and gradients are
    averaged over data- and context-parallel ranks. So that this gives the mean over the tokens of all parts of the
    sequences, however the loss mask lies, the number is that of all parts, and the sum is taken cp times. Where conversations
    are read, every micro-batch is divided by the same number instead: the mean weight of the step's (data/sft.py says why).
    """
    losses_BS = token_losses_BS.float() * batch.loss_mask_BS
    total = losses_BS.sum() * cp.size()
    by_source = _sums_by_source(batch, losses_BS.detach(), num_sources)
    if batch.mean_loss_weight is not None:
        return total / batch.mean_loss_weight, torch.ones((), dtype=torch.int, device=total.device), {"by_source": by_source}
    num_tokens = batch.loss_mask_BS.sum()
    if cp.size() > 1:
        torch.distributed.all_reduce(num_tokens, group=cp)
    return total, num_tokens.int(), {"by_source": by_source}


def sums_of_rows(batch: Batch, num_rows: int, vocab_size: int, tp: torch.distributed.ProcessGroup, logits_BSV: torch.Tensor):
    """What `loss_function` returns, with a row for each number in `source_B`, and losses over the real tokens alone. Collective
    over the tensor-parallel ranks."""
    losses_BS = real_token_losses(logits_BSV, batch.labels_BS, vocab_size, tp).double() * batch.loss_mask_BS
    return losses_BS.sum(), torch.ones((), dtype=torch.int, device=losses_BS.device), {
        "by_source": _sums_by_source(batch, losses_BS, num_rows)}


def _sums_by_source(batch: Batch, losses_BS: torch.Tensor, num_sources: int) -> torch.Tensor:
    """[C, 2] in fp64: the losses, masked already, and the weights of the tokens, by the source of their sequence."""
    per_sequence = torch.stack([losses_BS.double().sum(dim=1), batch.loss_mask_BS.double().sum(dim=1)], dim=1)
    return torch.zeros(num_sources, 2, dtype=torch.float64, device=losses_BS.device).index_add_(0, batch.source_B, per_sequence)
