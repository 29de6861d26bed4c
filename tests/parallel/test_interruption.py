"""A run that is killed in the middle of a save, or asked to stop, goes on from its last whole checkpoint as if nothing
had happened."""

import os
import signal
import subprocess
import sys
import time

import pytest

from megatron_jmed.run_folder import RunFolder

RUN = ["tiny", "parallel.ep=1", "budget.total_tokens=32768", "budget.eval_every_tokens=0",
       "optim.warmup_tokens=2048"]  # 16 steps


def start(token_folder, run, *changes):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "megatron_jmed.train", *RUN, f"run_folder=runs/{run}", *changes]
    return subprocess.Popen(command, cwd=token_folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out[-2000:] + err[-4000:]
    return out


@pytest.fixture(scope="module")
def reference(train_runs, step_records):
    train_runs(1, [[*RUN, "run_folder=runs/reference", "budget.save_every_tokens=32768"]])
    return {step: record["loss"] for step, record in step_records("reference").items()}


def wait_until(condition, process, seconds=200):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.001)


def test_kill_during_a_save_leaves_the_checkpoint_before_it_usable(token_folder, reference, step_records):
    folder = RunFolder(token_folder / "runs/killed")
    every_step = "budget.save_every_tokens=2048"
    process = start(token_folder, "killed", every_step)

    def in_the_middle_of_a_save():
        return len(folder.whole_checkpoints()) >= 2 and any(folder.checkpoints.glob("partial_*"))

    def held_in_the_middle_of_a_save():
        """On a busy machine a save may end while this process waits for its turn: what is held no longer moves."""
        if not in_the_middle_of_a_save():
            return False
        os.killpg(process.pid, signal.SIGSTOP)
        if any(folder.checkpoints.glob("partial_*")):
            return True
        os.killpg(process.pid, signal.SIGCONT)
        return False

    wait_until(held_in_the_middle_of_a_save, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    assert any(folder.checkpoints.glob("partial_*")), "the kill must have hit a save"
    latest = folder.latest_checkpoint()
    out = finish(start(token_folder, "killed", every_step))
    assert f"resume contract: step {int(latest.name.removeprefix('step_'))}," in out
    assert {step: record["loss"] for step, record in step_records("killed").items()} == reference
    assert folder.done.exists() and not any(folder.checkpoints.glob("partial_*"))


def test_sigterm_saves_ends_well_and_the_same_command_goes_on(token_folder, reference, step_records):
    folder = RunFolder(token_folder / "runs/stopped")
    process = start(token_folder, "stopped")
    wait_until(lambda: folder.metrics.exists() and folder.metrics.read_text().count("\n") >= 2, process)
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert folder.stopped.exists() and not folder.done.exists()
    stopped_at, reason = folder.stopped.read_text().split()
    stopped_at = int(stopped_at)
    assert reason == "SIGTERM"
    assert folder.latest_checkpoint() == folder.checkpoint(stopped_at)

    finish(start(token_folder, "stopped"))
    assert folder.done.exists() and not folder.stopped.exists()
    assert {step: record["loss"] for step, record in step_records("stopped").items()} == reference
