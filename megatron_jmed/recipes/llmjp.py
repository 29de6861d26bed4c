"""Continued pre-training of the LLM-jp-3 MoE family (Mixtral's shape) on a medical corpus.

Architecture: the models' public configs (llm-jp/llm-jp-3-8x13b, llm-jp-3-8x1.8b). Adam, weight decay, clipping and
batch: LLM-jp's public pre-training settings. The learning rate, its schedule and the layout of the *medical* run are
not published: peak 3e-5 to 3e-6 with a short warm-up is our choice (LLM-jp's own continued runs use 2e-5 to 2e-6).
"""

from megatron_jmed.config import (
    BudgetConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    PrecisionConfig,
    RunConfig,
)
from megatron_jmed.recipes.blends import sip_medical

_TOKENIZER_PIECES = 99_574  # llm-jp-tokenizer ver3.0b1; the published parameter counts use 99,487 (see tests/golden)


def _model(num_layers: int, hidden_size: int, num_heads: int, ffn_hidden_size: int) -> ModelConfig:
    return ModelConfig(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_attention_heads=num_heads,
        num_query_groups=num_heads,
        kv_channels=128,
        ffn_hidden_size=ffn_hidden_size,
        num_experts=8,
        router_topk=2,
        vocab_size=_TOKENIZER_PIECES,
        max_position_embeddings=4096,
    )


def llmjp_8x13b() -> RunConfig:
    """LLM-jp-3 8x13B on 79.6B medical tokens: 18,978 steps of 4.19M tokens; TP1 PP4 EP8 from 64 H100s upwards."""
    tokens_per_step = 1024 * 4096
    return RunConfig(
        name="llmjp_8x13b",
        run_folder="runs/llmjp_8x13b",
        init="checkpoints/llmjp_8x13b",
        model=_model(num_layers=40, hidden_size=5120, num_heads=40, ffn_hidden_size=13_824),
        parallel=ParallelConfig(pp=4, ep=8, overlap_grad_reduce=True, overlap_param_gather=True),
        precision=PrecisionConfig(compute="bf16", backend="te"),
        optim=OptimConfig(peak_lr=3e-5, min_lr=3e-6, warmup_tokens=100 * tokens_per_step),
        data=DataConfig(blend=sip_medical(), valid_ratio=0.001, max_epochs=4, num_workers=2),
        budget=BudgetConfig(
            total_tokens=79_600_000_000,
            seq_length=4096,
            global_batch_size=1024,
            micro_batch_size=1,
            recompute="selective",
            save_every_tokens=500 * tokens_per_step,
            eval_every_tokens=500 * tokens_per_step,
        ),
    )


def llmjp_8x13b_fp8() -> RunConfig:
    """`llmjp_8x13b` with Transformer Engine's blockwise fp8 (e4m3) in the linear layers, weight gradients included; the first and
    the last layer and all the rest stay bf16."""
    base = llmjp_8x13b()
    return base.model_copy(update={
        "name": "llmjp_8x13b_fp8",
        "run_folder": "runs/llmjp_8x13b_fp8",
        "precision": PrecisionConfig(compute="fp8", fp8_recipe="blockwise", fp8_wgrad=True, backend="te"),
    })


def llmjp_8x1p8b() -> RunConfig:
    """LLM-jp-3 8x1.8B: the small sibling for proxy studies on one node of 8 H100s (TP1 PP1 EP8)."""
    tokens_per_step = 512 * 4096
    return RunConfig(
        name="llmjp_8x1p8b",
        run_folder="runs/llmjp_8x1p8b",
        init="checkpoints/llmjp_8x1p8b",
        model=_model(num_layers=24, hidden_size=2048, num_heads=16, ffn_hidden_size=7168),
        parallel=ParallelConfig(ep=8, overlap_grad_reduce=True, overlap_param_gather=True),
        precision=PrecisionConfig(compute="bf16", backend="te"),
        optim=OptimConfig(peak_lr=5e-5, min_lr=5e-6, warmup_tokens=100 * tokens_per_step),
        data=DataConfig(blend=sip_medical(), valid_ratio=0.001, max_epochs=4, num_workers=2),
        budget=BudgetConfig(
            total_tokens=20_000_000_000,
            seq_length=4096,
            global_batch_size=512,
            micro_batch_size=1,
            recompute="selective",
            save_every_tokens=500 * tokens_per_step,
            eval_every_tokens=500 * tokens_per_step,
        ),
    )
