"""Started by the tests, with a sickness and the arguments of `megatron_jmed.train`: a training whose data are

no_data   absent on rank 1 from step 4 on: it waits for ever
poisoned  such that the loss of step 3 is not finite
"""

import math
import sys
import time

import megatron_jmed.train.loop as loop
from megatron_jmed.errors import run_tool
from megatron_jmed.parallel import read_world
from megatron_jmed.train.__main__ import main


def no_data(batches, micro_batches_a_step):
    for number, batch in enumerate(batches):
        if number == 3 * micro_batches_a_step:
            time.sleep(10_000)
        yield batch


def poisoned(batches, micro_batches_a_step):
    for number, batch in enumerate(batches):
        if number == 2 * micro_batches_a_step:
            batch.loss_mask_BS[0, 0] = math.inf
        yield batch


if __name__ == "__main__":
    sickness = {"no_data": no_data, "poisoned": poisoned}[sys.argv.pop(1)]
    world, healthy = read_world(), loop.train_batches
    if world.rank == 1 or sickness is poisoned:
        loop.train_batches = lambda *arguments: sickness(healthy(*arguments), 4 // world.size)  # of the tiny recipe
    run_tool(main)
