"""Which errors are the user's to mend, and how they reach the user: one line on stderr, exit code 2, no stack trace.

Raise one of the classes below with a message that says what is wrong (with the file, line or field, and the numbers)
and what would be right. Everything else that escapes is our own mistake and keeps its stack trace.
"""

import errno
import sys
from collections.abc import Callable
from typing import NoReturn

from megatron_jmed.exit_codes import ExitCode


class UserError(Exception):
    """A mistake that the user can mend; the message names it and what would be right."""


class ConfigError(UserError):
    """A word, value or combination in the configuration cannot work."""


class CorpusError(UserError):
    """A corpus, token set or tokenizer is missing, damaged, or not what it says it is."""


class CheckpointError(UserError):
    """A checkpoint or Hugging Face folder is missing, damaged, or of another model."""


class TrainingError(UserError):
    """A run cannot go on: its numbers are no longer finite."""


class ExamError(UserError):
    """An exam folder, a scores file or a run folder to report on is missing or malformed."""


def some_of(items: list[str], most: int = 8) -> str:
    """The first of many findings, and how many more there are."""
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")


# What a disk refuses is the user's to mend, wherever in a program it happens.
_DISK_REFUSALS = {
    errno.EACCES: "give the permission, or name another path",
    errno.EROFS: "name a path on a disk that can be written",
    errno.ENOSPC: "make room, or name another disk; then run the same command again",
    errno.EDQUOT: "make room or raise the quota; then run the same command again",
    errno.EEXIST: "a file stands where a folder should be; name another path",
    errno.ENOTDIR: "a part of the path is a file; name a folder there",
    errno.EISDIR: "name a file, not a folder",
    errno.ENAMETOOLONG: "give a shorter name",
}


def run_tool(main: Callable[[], None]) -> NoReturn:
    """Run a command-line entry point and end the process with an `ExitCode`; a `UserError`, or what a disk refuses, is printed."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(ExitCode.USER_ERROR)
    except OSError as error:
        if error.errno not in _DISK_REFUSALS:
            raise
        print(f"error: {error}; {_DISK_REFUSALS[error.errno]}", file=sys.stderr, flush=True)
        sys.exit(ExitCode.USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(ExitCode.INTERRUPTED)
    sys.exit(ExitCode.FINISHED)
