"""The plan of a run for a number of ranks, printed before any of them starts; no GPU is needed.

Counts are computed from the config (`estimate.py`) and again from the real model: one rank of every kind is built on
the meta device in a world that does not exist. The two must agree, else our own arithmetic is wrong.
"""

from megatron_jmed.config import RunConfig, problems, raise_problems
from megatron_jmed.corpus.tokens import load_token_set
from megatron_jmed.errors import CorpusError
from megatron_jmed.train.estimate import GIB, checkpoint_bytes, count_parameters, flops_a_token, source_plans, stage_memory


def print_plan(config: RunConfig, world_size: int) -> None:
    """Print the plan; ConfigError with every problem at once if the config cannot run on `world_size` ranks."""
    raise_problems(f"{config.name} on {world_size} ranks", problems(config, world_size))
    built = built_stage_parameters(config, world_size)
    known, notes = _token_sets_on_disk(config)
    for line in (*_model_lines(config), *_memory_lines(config, world_size, built), *_run_lines(config, world_size),
                 *_source_lines(config, known), *(f"note: {note}" for note in notes)):
        print(line)


def built_stage_parameters(config: RunConfig, world_size: int) -> list[int]:
    """Parameters of the rank that `build_model` really builds for each pipeline stage, on the meta device."""
    from megatron_jmed.model.build import build_meta_model
    from megatron_jmed.parallel import start_fake_groups, stop_groups

    counts = []
    for stage in range(config.parallel.pp):
        groups = start_fake_groups(config.parallel, stage * world_size // config.parallel.pp, world_size)
        chunks = [build_meta_model(config, groups, chunk) for chunk in range(config.parallel.vpp)]
        counts.append(sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters()))
        stop_groups()
    return counts


def _model_lines(config: RunConfig):
    padded, plain = count_parameters(config.model, config.padded_vocab_size), count_parameters(config.model)
    model = config.model
    kind = f"{model.num_experts} experts, top-{model.router_topk}" if model.num_experts else "dense"
    yield f"model       {config.name}: {model.num_layers} layers, hidden {model.hidden_size}, {kind}" \
          f"{', tied embeddings' if model.tied_embeddings else ''}"
    yield f"parameters  total {padded.total:,}   active {padded.active:,}   (vocabulary padded to {config.padded_vocab_size:,})"
    yield f"            total {plain.total:,}   active {plain.active:,}   (vocabulary {config.model.vocab_size:,})"


def _memory_lines(config: RunConfig, world_size: int, built: list[int]):
    parallel = config.parallel
    dp = world_size // (parallel.tp * parallel.pp * parallel.cp)
    yield (f"layout      {world_size} ranks: TP{parallel.tp} PP{parallel.pp} EP{parallel.ep} ETP{parallel.etp} CP{parallel.cp} "
           f"DP{dp}, {config.budget.global_batch_size // (config.budget.micro_batch_size * dp)} micro-batches a step, "
           f"recompute {config.budget.recompute}, {config.precision.compute} ({config.precision.backend})")
    yield "memory      GiB a rank (activations: estimate for balanced routing; allocator and NCCL buffers not included)"
    yield "  stage   stage parameters  parameters a rank   weights  gradients  optimizer  activations    total"
    for stage in range(parallel.pp):
        m = stage_memory(config, world_size, stage)
        assert m.params_on_rank == built[stage], f"stage {stage}: {m.params_on_rank} computed, {built[stage]} built"
        yield (f"  {stage:5d}   {m.stage_params:16,}  {m.params_on_rank:17,}   {m.weights / GIB:7.2f}  {m.gradients / GIB:9.2f}"
               f"  {m.optimizer / GIB:9.2f}  {m.activations / GIB:11.2f}  {m.total / GIB:7.2f}")


def _run_lines(config: RunConfig, world_size: int):
    steps, tokens = config.num_steps, config.num_steps * config.tokens_per_step
    flops = flops_a_token(config)
    saves = -(-steps // config.steps_of(config.budget.save_every_tokens))
    yield f"run         {steps:,} steps of {config.tokens_per_step:,} tokens = {tokens:,} tokens"
    yield (f"compute     {flops / 1e9:.4g} GFLOP a token, {flops * tokens:.3g} FLOP in all; a day on {world_size} ranks at 400 "
           f"TFLOP/s each does {world_size * 400e12 * 86400 / flops / 1e9:.3g}B tokens")
    yield (f"disk        {checkpoint_bytes(config) / 1e9:.4g} GB a checkpoint, {saves} saves, "
           f"{config.budget.keep_checkpoints} kept")


def _source_lines(config: RunConfig, known: dict[str, int]):
    if config.data.blend:
        yield "blend       source                      share         tokens   epochs"
    for plan in source_plans(config, known):
        epochs = "unknown" if plan.epochs is None else f"{plan.epochs:.2f}"
        yield f"            {plan.name:24s} {plan.share:8.2%} {plan.tokens:14,.0f}  {epochs:>7s}"


def _token_sets_on_disk(config: RunConfig) -> tuple[dict[str, int], list[str]]:
    known, notes = {}, []
    for source in config.data.blend:
        try:
            known[source.name] = load_token_set(source.path).num_tokens
        except CorpusError as error:
            notes.append(f"data.blend source {source.name!r}: {error}")
    return known, notes
