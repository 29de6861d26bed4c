"""Started by test_index_cache: build the same index cache again and again, each time killed at a later moment.

Arguments: a folder, "calls" or "bytes", then what `load_config` takes. Every build runs in a fork of this process (which
saves the start of Megatron) and writes to FOLDER/N. With "calls", build N receives SIGKILL just before its Nth change to
the disk (a folder made, a file opened for writing, a rename, a removal); with "bytes", the kernel kills it (SIGXFSZ) at
the moment in which a file would grow beyond N*STEP bytes, so that this file stays cut. With "refuse", writing beyond
FILE_BYTES fails, as on a full disk. The last build is the first that nothing killed. Prints one JSON line a build:
{"number", "signal", "exit"}.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

STEP = 600  # bytes; the smallest index file of the test has some hundred, the largest a few thousand
FILE_BYTES = 500


def main() -> None:
    from megatron_jmed.config import load_config
    from megatron_jmed.data.sources import load_token_sets

    folder, how, what, *changes = sys.argv[1:]
    config = load_config(what, changes)
    token_sets = load_token_sets(config)
    number, signalled = 0, 1
    while signalled:
        number += 1
        child = os.fork()
        if child == 0:
            build(config, token_sets, Path(folder) / str(number), how, number)
        status = os.waitpid(child, 0)[1]
        signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        print(json.dumps({"number": number, "signal": signalled, "exit": 0 if signalled else os.WEXITSTATUS(status)}))


def build(config, token_sets, cache_folder: Path, how: str, number: int) -> None:
    """In the child: build, and end with 0, with 2 for a user's error, or by the signal."""
    from megatron_jmed.config import ParallelConfig
    from megatron_jmed.data.pretrain import build_data
    from megatron_jmed.errors import UserError
    from megatron_jmed.parallel import World, start_groups

    status = 1
    try:
        start_groups(ParallelConfig(), World(0, 1, 0), config.seed)
        if how == "calls":
            sys.addaudithook(killer(str(cache_folder), number))
        if how == "bytes":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if how in ("bytes", "refuse"):
            limit = number * STEP if how == "bytes" else FILE_BYTES
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        build_data(config.model_copy(update={"data": config.data.model_copy(update={"cache_folder": str(cache_folder)})}),
                   token_sets)
        status = 0
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        status = 2
    finally:
        os._exit(status)


def killer(folder: str, at: int):
    """An audit hook that kills this process just before its change number `at` under `folder`."""
    changes = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal changes
        is_write = event == "open" and (str(arguments[1]).startswith(("w", "a", "x")) or (arguments[2] or 0) & os.O_CREAT)
        if (is_write or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")) and str(arguments[0]).startswith(folder):
            changes += 1
            if changes == at:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


if __name__ == "__main__":
    main()
