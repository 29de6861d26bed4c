"""What is computed in fp8, what in bf16, what in fp32, and why.

| part                                   | fp32 | bf16 | fp8 run                                        |
|----------------------------------------|------|------|------------------------------------------------|
| attention and expert linear layers     | fp32 | bf16 | fp8 (e4m3; blockwise scales by default)        |
| router logits and routing weights      | fp32 | fp32 | fp32: a flipped top-k choice is not a rounding |
| norms, embedding, output layer, loss   | fp32 | bf16, with fp32 inside norms and loss | same    |
| attention core                         | fp32 | bf16 | bf16                                           |
| gradients: reduced and accumulated     | fp32 | fp32 | fp32                                           |
| master weights and Adam moments        | fp32 | fp32 | fp32                                           |

Invariant: nobody trains in another precision than the config says. Megatron-Core 0.16.1 without Transformer Engine
would run an fp8 config in bf16 without a word; here it is refused, with what would work.
"""

import importlib.util
from typing import Any

import torch

from megatron_jmed.config import PrecisionConfig

_HOPPER = (9, 0)


def params_dtype(precision: PrecisionConfig) -> torch.dtype:
    """The type of the model's own weights (the optimizer keeps fp32 masters of bf16 weights)."""
    return torch.float32 if precision.compute == "fp32" else torch.bfloat16


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
    if precision.compute == "fp8":
        fields |= {"fp8": "e4m3", "fp8_recipe": precision.fp8_recipe}
    return fields


def missing_for(precision: PrecisionConfig) -> list[str]:
    """What this machine lacks for `precision`, as sentences that say what would work; empty if it can run."""
    if precision.backend != "te":
        return []
    found = []
    if importlib.util.find_spec("transformer_engine") is None:
        found.append('precision.backend="te" needs Transformer Engine, which is not installed here; install the "gpu" '
                     'extra or set precision.backend="local" and precision.compute="bf16"')
    if not torch.cuda.is_available():
        found.append('precision.backend="te" needs a CUDA GPU, and there is none here; set precision.backend="local"')
    elif precision.compute == "fp8" and torch.cuda.get_device_capability() < _HOPPER:
        found.append(f'precision.compute="fp8" needs a Hopper GPU (compute capability 9.0), this one has '
                     f'{torch.cuda.get_device_capability()}; set precision.compute="bf16"')
    return found
