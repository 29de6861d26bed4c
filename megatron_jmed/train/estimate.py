"""What will a run cost? Parameters, memory a rank, FLOPs, steps, epochs: arithmetic on the config, without torch.

Legend: H hidden, F expert width, E experts, K experts a token, V padded vocabulary, N heads, G query groups, D head size,
L layers. Bytes: bf16 weights 2 (fp32 4), fp32 gradients 4, and 12 for master and two moments (8 where weights are fp32), the
last sharded over the data-parallel ranks (dense) or the expert-data-parallel ranks (experts). A dense layer counts as one
expert that every token uses, without a router; a tied head is the embedding, of which a last stage of its own holds a copy.
Weights, gradients and optimizer are exact; activations come from `activations.py`; benchmarks/plan.md says how far off they are.
"""

import math
from dataclasses import dataclass, replace

from megatron_jmed.config import ModelConfig, RunConfig
from megatron_jmed.train.activations import head_bytes, layer_bytes
from megatron_jmed.train.machine import H100, Machine

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


def adapter_parameters(config: RunConfig, ranks_too: bool) -> tuple[int, int]:
    """Parameters of a layer's adapters (model/lora.py): (dense ones, those of experts), of the whole layer or of one rank.

    Beside a column-parallel layer B is split, beside a row-parallel one A; the other is whole on every rank.
    """
    model, parallel = config.model, config.parallel
    tp, etp, ep = (parallel.tp, parallel.etp, parallel.ep) if ranks_too else (1, 1, 1)
    hidden, heads = model.hidden_size, model.num_attention_heads * model.kv_channels
    qkv = heads + 2 * model.num_query_groups * model.kv_channels

    def mlp(split: int) -> int:
        return model.lora_rank * (hidden + 2 * model.ffn_hidden_size // split + model.ffn_hidden_size // split + hidden)

    dense = model.lora_rank * (hidden + qkv // tp + heads // tp + hidden) if "attention" in model.lora_targets else 0
    if "experts" not in model.lora_targets:
        return dense, 0
    return (dense, model.num_experts // ep * mlp(etp)) if model.num_experts else (dense + mlp(tp), 0)


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
    experts_on_rank: int  # of params_on_rank
    stage_params: int
    weights: float
    gradients: float
    optimizer: float
    activations: float  # kept between the passes, of all layers and micro-batches in flight
    head: float  # final norm, logits and loss at their worst moment; on the last stage
    rebuilt: float  # what a layer computes again before its backward pass
    dispatcher: float  # buffers of the token dispatcher of one layer
    layer_gradients: float  # of activations and of one weight, while a layer's backward pass runs
    reserve: float  # what the allocator and the libraries hold beside it

    @property
    def state(self) -> float:
        """What is there all the time, and exact: weights, gradients, optimizer."""
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> float:
        """The most that one step allocates; the head is done before a layer's backward pass, dispatching before its gradients."""
        return self.activations + max(self.head, self.rebuilt + max(self.dispatcher, self.layer_gradients))

    @property
    def total(self) -> float:
        return self.state + self.peak + self.reserve


def stage_memory(config: RunConfig, world_size: int, stage: int, machine: Machine = H100) -> StageMemory:
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
    trained, trained_experts, of_stage = dense, experts, 0
    if config.model.lora_rank:
        trained, trained_experts = (layers * number for number in adapter_parameters(config, ranks_too=True))
        dense, experts = dense + trained, experts + trained_experts
        of_stage = layers * sum(adapter_parameters(config, ranks_too=False))
    copies = world_size // (parallel.tp * parallel.pp)  # context-parallel ranks share the optimizer's state too
    expert_copies = world_size // (parallel.ep * parallel.etp * parallel.pp)
    is_fp32 = config.precision.compute == "fp32"
    # each matrix is kept in fp8 twice, by rows and by columns, from micro-batch to micro-batch
    keeps_fp8 = config.precision.compute == "fp8" and (config.precision.backend == "te" or config.kernels.fp8_weight_cache)
    attention_share = layers * params.attention_a_layer // parallel.tp
    mlp_share = experts or layers * params.expert // parallel.tp
    fp8_copies = 2 * (attention_share + mlp_share) if keeps_fp8 else 0
    layer = layer_bytes(config, config.budget.recompute, machine.imbalance)
    memory = StageMemory(
        stage=stage,
        params_on_rank=dense + experts,
        experts_on_rank=experts,
        stage_params=ends + norms + of_stage + layers * (
            params.attention_a_layer + params.num_experts * (params.expert + params.router_row)),
        weights=(4 if is_fp32 else 2) * (dense + experts) + fp8_copies,
        gradients=BYTES_GRADIENT * (trained + trained_experts),
        # fp32 weights are their own masters
        optimizer=(BYTES_OPTIMIZER - 4 * is_fp32) * (trained / copies + trained_experts / expert_copies),
        activations=layers_in_flight(config, world_size, stage) * layer.kept,
        head=head_bytes(config) if is_last else 0.0,
        rebuilt=layer.rebuilt,
        dispatcher=layer.dispatcher,
        layer_gradients=layer.gradients,
        reserve=0.0,
    )
    return replace(memory, reserve=machine.reserve_gib * GIB + machine.fragmentation * memory.peak)


def layers_in_flight(config: RunConfig, world_size: int, stage: int) -> float:
    """Layers whose activations a rank holds at the worst moment, counted once for each micro-batch.

    1F1B: stage s of pp has begun pp - s micro-batches before its first backward pass. Interleaved (Narayanan et al. 2021,
    arXiv 2104.04473): 2 (pp - s - 1) + (vpp - 1) pp + 1 chunks of a vpp-th of its layers. Never more than there are.
    """
    parallel, layers = config.parallel, config.model.num_layers / config.parallel.pp
    micro_batches = num_micro_batches(config, world_size)
    if parallel.pp == 1:
        return layers
    if parallel.vpp == 1:
        return layers * min(parallel.pp - stage, micro_batches)
    chunks = 2 * (parallel.pp - stage - 1) + (parallel.vpp - 1) * parallel.pp + 1
    return layers / parallel.vpp * min(chunks, micro_batches * parallel.vpp)


def num_micro_batches(config: RunConfig, world_size: int) -> int:
    """Micro-batches that a rank computes in one step."""
    parallel, budget = config.parallel, config.budget
    dp = world_size // (parallel.tp * parallel.pp * parallel.cp)
    return max(1, budget.global_batch_size // (budget.micro_batch_size * dp))


def worst_stage(config: RunConfig, world_size: int, machine: Machine = H100) -> StageMemory:
    """The stage that needs the most memory: the first, with the most micro-batches in flight, or the last, with the head."""
    stages = {0, config.parallel.pp - 1}
    return max((stage_memory(config, world_size, stage, machine) for stage in stages), key=lambda memory: memory.total)


def checkpoint_bytes(config: RunConfig) -> int:
    """One training checkpoint: weights, fp32 masters and two moments."""
    weights, total = 4 if config.precision.compute == "fp32" else 2, count_parameters(config.model, config.padded_vocab_size).total
    adapters = config.model.num_layers * sum(adapter_parameters(config, ranks_too=False)) if config.model.lora_rank else 0
    return weights * (total + adapters) + BYTES_OPTIMIZER * (adapters or total)


@dataclass(frozen=True)
class SourcePlan:
    """How often a source is read; `epochs` is None while its size is unknown."""

    name: str
    share: float
    tokens: float
    epochs: float | None


def source_plans(config: RunConfig, known_tokens: dict[str, float]) -> list[SourcePlan]:
    """Tokens and epochs by source; sizes from `known_tokens` (token sets on disk, `budget_tokens` of data/sources.py), else the
    recipe's declaration."""
    total_weight = math.fsum(source.weight for source in config.data.blend)
    plans = []
    for source in config.data.blend:
        share = source.weight / total_weight
        tokens = share * config.num_steps * config.tokens_per_step
        size = known_tokens.get(source.name, source.num_tokens)
        epochs = tokens / (size * (1 - config.data.valid_ratio)) if size else None
        plans.append(SourcePlan(source.name, share, tokens, epochs))
    return plans
