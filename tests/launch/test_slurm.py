"""Does the job script do on a real Slurm what it promises: train on two nodes, save when asked, come back or stay away?

A private cluster of two fake nodes on this machine. Two tests run the real trainer; the others a stand-in without torch
(`python` of a cluster TOML), because what they ask is between Slurm and the job script.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from private_slurm import ENDED, PrivateSlurm, wait_for, why_absent
from stand_in import REPOSITORY, stand_in_cluster

NUM_STEPS = 30  # see conftest.py

pytestmark = pytest.mark.skipif(why_absent() is not None, reason=str(why_absent()))


@pytest.fixture(scope="module")
def start(slurm: PrivateSlurm, submit, experiment: Path, tmp_path_factory) -> Callable[..., tuple[str, Path]]:
    """Submit the experiment on two nodes; returns (job id, run folder)."""
    folder = tmp_path_factory.mktemp("submitted")

    def run(name: str, *arguments: str, cluster: str = "local") -> tuple[str, Path]:
        answer = submit(folder, experiment, f"run_folder=runs/{name}", "log.every_steps=1", "--cluster", cluster, "--nodes", 2,
                        "--job-name", name, "--yes", *arguments, env=slurm.env)
        assert answer.returncode == 0, answer.stderr
        return slurm.remember(answer.stdout), folder / "runs" / name

    return run


def output(run: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in (run / "logs").glob("*.out"))


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records = [line for line in lines if "loss" in line]  # the others say when something was saved
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return {record["step"]: record["loss"] for record in records}


# --- the real trainer ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_run(slurm: PrivateSlurm, start, tmp_path_factory) -> Path:
    """The folder of a run that nothing disturbed; srun starts every rank, where the other run has torchrun."""
    local = (REPOSITORY / "launch" / "clusters" / "local.toml").read_text()
    cluster = tmp_path_factory.mktemp("cluster") / "each.toml"
    cluster.write_text('rank_launcher = "scheduler"\n' + local)
    job, run = start("plain", cluster=str(cluster))
    assert slurm.wait_state(job, *ENDED, seconds=180) == "COMPLETED", output(run)
    assert json.loads((run / "launch.json").read_text())["submissions"][0]["job_id"] == job
    return run


def test_trains_on_two_nodes(plain_run: Path):
    assert (plain_run / "done").read_text() == f"{NUM_STEPS}\n"
    assert "attempt 1 on node001 node002, checkpoint at step 0" in output(plain_run)
    assert "gate: 2 of 2 node(s) are fit, 2 are needed" in output(plain_run)
    assert json.loads((plain_run / "run.json").read_text())["starts"][0]["world_size"] == 2
    assert losses(plain_run)[NUM_STEPS] < losses(plain_run)[1]


def test_saves_requeues_and_resumes_at_the_time_limit(slurm: PrivateSlurm, start, plain_run: Path):
    job, run = start("limit")
    for step in (3, 14):  # three segments
        wait_for(lambda step=step: f"step {step}/{NUM_STEPS}" in output(run), 180, f"step {step}")
        slurm.command("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@N does N seconds before the limit
        slurm.start_requeued(job)
    assert slurm.wait_state(job, *ENDED, seconds=180) == "COMPLETED", output(run)
    assert slurm.field(job, "Restarts") == "2"
    starts = json.loads((run / "run.json").read_text())["starts"]
    assert len(starts) == 3 and 0 == starts[0]["step"] < starts[1]["step"] < starts[2]["step"] < NUM_STEPS
    assert "attempt 3 on node001 node002" in output(run) and f"resume contract: step {starts[2]['step']}," in output(run)
    assert len(losses(run)) == NUM_STEPS and losses(run) == losses(plain_run)
    assert not (run / "stop").exists() and not (run / "stopped").exists()


# --- the job script alone ------------------------------------------------------------------------------------------

@pytest.fixture
def start_stand_in(start, tmp_path: Path) -> Callable[..., tuple[str, Path]]:
    """Submit the stand-in and wait until it trains."""

    def run(name: str, *arguments: str, num_steps: int = 100_000) -> tuple[str, Path]:
        job, folder = start(name, *arguments, cluster=str(stand_in_cluster(tmp_path, num_steps)))
        wait_for(lambda: "step 5" in output(folder), 60, "step 5")
        return job, folder

    return run


def test_a_preempted_job_saves_and_comes_back(slurm: PrivateSlurm, start_stand_in):
    job, run = start_stand_in("pushed", "--partition=spot", num_steps=160)
    other = slurm.command("sbatch", "--parsable", "--partition=main", "--nodes=2", "--exclusive", "--output=/dev/null",
                          "--wrap=sleep 1").strip()
    slurm.start_requeued(job)
    slurm.wait_state(other, "COMPLETED")
    assert slurm.wait_state(job, *ENDED) == "COMPLETED", output(run)
    assert slurm.field(job, "Restarts") == "1"


def test_a_cancelled_job_saves_and_stays_away(slurm: PrivateSlurm, start_stand_in):
    job, run = start_stand_in("cancelled")
    slurm.command("scancel", job)
    wait_for((run / "stopped").exists, 30, "RUN/stopped")
    assert slurm.wait_state(job, *ENDED) == "CANCELLED", output(run)
    wait_for(lambda: slurm.command("squeue", "--noheader", "--jobs", job, check=False) == "", 30, "the end of the job")
    assert slurm.field(job, "Restarts") == "0" and list(run.glob("checkpoints/*/state.json"))


def test_a_job_that_a_person_stops_saves_and_stays_away(slurm: PrivateSlurm, start_stand_in):
    job, run = start_stand_in("asked")
    (run / "stop").touch()
    assert slurm.wait_state(job, *ENDED) == "FAILED"
    assert slurm.field(job, "ExitCode") == "3:0" and "because somebody asked" in output(run)


def test_a_live_run_is_not_submitted_twice(slurm: PrivateSlurm, start_stand_in, submit, experiment: Path):
    job, run = start_stand_in("twice")
    before = (run / "launch_env.sh").read_text()
    again = submit(run.parents[1], experiment, "run_folder=runs/twice", "--cluster", "local", "--nodes", 2, "--yes",
                   env=slurm.env)
    assert again.returncode == 2 and f"job {job} (RUNNING) trains in runs/twice" in again.stderr
    assert (run / "launch_env.sh").read_text() == before
    (run / "stop").touch()
    slurm.wait_state(job, *ENDED)


def test_a_crash_is_not_requeued(slurm: PrivateSlurm, start_stand_in):
    job, run = start_stand_in("crash")
    slurm.command("scancel", "--signal=KILL", f"{job}.0")
    assert slurm.wait_state(job, *ENDED) == "FAILED"
    assert slurm.field(job, "Restarts") == "0" and "does not come back" in output(run)
