"""Is every rank still getting on, and if not, which one holds up the others?

Each rank runs two small threads, which go on while its main thread hangs in a collective:

* one writes RUN/heartbeats/rank_NNNN.json every `watch.heartbeat_seconds`: where the main thread is (step, phase, micro-batch,
  waiting for data or not), host, pid. About 400 bytes, rewritten in place, no rename, no directory entry: at the default of
  10 s a run of 256 ranks makes 26 such writes a second. Nothing is written by the steps themselves, however short they are.
* one watches the main thread of its own process. It never touches the disk before a stall, so a hanging file system cannot
  hold it up.

The rule. A rank is stalled when its main thread has not moved on (a new micro-batch or another phase) for
`watch.stall_seconds`; until the end of the first step `watch.start_seconds`, while saving and at the end of the run
`watch.save_seconds`. Time in which the whole process was suspended does not count. Then every rank that can writes the stacks
of all its threads to RUN/stalls/rank_NNNN.txt; one of them, the first to create RUN/stalled, reads all heartbeats twice, two
beats apart (so clocks of different hosts are never compared), prints one line with the culprits, and all end with
`ExitCode.STALLED`. From the last progress to the end it takes the limit and about 5 beats (a beat is never longer than a quarter
of the shortest limit): by default 11 minutes, where a collective's own timeout takes 30.

Who is the culprit (the first of these that applies to some ranks and not to all):

1. silent: the heartbeat did not move between the readings (process stopped, host down), or was never written;
2. waiting for data, which no rank does for another's sake;
3. behind: at the earliest (step, phase) and, without pipeline stages, micro-batch: the others wait for it in a collective.

If none applies, all ranks wait at the same place, and the line says so: then the network or a GPU is at fault, and only the
stacks can tell more. A rank that is stopped cannot write its own stack.
"""

import faulthandler
import itertools
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from megatron_jmed.config import WatchConfig
from megatron_jmed.errors import some_of
from megatron_jmed.exit_codes import ExitCode
from megatron_jmed.run_folder import RunFolder

# In the order in which a rank passes through them between two steps; "record" begins when a step has ended.
PHASES = ("start", "load", "record", "validate", "save", "train", "end")
_HEARTBEAT_BYTES = 400

Batch = TypeVar("Batch")


class Place(NamedTuple):
    """Where a main thread is."""

    step: int = 0
    phase: str = "start"
    micro_batch: int = 0
    waits_for_data: bool = False

    def __str__(self) -> str:
        detail = " waiting for data" if self.waits_for_data else f" micro-batch {self.micro_batch}" if self.micro_batch else ""
        return f"after step {self.step}: {self.phase}{detail}"


class Watchdog:
    """Watches the process it is opened in, from `with` to its end; the main thread only says where it is."""

    def __init__(self, watch: WatchConfig, folder: RunFolder, rank: int, world_size: int, has_stages: bool):
        self._watch, self._folder, self._rank, self._world_size, self._has_stages = watch, folder, rank, world_size, has_stages
        self._beat_seconds = min(watch.heartbeat_seconds, min(watch.stall_seconds, watch.start_seconds, watch.save_seconds) / 4)
        self._place = Place()
        self._has_stepped = False
        self._end = threading.Event()
        self._file = heartbeat_file(folder, rank)

    def __enter__(self) -> "Watchdog":
        self._folder.heartbeats.mkdir(parents=True, exist_ok=True)
        if self._rank == 0:
            self._folder.stalled.unlink(missing_ok=True)
        for work in (self._beat, self._watch_main_thread):
            threading.Thread(target=work, name=f"watchdog{work.__name__}", daemon=True).start()
        return self

    def __exit__(self, *_exc) -> None:
        self._end.set()

    # --- what the main thread says: no disk, no lock; a Place is replaced whole

    def enter(self, phase: str) -> None:
        self._place = Place(self._place.step, phase)

    def finish_step(self, step: int) -> None:
        self._place = Place(step, "record")
        self._has_stepped = True

    def watched(self, batches: Iterator[Batch], phase: str) -> Iterator[Batch]:
        """The same batches; each is a sign of progress."""
        for number in itertools.count(1):
            self._place = Place(self._place.step, phase, number, waits_for_data=True)
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._place = Place(self._place.step, phase, number)
            yield batch

    # --- the two threads

    def _beat(self) -> None:
        has_complained = False
        for number in itertools.count():
            try:
                _write_heartbeat(self._file, self._rank, self._place, number)
            except OSError as error:  # a full disk must not end the watching
                if not has_complained:
                    print(f"rank {self._rank} cannot write its heartbeat: {error}", file=sys.stderr, flush=True)
                has_complained = True
            if self._end.wait(self._beat_seconds):
                return

    def _watch_main_thread(self) -> None:
        seen, idle, last = self._place, 0.0, time.monotonic()
        while not self._end.wait(self._beat_seconds):
            now = time.monotonic()
            # after a suspension of the whole process (scontrol suspend, Ctrl-Z) this thread has slept far too long, too
            idle = idle + min(now - last, 2 * self._beat_seconds) if self._place is seen else 0.0
            seen, last = self._place, now
            limit = self._limit()
            if idle >= limit or (idle >= limit / 2 and self._folder.stalled.exists()):  # the others need not all run out
                self._on_stall(seen, idle)
                idle = 0.0

    def _limit(self) -> float:
        if not self._has_stepped:
            return self._watch.start_seconds
        return self._watch.save_seconds if self._place.phase in ("save", "end") else self._watch.stall_seconds

    def _on_stall(self, place: Place, idle: float) -> None:
        beat = self._beat_seconds
        if self._watch.stop_on_stall:
            last_resort = threading.Timer(60 + 10 * beat, os._exit, [ExitCode.STALLED])  # if the disk hangs, too
            last_resort.daemon = True
            last_resort.start()
        try:
            self._write_stacks(place, idle)
            is_speaker = _create(self._folder.stalled)
            if is_speaker:
                self._speak(idle)
            self._end.wait((2 if is_speaker else 4) * beat)  # the others write their stacks, or the speaker its line
        except OSError as error:
            print(f"rank {self._rank} stalled ({place}) and cannot write to {self._folder.path}: {error}", file=sys.stderr,
                  flush=True)
            is_speaker = False
        if self._watch.stop_on_stall and self._place is place:
            sys.stdout.flush()
            os._exit(ExitCode.STALLED)
        if is_speaker:
            self._folder.stalled.unlink(missing_ok=True)
        if self._watch.stop_on_stall:
            last_resort.cancel()

    def _write_stacks(self, place: Place, idle: float) -> None:
        self._folder.stalls.mkdir(exist_ok=True)
        with open(self._folder.stalls / f"rank_{self._rank:04d}.txt", "a", encoding="utf-8") as stream:
            print(f"{_now()} rank {self._rank} on {platform.node()}, pid {os.getpid()}: no progress for {idle:.0f} s "
                  f"{place}", file=stream, flush=True)
            faulthandler.dump_traceback(stream, all_threads=True)

    def _speak(self, idle: float) -> None:
        ranks = range(self._world_size)
        before = [read_heartbeat(heartbeat_file(self._folder, rank)) for rank in ranks]
        self._end.wait(2 * self._beat_seconds)
        after = [read_heartbeat(heartbeat_file(self._folder, rank)) for rank in ranks]
        ending = (f"ending with exit code {ExitCode.STALLED:d}; the same command goes on from "
                  f"{self._folder.latest_checkpoint() or 'the beginning'}") if self._watch.stop_on_stall else "waiting on"
        line = f"STALLED: no progress for {idle:.0f} s; {who_holds_up(before, after, self._has_stages)}; stacks: " \
               f"{self._folder.stalls}; {ending}"
        self._folder.stalled.write_text(f"{self._place.step} {line}\n", encoding="utf-8")
        print(line, file=sys.stderr, flush=True)


def heartbeat_file(folder: RunFolder, rank: int) -> Path:
    return folder.heartbeats / f"rank_{rank:04d}.json"


def _write_heartbeat(path: Path, rank: int, place: Place, number: int) -> None:
    """One write of a fixed size over the old content, and a close, which is when other NFS clients see it."""
    text = json.dumps({"rank": rank, "host": platform.node(), "pid": os.getpid(), **place._asdict(), "beat": number,
                       "time": _now()})
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, text.encode().ljust(_HEARTBEAT_BYTES - 1) + b"\n")
    finally:
        os.close(descriptor)


def read_heartbeat(path: Path) -> dict[str, Any] | None:
    """What a rank last wrote; None if it never did, or if nothing can be read."""
    for _ in range(3):  # a reader may meet a write
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            time.sleep(0.05)
        except OSError:
            break
    return None


def who_holds_up(before: list[dict[str, Any] | None], after: list[dict[str, Any] | None], has_stages: bool) -> str:
    """A clause that names the ranks at fault by the rule above, from two readings of every rank's heartbeat."""
    places = [None if beat is None else Place(**{word: beat[word] for word in Place._fields}) for beat in after]
    alive = [rank for rank, beat in enumerate(after) if beat is not None and beat != before[rank]]
    found = [rank for rank in range(len(after)) if rank not in alive]
    if found and alive:
        return f"{_named(found, after, 'gives', 'no sign of life')}; {len(alive)} other(s) wait, {places[alive[0]]}"
    found = [rank for rank in alive if places[rank].waits_for_data]
    if not found:
        order = {rank: (places[rank].step, PHASES.index(places[rank].phase), 0 if has_stages else places[rank].micro_batch)
                 for rank in alive}
        found = [rank for rank in alive if order[rank] == min(order.values())]
    if len(found) == len(after) == 1:
        return f"{_named(found, after, 'is', f'stuck {places[0]}')}"
    if len(found) < len(alive):
        others = next(rank for rank in alive if rank not in found)
        return f"{_named(found, after, 'is', f'stuck {places[found[0]]}')}; the others are {places[others]}"
    if not alive:
        return f"none of {len(after)} heartbeats moves: the disk of the run folder is stuck, or was"
    return f"no rank is behind: all {len(after)} are {places[0]}; look at the network, the GPUs and the stacks"


def _named(ranks: list[int], beats: list[dict[str, Any] | None], verb: str, what: str) -> str:
    names = [f"rank {rank}" + (f" on {beats[rank]['host']} (pid {beats[rank]['pid']}, last heard {beats[rank]['time']})"
                               if beats[rank] else " (never heard)") for rank in ranks]
    return f"{some_of(names)} {verb if len(ranks) == 1 else {'gives': 'give', 'is': 'are'}[verb]} {what}"


def _create(path: Path) -> bool:
    """Whether this process is the one that created the file."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        return False
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
