"""Legacy Megatron folders (`torch` format) as a source of slices: how LLM-jp's own checkpoints lie on disk.

    FOLDER/latest_checkpointed_iteration.txt    the iteration, or "release"
    FOLDER/iter_0000500/mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt

Each file holds one rank's part: `args` (a namespace: sizes and layout), `model` (or `model0`, `model1`, ... with virtual
pipeline stages), whose layers count from 0 on every stage, and optimizer state, which is not read: Megatron-Core 0.14
and later cannot resume it. Source: Megatron-LM core_v0.10.0, training/checkpointing.py and moe/experts.py.

Three layouts of the experts of one layer, told apart by their names (F' = F / tensor-parallel size):

| SequentialMLP | mlp.experts.local_experts.e.linear_fc1.weight [2F', H] and linear_fc2.weight [H, F']                |
| TEGroupedMLP  | mlp.experts.linear_fc1.weight{e} [2F', H] and linear_fc2.weight{e} [H, F']                          |
| GroupedMLP    | mlp.experts.weight1 [H, E*2F'], a flat view of [E, H, 2F']; weight2 [E*F', H], of [E, F', H]: transposed |

The 2F' rows of each tensor-parallel rank are its gate rows, then its up rows.

Such a file is a pickle, which can run any code when it is loaded. Only torch's restricted reader is used: names outside
a short list of number and tensor types end the import, except classes of Megatron and numpy, which are replaced by an
empty stand-in and never imported. No tensor is loaded with the pickle; its place in the file is kept and read later.
"""

import re
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from tqdm import tqdm

from megatron_jmed.config import ModelConfig
from megatron_jmed.convert.names import Row, rows
from megatron_jmed.convert.stored import StoredTensor
from megatron_jmed.errors import CheckpointError, some_of

_TRACKER, _FILE = "latest_checkpointed_iteration.txt", "model_optim_rng.pt"
_RANK = re.compile(r"mp_rank_(\d{2})(?:_(\d{3}))?(?:_(\d{3}))?")
_STOOD_IN_FOR = re.compile(r"(megatron|transformer_engine|numpy|apex)\.|signal\.|_codecs\.encode$|collections\.deque$")

# What the args must say for the network to be ours (a word that is absent is not held against the folder).
_FIXED_ARGS = {
    "swiglu": True, "normalization": "RMSNorm", "add_bias_linear": False, "add_qkv_bias": False, "qk_layernorm": False,
    "position_embedding_type": "rope", "rotary_percent": 1.0, "use_rotary_position_embeddings": None,
    "rotary_interleaved": False, "rotary_seq_len_interpolation_factor": None, "apply_layernorm_1p": False,
    "moe_router_pre_softmax": False, "moe_shared_expert_intermediate_size": None, "moe_expert_capacity_factor": None,
    "moe_layer_freq": 1, "multi_latent_attention": False, "window_size": None, "use_rope_scaling": False,
}


class _StandIn:
    """Takes the place of a class that is not loaded; holds nothing and does nothing."""

    def __init__(self, *_args, **_words):
        pass

    def __setstate__(self, _state):
        pass


def is_legacy(folder: Path) -> bool:
    return (folder / _TRACKER).exists() or any(folder.glob("mp_rank_*"))


class LegacyWeights:
    """The weights of a legacy folder; `vocab_size` where its args do not say how many pieces the tokenizer has."""

    hf_files = None

    def __init__(self, folder: Path, vocab_size: int | None = None):
        self.name = str(folder)
        self._folder = _iteration_folder(folder)
        self._ranks = _ranks(self._folder)
        first = next(iter(self._ranks.values()))
        self._args = _load(first).get("args")
        if not isinstance(self._args, Namespace):
            raise CheckpointError(f"{first}: no args; the layout of the folder is not known without them")
        self._tp, self._pp, self._ep, self._etp = _layout(self._args)
        self.model = _model(self._args, vocab_size, self._folder)
        self._tensors = {path: _read_places(path) for path in tqdm(self._ranks.values(), desc="open", unit="rank", disable=None)}
        self.dtype = self._only_dtype()
        self._check()
        self.identity = {"legacy": self.name, "vocab_size": self.model.vocab_size, "files": [
            [path.parent.name, path.stat().st_size, path.stat().st_mtime_ns] for path in self._ranks.values()]}

    def get(self, row: Row, index: tuple[int, ...]) -> torch.Tensor:
        tensor = _join(row, [place.read() for place in self._places(row, index)])
        return tensor[: self.model.vocab_size] if row.has_vocabulary else tensor

    def _places(self, row: Row, index: tuple[int, ...]) -> list["_Place"]:
        """Where one slice lies: one place for each tensor-parallel rank that holds a part of its own."""
        if row.stacked == "by layer and expert":
            return self._expert_places(row, *index)
        stage = self._stage(index[0])[0] if index else 0 if row.key.startswith("embedding") else self._pp - 1
        name = row.key.replace("decoder.layers.", f"decoder.layers.{self._stage(index[0])[1]}.") if index else f"0:{row.key}"
        ranks = range(self._tp) if _split_dim(row) is not None else range(1)
        return [_plain_place(self._tensors[self._file(tp, stage)], name) for tp in ranks]

    def _expert_places(self, row: Row, layer: int, expert: int) -> list["_Place"]:
        stage, local = self._stage(layer)
        per_rank = self.model.num_experts // self._ep
        ep, within = divmod(expert, per_rank)
        return [_expert_place(self._tensors[self._file(tp, stage, ep)], f"decoder.layers.{local}.mlp.experts.",
                              row.key.split(".")[-2], within, per_rank, self.model.hidden_size) for tp in range(self._etp)]

    def _stage(self, layer: int) -> tuple[int, str]:
        """The pipeline stage of a layer, and VIRTUAL STAGE:LAYER, its number there."""
        per_chunk = getattr(self._args, "num_layers_per_virtual_pipeline_stage", None) or self.model.num_layers // self._pp
        chunk, local = divmod(layer, per_chunk)
        virtual, stage = divmod(chunk, self._pp)
        return stage, f"{virtual}:{local}"

    def _file(self, tp: int, stage: int, ep: int | None = None) -> Path:
        """The file of a rank; experts that are not split over tensor-parallel ranks are in whichever rank's is there."""
        for (rank_tp, rank_pp, rank_ep), path in self._ranks.items():
            if rank_pp == stage and ep in (None, rank_ep) and (rank_tp == tp or (ep is not None and self._etp == 1)):
                return path
        expert = "" if ep is None else f", expert-parallel rank {ep}"
        raise CheckpointError(f"{self._folder}: no mp_rank folder of tensor-parallel rank {tp}, pipeline stage {stage}{expert}")

    def _only_dtype(self) -> torch.dtype:
        kinds = {stored.dtype for tensors in self._tensors.values() for stored in tensors.values()}
        if len(kinds) != 1:
            raise CheckpointError(f"{self._folder}: weights of several number formats: {', '.join(sorted(map(str, kinds)))}")
        return kinds.pop()

    def _check(self) -> None:
        """Every slice is there with its shape, and every weight of every file has a place in the model."""
        wrong: list[str] = []
        used: set[tuple[int, str]] = set()
        padded = self._args.padded_vocab_size
        for row in rows(self.model):
            for index, _ in row.slices(self.model):
                try:
                    places = self._places(row, index)
                except KeyError as error:
                    wrong.append(f"{row.key}{list(index)}: no tensor {error.args[0]}")
                    continue
                stage = self._stage(index[0])[0] if index else 0 if row.key.startswith("embedding") else self._pp - 1
                used |= {(stage, place.name) for place in places}
                found = tuple(_join(row, [torch.empty(place.shape, device="meta") for place in places]).shape)
                if found != row.slice_shape(self.model, padded):
                    wrong.append(f"{row.key}{list(index)} has shape {list(found)}; the args ask for "
                                 f"{list(row.slice_shape(self.model, padded))}")
        for (_, stage, _), path in self._ranks.items():
            wrong += [f"{path.parent.name}: {name} belongs to no part of the model" for name in sorted(self._tensors[path])
                      if (stage, name) not in used and not (self.model.tied_embeddings and "embedding" in name)]
        if wrong:
            raise CheckpointError(f"{self._folder}: {some_of(wrong)}")


@dataclass(frozen=True)
class _Place:
    """One rank's part of a slice: a stored tensor, to be transposed where legacy GroupedMLP keeps it the other way."""

    name: str
    stored: StoredTensor
    is_transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape[::-1] if self.is_transposed else self.stored.shape

    def read(self) -> torch.Tensor:
        tensor = self.stored.read()
        return tensor.t() if self.is_transposed else tensor


def _plain_place(tensors: dict[str, StoredTensor], name: str) -> _Place:
    """KeyError if there is none. Megatron's local spec keeps a norm apart that Transformer Engine's fuses into the next layer."""
    for ours, theirs in ((".self_attention.linear_qkv.layer_norm_weight", ".input_layernorm.weight"),
                         (".mlp.linear_fc1.layer_norm_weight", ".pre_mlp_layernorm.weight")):
        if name not in tensors and name.endswith(ours):
            name = name.removesuffix(ours) + theirs
    if name not in tensors and name.endswith(".pre_mlp_layernorm.weight"):  # the local spec's key for experts' norm
        name = name.replace(".pre_mlp_layernorm.weight", ".mlp.linear_fc1.layer_norm_weight")
    return _Place(name, tensors[name])


def _expert_place(tensors: dict[str, StoredTensor], prefix: str, part: str, expert: int, count: int, hidden: int) -> _Place:
    """One expert's linear_fc1 or linear_fc2 in any of the three layouts; KeyError if there is none."""
    for name in (f"{prefix}local_experts.{expert}.{part}.weight", f"{prefix}{part}.weight{expert}"):
        if name in tensors:
            return _Place(name, tensors[name])
    name = prefix + ("weight1" if part == "linear_fc1" else "weight2")
    flat = tensors[name]
    width = torch.Size(flat.shape).numel() // (count * hidden)
    shape = (count, hidden, width) if part == "linear_fc1" else (count, width, hidden)
    return _Place(name, StoredTensor(flat.path, flat.offset, flat.dtype, shape).part(expert), is_transposed=True)


def _split_dim(row: Row) -> int | None:
    """The dimension of a slice that tensor parallelism splits; None: every rank holds all of it."""
    part = ".".join(row.key.split(".")[-2:])
    return {"linear_qkv.weight": 0, "linear_fc1.weight": 0, "word_embeddings.weight": 0, "output_layer.weight": 0,
            "linear_proj.weight": 1, "linear_fc2.weight": 1}.get(part)


def _join(row: Row, parts: list[torch.Tensor]) -> torch.Tensor:
    """The slice, from the parts of all tensor-parallel ranks; each part of fc1 holds gate rows, then up rows."""
    if row.key.endswith("linear_fc1.weight"):
        gates, ups = zip(*(part.chunk(2, dim=0) for part in parts), strict=True)
        return torch.cat([*gates, *ups], dim=0)
    return torch.cat(parts, dim=_split_dim(row) or 0)


def _iteration_folder(folder: Path) -> Path:
    tracker = folder / _TRACKER
    if not tracker.exists():
        return folder
    word = tracker.read_text(encoding="utf-8").strip()
    if word != "release" and not word.isdigit():
        raise CheckpointError(f"{tracker}: {word!r} is neither an iteration nor 'release'")
    return folder / ("release" if word == "release" else f"iter_{int(word):07d}")


def _ranks(folder: Path) -> dict[tuple[int, int, int], Path]:
    """The file of every (tensor, pipeline, expert) rank."""
    paths = {path.parent: path for path in sorted(folder.glob(f"mp_rank_*/{_FILE}"))}
    if not paths:
        raise CheckpointError(f"{folder}: no mp_rank_*/{_FILE}")
    args = _load(next(iter(paths.values()))).get("args")
    has_pp = getattr(args, "pipeline_model_parallel_size", 1) > 1
    ranks = {}
    for parent, path in paths.items():
        match = _RANK.fullmatch(parent.name)
        if match is None:
            raise CheckpointError(f"{parent}: not a rank's name; it should be mp_rank_TT, _TT_PPP or _TT_PPP_EEE")
        tp, *rest = (int(number) for number in match.groups() if number is not None)
        pp, ep = rest if len(rest) == 2 else (rest[0], 0) if rest and has_pp else (0, rest[0] if rest else 0)
        ranks[tp, pp, ep] = path
    return ranks


def _layout(args: Namespace) -> tuple[int, int, int, int]:
    """(tp, pp, ep, tensor parallelism of experts)."""
    tp = getattr(args, "tensor_model_parallel_size", 1)
    etp = getattr(args, "expert_tensor_parallel_size", None) or tp
    if etp not in (1, tp):
        raise CheckpointError(f"args.expert_tensor_parallel_size={etp} is neither 1 nor args.tensor_model_parallel_size={tp}")
    return tp, getattr(args, "pipeline_model_parallel_size", 1), getattr(args, "expert_model_parallel_size", 1), etp


def _model(args: Namespace, vocab_size: int | None, folder: Path) -> ModelConfig:
    """The network that the args describe; CheckpointError names every word that cannot be expressed."""
    words = vars(args)
    wrong = [f"args.{word}={words[word]!r} (only {value!r} can be converted)" for word, value in _FIXED_ARGS.items()
             if word in words and words[word] != value]
    needed = ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size", "max_position_embeddings",
              "padded_vocab_size", "norm_epsilon")
    wrong += [f"args.{word} is missing" for word in needed if words.get(word) is None]
    wrong += [f"args.{word}={words[word]!r} (must be a number above 0)" for word in (*needed, "num_query_groups", "kv_channels")
              if words.get(word) is not None and not (isinstance(words[word], int | float) and words[word] > 0)]
    vocab_size = vocab_size or words.get("vocab_size")
    if not vocab_size:
        wrong.append("args.vocab_size is missing; say how many pieces the tokenizer has with --vocab-size or --tokenizer")
    elif vocab_size > (words.get("padded_vocab_size") or vocab_size):
        wrong.append(f"a vocabulary of {vocab_size} is more than args.padded_vocab_size={words['padded_vocab_size']}")
    if wrong:
        raise CheckpointError(f"{folder}: " + "; ".join(wrong))
    heads = args.num_attention_heads
    num_experts = words.get("num_experts") or 0
    return ModelConfig(
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        num_attention_heads=heads,
        num_query_groups=args.num_query_groups if words.get("group_query_attention") else heads,
        kv_channels=words.get("kv_channels") or args.hidden_size // heads,
        ffn_hidden_size=(words.get("moe_ffn_hidden_size") if num_experts else None) or args.ffn_hidden_size,
        num_experts=num_experts,
        router_topk=words.get("moe_router_topk", 2) if num_experts else 0,
        vocab_size=vocab_size,
        max_position_embeddings=args.max_position_embeddings,
        tied_embeddings=not words.get("untie_embeddings_and_output_weights", True),
        rotary_base=words.get("rotary_base", 10000),
        layernorm_epsilon=args.norm_epsilon,
        init_method_std=words.get("init_method_std", 0.02),
        aux_loss_coeff=words.get("moe_aux_loss_coeff", 0.0) if num_experts else 0.0,
    )


def _read_places(path: Path) -> dict[str, StoredTensor]:
    """Where every weight of a file lies; names begin with or hold VIRTUAL STAGE:, as `model1`'s layers start from 0 too."""
    content, places = _load(path), {}
    chunks = sorted((word for word in content if re.fullmatch(r"model\d*", word)), key=lambda word: (len(word), word))
    for number, word in enumerate(chunks):
        for name, tensor in content[word].items():
            if not isinstance(tensor, torch.Tensor) or name.endswith("_extra_state"):
                continue
            plain = name.removeprefix("module.")
            layer = plain.replace("decoder.layers.", f"decoder.layers.{number}:")
            places[layer if layer != plain else f"0:{plain}"] = _stored(path, name, tensor)
    return places


def _stored(path: Path, name: str, tensor: torch.Tensor) -> StoredTensor:
    if not tensor.is_contiguous():
        raise CheckpointError(f"{path}: {name} is stored with gaps; it was not written by Megatron's checkpointing")
    begin = tensor.untyped_storage()._checkpoint_offset + tensor.storage_offset() * tensor.element_size()
    return StoredTensor(path, begin, tensor.dtype, tuple(tensor.shape))


def _load(path: Path) -> dict[str, Any]:
    """The file's content with tensors that know their place and hold no values. Runs nothing that the file brings along."""
    try:
        foreign = [name for name in get_unsafe_globals_in_checkpoint(path) if name != "argparse.Namespace"]
        if refused := sorted(name for name in foreign if not _STOOD_IN_FOR.match(name)):
            raise CheckpointError(f"{path}: refused: it would load {some_of(refused)}, which no Megatron checkpoint holds and "
                                  "which could run code on this machine")
        with FakeTensorMode(), safe_globals([Namespace, *((_StandIn, name) for name in foreign)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, UnpicklingError) as error:
        raise CheckpointError(f"{path}: not a whole torch file that can be read safely: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a Megatron checkpoint (no dictionary)")
    return content
