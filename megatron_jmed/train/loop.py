"""The training loop, top to bottom on one screen.

In: a config whose preflight passed. Out: the run folder. Invariant: a run that is stopped, killed or moved to another
layout and started again computes what the uninterrupted run would have computed.
"""

import math
from pathlib import Path

from megatron_jmed.config import RunConfig
from megatron_jmed.corpus.manifest import code_version
from megatron_jmed.corpus.tokens import TokenSet
from megatron_jmed.data.pretrain import batches, blend_account, build_data, train_batches
from megatron_jmed.errors import TrainingError
from megatron_jmed.model.build import build_data_parallel_model, whole_weights
from megatron_jmed.parallel import World, device, start_groups, stop_groups
from megatron_jmed.run_folder import CheckpointState, RunFolder, remove_checkpoint, write_json
from megatron_jmed.train.checkpoint import load_checkpoint, load_weights, save_checkpoint
from megatron_jmed.train.monitor import Monitor, StopRequest
from megatron_jmed.train.optimizer import build_optimizer, learning_rate
from megatron_jmed.train.step import Stepper


def train(config: RunConfig, world: World, token_sets: list[TokenSet], checkpoint: Path | None,
          state: CheckpointState | None) -> None:
    """Train until the token budget is read or somebody asks to stop. Collective over all ranks."""
    folder = RunFolder(config.run_folder)
    stop_request = StopRequest(folder, world)
    groups = start_groups(config.parallel, world, config.seed)
    data = build_data(config, token_sets)
    model = build_data_parallel_model(config, groups)
    optimizer = build_optimizer(config, model, groups)

    step = 0
    if checkpoint and checkpoint.parent == folder.checkpoints:
        load_checkpoint(checkpoint, state, model, optimizer, groups)
        step = state.step
    elif checkpoint:
        load_weights(checkpoint, model, optimizer, groups)

    def save(step: int) -> None:
        save_checkpoint(folder.checkpoint(step), _state(config, world, step), model, optimizer, groups)
        if world.rank == 0:
            write_json(folder.blend, blend_account(config, token_sets, data, step))
            for old in folder.whole_checkpoints()[:-config.budget.keep_checkpoints]:
                remove_checkpoint(old)

    save_every = config.steps_of(config.budget.save_every_tokens)
    eval_every = config.steps_of(config.budget.eval_every_tokens) if config.budget.eval_every_tokens and data.valid else 0
    monitor = Monitor(config, world, folder, step, checkpoint)
    stepper = Stepper(config, groups, model, optimizer, data.source_names)
    micro_batches = train_batches(config, data, groups, step, device())

    while step < config.num_steps:
        lr = learning_rate(config, step)
        wants_stop = bool(stop_request.reason())
        is_skipped = config.data.is_skipped(step + 1)
        numbers = stepper.skip(wants_stop) if is_skipped else stepper.train(micro_batches, lr, wants_stop)
        step += 1
        is_last = step == config.num_steps
        monitor.record_step(step, lr, numbers)
        if not is_skipped and not (math.isfinite(numbers.loss) and math.isfinite(numbers.grad_norm)):
            raise TrainingError(f"step {step} has loss {numbers.loss} and gradient norm {numbers.grad_norm}; it is not saved. "
                                f"Start again from {folder.latest_checkpoint() or 'the beginning'}, with a lower optim.peak_lr")
        if eval_every and (step % eval_every == 0 or is_last):
            valid_batches = batches(config, data.valid, groups, 0, config.budget.eval_steps, device())
            with whole_weights(model):
                monitor.record_validation(step, stepper.validate(valid_batches, config.budget.eval_steps))
        if step % save_every == 0 or is_last or numbers.is_stop_asked:
            with whole_weights(model):
                save(step)
            monitor.restart_clock()
        if numbers.is_stop_asked:
            break

    monitor.close(step, stop_request.reason())
    stop_request.ignore_from_now_on()
    stop_groups()


def _state(config: RunConfig, world: World, step: int) -> CheckpointState:
    return CheckpointState(
        step=step,
        tokens=step * config.tokens_per_step,
        model=config.model,
        has_optimizer=True,
        parallel=config.parallel,
        world_size=world.size,
        code_version=code_version(),
        skipped_steps=config.data.num_skipped(step),
    )
