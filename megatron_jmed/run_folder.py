"""What lies where in a run folder, and when is a checkpoint whole?

RUN/config.json  RUN/run.json  RUN/metrics.jsonl  RUN/blend.json  RUN/checkpoints/step_N/  RUN/weights/step_N/  RUN/hf/
RUN/exams/ (answers given while it trained)  RUN/scores/  RUN/report.html, and four marker files: `stop` (a request to save
and end), `stopped` (that was done: step and reason), `done` (step), `stalled` (a rank made no progress: step and who).
RUN/heartbeats/ and RUN/stalls/ are train/watch.py's, RUN/batches/ is data/batch_hashes.py's; RUN/alarms/step_N.txt names what a
step that raised an alarm had read.

Invariant: `state.json` is written last into a checkpoint, so a folder without it was never finished and counts as
nothing. `files.json` holds every file's size and SHA-256, by which a damaged one is known. Programs of different rooms
(train, convert, evaluate, launch) meet through this file's names alone.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from megatron_jmed.config import ModelConfig, ParallelConfig, RunConfig, load_config
from megatron_jmed.errors import CheckpointError, ConfigError

STATE_NAME = "state.json"
FILES_NAME = "files.json"


class CheckpointState(BaseModel):
    """What a checkpoint holds and where in the training it was taken."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format_version: Literal[1] = 1
    step: int
    tokens: int
    model: ModelConfig
    has_optimizer: bool
    parallel: ParallelConfig | None = None
    world_size: int | None = None
    code_version: str = ""
    source: str = ""


class RunFolder:
    """The paths inside one run folder."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.run = self.path / "run.json"
        self.metrics = self.path / "metrics.jsonl"
        self.blend = self.path / "blend.json"
        self.index_cache = self.path / "index_cache"
        self.batches = self.path / "batches"
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "weights"
        self.alarms = self.path / "alarms"
        self.exams = self.path / "exams"
        self.stop = self.path / "stop"
        self.stopped = self.path / "stopped"
        self.done = self.path / "done"
        self.stalled = self.path / "stalled"
        self.heartbeats = self.path / "heartbeats"
        self.stalls = self.path / "stalls"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:07d}"

    def whole_checkpoints(self) -> list[Path]:
        """The finished checkpoints, oldest first."""
        return sorted(path.parent for path in self.checkpoints.glob(f"step_*/{STATE_NAME}")
                      if re.fullmatch(r"step_\d+", path.parent.name))

    def remove_unfinished(self) -> None:
        """Remove what a killed run's writers left; one that still lives writes on into nothing."""
        for folder in (self.checkpoints, self.weights):
            for path in folder.glob("partial_*"):
                shutil.rmtree(path, ignore_errors=True)

    def latest_checkpoint(self) -> Path | None:
        return next(reversed(self.whole_checkpoints()), None)


def existing_parent(path: Path) -> Path:
    """The path itself or the nearest folder above it that is there: what a new folder would be made in."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def load_state(checkpoint: Path) -> CheckpointState:
    """The state of a finished checkpoint; CheckpointError if it is none."""
    path = checkpoint / STATE_NAME
    try:
        return CheckpointState.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        latest = RunFolder(checkpoint).latest_checkpoint()
        hint = (f"it is a run, whose latest is {latest}" if latest else "it is a run or a Hugging Face folder"
                if (checkpoint / "config.json").exists() else "it was never finished" if checkpoint.is_dir()
                else "there is no such folder")
        raise CheckpointError(f"{checkpoint}: not a checkpoint, {hint} ({STATE_NAME} is written last); give the folder "
                              "step_N of a run, or one that tools/import_hf.py wrote") from None
    except ValidationError as error:
        raise CheckpointError(f"{path}: not a checkpoint state of format version 1: {error.errors()[0]['msg']}") from None


def check_same_model(checkpoint: Path, state: CheckpointState, model: ModelConfig) -> None:
    """CheckpointError that lists every word in which the checkpoint's network differs from `model`'s.

    Vocabularies that pad to the same number of rows are the same: a Hugging Face folder may already count the padding
    (LLM-jp's hold 99,584 rows for 99,574 pieces).
    """
    words = ("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "kv_channels", "ffn_hidden_size",
             "num_experts", "router_topk", "vocab_size", "tied_embeddings", "rotary_base", "layernorm_epsilon")
    differ = [f"model.{word} is {getattr(state.model, word)} in the checkpoint and {getattr(model, word)} in the config"
              for word in words if getattr(state.model, word) != getattr(model, word)
              and not (word == "vocab_size" and _blocks(state.model, model) == _blocks(model, model))]
    lora = ("lora_rank", "lora_alpha", "lora_targets")
    if state.model.lora_rank and any(getattr(state.model, word) != getattr(model, word) for word in lora):
        says = [" ".join(f"model.{word}={getattr(one, word)}" for word in lora) for one in (state.model, model)]
        raise CheckpointError(f"{checkpoint} holds adapters ({says[0]}; the config says {says[1]}); take the same words, or "
                              "export it (tools/export_hf.py adds them to the weights), import that and begin from it")
    if differ:
        raise CheckpointError(f"{checkpoint}: a checkpoint of another model: " + "; ".join(differ))


def _blocks(of: ModelConfig, model: ModelConfig) -> int:
    """How many blocks of `model.vocab_divisor` rows the vocabulary of `of` fills."""
    return -(-of.vocab_size // model.vocab_divisor)


# What makes two configs the same run. Other data would make the steps of its checkpoints mean other sequences: some would be
# read twice, others never. The horizon may move: the order of sequences does not depend on it.
_FIXED = ("init", "seed", "model.", "data.", "budget.seq_length", "budget.global_batch_size")
_FREE = ("data.max_epochs", "data.cache_folder", "data.num_workers", "data.skip_steps")  # of skips those ahead: _changed_skips


def changed_words(folder: RunFolder, config: RunConfig) -> list[str]:
    """What differs from the config in the run folder, as "word: old -> new"; ConfigError if that makes it another run."""
    if not folder.config.exists():
        return []
    before = load_config(str(folder.config))
    old, new = (_flat(c.model_dump(mode="json")) for c in (before, config))
    changes = {word: f"{word}: {old.get(word)} -> {new.get(word)}" for word in {**old, **new} if old.get(word) != new.get(word)}
    fixed = [text for word, text in changes.items() if word.startswith(_FIXED) and word not in _FREE]
    fixed += _changed_skips(folder, before, config)
    if fixed:
        raise ConfigError(f"{folder.path} holds another run: it differs in\n" + "\n".join(f"  - {text}" for text in fixed) +
                          "\nTake these words back to go on there, or give this run a folder of its own (run_folder=...); with "
                          f'init="{folder.latest_checkpoint() or "CHECKPOINT"}" it begins with the weights trained so far')
    return list(changes.values())


def _changed_skips(folder: RunFolder, before: RunConfig, config: RunConfig) -> list[str]:
    """What `data.skip_steps` says otherwise than before about steps that the latest checkpoint has behind it."""
    latest = folder.latest_checkpoint()
    step = load_state(latest).step if latest else 0
    old, new = ([list(pair) for pair in c.data.skipped_ranges(step)] for c in (before, config))
    if old == new:
        return []
    return [f"data.skip_steps, of the {step} steps that are done: {old} -> {new}; steps after {step} are free to be skipped or not"]


def _flat(words: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for word, value in words.items():
        flat |= _flat(value, f"{prefix}{word}.") if isinstance(value, dict) and value else {prefix + word: value}
    return flat


def begin_checkpoint(folder: Path) -> None:
    """An empty folder for a checkpoint; what a killed writer left there is removed."""
    if folder.exists():
        remove_checkpoint(folder)
    folder.mkdir(parents=True)


def finish_checkpoint(folder: Path, state: CheckpointState) -> None:
    """Make the checkpoint whole: everything in it reaches the disk before `state.json` does."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _sync(path)
    _sync(folder)
    write_json(folder / STATE_NAME, state.model_dump(mode="json"))


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; `state.json` goes first, so that a half-removed one is never taken for whole."""
    (folder / STATE_NAME).unlink(missing_ok=True)
    shutil.rmtree(folder)


def file_sum(path: Path) -> list:
    """[bytes, SHA-256] of a file."""
    with open(path, "rb") as stream:
        return [os.fstat(stream.fileno()).st_size, hashlib.file_digest(stream, "sha256").hexdigest()]


def write_file_sums(checkpoint: Path, sums: dict[str, list]) -> None:
    """`files.json` of a checkpoint, with {file: [bytes, SHA-256]}."""
    write_json(checkpoint / FILES_NAME, {name: sums[name] for name in sorted(sums)})


def damage(checkpoint: Path, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with this part of a checkpoint's files, as sentences: several ranks read a large one together.

    Nothing is known of a checkpoint without `files.json` (a converted one; its tensors' checksums lie beside it).
    """
    try:
        sums = json.loads((checkpoint / FILES_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError:
        return [f"{FILES_NAME} is damaged"]
    found = []
    for name, (size, digest) in sorted(sums.items())[part::parts]:
        path = checkpoint / name
        if not path.exists():
            found.append(f"{name} is missing")
        elif path.stat().st_size != size:
            found.append(f"{name} has {path.stat().st_size} bytes, not {size}")
        elif file_sum(path)[1] != digest:
            found.append(f"{name} has another SHA-256 than when it was written")
    return found


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

