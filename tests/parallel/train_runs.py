"""Started by the tests, alone or under torchrun: train several runs one after the other in the same processes, which
saves the start of Python and Megatron for each. Argument: a JSON list of lists, each the arguments of
`megatron_jmed.train`; or ["copy", from, to], which copies a checkpoint to begin a run from; or ["resave", from, to,
recipe, change, ...], which loads a checkpoint at a layout, over other random weights, and saves it there; or ["probe", from,
to, recipe, change, ...], which writes the numbers of one step on invented batches with the weights of a checkpoint."""

import json
import os
import shutil
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path


def main() -> None:
    from megatron_jmed.config import load_config
    from megatron_jmed.parallel import read_world
    from megatron_jmed.train.loop import train
    from megatron_jmed.train.preflight import check_before_start

    world = read_world()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # a store of its own for each run: keys of the last one linger
    for number, (what, *changes) in enumerate(json.loads(sys.argv[1])):
        if what == "copy":
            copy(*changes, is_mine=world.rank == 0)
            continue
        verb, source, target = "train", "", ""
        if what in ("resave", "probe"):
            verb, (source, target, what, *changes) = what, changes
        if world.size > 1:
            os.environ["MASTER_PORT"] = free_port(number, is_mine=world.rank == 0)
        config = load_config(what, changes)
        if verb == "train":
            token_sets, checkpoint, _ = check_before_start(config, world.size)
            train(config, world, token_sets, checkpoint)
        else:
            {"resave": resave, "probe": probe}[verb](Path(source), Path(target), config, world)


def free_port(number: int, is_mine: bool) -> str:
    """A port for the store of run `number`: rank 0 asks the system for one, and tells the others in a file."""
    note = Path(f"port_{os.environ['TORCHELASTIC_RUN_ID']}_{number}")
    if is_mine:
        with socket.socket() as any_free:
            any_free.bind(("localhost", 0))
            note.with_suffix(".partial").write_text(str(any_free.getsockname()[1]))
        note.with_suffix(".partial").rename(note)
    while not note.exists():
        time.sleep(0.01)
    return note.read_text()


def resave(source: Path, target: Path, config, world) -> None:
    from megatron_jmed.model.build import build_data_parallel_model
    from megatron_jmed.parallel import start_groups, stop_groups
    from megatron_jmed.run_folder import load_state
    from megatron_jmed.train.checkpoint import load_checkpoint, save_checkpoint
    from megatron_jmed.train.optimizer import build_optimizer

    groups = start_groups(config.parallel, world, config.seed + 1)
    model = build_data_parallel_model(config, groups)
    optimizer = build_optimizer(config, model, groups)
    state = load_state(source)
    load_checkpoint(source, state, model, optimizer, groups)
    save_checkpoint(target, state, model, optimizer, groups)
    stop_groups()


def probe(source: Path, target: Path, config, world) -> None:
    """A step on random tokens, of which ever more count in the loss towards the end of a sequence."""
    import torch

    from megatron_jmed.data.batch import batch_from_sample
    from megatron_jmed.model.build import build_data_parallel_model
    from megatron_jmed.parallel import device, start_groups, stop_groups
    from megatron_jmed.train.checkpoint import load_weights
    from megatron_jmed.train.optimizer import build_optimizer
    from megatron_jmed.train.step import Stepper

    groups = start_groups(config.parallel, world, config.seed + 1)
    model = build_data_parallel_model(config, groups)
    optimizer = build_optimizer(config, model, groups)
    load_weights(source, model, optimizer, groups)
    size, length = config.budget.micro_batch_size, config.budget.seq_length

    def batch(number: int):
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(config.model.vocab_size, (size, length + 1), generator=generator)
        counts = torch.rand(size, length, generator=generator) < torch.linspace(0, 1, length)
        sample = {"tokens": ids[:, :-1], "labels": ids[:, 1:], "loss_mask": counts.float(), "dataset_id": torch.arange(size) % 2,
                  "position_ids": torch.arange(length).expand(size, length)}
        return batch_from_sample(sample, device(), groups.cp.rank(), groups.cp.size())

    mine = range(groups.dp.rank(), config.budget.global_batch_size // size, groups.dp.size())
    numbers = Stepper(config, groups, model, optimizer, ("even", "odd")).train(map(batch, mine), lr=0.0, wants_stop=False)
    if world.rank == 0:
        target.write_text(json.dumps(asdict(numbers)))
    stop_groups()


def copy(source: str, target: str, is_mine: bool) -> None:
    """Rank 0 copies, the others wait until the whole copy is there."""
    if is_mine:
        shutil.copytree(source, f"{target}.partial")
        os.rename(f"{target}.partial", target)
    while not os.path.exists(target):
        time.sleep(0.01)


if __name__ == "__main__":
    main()
