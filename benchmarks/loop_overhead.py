"""What does our loop cost beside a bare Megatron-Core loop on the same model?

`torchrun --nproc-per-node N benchmarks/loop_overhead.py FOLDER [CONFIG change ...]`: blocks of bare steps (schedule, optimizer,
zero the gradients: nothing is counted, reduced, logged or looked at) and of our steps (everything that is written to
metrics.jsonl, stop requests) take turns on one model and optimizer, so that both see the same machine. Prints the median step
of each, their ratio, and what of ours the record is. FOLDER needs the tokens of examples/00_tiny.sh.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import torch
from megatron.core.transformer.moe.router import TopKRouter

from megatron_jmed.config import load_config
from megatron_jmed.data.pretrain import batches, build_data
from megatron_jmed.data.sources import load_token_sets
from megatron_jmed.model.build import build_data_parallel_model
from megatron_jmed.parallel import device, read_world, start_groups, stop_groups
from megatron_jmed.run_folder import RunFolder
from megatron_jmed.train.beginning import Beginning
from megatron_jmed.train.monitor import Monitor
from megatron_jmed.train.optimizer import build_optimizer, learning_rate, set_learning_rate
from megatron_jmed.train.step import Stepper
from megatron_jmed.train.stop import StopRequest

BLOCKS, STEPS_A_BLOCK = 16, 4


def bare_step(stepper: Stepper, batch_iterator, lr: float) -> None:
    """What a training program cannot leave out."""
    set_learning_rate(stepper._optimizer, stepper._config.optim, lr)
    for chunk in stepper._model:
        chunk.zero_grad_buffer()
    stepper._optimizer.zero_grad()
    stepper._forward_backward(data_iterator=[batch_iterator], forward_only=False)
    stepper._optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("config", nargs="?", default="tiny")
    parser.add_argument("changes", nargs="*")
    arguments = parser.parse_args()
    os.chdir(arguments.folder)
    num_steps = 2 * BLOCKS * STEPS_A_BLOCK + 4
    config = load_config(arguments.config, [*arguments.changes, "run_folder=runs/overhead"])
    config = config.model_copy(update={"budget": config.budget.model_copy(
        update={"total_tokens": num_steps * config.tokens_per_step})})
    world, token_sets = read_world(), load_token_sets(config)
    groups = start_groups(config.parallel, world, config.seed)
    data = build_data(config, token_sets)
    model = build_data_parallel_model(config, groups)
    optimizer = build_optimizer(config, model, groups)
    stepper = Stepper(config, groups, model, optimizer, data.source_names)
    counter = stepper._experts._count
    routers = [(module, module.routing) for chunk in model for module in chunk.modules() if isinstance(module, TopKRouter)]
    folder = RunFolder(config.run_folder)
    stop = StopRequest(folder, world)
    monitor = Monitor(config, world, folder, Beginning(0, []))
    batch_iterator = batches(config, data.train, groups, 0, num_steps, device())
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    cpu_seconds: dict[str, list[float]] = {"bare": [], "ours": []}  # of this rank; other work on the machine hardly changes it
    step, telemetry = 0, []
    for block in range(2 * BLOCKS + 1):
        is_ours = block % 2 == 1
        type(stepper._experts)._count = counter.__func__ if is_ours else lambda *_: None
        for router, watched in routers:
            router.routing = watched if is_ours else watched.args[1]
        for _ in range(STEPS_A_BLOCK):
            lr = learning_rate(config, step)
            torch.distributed.barrier()
            begin, computed = time.perf_counter(), time.process_time()
            if is_ours:
                numbers = stepper.train(batch_iterator, lr, wants_stop=bool(stop.reason()))
                before = time.perf_counter()
                monitor.record_step(step + 1, lr, numbers)
                telemetry.append(time.perf_counter() - before)
            else:
                bare_step(stepper, batch_iterator, lr)
            if block:  # the first is a warm-up
                seconds["ours" if is_ours else "bare"].append(time.perf_counter() - begin)
                cpu_seconds["ours" if is_ours else "bare"].append(time.process_time() - computed)
            step += 1
    if world.rank == 0:
        bare, ours = (statistics.median(seconds[name]) for name in ("bare", "ours"))
        cpu_bare, cpu_ours = (statistics.median(cpu_seconds[name]) for name in ("bare", "ours"))
        pairs = zip(*(iter(seconds[name]) for name in ("bare", "ours")), strict=False)
        ratios = sorted(b / a for a, b in pairs)
        print(f"median step: bare {bare * 1e3:.1f} ms, ours {ours * 1e3:.1f} ms, ratio {ours / bare:.4f} "
              f"(of neighbours: median {statistics.median(ratios):.4f}); writing the record "
              f"{statistics.median(telemetry) * 1e3:.3f} ms, {statistics.median(telemetry) / ours:.2%} of a step; "
              f"CPU of rank 0: bare {cpu_bare * 1e3:.1f} ms, ours {cpu_ours * 1e3:.1f} ms, ratio {cpu_ours / cpu_bare:.4f}; "
              f"{len(seconds['ours'])} steps each, {world.size} ranks")
    stop_groups()


if __name__ == "__main__":
    main()
