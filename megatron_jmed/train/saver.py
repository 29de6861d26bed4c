"""Which checkpoints does a run write and keep? Every `save_every_tokens` one to resume from, of which the last few and the
milestones stay; every `weights_every_tokens` the weights alone, which always stay.

Invariant: at most one save is being written at a time, and its ranks agree on when it is finished.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.optimizer import ChainedOptimizer

from megatron_jmed.config import RunConfig
from megatron_jmed.corpus.manifest import code_version
from megatron_jmed.model.build import whole_weights
from megatron_jmed.parallel import Groups, World, device
from megatron_jmed.run_folder import CheckpointState, RunFolder, remove_checkpoint, write_json
from megatron_jmed.train.checkpoint import begin_save
from megatron_jmed.train.monitor import Monitor
from megatron_jmed.train.writer import PendingSave


class Saver:
    """Saves one run's model and optimizer; all methods are collective over all ranks."""

    def __init__(self, config: RunConfig, world: World, model: list[DistributedDataParallel], optimizer: ChainedOptimizer,
                 groups: Groups, monitor: Monitor, blend_account: Callable[[int], dict[str, Any]]):
        self._config, self._world, self._folder = config, world, RunFolder(config.run_folder)
        self._model, self._optimizer, self._groups = model, optimizer, groups
        self._monitor, self._blend_account = monitor, blend_account
        self._pending: PendingSave | None = None

    def save_what_is_due(self, step: int, *, is_last: bool, is_asked: bool) -> None:
        """Begin the saves that fall on `step` or are asked for, or finish the one begun before if its writers are done.

        The last save of a process, and every one with `budget.async_save=false`, is waited for.
        """
        if is_last or is_asked or self._is_multiple(step, self._config.budget.save_every_tokens):
            self._begin(step, self._optimizer)
        elif self._pending and not self._is_anyone_writing():
            self.finish()
        if self._is_multiple(step, self._config.budget.weights_every_tokens):
            self._begin(step, None)
        if is_last or not self._config.budget.async_save:
            self.finish()

    def finish(self) -> None:
        """Wait for the save that is being written, if any."""
        if self._pending is None:
            return
        save, self._pending = self._pending, None
        begin = time.perf_counter()
        seconds = save.finish()
        self._monitor.restart_clock()
        self._monitor.record_save(save.state.step, save.target, save.stall_seconds + time.perf_counter() - begin, seconds)
        if self._world.rank == 0 and save.state.has_optimizer:
            write_json(self._folder.blend, self._blend_account(save.state.step))
            self._remove_old()

    def _begin(self, step: int, optimizer: ChainedOptimizer | None) -> None:
        self.finish()
        target = self._folder.checkpoint(step)
        state = CheckpointState(
            step=step,
            tokens=step * self._config.tokens_per_step,
            model=self._config.model,
            has_optimizer=optimizer is not None,
            parallel=self._config.parallel,
            world_size=self._world.size,
            code_version=code_version(),
        )
        with whole_weights(self._model):
            self._pending = begin_save(target if optimizer else self._folder.weights / target.name, state, self._model, optimizer,
                                       self._groups)
        self._monitor.restart_clock()

    def _is_multiple(self, step: int, tokens: int) -> bool:
        return bool(tokens) and step % self._config.steps_of(tokens) == 0

    def _is_anyone_writing(self) -> bool:
        writing = torch.tensor([float(self._pending.is_writing())], device=device())
        torch.distributed.all_reduce(writing)
        return bool(writing.item())

    def _remove_old(self) -> None:
        """All but the last `keep_checkpoints` and the milestones every `keep_every_tokens`."""
        for old in self._folder.whole_checkpoints()[: -self._config.budget.keep_checkpoints]:
            if not self._is_multiple(int(old.name.removeprefix("step_")), self._config.budget.keep_every_tokens):
                remove_checkpoint(old)
