"""Worker processes for the stages: how do they start, and what becomes of them when something dies?

Invariant: results come in the order of the work; a worker that dies is a CorpusError, never a hang; a parent that dies,
or gives up, leaves no worker behind.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from megatron_jmed.errors import CorpusError

# Enough that no worker waits for the reader, few enough that memory stays at some megabytes per worker.
AHEAD_PER_WORKER = 3
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def worker_pool(num_workers: int, what_to_do: Callable[[], str]) -> Iterator[ProcessPoolExecutor]:
    """Processes to submit work to; `what_to_do` ends the message of the CorpusError if one of them dies."""
    if num_workers < 1:
        raise CorpusError(f"--workers {num_workers} is too small; at least 1 is needed")
    before = set(multiprocessing.active_children())
    # Not fork: a caller with threads (torch, pyarrow) would hand its workers locks that nobody will release.
    pool = ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=_follow_parent)
    whole = False
    try:
        yield pool
        whole = True
    except BrokenProcessPool:
        raise CorpusError(f"a worker process died, often because memory ran out{what_to_do()}") from None
    finally:
        if not whole:
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
        pool.shutdown(cancel_futures=True)


def each_in_order(
    num_workers: int, what_to_do: Callable[[], str], work: Callable[..., Result], items: Iterable[Item], *words: Any
) -> Iterator[Result]:
    """work(item, *words) of each item, in order, here (one worker) or in processes of its own."""
    if num_workers == 1:
        yield from (work(item, *words) for item in items)
        return
    with worker_pool(num_workers, what_to_do) as pool:
        yield from in_order(pool, num_workers, work, items, *words)


def in_order(
    pool: ProcessPoolExecutor, num_workers: int, work: Callable[..., Result], items: Iterable[Item], *words: Any
) -> Iterator[Result]:
    """work(item, *words) of each item, in order; items are read a bounded number ahead, so a stream of any length will do."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item, *words))
        if len(waiting) > AHEAD_PER_WORKER * num_workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def fewer_workers(num_workers: int) -> Callable[[], str]:
    """What to do where whole files are the tasks."""
    return lambda: f"; finished files are kept: use fewer --workers than {num_workers} and run again"


def _follow_parent() -> None:
    """Let Ctrl-C be the parent's business, and end this worker if the parent is killed or, by SIGTERM, gives up.

    A parent that ignores SIGTERM, as one that a job script started so does, hands that on: its pool, broken by the death of one
    worker, would wait for ever for the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
