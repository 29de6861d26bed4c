"""A rank that stops holds up the others for seconds, not for ever: they name it, write their stacks, and end by themselves."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_jmed.exit_codes import ExitCode
from megatron_jmed.run_folder import RunFolder

RUN = ["tiny", "budget.eval_every_tokens=0", "budget.total_tokens=2048000", "budget.save_every_tokens=4096",
       "watch.stall_seconds=8"]  # 1,000 steps: far more than are made
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def start(token_folder, command, **environment):
    return subprocess.Popen([sys.executable, *command], cwd=token_folder, env=ENVIRONMENT | environment, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True)


@pytest.fixture
def started():
    """Processes to be cleaned up, each the leader of a group of its own."""
    processes = []
    yield processes
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until(condition, processes, seconds=200):
    end = time.monotonic() + seconds
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_ranks_that_wait_for_a_stopped_one_name_it_and_end(token_folder, started):
    folder = RunFolder(token_folder / "runs/stopped_rank")
    with socket.socket() as any_free:
        any_free.bind(("localhost", 0))
        port = str(any_free.getsockname()[1])
    for rank in ("0", "1"):
        started.append(start(token_folder, ["-m", "megatron_jmed.train", *RUN, f"run_folder={folder.path}"], RANK=rank,
                             LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=port))
    waiting, stopped = started
    wait_until(lambda: folder.whole_checkpoints(), started)
    stopped.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    out, _ = waiting.communicate(timeout=120)
    seconds = time.monotonic() - begin
    print(f"from the stop to the end of the other rank: {seconds:.1f} s")
    assert waiting.returncode == ExitCode.STALLED, out[-4000:]
    (line,) = [line for line in out.splitlines() if "STALLED" in line]
    beat = json.loads((folder.heartbeats / "rank_0001.json").read_text())
    assert beat["pid"] == stopped.pid
    assert f"rank 1 on {beat['host']} (pid {stopped.pid}, last heard {beat['time']}) gives no sign of life; 1 other(s) wait" in line
    assert str(folder.latest_checkpoint()) in line and line in folder.stalled.read_text()
    stack = (folder.stalls / "rank_0000.txt").read_text()
    assert "train/step.py" in stack and "train/loop.py" in stack  # the main thread's
    assert not (folder.stalls / "rank_0001.txt").exists()
    assert seconds < 60


def test_a_rank_without_data_is_named_under_torchrun(token_folder, started):
    folder = RunFolder(token_folder / "runs/no_data")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--shutdown-timeout=5"]
    started.append(start(token_folder, [*launcher, str(Path(__file__).with_name("train_sick.py")), "no_data", *RUN,
                                        f"run_folder={folder.path}"]))
    out, _ = started[0].communicate(timeout=200)
    assert started[0].returncode == 1, out[-4000:]  # torchrun's own code
    assert f"exitcode  : {ExitCode.STALLED:d}" in out
    (line,) = [line for line in out.splitlines() if "STALLED" in line]
    assert "rank 1 on " in line and "is stuck after step 3: train waiting for data; the others are after step 3: train" in line
    for rank in ("0", "1"):
        assert "train/loop.py" in (folder.stalls / f"rank_000{rank}.txt").read_text()
    assert "in no_data" in (folder.stalls / "rank_0001.txt").read_text()
