"""How does a checkpoint get onto the disk while the training goes on, and is what lies there what was in memory?

A save has two parts. The loop waits for the first (the stall): Megatron-Core plans who writes what, and tensors on a GPU are
copied to the host. A process forked from each rank then does the second: it writes its files, brings them to the disk, drops
them from the page cache, reads them back and checks every tensor's CRC-32, which `torch.save` computed from memory. Their
SHA-256 goes into `files.json`, by which a resume finds torn, missing or flipped bytes. Invariant: everything is written
into a folder of a name of its own, which is renamed to `step_N` when all ranks have finished, and then `state.json` makes it
whole: a writer that outlives its killed run can spoil nothing.

Megatron-Core 0.16.1 would spawn a manager process (a second start of torch, without signal handlers, so that Slurm's SIGTERM
to the step kills it) to bring the writers' results back; here they come through an unlinked file.
"""

import gc
import io
import os
import pickle
import queue
import tempfile
import time
import zipfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async

from megatron_jmed.errors import CheckpointError
from megatron_jmed.run_folder import (
    CheckpointState,
    begin_checkpoint,
    file_sum,
    finish_checkpoint,
    remove_checkpoint,
    write_file_sums,
)


class PendingSave:
    """A checkpoint that is being written. Building one is collective over all ranks, and so is `finish`."""

    def __init__(self, target: Path, partial: Path, state: CheckpointState, content: dict[str, Any]):
        begin = time.perf_counter()
        self.target, self.state = target, state
        self._partial = partial
        self._is_rank_zero = torch.distributed.get_rank() == 0
        if self._is_rank_zero:
            begin_checkpoint(partial)
        torch.distributed.barrier()
        self._queue = filesystem_async._results_queue = queue.Queue()  # in place of the manager process
        try:
            self._request = dist_checkpointing.save(content, str(partial), async_sharded_save=True,
                                                    content_metadata={"tokens": state.tokens})
        except OSError as error:
            raise _cannot_write(target, [str(error)]) from error
        self._answer = tempfile.TemporaryFile()  # shared with the fork, and closed when the save is finished
        self._process = self._fork()
        self.stall_seconds = time.perf_counter() - begin
        self._begin = begin

    def _fork(self):
        """The process that writes this rank's part, or None where it has none."""
        if self._request.async_fn is None:
            return None
        rank, buckets, _ = self._request.async_fn_args
        if self._request.preload_fn:
            buckets = self._request.preload_fn()
        process = get_context("fork").Process(target=_write, args=(self._request.async_fn, rank, buckets, self._answer))
        # The fork must never collect garbage: destructors of process groups or of tensors on a GPU would wait for threads that
        # only the parent has, and crash. It is born with the collector off.
        was_collecting = gc.isenabled()
        gc.disable()
        try:
            process.start()
        finally:
            if was_collecting:
                gc.enable()
        return process

    def is_writing(self) -> bool:
        """Whether this rank's part is still on its way."""
        return self._process is not None and self._process.is_alive()

    def finish(self) -> float:
        """Wait for every rank's part and make the checkpoint whole; the seconds since it began. Collective over all ranks."""
        sums, failure = self._collect()
        everyone: list[tuple[dict, str]] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, (sums, failure))
        if failures := [text for _, text in everyone if text]:
            raise _cannot_write(self.target, failures)
        for finalize in self._request.finalize_fns:
            finalize()
        if self._is_rank_zero:
            _publish(self._partial, self.target, self.state, {name: value for part, _ in everyone for name, value in part.items()})
        torch.distributed.barrier()
        return time.perf_counter() - self._begin

    def _collect(self) -> tuple[dict[str, list], str]:
        """({file: its size and SHA-256}, "") or ({}, what went wrong) of this rank's writer."""
        if self._process is None:
            return {}, ""
        self._process.join()
        with self._answer:
            self._answer.seek(0)
            try:
                results, sums, failure = pickle.load(self._answer)  # our own process wrote it, into a file without a name
            except EOFError:
                return {}, f"its writer ended with exit code {self._process.exitcode}"
        self._queue.put(results)
        return sums, failure


def _publish(partial: Path, target: Path, state: CheckpointState, sums: dict[str, list]) -> None:
    for path in partial.iterdir():
        if path.name not in sums:
            sums[path.name] = file_sum(path)
    write_file_sums(partial, sums)
    if target.exists():  # half-written, by an older program
        remove_checkpoint(target)
    partial.rename(target)
    finish_checkpoint(target, state)


def _cannot_write(target: Path, failures: list[str]) -> CheckpointError:
    more = f" (and {len(failures) - 1} other ranks)" if len(failures) > 1 else ""
    return CheckpointError(f"{target}: cannot be written: {failures[0]}{more}. The checkpoint before it is whole; make room "
                           "there, or have the disk looked at, and run the same command again")


class _Results:
    """Stands for the queue that Megatron-Core's writer puts its results into."""

    def put(self, results: Any) -> None:
        self.results = results


def _write(write: Any, rank: int, buckets: list, answer: io.BufferedRandom) -> None:
    """In the fork: write, check, and leave (results, sums, failure) in `answer`."""
    collected, sums, failure = _Results(), {}, ""
    try:
        write(rank, buckets, collected)
        if isinstance(collected.results, Exception):
            raise collected.results
        for path, _, _ in buckets:
            sums[Path(path).name] = _checked_sum(Path(path), [r for part in collected.results.values() for r in part])
    except Exception as error:
        failure = f"rank {rank}: {error}"
    pickle.dump((getattr(collected, "results", None), sums, failure), answer)
    answer.flush()


def _checked_sum(path: Path, results: list) -> list:
    """[bytes, SHA-256] of a file as the disk has it; OSError if a tensor's bytes are not those that were in memory."""
    with open(path, "rb") as stream:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for result in results:
            place = result.storage_data
            if place.relative_path != path.name:
                continue
            stream.seek(place.offset)
            with zipfile.ZipFile(io.BytesIO(stream.read(place.length))) as archive:
                if bad := archive.testzip():
                    raise OSError(f"{path.name}: {result.index.fqn} ({bad}) does not read back as it was written")
    return file_sum(path)
