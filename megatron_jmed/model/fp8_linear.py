"""Linear layers whose products are computed from fp8 operands: Megatron-Core's, with another `_forward_impl`.

    y  = Q(x) Q(W)^T        dx = Q(dy) Q(W)        dW = dy^T x in bf16, or with `fp8_wgrad` Q(dy^T) Q(x^T)^T

Q is `quantize -> fp8 with scales` (kernels/quantize.py): blockwise scales 1x128 along the dimension that is summed over for x and
dy and 128x128 for W, whose fp8 form then serves both products; tensorwise one scale for all. Products are summed in fp32 and
rounded to the type of x. Here they are emulated: the fp8 numbers are multiplied out in fp32, which on a CPU is all there is and
sums at least as precisely as a tensor core; `fp8_product` is the one place where a Hopper GPU's own product enters.

dW stays in bf16 by default: its operands would have to be quantised a second time, along the tokens, so on a GPU bf16 loses the
least there, and what is summed over all tokens of a step is the last place to round twice.

Invariants: the parameters, their names and their bytes are those of the bf16 layers, so a checkpoint does not know in what
precision it was computed; what is communicated (sequence parallelism, tensor parallelism) is bf16, as there. With blockwise
scales the layout changes no scale as long as tp and etp cut the matrices in multiples of 128; a tensorwise scale is each rank's.
Legend: M tokens, K inputs, N outputs of a layer.
"""

from dataclasses import dataclass

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region, gather_from_sequence_parallel_region

from megatron_jmed.kernels.quantize import (
    Quantized,
    dequantize,
    quantize_blocks_128x128,
    quantize_rows_1x128,
    quantize_tensor,
)


@dataclass(frozen=True)
class Fp8Recipe:
    """How tensors become fp8, and which products do."""

    is_blockwise: bool
    is_wgrad_fp8: bool

    def tokens(self, x_MK: torch.Tensor) -> Quantized:
        """Activations or gradients, of which the last dimension will be summed over."""
        return quantize_rows_1x128(x_MK) if self.is_blockwise else quantize_tensor(x_MK)

    def weight(self, weight_NK: torch.Tensor) -> Quantized:
        return quantize_blocks_128x128(weight_NK) if self.is_blockwise else quantize_tensor(weight_NK)


def fp8_product(left_MK: Quantized, right_NK: Quantized, dtype: torch.dtype) -> torch.Tensor:
    """left right^T [M, N], summed in fp32."""
    return (dequantize(*left_MK) @ dequantize(*right_NK).t()).to(dtype)


class _Fp8Linear(torch.autograd.Function):
    """y_MN of x_MK and weight_NK, which stay as they are for the backward pass."""

    @staticmethod
    def forward(ctx, x_MK: torch.Tensor, weight_NK: torch.Tensor, recipe: Fp8Recipe) -> torch.Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        ctx.recipe = recipe
        return fp8_product(recipe.tokens(x_MK), recipe.weight(weight_NK), x_MK.dtype)

    @staticmethod
    def backward(ctx, grad_MN: torch.Tensor):
        x_MK, weight_NK = ctx.saved_tensors
        recipe, grad_x, grad_weight = ctx.recipe, None, None
        if ctx.needs_input_grad[0]:
            values_NK, scales = recipe.weight(weight_NK)
            transposed = values_NK.t(), scales.t()
            grad_x = fp8_product(recipe.tokens(grad_MN), transposed, x_MK.dtype)
        if ctx.needs_input_grad[1]:
            if recipe.is_wgrad_fp8:
                grad_weight = fp8_product(recipe.tokens(grad_MN.t()), recipe.tokens(x_MK.t()), weight_NK.dtype)
            else:
                grad_weight = grad_MN.t() @ x_MK
        return grad_x, grad_weight, None


def fp8_linear(x: torch.Tensor, weight_NK: torch.Tensor, recipe: Fp8Recipe) -> torch.Tensor:
    """x [..., K] -> [..., N]."""
    return _Fp8Linear.apply(x.flatten(end_dim=-2), weight_NK, recipe).unflatten(0, x.shape[:-1])


class Fp8ColumnParallelLinear(ColumnParallelLinear):
    """Outputs split over the tensor-parallel ranks."""

    def __init__(self, *arguments, fp8: Fp8Recipe, **words):
        super().__init__(*arguments, **words)
        self.fp8 = fp8

    def _forward_impl(self, input, weight, bias, gradient_accumulation_fusion, allreduce_dgrad, sequence_parallel,
                      grad_output_buffer, wgrad_deferral_limit, tp_group):
        """Collective over `tp_group`: under sequence parallelism all tokens are gathered, and kept for the backward pass."""
        assert bias is None and grad_output_buffer is None and not gradient_accumulation_fusion, "not built into fp8 layers"
        if sequence_parallel:
            input = gather_from_sequence_parallel_region(input, tensor_parallel_output_grad=True, group=tp_group)
        elif allreduce_dgrad:
            input = copy_to_tensor_model_parallel_region(input, group=tp_group)
        return fp8_linear(input, weight, self.fp8)


class Fp8RowParallelLinear(RowParallelLinear):
    """Inputs split over the tensor-parallel ranks; Megatron-Core sums their outputs."""

    def __init__(self, *arguments, fp8: Fp8Recipe, **words):
        super().__init__(*arguments, **words)
        self.fp8 = fp8

    def _forward_impl(self, input, weight, bias, gradient_accumulation_fusion, allreduce_dgrad, sequence_parallel,
                      grad_output_buffer, tp_group):
        assert bias is None and not gradient_accumulation_fusion, "not built into fp8 layers"
        return fp8_linear(input, weight, self.fp8)
