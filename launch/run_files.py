"""May this run folder be started with this config, and what must lie in it before a job starts?

In: a run folder, new or used. Out: RUN/config.json, RUN/launch_env.sh, RUN/gate.json, RUN/job.sh (PBS, AGE), RUN/logs, RUN/code
(the code that the job runs, whatever becomes of the checkout), and RUN/launch.json, the list of what was submitted.
Invariant: nothing is written while a job of the run is queued or running, and a run never
changes its model, its data or its batches.
"""

import json
import shlex
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launch.job import REPOSITORY, Job, gate_words, launch_env
from launch.scheduler import AFTER, command_of, job_id_of, job_script
from megatron_jmed.config import RANDOM_INIT, RunConfig, save_config
from megatron_jmed.corpus.manifest import code_version
from megatron_jmed.corpus.token_set import load_token_set
from megatron_jmed.errors import CheckpointError, ConfigError, CorpusError
from megatron_jmed.run_folder import RunFolder, check_same_model, load_state, write_json


def missing_files(config: RunConfig) -> list[str]:
    """Token sets and the beginning checkpoint that are not there or damaged, as sentences."""
    found = []
    for source in config.data.blend:
        try:
            load_token_set(source.path)
        except CorpusError as error:
            found.append(f"data.blend source {source.name!r}: {error}")
    if config.init != RANDOM_INIT and RunFolder(config.run_folder).latest_checkpoint() is None:
        try:
            check_same_model(Path(config.init), load_state(Path(config.init)), config.model)
        except CheckpointError as error:
            found.append(f"init: {error}")
    return found


def live_job(folder: RunFolder) -> str | None:
    """The user's job that trains in this folder, as "17 (RUNNING)"; None where the scheduler knows none or is not here."""
    if shutil.which("squeue"):
        listed = subprocess.run(["squeue", "--me", "--noheader", "--format=%A %T %o"], capture_output=True, text=True)
        for line in listed.stdout.splitlines():
            if line.endswith(f" {folder.path.resolve()}"):  # the last word of the command that was submitted
                number, state, *_ = line.split()
                return f"{number} ({state})"
        return _live_task(folder.path / "segments.jsonl")
    elif shutil.which("qstat"):
        for number in submitted_ids(folder.path / "launch.json"):
            words = ["-j", number] if number.isdigit() else [number]  # AGE's ids are numbers, PBS's have a server behind a dot
            if subprocess.run(["qstat", *words], capture_output=True).returncode == 0:
                return f"{number} (queued or running)"
    return None


def _live_task(segments: Path) -> str | None:
    """The job of the last segment, if it is still queued: a task of a sweep has the sweep's folder in its command."""
    lines = segments.read_text(encoding="utf-8").splitlines() if segments.exists() else []
    if not lines:
        return None
    number = json.loads(lines[-1])["job"]
    listed = subprocess.run(["squeue", "--noheader", f"--jobs={number}", "--format=%T"], capture_output=True, text=True)
    state = listed.stdout.strip()
    return f"{number} ({state})" if listed.returncode == 0 and state else None


def submitted_ids(notes: Path) -> list[str]:
    """The ids of the jobs that were submitted last."""
    submissions = _submissions(notes)
    return [entry["job_id"] for entry in submissions if entry.get("number") == submissions[-1].get("number")]


def _submissions(notes: Path) -> list[dict[str, Any]]:
    return json.loads(notes.read_text(encoding="utf-8"))["submissions"] if notes.exists() else []


def prepare(config: RunConfig, job: Job) -> list[str]:
    """Write what the job script reads, and clear what an ended job left; returns notes for the user."""
    folder, notes = RunFolder(config.run_folder), []
    run = folder.path.resolve()
    latest = folder.latest_checkpoint()
    step = load_state(latest).step if latest else 0
    if step >= config.num_steps:
        raise ConfigError(f"{run} is done: its checkpoint is at step {step} of {config.num_steps}; to read more, raise "
                          "budget.total_tokens")
    folder.done.unlink(missing_ok=True)  # of a shorter horizon
    (run / "halted").unlink(missing_ok=True)
    (run / "bad_nodes").unlink(missing_ok=True)  # somebody may have mended them
    if folder.stop.exists():
        folder.stop.unlink()
        notes.append(f"removed {folder.stop}: left over; submitting means: go")
    (run / "logs").mkdir(parents=True, exist_ok=True)  # Slurm does not make the folder of its output
    save_config(config, folder.config)
    take_snapshot(run / "code")
    number = 1 + max((entry.get("number", 0) for entry in _submissions(run / "launch.json")), default=0)
    command = command_of(job, run)
    (run / "launch_env.sh").write_text(launch_env(job, run, Path.cwd(), code_version(), number, command), encoding="utf-8")
    write_json(run / "gate.json", gate_words(job))
    if script := job_script(job, run):
        (run / "job.sh").write_text(script, encoding="utf-8")
    return notes


def take_snapshot(target: Path) -> None:
    """Copy the code that a job runs: what is edited while it waits in the queue is not what was submitted."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for room in ("megatron_jmed", "launch", "tools"):
        try:
            shutil.copytree(REPOSITORY / room, partial / room, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        except shutil.Error as error:  # a list of (source, target, why)
            raise ConfigError(f"the code cannot be copied to {target}: {error.args[0][0][2]}; mend that, submit again") from None
    (partial / "CODE_VERSION").write_text(code_version() + "\n", encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def submit(config: RunConfig, job: Job) -> list[str]:
    """Submit the prepared run folder and note it in RUN/launch.json; returns the job ids, more than one of a chain."""
    run = RunFolder(config.run_folder).path.resolve()
    notes = run / "launch.json"
    number = 1 + max((entry.get("number", 0) for entry in _submissions(notes)), default=0)
    about = {"cluster": job.cluster.name, "nodes": job.nodes, "spares": job.spares, "ranks_per_node": job.ranks_per_node,
             "number": number}
    ids: list[str] = []
    for _ in range(job.segments):
        command = command_of(job, run, ids[-1] if ids else None)
        ids.append(submit_command(command, notes, about, job.cluster.scheduler))
    return ids


def printed_commands(job: Job, run: Path) -> list[str]:
    """The commands that `submit` gives, as a user would type them."""
    commands = [shlex.join(command_of(job, run))]
    return commands + [shlex.join(command_of(job, run, AFTER))] * (job.segments - 1)


def submit_command(command: list[str], notes: Path, about: dict[str, Any], scheduler: str = "slurm") -> str:
    """Run a submitting command and note it in a JSON file; returns the job id."""
    program = command[0]
    if not shutil.which(program):
        raise ConfigError(f"there is no {program} on this machine; submit with --yes on a login node of the cluster")
    parsable = ["--parsable"] if scheduler == "slurm" else []
    answer = subprocess.run([program, *parsable, *command[1:]], capture_output=True, text=True)
    if answer.returncode:
        raise ConfigError(f"{program} refused the job: {answer.stderr.strip()}")
    job_id = job_id_of(answer.stdout, scheduler)
    submitted = {"job_id": job_id, "time": datetime.now(UTC).isoformat(timespec="seconds"), "code_version": code_version()}
    write_json(notes, {"submissions": [*_submissions(notes), submitted | about | {"command": command}]})
    return job_id
