"""May this run folder be started with this config, and what must lie in it before a job starts?

In: a run folder, new or used. Out: RUN/config.json, RUN/launch_env.sh, RUN/logs, and RUN/launch.json, the list of what
was submitted from which code. Invariant: nothing is written while a job of the run is queued or running, and a run never
changes its model, its data or its batches.
"""

import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launch.job import Job, launch_env, sbatch_command
from megatron_jmed.config import RANDOM_INIT, RunConfig, save_config
from megatron_jmed.corpus.manifest import code_version
from megatron_jmed.corpus.tokens import load_token_set
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
    """The user's job that trains in this folder, as "17 (RUNNING)"; None where Slurm knows none or is not here."""
    if not shutil.which("squeue"):
        return None
    listed = subprocess.run(["squeue", "--me", "--noheader", "--format=%A %T %o"], capture_output=True, text=True)
    for line in listed.stdout.splitlines():
        if line.endswith(f" {folder.path.resolve()}"):  # the last word of the command that was submitted
            number, state, *_ = line.split()
            return f"{number} ({state})"
    return None


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
    if folder.stop.exists():
        folder.stop.unlink()
        notes.append(f"removed {folder.stop}: left over; submitting means: go")
    (run / "logs").mkdir(parents=True, exist_ok=True)  # Slurm does not make the folder of its output
    save_config(config, folder.config)
    text = launch_env(job, run, Path.cwd(), code_version())
    (run / "launch_env.sh").write_text(text, encoding="utf-8")
    return notes


def submit(config: RunConfig, job: Job) -> str:
    """Submit the prepared run folder and note it in RUN/launch.json; returns the job id."""
    run = RunFolder(config.run_folder).path.resolve()
    about = {"cluster": job.cluster.name, "nodes": job.nodes, "ranks_per_node": job.ranks_per_node}
    return submit_command(sbatch_command(job, run), run / "launch.json", about)


def submit_command(command: list[str], notes: Path, about: dict[str, Any]) -> str:
    """Run an sbatch command and note it in a JSON file; returns the job id."""
    if not shutil.which("sbatch"):
        raise ConfigError("there is no sbatch on this machine; submit with --yes on a login node of the cluster")
    answer = subprocess.run([command[0], "--parsable", *command[1:]], capture_output=True, text=True)
    if answer.returncode:
        raise ConfigError(f"sbatch refused the job: {answer.stderr.strip()}")
    job_id = answer.stdout.strip().split(";")[0]
    submitted = {"job_id": job_id, "time": datetime.now(UTC).isoformat(timespec="seconds"), "code_version": code_version()}
    earlier = json.loads(notes.read_text(encoding="utf-8"))["submissions"] if notes.exists() else []
    write_json(notes, {"submissions": [*earlier, submitted | about | {"command": command}]})
    return job_id
