"""An alarm that is to stop a run saves it, says so in the exit code, and the same command goes on with the alarm remembered; a
step whose loss is not finite ends the run, or is passed over, as the config says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from megatron_jmed.exit_codes import ExitCode
from megatron_jmed.run_folder import RunFolder

# a threshold that every run passes, so that there is something to see; 16 steps
RUN = ["tiny", "parallel.ep=1", "budget.total_tokens=32768", "budget.eval_every_tokens=0", "watch.min_steps=8",
       "watch.overloaded_expert_ratio=1.0001", "watch.quiet_steps=7", "watch.grad_norm_spike=off"]


def run(token_folder, name, *changes, program=("-m", "megatron_jmed.train")):
    command = [sys.executable, *program, *RUN, f"run_folder=runs/{name}", *changes]
    done = subprocess.run(command, cwd=token_folder, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
                          capture_output=True, text=True, timeout=300)
    folder = RunFolder(token_folder / "runs" / name)
    records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    alarms = [record["alarm"] for record in records if "alarm" in record]
    return done, folder, alarms, {record["step"]: record for record in records if "loss" in record}


def test_stop_saves_after_the_next_step_and_a_resumed_run_raises_the_same_alarms(token_folder):
    warned, folder, whole_alarms, whole = run(token_folder, "warned", "watch.overloaded_expert=warn")
    assert warned.returncode == ExitCode.FINISHED and folder.done.exists(), warned.stderr[-3000:]
    assert [(alarm["name"], alarm["step"]) for alarm in whole_alarms] == [("overloaded_expert", 8), ("overloaded_expert", 15)]
    assert warned.stdout.count("ALARM overloaded_expert (warn) at step") == 2

    stopped, folder, alarms, _ = run(token_folder, "alarmed", "watch.overloaded_expert=stop")
    assert stopped.returncode == ExitCode.STOPPED, stopped.stderr[-3000:]
    assert folder.stopped.read_text() == "9 alarm overloaded_expert at step 8\n" and not folder.done.exists()
    assert folder.latest_checkpoint() == folder.checkpoint(9)
    assert alarms == [whole_alarms[0] | {"action": "stop"}]

    saved, folder, alarms, parts = run(token_folder, "alarmed", "watch.overloaded_expert=save")
    assert saved.returncode == ExitCode.FINISHED and folder.done.exists(), saved.stderr[-3000:]
    assert alarms == [whole_alarms[0] | {"action": "stop"}, whole_alarms[1] | {"action": "save"}]
    assert folder.checkpoint(16) in folder.whole_checkpoints()
    assert [parts[step]["loss"] for step in parts] == [whole[step]["loss"] for step in whole]


POISONED = (str(Path(__file__).with_name("train_sick.py")), "poisoned")
SKIPPING = ["watch.non_finite=skip_step", "watch.overloaded_expert=off", "budget.save_every_tokens=8192",
            "budget.keep_checkpoints=4"]


def test_a_loss_that_is_not_finite_ends_a_run_or_is_passed_over_and_a_resume_is_equal_to_the_bit(token_folder):
    ended, folder, alarms, steps = run(token_folder, "poisoned", program=POISONED)
    assert ended.returncode == ExitCode.USER_ERROR and "step 3 has loss" in ended.stderr, ended.stderr[-3000:]
    assert max(steps) == 3 and not folder.whole_checkpoints() and alarms[-1]["name"] == "non_finite"
    read = (folder.alarms / "step_0000003.txt").read_text().splitlines()
    assert f"it read {len(read)} documents" in ended.stdout and all(line.startswith(("texts_ja ", "texts_en ")) for line in read)
    assert sum(int(line.split("(")[-1].split()[0]) for line in read) == 16 * 129  # 16 sequences of 128 tokens and the last label

    skipped, folder, alarms, whole = run(token_folder, "passed_over", *SKIPPING, program=POISONED)
    assert skipped.returncode == ExitCode.FINISHED, skipped.stderr[-3000:]
    assert [(alarm["name"], alarm["step"], alarm["action"]) for alarm in alarms] == [("non_finite", 3, "skip_step")]
    assert [step for step in whole if whole[step].get("skipped_in_a_row")] == [3] and max(whole) == 16

    again = RunFolder(token_folder / "runs/passed_over_again")
    shutil.copytree(folder.checkpoint(4), again.checkpoint(4))
    resumed, _, alarms, parts = run(token_folder, again.path.name, *SKIPPING)
    assert resumed.returncode == ExitCode.FINISHED and not alarms, resumed.stderr[-3000:]
    assert list(parts) == list(range(5, 17))
    for name in ("loss", "grad_norm", "expert_load"):
        assert [parts[step][name] for step in parts] == [whole[step][name] for step in parts]
