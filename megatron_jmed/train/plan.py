"""The plan of a run, as lines to print: memory, time, GPU-hours, disk, queue segments, epochs by source; without torch.

In: a config, numbers of ranks, a Machine, what the site allows (`Limits`). Out: lines. Invariant: every assumption that a number
rests on is printed beside it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_jmed.config import RunConfig, problems, raise_problems
from megatron_jmed.errors import CorpusError
from megatron_jmed.train.advisor import RECOMPUTE, Advice, Candidate, Layout, layout_of, measured
from megatron_jmed.train.cost import model_flops_a_second, step_time
from megatron_jmed.train.estimate import (
    GIB,
    StageMemory,
    adapter_parameters,
    checkpoint_bytes,
    count_parameters,
    flops_a_token,
    num_micro_batches,
    source_plans,
    stage_memory,
    worst_stage,
)
from megatron_jmed.train.machine import H100, Machine


@dataclass(frozen=True)
class Limits:
    """What the site allows and the planner expects; None: not stated."""

    efficiency: float = 0.40  # model FLOPs over the peak, whole steps; 0.45 is the best published for Mixtral 8x22B on H100
    quota_tb: float | None = None
    hours_limit: float | None = None


def plan_lines(config: RunConfig, worlds: list[int], machine: Machine = H100, limits: Limits = Limits()) -> Iterator[str]:
    """The plan for each number of ranks in `worlds`; ConfigError if the config can run on none of them."""
    found = {world: problems(config, world) for world in worlds}
    good = [world for world in worlds if not found[world]]
    if not good:
        different = dict.fromkeys(problem for world in worlds for problem in found[world])
        raise_problems(f"{config.name} on {' or '.join(map(str, worlds))} ranks", list(different))
    yield from model_lines(config)
    yield from _recompute_lines(config, good, machine)
    yield from time_lines(config, good, machine, limits)
    yield from (f"cannot run  on {world} ranks: {problem}" for world in worlds for problem in found[world])
    yield from run_lines(config, limits)
    yield from source_lines(config)


def model_lines(config: RunConfig) -> Iterator[str]:
    padded, plain = count_parameters(config.model, config.padded_vocab_size), count_parameters(config.model)
    model, parallel = config.model, config.parallel
    kind = f"{model.num_experts} experts, top-{model.router_topk}" if model.num_experts else "dense"
    yield f"model       {config.name}: {model.num_layers} layers, hidden {model.hidden_size}, {kind}" \
          f"{', tied embeddings' if model.tied_embeddings else ''}"
    yield f"parameters  total {padded.total:,}   active {padded.active:,}   (vocabulary padded to {config.padded_vocab_size:,})"
    yield f"            total {plain.total:,}   active {plain.active:,}   (vocabulary {config.model.vocab_size:,})"
    if model.lora_rank:
        adapters = model.num_layers * sum(adapter_parameters(config, ranks_too=False))
        yield (f"adapters    {adapters:,} parameters of rank {model.lora_rank} are trained ({adapters / padded.total:.2%} of the "
               "model); times below still count the gradients of all weights, which are not computed")
    yield (f"layout      TP{parallel.tp} PP{parallel.pp} VPP{parallel.vpp} EP{parallel.ep} ETP{parallel.etp} CP{parallel.cp}, "
           f"micro-batches of {config.budget.micro_batch_size}, recompute {config.budget.recompute}, "
           f"{config.precision.compute} ({config.precision.backend})")


# --- memory --------------------------------------------------------------------------------------------------------

_PARTS = "weights  gradients  optimizer  activations   head  rebuilt  dispatcher  layer grads  reserve   total"


def stage_lines(config: RunConfig, world_size: int, machine: Machine = H100) -> Iterator[str]:
    """The memory of every stage."""
    yield from _memory_head(machine)
    yield f"  stage   stage parameters  parameters a rank   {_PARTS}"
    for stage in range(config.parallel.pp):
        memory = stage_memory(config, world_size, stage, machine)
        yield f"  {stage:5d}   {memory.stage_params:16,}  {memory.params_on_rank:17,}   {_parts(memory)}{_fit(memory, machine)}"


def _recompute_lines(config: RunConfig, worlds: list[int], machine: Machine) -> Iterator[str]:
    """The memory of the fullest stage with each recompute choice, for each number of ranks."""
    yield from _memory_head(machine)
    yield f"  ranks  recompute   stage   {_PARTS}"
    for world in worlds:
        for recompute in RECOMPUTE:
            changed = config.model_copy(update={"budget": config.budget.model_copy(update={"recompute": recompute})})
            memory = worst_stage(changed, world, machine)
            mark = "*" if recompute == config.budget.recompute else " "
            yield f"  {world:5d}  {recompute:9s}{mark}  {memory.stage:5d}   {_parts(memory)}{_fit(memory, machine)}"


def _memory_head(machine: Machine) -> Iterator[str]:
    yield (f"memory      GiB a rank; the busiest experts get {machine.imbalance:g} times the mean; reserve {machine.reserve_gib:g} "
           f"GiB + {machine.fragmentation:.0%} of what a step allocates")
    yield ("            total = weights + gradients + optimizer + activations + max(head, rebuilt + max(dispatcher, layer grads)) "
           "+ reserve")


def _parts(memory: StageMemory) -> str:
    gib = [part / GIB for part in (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.head,
                                   memory.rebuilt, memory.dispatcher, memory.layer_gradients, memory.reserve, memory.total)]
    widths = (7, 9, 9, 11, 5, 7, 10, 11, 7, 6)
    return "  ".join(f"{value:{width}.2f}" for value, width in zip(gib, widths, strict=True))


def _fit(memory: StageMemory, machine: Machine) -> str:
    gib = memory.total / GIB
    return "" if gib <= machine.gpu_gib else f"   DOES NOT FIT {machine.gpu_gib:g}: {gib - machine.gpu_gib:.1f} too much"


# --- time ----------------------------------------------------------------------------------------------------------


def time_lines(config: RunConfig, worlds: list[int], machine: Machine = H100, limits: Limits = Limits()) -> Iterator[str]:
    flops = flops_a_token(config)
    yield (f"compute     {flops / 1e9:.4g} GFLOP a token, {flops * config.num_steps * config.tokens_per_step:.3g} FLOP in all; "
           f"the peak is {machine.bf16_flops / 1e12:.0f} TFLOP/s (dense bf16)")
    yield f"time        at a stated efficiency of {limits.efficiency:.1%} of that peak, and by the cost model of train/cost.py"
    segments = "  segments" if limits.hours_limit else ""
    yield f"  ranks   dp  micro-batches   by         step s  TFLOP/s a GPU   tokens/s    days  GPU-hours{segments}"
    for world in worlds:
        stated = flops * config.tokens_per_step / (world * machine.bf16_flops * limits.efficiency)
        modelled = step_time(config, world, machine).total
        dp = world // (config.parallel.tp * config.parallel.pp * config.parallel.cp)
        for name, seconds in (("stated", stated), ("cost model", modelled)):
            total = seconds * config.num_steps
            parts = f"  {num_segments(total, limits.hours_limit, machine):8d}" if limits.hours_limit else ""
            yield (f"  {world:5d}  {dp:3d}  {num_micro_batches(config, world):13d}   {name:10s} {seconds:7.4g}  "
                   f"{model_flops_a_second(config, world, seconds) / 1e12:13.0f}  {config.tokens_per_step / seconds:9,.0f}  "
                   f"{total / 86400:6.1f}  {total * world / 3600:9,.0f}{parts}")
    if limits.hours_limit:
        yield (f"            segments of {limits.hours_limit:g} h, of which {machine.segment_overhead_seconds / 60:g} min go to "
               "starting, loading and the last save")
    yield "            validation, saving and waiting for the queue are not counted"


def num_segments(seconds: float, hours_limit: float, machine: Machine) -> int:
    """Jobs of `hours_limit` hours that a run of `seconds` needs."""
    return max(1, math.ceil(seconds / (hours_limit * 3600 - machine.segment_overhead_seconds)))


# --- steps, disk, data ---------------------------------------------------------------------------------------------


def run_lines(config: RunConfig, limits: Limits = Limits()) -> Iterator[str]:
    steps, tokens = config.num_steps, config.num_steps * config.tokens_per_step
    saves, kept = -(-steps // config.steps_of(config.budget.save_every_tokens)), config.budget.keep_checkpoints
    each = checkpoint_bytes(config) / 1e12
    forever, forever_words = _milestones_tb(config, each)
    at_once = min(saves, kept + 1) * each + forever  # the oldest goes when the newest is whole
    yield f"run         {steps:,} steps of {config.tokens_per_step:,} tokens = {tokens:,} tokens"
    line = (f"disk        {_size(each)} a checkpoint; {saves} saves write {_size(saves * each)}; {kept} kept{forever_words} and "
            f"one being written: {_size(at_once)}")
    if limits.quota_tb is None:
        yield line
        return
    fitting = int((limits.quota_tb - forever) / each) - 1
    yield f"{line}, of a quota of {limits.quota_tb:g} TB" + ("" if at_once <= limits.quota_tb else (
        f": DOES NOT FIT, {at_once - limits.quota_tb:.4g} TB too much; "
        + (f"set budget.keep_checkpoints={fitting}" if fitting > 0 else f"two checkpoints need {2 * each:.4g} TB")))
    if saves * each <= limits.quota_tb:
        yield f"            the quota holds all {saves}: budget.keep_checkpoints={saves} loses none"


def _milestones_tb(config: RunConfig, each: float) -> tuple[float, str]:
    """(TB of what stays for ever beside the last checkpoints, the same in words)."""
    budget = config.budget
    whole, weights = (config.num_steps // config.steps_of(tokens) if tokens else 0
                      for tokens in (budget.keep_every_tokens, budget.weights_every_tokens))
    words = f", {whole} milestones" * bool(whole) + f", {weights} times weights alone" * bool(weights)
    bytes_weight = 4 if config.precision.compute == "fp32" else 2
    weights_tb = bytes_weight * count_parameters(config.model, config.padded_vocab_size).total / 1e12
    return whole * each + weights * weights_tb, words


def _size(tb: float) -> str:
    return f"{tb:.4g} TB" if tb >= 1e-3 else f"{tb * 1e6:.4g} MB"


def source_lines(config: RunConfig) -> Iterator[str]:
    known, notes = _token_sets_on_disk(config)
    if config.data.blend:
        yield "blend       source                      share         tokens   epochs"
    for plan in source_plans(config, known):
        epochs = "unknown" if plan.epochs is None else f"{plan.epochs:.2f}"
        yield f"            {plan.name:24s} {plan.share:8.2%} {plan.tokens:14,.0f}  {epochs:>7s}"
    yield from (f"note: {note}" for note in notes)


def _token_sets_on_disk(config: RunConfig) -> tuple[dict[str, float], list[str]]:
    try:
        from megatron_jmed.corpus.token_set import load_token_set
        from megatron_jmed.data.sources import budget_tokens
    except ModuleNotFoundError as missing:
        return {}, [f"token sets on disk were not looked at ({missing.name} is not installed here); sizes are the declared ones"]
    known, notes = {}, []
    for source in config.data.blend:
        try:
            known[source.name] = budget_tokens(config, load_token_set(source.path))
        except CorpusError as error:
            notes.append(f"data.blend source {source.name!r}: {error}")
    return known, notes


# --- advice --------------------------------------------------------------------------------------------------------

_LAYOUT = "TP  PP VPP  EP ETP  CP  mb recompute"
_CAUSES = ("compute", "recompute", "launches", "bubble", "tensor", "expert", "context", "pipeline", "data", "optimizer")


def advice_lines(config: RunConfig, advice: Advice, world_size: int, machine: Machine = H100) -> Iterator[str]:
    """The fastest layouts, the config's own for comparison, and why the neighbours of the best are not better."""
    best = advice.best[0]
    yield (f"advice      {config.name} on {world_size} GPUs of {machine.gpu_gib:g} GiB: {advice.num_legal:,} layouts are allowed, "
           f"{advice.num_fitting:,} fit; the fastest {len(advice.best)} by the cost model of train/cost.py")
    yield (f"            peak {machine.bf16_flops / 1e12:.0f} TFLOP/s, {machine.matmul_efficiency:.0%} of it in matrix products; "
           f"{machine.node_bandwidth / 1e9:.0f} GB/s in a node of {machine.gpus_per_node}, "
           f"{machine.network_bandwidth / 1e9:.0f} GB/s a GPU between nodes; imbalance {machine.imbalance:g}")
    yield f"  {_LAYOUT}     GiB  step s  TFLOP/s   seconds of: {'  '.join(_CAUSES)}"
    for candidate in advice.best:
        yield _candidate_line(config, candidate, world_size)
    if not problems(config, world_size):
        own = measured(config, layout_of(config), world_size, machine)
        yield f"{_candidate_line(config, own, world_size)}   <- {config.name} as it is{_fit(own.memory, machine)}"
    yield f"changes     {' '.join(best.layout.changes())}"
    yield "neighbours  of the best, one word changed by one step"
    yield from (f"  {neighbour.change:22s} {neighbour.verdict}" for neighbour in advice.neighbours)


def _candidate_line(config: RunConfig, candidate: Candidate, world_size: int) -> str:
    time = candidate.time
    speed = model_flops_a_second(config, world_size, time.total) / 1e12
    causes = "  ".join(f"{getattr(time, cause):{len(cause)}.2f}" for cause in _CAUSES)
    return f"  {_layout(candidate.layout)}  {candidate.gib:6.1f}  {time.total:6.2f}  {speed:7.0f}               {causes}"


def _layout(layout: Layout) -> str:
    numbers = (layout.pp, layout.vpp, layout.ep, layout.etp, layout.cp, layout.micro_batch_size)
    return f"{layout.tp:2d} {' '.join(f'{number:3d}' for number in numbers)} {layout.recompute:9s}"
