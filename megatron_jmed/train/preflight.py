"""What must be true before a process group starts, all problems at once: the last check while no GPU is awake.

Every rank runs it on the same files, so all ranks fail together and alike.
"""

import importlib.util
import json
import os
import shutil
from pathlib import Path

from megatron_jmed.config import RANDOM_INIT, RunConfig, problems, raise_problems
from megatron_jmed.corpus.token_set import TokenSet
from megatron_jmed.data.exam_sheet import load_sheet
from megatron_jmed.data.sources import budget_tokens, load_token_sets
from megatron_jmed.errors import CheckpointError, ConfigError, CorpusError
from megatron_jmed.model.precision import missing_for
from megatron_jmed.model.transformer import transformer_config
from megatron_jmed.run_folder import (
    CheckpointState,
    RunFolder,
    changed_words,
    check_same_model,
    existing_parent,
    file_sum,
    load_state,
)
from megatron_jmed.train.estimate import checkpoint_bytes, source_plans


def check_before_start(config: RunConfig, world_size: int) -> tuple[list[TokenSet], Path | None, CheckpointState | None]:
    """(the blend's token sets, the checkpoint to begin from, its state); an error that lists everything that is wrong.

    The checkpoint is the run folder's latest whole one, else `init`, else None for random weights.
    """
    found = problems(config, world_size) + missing_for(config.precision) + _disk_problems(config) + _wandb_problems(config)
    token_sets: list[TokenSet] = []
    checkpoint, state = None, None
    error_type: type = ConfigError
    try:
        token_sets = load_token_sets(config)
    except CorpusError as error:
        found.append(str(error))
        error_type = CorpusError
    try:
        checkpoint, state = _find_beginning(config)
    except (CheckpointError, ConfigError) as error:
        found.append(str(error))
        error_type = type(error)
    found += _exam_problems(config, token_sets) + _folder_problems(config)
    found += _tokenizer_problems(checkpoint, token_sets) + _epoch_problems(config, token_sets)
    if not problems(config, world_size):
        try:
            transformer_config(config)
        except ConfigError as error:
            found.append(str(error))
        except (AssertionError, ValueError, TypeError) as error:
            found.append(f"Megatron-Core refuses this configuration: {error}")
    if len(found) == 1:
        raise error_type(f"{config.name}: {found[0]}")
    raise_problems(config.name, found)
    return token_sets, checkpoint, state


def _exam_problems(config: RunConfig, token_sets: list[TokenSet]) -> list[str]:
    found, paths = [], {}
    for path in config.exams.sheets:
        try:
            sheet = load_sheet(path, config.model.vocab_size, config.budget.seq_length)
        except CorpusError as error:
            found.append(str(error))
            continue
        if (other := paths.setdefault(sheet.name, path)) != path:
            found.append(f"exam sheets {other} and {path} are both called {sheet.name!r}, so one's answers would replace the "
                         "other's; make one again under another name")
        others = {token_set.tokenizer_sha256 for token_set in token_sets} - {sheet.tokenizer_sha256}
        if others:
            found.append(f"exam sheet {path} was made with another tokenizer than the token sets; make it again with theirs")
    return found


def _find_beginning(config: RunConfig) -> tuple[Path | None, CheckpointState | None]:
    resumed = RunFolder(config.run_folder).latest_checkpoint()
    if resumed is None and config.init == RANDOM_INIT:
        return None, None
    checkpoint = resumed or Path(config.init)
    state = load_state(checkpoint)
    check_same_model(checkpoint, state, config.model)
    if config.init_moments and not resumed and config.model.lora_rank and not state.model.lora_rank:
        raise ConfigError(f"init_moments=true: {checkpoint} has no moments of adapters, which begin anew; set init_moments=false")
    if resumed:
        changed_words(RunFolder(config.run_folder), config)
    return checkpoint, state


def _folder_problems(config: RunConfig) -> list[str]:
    """A folder that cannot be written to, or of something else, whose config.json the run would write over."""
    path = RunFolder(config.run_folder).config
    existing = existing_parent(path.parent)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        what = "cannot be written to" if existing.is_dir() else "is a file"
        return [f"run_folder={config.run_folder}: {existing} {what}; name another folder"]
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        return [f"run_folder={config.run_folder}: {path} cannot be read ({error}); name another folder"]
    if isinstance(words, dict) and "run_folder" in words:
        return []
    return [f"run_folder={config.run_folder}: its config.json is not a run's, and would be written over; name another folder"]


def _disk_problems(config: RunConfig) -> list[str]:
    """Whether the disk of the run folder has room for the next checkpoint (a quota below the disk's size is not seen)."""
    free, needed = shutil.disk_usage(existing_parent(Path(config.run_folder))).free, checkpoint_bytes(config)
    return [] if free >= needed else [f"run_folder={config.run_folder}: the disk has {free / 1e9:.3g} GB free, and one checkpoint "
                                      f"needs {needed / 1e9:.3g} GB; make room, or name another disk"]


def _wandb_problems(config: RunConfig) -> list[str]:
    """wandb that would fail, or ask for a key, hours into the queue."""
    if not config.log.wandb_project:
        return []
    if importlib.util.find_spec("wandb") is None:
        return [f'log.wandb_project="{config.log.wandb_project}" needs wandb, which is not installed; pip install wandb, or '
                "leave it empty"]
    if config.log.wandb_mode == "online" and not (os.environ.get("WANDB_API_KEY") or _has_netrc_entry()):
        return ['log.wandb_mode="online" needs WANDB_API_KEY or `wandb login`; or take "offline" and `wandb sync` later']
    return []


def _has_netrc_entry() -> bool:
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return path.exists() and "wandb" in path.read_text(encoding="utf-8", errors="replace")


def _tokenizer_problems(checkpoint: Path | None, token_sets: list[TokenSet]) -> list[str]:
    """Whether the tokens were made with the tokenizer that came with the checkpoint's weights, where both are files of a kind."""
    found = []
    for info in {token_set.tokenizer.sha256: token_set.tokenizer for token_set in token_sets}.values():
        path = checkpoint / "hf_files" / f"tokenizer{Path(info.file).suffix}" if checkpoint else None
        if path and path.exists() and (known := file_sum(path)[1]) != info.sha256:
            found.append(f"data.blend: the token sets were made with another tokenizer ({info.file}, SHA-256 "
                         f"{info.sha256[:12]}...) than the model's ({path}, {known[:12]}...); it would read other words")
    return found


def _epoch_problems(config: RunConfig, token_sets: list[TokenSet]) -> list[str]:
    """Sources that the budget reads more often than `data.max_epochs`."""
    limit = config.data.max_epochs
    if not limit or len(token_sets) != len(config.data.blend):
        return []
    known = {source.name: budget_tokens(config, token_set)
             for source, token_set in zip(config.data.blend, token_sets, strict=True)}
    return [f"data.blend source {plan.name!r} would be read {plan.epochs:.2f} times, more than data.max_epochs={limit:g}; give it "
            "a smaller weight or the run a smaller budget, or plan the blend with tools/check_blend.py"
            for plan in source_plans(config, known) if plan.epochs and plan.epochs > limit]
