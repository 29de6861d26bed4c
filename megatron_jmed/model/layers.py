"""Which modules make up one layer: the ModuleSpec, where kernels enter.

Legend: S sequence (under context parallelism: this rank's part of it), B micro-batch, N heads, G query groups, D head
size, H hidden; Q and K tokens that ask and that are asked.
Three back ends share one checkpoint: `local` (torch and the modules below, runs anywhere), `jmed` (the same, with the kernels that
`kernels.*` names, and fp8 linear layers where precision.py says so) and `te` (Transformer Engine's fused layers).
Invariant: all name their parameters in a checkpoint alike (Transformer Engine's naming: the input norm belongs to linear_qkv;
the MLP norm stands alone before experts and belongs to linear_fc1 in a dense layer), so a checkpoint of one loads into another.
"""

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_jmed.config import RunConfig
from megatron_jmed.model.experts import Experts
from megatron_jmed.model.fused import FusedMoELayer, FusedRMSNorm, RMSNorm
from megatron_jmed.model.linear import OwnColumnParallelLinear, OwnRowParallelLinear, Products
from megatron_jmed.model.precision import is_own_fp8_layer
from megatron_jmed.parallel import Groups, part_of_sequence


class CausalAttention(torch.nn.Module):
    """softmax(Q K^T / sqrt(D)) V under a causal mask, by torch's scaled_dot_product_attention.

    Stands where Megatron-Core has DotProductAttention, which keeps the S x S matrix in memory. Under context parallelism
    the keys and values of all ranks are gathered; their gradients come back summed.

    What Megatron-Core passes on as `attention_mask` is here `document_BS`: the number of the document that each token of
    the whole sequence belongs to, or None. A token sees its own document only. The rotary embedding still counts through
    the whole sequence (the angles are those of one row for all sequences), which a document does not see: scores depend on
    distances alone. Only the rounding of the angles differs from that of a document at the front.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType,
                 attention_type: str, pg_collection: Groups | None = None, **_unused):
        super().__init__()
        assert attn_mask_type == AttnMaskType.causal, "only causal attention is built"
        self.cp = pg_collection.cp if pg_collection and pg_collection.cp.size() > 1 else None

    def forward(self, query_SBND, key_SBGD, value_SBGD, document_BS: torch.Tensor | None = None, *, attn_mask_type=None,
                attention_bias=None, packed_seq_params=None) -> torch.Tensor:
        """[S, B, N, D], [S, B, G, D] twice -> [S, B, N*D]. Collective over the context-parallel ranks."""
        assert attention_bias is None and packed_seq_params is None, "not built into this back end"
        if self.cp:
            # one gather for both; the last dimension tells them apart
            key_value = gather_from_sequence_parallel_region(torch.cat([key_SBGD, value_SBGD], dim=-1), group=self.cp)
            key_SBGD, value_SBGD = key_value.split([key_SBGD.size(-1), value_SBGD.size(-1)], dim=-1)
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query_SBND, key_SBGD, value_SBGD))
        if self.cp:
            context_BNSD = _attention(query, key, value, self._seen(key.size(2), key.device, document_BS))
        elif document_BS is not None:
            context_BNSD = _attention_by_document(query, key, value, document_BS)
        else:
            context_BNSD = _attention(query, key, value)
        return context_BNSD.permute(2, 0, 1, 3).flatten(start_dim=2)

    def _seen(self, seq_length: int, device: torch.device, document_BS: torch.Tensor | None) -> torch.Tensor:
        """Which of the gathered tokens each of this rank's tokens may see: [Q, K], or [B, 1, Q, K] where there are documents.

        The gathered tokens come rank by rank; what counts is their places in the whole sequence.
        """
        places = torch.arange(seq_length, device=device)
        by_rank = [part_of_sequence(places, 0, rank, self.cp.size()) for rank in range(self.cp.size())]
        asking_Q, asked_K = by_rank[self.cp.rank()], torch.cat(by_rank)
        seen_QK = asked_K[None, :] <= asking_Q[:, None]
        if document_BS is None:
            return seen_QK
        return (seen_QK & (document_BS[:, asking_Q, None] == document_BS[:, None, asked_K])).unsqueeze(1)


def _attention(query_BNQD, key_BGKD, value_BGKD, seen_QK: torch.Tensor | None = None) -> torch.Tensor:
    """[B, N, Q, D]; without `seen_QK` under a causal mask."""
    grouped = query_BNQD.size(1) != key_BGKD.size(1)
    return F.scaled_dot_product_attention(query_BNQD, key_BGKD, value_BGKD, attn_mask=seen_QK, is_causal=seen_QK is None,
                                          enable_gqa=grouped)


def _attention_by_document(query_BNSD, key_BGSD, value_BGSD, document_BS: torch.Tensor) -> torch.Tensor:
    """[B, N, S, D]: every document for itself, which costs the sum of the squares of their lengths and no mask."""
    rows = []
    for row, document_S in enumerate(document_BS):
        lengths = torch.unique_consecutive(document_S, return_counts=True)[1].tolist()
        parts = (tensor[row : row + 1].split(lengths, dim=2) for tensor in (query_BNSD, key_BGSD, value_BGSD))
        rows.append(torch.cat([_attention(*document) for document in zip(*parts, strict=True)], dim=2))
    return torch.cat(rows)


def decoder_spec(config: RunConfig, groups: Groups, layers: range) -> TransformerBlockSubmodules | ModuleSpec:
    """The spec of the decoder for the back end that `precision.backend` names; `layers`: those of this chunk, the first of the
    model being 0."""
    num_experts = config.model.num_experts
    if config.precision.backend == "te":
        return get_gpt_layer_with_transformer_engine_spec(num_experts=num_experts or None, moe_grouped_gemm=num_experts > 0)
    norm = FusedRMSNorm if config.kernels.rmsnorm else RMSNorm
    specs = [_local_layer_spec(config, groups, norm, _products(config, layer)) for layer in layers]
    # with our own final norm: Megatron-Core's default for a plain layer spec is torch's or apex's
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=norm)


Linear = type | ModuleSpec


def _products(config: RunConfig, layer: int) -> Products:
    """How layer number `layer` of the model computes its products."""
    precision, kernels = config.precision, config.kernels
    if not is_own_fp8_layer(config, layer):
        return Products(is_accumulating=kernels.wgrad_accumulation)
    return Products(precision.fp8_recipe, precision.fp8_wgrad, kernels.wgrad_accumulation, kernels.fp8_weight_cache)


def _linear_layers(how: Products) -> tuple[Linear, Linear]:
    """What splits its outputs and what splits its inputs over ranks."""
    if how == Products():
        return ColumnParallelLinear, RowParallelLinear
    return (ModuleSpec(module=OwnColumnParallelLinear, params={"how": how}),
            ModuleSpec(module=OwnRowParallelLinear, params={"how": how}))


def _local_layer_spec(config: RunConfig, groups: Groups, norm: type, how: Products) -> ModuleSpec:
    """One layer from torch, the norm and products given, and the kernels of `config`."""
    num_experts = config.model.num_experts
    column, row = _linear_layers(how)
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=column,
            core_attention=CausalAttention,
            linear_proj=row,
            q_layernorm=IdentityOp,
            k_layernorm=IdentityOp,
        ),
    )
    stored_names = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    if not num_experts:
        stored_names["pre_mlp_layernorm."] = "mlp.linear_fc1.layer_norm_"
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=_local_mlp_spec(config, groups, how),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=stored_names,
        ),
    )


def _local_mlp_spec(config: RunConfig, groups: Groups, how: Products) -> ModuleSpec:
    """A dense MLP, or experts computed one by one."""
    num_experts, (column, row) = config.model.num_experts, _linear_layers(how)
    if not num_experts:
        return ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row))
    spec = get_moe_module_spec(use_te=False, num_experts=num_experts, moe_grouped_gemm=False)
    # 0.16.1 asks its back end for the linear layers and then writes its own into local experts
    experts = spec.submodules.experts
    experts.submodules.linear_fc1, experts.submodules.linear_fc2 = column, row
    if config.kernels.swiglu:
        experts.module, experts.params = Experts, {"how": how}
    if config.kernels.permute:
        # 0.16.1's TransformerLayer passes groups to its own class of MoE layer only
        spec.module, spec.params = FusedMoELayer, {"pg_collection": groups}
    return spec
