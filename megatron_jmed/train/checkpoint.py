"""Training state <-> a folder of Megatron-Core's torch_dist format that any layout can read.

Weights are stored under Megatron-Core's own keys; masters and moments under `optimizer.state.NAME.KEY`, each with the
full shape of its weight. What is scalar (step, tokens) is in state.json. Invariant: neither the keys nor the bytes of a
tensor depend on the layout that wrote it, so TP, PP, VPP, EP, DP and the number of ranks are free to change at a resume.

Upstream (0.16.1) does not get there by itself: `fully_reshardable` saves but its load misses Adam's `step` under
torch's optimizer, and the `chained_N.` prefixes differ between EP=1 and EP>1. Both are avoided by asking each
distributed optimizer for its tensors directly. No random number is drawn while training (no dropout, no jitter), so
the random state is not part of a checkpoint.
"""

import uuid
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer
from megatron.core.utils import unwrap_model
from torch.distributed.checkpoint.api import CheckpointException

from megatron_jmed.errors import CheckpointError
from megatron_jmed.model.lora import is_adapter
from megatron_jmed.parallel import Groups, from_rank_zero
from megatron_jmed.run_folder import CheckpointState, load_state
from megatron_jmed.train.writer import PendingSave


def begin_save(folder: Path, state: CheckpointState, model: list[DistributedDataParallel], optimizer: ChainedOptimizer | None,
               groups: Groups) -> PendingSave:
    """Begin to write everything a resume needs, or (without an optimizer) the weights. Collective over all ranks."""
    partial = folder.with_name(from_rank_zero(f"partial_{folder.name}_{uuid.uuid4().hex[:8]}"))
    content: dict[str, Any] = {"model": _sharded_model(model, groups)}
    if optimizer:
        content["optimizer"] = _sharded_optimizer(optimizer, content["model"], groups, is_loading=False)
    return PendingSave(folder, partial, state, content)


def save_checkpoint(folder: Path, state: CheckpointState, model: list[DistributedDataParallel], optimizer: ChainedOptimizer,
                    groups: Groups) -> None:
    """Write everything a resume needs, and wait for it. Collective over all ranks."""
    begin_save(folder, state, model, optimizer, groups).finish()


def load_model(folder: Path, model: list[torch.nn.Module], groups: Groups) -> None:
    """Weights only, into a model without an optimizer, in the model's own precision. Collective over all ranks.

    From a checkpoint without adapters the model's own stay as they were drawn: they add nothing yet.
    """
    sharded = _sharded_model(model, groups)
    if not load_state(folder).model.lora_rank:
        sharded = {number: {key: value for key, value in chunk.items() if not is_adapter(key)} for number, chunk in sharded.items()}
    loaded = _load(folder, {"model": sharded})
    _put_weights(model, loaded["model"])


def load_weights(folder: Path, model: list[DistributedDataParallel], optimizer: ChainedOptimizer, groups: Groups) -> None:
    """Weights only, into the model and the optimizer's masters; moments start at zero. Collective over all ranks."""
    load_model(folder, model, groups)
    optimizer.reload_model_params()


def load_checkpoint(folder: Path, state: CheckpointState, model: list[DistributedDataParallel], optimizer: ChainedOptimizer,
                    groups: Groups) -> None:
    """Weights, masters and moments, whatever layout wrote them. Collective over all ranks."""
    if not state.has_optimizer:
        raise CheckpointError(f'{folder} holds weights only; it can start a run (init="{folder}") but not resume one')
    _allocate_moments(optimizer)
    sharded_model = _sharded_model(model, groups)
    loaded = _load(folder, {
        "model": sharded_model,
        "optimizer": _sharded_optimizer(optimizer, sharded_model, groups, is_loading=True),
    })
    _put_weights(model, loaded["model"])
    for index, part in enumerate(_parts(optimizer)):
        with _StepsAside(part, state.step):
            part.load_parameter_state_from_fully_reshardable(loaded["optimizer"][index])
    _check_masters(optimizer)


def _check_masters(optimizer: ChainedOptimizer) -> None:
    """CheckpointError if a rounded master is not its weight: the two would drift apart from the first step on."""
    for part in _parts(optimizer):
        for weights, masters in zip(part.shard_float16_groups, part.shard_fp32_from_float16_groups, strict=True):
            for weight, master in zip(weights, masters, strict=True):
                if not torch.equal(weight, master.to(weight.dtype)):
                    raise CheckpointError("the fp32 masters of the checkpoint are not those of its weights; it is damaged")


def _load(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Megatron-Core's strict load: every tensor asked for must be there, with its shape."""
    try:
        return dist_checkpointing.load(content, str(folder), strict=StrictHandling.RAISE_UNEXPECTED)
    except CheckpointException:  # torch's; a BaseException, with every rank's stack trace in it
        raise CheckpointError(f"{folder}: cannot be read; its files are damaged or truncated") from None
    except (dist_checkpointing.core.CheckpointingException, KeyError, ValueError) as error:
        raise CheckpointError(f"{folder}: does not hold this model: {error}") from error


def _put_weights(model: list[torch.nn.Module], weights: dict[int, dict[str, Any]]) -> None:
    """Copy loaded weights into the model; only `_extra_state` and adapters may be absent."""
    for number, chunk in enumerate(model):
        answer = unwrap_model(chunk).load_state_dict(weights[number], strict=False)
        missing = [key for key in answer.missing_keys if not key.endswith("_extra_state") and not is_adapter(key)]
        assert not missing and not answer.unexpected_keys, f"missing {missing}, unexpected {answer.unexpected_keys}"


def _sharded_model(model: list[torch.nn.Module], groups: Groups) -> dict[int, dict[str, Any]]:
    """This rank's weights by chunk, with their place in the whole model: layers are counted through all stages and chunks.

    Transformer Engine's `_extra_state` entries are left out: empty but for delayed fp8 scaling, whose history is
    measured again within its first steps; without them both back ends write the same checkpoint.
    """
    sharded = {}
    for number, chunk in enumerate(model):
        weights = unwrap_model(chunk).sharded_state_dict(metadata={"dp_cp_group": groups.dp_cp})
        sharded[number] = {key: value for key, value in weights.items() if not key.endswith("_extra_state")}
    return sharded


def _sharded_optimizer(optimizer: ChainedOptimizer, sharded_model: dict[int, dict[str, Any]], groups: Groups,
                       is_loading: bool) -> dict[int, Any]:
    return {
        index: part.sharded_param_state_fully_reshardable(sharded_model, is_loading, metadata={})
        for index, part in enumerate(_parts(optimizer))
    }


def _parts(optimizer: ChainedOptimizer) -> list[DistributedOptimizer]:
    """Dense and (where EP > 1) expert parameters have an optimizer each; a stage without experts' own has a stub."""
    return [part for part in optimizer.chained_optimizers if not part.is_stub_optimizer]


def _allocate_moments(optimizer: ChainedOptimizer) -> None:
    for part in _parts(optimizer):
        part.init_state_fn(part.optimizer)


class _StepsAside:
    """Megatron-Core 0.16.1 copies every entry of Adam's state from the checkpoint, and torch's `step` is in none:
    take it out while the tensors are loaded, and put the right one in afterwards."""

    def __init__(self, part: DistributedOptimizer, step: int):
        self._part, self._step = part, step

    def __enter__(self) -> None:
        for state in self._part.optimizer.state.values():
            state.pop("step", None)

    def __exit__(self, *_exc) -> None:
        inner = self._part.optimizer
        if isinstance(inner, torch.optim.Optimizer) and type(inner).__module__.startswith("torch.optim"):
            for state in inner.state.values():
                state["step"] = torch.tensor(float(self._step))
        else:  # Transformer Engine's and apex's FusedAdam count in the parameter group
            for group in inner.param_groups:
                group["step"] = self._step

