"""Write folders in the `torch` format of Megatron-LM core_v0.10.0, from the documented layout and nothing of our reader.

Sources: Megatron-LM core_v0.10.0, training/checkpointing.py (names, content), moe/experts.py (three layouts of experts),
tensor_parallel/layers.py (which dimension is split). The whole model is given by Hugging Face's names.
"""

import enum
from argparse import Namespace
from pathlib import Path

import numpy
import torch

PADDED = 384


class AttnBackend(enum.Enum):
    """Stands for the classes of Megatron-LM that its args hold; pickled under Megatron's name."""

    auto = 5


AttnBackend.__module__ = "megatron.core.transformer.enums"


def args_of(config, tp: int, pp: int, ep: int, **words) -> Namespace:
    has_experts = hasattr(config, "num_local_experts")
    return Namespace(**{
        "num_layers": config.num_hidden_layers, "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads, "group_query_attention": True,
        "num_query_groups": config.num_key_value_heads, "kv_channels": config.head_dim,
        "ffn_hidden_size": config.intermediate_size, "max_position_embeddings": config.max_position_embeddings,
        "padded_vocab_size": PADDED, "vocab_size": None, "norm_epsilon": config.rms_norm_eps, "rotary_base": 500,
        "num_experts": config.num_local_experts if has_experts else None, "moe_router_topk": 2, "swiglu": True,
        "normalization": "RMSNorm", "add_bias_linear": False, "position_embedding_type": "rope", "rotary_percent": 1.0,
        "untie_embeddings_and_output_weights": True, "tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp,
        "expert_model_parallel_size": ep, "expert_tensor_parallel_size": None, "params_dtype": torch.float32,
        "moe_aux_loss_coeff": 0.03, "init_method_std": 0.2, **words,
    })


def write_legacy(folder: Path, hf: dict[str, torch.Tensor], config, *, tp=1, pp=1, ep=1, experts="sequential", norms="te",
                 virtual=1, **words) -> Path:
    """FOLDER with every rank's file; `experts`: sequential, te_grouped or grouped; `norms`: te (fused) or local."""
    args = args_of(config, tp, pp, ep, **words)
    if virtual > 1:
        args.num_layers_per_virtual_pipeline_stage = config.num_hidden_layers // (pp * virtual)
    for t in range(tp):
        for p in range(pp):
            for e in range(ep):
                rank = f"mp_rank_{t:02d}" + (f"_{p:03d}" if pp > 1 else "") + (f"_{e:03d}" if ep > 1 else "")
                path = folder / "iter_0000500" / rank / "model_optim_rng.pt"
                path.parent.mkdir(parents=True)
                models = [_stage(hf, config, (t, tp), (v * pp + p, pp * virtual), (e, ep), experts, norms) for v in range(virtual)]
                torch.save({
                    "args": args, "checkpoint_version": 3.0, "iteration": 500,
                    **({"model": models[0]} if virtual == 1 else {f"model{v}": model for v, model in enumerate(models)}),
                    "optimizer": {"param_groups": [{"lr": 1e-4, "params": [0]}], "state": {0: {"exp_avg": torch.zeros(7)}}},
                    "rng_state": [{"np_rng_state": numpy.random.get_state(), "torch_rng_state": torch.get_rng_state()}],
                }, path)
    (folder / "latest_checkpointed_iteration.txt").write_text("500")
    return folder


def _stage(hf, config, tensor, stage, expert, experts, norms) -> dict[str, torch.Tensor]:
    (t, tp), (number, stages) = tensor, stage
    model = {}
    if number == 0:
        model["embedding.word_embeddings.weight"] = _vocabulary(hf["model.embed_tokens.weight"]).chunk(tp)[t].clone()
    per_stage = config.num_hidden_layers // stages
    for local in range(per_stage):
        theirs, ours = f"model.layers.{number * per_stage + local}.", f"decoder.layers.{local}."
        by_group = [hf[theirs + f"self_attn.{name}_proj.weight"].view(config.num_key_value_heads, -1, config.hidden_size)
                    for name in "qkv"]
        groups = [torch.cat([weights[g] for weights in by_group]) for g in range(config.num_key_value_heads)]
        model[ours + "self_attention.linear_qkv.weight"] = torch.cat(groups).chunk(tp)[t].clone()
        model[ours + "self_attention.linear_proj.weight"] = hf[theirs + "self_attn.o_proj.weight"].chunk(tp, dim=1)[t].contiguous()
        model[ours + "self_attention.linear_qkv._extra_state"] = None
        input_norm = "self_attention.linear_qkv.layer_norm_weight" if norms == "te" else "input_layernorm.weight"
        model[ours + input_norm] = hf[theirs + "input_layernorm.weight"]
        mlp_norm = hf[theirs + "post_attention_layernorm.weight"]
        if hasattr(config, "num_local_experts"):
            model[ours + "pre_mlp_layernorm.weight"] = mlp_norm
            model[ours + "mlp.router.weight"] = hf[theirs + "block_sparse_moe.gate.weight"]
            model |= _experts(hf, config, theirs, ours + "mlp.experts.", tensor, expert, experts)
        else:
            model[ours + ("mlp.linear_fc1.layer_norm_weight" if norms == "te" else "pre_mlp_layernorm.weight")] = mlp_norm
            gate, up = (hf[theirs + f"mlp.{name}_proj.weight"].chunk(tp)[t] for name in ("gate", "up"))
            model[ours + "mlp.linear_fc1.weight"] = torch.cat([gate, up])
            model[ours + "mlp.linear_fc2.weight"] = hf[theirs + "mlp.down_proj.weight"].chunk(tp, dim=1)[t].contiguous()
    if number == stages - 1:
        model["decoder.final_layernorm.weight"] = hf["model.norm.weight"]
        model["output_layer.weight"] = _vocabulary(hf["lm_head.weight"]).chunk(tp)[t].clone()
    return model


def _experts(hf, config, theirs, ours, tensor, expert, layout) -> dict[str, torch.Tensor]:
    (t, tp), (e, ep) = tensor, expert
    count = config.num_local_experts // ep
    fc1, fc2 = [], []
    for number in range(e * count, (e + 1) * count):
        w1, w2, w3 = (hf[theirs + f"block_sparse_moe.experts.{number}.{part}.weight"] for part in ("w1", "w2", "w3"))
        fc1.append(torch.cat([w1.chunk(tp)[t], w3.chunk(tp)[t]]))
        fc2.append(w2.chunk(tp, dim=1)[t].contiguous())
    if layout == "grouped":  # weight1.view(E, H, -1)[e] is expert e's matrix, transposed; the same for weight2.view(E, -1, H)
        return {ours + "weight1": torch.stack([weight.t() for weight in fc1]).reshape(config.hidden_size, -1),
                ours + "weight2": torch.stack([weight.t() for weight in fc2]).reshape(-1, config.hidden_size)}
    name = "local_experts.{}.{}.weight" if layout == "sequential" else "{1}.weight{0}"
    return {ours + name.format(local, part): weight for part, weights in (("linear_fc1", fc1), ("linear_fc2", fc2))
            for local, weight in enumerate(weights)}


def _vocabulary(weight: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(weight, (0, 0, 0, PADDED - len(weight)), value=7.0)
