"""Adapters beside frozen linear layers (LoRA: Hu et al. 2021, arXiv 2106.09685).

    y = W x + (alpha / r) B A x          A [r, K] drawn from N(0, 1/K), B [N, r] zero at first: training begins at the base model

`add_adapters` puts them beside the products of attention (linear_qkv, linear_proj) and of the experts, each of which has its own
(linear_fc1, linear_fc2; in a dense model the MLP's), and freezes all other weights: no gradient, no optimizer state. The products
of the base stay those of their layers, in whatever precision; W's own gradient is never computed.

Over tensor-parallel ranks an adapter is split as its layer is: B by rows beside a column-parallel layer, A by columns beside a
row-parallel one; the other matrix is whole on every rank. What is communicated is the short A x [.., r], and the gradient of a
whole matrix where every rank sees a part of it: there the matrix passes through `copy_to_tensor_model_parallel_region`, whose
backward pass is a sum. Between experts nothing is summed forward: the dispatcher adds up what the ranks of one expert compute.

A is drawn from the run's seed, the layer's and the expert's number and the layer's name, whole, and then cut: every layout begins
with the same adapters. In a checkpoint they lie beside the base, as KEY.adapter.a and KEY.adapter.b; an export adds them
(convert/torch_dist.py). fc1 makes gate and up at once, so its B is stored as [2, F, r], each half split for itself.

Legend: K inputs, N outputs of a layer, r rank, F width of an expert, P parts of B (2 for fc1, else 1).
"""

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear, set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from megatron_jmed.config import RunConfig
from megatron_jmed.parallel import Groups

Linear = ColumnParallelLinear | RowParallelLinear


class Adapter(torch.nn.Module):
    """A and B of one linear layer; called with the layer's own input, it answers with what is to be added to its output."""

    def __init__(self, linear: Linear, rank: int, scale: float, num_parts: int, seed: int):
        super().__init__()
        self.scale, self.tp_group = scale, linear.tp_group
        self.is_column = isinstance(linear, ColumnParallelLinear)
        self.is_expert = linear.is_expert
        self.sequence_parallel = linear.sequence_parallel and not linear.is_expert and self.tp_group.size() > 1
        num_outputs, num_inputs = linear.weight.shape  # this rank's
        self.a = torch.nn.Parameter(linear.weight.new_empty(rank, num_inputs))
        self.b = torch.nn.Parameter(linear.weight.new_zeros(num_parts, num_outputs // num_parts, rank))
        self._draw(seed)
        for parameter, is_split in ((self.a, not self.is_column), (self.b, self.is_column)):
            # what is whole on every rank counts once in the norm of the gradient; an expert of one rank is nobody's copy
            is_own = is_split or (self.is_expert and self.tp_group.size() == 1)
            set_tensor_model_parallel_attributes(parameter, is_own, 1, 1)
            parameter.allreduce = linear.weight.allreduce

    @torch.no_grad()
    def _draw(self, seed: int) -> None:
        if self.a.is_meta:
            return
        ranks = 1 if self.is_column else self.tp_group.size()
        num_inputs = self.a.size(1) * ranks
        whole = torch.randn(self.a.size(0), num_inputs, generator=torch.Generator().manual_seed(seed)) / num_inputs**0.5
        self.a.copy_(whole.chunk(ranks, dim=1)[self.tp_group.rank() if ranks > 1 else 0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K of this rank] -> [..., N of this rank]. Collective over the layer's tensor-parallel ranks."""
        a_rK, b_Nr = self.a, self.b.flatten(end_dim=1)
        if self.tp_group.size() == 1:
            return self.scale * (x @ a_rK.t() @ b_Nr.t())
        return self.scale * (self._column(x, a_rK, b_Nr) if self.is_column else self._row(x, a_rK, b_Nr))

    def _column(self, x: torch.Tensor, a_rK: torch.Tensor, b_Nr: torch.Tensor) -> torch.Tensor:
        if self.is_expert:  # all ranks have the same tokens, and each a part of the gradient; the dispatcher sums that of x
            return x @ self._summed_backward(a_rK).t() @ b_Nr.t()
        if self.sequence_parallel:  # each rank has its own tokens
            short = x @ self._summed_backward(a_rK).t()
            return gather_from_sequence_parallel_region(short, tensor_parallel_output_grad=True, group=self.tp_group) @ b_Nr.t()
        return copy_to_tensor_model_parallel_region(x @ a_rK.t(), group=self.tp_group) @ b_Nr.t()

    def _row(self, x: torch.Tensor, a_rK: torch.Tensor, b_Nr: torch.Tensor) -> torch.Tensor:
        short = x @ a_rK.t()  # of this rank's part of the inputs
        if self.is_expert:  # the dispatcher sums the outputs
            return short @ self._summed_backward(b_Nr).t()
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(short, group=self.tp_group) @ self._summed_backward(b_Nr).t()
        return reduce_from_tensor_model_parallel_region(short, group=self.tp_group) @ b_Nr.t()

    def _summed_backward(self, weight: torch.Tensor) -> torch.Tensor:
        return copy_to_tensor_model_parallel_region(weight, group=self.tp_group)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict[str, Any] | None = None) -> dict:
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True), prefix, {"b": 1} if self.is_column else {"a": 1}, sharded_offsets,
            tp_group=self.tp_group, dp_cp_group=metadata["dp_cp_group"])


def add_adapters(model: GPTModel, config: RunConfig, groups: Groups) -> None:
    """Freeze the model's weights and put adapters beside the layers that `model.lora_targets` names."""
    words = config.model
    model.requires_grad_(False)
    for name, linear in _targets(model, config, groups):
        num_parts = 2 if name.endswith("linear_fc1") else 1
        seed = int.from_bytes(hashlib.sha256(f"{config.seed} {name}".encode()).digest()[:7], "big")
        linear.adapter = Adapter(linear, words.lora_rank, words.lora_alpha / words.lora_rank, num_parts, seed)
        linear.register_forward_hook(_add)
        linear.sharded_state_dict = partial(_sharded_state_dict, linear)
    if model.pre_process:
        # recomputed layers learn only where their input asks for a gradient, and a frozen embedding's output does not
        model.embedding.register_forward_hook(_ask_for_gradient)


def is_adapter(key: str) -> bool:
    """Whether a checkpoint's key is that of an adapter."""
    return ".adapter." in key


def _targets(model: GPTModel, config: RunConfig, groups: Groups) -> Iterator[tuple[str, Linear]]:
    """The layers to adapt, with a name that says which of the whole model each is."""
    for layer in model.decoder.layers:
        where = f"layer {layer.layer_number}"
        if "attention" in config.model.lora_targets:
            for name in ("linear_qkv", "linear_proj"):
                yield f"{where} {name}", getattr(layer.self_attention, name)
        if "experts" not in config.model.lora_targets:
            continue
        experts = layer.mlp.experts.local_experts if config.model.num_experts else [layer.mlp]
        for number, expert in enumerate(experts, start=groups.ep.rank() * len(experts)):
            for name in ("linear_fc1", "linear_fc2"):
                yield f"{where} expert {number} {name}", getattr(expert, name)


def _add(linear: Linear, inputs: tuple, outputs: tuple[torch.Tensor, Any]) -> tuple[torch.Tensor, Any]:
    return outputs[0] + linear.adapter(inputs[0]), outputs[1]


def _ask_for_gradient(_embedding: torch.nn.Module, _inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() else output


def _sharded_state_dict(linear: Linear, prefix: str = "", sharded_offsets: tuple = (),
                        metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    """The layer's, in which its adapter is no copy on every rank."""
    sharded = type(linear).sharded_state_dict(linear, prefix, sharded_offsets, metadata)
    return sharded | linear.adapter.sharded_state_dict(f"{prefix}adapter.", sharded_offsets, metadata)
