"""A checkpoint folder as data: its tensors by key, read and written slice by slice with plain torch.

The format is Megatron-Core's `torch_dist`: torch.distributed.checkpoint files (`.distcp`, each a row of tensors as
torch.save writes them, and `.metadata`, which says what lies where) plus metadata.json (which back end) and common.pt
(what is no tensor). A folder written here loads into Megatron-Core at any layout. One layer is one file, and one slice
(a layer's, or an expert's) one chunk, so that neither side ever needs more than a slice in memory; torch's own writer
would want the whole stack of 40 layers (90 GB for the experts of 8x13B) at once.
"""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.utils import _create_file_view

from megatron_jmed.config import ModelConfig
from megatron_jmed.convert.names import Row, rows
from megatron_jmed.convert.parts import Part, begin_parts, end_parts, write_parts
from megatron_jmed.convert.stored import StoredTensor, checksum
from megatron_jmed.errors import CheckpointError, some_of
from megatron_jmed.run_folder import STATE_NAME, CheckpointState, finish_checkpoint, load_state, write_json

HF_FILES = "hf_files"  # the small files of the Hugging Face folder that a checkpoint was made from
CHECKSUMS = "checksums.json"

_BACKEND = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch",
            "common_backend_version": 1}
_Slice = tuple[Row, tuple[int, ...], tuple[str, ...]]


@dataclass(frozen=True)
class _Chunk:
    """A block of a tensor and where it lies: `sizes` values from `offsets` on, in bytes [begin, begin + length)."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    begin: int
    length: int


class CheckpointReader:
    """The tensors of a checkpoint folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        try:
            metadata = dcp.FileSystemReader(folder).read_metadata()
        except FileNotFoundError:
            raise CheckpointError(f"{folder}: no .metadata file; not a torch_dist checkpoint") from None
        except (pickle.UnpicklingError, EOFError, ValueError, AttributeError, ImportError, IndexError, KeyError) as error:
            raise CheckpointError(f"{folder}/.metadata: damaged ({error}); take another checkpoint") from None
        self._tensors = {key: value for key, value in metadata.state_dict_metadata.items()
                         if isinstance(value, TensorStorageMetadata)}
        self._chunks = self._chunks_by_key(metadata)

    def keys(self) -> set[str]:
        return set(self._tensors)

    def weight_keys(self) -> set[str]:
        """The keys of the model's weights (the optimizer's state is not a weight)."""
        return {key for key in self._tensors if not key.startswith("optimizer.")}

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        return self._tensors[key].properties.dtype

    def read(self, key: str, index: tuple[int, ...] = ()) -> torch.Tensor:
        """tensor[index], gathered from whatever chunks hold it; memory: the slice and one chunk."""
        shape = self.shape(key)
        target = torch.empty(shape[len(index):], dtype=self.dtype(key))
        filled = 0
        for chunk in self._chunks[key]:
            if all(begin <= at < begin + size for at, begin, size in zip(index, chunk.offsets, chunk.sizes, strict=False)):
                part = self._load(key, chunk)[tuple(at - begin for at, begin in zip(index, chunk.offsets, strict=False))]
                place = tuple(slice(begin, begin + size) for begin, size in
                              list(zip(chunk.offsets, chunk.sizes, strict=True))[len(index):])
                target[place] = part
                filled += part.numel()
        if filled != target.numel():
            raise CheckpointError(f"{self._folder}: {key}{list(index)} has {target.numel()} values, its chunks {filled}; "
                                  "the checkpoint is damaged")
        return target

    def _load(self, key: str, chunk: _Chunk) -> torch.Tensor:
        try:
            tensor = _read_saved(chunk)
        except (CheckpointError, RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError):
            raise CheckpointError(f"{self._folder}: {key} cannot be read; {chunk.path.name} is damaged or truncated") from None
        if tuple(tensor.shape) != chunk.sizes:
            raise CheckpointError(f"{self._folder}: {key}: {chunk.path.name} holds a tensor of shape {list(tensor.shape)} where "
                                  f"{list(chunk.sizes)} should be")
        return tensor

    def _chunks_by_key(self, metadata: Metadata) -> dict[str, list[_Chunk]]:
        stored = {(index.fqn, tuple(index.offset or ())): info for index, info in metadata.storage_data.items()}
        chunks = {}
        for key, tensor in self._tensors.items():
            infos = [(chunk, stored[key, tuple(chunk.offsets)]) for chunk in tensor.chunks]
            chunks[key] = [_Chunk(tuple(chunk.offsets), tuple(chunk.sizes), self._folder / info.relative_path, info.offset,
                                  info.length) for chunk, info in infos]
        return chunks


def _read_saved(chunk: _Chunk) -> torch.Tensor:
    """The tensor that torch.save wrote there. Its bytes go straight into it: torch.load alone would copy them twice."""
    with open(chunk.path, "rb") as file:
        view = _create_file_view(file, chunk.begin, chunk.length)
        shape = torch.load(view, map_location="meta", weights_only=True)
        view.seek(0)
        reader = torch._C.PyTorchFileReader(view)
        if not shape.is_contiguous() or shape.numel() * shape.element_size() != reader.get_record_size("data/0"):
            view.seek(0)
            return torch.load(view, map_location="cpu", weights_only=True)
        begin = reader.get_record_offset("data/0")
    return StoredTensor(chunk.path, chunk.begin + begin, shape.dtype, tuple(shape.shape)).read()


class CheckpointWeights:
    """The weights of a finished checkpoint folder, as a source of slices; vocabulary padding is cut off, adapters are added."""

    def __init__(self, folder: Path):
        self.name = str(folder)
        self.folder = folder
        state = load_state(folder)
        self._trained = state.model
        self.model: ModelConfig = state.model.model_copy(update={"lora_rank": 0})  # of the weights as they are given out
        self._reader = CheckpointReader(folder)
        self._check(self._reader)
        self.dtype = self._reader.dtype(rows(self.model)[0].key)
        self.identity = {"checkpoint": self.name, "step": state.step, "tokens": state.tokens, "code": state.code_version,
                         "written": (folder / ".metadata").stat().st_mtime_ns}
        self.hf_files = _hf_files(folder)

    def get(self, row: Row, index: tuple[int, ...]) -> torch.Tensor:
        tensor = self._reader.read(row.key, index)
        a, b = adapter_keys(row)
        if self._trained.lora_rank and a in self._adapters:
            a_rK, b_PNr = (self._reader.read(key, index).float() for key in (a, b))
            scale = self._trained.lora_alpha / self._trained.lora_rank
            tensor = (tensor.float() + scale * (b_PNr.flatten(end_dim=1) @ a_rK)).to(tensor.dtype)
        return tensor[: self.model.vocab_size] if row.has_vocabulary else tensor

    def _check(self, reader: CheckpointReader) -> None:
        """Every tensor of the model is there with its shape, and no other weight."""
        found, expected = reader.weight_keys(), {row.key for row in rows(self.model)}
        wrong = [f"{key} is missing" for key in sorted(expected - found)]
        known = {key for row in rows(self.model) for key in adapter_keys(row)} if self._trained.lora_rank else set()
        self._adapters = found & known
        if known and not self._adapters:
            wrong.append(f"the adapters of model.lora_rank={self._trained.lora_rank} are missing")
        extra = {key for key in found - expected - known if not key.endswith("_extra_state")}
        wrong += [f"{key} belongs to no part of the model" for key in sorted(extra)]
        for row in rows(self.model):
            if row.key not in found:
                continue
            shape = reader.shape(row.key)
            vocab_rows = shape[0] if row.has_vocabulary and shape[0] >= self.model.vocab_size else self.model.vocab_size
            if shape != row.shape(self.model, vocab_rows):
                wrong.append(f"{row.key} has shape {list(shape)}; state.json asks for {list(row.shape(self.model, vocab_rows))}")
        if wrong:
            raise CheckpointError(f"{self.folder}: {some_of(wrong)}")


def adapter_keys(row: Row) -> tuple[str, str]:
    """The keys of A [r, K] and B [P, N/P, r] beside a linear layer (model/lora.py)."""
    return f"{row.key.removesuffix('weight')}adapter.a", f"{row.key.removesuffix('weight')}adapter.b"


def write_checkpoint(folder: Path, weights: Any, state: CheckpointState, workers: int = 1) -> None:
    """Write the slices of `weights` (see source.py) as a weights-only checkpoint; whole only when state.json is there.

    Run again after a kill, it goes on with the layers that are missing. Memory: per worker about three slices.
    """
    model = state.model
    begin_parts(folder, {"of": weights.identity, "vocab_divisor": model.vocab_divisor})
    parts = [_part(number, slices, weights) for number, slices in enumerate(_files(model))]
    records = write_parts(folder, parts, workers, "checkpoint")
    chunks = [chunk for record in records for chunk in record["chunks"]]
    _check_written_once(chunks, model)
    with open(folder / ".metadata", "wb") as file:
        pickle.dump(_metadata(chunks, model, weights.dtype), file)
    torch.save({}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(_BACKEND), encoding="utf-8")
    copy_hf_files(weights, folder / HF_FILES)
    write_json(folder / CHECKSUMS, {name: sums for record in records for name, sums in record["checksums"].items()})
    end_parts(folder)
    finish_checkpoint(folder, state)


def _hf_files(checkpoint: Path) -> Path | None:
    """The small files of a checkpoint; a trained one has those of the checkpoint that its run began from."""
    if (checkpoint / HF_FILES).is_dir():
        return checkpoint / HF_FILES
    config = checkpoint.parents[1] / "config.json" if len(checkpoint.parents) > 1 else checkpoint
    init = json.loads(config.read_text(encoding="utf-8")).get("init", "") if config.is_file() else ""
    return _hf_files(Path(init)) if init and (Path(init) / STATE_NAME).exists() else None


def copy_hf_files(weights: Any, target: Path) -> None:
    """Copy the small files (config, tokenizer, chat template) that came with `weights`, if any did."""
    source = getattr(weights, "hf_files", None)
    if source and source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(source.iterdir()):
            if path.is_file() and is_carried(path.name):
                shutil.copyfile(path, target / path.name)


def is_carried(name: str) -> bool:
    """Whether a file of a Hugging Face folder goes with the weights: everything but weights, our own and hidden files."""
    weights = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".partial")
    return not name.startswith(".") and not name.endswith((*weights, ".index.json")) and name not in (CHECKSUMS, "README.md")


def padded_vocabulary(model: ModelConfig) -> int:
    """Rows of the embedding in a checkpoint written here; every layout cuts or pads them to its own number."""
    return -(-model.vocab_size // model.vocab_divisor) * model.vocab_divisor


def _files(model: ModelConfig) -> Iterator[list[_Slice]]:
    """The slices of each file: the embedding's, each layer's, and the end's."""
    of_layer: dict[int, list[_Slice]] = {layer: [] for layer in range(model.num_layers)}
    once: list[list[_Slice]] = []
    for row in rows(model):
        for index, names in row.slices(model):
            if index:
                of_layer[index[0]].append((row, index, names))
            else:
                once.append([(row, index, names)])
    yield from [once[0], *of_layer.values(), *once[1:]]


def _part(number: int, slices: list[_Slice], weights: Any) -> Part:
    model, vocab_rows = weights.model, padded_vocabulary(weights.model)
    name = f"__{number}_0.distcp"

    def write(file: BinaryIO, advance: Callable[[int], Any]) -> dict[str, Any]:
        chunks, checksums = [], {}
        for row, index, names in slices:
            tensor = weights.get(row, index)
            for hf_name, hf_tensor in zip(names, row.split(tensor, model), strict=True):
                checksums[hf_name] = checksum(hf_tensor)
            if row.has_vocabulary:
                tensor = torch.nn.functional.pad(tensor, (0, 0, 0, vocab_rows - len(tensor)))
            begin = file.tell()
            with _without_crc():
                torch.save(tensor.contiguous().view(*(1,) * len(index), *tensor.shape), file)
            chunks.append({"key": row.key, "index": index, "file": name, "begin": begin, "length": file.tell() - begin})
            advance(tensor.numel() * tensor.element_size())
        return {"chunks": chunks, "checksums": checksums}

    num_bytes = sum(torch.Size(row.slice_shape(model, vocab_rows)).numel() for row, _, _ in slices) * weights.dtype.itemsize
    return Part(name, num_bytes, write)


def _check_written_once(chunks: list[dict[str, Any]], model: ModelConfig) -> None:
    written = [(chunk["key"], tuple(chunk["index"])) for chunk in chunks]
    expected = [(row.key, index) for row in rows(model) for index, _ in row.slices(model)]
    assert sorted(written) == sorted(expected), "every slice is written exactly once"


def _metadata(chunks: list[dict[str, Any]], model: ModelConfig, dtype: torch.dtype) -> Metadata:
    properties = TensorProperties(dtype=dtype)
    tensors, stored = {}, {}
    for row in rows(model):
        shape, part = row.shape(model, padded_vocabulary(model)), row.slice_shape(model, padded_vocabulary(model))
        tensors[row.key] = TensorStorageMetadata(properties, torch.Size(shape), [
            ChunkStorageMetadata(_offsets(index, part), torch.Size((*(1,) * len(index), *part)))
            for index, _ in row.slices(model)])
    parts = {row.key: row.slice_shape(model, padded_vocabulary(model)) for row in rows(model)}
    for chunk in chunks:
        offsets = _offsets(chunk["index"], parts[chunk["key"]])
        stored[MetadataIndex(chunk["key"], offsets)] = _StorageInfo(chunk["file"], chunk["begin"], chunk["length"])
    return Metadata(tensors, planner_data={key: (key,) for key in tensors}, storage_data=stored, version="1.0.0")


def _offsets(index: tuple[int, ...], part: tuple[int, ...]) -> torch.Size:
    return torch.Size((*index, *(0,) * len(part)))


@contextmanager
def _without_crc() -> Iterator[None]:
    """torch.save without the zip checksums that no reader looks at: they halve its speed. The setting is the thread's own."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
