"""How long does one training step take, and where does the time go? A cost model on the config, without torch.

    step = micro-batches x (slowest stage: compute + recompute + TP + EP + CP + PP traffic + launches)
         + bubble (pp - 1) / vpp x (one micro-batch of a stage's layers)          [Narayanan et al. 2021, arXiv 2104.04473]
         + data-parallel traffic that nothing hides + optimizer

* Compute: FLOPs of the matrix products at `matmul_efficiency` of the peak (fp8: times `fp8_speedup`), the causal attention
  core at `attention_efficiency`, and the bytes of norms, permutations, activation functions at the memory's bandwidth; a
  backward pass is twice a forward pass. The experts of the slowest rank get `imbalance` times the mean (ep > 1).
* TP with sequence parallelism: an all-gather before and a reduce-scatter after attention (and a dense MLP), one more
  all-gather in the backward pass. EP: dispatch and combine, forward and backward; ETP gathers and sums the same tokens. All of
  it is exposed. CP: keys and values go round a ring; only what outlasts the attention core counts. PP: one hidden state a
  boundary and direction, exposed. Every exchange costs `latency_seconds` besides its bytes.
* DP: gradients reduced in fp32 and weights gathered, over the copies of dense and of expert parameters; `overlap_*` hides them
  behind one micro-batch. A group with g members on a node reaches g times one port's bandwidth, at most NVLink's.
* Recompute: `full` is one more forward pass with its traffic; `selective` one more pass over what it drops.

Left out: products getting slower as tp and etp slice them, stragglers, the data loader, saving, validation. Good for ranking
layouts; benchmarks/plan.md says how far it is from published speeds.
"""

from dataclasses import dataclass, fields

from megatron_jmed.config import RunConfig
from megatron_jmed.train.estimate import StageMemory, count_parameters, flops_a_token, num_micro_batches, stage_memory
from megatron_jmed.train.machine import H100, Machine


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, by cause."""

    compute: float
    recompute: float
    launches: float
    bubble: float
    tensor: float
    expert: float
    context: float
    pipeline: float
    data: float
    optimizer: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    def differences(self, other: "StepTime") -> list[tuple[str, float]]:
        """What `self` takes longer than `other`, the most first."""
        found = [(field.name, getattr(self, field.name) - getattr(other, field.name)) for field in fields(self)]
        return sorted(found, key=lambda item: -item[1])


def step_time(config: RunConfig, world_size: int, machine: Machine = H100) -> StepTime:
    """The seconds of one step of `config` on `world_size` ranks."""
    parallel = config.parallel
    layer, memory = _Layer(config, machine), stage_memory(config, world_size, 0, machine)
    passes, layers = num_micro_batches(config, world_size), config.model.num_layers / parallel.pp
    compute, launches = 3 * layer.compute(), 3 * machine.layer_overhead_seconds
    tensor, expert, context = layer.tensor_parallel(), 2 * layer.expert_parallel(), layer.context_parallel()
    recompute = layer.recompute()
    of_a_layer = compute + launches + sum(tensor) + expert + sum(context) + recompute
    pipeline = 2 * parallel.vpp * layer.hop() if parallel.pp > 1 else 0.0  # forward and backward; sent while receiving
    # the loss makes the last stage the slowest; the others wait for it
    head = 3 * layer.head()
    bubble = (parallel.pp - 1) / parallel.vpp * layers * of_a_layer
    return StepTime(
        compute=passes * (layers * compute + head),
        recompute=passes * layers * recompute,
        launches=passes * layers * launches,
        bubble=bubble,
        tensor=passes * layers * sum(tensor),
        expert=passes * layers * expert,
        context=passes * layers * sum(context),
        pipeline=passes * pipeline,
        data=_data_parallel(config, world_size, machine, memory, hidden_behind=layers * of_a_layer / 3),
        optimizer=_optimizer(memory, machine),
    )


def model_flops_a_second(config: RunConfig, world_size: int, seconds: float) -> float:
    """Model FLOPs a second and rank (recomputation does not count) of a step that takes `seconds`."""
    return flops_a_token(config) * config.tokens_per_step / world_size / seconds


class _Layer:
    """Seconds of one layer for one micro-batch on one rank; forward alone unless said otherwise."""

    def __init__(self, config: RunConfig, machine: Machine):
        self.config, self.machine, self.parallel, self.model = config, machine, config.parallel, config.model
        self.params = count_parameters(config.model, config.padded_vocab_size)
        self.value = 4 if config.precision.compute == "fp32" else 2
        self.tokens = config.budget.micro_batch_size * config.budget.seq_length / self.parallel.cp
        self.own_tokens = self.tokens / (self.parallel.tp if self.parallel.sequence_parallel else 1)
        # what the slowest rank's experts get; with every expert on every rank, no rank is slower than another
        imbalance = machine.imbalance if self.parallel.ep > 1 else 1.0
        self.routed = self.tokens / self.parallel.tp * self.model.router_topk * imbalance
        self.matmul_flops = machine.bf16_flops * machine.matmul_efficiency
        if config.precision.compute == "fp8":
            self.matmul_flops *= machine.fp8_speedup

    def compute(self) -> float:
        flops = 2 * self.params.attention_a_layer * self.tokens / self.parallel.tp
        flops += 2 * self.params.expert * self._expert_tokens()
        return flops / self.matmul_flops + self.attention_core() + self.moving()

    def attention_core(self) -> float:
        width = self.model.num_attention_heads * self.model.kv_channels
        flops = 2 * self.config.budget.seq_length * width * self.tokens / self.parallel.tp
        return flops / (self.machine.bf16_flops * self.machine.attention_efficiency)

    def moving(self) -> float:
        """Norms, residuals and rotations; activation functions; permutations there and back: bytes read and written."""
        model, parallel = self.model, self.parallel
        values = 10 * self.own_tokens * model.hidden_size
        values += 4 * self.tokens / parallel.tp * (model.num_attention_heads + model.num_query_groups) * model.kv_channels
        values += self._activation_values() + 8 * self.routed * model.hidden_size
        return self.value * values / self.machine.memory_bandwidth

    def head(self) -> float:
        """Output layer, and the loss over it in fp32."""
        logits = self.tokens * self.config.padded_vocab_size / self.parallel.tp
        return 2 * logits * self.model.hidden_size / self.matmul_flops + 12 * logits / self.machine.memory_bandwidth

    def recompute(self) -> float:
        match self.config.budget.recompute:
            case "none":
                return 0.0
            case "full":
                tensor, context = self.tensor_parallel()[0], self.context_parallel()[0]
                return self.compute() + self.machine.layer_overhead_seconds + tensor + self.expert_parallel() + context
        if self.config.precision.backend != "te":
            return self.attention_core()
        if not self.model.num_experts:
            return 2 * self.params.expert * self._expert_tokens() / self.matmul_flops
        values = self._activation_values() + 2 * self.own_tokens * self.model.hidden_size
        return self.value * values / self.machine.memory_bandwidth

    def tensor_parallel(self) -> tuple[float, float]:
        """Forward and backward: each of attention and dense MLP gathers and scatters once, and gathers again for the weights."""
        tp = self.parallel.tp
        if tp == 1:
            return 0.0, 0.0
        once = self.value * self.tokens * self.model.hidden_size * (tp - 1) / tp / self._bandwidth(tp, 1)
        once += self.machine.latency_seconds
        parts = 1 if self.model.num_experts else 2
        return 2 * parts * once, (3 if self.parallel.sequence_parallel else 2) * parts * once

    def expert_parallel(self) -> float:
        """Dispatch and combine: the same bytes forward and backward."""
        ep, etp, hidden = self.parallel.ep, self.parallel.etp, self.model.hidden_size
        if not self.model.num_experts or ep * etp == 1:
            return 0.0
        sent = self.value * self.routed * hidden
        latency = self.machine.latency_seconds
        if self.parallel.dispatcher == "allgather":  # every token to every rank of the group, and the sums back
            return 2 * self.value * self.own_tokens * hidden * (ep * etp - 1) / self._bandwidth(ep * etp, 1) + 2 * latency
        inside = min(1.0, self.machine.gpus_per_node / (ep * etp))  # share of the partners that are on the same node
        exchange = sent * (ep - 1) / ep * (inside / self.machine.node_bandwidth + (1 - inside) / self.machine.network_bandwidth)
        gather = sent * (etp - 1) / self._bandwidth(etp, 1)
        latency *= 2 * (ep > 1) + 2 * (etp > 1)
        return latency + 2 * exchange + gather + gather * 4 / self.value  # sums over etp ranks are sent in fp32

    def context_parallel(self) -> tuple[float, float]:
        """Forward and backward: what the ring of keys and values (backward: and their gradients) takes beyond the attention."""
        cp, tp = self.parallel.cp, self.parallel.tp
        keys_values = 2 * self.value * self.tokens * self.model.num_query_groups * self.model.kv_channels / tp
        ring = (cp - 1) * keys_values / self._bandwidth(tp * cp, tp)
        core, latency = self.attention_core(), (cp - 1) * self.machine.latency_seconds
        return latency + max(0.0, ring - core), 2 * latency + max(0.0, 2 * ring - 2 * core)

    def hop(self) -> float:
        """A hidden state from one stage to the next."""
        return self.machine.latency_seconds + self.value * self.own_tokens * self.model.hidden_size / self.machine.network_bandwidth

    def _expert_tokens(self) -> float:
        """Tokens x experts that this rank computes, in whole experts (dense: its share of the MLP)."""
        return self.routed if self.model.num_experts else self.tokens / self.parallel.tp

    def _activation_values(self) -> float:
        return 3 * self._expert_tokens() * self.model.ffn_hidden_size

    def _bandwidth(self, span: int, stride: int) -> float:
        return group_bandwidth(self.machine, span, stride)


def group_bandwidth(machine: Machine, span: int, stride: int) -> float:
    """Bytes a second and rank in a group that reaches over `span` consecutive ranks and takes every `stride`-th of them."""
    if span <= machine.gpus_per_node:
        return machine.node_bandwidth
    return min(machine.node_bandwidth, machine.network_bandwidth * max(1.0, machine.gpus_per_node / stride))


def _data_parallel(config: RunConfig, world_size: int, machine: Machine, memory: StageMemory, hidden_behind: float) -> float:
    """Seconds of gradient and weight traffic that one micro-batch (`hidden_behind` seconds a forward pass) does not hide."""
    parallel = config.parallel
    value = 4 if config.precision.compute == "fp32" else 2
    model_ranks, expert_ranks = parallel.tp * parallel.pp, parallel.ep * parallel.etp * parallel.pp
    span = world_size // parallel.pp
    seconds = 0.0
    for params, copies, stride in ((memory.params_on_rank - memory.experts_on_rank, world_size // model_ranks, parallel.tp),
                                   (memory.experts_on_rank, world_size // expert_ranks, parallel.ep * parallel.etp)):
        seconds += params * (copies - 1) / copies / group_bandwidth(machine, span, stride)
    reduce = max(0.0, 4 * seconds - (2 * hidden_behind if parallel.overlap_grad_reduce else 0.0))
    gather = max(0.0, value * seconds - (hidden_behind if parallel.overlap_param_gather else 0.0))
    return reduce + gather


def _optimizer(memory: StageMemory, machine: Machine) -> float:
    """Master weights and moments read and written, gradients cleared and measured: bytes at the memory's bandwidth."""
    return (2 * memory.optimizer + 2 * memory.gradients) / machine.memory_bandwidth
