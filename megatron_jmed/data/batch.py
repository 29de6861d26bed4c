"""One micro-batch, as tensors on the device that computes.

Legend: B sequences in the micro-batch, S tokens in a sequence (under context parallelism: this rank's part of it).
"""

from dataclasses import dataclass
from typing import Any

import torch

from megatron_jmed.parallel import part_of_sequence


@dataclass(frozen=True)
class Batch:
    """Inputs and labels of B sequences; `source_B` is each sequence's index in the blend.

    `document_BS` numbers the documents (or conversations) of each sequence, each in one piece with a number of its own: a
    token sees those of its number only. It covers the whole sequence on every context-parallel rank, because the tokens that
    are seen are on other ranks too. None: a token sees all that stand before it.

    `loss_mask_BS` is the weight of each label in the loss. `mean_loss_weight`: what the micro-batches of the step weigh on
    average, by which the loss of each is divided (see sft.py); None: each by its own number of tokens.
    """

    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    loss_mask_BS: torch.Tensor
    position_ids_BS: torch.Tensor
    source_B: torch.Tensor
    document_BS: torch.Tensor | None = None
    mean_loss_weight: float | None = None


@dataclass(frozen=True)
class DocumentMarks:
    """The token ids that stand at the begin and at the end of every document; None where nothing does.

    No text encodes to them under SentencePiece. Hugging Face's tokenizers read a "</s>" spelled out in a text as the mark, so
    it divides that document.
    """

    begin: int | None
    end: int | None


def document_numbers(tokens_BS: torch.Tensor, marks: DocumentMarks) -> torch.Tensor:
    """[B, S] -> [B, S]: which document of its sequence each token belongs to, counted upwards; the first may be a rest."""
    begins_BS = torch.zeros_like(tokens_BS, dtype=torch.bool)
    if marks.begin is not None:
        begins_BS |= tokens_BS == marks.begin
    if marks.end is not None:
        begins_BS[:, 1:] |= tokens_BS[:, :-1] == marks.end
    return begins_BS.cumsum(dim=1)


def places_in_documents(document_BS: torch.Tensor) -> torch.Tensor:
    """[B, S] document numbers -> [B, S] places counted from 0 in each document."""
    places_S = torch.arange(document_BS.size(1), device=document_BS.device)
    is_first_BS = torch.ones_like(document_BS, dtype=torch.bool)
    is_first_BS[:, 1:] = document_BS[:, 1:] != document_BS[:, :-1]
    return places_S - torch.where(is_first_BS, places_S, 0).cummax(dim=1).values


def batch_from_sample(sample: dict[str, Any], device: torch.device, cp_rank: int = 0, cp_size: int = 1,
                      marks: DocumentMarks | None = None, mean_loss_weight: float | None = None) -> Batch:
    """The Batch of a collated Megatron-Core sample (tokens, labels, loss_mask, position_ids, dataset_id) for one of the
    context-parallel ranks that share it; with `marks`, or where the sample says its `document`s itself, tokens see their own
    document and positions begin anew with each.
    """
    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device, non_blocking=True)

    def mine(tensor_BS: torch.Tensor) -> torch.Tensor:
        return move(part_of_sequence(tensor_BS, 1, cp_rank, cp_size))

    positions_BS, document_BS = sample["position_ids"], sample.get("document")
    if marks and document_BS is None:
        document_BS = document_numbers(sample["tokens"], marks)
        positions_BS = places_in_documents(document_BS)
    return Batch(
        tokens_BS=mine(sample["tokens"]),
        labels_BS=mine(sample["labels"]),
        loss_mask_BS=mine(sample["loss_mask"]),
        position_ids_BS=mine(positions_BS),
        source_B=move(sample["dataset_id"].long()),
        document_BS=None if document_BS is None else move(document_BS),
        mean_loss_weight=mean_loss_weight,
    )
