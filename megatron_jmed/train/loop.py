"""The training loop, top to bottom on one screen.

In: a config whose preflight passed. Out: the run folder. Invariant: a run that is stopped, killed or moved to another
layout and started again computes what the uninterrupted run would have computed.
"""

import math
from pathlib import Path

from megatron_jmed.config import RunConfig
from megatron_jmed.corpus.tokens import TokenSet
from megatron_jmed.data.pretrain import batches, blend_account, build_data
from megatron_jmed.errors import TrainingError
from megatron_jmed.model.build import build_data_parallel_model, whole_weights
from megatron_jmed.parallel import World, device, start_groups, stop_groups
from megatron_jmed.run_folder import RunFolder
from megatron_jmed.train.beginning import restore
from megatron_jmed.train.monitor import Monitor, StopRequest
from megatron_jmed.train.optimizer import build_optimizer, learning_rate
from megatron_jmed.train.saver import Saver
from megatron_jmed.train.step import Stepper


def train(config: RunConfig, world: World, token_sets: list[TokenSet], checkpoint: Path | None) -> None:
    """Train until the token budget is read or somebody asks to stop. Collective over all ranks."""
    folder = RunFolder(config.run_folder)
    stop_request = StopRequest(folder, world)
    groups = start_groups(config.parallel, world, config.seed)
    data = build_data(config, token_sets)
    model = build_data_parallel_model(config, groups)
    optimizer = build_optimizer(config, model, groups)

    beginning = restore(config, world, checkpoint, model, optimizer, groups)
    step = beginning.step
    monitor = Monitor(config, world, folder, beginning)
    saver = Saver(config, world, model, optimizer, groups, monitor,
                  lambda saved: blend_account(config, token_sets, data, saved))
    eval_every = config.steps_of(config.budget.eval_every_tokens) if config.budget.eval_every_tokens and data.valid else 0
    stepper = Stepper(config, groups, model, optimizer, data.source_names)
    train_batches = batches(config, data.train, groups, step, config.num_steps, device())

    while step < config.num_steps:
        lr = learning_rate(config, step)
        numbers = stepper.train(train_batches, lr, wants_stop=bool(stop_request.reason()))
        step += 1
        is_last = step == config.num_steps
        monitor.record_step(step, lr, numbers)
        if not (math.isfinite(numbers.loss) and math.isfinite(numbers.grad_norm)):
            saver.finish()
            raise TrainingError(f"step {step} has loss {numbers.loss} and gradient norm {numbers.grad_norm}; it is not saved. "
                                f"Start again from {folder.latest_checkpoint() or 'the beginning'}, with a lower optim.peak_lr")
        if eval_every and (step % eval_every == 0 or is_last):
            valid_batches = batches(config, data.valid, groups, 0, config.budget.eval_steps, device())
            with whole_weights(model):
                monitor.record_validation(step, stepper.validate(valid_batches, config.budget.eval_steps))
        saver.save_what_is_due(step, is_last or numbers.is_stop_asked)
        if numbers.is_stop_asked:
            break

    monitor.close(step, stop_request.reason())
    stop_request.ignore_from_now_on()
    stop_groups()

