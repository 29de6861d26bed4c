"""config.json of a Hugging Face folder <-> our ModelConfig.

Two architectures: Mixtral (experts) and Llama (dense). What our network has no word for must have the one value that it
computes; anything else is refused by name, never guessed.
"""

import json
from pathlib import Path
from typing import Any

import torch

from megatron_jmed.config import ModelConfig
from megatron_jmed.errors import CheckpointError

# A word that is absent has this value, the default of transformers' class.
_FIXED_WORDS = {
    "mixtral": {"hidden_act": "silu", "sliding_window": None, "attention_dropout": 0.0, "router_jitter_noise": 0.0},
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
              "pretraining_tp": 1},
}
# Words that would change what is computed; neither class has them, and a folder that says them means another network.
_FOREIGN_WORDS = ("partial_rotary_factor", "qk_norm", "use_qk_norm", "logit_scale", "num_shared_experts", "quantization_config",
                  "final_logit_softcapping", "attn_logit_softcapping", "layer_types", "qkv_bias", "norm_topk_prob")
_ARCHITECTURES = {"mixtral": "MixtralForCausalLM", "llama": "LlamaForCausalLM"}
_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
           "max_position_embeddings", "rms_norm_eps")


def model_from_hf_config(folder: Path) -> ModelConfig:
    """The ModelConfig of HF_FOLDER/config.json; CheckpointError names every word that cannot be expressed."""
    path = folder / "config.json"
    words = read_json(path)
    kind = words.get("model_type")
    if kind not in _ARCHITECTURES:
        raise CheckpointError(f"{path}: model_type={kind!r} (only {' and '.join(_ARCHITECTURES)} can be converted)")
    wrong = _wrong_words(words, kind)
    if wrong:
        raise CheckpointError(f"{path}: " + "; ".join(wrong))
    heads = words["num_attention_heads"]
    has_experts = kind == "mixtral"
    return ModelConfig(
        num_layers=words["num_hidden_layers"],
        hidden_size=words["hidden_size"],
        num_attention_heads=heads,
        num_query_groups=words.get("num_key_value_heads") or heads,
        kv_channels=words.get("head_dim") or words["hidden_size"] // heads,
        ffn_hidden_size=words["intermediate_size"],
        num_experts=words["num_local_experts"] if has_experts else 0,
        router_topk=words["num_experts_per_tok"] if has_experts else 0,
        vocab_size=words["vocab_size"],
        max_position_embeddings=words["max_position_embeddings"],
        tied_embeddings=words.get("tie_word_embeddings", False),
        rotary_base=_rope(words)[0],
        layernorm_epsilon=words["rms_norm_eps"],
        init_method_std=words.get("initializer_range", 0.02),
        aux_loss_coeff=words.get("router_aux_loss_coef", 0.01) if has_experts else 0.0,
    )


def hf_config(model: ModelConfig, dtype: torch.dtype, special_ids: dict[str, int], carried: dict[str, Any]) -> dict[str, Any]:
    """config.json of MixtralForCausalLM or LlamaForCausalLM, in words that transformers 4 and 5 both read.

    `carried`: the words of the folder that the weights came from; those that our model does not decide are kept.
    """
    kind = "mixtral" if model.num_experts else "llama"
    decided_here = {"rope_parameters", "rope_scaling", "dtype", "transformers_version"}
    kept = {word: value for word, value in carried.items() if word not in decided_here} if carried.get("model_type") == kind else {}
    experts = {
        "num_local_experts": model.num_experts,
        "num_experts_per_tok": model.router_topk,
        "router_aux_loss_coef": model.aux_loss_coeff,
        "output_router_logits": False,
    }
    return {
        "use_cache": True,
        **kept,
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        **_FIXED_WORDS[kind],
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "head_dim": model.kv_channels,
        **(experts if model.num_experts else {}),
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_position_embeddings,
        "tie_word_embeddings": model.tied_embeddings,
        "rope_theta": model.rotary_base,
        "rms_norm_eps": model.layernorm_epsilon,
        "initializer_range": model.init_method_std,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **special_ids,
    }


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; CheckpointError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give a Hugging Face folder") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return content


def _wrong_words(words: dict[str, Any], kind: str) -> list[str]:
    needed = _NEEDED + (("num_local_experts", "num_experts_per_tok") if kind == "mixtral" else ())
    wrong = [f"{word}={words[word]!r} (only {value!r} can be converted)"
             for word, value in _FIXED_WORDS[kind].items() if words.get(word, value) != value]
    wrong += [f"{word}={words[word]!r} (no such word can be converted)" for word in _FOREIGN_WORDS if words.get(word)]
    theta, scaling = _rope(words)
    if scaling and scaling.get("rope_type", scaling.get("type")) != "default":
        wrong.append(f"rope scaling {scaling!r} (only plain rotary embeddings can be converted)")
    if theta is None:
        wrong.append("rope_theta is missing")
    elif not _is_positive(theta, int | float):
        wrong.append(f"rope_theta={theta!r} (must be a number above 0)")
    wrong += [f"{word} is missing" for word in needed if word not in words]
    numbers = {word: int for word in (*needed, "num_key_value_heads", "head_dim")} | {"rms_norm_eps": int | float}
    return wrong + [f"{word}={words[word]!r} (must be a {'whole ' if kinds is int else ''}number above 0)"
                    for word, kinds in numbers.items() if words.get(word) is not None and not _is_positive(words[word], kinds)]


def _is_positive(value: Any, kinds: Any) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and value > 0


def _rope(words: dict[str, Any]) -> tuple[float | None, dict[str, Any]]:
    """The base of the rotary embedding, and what else is said about it."""
    rope = words.get("rope_parameters") or {}
    scaling = words.get("rope_scaling") or {key: value for key, value in rope.items() if key != "rope_theta"}
    return rope.get("rope_theta", words.get("rope_theta")), scaling
