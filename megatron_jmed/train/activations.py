"""How many bytes does one layer keep for the backward pass, and how many more does it need while it runs?

Legend: T tokens of a micro-batch on a rank (after context parallelism), t the same under sequence parallelism, H hidden,
F expert width, E experts, K experts a token, N heads, G query groups, D head size, V padded vocabulary; b bytes of a value.
Two layers are described, because their kernels keep different tensors:

| kept, in values        | te (Transformer Engine's fused kernels)     | local (torch's own operations; benchmarks/plan.md)      |
|------------------------|---------------------------------------------|---------------------------------------------------------|
| each of the two norms  | input, output                               | input and normalised input in fp32, output              |
| attention              | q, k, v, output                             | the same, and q and k once more inside the whole qkv    |
| routed token, K each   | H dispatched, 2F gate and up, F product     | H, 2F, and 4F: silu, up + 0, product, weighted product  |
| dense MLP              | 2F, F                                       | 2F, and 3F: silu, up + 0, product                       |

The back end `jmed` is the local column, but for what `kernels.*` fuses: a norm keeps its input and output, an expert H and 2F, the
loss no fp32.

`selective` drops F and the MLP norm's output (te), or the softmax sums (local: torch's attention keeps no matrix, so there
is nearly nothing to drop); `full` keeps the layer's input alone and rebuilds a layer at a time. The local column was counted
from live autograd graphs; the te column follows from the sources of Megatron-Core 0.16.1 and Transformer Engine and was not
measured. Under context parallelism the local attention gathers all keys and values and keeps them, with a mask; the buffers of
Transformer Engine's ring are left out.
"""

from dataclasses import dataclass

from megatron_jmed.config import RunConfig


@dataclass(frozen=True)
class LayerBytes:
    """Bytes of one layer for one micro-batch on one rank."""

    kept: float  # from the forward to the backward pass
    rebuilt: float  # by the backward pass before it begins: what recomputation saved
    dispatcher: float  # buffers of the token dispatcher while a forward pass runs
    gradients: float  # of activations and of one weight, while a backward pass runs


def layer_bytes(config: RunConfig, recompute: str, imbalance: float) -> LayerBytes:
    """One layer under `recompute`, on a rank whose experts get `imbalance` times the mean number of tokens."""
    sizes = _Sizes(config, imbalance)
    everything = sizes.norms() + sizes.attention() + sizes.mlp()
    kept, rebuilt = {
        "none": (everything, 0.0),
        "selective": (everything - sizes.dropped(), sizes.dropped()),
        "full": (sizes.hidden, everything),
    }[recompute]
    return LayerBytes(kept, rebuilt, sizes.dispatcher(), sizes.gradients())


def head_bytes(config: RunConfig) -> float:
    """The most bytes that final norm, head, loss and their gradients hold at once on a rank of the last stage."""
    sizes = _Sizes(config, 1.0)
    logits = sizes.tokens * config.padded_vocab_size / config.parallel.tp
    if config.kernels.cross_entropy:  # nothing in fp32; in chunks, the logits of one at a time
        logits *= min(1.0, config.kernels.head_chunk_tokens / sizes.tokens) if config.kernels.head_chunk_tokens else 1.0
        return sizes.norms() / 2 + sizes.value * logits + sizes.hidden + sizes.head_weight()
    weight_gradient = sizes.head_weight()
    # the loss keeps exp(logits) in fp32, beside the bf16 logits or their gradient; then the head's own gradients
    loss = logits * (4 if sizes.value == 4 else 4 + sizes.value)
    return sizes.norms() / 2 + max(loss, logits * sizes.value + weight_gradient + sizes.hidden)


def kept_head_bytes(config: RunConfig) -> float:
    """What autograd keeps of final norm, head and loss between the passes: their inputs, and exp(logits) in fp32; under
    `kernels.cross_entropy` the logits as they are, or in chunks none, and 20 bytes a token."""
    sizes = _Sizes(config, 1.0)
    if config.kernels.cross_entropy:
        logits = 0.0 if config.kernels.head_chunk_tokens else sizes.value * config.padded_vocab_size / config.parallel.tp
        return sizes.norms() / 2 + sizes.tokens * (logits + 20)
    return sizes.norms() / 2 + 4.0 * sizes.tokens * config.padded_vocab_size / config.parallel.tp


class _Sizes:
    """Byte sizes of the tensors of one layer on one rank."""

    def __init__(self, config: RunConfig, imbalance: float):
        model, parallel = config.model, config.parallel
        self.config, self.model, self.parallel = config, model, parallel
        self.is_te = config.precision.backend == "te"
        self.is_norm_fused = self.is_te or config.kernels.rmsnorm
        self.is_swiglu_fused = self.is_te or config.kernels.swiglu
        self.value = 4 if config.precision.compute == "fp32" else 2
        self.tokens = config.budget.micro_batch_size * config.budget.seq_length / parallel.cp
        self.own_tokens = self.tokens / (parallel.tp if parallel.sequence_parallel else 1)
        self.hidden = self.value * self.own_tokens * model.hidden_size
        # the tokens that a rank sends; those its experts get, of which each of the etp ranks sees all, with F / etp of the width
        self.sent = self.own_tokens * model.router_topk
        # with every expert on every rank, no rank is busier than another
        self.received = self.sent * parallel.etp * (imbalance if parallel.ep > 1 else 1.0)
        self.width = model.ffn_hidden_size / (parallel.etp if model.num_experts else parallel.tp)

    def norms(self) -> float:
        return (2 * self.hidden * (2 if self.is_norm_fused else 1 + 8 / self.value) +
                (0 if self.is_te else 8 * self.own_tokens))

    def head_weight(self) -> float:
        return self.value * self.config.padded_vocab_size * self.model.hidden_size / self.parallel.tp

    def attention(self) -> float:
        model, heads = self.model, self.value * self.tokens * self.model.kv_channels / self.parallel.tp
        sums = 4 * self.tokens * model.num_attention_heads / self.parallel.tp
        if self.is_te:
            return heads * 2 * (model.num_attention_heads + model.num_query_groups) + sums
        seq_length = self.tokens / self.config.budget.micro_batch_size
        rotary = 4 * self.value * seq_length * model.kv_channels
        if self.parallel.cp > 1:  # keys and values of the whole sequence are gathered and kept, and a mask over it
            gathered = heads * 2 * (model.num_attention_heads + self.parallel.cp * model.num_query_groups)
            return gathered + sums + rotary + self.value * seq_length * self.config.budget.seq_length
        return heads * 3 * (model.num_attention_heads + model.num_query_groups) + sums + rotary

    def mlp(self) -> float:
        if not self.model.num_experts:
            return self.value * self.tokens * self.width * (3 if self.is_te else 5)
        products = 3 if self.is_te else 2 if self.is_swiglu_fused else 6
        experts = self.value * self.received * (self.model.hidden_size + self.width * products)
        # probabilities, choices and their order
        return experts + self.own_tokens * (9 * self.model.num_experts + 28 * self.model.router_topk)

    def dropped(self) -> float:
        """What `selective` does not keep."""
        if not self.is_te:
            return 4 * self.tokens * self.model.num_attention_heads / self.parallel.tp
        if not self.model.num_experts:
            return self.mlp()
        return self.hidden + self.value * self.received * self.width

    def dispatcher(self) -> float:
        """Permuted and sent; computed by the experts, sorted again and sent back (over etp ranks summed in fp32)."""
        if not self.model.num_experts:
            return self.gathered()
        summed = 4 * (self.received + self.sent) if self.parallel.etp > 1 else 0
        return self.gathered() + self.model.hidden_size * (self.value * (self.sent + 2 * self.received) + summed)

    def gathered(self) -> float:
        """The whole sequence, which sequence parallelism collects for one product and does not keep."""
        return self.value * self.tokens * self.model.hidden_size if self.parallel.sequence_parallel else 0.0

    def gradients(self) -> float:
        """Beside what the forward pass kept: the worst of the backward passes of fc2, the activation and fc1, which come in
        this order; each frees what it read."""
        model, is_moe = self.model, self.model.num_experts > 0
        local_experts = max(1, model.num_experts // self.parallel.ep)
        # the local layer computes one expert after the other, and weighs their products in fp32
        rows = (self.received / (1 if self.is_te else local_experts)) if is_moe else self.tokens
        inner, outer = rows * self.width, self.received * model.hidden_size if is_moe else 0.0
        weight = model.hidden_size * self.width * (local_experts if self.is_te and is_moe else 1)
        weighing = 8 * inner if is_moe and not self.is_swiglu_fused and self.value == 2 else 0.0
        freed = 1 if self.is_swiglu_fused else 4 if is_moe else 3  # the products of the table above
        worst = max(self.value * (inner + weight), 2 * self.value * inner + weighing,
                    self.value * (2 * weight + outer - freed * inner))
        # the gradient of what the experts returned is there before and after it is sorted and exchanged
        return self.gathered() + 2 * self.hidden + 2 * self.value * outer + worst
