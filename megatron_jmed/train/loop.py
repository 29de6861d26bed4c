"""The training loop, top to bottom on one screen.

In: a config whose preflight passed. Out: the run folder. Invariant: a run that is stopped, killed or moved to another
layout and started again computes what the uninterrupted run would have computed.
"""

from pathlib import Path

from megatron_jmed.config import RunConfig
from megatron_jmed.corpus.token_set import TokenSet
from megatron_jmed.data.pretrain import batches, blend_account, build_data, train_batches
from megatron_jmed.data.replay import documents_of_step
from megatron_jmed.errors import TrainingError
from megatron_jmed.exit_codes import ExitCode
from megatron_jmed.model.build import build_data_parallel_model, whole_weights
from megatron_jmed.parallel import World, device, from_rank_zero, start_groups, stop_groups
from megatron_jmed.run_folder import RunFolder
from megatron_jmed.train.alarms import UpdateGuard, why_end
from megatron_jmed.train.beginning import restore
from megatron_jmed.train.exams import Exams
from megatron_jmed.train.monitor import Monitor
from megatron_jmed.train.optimizer import build_optimizer, learning_rate
from megatron_jmed.train.saver import Saver
from megatron_jmed.train.step import Stepper
from megatron_jmed.train.stop import StopRequest
from megatron_jmed.train.watch import Watchdog


def train(config: RunConfig, world: World, token_sets: list[TokenSet], checkpoint: Path | None) -> ExitCode:
    """Train until the token budget is read or somebody asks to stop. Collective over all ranks."""
    folder = RunFolder(config.run_folder)
    with Watchdog(config.watch, folder, world.rank, world.size, has_stages=config.parallel.pp > 1) as watchdog:
        return _train(config, world, token_sets, checkpoint, watchdog)


def _train(config: RunConfig, world: World, token_sets: list[TokenSet], checkpoint: Path | None,
           watchdog: Watchdog) -> ExitCode:
    folder = RunFolder(config.run_folder)
    stop_request = StopRequest(folder, world)
    groups = start_groups(config.parallel, world, config.seed)
    data = build_data(config, token_sets)
    model = build_data_parallel_model(config, groups)
    optimizer = build_optimizer(config, model, groups)

    watchdog.enter("load")
    beginning = restore(config, world, checkpoint, model, optimizer, groups)
    step = beginning.step
    monitor = Monitor(config, world, folder, beginning, lambda step: documents_of_step(config, token_sets, data, step))
    saver = Saver(config, world, model, optimizer, groups, monitor,
                  lambda saved: blend_account(config, token_sets, data, saved))
    eval_every = config.steps_of(config.budget.eval_every_tokens) if config.budget.eval_every_tokens and data.valid else 0
    guard = UpdateGuard(config.watch, from_rank_zero(monitor.history))
    stepper = Stepper(config, groups, model, optimizer, data.source_names, guard)
    exams = Exams(config, world, groups, stepper)
    micro_batches = watchdog.watched(train_batches(config, data, groups, step, device()), "train")
    actions: set[str] = set()  # what the last step's alarms ask for; rank 0 raises them, the next step tells the others

    while step < config.num_steps:
        lr = learning_rate(config, step)
        wants_stop, wants_save = bool(stop_request.reason()), "save" in actions
        is_skipped = config.data.is_skipped(step + 1)
        numbers = (stepper.skip(wants_stop, wants_save) if is_skipped else
                   stepper.train(micro_batches, lr, wants_stop, wants_save))
        step += 1
        watchdog.finish_step(step)
        is_last = step == config.num_steps
        alarms = monitor.record_step(step, lr, numbers)
        if not is_skipped and (reason := why_end(config.watch, step, numbers.loss, numbers.grad_norm, numbers.skipped_in_a_row)):
            saver.finish()
            raise TrainingError(f"{reason}; it is not saved. "
                                f"Start again from {folder.latest_checkpoint() or 'the beginning'}, with a lower optim.peak_lr")
        actions = {alarm.action for alarm in alarms}
        stop_request.note_alarms(alarms)
        if eval_every and (step % eval_every == 0 or is_last):
            valid_batches = watchdog.watched(batches(config, data.valid, groups, 0, config.budget.eval_steps, device()), "validate")
            with whole_weights(model):
                monitor.record_validation(step, stepper.validate(valid_batches, config.budget.eval_steps))
        if exams.are_due(step):
            watchdog.enter("validate")
            with whole_weights(model):
                exams.sit(step)
            monitor.restart_clock()
        watchdog.enter("save")
        saver.save_what_is_due(step, is_last=is_last or numbers.is_stop_asked, is_asked=numbers.is_save_asked)
        if numbers.is_stop_asked:
            break

    watchdog.enter("end")
    is_alarm = from_rank_zero(stop_request.is_alarm) and step < config.num_steps
    monitor.close(step, stop_request.reason())
    stop_request.ignore_from_now_on()
    stop_groups()
    return ExitCode.STOPPED if is_alarm else ExitCode.FINISHED

