"""RunConfig -> Megatron-Core's TransformerConfig: a pure mapping, one word to one field.

Invariant: the same network (weights and mathematics) for every layout, precision and back end; what `model.mcore`
adds is checked by name and may not overrule a word that our config already has. A dense model is given no field that
speaks of experts.
"""

import dataclasses
import difflib
from typing import Any

import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_jmed.config import ModelConfig, RunConfig
from megatron_jmed.errors import ConfigError
from megatron_jmed.model.precision import params_dtype, precision_fields


def transformer_config(config: RunConfig) -> TransformerConfig:
    """The TransformerConfig of `config`; ConfigError where `model.mcore` names an unknown or an owned field."""
    fields = {
        **_model_fields(config.model),
        **_parallel_fields(config),
        **precision_fields(config.precision),
        **_recompute_fields(config),
    }
    _check_escape_hatch(config.model.mcore, fields)
    if not config.model.num_experts:
        fields = {name: value for name, value in fields.items() if not name.startswith("moe_")}
    return TransformerConfig(**fields, **config.model.mcore)


def _model_fields(model: ModelConfig) -> dict[str, Any]:
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "kv_channels": model.kv_channels,
        "ffn_hidden_size": model.ffn_hidden_size,
        "normalization": "RMSNorm",
        "layernorm_epsilon": model.layernorm_epsilon,
        "init_method_std": model.init_method_std,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "num_moe_experts": model.num_experts or None,
        "moe_ffn_hidden_size": model.ffn_hidden_size,
        "moe_router_topk": model.router_topk,
        # top-k first, then a softmax over the chosen logits: Mixtral's renormalised routing weights
        "moe_router_pre_softmax": False,
        "moe_router_load_balancing_type": "aux_loss",
        "moe_aux_loss_coeff": model.aux_loss_coeff,
        "moe_z_loss_coeff": model.z_loss_coeff or None,
    }


def _parallel_fields(config: RunConfig) -> dict[str, Any]:
    parallel = config.parallel
    return {
        "tensor_model_parallel_size": parallel.tp,
        "pipeline_model_parallel_size": parallel.pp,
        "virtual_pipeline_model_parallel_size": parallel.vpp if parallel.vpp > 1 else None,
        # Interleaved with pp=2, a stage sends activations and gradients to the same rank at once. In one batch of sends
        # that rank takes one for the other (0.16.1; seen with gloo: gradient norm 13.4 instead of 1.65).
        "overlap_p2p_comm": parallel.vpp > 1,
        "batch_p2p_comm": parallel.vpp == 1,
        "context_parallel_size": parallel.cp,
        "expert_model_parallel_size": parallel.ep,
        "expert_tensor_parallel_size": parallel.etp,
        "sequence_parallel": parallel.sequence_parallel,
        "moe_token_dispatcher_type": parallel.dispatcher,
        "pipeline_dtype": params_dtype(config.precision),
        # 0.16.1 scales the auxiliary loss by the *local* number of tokens when losses are normalised per token, so
        # that its weight falls with tp; normalised per micro-batch it is the same for every layout.
        "calculate_per_token_loss": False,
    }


def _recompute_fields(config: RunConfig) -> dict[str, Any]:
    """Which activations are computed again in the backward pass instead of being kept."""
    if config.budget.recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if config.budget.recompute == "selective":
        # Transformer Engine's attention keeps no matrix, and its dense layers have their norms inside the linear ones
        modules = ["moe_act", "layernorm"] if config.model.num_experts else ["mlp"]
        return {"recompute_granularity": "selective",
                "recompute_modules": modules if config.precision.backend == "te" else ["core_attn"]}
    return {}


def _check_escape_hatch(mcore: dict[str, Any], owned: dict[str, Any]) -> None:
    known = {field.name for field in dataclasses.fields(TransformerConfig)}
    for name in mcore:
        if name in owned:
            raise ConfigError(f"model.mcore.{name}: this field follows from the other words of the config; change those")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"model.mcore.{name}: Megatron-Core's TransformerConfig has no such field{hint}")

