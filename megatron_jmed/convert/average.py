"""The weighted average of several checkpoints of one model, as a source of slices and as a checkpoint of its own.

The average of w_1, w_2, ... with shares a_1, a_2, ... (they are made to add up to 1) is computed in fp32 as

    w_1 + sum_i a_i (w_i - w_1)

which is the same number, but exact wherever checkpoints agree: the average of equal weights is these weights, bit by bit.
It is rounded once, to the number format of the checkpoints. It streams like any conversion: in memory are a few slices,
not models. Averaging late checkpoints of one run (https://arxiv.org/abs/2306.03241), or of runs that began alike
(https://arxiv.org/abs/2203.05482), often scores better than each of them.
"""

from pathlib import Path
from typing import Any

import torch

from megatron_jmed.config import ModelConfig
from megatron_jmed.convert.names import Row
from megatron_jmed.convert.source import Weights, open_weights
from megatron_jmed.convert.torch_dist import write_checkpoint
from megatron_jmed.convert.weights import check_is_not_finished, num_workers
from megatron_jmed.corpus.manifest import code_version
from megatron_jmed.errors import CheckpointError
from megatron_jmed.run_folder import CheckpointState

_ROWS_AT_ONCE = 1024  # so that what is computed in between takes no room
# What decides neither a tensor nor what is computed from it: two runs may differ in it.
_OF_THE_TRAINING = {"init_method_std", "aux_loss_coeff", "z_loss_coeff"}


class AveragedWeights:
    """The average of `sources`, by `shares` that add up to 1. CheckpointError if they are not of one model."""

    def __init__(self, sources: list[Weights], shares: list[float]):
        first = sources[0]
        _check_same(sources)
        self._sources, self._shares = sources, shares
        self.name = " + ".join(f"{share:g} x {source.name}" for source, share in zip(sources, shares, strict=True))
        self.model, self.dtype, self.hf_files = first.model, first.dtype, first.hf_files
        self.identity: dict[str, Any] = {"average": [source.identity for source in sources], "shares": shares}

    def get(self, row: Row, index: tuple[int, ...]) -> torch.Tensor:
        """The averaged slice; in memory at once are two slices and one in fp32."""
        first = self._sources[0].get(row, index)  # memory of its own, so the average is put into it
        away = torch.zeros(first.shape, dtype=torch.float32)
        for source, share in zip(self._sources[1:], self._shares[1:], strict=True):
            other = source.get(row, index)
            for part, ours, theirs in zip(*(tensor.split(_ROWS_AT_ONCE) for tensor in (away, first, other)), strict=True):
                part.add_(theirs.float() - ours.float(), alpha=share)
        for part, ours in zip(away.split(_ROWS_AT_ONCE), first.split(_ROWS_AT_ONCE), strict=True):
            # Where all agree, the first as it is: -0.0 + 0.0 would be 0.0.
            ours.copy_(torch.where(part == 0, ours, (ours.float() + part).to(ours.dtype)))
        return first


def average_checkpoints(folders: list[Path], target: Path, weights: list[float] | None = None,
                        workers: int | None = None) -> ModelConfig:
    """Write the average of the checkpoints (or runs' latest) as TARGET, a weights-only checkpoint for `init` and export.

    It is called after the latest step among them. `weights` are relative; without them all count alike.
    """
    shares = _shares(len(folders), weights)
    check_is_not_finished(target)
    averaged = AveragedWeights([open_weights(folder) for folder in folders], shares)
    steps = [(identity.get("step", 0), identity.get("tokens", 0)) for identity in averaged.identity["average"]]
    step, tokens = max(steps)
    state = CheckpointState(step=step, tokens=tokens, model=averaged.model, has_optimizer=False, code_version=code_version(),
                            source=f"average: {averaged.name}")
    # Counted as if in fp32: what a worker holds of a bf16 slice is less than three times the room of it in fp32.
    write_checkpoint(target, averaged, state, num_workers(workers, averaged.model, torch.float32))
    return averaged.model


def _shares(number: int, weights: list[float] | None) -> list[float]:
    if number < 2:
        raise CheckpointError(f"{number} checkpoint(s) given; an average needs at least 2")
    weights = weights or [1.0] * number
    if len(weights) != number:
        raise CheckpointError(f"--weights gives {len(weights)} number(s) for {number} checkpoints; give one for each")
    if not all(0 < weight < float("inf") for weight in weights):
        raise CheckpointError(f"--weights {' '.join(f'{weight:g}' for weight in weights)}: each must be above 0")
    return [weight / sum(weights) for weight in weights]


def _check_same(sources: list[Weights]) -> None:
    """CheckpointError that lists every word in which a source's model or number format differs from the first's."""
    first, differ = sources[0], []
    for other in sources[1:]:
        words = {"number format": (first.dtype, other.dtype)}
        for word, value in first.model.model_dump(exclude=_OF_THE_TRAINING).items():
            words[f"model.{word}"] = (value, getattr(other.model, word))
        differ += [f"{word} is {ours} in {first.name} and {theirs} in {other.name}"
                   for word, (ours, theirs) in words.items() if ours != theirs]
    if differ:
        raise CheckpointError(f"not checkpoints of one model: {'; '.join(differ)}")
