"""What a cluster does to a run: bad nodes, dying nodes, full disks, wrong words, sweeps; on a private Slurm of three fake nodes.

The trainer is a stand-in, the gate and everything else is real. All folders have a space in their names.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from private_slurm import ENDED, PrivateSlurm, wait_for, why_absent
from stand_in import SAVE_EVERY, stand_in_cluster

REPOSITORY = Path(__file__).resolve().parents[2]
TOKENS_A_STEP = 128  # see conftest.py
SECRET = "wandb-key-0123456789abcdef"

pytestmark = pytest.mark.skipif(why_absent() is not None, reason=str(why_absent()))


@pytest.fixture(scope="module")
def slurm() -> Iterator[PrivateSlurm]:
    cluster = PrivateSlurm(3, SLURM_CI_NODE_TIMEOUT="10")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def start(slurm: PrivateSlurm, submit, experiment: Path, tmp_path_factory) -> Callable[..., tuple[str, Path]]:
    """Submit the stand-in on two nodes; returns (job id, run folder)."""
    folder = tmp_path_factory.mktemp("with a space")

    def run(name: str, *arguments: object, num_steps: int, gate: str = "enabled = false") -> tuple[str, Path]:
        cluster = stand_in_cluster(folder, num_steps, gate, max_idle_segments="2")
        answer = submit(folder, experiment, f"run_folder=my runs/{name}", "--cluster", cluster, "--nodes", 2, "--job-name", name,
                        "--yes", *arguments, env=slurm.env | {"WANDB_API_KEY": SECRET})
        assert answer.returncode == 0, answer.stderr
        return slurm.remember(answer.stdout), folder / "my runs" / name

    return run


def output(run: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted((run / "logs").glob("*.out")))


def tool(name: str, *words: object, slurm: PrivateSlurm, folder: Path = REPOSITORY) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / "launch" / name), *map(str, words)]
    return subprocess.run(command, cwd=folder, env=os.environ | slurm.env, capture_output=True, text=True, timeout=120)


def test_a_bad_node_is_replaced_by_a_spare_or_by_another_job(slurm: PrivateSlurm, start):
    slurm.on_node("node002", "mount", "-o", "remount,ro", "/dev/shm")  # the node's own disk has failed
    try:
        job, run = start("spare", "--spares", 1, num_steps=10, gate="network = true")
        assert slurm.wait_state(job, *ENDED, seconds=180) == "COMPLETED", output(run)
        assert "gate: node002 is bad: /dev/shm: OSError: [Errno 30] Read-only file system" in output(run)
        assert "gate: 2 of 3 node(s) are fit, 2 are needed" in output(run)
        assert "gate: 1 pair(s), slowest node001 and node003" in output(run)
        events = [json.loads(line) for line in (run / "segments.jsonl").read_text().splitlines()]
        assert events[-1]["nodes"] == "node001,node003" and events[-1]["outcome"] == "done"
        # nothing that the ranks were given as a secret is written anywhere
        assert "the key is there" in output(run)
        assert not [path for path in run.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]

        python = run.parents[1] / "stand_in"  # now even its python is gone there, which must not end the measuring elsewhere
        slurm.on_node("node002", "mount", "--bind", "/dev/null", str(python))
        job, run = start("excluded", num_steps=10, gate="network = false")
        assert slurm.wait_state(job, *ENDED, seconds=180) == "FAILED", output(run)
        assert "too few fit nodes" in output(run) and "gate: node002 is bad: did not answer" in output(run)
        assert "gate: 1 of 2 node(s) are fit" in output(run)
        wait_for((run / "done").exists, 120, "the job that keeps away from node002")
        assert (run / "bad_nodes").read_text() == "node002\n" and "attempt 1 on node001 node003" in output(run)
    finally:
        slurm.on_node("node002", "mount", "-o", "remount,rw", "/dev/shm")


def test_a_run_goes_on_when_a_node_dies(slurm: PrivateSlurm, start):
    job, run = start("dying", f"budget.total_tokens={6 * SAVE_EVERY * TOKENS_A_STEP}", num_steps=6 * SAVE_EVERY)
    wait_for(lambda: f"step {SAVE_EVERY + 5}" in output(run), 120, "a checkpoint")
    status = tool("status.py", run, slurm=slurm)
    assert status.returncode == 0, status.stderr
    assert f"{run}: running" in status.stdout and f"job {job} RUNNING: " in status.stdout
    assert re.search(r"segment 1, step (40|80|120) of 240 \(.*\), \S+ of 30,720 tokens", status.stdout), status.stdout
    slurm.node("fail", "node002")
    slurm.start_requeued(job)
    assert slurm.wait_state(job, *ENDED, seconds=180) == "COMPLETED", output(run)
    assert "attempt 2 on node001 node003, checkpoint at step" in output(run)
    slurm.node("up", "node002")
    wait_for(lambda: "idle" in slurm.command("sinfo", "--noheader", "--nodes=node002", "--format=%T"), 60, "node002")
    assert "done" in tool("status.py", run, slurm=slurm).stdout.splitlines()[0]


def test_a_full_disk_ends_the_run_with_its_reason(slurm: PrivateSlurm, start):
    slurm.on_node("node001", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt")
    try:
        job, run = start("held", "--partition=spot", num_steps=10)
        (run / "fill").write_text("/mnt")
        assert slurm.wait_state(job, *ENDED, seconds=60) == "FAILED"
    finally:
        slurm.on_node("node001", "umount", "/mnt")
    assert "full disk: OSError: [Errno 28] No space left on device" in output(run)
    assert slurm.field(job, "Restarts") == "0" and "make room" in (run / "halted").read_text()
    shown = tool("status.py", run, slurm=slurm).stdout
    assert "halted: full disk" in shown and "failure   20" in shown


@pytest.mark.parametrize(("words", "complaint"), [
    (["--partition=closed"], "invalid partition specified: closed"),
    (["--partition=main"], "Requested node configuration is not available"),
])
def test_what_slurm_would_refuse_is_refused_with_all_else(slurm: PrivateSlurm, submit, tmp_path: Path, words, complaint):
    cluster = stand_in_cluster(tmp_path, sbatch_options='["--mem=9000G"]' if "main" in words[0] else "[]")
    cluster.write_text(cluster.read_text() + "\n[partitions.closed]\nmax_nodes = 3\n")
    refused = submit(tmp_path, "tiny", "run_folder=runs/refused", "--cluster", cluster, "--nodes", 2, *words, "--time", "00:00:10",
                     "--yes", env=slurm.env)
    assert refused.returncode == 2 and "4 problems" in refused.stderr, refused.stderr
    assert complaint in refused.stderr and "asks a job to save" in refused.stderr and "texts_ja does not exist" in refused.stderr
    assert not (tmp_path / "runs").exists()


def test_a_sweep_runs_its_grid_and_shows_its_table(slurm: PrivateSlurm, experiment: Path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps of mine")
    words = [experiment, "--folder", "lr", "--grid", "optim.peak_lr=1e-3,3e-3", "--grid", "seed=1,2", "--cluster",
             stand_in_cluster(folder, num_steps=30), "--nodes", 1, "parallel.ep=1", "--at-once", 2]
    refused = tool("sweep.py", *words, "--grid", "optim.peek=1", slurm=slurm, folder=folder)
    assert refused.returncode == 2 and "optim.peek: no such word" in refused.stderr
    planned = tool("sweep.py", *words, slurm=slurm, folder=folder)
    assert planned.returncode == 0, planned.stderr
    assert "--array=1-4%2" in planned.stdout and "run         peak_lr=1e-3,seed=2" in planned.stdout
    submitted = tool("sweep.py", *words, "--yes", slurm=slurm, folder=folder)
    assert submitted.returncode == 0, submitted.stderr
    job = slurm.remember(submitted.stdout)
    slurm.command("scontrol", "hold", job)  # two runs have begun at most: the others wait until they are let go
    another = tool("sweep.py", *words, "--grid", "optim.weight_decay=0.1,0.2", "--yes", "--wait", slurm=slurm, folder=folder)
    assert another.returncode == 2 and "a sweep with another grid is running" in another.stderr
    command = [sys.executable, str(REPOSITORY / "launch/sweep.py"), *map(str, words), "--yes", "--wait"]  # as after a kill
    with subprocess.Popen(command, cwd=folder, env=os.environ | slurm.env, stdout=subprocess.PIPE, text=True) as waiting:
        first = waiting.stdout.readline()
        slurm.command("scontrol", "release", job)
        said, _ = waiting.communicate(timeout=120)
    assert waiting.returncode == 0 and "of 4 runs done, " in first and " of 15,360 tokens" in first, first + said
    assert "4 of 4 runs done, 0 running, 0 waiting; 15,360 of 15,360 tokens" in said and "submitted" not in first + said
    runs = [folder / "lr" / name for name in json.loads((folder / "lr/sweep.json").read_text())["runs"]]
    assert json.loads((runs[3] / "config.json").read_text())["optim"]["peak_lr"] == 3e-3
    table = tool("sweep.py", "--table", "lr", slurm=slurm, folder=folder).stdout.splitlines()
    assert len(table) == 5 and all("30/30" in line and line.endswith("  done") for line in table[1:])
    wait_for(lambda: "nothing is left to do" in tool("sweep.py", *words, "--yes", slurm=slurm, folder=folder).stdout, 60, "its end")


def test_a_tool_runs_as_a_job_behind_another(slurm: PrivateSlurm, token_set: Path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tool jobs")
    words = ["list_documents", "--cluster", stand_in_cluster(folder), "--job-name"]
    first = tool("submit_tool.py", *words, "first", "--yes", "--", token_set, slurm=slurm, folder=folder)
    assert first.returncode == 0, first.stderr
    job = slurm.remember(first.stdout)
    second = tool("submit_tool.py", *words, "second", "--after", job, "--yes", "--", "nowhere", slurm=slurm, folder=folder)
    behind = slurm.remember(second.stdout)
    assert slurm.wait_state(job, *ENDED, seconds=60) == "COMPLETED"
    assert slurm.wait_state(behind, *ENDED, seconds=60) == "FAILED" and slurm.field(behind, "ExitCode") == "2:0"
    said = next((folder / "tool_jobs/second").glob("second-*.out")).read_text()
    assert "nowhere" in said and "what to do: mend" in said
    refused = tool("submit_tool.py", "export_fh", "--cluster", "local", slurm=slurm, folder=folder)
    assert refused.returncode == 2 and "did you mean 'export_hf'?" in refused.stderr
