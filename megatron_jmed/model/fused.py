"""Kernels behind Megatron-Core's interfaces: the norm, and the permutation of tokens around the experts.

On a CPU each kernel's torch reference computes the same; which of them a run takes is said in `kernels.*` (layers.py).
Legend: S sequence, B micro-batch, T tokens, H hidden, E experts, R rows (a token for each of its experts).
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.token_dispatcher import MoEAllGatherTokenDispatcher, MoEAlltoAllTokenDispatcher
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_jmed.kernels.permute import RowPlan, gather_rows, plan_rows, row_probs, sum_rows
from megatron_jmed.kernels.rmsnorm import rmsnorm, rmsnorm_backward
from megatron_jmed.parallel import Groups


class RMSNorm(torch.nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, computed in fp32 (Zhang and Sennrich 2019, arXiv 1910.07467).

    The weight is marked for sequence parallelism, where each tensor-parallel rank normalises its own part of the
    sequence and the weight's gradients must be summed; torch's own norm lacks the mark and Megatron-Core refuses it.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_unused):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype,
                                                    device=torch.cuda.current_device()))
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, hidden_SBH: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden_SBH.float(), self.weight.shape, self.weight.float(), self.eps).to(hidden_SBH.dtype)


class FusedRMSNorm(RMSNorm):
    """The same in one pass forward and one backward (kernels/rmsnorm.py)."""

    def forward(self, hidden_SBH: torch.Tensor) -> torch.Tensor:
        return _RMSNorm.apply(hidden_SBH.flatten(end_dim=-2), self.weight, self.eps).view(hidden_SBH.shape)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TH, weight_H, eps):
        x_TH = x_TH.contiguous()
        rows, inverse_T = rmsnorm(x_TH, weight_H, eps)
        ctx.save_for_backward(x_TH, weight_H, inverse_T)
        return rows.plain_RK

    @staticmethod
    def backward(ctx, grad_TH):
        x_TH, weight_H, inverse_T = ctx.saved_tensors
        grad_x, grad_weight = rmsnorm_backward(grad_TH.contiguous(), x_TH, weight_H, inverse_T)
        return grad_x, grad_weight.to(weight_H.dtype), None


class _Permute(torch.autograd.Function):
    """Rows of tokens; the gradient of a token is the sum of its rows'."""

    @staticmethod
    def forward(ctx, tokens_TH, plan: RowPlan):
        ctx.plan = plan
        return gather_rows(tokens_TH.contiguous(), plan)[0].plain_RK

    @staticmethod
    def backward(ctx, grad_RH):
        return sum_rows(grad_RH.contiguous(), ctx.plan), None


class _Unpermute(torch.autograd.Function):
    """The sum of each token's rows; the gradient of a row is its token's."""

    @staticmethod
    def forward(ctx, rows_RH, plan: RowPlan):
        ctx.plan = plan
        return sum_rows(rows_RH.contiguous(), plan)

    @staticmethod
    def backward(ctx, grad_TH):
        return gather_rows(grad_TH.contiguous(), ctx.plan)[0].plain_RK, None


class FusedMoELayer(MoELayer):
    """Megatron-Core's layer with a token dispatcher whose permutations are kernels."""

    def __init__(self, *arguments: Any, pg_collection: Groups, **words: Any):
        super().__init__(*arguments, pg_collection=pg_collection, **words)
        self.token_dispatcher = _DISPATCHERS[type(self.token_dispatcher)](
            self.num_local_experts, self.local_expert_indices, config=self.config, pg_collection=pg_collection)


class FusedAlltoAllDispatcher(MoEAlltoAllTokenDispatcher):
    """Permutation 1 and its reverse as kernels. Sorting what other ranks sent by local expert stays Megatron-Core's: it moves
    whole pieces, and with one expert a rank there is none."""

    def dispatch_preprocess(self, hidden_SBH: torch.Tensor, routing_map_TE: torch.Tensor,
                            probs_TE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [R, H] by expert, ready to be sent, and their probabilities [R]."""
        self.hidden_shape, self.probs, self.routing_map = hidden_SBH.shape, probs_TE, routing_map_TE
        self.tokens_per_expert = self.preprocess(routing_map_TE)
        self.tokens_per_expert = self._maybe_dtoh_and_synchronize("before_permutation_1", self.tokens_per_expert)
        self.plan = plan_rows(routing_map_TE, self.config.moe_router_topk, multiple=1, num_rows=int(self.num_out_tokens))
        return _Permute.apply(hidden_SBH.flatten(end_dim=-2), self.plan), row_probs(probs_TE, self.plan)

    def combine_postprocess(self, rows_RH: torch.Tensor) -> torch.Tensor:
        """[R, H], the experts' answers in the order of dispatch -> [S, B, H]."""
        return _Unpermute.apply(rows_RH, self.plan).view(self.hidden_shape)


class FusedAllGatherDispatcher(MoEAllGatherTokenDispatcher):
    """The permutation of gathered tokens to the local experts, and its reverse, as kernels."""

    def dispatch_postprocess(self, hidden_TH: torch.Tensor,
                             probs_TE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows [R, H] by local expert, how many each has, and their probabilities [R]."""
        mine = slice(self.local_expert_indices[0], self.local_expert_indices[-1] + 1)
        self.plan = plan_rows(self.routing_map[:, mine], self.config.moe_router_topk, multiple=1)
        self.local_probs, self.routing_map = row_probs(probs_TE[:, mine], self.plan), None
        return _Permute.apply(hidden_TH, self.plan), self.plan.padded_E.cpu(), self.local_probs

    def combine_preprocess(self, rows_RH: torch.Tensor) -> torch.Tensor:
        """[R, H] -> [T, H], summed over the local experts of each token."""
        return _Unpermute.apply(rows_RH, self.plan)


_DISPATCHERS = {MoEAlltoAllTokenDispatcher: FusedAlltoAllDispatcher, MoEAllGatherTokenDispatcher: FusedAllGatherDispatcher}
