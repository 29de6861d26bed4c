"""The experts of an MoE layer with SwiGLU fused: between an expert's two products one pass forward and one pass backward.

    fc1 = x W1^T        a = silu(gate) up p (kernels/swiglu.py)        y = a W2^T

In blockwise fp8 the pass writes `a` in fp8 at once and the backward pass writes the gradient of fc1 in fp8 and in bf16 at once; `a`
itself is never kept: the weight gradient of W2 computes it anew from fc1.
Invariant: parameters, their names and the communication around them are those of Megatron-Core's SequentialMLP.
Legend: R rows (routed tokens of one expert), H hidden, F width of the expert.
"""

import torch
from megatron.core.transformer.moe.experts import SequentialMLP

from megatron_jmed.kernels.quantize_triton import GROUP, Rows
from megatron_jmed.kernels.swiglu import swiglu, swiglu_backward
from megatron_jmed.model.linear import Operand, Products, product


class Experts(SequentialMLP):
    """SequentialMLP with each expert in one autograd function; `how` is that of the layers built into it."""

    def __init__(self, *arguments, how: Products, **words):
        super().__init__(*arguments, **words)
        self.how = how

    def forward(self, rows_RH: torch.Tensor, tokens_per_expert: torch.Tensor, probs_R: torch.Tensor) -> tuple[torch.Tensor, None]:
        """[R, H], the rows of each expert in turn, and their routing probabilities -> [R, H]."""
        counts = tokens_per_expert.tolist()
        outputs = [
            _Expert.apply(rows, probs, expert.linear_fc1.weight, expert.linear_fc2.weight, self.how)
            for expert, rows, probs in zip(self.local_experts, rows_RH.split(counts), probs_R.split(counts), strict=True)
        ]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)), None


class _Expert(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_RH, probs_R, fc1_weight, fc2_weight, how: Products):
        fc1_R2F = product(how.tokens(x_RH), how.weight(fc1_weight)[0], x_RH.dtype)
        form = _form(how, fc1_R2F.size(1) // 2, plain_too=False)
        activated = _operand(swiglu(fc1_R2F, probs_R.contiguous(), form), how)
        ctx.save_for_backward(x_RH, probs_R, fc1_R2F)
        ctx.weights, ctx.how = (fc1_weight, fc2_weight), how
        return product(activated, how.weight(fc2_weight)[0], x_RH.dtype)

    @staticmethod
    def backward(ctx, grad_RH):
        x_RH, probs_R, fc1_R2F = ctx.saved_tensors
        (fc1_weight, fc2_weight), how = ctx.weights, ctx.how
        probs_R = probs_R.contiguous()
        grad_RF = product(how.tokens(grad_RH), how.weight(fc2_weight)[1], x_RH.dtype)
        grad_fc2 = grad_fc1 = None
        if ctx.needs_input_grad[3]:
            grad_fc2 = how.weight_gradient(fc2_weight, grad_RH, swiglu(fc1_R2F, probs_R).plain_RK)
        grad_rows, grad_probs = swiglu_backward(grad_RF, fc1_R2F, probs_R, _form(how, grad_RF.size(1), plain_too=True))
        if ctx.needs_input_grad[2]:
            grad_fc1 = how.weight_gradient(fc1_weight, grad_rows.plain_RK, x_RH)
        grad_x = product(_operand(grad_rows, how), how.weight(fc1_weight)[1], x_RH.dtype)
        return grad_x, grad_probs.to(probs_R.dtype), grad_fc1, grad_fc2, None


def _form(how: Products, width: int, plain_too: bool) -> str:
    """What the kernel writes: fp8 rows where the next product takes them and the width has whole groups."""
    if how.fp8 != "blockwise" or width % GROUP:
        return "plain"
    return "both" if plain_too else "fp8"


def _operand(rows: Rows, how: Products) -> Operand:
    return how.tokens(rows.plain_RK) if rows.values_RK is None else (rows.values_RK, rows.scales_RG)
