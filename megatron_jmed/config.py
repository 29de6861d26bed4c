"""Every word an experiment can say, and whether the words fit together.

In: a recipe name, a TOML experiment or a saved JSON, plus dotted changes. Out: one frozen `RunConfig`.
Invariant: only decisions are stored; whatever follows from them (steps, padded vocabulary, data-parallel size) is
computed by a property or a function, so that it can never disagree. All problems are reported at once, and each names
the value that would work. Nothing here touches torch, Megatron or the network.
"""

import difflib
import json
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megatron_jmed.errors import ConfigError

RANDOM_INIT = "random"


class Section(BaseModel):
    """A frozen group of words; a word it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Section):
    """The network: a decoder with rotary attention and top-k routed SwiGLU experts (Mixtral's shape) or, without experts,
    one SwiGLU layer (Llama's)."""

    num_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_query_groups: int = Field(gt=0, description="key-value heads")
    kv_channels: int = Field(gt=0, description="size of one head")
    ffn_hidden_size: int = Field(gt=0, description="width of one expert")
    num_experts: int = Field(ge=0, description="0: dense layers")
    router_topk: int = Field(ge=0)
    vocab_size: int = Field(gt=0, description="pieces of the tokenizer, before padding")
    vocab_divisor: int = Field(128, gt=0, description="the embedding has a multiple of this times tp rows")
    max_position_embeddings: int = Field(gt=0)
    tied_embeddings: bool = Field(False, description="the output layer is the embedding")
    rotary_base: float = Field(10000.0, gt=0)
    layernorm_epsilon: float = Field(1e-5, gt=0)
    init_method_std: float = Field(0.02, gt=0)
    aux_loss_coeff: float = Field(0.01, ge=0)
    z_loss_coeff: float = Field(0.0, ge=0)
    lora_rank: int = Field(0, ge=0, description="train adapters of this rank and nothing else; 0: all weights")
    lora_alpha: float = Field(32.0, gt=0, description="what adapters add is scaled by lora_alpha / lora_rank")
    lora_targets: tuple[Literal["attention", "experts"], ...] = Field(
        ("attention", "experts"), min_length=1, description="beside which linear layers; without experts, the MLP's are meant")
    mcore: dict[str, Any] = Field({}, description="verbatim fields of Megatron-Core's TransformerConfig")


class ParallelConfig(Section):
    """How one model is spread over ranks: tensor, pipeline, expert, context; the rest is data parallel."""

    tp: int = Field(1, gt=0)
    pp: int = Field(1, gt=0)
    vpp: int = Field(1, gt=0, description="layer chunks a pipeline stage holds: interleaved pipeline")
    ep: int = Field(1, gt=0)
    cp: int = Field(1, gt=0)
    etp: int = Field(1, gt=0, description="tensor parallelism inside an expert")
    sequence_parallel: bool = False
    dispatcher: Literal["alltoall", "allgather"] = "alltoall"
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False


class PrecisionConfig(Section):
    """What is computed in which number format; gradients are always reduced and accumulated in fp32."""

    compute: Literal["fp32", "bf16", "fp8"] = "bf16"
    fp8_recipe: Literal["blockwise", "tensorwise", "delayed"] = "blockwise"
    fp8_wgrad: bool = Field(False, description="weight gradients from fp8 operands too; false: from bf16")
    # the first layer reads raw embeddings and the last feeds the output layer: where outliers are largest and no later layer
    # makes up for an error; of 40 layers, two cost a twentieth of what fp8 gains
    bf16_first_layers: int = Field(1, ge=0, description="of an fp8 run, so many layers at the start stay in bf16")
    bf16_last_layers: int = Field(1, ge=0, description="of an fp8 run, so many layers at the end stay in bf16")
    backend: Literal["local", "te", "jmed"] = Field("local", description="torch layers; Transformer Engine's; torch layers "
                                                    "with kernels and fp8 of our own")


class KernelsConfig(Section):
    """Which of our kernels the back end "jmed" computes with; where there is no GPU, their torch references. All off until they
    have been measured on a Hopper GPU (benchmarks/kernels.md), but for the cache, which changes no bit."""

    rmsnorm: bool = False
    swiglu: bool = Field(False, description="SwiGLU x routing probability between an expert's products; in fp8 it quantises")
    permute: bool = Field(False, description="tokens to experts and back")
    cross_entropy: bool = Field(False, description="output layer and loss without fp32 logits")
    head_chunk_tokens: int = Field(0, ge=0, description="tokens whose logits exist at a time under cross_entropy; 0: all")
    wgrad_accumulation: bool = Field(False, description="weight gradients added to the fp32 gradients in the product")
    fp8_weight_cache: bool = Field(True, description="fp8 weights are kept over the micro-batches of a step")


class OptimConfig(Section):
    """AdamW with warm-up and decay counted in tokens."""

    peak_lr: float = Field(gt=0)
    min_lr: float = Field(ge=0)
    warmup_tokens: int = Field(0, ge=0)
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field("cosine", description="wsd: constant, then 1-sqrt decay")
    decay_tokens: int = Field(0, ge=0, description="wsd decays over the last so many tokens of the budget")
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    adam_eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    clip_grad: float = Field(1.0, gt=0)


class SourceConfig(Section):
    """One token set of the blend; `weight` is its share of the samples drawn, relative to the other weights; of weight 0 it
    is only validated, to see what the model forgets."""

    name: str
    path: str
    weight: float = Field(ge=0)
    lang: str = ""
    num_tokens: int | None = Field(None, gt=0, description="declared size, for planning before the token set exists")


class DataConfig(Section):
    """Which token sets, in what proportion, and how far a token of a packed sequence sees."""

    blend: tuple[SourceConfig, ...] = ()
    attention: Literal["sequence", "document"] = Field("sequence", description="across documents, or within each alone")
    pack: bool = Field(True, description="several conversations a sequence; false: one each, and padding")
    valid_ratio: float = Field(0.01, ge=0, lt=0.5, description="tail of every token set kept for validation")
    max_epochs: float = Field(0, ge=0, description="refuse a run that reads any source more often; 0: no limit")
    cache_folder: str = Field("", description="index cache; empty: inside the run folder")
    num_workers: int = Field(0, ge=0, description="loader processes a rank")
    skip_steps: tuple[int | tuple[int, int], ...] = Field((), description="steps, or [first, last], that are not trained on")

    def skipped_ranges(self, last_step: int | None = None) -> list[tuple[int, int]]:
        """`skip_steps` as ranges (first, last) that neither overlap nor touch, up to `last_step`."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted((step, step) if isinstance(step, int) else step for step in self.skip_steps):
            last = last if last_step is None else min(last, last_step)
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            elif first <= last:
                merged.append((first, last))
        return merged

    def is_skipped(self, step: int) -> bool:
        """Whether step number `step` (the first is 1, as in metrics.jsonl) reads and changes nothing."""
        return any(first <= step <= last for first, last in self.skipped_ranges())

    def num_skipped(self, last_step: int) -> int:
        """How many of the steps 1 to `last_step` are skipped."""
        return sum(last - first + 1 for first, last in self.skipped_ranges(last_step))


class BudgetConfig(Section):
    """How much is read, in what batches, and when it is saved and validated; all budgets are in tokens."""

    total_tokens: int = Field(gt=0)
    seq_length: int = Field(gt=0)
    global_batch_size: int = Field(gt=0, description="sequences a step")
    micro_batch_size: int = Field(1, gt=0)
    recompute: Literal["none", "selective", "full"] = "none"
    save_every_tokens: int = Field(gt=0)
    keep_checkpoints: int = Field(3, gt=0, description="the last so many stay")
    keep_every_tokens: int = Field(0, ge=0, description="a checkpoint at every multiple of this stays, too; 0: none")
    weights_every_tokens: int = Field(0, ge=0, description="save the weights alone, which stay; 0: never")
    async_save: bool = Field(True, description="write checkpoints while the training goes on")
    eval_every_tokens: int = Field(0, ge=0, description="0: never")
    eval_steps: int = Field(4, gt=0)


class LogConfig(Section):
    """What is written down beside metrics.jsonl."""

    every_steps: int = Field(1, gt=0)
    wandb_project: str = Field("", description="empty: no wandb")
    wandb_mode: Literal["online", "offline"] = "offline"
    tensorboard: bool = False
    hash_batches: bool = Field(False, description="for debugging: a hash of every sequence fed, in RUN/batches/rank_N.jsonl")
    live: bool = Field(False, description="redraw one view in place where the output is a terminal; else lines, as always")


class WatchConfig(Section):
    """When a run is taken for stuck or sick, and what is done about it; the rules are in train/watch.py and train/alarms.py.

    An action: off, warn (say it and write it down), save (a checkpoint after the next step), stop (the same, then end),
    skip_step (the gradients are not applied).
    """

    heartbeat_seconds: float = Field(10, gt=0, description="how often each rank writes its small heartbeat file")
    stall_seconds: float = Field(600, gt=0, description="longest time without a new micro-batch, in training and validation")
    start_seconds: float = Field(3600, gt=0, description="the same until the end of the first step: groups, data index, loading")
    save_seconds: float = Field(1800, gt=0, description="the same while saving, and at the end of the run")
    stop_on_stall: bool = Field(True, description="end the process; false: say it, write the stacks, and wait on")

    window_steps: int = Field(128, ge=16, description="how many steps before this one count as normal")
    min_steps: int = Field(32, ge=8, description="with fewer steps than this there is no alarm but that of numbers not finite")
    quiet_steps: int = Field(100, gt=0, description="the same alarm is not raised again within so many steps")
    max_skipped_steps: int = Field(5, gt=0, description="more updates skipped in a row end the run with an error")

    non_finite: Literal["stop", "skip_step"] = Field("stop", description="stop: an error, and nothing is saved")
    loss_spike: Literal["off", "warn", "save", "stop"] = "warn"
    loss_spike_sigmas: float = Field(6, gt=0)
    loss_spike_steps: int = Field(3, gt=0, description="so many steps in a row")
    grad_norm_spike: Literal["off", "warn", "save", "stop", "skip_step"] = "warn"
    grad_norm_spike_sigmas: float = Field(6, gt=0)
    dead_expert: Literal["off", "warn", "save", "stop"] = "warn"
    dead_expert_ratio: float = Field(0.1, ge=0, lt=1, description="of an equal share of the tokens")
    overloaded_expert: Literal["off", "warn", "save", "stop"] = "warn"
    overloaded_expert_ratio: float = Field(3, gt=1, description="of an equal share of the tokens")
    slow: Literal["off", "warn", "save", "stop"] = "warn"
    slow_ratio: float = Field(0.7, gt=0, lt=1, description="of the usual speed")
    slow_steps: int = Field(10, gt=0)


class ExamsConfig(Section):
    """Exams that the model answers while it trains; a sheet is made by tools/prepare_exam.py."""

    sheets: tuple[str, ...] = ()
    every_tokens: int = Field(0, ge=0, description="0: never; else also after the last step")


class RunConfig(Section):
    """One run, whole. `init` is "random" or the folder of a checkpoint whose weights the run starts from; with `init_moments`,
    Adam's moments, too."""

    name: str
    run_folder: str
    init: str
    init_moments: bool = False
    seed: int = 1234
    model: ModelConfig
    parallel: ParallelConfig = ParallelConfig()
    precision: PrecisionConfig = PrecisionConfig()
    kernels: KernelsConfig = KernelsConfig()
    optim: OptimConfig
    data: DataConfig = DataConfig()
    budget: BudgetConfig
    log: LogConfig = LogConfig()
    watch: WatchConfig = WatchConfig()
    exams: ExamsConfig = ExamsConfig()

    @property
    def tokens_per_step(self) -> int:
        return self.budget.global_batch_size * self.budget.seq_length

    @property
    def num_steps(self) -> int:
        """Whole steps that fit into the token budget."""
        return self.budget.total_tokens // self.tokens_per_step

    @property
    def padded_vocab_size(self) -> int:
        multiple = self.model.vocab_divisor * self.parallel.tp
        return -(-self.model.vocab_size // multiple) * multiple

    def steps_of(self, tokens: int) -> int:
        """The number of steps nearest to `tokens`, at least 1."""
        return max(1, round(tokens / self.tokens_per_step))


# --- loading, changing, saving -------------------------------------------------------------------------------------


def load_config(what: str, changes: list[str] = ()) -> RunConfig:
    """The resolved config of a recipe name, a `.toml` experiment or a saved `.json`, with dotted `changes` applied.

    Raises ConfigError with every unknown word, wrong type and contradiction (those that need no world size) at once.
    """
    words = _load_words(what)
    for change in changes:
        _apply_change(words, change)
    config = config_from_dict(words, where=what)
    raise_problems(what, problems(config))
    return config


def config_from_dict(words: dict[str, Any], where: str) -> RunConfig:
    try:
        return RunConfig.model_validate(words)
    except ValidationError as error:
        raise ConfigError(_bullets(where, [_explain(e) for e in error.errors()])) from None


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved config as JSON, atomically; running that file again repeats the run."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _load_words(what: str) -> dict[str, Any]:
    path = Path(what)
    if path.suffix == ".json":
        return _parse(path, json.loads)
    if path.suffix != ".toml":
        return recipe_config(what).model_dump(mode="json")
    words = _parse(path, tomllib.loads)
    recipe = words.pop("recipe", None)
    if not isinstance(recipe, str):
        raise ConfigError(f'{path}: the first line must name a recipe, such as recipe = "llmjp_8x13b"')
    base = recipe_config(recipe).model_dump(mode="json")
    return _merged(base, words)


def recipe_config(name: str) -> RunConfig:
    """The config that the recipe function `name` of `megatron_jmed.recipes` returns."""
    from megatron_jmed import recipes

    if name not in recipes.RECIPES and ("/" in name or Path(name).exists()):
        raise ConfigError(f"{name}: no .toml experiment, no config.json of a run, no recipe; recipes: "
                          f"{', '.join(sorted(recipes.RECIPES))}")
    if name not in recipes.RECIPES:
        raise ConfigError(f"unknown recipe {name!r}{_did_you_mean(name, recipes.RECIPES)}; recipes: "
                          f"{', '.join(sorted(recipes.RECIPES))}; or give a .toml or .json file")
    return recipes.RECIPES[name]()


def _parse(path: Path, loads) -> dict[str, Any]:
    try:
        return loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both_tables = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if both_tables else value
    return merged


def _apply_change(words: dict[str, Any], change: str) -> None:
    """Apply `a.b=value` in place; the value is read as TOML, and as a plain string where it is none."""
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise ConfigError(f"{change!r} is not a change; write it as section.word=value, such as optim.peak_lr=5e-5")
    *sections, word = key.split(".")
    table = words
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{change!r}: {section} is a single word, not a section")
    try:
        table[word] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[word] = text


def _explain(error: dict[str, Any]) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        *parents, word = error["loc"]
        return f"{location}: no such word{_did_you_mean(str(word), _words_at(parents))}"
    if error["type"] == "missing":
        return f"{location}: must be given"
    return f"{location}={error['input']!r}: {error['msg']}"


def _words_at(parents: list[Any]) -> list[str]:
    """The words known in the section that `parents` leads to."""
    section: Any = RunConfig
    for part in parents:
        if isinstance(part, int):
            section = SourceConfig
        elif part != "blend":
            section = section.model_fields[part].annotation
    return list(section.model_fields)


def _did_you_mean(word: str, known) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


# --- problems ------------------------------------------------------------------------------------------------------


def raise_problems(where: str, found: list[str]) -> None:
    if found:
        raise ConfigError(_bullets(where, found))


def _bullets(where: str, found: list[str]) -> str:
    if len(found) == 1:
        return f"{where}: {found[0]}"
    return f"{where}: {len(found)} problems\n" + "\n".join(f"  - {problem}" for problem in found)


def problems(config: RunConfig, world_size: int | None = None) -> list[str]:
    """Everything in `config` that cannot work, as sentences; with `world_size`, also what does not fit that many ranks."""
    found = _model_problems(config) + _budget_problems(config) + _data_problems(config) + _precision_problems(config)
    found += _kernels_problems(config)
    if not config.run_folder:
        found.append("run_folder='' is the folder where the training is started; give the run one of its own")
    if bool(config.exams.sheets) != bool(config.exams.every_tokens):
        found.append("exams.sheets and exams.every_tokens belong together: give both, or neither")
    if config.init_moments and config.init == RANDOM_INIT:
        found.append('init_moments=true needs init="CHECKPOINT" of a run; random weights have no moments')
    found += _watch_problems(config) + _lora_problems(config)
    return found + ([] if world_size is None else _world_problems(config, world_size))


def _model_problems(config: RunConfig) -> list[str]:
    model, parallel = config.model, config.parallel
    found = []
    split_of_ffn = ("parallel.etp", parallel.etp) if model.num_experts else ("parallel.tp", parallel.tp)
    for word, value, into, total in (
        (*split_of_ffn, "model.ffn_hidden_size", model.ffn_hidden_size),
        ("parallel.pp", parallel.pp, "model.num_layers", model.num_layers),
        ("parallel.tp", parallel.tp, "model.num_attention_heads", model.num_attention_heads),
        ("parallel.tp", parallel.tp, "model.num_query_groups", model.num_query_groups),
        ("model.num_query_groups", model.num_query_groups, "model.num_attention_heads", model.num_attention_heads),
    ):
        if total % value:
            found.append(f"{word}={value} does not divide {into}={total}; choose from {divisors(total)}")
    if parallel.vpp > 1:
        found += _interleaving_problems(config)
    if parallel.sequence_parallel and parallel.tp == 1:
        found.append("parallel.sequence_parallel=true needs parallel.tp of at least 2; set it to false")
    if parallel.overlap_param_gather and not parallel.overlap_grad_reduce:
        found.append("parallel.overlap_param_gather=true needs parallel.overlap_grad_reduce=true")
    return found + (_expert_problems if model.num_experts else _dense_problems)(config)


def _interleaving_problems(config: RunConfig) -> list[str]:
    parallel, num_layers = config.parallel, config.model.num_layers
    if parallel.pp == 1:
        return [f"parallel.vpp={parallel.vpp} needs parallel.pp of at least 2; set parallel.vpp=1"]
    if num_layers % parallel.pp == 0 and num_layers % (parallel.pp * parallel.vpp):
        return [f"parallel.pp x vpp = {parallel.pp} x {parallel.vpp} does not divide model.num_layers={num_layers}; choose "
                f"parallel.vpp from {divisors(num_layers // parallel.pp)}"]
    return []


def _dense_problems(config: RunConfig) -> list[str]:
    return [f"{word}={value} without experts (model.num_experts=0); set {word}={right}" for word, value, right in (
        ("model.router_topk", config.model.router_topk, 0),
        ("parallel.ep", config.parallel.ep, 1),
        ("parallel.etp", config.parallel.etp, 1),
    ) if value != right]


def _expert_problems(config: RunConfig) -> list[str]:
    model, parallel = config.model, config.parallel
    found = []
    if model.num_experts % parallel.ep:
        found.append(f"parallel.ep={parallel.ep} does not divide model.num_experts={model.num_experts}; choose from "
                     f"{divisors(model.num_experts)}")
    if model.router_topk > model.num_experts:
        found.append(f"model.router_topk={model.router_topk} is more than model.num_experts={model.num_experts}")
    if model.router_topk == 0:
        found.append(f"model.router_topk=0 sends no token to any of model.num_experts={model.num_experts}; set it to at least 1, "
                     "or model.num_experts=0 for dense layers")
    if model.router_topk == 1:
        found.append("model.router_topk=1: the renormalised weight of one expert is always 1 and teaches its router nothing; "
                     "use at least 2")
    if parallel.tp > 1 and not parallel.sequence_parallel:
        found.append(f"parallel.tp={parallel.tp} with experts needs parallel.sequence_parallel=true (Megatron-Core refuses "
                     "to train otherwise)")
    if parallel.ep == 1 and parallel.etp != parallel.tp:
        # 0.16.1 then reduces expert gradients over the dense data-parallel group, which is another one: silently wrong
        found.append(f"parallel.etp={parallel.etp} with parallel.ep=1 must equal parallel.tp={parallel.tp} (Megatron-Core "
                     f"would leave expert gradients unreduced); set parallel.etp={parallel.tp} or parallel.ep of at least 2")
    return found


def _budget_problems(config: RunConfig) -> list[str]:
    budget, model, optim = config.budget, config.model, config.optim
    found = []
    if budget.seq_length > model.max_position_embeddings:
        found.append(f"budget.seq_length={budget.seq_length} is longer than model.max_position_embeddings="
                     f"{model.max_position_embeddings}")
    found += _sequence_problems(config)
    if budget.global_batch_size % budget.micro_batch_size:
        found.append(f"budget.micro_batch_size={budget.micro_batch_size} does not divide budget.global_batch_size="
                     f"{budget.global_batch_size}; choose from {divisors(budget.global_batch_size)}")
    if config.num_steps == 0:
        found.append(f"budget.total_tokens={budget.total_tokens} is less than one step of {config.tokens_per_step} tokens")
    if optim.min_lr > optim.peak_lr:
        found.append(f"optim.min_lr={optim.min_lr} is above optim.peak_lr={optim.peak_lr}")
    if optim.warmup_tokens >= budget.total_tokens:
        found.append(f"optim.warmup_tokens={optim.warmup_tokens} leaves nothing of budget.total_tokens="
                     f"{budget.total_tokens}")
    if (optim.schedule == "wsd") != (optim.decay_tokens > 0):
        found.append(f'optim.decay_tokens={optim.decay_tokens} with optim.schedule="{optim.schedule}": "wsd", and no other, needs '
                     "the number of tokens over which it decays")
    if optim.warmup_tokens + optim.decay_tokens > budget.total_tokens:
        found.append(f"optim.warmup_tokens + optim.decay_tokens = {optim.warmup_tokens + optim.decay_tokens} is more than "
                     f"budget.total_tokens={budget.total_tokens}")
    return found


def _sequence_problems(config: RunConfig) -> list[str]:
    """Every context-parallel rank holds two parts of a sequence, and sequence parallelism splits what it holds by tp."""
    parallel, seq_length = config.parallel, config.budget.seq_length
    by_tp = parallel.tp if parallel.sequence_parallel else 1
    if parallel.cp == 1:
        wrong = seq_length % by_tp
        return [f"parallel.tp={parallel.tp} does not divide budget.seq_length={seq_length}"] if wrong else []
    parts = 2 * parallel.cp * by_tp
    if seq_length % parts == 0:
        return []
    words = "2 x parallel.cp" + (" x parallel.tp" if by_tp > 1 else "")
    return [f"budget.seq_length={seq_length} is not a multiple of {words} = {parts}; nearest that work: "
            f"{_nearest_multiples(seq_length, parts)}"]


def _data_problems(config: RunConfig) -> list[str]:
    names = [source.name for source in config.data.blend]
    twice = sorted({name for name in names if names.count(name) > 1})
    found = [f"data.blend: the name {name!r} is used twice; every source needs its own" for name in twice]
    if names and not any(source.weight for source in config.data.blend):
        found.append("data.blend: every weight is 0; give at least one source a positive weight")
    if config.data.attention == "document" and config.precision.backend == "te":
        found.append('data.attention="document" is built into precision.backend="local" and "jmed": Transformer Engine would '
                     'attend across documents; set data.attention="sequence"')
    return found + _skip_problems(config)


def _skip_problems(config: RunConfig) -> list[str]:
    num_steps, found = config.num_steps, []
    for first, last in ((step, step) if isinstance(step, int) else step for step in config.data.skip_steps):
        if last < first:
            found.append(f"data.skip_steps: [{first}, {last}] ends before it begins; write [{last}, {first}]")
        elif first < 1 or last > num_steps:
            found.append(f"data.skip_steps: {first if first == last else [first, last]} is not within the run's steps, "
                         f"1 to {num_steps}")
    if not found and config.data.num_skipped(num_steps) == num_steps > 0:
        found.append(f"data.skip_steps leaves none of the {num_steps} steps to train on")
    return found


def _precision_problems(config: RunConfig) -> list[str]:
    precision, found = config.precision, []
    if precision.compute != "fp8":
        return []
    first, last, is_delayed = precision.bf16_first_layers, precision.bf16_last_layers, precision.fp8_recipe == "delayed"
    if first + last >= config.model.num_layers:
        found.append(f"precision.bf16_first_layers + bf16_last_layers = {first + last} leaves none of model.num_layers="
                     f"{config.model.num_layers} in fp8; lower them, or say precision.compute=\"bf16\"")
    if precision.backend == "local":
        found.append('precision.compute="fp8" needs precision.backend="te" or "jmed": with "local" Megatron-Core would train in '
                     "bf16 without saying so")
    elif precision.backend == "jmed" and is_delayed:
        found.append('precision.fp8_recipe="delayed" is not built into precision.backend="jmed": its scales come from earlier '
                     "steps, which no checkpoint holds, so a resumed run would not compute what one without a stop does; set "
                     'precision.fp8_recipe="blockwise" or "tensorwise"')
    elif precision.backend == "te" and not precision.fp8_wgrad and not is_delayed:
        found.append(f'precision.fp8_wgrad=false with precision.fp8_recipe="{precision.fp8_recipe}": Transformer Engine would '
                     'compute weight gradients in fp8 all the same; set precision.fp8_wgrad=true, or precision.backend="jmed"')
    elif precision.backend == "te" and is_delayed and first + last:
        found.append(f'precision.fp8_recipe="delayed" puts every layer in fp8 (Megatron-Core), and precision.'
                     f"bf16_first_layers={first}, bf16_last_layers={last}; set both to 0")
    return found


def _kernels_problems(config: RunConfig) -> list[str]:
    kernels, found = config.kernels, []
    asked = [name for name in ("rmsnorm", "swiglu", "permute", "cross_entropy", "wgrad_accumulation") if getattr(kernels, name)]
    if asked and config.precision.backend != "jmed":
        found += [f'kernels.{name}=true needs precision.backend="jmed", not "{config.precision.backend}"' for name in asked]
    if kernels.head_chunk_tokens and not kernels.cross_entropy:
        found.append(f"kernels.head_chunk_tokens={kernels.head_chunk_tokens} cuts what kernels.cross_entropy computes; set that to "
                     "true, or this to 0")
    if not config.model.num_experts:
        found += [f"kernels.{name}=true without experts (model.num_experts=0); set it to false" for name in ("swiglu", "permute")
                  if getattr(kernels, name)]
    return found


def _lora_problems(config: RunConfig) -> list[str]:
    model, parallel, found = config.model, config.parallel, []
    if not model.lora_rank:
        return []
    if config.precision.backend == "te":
        found.append(f'model.lora_rank={model.lora_rank} is built into precision.backend="local" and "jmed", not "te", whose fused '
                     'layers leave no place for adapters; set precision.backend="jmed"')
    if "experts" in model.lora_targets and config.kernels.swiglu and model.num_experts:
        found.append('kernels.swiglu=true computes experts in one piece, without their adapters; set kernels.swiglu=false, or '
                     'model.lora_targets=["attention"]')
    if "experts" in model.lora_targets and model.num_experts and parallel.etp not in (1, parallel.tp):
        found.append(f"model.lora_rank={model.lora_rank} on experts needs parallel.etp of 1 or parallel.tp={parallel.tp}, not "
                     f"{parallel.etp}: what is whole on every rank would count twice in the norm of the gradient")
    if model.tied_embeddings and parallel.pp > 1:
        found.append(f"model.lora_rank={model.lora_rank} with model.tied_embeddings=true needs parallel.pp=1: Megatron-Core sums "
                     "the gradients of the embedding's copies, and a frozen one has none")
    return found


def _watch_problems(config: RunConfig) -> list[str]:
    watch = config.watch
    if watch.min_steps > watch.window_steps:
        return [f"watch.min_steps={watch.min_steps} is more than watch.window_steps={watch.window_steps}: no alarm would ever be "
                f"raised; set watch.window_steps to at least {watch.min_steps}"]
    return []


def _world_problems(config: RunConfig, world_size: int) -> list[str]:
    parallel, budget = config.parallel, config.budget
    model_ranks = parallel.tp * parallel.pp * parallel.cp
    expert_ranks = parallel.ep * parallel.etp * parallel.pp
    found = []
    for words, ranks in (("parallel.tp x pp x cp", model_ranks), ("parallel.ep x etp x pp", expert_ranks)):
        if world_size % ranks:
            found.append(f"{words} = {ranks} does not divide the {world_size} ranks of this job; use a multiple of {ranks}")
    if found:
        return found
    dp = world_size // model_ranks
    if budget.global_batch_size % (budget.micro_batch_size * dp):
        found.append(f"budget.global_batch_size={budget.global_batch_size} is not a multiple of budget.micro_batch_size x "
                     f"data-parallel ranks = {budget.micro_batch_size} x {dp}; nearest that work: "
                     f"{_nearest_multiples(budget.global_batch_size, budget.micro_batch_size * dp)}")
    elif parallel.vpp > 1 and budget.global_batch_size // (budget.micro_batch_size * dp) % parallel.pp:
        a_round = budget.micro_batch_size * dp * parallel.pp
        found.append(f"parallel.vpp={parallel.vpp} needs micro-batches a step in multiples of parallel.pp={parallel.pp}, and there "
                     f"are {budget.global_batch_size // (budget.micro_batch_size * dp)}; budget.global_batch_size that work: "
                     f"{_nearest_multiples(budget.global_batch_size, a_round)}")
    return found


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _nearest_multiples(number: int, of: int) -> list[int]:
    below = number // of * of
    return [n for n in (below, below + of) if n > 0]
