"""What train/estimate.py and train/cost.py say of runs whose memory or speed others published; arithmetic alone."""

from dataclasses import replace

from megatron_jmed.config import load_config
from megatron_jmed.train.cost import model_flops_a_second, step_time
from megatron_jmed.train.estimate import flops_a_token, stage_memory
from megatron_jmed.train.machine import BALANCED, H100

MEMORY = (  # LLM-jp-3 8x13B: ranks, tp (experts split alike), pp, ep, GB of weights, gradients and optimizer
    (64, 1, 2, 8, 54.8), (64, 1, 4, 8, 36.0), (128, 1, 4, 8, 29.0), (256, 2, 4, 4, 20.9),
)
MIXTRAL_8X7B = ("model.num_layers=32", "model.hidden_size=4096", "model.num_attention_heads=32", "model.num_query_groups=8",
                "model.ffn_hidden_size=14336", "model.vocab_size=32000", "budget.global_batch_size=256", "parallel.pp=4",
                "parallel.vpp=8", "budget.recompute=none")
MIXTRAL_8X22B = ("model.num_layers=56", "model.hidden_size=6144", "model.num_attention_heads=48", "model.num_query_groups=8",
                 "model.ffn_hidden_size=16384", "model.vocab_size=32768", "budget.global_batch_size=256", "parallel.tp=2",
                 "parallel.sequence_parallel=true", "parallel.pp=8", "parallel.vpp=7")
DENSE_13B = ("model.num_experts=0", "model.router_topk=0", "parallel.ep=1", "parallel.tp=2", "parallel.pp=4",
             "parallel.sequence_parallel=true", "budget.recompute=none")
SPEED = (  # name, recipe, changes, ranks, imbalance, TFLOP/s a GPU
    ("Mixtral 8x7B, 64 GPUs, TP1 EP8 PP4 VPP8", "llmjp_8x13b", MIXTRAL_8X7B, 64, H100.imbalance, "468"),
    ("Mixtral 8x22B, 128 GPUs, natural routing, TP2 EP8 PP8 VPP7 (our guess)", "llmjp_8x13b", MIXTRAL_8X22B, 128, H100.imbalance,
     "445"),
    ("the same, balanced routing", "llmjp_8x13b", MIXTRAL_8X22B, 128, 1.0, "465"),
    ("the same, fp8 blockwise, balanced routing", "llmjp_8x13b_fp8", MIXTRAL_8X22B, 128, 1.0, "560"),
    ("LLM-jp dense 13B, 128 GPUs, TP2 PP4 (our guess)", "llmjp_8x13b", DENSE_13B, 128, 1.0, "331 to 364"),
)


def main() -> None:
    print("| ranks | layout | published GB | computed GB | error |\n|---|---|---|---|---|")
    for ranks, tp, pp, ep, published in MEMORY:
        config = load_config("llmjp_8x13b", [f"parallel.{word}" for word in (
            f"tp={tp}", f"pp={pp}", f"ep={ep}", f"etp={tp}", f"sequence_parallel={str(tp > 1).lower()}")])
        computed = max(stage_memory(config, ranks, stage, BALANCED).state for stage in range(pp)) / 1e9
        print(f"| {ranks} | TP{tp} PP{pp} EP{ep} | {published} | {computed:.2f} | {computed / published - 1:+.1%} |")
    print("\n| run | published TFLOP/s a GPU | cost model, attention not causal | causal |\n|---|---|---|---|")
    for name, recipe, changes, ranks, imbalance, published in SPEED:
        config = load_config(recipe, list(changes))
        causal = model_flops_a_second(config, ranks, step_time(config, ranks, replace(H100, imbalance=imbalance)).total) / 1e12
        attention = 6 * config.model.num_layers * config.budget.seq_length * config.model.hidden_size
        print(f"| {name} | {published} | {causal * (1 + attention / flops_a_token(config)):.0f} | {causal:.0f} |")


if __name__ == "__main__":
    main()
