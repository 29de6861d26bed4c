"""What does the number that a process of ours ends with mean? All of them are here, and nowhere else.

The codes are for whoever started a rank directly. torchrun turns every code but 0 into 1, so what must survive it is also a
marker file in the run folder (`done`, `stopped`, `stalled`: see run_folder.py), and launch/train.sbatch decides by those.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Why a process ended."""

    FINISHED = 0     # the work is done, or a checkpoint was made because somebody asked (RUN/stopped says which)
    FAILED = 1       # our own mistake, with its stack trace (Python's own code for it)
    USER_ERROR = 2   # something that the user can mend, said in one line
    STOPPED = 3      # an alarm ended the run after a checkpoint: a person must look before it goes on
    STALLED = 75     # a rank made no progress: the same command goes on from the last checkpoint (sysexits' EX_TEMPFAIL)
    INTERRUPTED = 130  # Ctrl-C outside of training (a shell's 128 + SIGINT)
