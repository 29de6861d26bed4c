"""A Hugging Face folder as data: its config as a ModelConfig, its safetensors as slices; and the same for writing.

Invariant: nothing is guessed. A config that Megatron-Core could not compute alike is refused, with the word; a tensor
that is missing, left over, of another shape or of another number format is an error that lists it, before anything is
written. Modules of transformers are never used: names and bytes of files do not change with its version.
"""

import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from safetensors import SafetensorError, safe_open

from megatron_jmed.config import ModelConfig
from megatron_jmed.convert.hf_config import read_json
from megatron_jmed.convert.names import Row, rows
from megatron_jmed.convert.parts import Part, in_groups, write_parts
from megatron_jmed.convert.stored import StoredTensor, checksum, raw_bytes
from megatron_jmed.errors import CheckpointError, some_of
from megatron_jmed.run_folder import write_json

INDEX_NAME = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9

Style = Literal["4", "5"]
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class HfWeights:
    """The weights of a folder's safetensors as a source of slices; key styles of transformers 4 and 5 are both read.

    `model` is what the folder's config says; `dtype` casts every tensor, else they must all be of one.
    """

    def __init__(self, folder: Path, model: ModelConfig, dtype: torch.dtype | None = None):
        self.name, self.model, self.hf_files = str(folder), model, folder
        self._stored = _stored_tensors(folder)
        self._check()
        self.dtype = dtype or self._only_dtype()
        self.identity = {"hf": self.name, "dtype": str(self.dtype), "files": [
            [path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in sorted({t.path for t in self._stored.values()})]}

    def get(self, row: Row, index: tuple[int, ...]) -> torch.Tensor:
        names = tuple(name.format(layer=index[0] if index else None, expert=index[-1] if index else None) for name in row.hf_names)
        return row.join(tuple(self.tensor(name).to(self.dtype) for name in names), self.model)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor that transformers 4 calls `name`."""
        stored, rows_of_it = self._find(name)
        tensor = stored.read()
        return tensor if rows_of_it is None else tensor.chunk(2, dim=0)[rows_of_it]

    def _find(self, name: str) -> tuple[StoredTensor, int | None]:
        """Where `name` lies, and which half of that tensor it is (None: all).

        transformers 5 may keep all experts of a layer in two tensors, and calls the layer `mlp`.
        """
        if name in self._stored:
            return self._stored[name], None
        if (renamed := name.replace(".block_sparse_moe.gate.", ".mlp.gate.")) in self._stored:
            return self._stored[renamed], None
        if place := _in_stack(name):
            stack, expert, half = place
            if stack in self._stored and expert < self._stored[stack].shape[0]:
                return self._stored[stack].part(expert), half
        raise CheckpointError(f"{self.name}: no tensor {name}")

    def _check(self) -> None:
        """Every tensor of the model is there with its shape, and no other."""
        wrong, used = [], set()
        for name, shape in _hf_shapes(self.model):
            try:
                stored, half = self._find(name)
            except CheckpointError:
                wrong.append(f"no tensor {name}")
                continue
            used |= {name, name.replace(".block_sparse_moe.gate.", ".mlp.gate."), (_in_stack(name) or (name,))[0]}
            found = stored.shape if half is None else (stored.shape[0] // 2, *stored.shape[1:])
            if found != shape:
                wrong.append(f"tensor {name} has shape {list(found)}; the config asks for {list(shape)}")
        wrong += self._wrong_stacks()
        wrong += [f"{name} belongs to no part of the model" for name in sorted(set(self._stored) - used)]
        if wrong:
            raise CheckpointError(f"{self.name}: {len(wrong)} tensors are not as the config says: {some_of(wrong)}")

    def _wrong_stacks(self) -> list[str]:
        return [f"tensor {name} holds {stored.shape[0]} experts; the config asks for {self.model.num_experts}"
                for name, stored in self._stored.items()
                if re.search(r"\.mlp\.experts\.(gate_up|down)_proj$", name) and stored.shape[0] != self.model.num_experts]

    def _only_dtype(self) -> torch.dtype:
        by_dtype: dict[torch.dtype, list[str]] = {}
        for name, stored in self._stored.items():
            by_dtype.setdefault(stored.dtype, []).append(name)
        if len(by_dtype) > 1:
            kinds = "; ".join(f"{len(names)} in {dtype}, such as {names[0]}" for dtype, names in by_dtype.items())
            raise CheckpointError(f"{self.name}: tensors of several number formats ({kinds}); choose one with --dtype")
        return next(iter(by_dtype))


def write_safetensors(folder: Path, weights: Any, dtype: torch.dtype, workers: int, style: Style = "4") -> dict[str, str]:
    """Write the slices of `weights` (see source.py) as shards of at most 5 GB with an index; the checksum of each tensor.

    The folder is one that `begin_parts` made; run again after a kill, it goes on with the shards that are missing.
    """
    planned = list(_planned(weights.model, style))
    shards = [planned[begin:end] for begin, end in
              in_groups([tensors.num_bytes(dtype) for tensors in planned], MAX_SHARD_BYTES)]
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    records = write_parts(folder, [_part(name, shard, weights, dtype) for name, shard in zip(names, shards, strict=True)],
                          workers, "safetensors")
    checksums = {name: value for record in records for name, value in record["checksums"].items()}
    weight_map = {tensor: file for file, shard in zip(names, shards, strict=True) for tensors in shard for tensor in tensors.names}
    total = sum(tensors.num_bytes(dtype) for tensors in planned)
    write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    return checksums


@dataclass(frozen=True)
class _Planned:
    """Neighbours in a file: the tensors that one slice splits into, or one tensor that several slices make up."""

    row: Row
    indices: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def num_bytes(self, dtype: torch.dtype) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shapes) * dtype.itemsize


def _planned(model: ModelConfig, style: Style) -> Iterator[_Planned]:
    """Everything that the files hold, layer by layer."""
    slices = [(row, index, names) for row in rows(model) for index, names in row.slices(model)]
    begin = [item for item in slices if not item[1]][:1]
    end = [item for item in slices if not item[1]][1:]
    by_layer = sorted((item for item in slices if item[1]), key=lambda item: item[1][0])  # stable: rows in their order
    for row, index, names in begin + by_layer + end:
        part = row.split(torch.empty(row.slice_shape(model, model.vocab_size), device="meta"), model)
        if style == "5" and row.stacked == "by layer and expert":
            if index[1] == 0:
                stack, _, _ = _in_stack(names[0])
                yield _Planned(row, tuple((index[0], expert) for expert in range(model.num_experts)), (stack,),
                               ((model.num_experts, *row.slice_shape(model, model.vocab_size)),))
            continue
        if style == "5":
            names = tuple(name.replace(".block_sparse_moe.gate.", ".mlp.gate.") for name in names)
        yield _Planned(row, (index,), names, tuple(tuple(tensor.shape) for tensor in part))


def _part(name: str, planned: list[_Planned], weights: Any, dtype: torch.dtype) -> Part:
    def write(file: BinaryIO, advance: Callable[[int], Any]) -> dict[str, Any]:
        file.write(_header(planned, dtype))
        checksums = {}
        for tensors in planned:
            for index in tensors.indices:
                whole = weights.get(tensors.row, index).to(dtype)
                split = tensors.row.split(whole, weights.model)
                hf_names = tuple(name.format(layer=index[0] if index else None, expert=index[-1] if index else None)
                                 for name in tensors.row.hf_names)
                checksums |= {hf_name: checksum(tensor) for hf_name, tensor in zip(hf_names, split, strict=True)}
                for tensor in split if len(tensors.indices) == 1 else (whole,):
                    file.write(raw_bytes(tensor))
                advance(whole.numel() * whole.element_size())
        return {"checksums": checksums}

    return Part(name, sum(tensors.num_bytes(dtype) for tensors in planned), write)


def _header(planned: list[_Planned], dtype: torch.dtype) -> bytes:
    """The head of a safetensors file: its length in 8 bytes, then JSON of every tensor's place, padded to 8 bytes."""
    words: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensors in planned:
        for name, shape in zip(tensors.names, tensors.shapes, strict=True):
            end = offset + torch.Size(shape).numel() * dtype.itemsize
            words[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
    text = json.dumps(words, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _in_stack(name: str) -> tuple[str, int, int | None] | None:
    """Where transformers 5 keeps an expert's tensor: (stack, expert, half of its rows or None for all)."""
    match = re.fullmatch(r"(model\.layers\.\d+)\.block_sparse_moe\.experts\.(\d+)\.w([123])\.weight", name)
    if match is None:
        return None
    layer, expert, part = match.groups()
    if part == "2":
        return f"{layer}.mlp.experts.down_proj", int(expert), None
    return f"{layer}.mlp.experts.gate_up_proj", int(expert), 0 if part == "1" else 1


def _hf_shapes(model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    for tensors in _planned(model, "4"):
        yield from zip(tensors.names, tensors.shapes, strict=True)


def _stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder's safetensors, by its name in the files."""
    index = folder / INDEX_NAME
    if index.exists():
        file_of = {name: folder / file for name, file in read_json(index)["weight_map"].items()}
        found = {path: _tensors_of(path, "though the index names it") for path in sorted(set(file_of.values()))}
        lost = [f"{path}: no tensor {name}, though the index names it" for name, path in file_of.items()
                if name not in found[path]]
        if lost:
            raise CheckpointError(some_of(lost))
        return {name: found[path][name] for name, path in file_of.items()}
    single = folder / "model.safetensors"
    if single.exists():
        return _tensors_of(single, "")
    raise CheckpointError(f"{folder}: neither {INDEX_NAME} nor model.safetensors; only safetensors are read "
                          "(.bin files can run code when loaded)")


def _tensors_of(path: Path, why: str) -> dict[str, StoredTensor]:
    try:
        with safe_open(str(path), framework="pt"):  # the library checks that the head is sound and the file whole
            pass
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            words = json.loads(file.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file, {why}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from None
    words.pop("__metadata__", None)
    strange = [f"{name} is {word['dtype']}" for name, word in words.items() if word["dtype"] not in _DTYPES]
    if strange:
        raise CheckpointError(f"{path}: number formats that cannot be converted: {some_of(strange)}; known: {', '.join(_DTYPES)}")
    return {name: StoredTensor(path, 8 + length + word["data_offsets"][0], _DTYPES[word["dtype"]], tuple(word["shape"]))
            for name, word in words.items()}
