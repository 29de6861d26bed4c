"""Which tensor of a Mixtral- or Llama-shaped Hugging Face model is which part of which Megatron-Core tensor: the table.

Legend: L layers, E experts, H hidden, F expert width, N heads, G query groups, D head size, V vocabulary.
A checkpoint stacks all layers (and experts) of one kind into one tensor; Hugging Face has one tensor each. A row says
how one *slice* of the stack (one layer, or one layer and expert) is joined from Hugging Face's tensors and split back.
Both directions only move rows: a round trip is equal to the bit.

| Megatron-Core key                                   | slice        | Hugging Face, transform                             |
|-----------------------------------------------------|--------------|-----------------------------------------------------|
| embedding.word_embeddings.weight                    | [V, H]       | model.embed_tokens                                  |
| decoder.layers.self_attention.linear_qkv.layer_norm_weight | [H]   | input_layernorm                                     |
| decoder.layers.self_attention.linear_qkv.weight     | [(N+2G)D, H] | q, k, v: by query group its N/G query heads, k, v   |
| decoder.layers.self_attention.linear_proj.weight    | [H, ND]      | o_proj                                              |
| decoder.layers.pre_mlp_layernorm.weight             | [H]          | post_attention_layernorm                            |
| decoder.layers.mlp.router.weight                    | [E, H]       | block_sparse_moe.gate                               |
| decoder.layers.mlp.experts.experts.linear_fc1.weight| [2F, H]      | w1 (gate) rows, then w3 (up) rows                   |
| decoder.layers.mlp.experts.experts.linear_fc2.weight| [H, F]       | w2                                                  |
| decoder.final_layernorm.weight                      | [H]          | model.norm                                          |
| output_layer.weight (not where embeddings are tied) | [V, H]       | lm_head                                             |

A dense model (no experts) has these in the place of the last four rows of a layer:

| decoder.layers.mlp.linear_fc1.layer_norm_weight     | [H]          | post_attention_layernorm                            |
| decoder.layers.mlp.linear_fc1.weight                | [2F, H]      | mlp.gate_proj rows, then mlp.up_proj rows           |
| decoder.layers.mlp.linear_fc2.weight                | [H, F]       | mlp.down_proj                                       |

No rotary permutation is needed: both sides rotate halves.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from megatron_jmed.config import ModelConfig

Tensors = tuple[torch.Tensor, ...]


def _same(tensors: Tensors, _model: ModelConfig) -> torch.Tensor:
    (tensor,) = tensors
    return tensor


def _alone(tensor: torch.Tensor, _model: ModelConfig) -> Tensors:
    return (tensor,)


def _join_qkv(tensors: Tensors, model: ModelConfig) -> torch.Tensor:
    by_group = [tensor.view(model.num_query_groups, -1, model.kv_channels, model.hidden_size) for tensor in tensors]
    return torch.cat(by_group, dim=1).reshape(-1, model.hidden_size)


def _split_qkv(tensor: torch.Tensor, model: ModelConfig) -> Tensors:
    heads_a_group = model.num_attention_heads // model.num_query_groups
    grouped = tensor.view(model.num_query_groups, heads_a_group + 2, model.kv_channels, model.hidden_size)
    parts = grouped.split([heads_a_group, 1, 1], dim=1)
    return tuple(part.reshape(-1, model.hidden_size) for part in parts)


def _join_gate_up(tensors: Tensors, _model: ModelConfig) -> torch.Tensor:
    return torch.cat(tensors, dim=0)


def _split_gate_up(tensor: torch.Tensor, _model: ModelConfig) -> Tensors:
    return tuple(tensor.chunk(2, dim=0))


@dataclass(frozen=True)
class Row:
    """One kind of tensor: its checkpoint key, its Hugging Face names by slice, and how a slice is joined and split."""

    key: str
    hf_names: tuple[str, ...]
    stacked: Literal["once", "by layer", "by layer and expert"] = "by layer"
    join: Callable[[Tensors, ModelConfig], torch.Tensor] = _same
    split: Callable[[torch.Tensor, ModelConfig], Tensors] = _alone
    has_vocabulary: bool = False

    def slices(self, model: ModelConfig) -> Iterator[tuple[tuple[int, ...], tuple[str, ...]]]:
        """(index into the stack, Hugging Face names) of every slice."""
        if self.stacked == "once":
            yield (), self.hf_names
            return
        experts = range(model.num_experts) if self.stacked == "by layer and expert" else (None,)
        for layer in range(model.num_layers):
            for expert in experts:
                names = tuple(name.format(layer=layer, expert=expert) for name in self.hf_names)
                yield ((layer,) if expert is None else (layer, expert)), names

    def shape(self, model: ModelConfig, vocab_rows: int) -> tuple[int, ...]:
        """The shape of the whole stack in a checkpoint whose embedding has `vocab_rows` rows."""
        stack = {"once": (), "by layer": (model.num_layers,),
                 "by layer and expert": (model.num_layers, model.num_experts)}[self.stacked]
        return stack + self.slice_shape(model, vocab_rows)

    def slice_shape(self, model: ModelConfig, vocab_rows: int) -> tuple[int, ...]:
        """The shape of one slice."""
        hidden, heads_size = model.hidden_size, model.num_attention_heads * model.kv_channels
        if self.has_vocabulary:
            return (vocab_rows, hidden)
        return {
            "linear_qkv.weight": (heads_size + 2 * model.num_query_groups * model.kv_channels, hidden),
            "linear_proj.weight": (hidden, heads_size),
            "router.weight": (model.num_experts, hidden),
            "linear_fc1.weight": (2 * model.ffn_hidden_size, hidden),
            "linear_fc2.weight": (hidden, model.ffn_hidden_size),
        }.get(".".join(self.key.split(".")[-2:]), (hidden,))


_HF_LAYER = "model.layers.{layer}."
_HF_EXPERT = _HF_LAYER + "block_sparse_moe.experts.{expert}."
_LAYERS = "decoder.layers."

_BEGIN: tuple[Row, ...] = (
    Row("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), "once", has_vocabulary=True),
)
_ATTENTION = (
    Row(_LAYERS + "self_attention.linear_qkv.layer_norm_weight", (_HF_LAYER + "input_layernorm.weight",)),
    Row(_LAYERS + "self_attention.linear_qkv.weight",
        tuple(_HF_LAYER + f"self_attn.{name}_proj.weight" for name in "qkv"), join=_join_qkv, split=_split_qkv),
    Row(_LAYERS + "self_attention.linear_proj.weight", (_HF_LAYER + "self_attn.o_proj.weight",)),
)
_EXPERTS = (
    Row(_LAYERS + "pre_mlp_layernorm.weight", (_HF_LAYER + "post_attention_layernorm.weight",)),
    Row(_LAYERS + "mlp.router.weight", (_HF_LAYER + "block_sparse_moe.gate.weight",)),
    Row(_LAYERS + "mlp.experts.experts.linear_fc1.weight", (_HF_EXPERT + "w1.weight", _HF_EXPERT + "w3.weight"),
        "by layer and expert", join=_join_gate_up, split=_split_gate_up),
    Row(_LAYERS + "mlp.experts.experts.linear_fc2.weight", (_HF_EXPERT + "w2.weight",), "by layer and expert"),
)
_DENSE = (
    Row(_LAYERS + "mlp.linear_fc1.layer_norm_weight", (_HF_LAYER + "post_attention_layernorm.weight",)),
    Row(_LAYERS + "mlp.linear_fc1.weight", (_HF_LAYER + "mlp.gate_proj.weight", _HF_LAYER + "mlp.up_proj.weight"),
        join=_join_gate_up, split=_split_gate_up),
    Row(_LAYERS + "mlp.linear_fc2.weight", (_HF_LAYER + "mlp.down_proj.weight",)),
)
_END = (
    Row("decoder.final_layernorm.weight", ("model.norm.weight",), "once"),
    Row("output_layer.weight", ("lm_head.weight",), "once", has_vocabulary=True),
)


def rows(model: ModelConfig) -> tuple[Row, ...]:
    """The rows of the table that make up `model`."""
    return _BEGIN + _ATTENTION + (_EXPERTS if model.num_experts else _DENSE) + (_END[:1] if model.tied_embeddings else _END)


def hf_names(model: ModelConfig) -> set[str]:
    """Every tensor name of the Hugging Face model, in the style of transformers 4."""
    return {name for row in rows(model) for _, names in row.slices(model) for name in names}
