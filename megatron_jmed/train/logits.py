"""What does our model answer? The logits of a checkpoint for given tokens, on this rank alone and without an optimizer.

In: a checkpoint folder (weights are enough) and token ids. Out: fp32 logits, to be compared with another program's.
Legend: B sequences, S tokens each, V vocabulary without padding.
"""

from pathlib import Path
from typing import Any, Literal

import torch

from megatron_jmed.config import BudgetConfig, ModelConfig, OptimConfig, PrecisionConfig, RunConfig
from megatron_jmed.model.build import build_forward_model
from megatron_jmed.parallel import World, device, start_groups, stop_groups
from megatron_jmed.run_folder import load_state
from megatron_jmed.train.checkpoint import load_model


def checkpoint_logits(checkpoint: Path, tokens_BS: torch.Tensor, compute: Literal["fp32", "bf16"],
                      overruled: dict[str, Any] | None = None) -> torch.Tensor:
    """[B, S] token ids -> [B, S, V] fp32 logits (on the CPU) of the model in `checkpoint`, computed in `compute`.

    Starts and stops the process groups of a lone rank, so none may be running. `overruled` sets fields of
    Megatron-Core's TransformerConfig against the checkpoint's config: a wrong one must show in a comparison.
    """
    config = _forward_config(load_state(checkpoint).model, compute)
    groups = start_groups(config.parallel, World(0, 1, 0), config.seed)
    try:
        model = build_forward_model(config, groups).eval()
        load_model(checkpoint, [model], groups)
        for field, value in (overruled or {}).items():
            assert hasattr(model.config, field), field
            setattr(model.config, field, value)
        return _logits(model, tokens_BS.to(device()))[..., : config.model.vocab_size].float().cpu()
    finally:
        stop_groups()


@torch.no_grad()
def _logits(model: torch.nn.Module, tokens_BS: torch.Tensor) -> torch.Tensor:
    positions_BS = torch.arange(tokens_BS.size(1), device=tokens_BS.device).expand_as(tokens_BS)
    return model(tokens_BS, positions_BS, attention_mask=None)


def _forward_config(model: ModelConfig, compute: Literal["fp32", "bf16"]) -> RunConfig:
    """A run of one rank that only looks; its optimizer and budget are never used."""
    length = model.max_position_embeddings
    return RunConfig(
        name="logits",
        run_folder="",
        init="",
        model=model,
        precision=PrecisionConfig(compute=compute),
        optim=OptimConfig(peak_lr=1.0, min_lr=0.0),
        budget=BudgetConfig(total_tokens=length, seq_length=length, global_batch_size=1, save_every_tokens=length),
    )
