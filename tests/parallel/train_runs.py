"""Started by the tests, alone or under torchrun: train several runs one after the other in the same processes, which
saves the start of Python and Megatron for each. Argument: a JSON list of lists, each the arguments of
`megatron_jmed.train`; or ["copy", from, to], which copies a checkpoint to begin a run from."""

import json
import os
import shutil
import sys


def main() -> None:
    from megatron_jmed.config import load_config
    from megatron_jmed.parallel import read_world
    from megatron_jmed.train.loop import train
    from megatron_jmed.train.preflight import check_before_start

    world = read_world()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # a store of its own for each run: keys of the last one linger
    for number, (what, *changes) in enumerate(json.loads(sys.argv[1])):
        if what == "copy":
            assert world.size == 1
            shutil.copytree(*changes)
            continue
        if world.size > 1:
            os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1 + number)
        config = load_config(what, changes)
        train(config, world, *check_before_start(config, world.size))


if __name__ == "__main__":
    main()
