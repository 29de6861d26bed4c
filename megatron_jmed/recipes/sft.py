"""Instruction tuning: the same loop on conversations (data/sft.py), all weights trained, or adapters alone (`model.lora_rank`).

LLM-jp's public instruction tuning of dense models: peak 2e-5 to 2e-6, batches of 64, 2 epochs. What the medical models were tuned
with is not published. Our choice: the same rates; a batch of 64 packed sequences; the auxiliary loss as in pre-training.
"""

from megatron_jmed.config import BudgetConfig, DataConfig, OptimConfig, PrecisionConfig, RunConfig
from megatron_jmed.recipes.blends import instructions, tiny_chat
from megatron_jmed.recipes.llmjp import llmjp_8x13b
from megatron_jmed.recipes.tiny import tiny


def tiny_sft() -> RunConfig:
    """`tiny`, tuned on the invented conversations of `examples/data/chat` until it knows them: some 13 epochs."""
    base = tiny()
    tokens_per_step = 8 * 256
    return base.model_copy(update={
        "name": "tiny_sft",
        "run_folder": "runs/tiny_sft",
        "init": "runs/tiny/checkpoints/step_0000120",
        "optim": OptimConfig(peak_lr=3e-3, min_lr=3e-4, warmup_tokens=10 * tokens_per_step, weight_decay=0.0),
        "data": DataConfig(blend=tiny_chat(), attention="document", valid_ratio=0),
        "budget": BudgetConfig(
            total_tokens=300 * tokens_per_step,
            seq_length=256,
            global_batch_size=8,
            micro_batch_size=2,
            save_every_tokens=150 * tokens_per_step,
        ),
    })


def llmjp_8x13b_sft() -> RunConfig:
    """LLM-jp-3 8x13B on 150M tokens of instructions, 2 epochs: 1,144 steps of 64 packed sequences; 64 H100s upwards.

    Torch layers (`jmed`), because Transformer Engine's attention would see across conversations; they keep more than its, so all
    activations are computed again.
    """
    base = llmjp_8x13b()
    tokens_per_step = 64 * 4096
    return base.model_copy(update={
        "name": "llmjp_8x13b_sft",
        "run_folder": "runs/llmjp_8x13b_sft",
        "init": "checkpoints/llmjp_8x13b_medical",
        "precision": PrecisionConfig(compute="bf16", backend="jmed"),
        "optim": OptimConfig(peak_lr=2e-5, min_lr=2e-6, warmup_tokens=30 * tokens_per_step),
        "data": DataConfig(blend=instructions(), attention="document", valid_ratio=0.01, num_workers=2),
        "budget": BudgetConfig(
            total_tokens=300_000_000,
            seq_length=4096,
            global_batch_size=64,
            micro_batch_size=1,
            recompute="full",
            save_every_tokens=200 * tokens_per_step,
            eval_every_tokens=100 * tokens_per_step,
        ),
    })
