"""What will a run cost? Parameters, memory a rank, FLOPs, steps, epochs: arithmetic on the config, without torch.

Legend: H hidden, F expert width, E experts, K experts a token, V padded vocabulary, N heads, G query groups, D head size,
L layers. Bytes: bf16 weights 2 (fp32 4), fp32 gradients 4, and 12 for master and two moments, the last sharded over the
data-parallel ranks (dense) or the expert-data-parallel ranks (experts). A dense layer counts as one expert that every
token uses, without a router; a tied head is the embedding, of which a last stage of its own holds a copy. Activations
follow Korthikanti et al. 2022 (arXiv 2205.05198) with the MoE terms of one layer written out below; they are an estimate,
the rest is exact.
"""

import math
from dataclasses import dataclass

from megatron_jmed.config import ModelConfig, RunConfig

GIB = 2**30
BYTES_GRADIENT = 4
BYTES_OPTIMIZER = 12


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters of the whole model."""

    embedding: int
    head: int
    attention_a_layer: int
    expert: int
    router_row: int
    norms_a_layer: int
    num_layers: int
    num_experts: int
    topk: int

    @property
    def final_norm(self) -> int:
        return self.norms_a_layer // 2

    @property
    def total(self) -> int:
        return self._with(self.num_experts)

    @property
    def active(self) -> int:
        """Those that one token uses: K of the E experts and, as in the published counts, K rows of the router."""
        return self._with(self.topk)

    def _with(self, experts: int) -> int:
        layer = self.attention_a_layer + self.norms_a_layer + experts * (self.expert + self.router_row)
        return self.embedding + self.head + self.final_norm + self.num_layers * layer


def count_parameters(model: ModelConfig, vocab_size: int | None = None) -> Parameters:
    """The parameters of `model` with `vocab_size` rows in embedding and head (default: unpadded)."""
    vocab = vocab_size or model.vocab_size
    hidden = model.hidden_size
    qkv_rows = (model.num_attention_heads + 2 * model.num_query_groups) * model.kv_channels
    return Parameters(
        embedding=vocab * hidden,
        head=0 if model.tied_embeddings else vocab * hidden,
        attention_a_layer=qkv_rows * hidden + hidden * model.num_attention_heads * model.kv_channels,
        expert=3 * hidden * model.ffn_hidden_size,
        router_row=hidden if model.num_experts else 0,
        norms_a_layer=2 * hidden,
        num_layers=model.num_layers,
        num_experts=model.num_experts or 1,
        topk=model.router_topk or 1,
    )


def flops_a_token(config: RunConfig) -> float:
    """Forward and backward FLOPs a token: 6 for each active weight in a matrix product, and causal attention.

    The embedding is a look-up and costs none (a tied one is multiplied as the head); attention is 6 L S N D (half of the
    full square: it is causal).
    """
    model, params = config.model, count_parameters(config.model, config.padded_vocab_size)
    looked_up = 0 if model.tied_embeddings else params.embedding
    matrix_weights = params.active - looked_up - params.final_norm - params.num_layers * params.norms_a_layer
    matrix_weights += params.num_layers * (params.num_experts - params.topk) * params.router_row  # all rows score a token
    attention = 6 * model.num_layers * config.budget.seq_length * model.num_attention_heads * model.kv_channels
    return 6.0 * matrix_weights + attention


@dataclass(frozen=True)
class StageMemory:
    """Bytes on one rank of a pipeline stage; `stage_params` counts no copies, so that the stages add up to the model."""

    stage: int
    params_on_rank: int
    stage_params: int
    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def stage_memory(config: RunConfig, world_size: int, stage: int) -> StageMemory:
    """The memory of one rank of pipeline stage `stage` among `world_size` ranks."""
    parallel, params = config.parallel, count_parameters(config.model, config.padded_vocab_size)
    layers = config.model.num_layers // parallel.pp
    is_first, is_last = stage == 0, stage == parallel.pp - 1
    ends = is_first * params.embedding + is_last * params.head
    norms = layers * params.norms_a_layer + is_last * params.final_norm
    tied_copy = params.embedding if config.model.tied_embeddings and is_last and not is_first else 0
    replicated = norms + layers * params.num_experts * params.router_row
    dense = (ends + tied_copy + layers * params.attention_a_layer) // parallel.tp + replicated
    if config.model.num_experts:
        experts = layers * params.expert * params.num_experts // (parallel.ep * parallel.etp)
    else:
        dense, experts = dense + layers * params.expert // parallel.tp, 0
    dp = world_size // (parallel.tp * parallel.pp * parallel.cp)
    expert_dp = world_size // (parallel.ep * parallel.etp * parallel.pp)
    bytes_weight = 4 if config.precision.compute == "fp32" else 2
    return StageMemory(
        stage=stage,
        params_on_rank=dense + experts,
        stage_params=ends + norms + layers * (params.attention_a_layer + params.num_experts * (params.expert + params.router_row)),
        weights=bytes_weight * (dense + experts),
        gradients=BYTES_GRADIENT * (dense + experts),
        optimizer=BYTES_OPTIMIZER * (dense / dp + experts / expert_dp),
        activations=_activation_bytes(config, stage, layers),
    )


def _activation_bytes(config: RunConfig, stage: int, layers: int) -> float:
    """Activations kept on a rank, with balanced routing: what a layer keeps, times layers, times micro-batches in flight."""
    model, parallel, budget = config.model, config.parallel, config.budget
    bytes_value = 4 if config.precision.compute == "fp32" else 2
    tokens = budget.micro_batch_size * budget.seq_length / parallel.cp
    in_flight = min(parallel.pp - stage, budget.global_batch_size // budget.micro_batch_size)
    hidden = tokens * model.hidden_size / (parallel.tp if parallel.sequence_parallel else 1)
    if budget.recompute == "full":
        kept = layers * hidden * bytes_value
    else:
        heads = tokens * model.kv_channels / parallel.tp
        attention = heads * (2 * model.num_attention_heads + 2 * model.num_query_groups)
        norms = 4 if budget.recompute == "selective" else 6
        kept = layers * (norms * hidden + attention + _mlp_values(config, tokens)) * bytes_value
    logits = 0.0
    if stage == parallel.pp - 1:
        # bf16 logits, their fp32 copy and its gradient inside the cross-entropy
        logits = tokens * config.padded_vocab_size / parallel.tp * (bytes_value + 8)
    return kept * in_flight + logits


def _mlp_values(config: RunConfig, tokens: float) -> float:
    """Numbers that the experts, or the MLP, of one layer keep on a rank for `tokens` tokens, beside the layer's own input."""
    model, parallel, is_selective = config.model, config.parallel, config.budget.recompute == "selective"
    # gate and up projection and their product
    if not model.num_experts:
        is_recomputed = is_selective and config.precision.backend == "te"
        return 0.0 if is_recomputed else tokens * 3 * model.ffn_hidden_size / parallel.tp
    routed_tokens = tokens * model.router_topk / (parallel.tp if parallel.sequence_parallel else 1)
    # with dispatched input and expert output; selective drops the product
    return routed_tokens * (2 * model.hidden_size + (2 if is_selective else 3) * model.ffn_hidden_size)


def checkpoint_bytes(config: RunConfig) -> int:
    """One training checkpoint: weights, fp32 masters and two moments."""
    weights = 4 if config.precision.compute == "fp32" else 2
    return (weights + BYTES_OPTIMIZER) * count_parameters(config.model, config.padded_vocab_size).total


@dataclass(frozen=True)
class SourcePlan:
    """How often a source is read; `epochs` is None while its size is unknown."""

    name: str
    share: float
    tokens: float
    epochs: float | None


def source_plans(config: RunConfig, known_tokens: dict[str, int]) -> list[SourcePlan]:
    """Tokens and epochs by source; sizes from `known_tokens` (token sets on disk), else the recipe's declaration."""
    total_weight = math.fsum(source.weight for source in config.data.blend)
    plans = []
    for source in config.data.blend:
        share = source.weight / total_weight
        tokens = share * config.num_steps * config.tokens_per_step
        size = known_tokens.get(source.name, source.num_tokens)
        epochs = tokens / (size * (1 - config.data.valid_ratio)) if size else None
        plans.append(SourcePlan(source.name, share, tokens, epochs))
    return plans
