"""A Hugging Face folder as data: its config as a ModelConfig, its safetensors by name; and the same for writing.

Invariant: nothing is guessed. A config that Megatron-Core could not compute alike is refused, with the word; a tensor
that is missing, left over or of another shape is an error that lists it. Modules of transformers are never used: names
and bytes of files do not change with its version.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from megatron_jmed.config import ModelConfig
from megatron_jmed.errors import CheckpointError
from megatron_jmed.run_folder import write_json

INDEX_NAME = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9

# What our network has no word for must have this value (the default of MixtralConfig where a word is absent).
_FIXED_WORDS = {
    "model_type": "mixtral",
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "sliding_window": None,
    "attention_dropout": 0.0,
    "router_jitter_noise": 0.0,
}


def model_from_hf_config(folder: Path) -> ModelConfig:
    """The ModelConfig of HF_FOLDER/config.json; CheckpointError names every word that cannot be expressed."""
    words = _read_json(folder / "config.json")
    rope = words.get("rope_parameters") or {}
    theta = rope.get("rope_theta", words.get("rope_theta"))
    wrong = [f"{word}={words[word]!r} (only {value!r} can be converted)"
             for word, value in _FIXED_WORDS.items() if words.get(word, value) != value]
    scaling = words.get("rope_scaling") or {key: value for key, value in rope.items() if key != "rope_theta"}
    if scaling and scaling.get("rope_type", scaling.get("type")) != "default":
        wrong.append(f"rope scaling {scaling!r} (only plain rotary embeddings can be converted)")
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_local_experts",
              "num_experts_per_tok", "vocab_size", "max_position_embeddings", "rms_norm_eps")
    wrong += [f"{word} is missing" for word in needed if word not in words]
    if theta is None:
        wrong.append("rope_theta is missing")
    if wrong:
        raise CheckpointError(f"{folder / 'config.json'}: " + "; ".join(wrong))
    heads = words["num_attention_heads"]
    return ModelConfig(
        num_layers=words["num_hidden_layers"],
        hidden_size=words["hidden_size"],
        num_attention_heads=heads,
        num_query_groups=words.get("num_key_value_heads") or heads,
        kv_channels=words.get("head_dim") or words["hidden_size"] // heads,
        ffn_hidden_size=words["intermediate_size"],
        num_experts=words["num_local_experts"],
        router_topk=words["num_experts_per_tok"],
        vocab_size=words["vocab_size"],
        max_position_embeddings=words["max_position_embeddings"],
        rotary_base=theta,
        layernorm_epsilon=words["rms_norm_eps"],
        init_method_std=words.get("initializer_range", 0.02),
        aux_loss_coeff=words.get("router_aux_loss_coef", 0.01),
    )


def hf_config(model: ModelConfig, dtype: torch.dtype, special_ids: dict[str, int]) -> dict[str, Any]:
    """config.json of MixtralForCausalLM, in words that transformers 4 and 5 both read."""
    return {
        "architectures": ["MixtralForCausalLM"],
        **_FIXED_WORDS,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "head_dim": model.kv_channels,
        "num_local_experts": model.num_experts,
        "num_experts_per_tok": model.router_topk,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_position_embeddings,
        "rope_theta": model.rotary_base,
        "rms_norm_eps": model.layernorm_epsilon,
        "initializer_range": model.init_method_std,
        "router_aux_loss_coef": model.aux_loss_coeff,
        "output_router_logits": False,
        "use_cache": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **special_ids,
    }


class HfWeights:
    """The tensors of a folder's safetensors, by the names of transformers 4; files in the style of 5 are translated."""

    def __init__(self, folder: Path, model: ModelConfig):
        self._folder, self._model = folder, model
        self._file_of = _tensor_files(folder)
        self._open: dict[Path, Any] = {}
        self._read: set[str] = set()

    def get(self, name: str) -> torch.Tensor:
        """The tensor `name`; CheckpointError if the folder has none."""
        if name in self._file_of:
            return self._load(name)
        return self._from_style_5(name)

    def unread_names(self) -> list[str]:
        return sorted(set(self._file_of) - self._read)

    def _from_style_5(self, name: str) -> torch.Tensor:
        """transformers 5 may keep all experts of a layer in two tensors, and calls the layer `mlp`."""
        expert = re.fullmatch(r"(model\.layers\.\d+)\.block_sparse_moe\.experts\.(\d+)\.w([123])\.weight", name)
        if expert is None:
            renamed = name.replace(".block_sparse_moe.gate.", ".mlp.gate.")
            if renamed not in self._file_of:
                raise CheckpointError(f"{self._folder}: no tensor {name}")
            return self._load(renamed)
        layer, index, part = expert.groups()
        stacked = f"{layer}.mlp.experts." + ("down_proj" if part == "2" else "gate_up_proj")
        if stacked not in self._file_of:
            raise CheckpointError(f"{self._folder}: no tensor {name} (nor {stacked})")
        weight = self._load_expert(stacked, int(index))
        if part == "2":
            return weight
        return weight.chunk(2, dim=0)[0 if part == "1" else 1]

    def _load(self, name: str) -> torch.Tensor:
        return self._slice(name)[...]

    def _load_expert(self, name: str, index: int) -> torch.Tensor:
        """One expert of a stack, without reading the others."""
        stack = self._slice(name)
        found = stack.get_shape()[0]
        if found != self._model.num_experts:
            raise CheckpointError(f"{self._folder}: tensor {name} holds {found} experts; the config asks for "
                                  f"{self._model.num_experts}")
        return stack[index]

    def _slice(self, name: str):
        path = self._file_of[name]
        if path not in self._open:
            self._open[path] = _open_safetensors(path)
        self._read.add(name)
        try:
            return self._open[path].get_slice(name)
        except SafetensorError:
            raise CheckpointError(f"{path}: no tensor {name}, though the index names it") from None


class HfWriter:
    """Writes tensors into shards of at most 5 GB with an index; nothing is visible under its final name before `finish`."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self._total_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        num_bytes = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + num_bytes > MAX_SHARD_BYTES:
            self._write_shard()
        self._pending[name] = tensor.contiguous().clone()
        self._pending_bytes += num_bytes
        self._total_bytes += num_bytes

    def finish(self) -> None:
        self._write_shard()
        count, weight_map = len(self._shards), {}
        for number, names in enumerate(self._shards, start=1):
            final = f"model-{number:05d}-of-{count:05d}.safetensors"
            self._partial(number).replace(self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        write_json(self._folder / INDEX_NAME, {"metadata": {"total_size": self._total_bytes},
                                               "weight_map": dict(sorted(weight_map.items()))})

    def _write_shard(self) -> None:
        self._shards.append(list(self._pending))
        save_file(self._pending, str(self._partial(len(self._shards))), metadata={"format": "pt"})
        self._pending, self._pending_bytes = {}, 0

    def _partial(self, number: int) -> Path:
        return self._folder / f"model-{number:05d}.safetensors.partial"


def _tensor_files(folder: Path) -> dict[str, Path]:
    index = folder / INDEX_NAME
    if index.exists():
        return {name: folder / file for name, file in _read_json(index)["weight_map"].items()}
    single = folder / "model.safetensors"
    if single.exists():
        return dict.fromkeys(_open_safetensors(single).keys(), single)
    raise CheckpointError(f"{folder}: neither {INDEX_NAME} nor model.safetensors; only safetensors are read "
                          "(.bin files can run code when loaded)")


def _open_safetensors(path: Path):
    try:
        return safe_open(str(path), framework="pt")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file, though the index names it") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give a Hugging Face folder") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
