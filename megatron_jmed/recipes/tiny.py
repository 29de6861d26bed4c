"""The smallest run that lives in every room: minutes on two CPU cores, through the same path as 8x13B."""

from megatron_jmed.config import (
    RANDOM_INIT,
    BudgetConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    PrecisionConfig,
    RunConfig,
)
from megatron_jmed.recipes.blends import tiny_ja_en


def tiny() -> RunConfig:
    """A four-layer MoE of 8 experts for two ranks (EP2), fp32, on the invented texts of `examples/data`."""
    tokens_per_step = 16 * 128
    return RunConfig(
        name="tiny",
        run_folder="runs/tiny",
        init=RANDOM_INIT,
        model=ModelConfig(
            num_layers=4,
            hidden_size=64,
            num_attention_heads=4,
            num_query_groups=2,
            kv_channels=16,
            ffn_hidden_size=128,
            num_experts=8,
            router_topk=2,
            vocab_size=2000,
            max_position_embeddings=512,
        ),
        parallel=ParallelConfig(ep=2),
        precision=PrecisionConfig(compute="fp32"),
        optim=OptimConfig(peak_lr=3e-3, min_lr=3e-4, warmup_tokens=10 * tokens_per_step),
        data=DataConfig(blend=tiny_ja_en(), valid_ratio=0.05),
        budget=BudgetConfig(
            total_tokens=120 * tokens_per_step,
            seq_length=128,
            global_batch_size=16,
            micro_batch_size=4,
            save_every_tokens=40 * tokens_per_step,
            eval_every_tokens=40 * tokens_per_step,
        ),
    )
