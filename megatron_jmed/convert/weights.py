"""Move a model's weights between a Hugging Face folder and a checkpoint folder, by the table in names.py.

Invariant: every tensor of the target is written exactly once and every tensor of the source is used; else an error
lists what is missing, extra or of another shape, and no target is left that looks finished.
"""

import shutil
from pathlib import Path

import torch
from tqdm import tqdm

from megatron_jmed.config import ModelConfig
from megatron_jmed.convert.hf import HfWeights, HfWriter, hf_config, model_from_hf_config
from megatron_jmed.convert.names import Row, rows
from megatron_jmed.convert.tokenizer import num_pieces, special_token_ids, write_tokenizer
from megatron_jmed.convert.torch_dist import CheckpointReader, write_checkpoint
from megatron_jmed.corpus.manifest import code_version
from megatron_jmed.errors import CheckpointError
from megatron_jmed.run_folder import CheckpointState, load_state, write_json

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def import_hf(source: Path, target: Path) -> ModelConfig:
    """HF_FOLDER -> CHECKPOINT (weights only, step 0), for `init` of a run."""
    _check_is_free(target)
    model = model_from_hf_config(source)
    weights = HfWeights(source, model)
    padded = _padded(model)
    tensors = {row.key: _join_row(row, weights, model, padded)
               for row in tqdm(rows(model), desc="import", unit="kind", disable=None)}
    if unread := weights.unread_names():
        raise CheckpointError(f"{source}: {len(unread)} tensors belong to no part of the model: {_some(unread)}")
    write_checkpoint(target, tensors, CheckpointState(
        step=0, tokens=0, model=model, has_optimizer=False, code_version=code_version(), source=str(source)))
    return model


def export_hf(source: Path, target: Path, tokenizer: Path | None, dtype: str | None = None) -> ModelConfig:
    """CHECKPOINT -> HF_FOLDER: MixtralForCausalLM with config, index, and the tokenizer if given; padding is trimmed."""
    state = load_state(source)
    _check_is_free(target)
    if tokenizer and (pieces := num_pieces(tokenizer)) > state.model.vocab_size:
        raise CheckpointError(f"{tokenizer} has {pieces} pieces, more than the model's {state.model.vocab_size}: not its tokenizer")
    reader = CheckpointReader(source)
    _check_tensors(source, reader, state.model)
    out_dtype = _DTYPES[dtype] if dtype else reader.dtype(rows(state.model)[0].key)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    special_ids = write_tokenizer(tokenizer, partial) if tokenizer else special_token_ids(None)
    writer = HfWriter(partial)
    for row in tqdm(rows(state.model), desc="export", unit="kind", disable=None):
        stack = reader.read(row.key)
        if row.has_vocabulary:
            stack = stack[: state.model.vocab_size]
        for index, names in row.slices(state.model):
            for name, tensor in zip(names, row.split(stack[index], state.model), strict=True):
                writer.add(name, tensor.to(out_dtype))
    writer.finish()
    write_json(partial / "config.json", hf_config(state.model, out_dtype, special_ids))
    write_json(partial / "generation_config.json", {"_from_model_config": True, **special_ids})
    if target.exists():
        target.rmdir()
    partial.replace(target)
    return state.model


def _check_is_free(target: Path) -> None:
    """Nothing that a user has is written over or removed."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: not empty; remove it or name another folder")


def _join_row(row: Row, weights: HfWeights, model: ModelConfig, padded_vocab: int) -> torch.Tensor:
    """One stacked tensor of the checkpoint, from all its Hugging Face tensors."""
    shape = row.shape(model, padded_vocab)
    stack: torch.Tensor | None = None
    for index, names in row.slices(model):
        part = row.join(_checked(names, weights, row, model), model)
        stack = torch.zeros(shape, dtype=part.dtype) if stack is None else stack
        if row.has_vocabulary:
            stack[: part.size(0)] = part
        else:
            stack[index] = part
    return stack


def _checked(names: tuple[str, ...], weights: HfWeights, row: Row, model: ModelConfig) -> tuple[torch.Tensor, ...]:
    """The tensors of one slice; CheckpointError if their shapes cannot make up the slice."""
    tensors = tuple(weights.get(name) for name in names)
    expected = row.split(torch.empty(row.slice_shape(model, model.vocab_size), device="meta"), model)
    for name, tensor, want in zip(names, tensors, expected, strict=True):
        if tensor.shape != want.shape:
            raise CheckpointError(f"tensor {name} has shape {list(tensor.shape)}; the config asks for {list(want.shape)}")
    return tensors


def _check_tensors(folder: Path, reader: CheckpointReader, model: ModelConfig) -> None:
    expected = {row.key for row in rows(model)}
    wrong = [f"{key} is missing" for key in sorted(expected - reader.weight_keys())]
    extra = {key for key in reader.weight_keys() - expected if not key.endswith("_extra_state")}
    wrong += [f"{key} belongs to no part of the model" for key in sorted(extra)]
    for row in rows(model):
        if row.key not in reader.weight_keys():
            continue
        shape = reader.shape(row.key)
        vocab_rows = shape[0] if row.has_vocabulary and shape[0] >= model.vocab_size else model.vocab_size
        if shape != row.shape(model, vocab_rows):
            wrong.append(f"{row.key} has shape {list(shape)}; state.json asks for {list(row.shape(model, vocab_rows))}")
    if wrong:
        raise CheckpointError(f"{folder}: " + _some(wrong))


def _padded(model: ModelConfig) -> int:
    return -(-model.vocab_size // model.vocab_divisor) * model.vocab_divisor


def _some(items: list[str], most: int = 8) -> str:
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")
