"""Are two models the same, tensor by tensor, and if not, what went wrong?

Both sides are streams of slices; each pair is compared under its Hugging Face names. The usual mistakes of converters
are told apart: experts or layers in another order, gate and up exchanged, rows of q or k permuted for interleaved rotary
embeddings, another rotary base or norm epsilon, another routing. Logits are compared apart (compare_logits), because
two models with equal tensors may still compute differently.
"""

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from megatron_jmed.convert.names import Row, rows
from megatron_jmed.convert.source import Weights
from megatron_jmed.convert.stored import checksum
from megatron_jmed.errors import CheckpointError, some_of

# Words of ModelConfig that say how a checkpoint is padded or trained, not what it computes.
_NOT_COMPUTED = {"vocab_divisor", "init_method_std", "aux_loss_coeff", "z_loss_coeff", "mcore", "max_position_embeddings"}


@dataclass(frozen=True)
class TensorDifference:
    """One tensor under its Hugging Face name. `largest`: of the absolute differences, in fp32."""

    name: str
    is_equal: bool
    largest: float
    checksums: tuple[str, str]


@dataclass
class Comparison:
    """All tensors of two models, the words in which their configs differ, and what the differences look like."""

    names: tuple[str, str]
    words: list[str]
    dtypes: tuple[torch.dtype, torch.dtype]
    tensors: list[TensorDifference]
    diagnoses: list[str] = field(default_factory=list)

    @property
    def different(self) -> list[TensorDifference]:
        return [tensor for tensor in self.tensors if not tensor.is_equal]

    @property
    def is_equal(self) -> bool:
        return not self.words and not self.different and self.dtypes[0] == self.dtypes[1]

    @property
    def verdict(self) -> str:
        if self.is_equal:
            return f"EQUAL: {len(self.tensors)} tensors are equal to the bit, and the configs compute alike"
        reasons = list(self.words)
        if self.dtypes[0] != self.dtypes[1]:
            reasons.append(f"number formats {self.dtypes[0]} and {self.dtypes[1]}")
        if self.different:
            largest = max(tensor.largest for tensor in self.different)
            reasons.append(f"{len(self.different)} of {len(self.tensors)} tensors differ, by at most {largest:.3g}")
        return "DIFFERENT: " + "; ".join(reasons + self.diagnoses)

    def lines(self, most: int = 8) -> list[str]:
        """For a reader: the tensors that differ most, and the verdict last."""
        worst = sorted(self.different, key=lambda tensor: -tensor.largest)
        listed = [f"{tensor.name}: differs by at most {tensor.largest:.3g}" for tensor in worst[:most]]
        more = [f"... and {len(worst) - most} more tensors differ"] if len(worst) > most else []
        return [f"{self.names[0]} against {self.names[1]}", *listed, *more, self.verdict]


def compare(a: Weights, b: Weights, workers: int = 1) -> Comparison:
    """Every tensor of `a` against `b`'s; memory: two slices a worker and side.

    CheckpointError if their shapes differ, with the words of the configs that make them so.
    """
    words = [f"{word} is {value!r} and {getattr(b.model, word)!r}" for word, value in a.model.model_dump().items()
             if word not in _NOT_COMPUTED and value != getattr(b.model, word)]
    if _shapes(a) != _shapes(b):
        raise CheckpointError(f"{a.name} and {b.name} are models of other shapes: {'; '.join(words)}")
    slices = [(row, index, names) for row in rows(a.model) for index, names in row.slices(a.model)]
    with ThreadPoolExecutor(workers) as pool:
        jobs = pool.map(lambda item: list(_compare_slice(a, b, *item)), slices)
        tensors = [one for some in tqdm(jobs, total=len(slices), desc="compare", unit="slice", disable=None) for one in some]
    comparison = Comparison((a.name, b.name), words, (a.dtype, b.dtype), tensors)
    comparison.diagnoses = _diagnoses(a, b, comparison)
    return comparison


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {row.key: row.shape(weights.model, weights.model.vocab_size) for row in rows(weights.model)}


def _compare_slice(a: Weights, b: Weights, row: Row, index: tuple[int, ...],
                   names: tuple[str, ...]) -> Iterator[TensorDifference]:
    of_a, of_b = (row.split(weights.get(row, index), weights.model) for weights in (a, b))
    for name, ours, theirs in zip(names, of_a, of_b, strict=True):
        sums = checksum(ours), checksum(theirs)
        if sums[0] == sums[1]:
            yield TensorDifference(name, True, 0.0, sums)
        else:
            yield TensorDifference(name, False, (ours.float() - theirs.float()).abs().max().item(), sums)


def _diagnoses(a: Weights, b: Weights, comparison: Comparison) -> list[str]:
    """What the differing tensors have in common, where one side holds the same tensors in other places."""
    different = {tensor.name for tensor in comparison.different}
    ours = {tensor.checksums[0]: tensor.name for tensor in comparison.tensors if tensor.name in different}
    moved = {tensor.name: ours[tensor.checksums[1]] for tensor in comparison.different if tensor.checksums[1] in ours}
    found = _moved_experts(moved) + _moved_layers(moved) + _exchanged_gate_and_up(moved)
    return found + _permuted_heads(a, b, different) + _not_a_number(comparison)


def _moved_experts(moved: dict[str, str]) -> list[str]:
    by_layer: dict[str, dict[int, int]] = defaultdict(dict)
    for name, origin in moved.items():
        (layer, expert, part), (from_layer, from_expert, from_part) = _expert_of(name), _expert_of(origin)
        if layer and layer == from_layer and part == from_part:
            by_layer[layer][expert] = from_expert
    orders = [f"layer {layer}: " + ", ".join(f"expert {expert} is {origin} of the first"
                                             for expert, origin in sorted(order.items())) for layer, order in by_layer.items()]
    return [f"experts are in another order ({some_of(orders, 3)})"] if orders else []


def _moved_layers(moved: dict[str, str]) -> list[str]:
    pairs = {(int(name.split(".")[2]), int(origin.split(".")[2])) for name, origin in moved.items()
             if name.startswith("model.layers.") and origin.startswith("model.layers.")
             and name.split(".")[3:] == origin.split(".")[3:] and name != origin}
    text = [f"layer {layer} is {origin} of the first" for layer, origin in sorted(pairs) if layer != origin]
    return [f"layers are in another order ({some_of(text, 3)})"] if text else []


def _exchanged_gate_and_up(moved: dict[str, str]) -> list[str]:
    other = {"w1": "w3", "w3": "w1", "gate_proj": "up_proj", "up_proj": "gate_proj"}
    count = sum(name != origin and origin == ".".join(other.get(word, word) for word in name.split("."))
                for name, origin in moved.items())
    return [f"gate and up are exchanged ({count} tensors)"] if count else []


def _permuted_heads(a: Weights, b: Weights, different: set[str]) -> list[str]:
    """Whether q or k rows of `b` are `a`'s in the order of interleaved rotary embeddings, or the other way round."""
    (row,) = (row for row in rows(a.model) if row.key.endswith("linear_qkv.weight"))
    size = a.model.kv_channels
    interleaved = torch.arange(size).view(2, size // 2).t().flatten()
    for index, names in row.slices(a.model):
        if not different & set(names[:2]):
            continue
        of_a, of_b = (row.split(weights.get(row, index), weights.model)[:2] for weights in (a, b))
        for ours, theirs in zip(of_a, of_b, strict=True):
            ours, theirs = ours.view(-1, size, ours.size(1)), theirs.view(-1, size, theirs.size(1))
            is_permuted = torch.equal(ours[:, interleaved], theirs) or torch.equal(ours, theirs[:, interleaved])
            if is_permuted and not torch.equal(ours, theirs):
                return ["rows of q and k are permuted as for interleaved rotary embeddings"]
        return []
    return []


def _not_a_number(comparison: Comparison) -> list[str]:
    names = [tensor.name for tensor in comparison.different if tensor.largest != tensor.largest]
    return [f"{len(names)} tensors hold values that are no numbers, such as {names[0]}"] if names else []


def _expert_of(name: str) -> tuple[str, int, str]:
    """(layer, expert, part) of an expert's tensor; ("", 0, "") of any other."""
    words = name.split(".")
    return (words[2], int(words[5]), words[6]) if "experts" in words else ("", 0, "")


@dataclass(frozen=True)
class LogitsComparison:
    """Two models' logits on the same tokens. Losses are means over tokens in nats; kl is KL(first || second) a token.

    Relative: to the first's largest logit. Of a mixture in bf16 some tokens lie far apart (transformers' own bf16 and fp32
    do too): where two experts nearly tie, a rounding chooses the other. The median token is not moved by them.
    """

    num_tokens: int
    largest: float
    largest_relative: float
    median_relative: float
    top1_agreement: float
    topk_agreement: float
    mean_kl: float
    max_kl: float
    losses: tuple[float, float]
    largest_loss_difference: float

    def lines(self) -> list[str]:
        return [f"logits of {self.num_tokens} tokens: largest difference {self.largest:.3g} ({self.largest_relative:.2g} of the "
                f"largest logit), of the median token {self.median_relative:.2g}; same first choice {self.top1_agreement:.2%}, "
                f"same top 5 {self.topk_agreement:.2%}",
                f"KL mean {self.mean_kl:.3g}, largest {self.max_kl:.3g} nats; loss {self.losses[0]:.6f} and {self.losses[1]:.6f} "
                f"nats a token, largest difference {self.largest_loss_difference:.3g}"]


def compare_logits(a_BSV: torch.Tensor, b_BSV: torch.Tensor, tokens_BS: torch.Tensor, k: int = 5) -> LogitsComparison:
    """[B, S, V] logits of both models for tokens [B, S]; the loss is that of the next token."""
    a, b = a_BSV.float(), b_BSV.float()
    apart_T = (a - b).abs().amax(-1).flatten()
    scale = max(a.abs().max().item(), 1e-30)
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    kl = (log_a.exp() * (log_a - log_b)).sum(-1)
    following = tokens_BS[:, 1:, None]
    loss_a, loss_b = (-log[:, :-1].gather(-1, following).squeeze(-1) for log in (log_a, log_b))
    same_set = a.topk(k).indices.sort().values == b.topk(k).indices.sort().values
    return LogitsComparison(
        num_tokens=tokens_BS.numel(),
        largest=apart_T.max().item(),
        largest_relative=apart_T.max().item() / scale,
        median_relative=apart_T.median().item() / scale,
        top1_agreement=(a.argmax(-1) == b.argmax(-1)).float().mean().item(),
        topk_agreement=same_set.all(-1).float().mean().item(),
        mean_kl=kl.mean().item(),
        max_kl=kl.max().item(),
        losses=(loss_a.mean().item(), loss_b.mean().item()),
        largest_loss_difference=(loss_a - loss_b).abs().max().item(),
    )
