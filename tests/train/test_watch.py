"""The watchdog names the rank at fault, ends a process that is stuck and leaves one that is slow, asleep or finished alone."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from megatron_jmed.exit_codes import ExitCode
from megatron_jmed.run_folder import RunFolder
from megatron_jmed.train.watch import PHASES, Place, read_heartbeat, who_holds_up


def beats(*places, number=0):
    """A reading of the heartbeats of ranks at these places; None for a rank that never wrote one."""
    return [place and {"rank": rank, "host": f"node{rank // 2}", "pid": 100 + rank, **place._asdict(), "beat": number,
                       "time": f"12:00:0{number}"} for rank, place in enumerate(places)]


def judged(*places, silent=(), has_stages=False):
    before, after = beats(*places), beats(*places, number=1)
    for rank in silent:
        after[rank] = before[rank]
    return who_holds_up(before, after, has_stages)


TRAIN = Place(7, "train", 30)


def test_ranks_that_give_no_sign_are_named_before_all_others():
    said = judged(TRAIN, TRAIN, Place(7, "train", 29), TRAIN, None, silent=[1])
    assert said == ("rank 1 on node0 (pid 101, last heard 12:00:00); rank 4 (never heard) give no sign of life; 3 other(s) wait, "
                    "after step 7: train micro-batch 30")


def test_who_waits_for_data_is_named_before_who_is_behind():
    said = judged(TRAIN, Place(7, "train", 31, True), Place(7, "record"), has_stages=False)
    assert said == ("rank 1 on node0 (pid 101, last heard 12:00:01) is stuck after step 7: train waiting for data; the others are "
                    "after step 7: train micro-batch 30")


@pytest.mark.parametrize(("behind", "others"), [
    (Place(6, "train", 30), Place(7, "record")), (Place(7, "validate", 2), Place(7, "save")),
    (Place(0, "load"), Place(0, "train", 1)), (Place(7, "save"), TRAIN),
    (Place(7, "train", 29), TRAIN), (Place(0, "start"), Place(0, "load")),
])
def test_who_is_behind_is_named(behind, others):
    said = judged(others, others, behind, others)
    assert said == f"rank 2 on node1 (pid 102, last heard 12:00:01) is stuck {behind}; the others are {others}"


def test_stages_of_a_pipeline_are_not_behind_for_being_later():
    said = judged(TRAIN, Place(7, "train", 28), has_stages=True)
    assert said.startswith("no rank is behind: all 2 are after step 7: train micro-batch 30")


def test_where_all_are_alike_nobody_is_blamed():
    assert judged(TRAIN, TRAIN).startswith("no rank is behind")
    assert judged(TRAIN) == "rank 0 on node0 (pid 100, last heard 12:00:01) is stuck after step 7: train micro-batch 30"
    assert judged(TRAIN, TRAIN, silent=[0, 1]).startswith("none of 2 heartbeats moves: the disk")


def test_half_of_many_culprits_are_counted_not_listed():
    assert "and 12 more give no sign of life; 1 other(s)" in judged(*[TRAIN] * 21, silent=range(1, 21))


# ---- in a process of its own, because it may end (without torch, which takes seconds to import)


PROGRAM = """
import sys, time
from pathlib import Path
from megatron_jmed.config import WatchConfig
from megatron_jmed.run_folder import RunFolder
from megatron_jmed.train.watch import Watchdog

watch = WatchConfig(stall_seconds=1.5, save_seconds=3, start_seconds=3, stop_on_stall={stop_on_stall})
with Watchdog(watch, RunFolder(sys.argv[1]), 0, 1, has_stages=False) as dog:
{body}
print("end of the program", flush=True)
"""


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.fixture
def run(folder):
    def start(body, stop_on_stall=True):
        program = PROGRAM.format(body="\n".join(f"    {line}" for line in body.splitlines()), stop_on_stall=stop_on_stall)
        return subprocess.Popen([sys.executable, "-c", program, str(folder.path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                text=True)

    def done(*arguments, **words):
        process = start(*arguments, **words)
        out, _ = process.communicate(timeout=60)
        return process.returncode, out

    done.start = start
    return done


def test_a_stuck_process_writes_its_stack_and_ends_with_the_code(run, folder):
    code, out = run("dog.finish_step(1)\ndef hang(): time.sleep(100)\nhang()")
    assert code == ExitCode.STALLED and "end of the program" not in out
    assert "STALLED: no progress for 2 s; rank 0 on" in out and "is stuck after step 1: record" in out
    assert "goes on from the beginning" in out
    assert "in hang" in (folder.stalls / "rank_0000.txt").read_text()
    assert folder.stalled.read_text().startswith("1 STALLED")


@pytest.mark.parametrize("body", [
    "for n in range(8): time.sleep(0.4); dog.finish_step(n)",
    "dog.finish_step(1)\nfor batch in dog.watched(iter(range(8)), 'train'): time.sleep(0.4)",
    "time.sleep(2)",
    "dog.finish_step(1); dog.enter('save'); time.sleep(2)",
], ids=["steps", "micro-batches", "start", "save"])
def test_what_is_slow_but_moves_or_has_more_time_is_left_alone(body, run, folder):
    code, out = run(body)
    assert (code, out) == (0, "end of the program\n")
    assert not folder.stalled.exists() and not folder.stalls.exists()


def test_with_stop_on_stall_off_it_is_said_and_the_process_goes_on(run, folder):
    code, out = run("dog.finish_step(1); time.sleep(4); dog.finish_step(2); time.sleep(0.3)", stop_on_stall=False)
    assert code == 0 and "end of the program" in out
    assert "STALLED" in out and "waiting on" in out and not folder.stalled.exists()


def test_a_process_that_was_suspended_as_a_whole_is_not_stalled(run):
    process = run.start("dog.finish_step(1)\nprint('ready', flush=True)\nfor n in range(20): time.sleep(0.1); dog.finish_step(n)")
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(3)
    os.kill(process.pid, signal.SIGCONT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "end of the program\n")


def test_a_mark_of_an_earlier_stall_is_taken_away(run, folder):
    folder.path.mkdir()
    folder.stalled.write_text("3 STALLED\n")
    assert run("pass")[0] == 0
    assert not folder.stalled.exists()


def test_a_heartbeat_is_small_and_says_where_the_rank_is(run, folder):
    process = run.start("dog.finish_step(12)\nprint('ready', flush=True)\ntime.sleep(0.9)")
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    path = folder.heartbeats / "rank_0000.json"
    beat = read_heartbeat(path)
    assert path.stat().st_size == 400
    assert (beat["rank"], beat["pid"], beat["step"], beat["phase"]) == (0, process.pid, 12, "record")
    process.communicate(timeout=60)
    assert read_heartbeat(path)["beat"] > 0 and json.loads(path.read_text())["phase"] in PHASES


def test_a_heartbeat_that_cannot_be_written_does_not_end_the_watching(run, folder):
    (folder.heartbeats / "rank_0000.json").mkdir(parents=True)
    code, out = run("dog.finish_step(1); time.sleep(100)")
    assert code == ExitCode.STALLED and "cannot write its heartbeat" in out
