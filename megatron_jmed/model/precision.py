"""What is computed in fp8, what in bf16, what in fp32, and why.

| part                                   | fp32 | bf16 | fp8 run                                        |
|----------------------------------------|------|------|------------------------------------------------|
| attention and expert linear layers     | fp32 | bf16 | fp8 (e4m3), see below                          |
| the same in the first and last layers  | fp32 | bf16 | bf16 (`bf16_first_layers`, `bf16_last_layers`) |
| their weight gradients                 | fp32 | bf16 | bf16; fp8 with `fp8_wgrad`                     |
| router logits and routing weights      | fp32 | fp32 | fp32: a flipped top-k choice is not a rounding |
| norms, embedding, output layer, loss   | fp32 | bf16, with fp32 inside norms and loss | same    |
| attention core                         | fp32 | bf16 | bf16                                           |
| gradients: reduced and accumulated     | fp32 | fp32 | fp32                                           |
| master weights and Adam moments        | fp32 | fp32 | fp32                                           |

`fp8_recipe` says where the scales come from. blockwise (default): 1x128 for activations and gradients, 128x128 for weights,
so that an outlier spoils its own neighbours only (DeepSeek-V3, arXiv 2412.19437). tensorwise: the largest number of the very
tensor. delayed: the largest of earlier steps, unstable in continued pre-training (Fujii et al. 2024, arXiv 2411.08719) and not
in a checkpoint; Transformer Engine alone has it. Weights are bf16 in every fp8 run, so that a run may change
`precision.compute` at any resume.

Three back ends: `local` (torch, no fp8), `te` (Transformer Engine on a Hopper GPU), `jmed` (local, with the kernels that
`kernels.*` names, and in fp8 runs the linear layers of linear.py: on a Hopper GPU by cuBLASLt's fp8 products, on a CPU emulated,
slower than bf16, and the first line of the run says so).

Invariant: nobody trains in another precision than the config says. Megatron-Core 0.16.1 without Transformer Engine
would run an fp8 config in bf16 without a word; here it is refused, with what would work.
"""

import importlib.util
from typing import Any

import torch

from megatron_jmed.config import PrecisionConfig, RunConfig

_HOPPER = (9, 0)


def params_dtype(precision: PrecisionConfig) -> torch.dtype:
    """The type of the model's own weights (the optimizer keeps fp32 masters of bf16 weights)."""
    return torch.float32 if precision.compute == "fp32" else torch.bfloat16


def is_own_fp8_layer(config: RunConfig, layer: int) -> bool:
    """Whether layer number `layer` of the whole model (the first is 0) gets our own fp8 linear layers."""
    precision = config.precision
    is_inner = precision.bf16_first_layers <= layer < config.model.num_layers - precision.bf16_last_layers
    return precision.compute == "fp8" and precision.backend == "jmed" and is_inner


def emulation_note(precision: PrecisionConfig) -> str:
    """What the first line of a run must say about arithmetic that is imitated; else empty."""
    is_own = precision.compute == "fp8" and precision.backend == "jmed"
    return "fp8 emulated on the CPU" if is_own and not torch.cuda.is_available() else ""


def precision_fields(precision: PrecisionConfig) -> dict[str, Any]:
    """Megatron-Core's fields for `precision`."""
    te = precision.backend == "te"
    fields = {
        "params_dtype": params_dtype(precision),
        "bf16": precision.compute != "fp32",
        "moe_router_dtype": "fp32",
        "attention_softmax_in_fp32": True,
        "moe_grouped_gemm": te,
        "moe_permute_fusion": te,
        # the output layer is Megatron-Core's own, and its fused accumulation is an extension that comes with apex
        "gradient_accumulation_fusion": te and importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None,
        "apply_rope_fusion": te,
        "bias_activation_fusion": te,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "persist_layer_norm": False,
    }
    if not (te and precision.compute == "fp8"):
        # our own fp8 is in the layers' spec; named here so that the escape hatch cannot set what would be ignored or crash
        return fields | {"fp8": None}
    return fields | {
        "fp8": "e4m3",
        "fp8_recipe": precision.fp8_recipe,
        "fp8_wgrad": precision.fp8_wgrad,
        "first_last_layers_bf16": precision.bf16_first_layers + precision.bf16_last_layers > 0,
        "num_layers_at_start_in_bf16": precision.bf16_first_layers,
        "num_layers_at_end_in_bf16": precision.bf16_last_layers,
    }


def missing_for(precision: PrecisionConfig) -> list[str]:
    """What this machine lacks for `precision`, as sentences that say what would work; empty if it can run."""
    found = []
    if precision.backend == "jmed" and precision.compute == "fp8" and torch.cuda.is_available():
        return _older_than_hopper() + _without_blockwise_products()
    if precision.backend != "te":
        return []
    if importlib.util.find_spec("transformer_engine") is None:
        found.append('precision.backend="te" needs Transformer Engine, which is not installed here; install the "gpu" '
                     'extra or set precision.backend="local" and precision.compute="bf16"')
    if not torch.cuda.is_available():
        found.append('precision.backend="te" needs a CUDA GPU, and there is none here; set precision.backend="local"' +
                     (', or "jmed", which emulates fp8 on a CPU' if precision.compute == "fp8" else ""))
    elif precision.compute == "fp8":
        found += _older_than_hopper()
    return found


def _older_than_hopper() -> list[str]:
    capability = torch.cuda.get_device_capability()
    if capability >= _HOPPER:
        return []
    return [f'precision.compute="fp8" needs a Hopper GPU (compute capability 9.0), this one has {capability}; set '
            'precision.compute="bf16"']


def _without_blockwise_products() -> list[str]:
    if hasattr(torch.nn.functional, "scaled_mm"):
        return []
    return [f'precision.backend="jmed" takes fp8 products from torch.nn.functional.scaled_mm, which torch '
            f'{torch.__version__} lacks; install torch 2.11 or later, or set precision.compute="bf16"']
