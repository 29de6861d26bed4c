"""Write weights, wherever they come from, as a checkpoint folder or a Hugging Face folder.

Both stream: layer by layer and file by file, in `workers` threads, with the memory of a few slices however large the
model is (`memory_bound_bytes`). Both resume after a kill, and both keep a list of checksums beside the weights.
Invariant: every tensor of the target is written exactly once and every tensor of the source is used; else an error lists
what is missing, extra or of another shape, and no target is left that looks finished.
"""

import os
from pathlib import Path
from typing import Any

import torch

from megatron_jmed.config import ModelConfig
from megatron_jmed.convert.hf import Style, write_safetensors
from megatron_jmed.convert.hf_config import hf_config, read_json
from megatron_jmed.convert.names import hf_names, rows
from megatron_jmed.convert.parts import begin_parts, end_parts
from megatron_jmed.convert.source import Weights, open_weights
from megatron_jmed.convert.tokenizer import num_pieces, special_token_ids, write_tokenizer
from megatron_jmed.convert.torch_dist import CHECKSUMS, copy_hf_files, padded_vocabulary, write_checkpoint
from megatron_jmed.corpus.chat import CHAT_TEMPLATE, ChatTemplate
from megatron_jmed.corpus.manifest import code_version
from megatron_jmed.errors import CheckpointError
from megatron_jmed.run_folder import CheckpointState, write_json

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEMORY_GIB = 12.0
_BASE_BYTES = 700 * 2**20  # Python with torch, and what files are being read and written
_SLICES_A_WORKER = 3  # read, joined or converted, and in the hands of the writer


def import_weights(source: Weights, target: Path, workers: int | None = None) -> ModelConfig:
    """Any weights -> CHECKPOINT (weights only, step 0), for `init` of a run."""
    check_is_not_finished(target)
    state = CheckpointState(step=0, tokens=0, model=source.model, has_optimizer=False, code_version=code_version(),
                            source=source.name)
    write_checkpoint(target, source, state, num_workers(workers, source.model, source.dtype))
    return source.model


def import_hf(source: Path, target: Path, workers: int | None = None) -> ModelConfig:
    """HF_FOLDER -> CHECKPOINT."""
    return import_weights(open_weights(source), target, workers)


def export_hf(source: Path, target: Path, tokenizer: Path | None = None, dtype: str | None = None,
              workers: int | None = None, style: Style = "4") -> ModelConfig:
    """CHECKPOINT -> HF_FOLDER; padding is trimmed."""
    return export_weights(open_weights(source), target, tokenizer, dtype, workers, style)


def export_weights(source: Weights, target: Path, tokenizer: Path | None = None, dtype: str | None = None,
                   workers: int | None = None, style: Style = "4", chat_template: ChatTemplate | None = None) -> ModelConfig:
    """Any weights -> HF_FOLDER: Mixtral or Llama with config, index and checksums; other small files as they came.

    `tokenizer`: a SentencePiece model to write in the place of the tokenizer files that came with the weights. `chat_template`: the
    same of the template that came with them, if any did.
    """
    _check_is_free(target)
    model, out_dtype = source.model, DTYPES[dtype] if dtype else source.dtype
    if tokenizer:
        _check_tokenizer(tokenizer, model)
    partial = target.with_name(target.name + ".partial")
    template = {"chat_template": chat_template.source} if chat_template else {}
    begin_parts(partial, {"of": source.identity, "dtype": str(out_dtype), "style": style, **template})
    checksums = write_safetensors(partial, source, out_dtype, num_workers(workers, model, out_dtype), style)
    assert set(checksums) == hf_names(model), "every tensor is written exactly once"
    _write_small_files(partial, source, tokenizer, out_dtype)
    if chat_template:
        (partial / CHAT_TEMPLATE).write_text(chat_template.source, encoding="utf-8")
    write_json(partial / CHECKSUMS, checksums)
    end_parts(partial)
    if target.exists():
        target.rmdir()
    partial.replace(target)
    return model


def _write_small_files(folder: Path, source: Weights, tokenizer: Path | None, dtype: torch.dtype) -> None:
    copy_hf_files(source, folder)
    carried = _words(folder / "config.json")
    special_ids = write_tokenizer(tokenizer, folder) if tokenizer else _special_ids(carried)
    write_json(folder / "config.json", hf_config(source.model, dtype, special_ids, carried))
    if not (folder / "generation_config.json").exists():
        write_json(folder / "generation_config.json", {"_from_model_config": True, **special_ids})


def _words(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _special_ids(carried: dict[str, Any]) -> dict[str, int]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: carried[name] for name in names if name in carried} if carried else special_token_ids(None)


def memory_bound_bytes(model: ModelConfig, dtype: torch.dtype, workers: int) -> int:
    """The most memory that a conversion needs: base + workers x 3 x the largest slice (the embedding, or an expert's fc1)."""
    largest = max(torch.Size(row.slice_shape(model, padded_vocabulary(model))).numel() for row in rows(model))
    return _BASE_BYTES + workers * _SLICES_A_WORKER * largest * dtype.itemsize


def num_workers(asked: int | None, model: ModelConfig, dtype: torch.dtype) -> int:
    """The threads asked for, or `default_workers`; CheckpointError for fewer than one."""
    if asked is not None and asked < 1:
        raise CheckpointError(f"--workers {asked}: at least 1 must do the work")
    return asked or default_workers(model, dtype)


def default_workers(model: ModelConfig, dtype: torch.dtype) -> int:
    """As many threads as there are cores, while the bound stays below 12 GiB; at least one."""
    fitting = (workers for workers in range(len(os.sched_getaffinity(0)), 1, -1)
               if memory_bound_bytes(model, dtype, workers) <= MEMORY_GIB * 2**30)
    return next(fitting, 1)


def _check_tokenizer(tokenizer: Path, model: ModelConfig) -> None:
    """As many pieces as the vocabulary has, or so many less that padding, to our multiple or to another (100,352 rows for LLM-jp's
    99,574 pieces), or a few tokens added later make the difference: a hundredth of the vocabulary."""
    pieces = num_pieces(tokenizer)
    padded = -(-pieces // model.vocab_divisor) * model.vocab_divisor
    if not pieces <= model.vocab_size <= max(padded, pieces * 1.01):
        raise CheckpointError(f"{tokenizer} has {pieces} pieces, the model's vocabulary {model.vocab_size}: not its tokenizer")


def _check_is_free(target: Path) -> None:
    """Nothing that a user has is written over or removed."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: not empty; remove it or name another folder")


def check_is_not_finished(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target}: not a folder; name another")
