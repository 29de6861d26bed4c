"""Which layout is the fastest that fits? A search over TP, PP, VPP, EP, ETP, CP, micro-batch and recompute, without torch.

In: a config, a number of GPUs, a Machine. Out: an `Advice`: what fits, fastest first by the cost model of `cost.py`, and for
every neighbour of the best (one word changed by one step) why it is not better. Invariant: whether a layout is legal is
asked of `config.problems` alone, so that what the trainer learns to do is searched, and what it refuses is not. Pruned without
asking: TP, ETP and CP beyond one node, whose traffic a network cannot carry.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_jmed.config import RunConfig, divisors, problems
from megatron_jmed.errors import ConfigError
from megatron_jmed.train.cost import StepTime, step_time
from megatron_jmed.train.estimate import GIB, StageMemory, worst_stage
from megatron_jmed.train.machine import H100, Machine

RECOMPUTE = ("none", "selective", "full")
MICRO_BATCHES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Layout:
    """The words that are searched; `sequence_parallel` follows: it is on where tp is more than 1."""

    tp: int
    pp: int
    vpp: int
    ep: int
    etp: int
    cp: int
    micro_batch_size: int
    recompute: str

    def applied(self, config: RunConfig) -> RunConfig:
        words = {name: getattr(self, name) for name in ("tp", "pp", "vpp", "ep", "etp", "cp")}
        return config.model_copy(update={
            "parallel": config.parallel.model_copy(update={**words, "sequence_parallel": self.tp > 1}),
            "budget": config.budget.model_copy(update={"micro_batch_size": self.micro_batch_size, "recompute": self.recompute}),
        })

    def changes(self) -> list[str]:
        """The dotted changes that give a recipe this layout."""
        words = [f"parallel.{name}={getattr(self, name)}" for name in ("tp", "pp", "vpp", "ep", "etp", "cp")]
        return [*words, f"parallel.sequence_parallel={'true' if self.tp > 1 else 'false'}",
                f"budget.micro_batch_size={self.micro_batch_size}", f"budget.recompute={self.recompute}"]


@dataclass(frozen=True)
class Candidate:
    """A legal layout, what its fullest rank holds, and how long a step takes."""

    layout: Layout
    memory: StageMemory
    time: StepTime

    @property
    def gib(self) -> float:
        return self.memory.total / GIB


@dataclass(frozen=True)
class Neighbour:
    """A layout one step from the best, and why it is not better."""

    change: str
    verdict: str


@dataclass(frozen=True)
class Advice:
    """What a search found: how many layouts are legal, how many of them fit under some recompute, the fastest of those."""

    num_legal: int
    num_fitting: int
    best: tuple[Candidate, ...]
    neighbours: tuple[Neighbour, ...]


def advise(config: RunConfig, world_size: int, machine: Machine = H100, num_best: int = 5) -> Advice:
    """The fastest layouts of `config` on `world_size` GPUs; ConfigError with the numbers if none is legal or none fits."""
    num_legal, fitting, smallest = 0, [], None
    for layout in legal_layouts(config, world_size, machine):
        num_legal += 1
        for recompute in RECOMPUTE:  # each is slower than the one before and holds less: the first that fits is the layout's best
            tried = replace(layout, recompute=recompute)
            memory = worst_stage(tried.applied(config), world_size, machine)
            if smallest is None or memory.total < smallest[1].total:
                smallest = tried, memory
            if memory.total <= machine.gpu_gib * GIB:
                fitting.append(Candidate(tried, memory, step_time(tried.applied(config), world_size, machine)))
                break
    if not num_legal:
        raise ConfigError(f"{config.name} on {world_size} GPUs: no layout is allowed; as it stands: "
                          f"{'; '.join(problems(config, world_size))}")
    if not fitting:
        raise ConfigError(f"{config.name} does not fit {world_size} GPUs of {machine.gpu_gib:g} GiB: of {num_legal} layouts the "
                          f"smallest needs {smallest[1].total / GIB:.1f} GiB a rank ({largest_parts(smallest[1])}), with "
                          f"{' '.join(smallest[0].changes())}; take more GPUs")
    fitting.sort(key=_slowness)
    neighbours = tuple(_neighbours(config, fitting[0], world_size, machine))
    return Advice(num_legal, len(fitting), _different(fitting, num_best), neighbours)


def measured(config: RunConfig, layout: Layout, world_size: int, machine: Machine) -> Candidate:
    changed = layout.applied(config)
    return Candidate(layout, worst_stage(changed, world_size, machine), step_time(changed, world_size, machine))


def layout_of(config: RunConfig) -> Layout:
    parallel, budget = config.parallel, config.budget
    return Layout(parallel.tp, parallel.pp, parallel.vpp, parallel.ep, parallel.etp, parallel.cp, budget.micro_batch_size,
                  budget.recompute)


def legal_layouts(config: RunConfig, world_size: int, machine: Machine) -> Iterator[Layout]:
    """Every layout of the search that `config.problems` has nothing against, without recompute."""
    choices = _choices(config, machine)
    words = [choices[name] for name in ("tp", "pp", "vpp", "ep", "etp", "cp")]
    for tp, pp, vpp, ep, etp, cp in itertools.product(*words):
        if vpp not in _chunks(config, pp):
            continue
        for micro_batch_size in choices["micro_batch_size"]:
            layout = Layout(tp, pp, vpp, ep, etp, cp, micro_batch_size, "none")
            if not problems(layout.applied(config), world_size):
                yield layout
            elif micro_batch_size == 1:
                break  # the smallest micro-batch divides whatever a larger one divides


def _choices(config: RunConfig, machine: Machine) -> dict[str, list]:
    in_a_node, layers = divisors(machine.gpus_per_node), divisors(config.model.num_layers)
    return {"tp": in_a_node, "pp": layers, "vpp": layers, "ep": divisors(max(1, config.model.num_experts)), "etp": in_a_node,
            "cp": in_a_node, "micro_batch_size": list(MICRO_BATCHES), "recompute": list(RECOMPUTE)}


def _chunks(config: RunConfig, pp: int) -> list[int]:
    """Numbers of chunks worth trying: parts of a stage's whole layers; a single stage has no bubble to shorten."""
    return divisors(config.model.num_layers // pp) if pp > 1 else [1]


def _slowness(candidate: Candidate) -> tuple:
    """Faster first; of equals the one with less memory, then the one that splits less."""
    layout = candidate.layout
    return (round(candidate.time.total, 6), round(candidate.gib, 3),
            layout.tp * layout.pp * layout.vpp * layout.ep * layout.etp * layout.cp)


def _different(fitting: list[Candidate], num_best: int) -> tuple[Candidate, ...]:
    """The first of `fitting` that differ in more than their number of chunks."""
    kinds: dict[Layout, Candidate] = {}
    for candidate in fitting:
        kinds.setdefault(replace(candidate.layout, vpp=1), candidate)
    return tuple(itertools.islice(kinds.values(), num_best))


def _neighbours(config: RunConfig, best: Candidate, world_size: int, machine: Machine) -> Iterator[Neighbour]:
    for word, choices in (_choices(config, machine) | {"vpp": _chunks(config, best.layout.pp)}).items():
        value = getattr(best.layout, word)
        at = choices.index(value)
        for other in choices[max(0, at - 1):at] + choices[at + 1:at + 2]:
            layout = replace(best.layout, **{word: other})
            if layout.vpp not in _chunks(config, layout.pp):
                layout = replace(layout, vpp=1)
            also = f", vpp {layout.vpp}" if word != "vpp" and layout.vpp != best.layout.vpp else ""
            yield Neighbour(f"{word} {other}{also}", _verdict(config, best, layout, world_size, machine))


def _verdict(config: RunConfig, best: Candidate, layout: Layout, world_size: int, machine: Machine) -> str:
    found = problems(layout.applied(config), world_size)
    if found:
        return f"not allowed: {found[0]}"
    other = measured(config, layout, world_size, machine)
    change = (f"{other.time.total:.2f} s a step, {other.time.total / best.time.total - 1:+.1%} "
              f"({_causes(other.time, best.time)})")
    if other.gib > machine.gpu_gib:
        return f"does not fit: {other.gib:.1f} of {machine.gpu_gib:g} GiB ({largest_parts(other.memory)}); {change}"
    if other.time.total <= best.time.total:
        return f"as fast, with {other.gib:.1f} instead of {best.gib:.1f} GiB"
    return f"slower: {change}"


def _causes(time: StepTime, than: StepTime) -> str:
    """The differences that matter, slower ones first."""
    found = [(name, seconds) for name, seconds in time.differences(than) if abs(seconds) >= 0.002 * than.total]
    return ", ".join(f"{name} {seconds:+.2f} s" for name, seconds in found) or "no part by more than 0.2 %"


def largest_parts(memory: StageMemory) -> str:
    """The three largest parts of a rank's memory, in GiB."""
    parts = {"weights": memory.weights, "gradients": memory.gradients, "optimizer": memory.optimizer,
             "activations": memory.activations, "head": memory.head, "rebuilt layer": memory.rebuilt}
    largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in largest)
