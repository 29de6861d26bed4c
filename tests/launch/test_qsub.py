"""PBS and AGE: the generated job scripts, linted and run here, with stand-ins for qsub and mpirun; a chain of three segments."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from launch.scheduler import job_id_of

# mpirun as far as a job script uses it: what follows the options runs once for each host, with Open MPI's ranks.
MPIRUN = """#!{python}
import os, subprocess, sys
words, names, hosts, at = sys.argv[1:], {{}}, [], 0
while words[at].startswith("-"):
    if words[at] == "-x":
        names[words[at + 1]] = os.environ.get(words[at + 1], "")
    if words[at] == "--host":
        hosts = [(name, int(count)) for name, count in (part.split(":") for part in words[at + 1].split(","))]
    at += 3 if words[at] == "-mca" else 2
ranks = [host for host, count in hosts for _ in range(count)]
kept = {{name: os.environ[name] for name in ("PATH", "HOME")}} | names
children = [subprocess.Popen(words[at:], env=kept | {{"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(len(ranks)),
                             "SLURMD_NODENAME": host}}) for rank, host in enumerate(ranks)]
sys.exit(max(child.wait() for child in children))
"""

# The trainer: three steps a segment until it is asked to save, nine in all. Rank 0 alone works.
TRAINER = """#!{python} -SE
import os, pathlib, sys, time
if sys.argv[2].startswith("launch."):
    os.execv("{python}", ["{python}", *sys.argv[1:]])
if os.environ["OMPI_COMM_WORLD_RANK"] != "0":
    sys.exit(0)
run = pathlib.Path(sys.argv[-1]).parent
step = max([0, *(int(path.name[5:]) for path in run.glob("checkpoints/step_*"))]) + 3
print("trained with", os.environ["OMP_NUM_THREADS"], "threads at", os.environ["MASTER_ADDR"], flush=True)
while step < 9 and not (run / "stop").exists():
    time.sleep(0.02)
(run / f"checkpoints/step_{{step:07d}}").mkdir(parents=True)
(run / f"checkpoints/step_{{step:07d}}/state.json").write_text("{{}}")
(run / ("done" if step == 9 else "stopped")).write_text(f"{{step}} time limit\\n")
(run / "stop").unlink(missing_ok=True)
"""

PLACES = {"pbs": ("abci3", "#PBS"), "age": ("tsubame4", "#$")}


@pytest.fixture(params=PLACES)
def site(request, tmp_path: Path) -> tuple[str, Path, dict[str, str]]:
    """(scheduler, cluster file for this machine, environment with qsub and mpirun)."""
    scheduler, (name, _) = request.param, PLACES[request.param]
    commands = tmp_path / "commands"
    commands.mkdir()
    answers = {"pbs": 'echo "$n.pbs1"', "age": 'echo "Your job $n (\\"chain\\") has been submitted"'}
    qsub = f'#!/bin/bash\necho "$*" >> {commands}/asked\nn=$((40 + $(wc -l < {commands}/asked)))\n{answers[scheduler]}\n'
    for file, text in (("qsub", qsub), ("mpirun", MPIRUN), ("trainer", TRAINER)):
        (commands / file).write_text(text if file == "qsub" else text.format(python=sys.executable))
        (commands / file).chmod(0o755)
    text = (REPOSITORY / f"launch/clusters/{name}.toml").read_text()
    text = re.sub(r"^setup = \[.*?^\]", "setup = []", text, flags=re.MULTILINE | re.DOTALL)
    text = text.replace('python = "python"', f'python = "{commands}/trainer"')
    text = re.sub(r"^gpus_per_node = .*$", "gpus_per_node = 0", text, flags=re.MULTILINE)
    text = text.replace("gpu_memory_gib", "# gpu_memory_gib")
    ranks = 'ranks_per_node = 1\nrank_launcher = "scheduler"'
    text = re.sub(r"^ranks_per_node = .*$", ranks, text, flags=re.MULTILINE)
    text = re.sub(r"^save_margin_seconds = .*$", "save_margin_seconds = 2", text, flags=re.MULTILINE)
    text = text.replace("[gate]", "[gate]\nenabled = false")  # measuring would take longer than these segments
    (tmp_path / "site.toml").write_text(text)
    without_slurm = ":".join(part for part in os.environ["PATH"].split(":") if not (Path(part) / "squeue").exists())
    path = f"{commands}:{without_slurm}:{tmp_path / 'system'}"
    (tmp_path / "system").mkdir()
    for tool in ("bash", "mkdir", "awk", "paste", "cut", "date", "grep", "sed", "readlink", "stat", "sleep", "rm", "cat", "wc"):
        (tmp_path / "system" / tool).symlink_to(shutil.which(tool))
    return scheduler, tmp_path / "site.toml", {"PATH": path}


def run_segment(scheduler: str, run: Path, number: int, environment: dict[str, str]) -> int:
    """What PBS or AGE does when the job's turn comes."""
    hosts = run / "hosts"
    lines = {"pbs": ["host1", "host1", "host2", "host2"], "age": ["host1 4 q@host1 UNDEFINED", "host2 4 q@host2 UNDEFINED"]}
    hosts.write_text("\n".join(lines[scheduler]) + "\n")
    given = {"pbs": {"PBS_JOBID": f"{number}.pbs1", "PBS_NODEFILE": str(hosts), "PBS_JOBNAME": "chain"},
             "age": {"JOB_ID": str(number), "PE_HOSTFILE": str(hosts), "JOB_NAME": "chain"}}[scheduler]
    return subprocess.run(["bash", str(run / "job.sh")], env={"HOME": str(run)} | environment | given, timeout=120).returncode


def test_a_chain_is_submitted_and_its_segments_go_on_from_each_other(site, submit, experiment: Path, tmp_path: Path):
    scheduler, cluster, environment = site
    words = [experiment, "run_folder=runs/chain", "--cluster", cluster, "--nodes", 2, "--time", "00:00:04", "--segments", 4]
    planned = submit(tmp_path, *words, env=environment)
    assert planned.returncode == 0, planned.stderr
    hold = {"pbs": "-W depend=afterany:JOB_BEFORE", "age": "-hold_jid JOB_BEFORE"}[scheduler]
    assert planned.stdout.count(hold) == 3 and "not submitted" in planned.stdout
    answer = submit(tmp_path, *words, "--yes", env=environment)
    assert answer.returncode == 0, answer.stderr
    ids = re.findall(r"submitted   job (\S+)", answer.stdout)
    assert ids == [f"{number}{'.pbs1' if scheduler == 'pbs' else ''}" for number in (41, 42, 43, 44)]
    asked = (tmp_path / "commands/asked").read_text().splitlines()
    assert hold.replace("JOB_BEFORE", ids[0]) in asked[1] and "depend" not in asked[0] and "hold_jid" not in asked[0]

    run = tmp_path / "runs/chain"
    script = (run / "job.sh").read_text()
    sign = PLACES[scheduler][1]
    directives = [line for line in script.splitlines() if line.startswith(sign)]
    expected = {"pbs": [f"{sign} -l select=2:ncpus=192:mpiprocs=8:ngpus=8", f"{sign} -l walltime=0:00:04", f"{sign} -q rt_HF"],
                "age": [f"{sign} -l node_f=2", f"{sign} -l h_rt=0:00:04", f"{sign} -cwd"]}[scheduler]
    assert set(expected) <= set(directives) and all("{" not in line for line in directives)
    shellcheck = Path(sys.executable).parent / "shellcheck"
    assert not shellcheck.exists() or subprocess.run([shellcheck, run / "job.sh"]).returncode == 0

    codes = [run_segment(scheduler, run, number, environment) for number in (41, 42, 43, 44)]
    output = "\n".join(path.read_text() for path in sorted((run / "logs").iterdir()))
    assert codes == [1, 1, 0, 0], output
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_0000003", "step_0000006", "step_0000009"]
    assert output.count("the time limit is near") == 2
    assert "trained with 1" in output and "threads at host1" in output and "already done" in output


def test_a_failure_that_needs_a_person_ends_the_chain(site, submit, experiment: Path, tmp_path: Path):
    scheduler, cluster, environment = site
    words = [experiment, "run_folder=runs/chain", "--cluster", cluster, "--nodes", 2, "--segments", 3, "--yes"]
    assert submit(tmp_path, *words, env=environment).returncode == 0
    trainer = tmp_path / "commands/trainer"
    mistake = 'sys.exit("error: tiny: no such word")\nrun = pathlib'
    trainer.write_text(TRAINER.format(python=sys.executable).replace("run = pathlib", mistake))
    run = tmp_path / "runs/chain"
    assert [run_segment(scheduler, run, number, environment) for number in (41, 42)] == [1, 3]
    assert "user error: error: tiny: no such word" in (run / "halted").read_text()
    submit(tmp_path, *words, env=environment)
    assert not (run / "halted").exists()


def test_a_folder_with_a_space_is_refused_where_directives_cannot_hold_it(site, submit, experiment: Path, tmp_path: Path):
    answer = submit(tmp_path, experiment, "run_folder=runs/my run", "--cluster", site[1], "--nodes", 2, env=site[2])
    assert answer.returncode == 2 and "cannot hold a space" in answer.stderr


@pytest.mark.parametrize(("scheduler", "answer", "job"), [
    ("slurm", "41;cluster\n", "41"), ("pbs", "41.pbs1\n", "41.pbs1"), ("age", 'Your job 41 ("a b 7") has been submitted\n', "41")])
def test_job_ids(scheduler: str, answer: str, job: str):
    assert job_id_of(answer, scheduler) == job
