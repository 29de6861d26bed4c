"""From what does a run begin, and what of it is restored, computed or reset? The resume contract.

In: the checkpoint that preflight found (the run's newest, else `init`, else none). Out: the step to go on from, and the
contract as lines, printed before the first step. Invariant: a run never falls back silently: a damaged checkpoint of its
own is set aside under another name, said aloud, and the one before it is taken; when none is left, the run is refused.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.optimizer import ChainedOptimizer

from megatron_jmed.config import RunConfig
from megatron_jmed.errors import CheckpointError
from megatron_jmed.parallel import Groups, World
from megatron_jmed.run_folder import CheckpointState, RunFolder, changed_words, damage, load_state
from megatron_jmed.train.checkpoint import load_checkpoint, load_weights
from megatron_jmed.train.optimizer import learning_rate


@dataclass(frozen=True)
class Beginning:
    """The step to go on from (0: a new run) and the contract, a line each."""

    step: int
    contract: list[str]


def restore(config: RunConfig, world: World, checkpoint: Path | None, model: list[DistributedDataParallel],
            optimizer: ChainedOptimizer, groups: Groups) -> Beginning:
    """Load what the run begins from into model and optimizer. Collective over all ranks."""
    folder = RunFolder(config.run_folder)
    if world.rank == 0:
        folder.remove_unfinished()
    if checkpoint is None:
        return Beginning(0, _new_run(config, ["drawn      weights, at random, from seed " + str(config.seed)]))
    if checkpoint.parent == folder.checkpoints:
        checkpoint = newest_undamaged(folder, world)
        state = load_state(checkpoint)
        load_checkpoint(checkpoint, state, model, optimizer, groups)
        return Beginning(state.step, _resumed(config, checkpoint, state, changed_words(folder, config)))
    if problems := _damage_on_all_ranks(checkpoint, world):
        raise CheckpointError(f"{checkpoint}: damaged: {'; '.join(problems)}; begin from another one")
    state = load_state(checkpoint)
    if config.init_moments:
        load_checkpoint(checkpoint, state, model, optimizer, groups)
        kept = [f"restored   weights, fp32 masters and Adam's moments (of {state.step} steps) of {checkpoint}"]
    else:
        load_weights(checkpoint, model, optimizer, groups)
        kept = [f"restored   weights of {checkpoint}", "reset      Adam's moments, to 0: init_moments=false"]
    return Beginning(0, _new_run(config, kept))


def newest_undamaged(folder: RunFolder, world: World) -> Path:
    """The run's newest checkpoint whose files are as they were written. Damaged ones are renamed. Collective."""
    for checkpoint in reversed(folder.whole_checkpoints()):
        problems = _damage_on_all_ranks(checkpoint, world)
        if not problems:
            return checkpoint
        aside = checkpoint.with_name(f"damaged_{checkpoint.name}")
        if world.rank == 0:
            print(f"{checkpoint} IS DAMAGED: {'; '.join(problems)}. It is now {aside.name}; the one before it is taken",
                  file=sys.stderr, flush=True)
            checkpoint.rename(aside)
        torch.distributed.barrier()
    raise CheckpointError(f"{folder.checkpoints}: every checkpoint of this run is damaged. To begin anew, give another run_folder; "
                          "what is left lies in damaged_step_*")


def _damage_on_all_ranks(checkpoint: Path, world: World) -> list[str]:
    """What is wrong with a checkpoint; each rank reads its share of the files. Collective over all ranks."""
    found: list[list[str]] = [None] * world.size
    torch.distributed.all_gather_object(found, damage(checkpoint, world.rank, world.size))
    return sorted({problem for part in found for problem in part})


def _resumed(config: RunConfig, checkpoint: Path, state: CheckpointState, changed: list[str]) -> list[str]:
    first = state.step * config.budget.global_batch_size
    return [
        f"resume contract: step {state.step}, {state.tokens:,} tokens, from {checkpoint} (files as they were written)",
        f"  restored   weights, fp32 masters, Adam's moments of {state.step} steps",
        f"  restored   data position: sequence {first:,} of the order that seed {config.seed} gives",
        f"  computed   learning rate {learning_rate(config, state.step):.3g}: {config.optim.schedule} over {config.num_steps:,} "
        "steps",
        "  unneeded   random state: nothing is drawn while training",
        *(f"  changed    {text}" for text in changed),
    ]


def _new_run(config: RunConfig, kept: list[str]) -> list[str]:
    return ["beginning contract: step 0, 0 tokens", *(f"  {line}" for line in kept),
            f"  begun      data position: sequence 0 of the order that seed {config.seed} gives",
            f"  begun      learning rate: {config.optim.schedule} over {config.num_steps:,} steps, warm-up "
            f"{config.optim.warmup_tokens:,} tokens"]
