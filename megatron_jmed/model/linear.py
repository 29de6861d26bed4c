"""Our own linear layers: Megatron-Core's, with another `_forward_impl`. Products in bf16 or from fp8 operands, weight gradients
added to the fp32 main_grad in the product.

    y  = Q(x) Q(W)^T        dx = Q(dy) Q(W)        dW = dy^T x in bf16, or with `is_wgrad_fp8` Q(dy^T) Q(x^T)^T

Q is the identity, or `quantize -> fp8 with scales` (kernels/quantize.py): blockwise scales 1x128 along the dimension that is summed
over for x and dy and 128x128 for W, whose fp8 form then serves both products; tensorwise one scale for all. fp8 products are summed
in fp32 and rounded to the type of x: on a Hopper GPU by cuBLASLt (`torch.nn.functional.scaled_mm`), on a CPU by multiplying the fp8
numbers out in fp32, which sums at least as precisely as a tensor core.

dW stays in bf16 by default: its operands would have to be quantised a second time, along the tokens, so on a GPU bf16 loses the
least there, and what is summed over all tokens of a step is the last place to round twice.

Invariants: the parameters, their names and their bytes are those of Megatron-Core's layers, so a checkpoint does not know in what
precision it was computed; what is communicated (sequence parallelism, tensor parallelism) is bf16, as there. With blockwise
scales the layout changes no scale as long as tp and etp cut the matrices in multiples of 128; a tensorwise scale is each rank's.
Legend: M tokens, K inputs, N outputs of a layer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region, gather_from_sequence_parallel_region

from megatron_jmed.errors import ConfigError
from megatron_jmed.kernels.accumulate import accumulate_
from megatron_jmed.kernels.launch import runs_on
from megatron_jmed.kernels.quantize import (
    BLOCK,
    Quantized,
    dequantize,
    quantize_blocks_128x128,
    quantize_rows_1x128,
    quantize_tensor,
)
from megatron_jmed.kernels.quantize_triton import quantize_rows

Operand = torch.Tensor | Quantized


@dataclass(frozen=True)
class Products:
    """How the three products of a linear layer are computed."""

    fp8: Literal["", "blockwise", "tensorwise"] = ""  # where the scales come from; empty: no fp8
    is_wgrad_fp8: bool = False
    is_accumulating: bool = False  # weight gradients go straight into main_grad, where the weight has one
    keeps_weights: bool = False  # a weight's fp8 form is kept until `forget_fp8_weights`

    def tokens(self, x_MK: torch.Tensor) -> Operand:
        """Activations or gradients, of which the last dimension will be summed over."""
        if self.fp8 != "blockwise":
            return quantize_tensor(x_MK) if self.fp8 else x_MK
        if runs_on(x_MK.device) and x_MK.size(1) % BLOCK == 0:
            return quantize_rows(x_MK.contiguous())
        return quantize_rows_1x128(x_MK)

    def weight(self, weight_NK: torch.Tensor) -> tuple[Operand, Operand]:
        """The weight for y, and for dx (transposed)."""
        if not self.fp8:
            return weight_NK, weight_NK.t()
        kept = getattr(weight_NK, "fp8_forms", None) if self.keeps_weights else None
        if kept is None:
            values_NK, scales = quantize_blocks_128x128(weight_NK) if self.fp8 == "blockwise" else quantize_tensor(weight_NK)
            # a tensor core of Hopper wants the dimension that is summed over to be the fast one
            turned = values_NK.t().contiguous() if weight_NK.is_cuda else values_NK.t()
            kept = (values_NK, scales), (turned, scales.t())
            if self.keeps_weights:
                weight_NK.fp8_forms = kept
        return kept

    def weight_gradient(self, weight_NK: torch.Tensor, grad_MN: torch.Tensor, x_MK: torch.Tensor) -> torch.Tensor:
        """dW, or what stands for it when main_grad has it already."""
        if self.is_wgrad_fp8:
            return product(self._columns(grad_MN), self._columns(x_MK), weight_NK.dtype)
        if not self.is_accumulating or getattr(weight_NK, "main_grad", None) is None:
            return grad_MN.t() @ x_MK
        return add_to_main_grad(weight_NK, grad_MN, x_MK)

    def _columns(self, x_MK: torch.Tensor) -> Operand:
        """[K, M] with the tokens, of whatever number, summed over; padded with zeros where a GPU wants whole groups."""
        return self.tokens(F.pad(x_MK.t(), (0, -len(x_MK) % BLOCK)) if x_MK.is_cuda else x_MK.t())


def add_to_main_grad(weight_NK: torch.Tensor, grad_MN: torch.Tensor, x_MK: torch.Tensor) -> torch.Tensor:
    """Adds dW to weight.main_grad; returns the stand-in that Megatron-Core's gradient hooks wait for, and drop.

    A weight that is shared with the embedding gets a second gradient in the same step, which is added to the stand-in: zeros.
    """
    accumulate_(weight_NK.main_grad, grad_MN, x_MK)
    weight_NK.grad_added_to_main_grad = True
    return torch.zeros_like(weight_NK) if getattr(weight_NK, "zero_out_wgrad", False) else torch.empty_like(weight_NK)


def forget_fp8_weights(parameters: Iterable[torch.nn.Parameter]) -> None:
    """To be called whenever weights have changed: the optimizer changes them behind autograd's back."""
    for parameter in parameters:
        if hasattr(parameter, "fp8_forms"):
            del parameter.fp8_forms


def product(left_MK: Operand, right_NK: Operand, dtype: torch.dtype) -> torch.Tensor:
    """left right^T [M, N], summed in fp32; plain operands have the type of the result already."""
    if isinstance(left_MK, torch.Tensor):
        return left_MK @ right_NK.t()
    if left_MK[0].device.type in ("cuda", "meta"):
        return hopper_product(left_MK, right_NK, dtype)
    return (dequantize(*left_MK) @ dequantize(*right_NK).t()).to(dtype)


def hopper_product(left_MK: Quantized, right_NK: Quantized, dtype: torch.dtype) -> torch.Tensor:
    """The same by cuBLASLt, whose layouts these are (torch 2.11 and later; sm_90): rows of values, scales of 1x128 groups with the
    rows as the fast dimension, scales of 128x128 squares with the inputs as the fast dimension, padded to a multiple of 4.
    """
    (left, left_scales), (right, right_scales) = left_MK, right_NK
    if len(left) == 0:
        return left.new_empty(0, len(right), dtype=dtype)
    found = [_layout(values, scales) for values, scales in ((left, left_scales), (right, right_scales))]
    (scale_a, kind_a), (scale_b, kind_b) = found
    return F.scaled_mm(left.contiguous(), right.contiguous().t(), scale_a=scale_a, scale_recipe_a=kind_a, scale_b=scale_b,
                       scale_recipe_b=kind_b, output_dtype=dtype)


def _check_widths(weight_NK: torch.Tensor, how: Products) -> None:
    if how.fp8 == "blockwise" and weight_NK.is_cuda and any(width % BLOCK for width in weight_NK.shape):
        shape = " x ".join(map(str, weight_NK.shape))
        raise ConfigError(f"a rank's part of a linear layer is {shape}, but blockwise fp8 on a GPU wants multiples of {BLOCK}; "
                          'lower parallel.tp and etp, change the widths in model.*, or set precision.fp8_recipe="tensorwise"')


def _layout(values_RK: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, F.ScalingType]:
    if scales.dim() == 0:
        return scales.reshape(1), F.ScalingType.TensorWise
    if values_RK.size(1) % BLOCK:
        raise ValueError(f"an fp8 product sums over {values_RK.size(1)} numbers; a Hopper GPU takes multiples of {BLOCK}")
    if len(scales) == len(values_RK):
        return scales.t().contiguous().t(), F.ScalingType.BlockWise1x128
    return F.pad(scales, (0, -scales.size(1) % 4)).contiguous().t(), F.ScalingType.BlockWise128x128


class _Linear(torch.autograd.Function):
    """y_MN of x_MK and weight_NK, which stay as they are for the backward pass."""

    @staticmethod
    def forward(ctx, x_MK: torch.Tensor, weight_NK: torch.Tensor, how: Products) -> torch.Tensor:
        ctx.save_for_backward(x_MK)
        # not through autograd: the very parameter is needed, with its main_grad and its fp8 form
        ctx.weight, ctx.how = weight_NK, how
        return product(how.tokens(x_MK), how.weight(weight_NK)[0], x_MK.dtype)

    @staticmethod
    def backward(ctx, grad_MN: torch.Tensor):
        (x_MK,), weight_NK, how, grad_x, grad_weight = ctx.saved_tensors, ctx.weight, ctx.how, None, None
        if ctx.needs_input_grad[0]:
            grad_x = product(how.tokens(grad_MN), how.weight(weight_NK)[1], x_MK.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = how.weight_gradient(weight_NK, grad_MN, x_MK)
        return grad_x, grad_weight, None


def linear(x: torch.Tensor, weight_NK: torch.Tensor, how: Products) -> torch.Tensor:
    """x [..., K] -> [..., N]."""
    return _Linear.apply(x.flatten(end_dim=-2), weight_NK, how).unflatten(0, x.shape[:-1])


class OwnColumnParallelLinear(ColumnParallelLinear):
    """Outputs split over the tensor-parallel ranks."""

    def __init__(self, *arguments, how: Products, **words):
        super().__init__(*arguments, **words)
        self.how = how
        _check_widths(self.weight, how)

    def _forward_impl(self, input, weight, bias, gradient_accumulation_fusion, allreduce_dgrad, sequence_parallel,
                      grad_output_buffer, wgrad_deferral_limit, tp_group):
        """Collective over `tp_group`: under sequence parallelism all tokens are gathered, and kept for the backward pass."""
        assert bias is None and grad_output_buffer is None and not gradient_accumulation_fusion, "not built into our layers"
        if sequence_parallel:
            input = gather_from_sequence_parallel_region(input, tensor_parallel_output_grad=True, group=tp_group)
        elif allreduce_dgrad:
            input = copy_to_tensor_model_parallel_region(input, group=tp_group)
        return linear(input, weight, self.how)


class OwnRowParallelLinear(RowParallelLinear):
    """Inputs split over the tensor-parallel ranks; Megatron-Core sums their outputs."""

    def __init__(self, *arguments, how: Products, **words):
        super().__init__(*arguments, **words)
        self.how = how
        _check_widths(self.weight, how)

    def _forward_impl(self, input, weight, bias, gradient_accumulation_fusion, allreduce_dgrad, sequence_parallel,
                      grad_output_buffer, tp_group):
        assert bias is None and not gradient_accumulation_fusion, "not built into our layers"
        return linear(input, weight, self.how)
