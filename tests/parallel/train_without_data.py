"""Started by the tests under torchrun: a training in which rank 1 waits for ever for the data of step 4."""

import time

import megatron_jmed.train.loop as loop
from megatron_jmed.parallel import read_world
from megatron_jmed.train.__main__ import main

MICRO_BATCHES_A_STEP = 2  # of the tiny recipe on two ranks


def no_more(batches):
    for number, batch in enumerate(batches):
        if number == 3 * MICRO_BATCHES_A_STEP:
            time.sleep(10_000)
        yield batch


if __name__ == "__main__":
    if read_world().rank == 1:
        endless = loop.batches
        loop.batches = lambda *arguments: no_more(endless(*arguments))
    main()
