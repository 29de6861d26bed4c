"""One micro-batch, as tensors on the device that computes.

Legend: B sequences in the micro-batch, S tokens in a sequence.
"""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Batch:
    """Inputs and labels of B sequences; `source_B` is each sequence's index in the blend."""

    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    loss_mask_BS: torch.Tensor
    position_ids_BS: torch.Tensor
    source_B: torch.Tensor


def batch_from_sample(sample: dict[str, Any], device: torch.device) -> Batch:
    """The Batch of a collated Megatron-Core sample (tokens, labels, loss_mask, position_ids, dataset_id)."""
    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device, non_blocking=True)

    return Batch(
        tokens_BS=move(sample["tokens"]),
        labels_BS=move(sample["labels"]),
        loss_mask_BS=move(sample["loss_mask"]),
        position_ids_BS=move(sample["position_ids"]),
        source_B=move(sample["dataset_id"].long()),
    )
