"""`python -m megatron_jmed.train CONFIG [section.word=value ...] [--dry-run WORLD_SIZE]`, alone or under torchrun or srun.

CONFIG is a recipe's name, a .toml experiment, or a saved config.json. Heavy imports wait inside `main`, so that a bad
config is refused in a second.
"""

import argparse
import sys

from megatron_jmed.config import load_config
from megatron_jmed.errors import ConfigError, run_tool


def main() -> None:
    arguments = _arguments()
    config = load_config(arguments.config, arguments.changes)
    if arguments.dry_run is not None:
        if arguments.dry_run < 1:
            raise ConfigError(f"--dry-run {arguments.dry_run}: a number of ranks begins at 1")
        from megatron_jmed.train.dry_run import print_plan

        print_plan(config, arguments.dry_run)
        return
    from megatron_jmed.parallel import read_world
    from megatron_jmed.run_folder import RunFolder
    from megatron_jmed.train.preflight import check_before_start

    world = read_world()
    token_sets, checkpoint, state = check_before_start(config, world.size)
    folder = RunFolder(config.run_folder)
    if state and checkpoint.parent == folder.checkpoints and state.step >= config.num_steps:
        if world.rank == 0:
            folder.done.write_text(f"{state.step}\n", encoding="utf-8")
            print(f"{config.name}: the token budget is read (step {state.step} of {config.num_steps}); to read more, begin "
                  f'another run_folder with init="{checkpoint}"')
        return
    from megatron_jmed.train.loop import train

    sys.exit(train(config, world, token_sets, checkpoint))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m megatron_jmed.train", description="Train, or plan a training run.")
    parser.add_argument("config", help="recipe name, .toml experiment, or config.json of a run")
    parser.add_argument("changes", nargs="*", help="changes such as optim.peak_lr=5e-5")
    parser.add_argument("--dry-run", type=int, metavar="WORLD_SIZE", help="print the plan for that many ranks and end")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run_tool(main)
