"""An alarm that is to stop a run saves it, says so in the exit code, and the same command goes on with the alarm remembered."""

import json
import os
import subprocess
import sys

from megatron_jmed.exit_codes import ExitCode
from megatron_jmed.run_folder import RunFolder

# a threshold that every run passes, so that there is something to see; 16 steps
RUN = ["tiny", "parallel.ep=1", "budget.total_tokens=32768", "budget.eval_every_tokens=0", "watch.min_steps=8",
       "watch.overloaded_expert_ratio=1.0001", "watch.quiet_steps=7", "watch.grad_norm_spike=off"]


def run(token_folder, name, action):
    command = [sys.executable, "-m", "megatron_jmed.train", *RUN, f"run_folder=runs/{name}", f"watch.overloaded_expert={action}"]
    done = subprocess.run(command, cwd=token_folder, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
                          capture_output=True, text=True, timeout=300)
    folder = RunFolder(token_folder / "runs" / name)
    records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    alarms = [record["alarm"] for record in records if "alarm" in record]
    return done, folder, alarms, {record["step"]: record["loss"] for record in records if "loss" in record}


def test_stop_saves_after_the_next_step_and_a_resumed_run_raises_the_same_alarms(token_folder):
    warned, folder, whole_alarms, whole_losses = run(token_folder, "warned", "warn")
    assert warned.returncode == ExitCode.FINISHED and folder.done.exists(), warned.stderr[-3000:]
    assert [(alarm["name"], alarm["step"]) for alarm in whole_alarms] == [("overloaded_expert", 8), ("overloaded_expert", 15)]
    assert warned.stdout.count("ALARM overloaded_expert (warn) at step") == 2

    stopped, folder, alarms, _ = run(token_folder, "alarmed", "stop")
    assert stopped.returncode == ExitCode.STOPPED, stopped.stderr[-3000:]
    assert folder.stopped.read_text() == "9 alarm overloaded_expert at step 8\n" and not folder.done.exists()
    assert folder.latest_checkpoint() == folder.checkpoint(9)
    assert alarms == [whole_alarms[0] | {"action": "stop"}]

    saved, folder, alarms, losses = run(token_folder, "alarmed", "save")
    assert saved.returncode == ExitCode.FINISHED and folder.done.exists(), saved.stderr[-3000:]
    assert alarms == [whole_alarms[0] | {"action": "stop"}, whole_alarms[1] | {"action": "save"}]
    assert folder.checkpoint(16) in folder.whole_checkpoints()
    assert losses == whole_losses
