"""Does a training job fit its cluster, and with what command and environment is it started?

In: a config, a cluster and what was asked for. Out: sentences that say what cannot work, the text of RUN/launch_env.sh,
and the sbatch command. `place_and_time_problems` and `node_lines` serve any job (corpus_job.py). Nothing is read or
written here.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from launch.cluster import Cluster, did_you_mean, walltime_seconds
from megatron_jmed.config import RunConfig, problems
from megatron_jmed.train.estimate import GIB, stage_memory

REPOSITORY = Path(__file__).resolve().parents[1]
JOB_SCRIPT = REPOSITORY / "launch" / "train.sbatch"


@dataclass(frozen=True)
class Job:
    """What is asked of a cluster."""

    name: str
    cluster: Cluster
    partition: str
    nodes: int
    ranks_per_node: int
    walltime: str

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node


def job_problems(config: RunConfig, job: Job) -> list[str]:
    """Everything that cannot work, as sentences: the config on that many ranks, and the job on its cluster."""
    cluster = job.cluster
    found = problems(config, job.world_size) if job.world_size > 0 else []
    found += place_and_time_problems(job)
    if not 1 <= job.ranks_per_node <= cluster.max_ranks_per_node:
        gpus = f" ({cluster.gpus_per_node} GPUs)" if cluster.gpus_per_node else ""
        found.append(f"--ranks-per-node={job.ranks_per_node}: a node of {cluster.name}{gpus} takes 1 to "
                     f"{cluster.max_ranks_per_node}")
    if config.precision.backend == "te" and not cluster.gpus_per_node:
        found.append(f'precision.backend="te" needs GPUs and {cluster.name} has none; set precision.backend="local" and '
                     'precision.compute="fp32" or "bf16"')
    return found or _memory_problems(config, job)


def place_and_time_problems(job: Job) -> list[str]:
    """What partition, nodes and walltime cannot be, as sentences."""
    return _place_problems(job) + _time_problems(job)


def _place_problems(job: Job) -> list[str]:
    cluster, partition = job.cluster, job.cluster.partitions.get(job.partition)
    if partition is None:
        return [f"--partition={job.partition}: {cluster.name} has no such partition"
                f"{did_you_mean(job.partition, cluster.partitions)}; partitions: {', '.join(cluster.partitions)}"]
    if not 1 <= job.nodes <= partition.max_nodes:
        return [f"--nodes={job.nodes}: partition {job.partition} of {cluster.name} takes 1 to {partition.max_nodes}"]
    return []


def _time_problems(job: Job) -> list[str]:
    cluster, partition = job.cluster, job.cluster.partitions.get(job.partition)
    try:
        seconds = walltime_seconds(job.walltime)
    except ValueError as error:
        return [f"--time: {error}"]
    if partition and partition.max_walltime and seconds > walltime_seconds(partition.max_walltime):
        return [f"--time={job.walltime}: partition {job.partition} of {cluster.name} allows at most "
                f"{partition.max_walltime}; a job is requeued at its limit and goes on by itself"]
    if seconds < 2 * cluster.save_margin_seconds:
        # with less, a job spends its time on starting and saving, and may be asked to save before its first step
        return [f"--time={job.walltime}: {cluster.name} asks a job to save {cluster.save_margin_seconds} s before its "
                f"limit (save_margin_seconds); give it at least {2 * cluster.save_margin_seconds} s"]
    return []


def _memory_problems(config: RunConfig, job: Job) -> list[str]:
    """Stages whose weights, gradients and optimizer alone, which are exact, exceed a GPU."""
    limit = job.cluster.gpu_memory_gib
    if limit is None:
        return []
    found = []
    for stage in range(config.parallel.pp):
        fixed = stage_memory(config, job.world_size, stage).state / GIB
        if fixed > limit:
            found.append(f"pipeline stage {stage} needs {fixed:.1f} GiB a rank for weights, gradients and optimizer, more than "
                         f"the {limit} GiB of a GPU; raise parallel.pp={config.parallel.pp} or parallel.ep="
                         f"{config.parallel.ep}, or take more nodes")
    return found


def sbatch_command(job: Job, run: Path) -> list[str]:
    """The command that submits the run folder `run`."""
    return [
        "sbatch",
        f"--job-name={job.name}",
        f"--partition={job.partition}",
        f"--nodes={job.nodes}",
        f"--time={job.walltime}",
        f"--signal=B:USR1@{job.cluster.save_margin_seconds}",  # B: to the job script alone, which asks the ranks to save
        f"--output={run}/logs/%x-%j.out",
        *job.cluster.sbatch_options,
        str(JOB_SCRIPT),
        str(run),
    ]


def launch_env(job: Job, run: Path, work_folder: Path, code_version: str) -> str:
    """The text of RUN/launch_env.sh, which the job script sources: everything that a machine or a submission decides."""
    cluster = job.cluster
    lines = [
        f"# Written by launch/submit.py for the cluster {cluster.name}; sourced by launch/train.sbatch.",
        *node_lines(cluster, work_folder, code_version),
        f"RUN_FOLDER={shlex.quote(str(run))}",
        f"NPROC_PER_NODE={job.ranks_per_node}",
        f"MASTER_PORT=$(({cluster.master_port_first} + SLURM_JOB_ID % {cluster.master_port_count}))",
        f"SRUN_OPTIONS=({shlex.join(cluster.srun_options)})",
        f"TORCHRUN_OPTIONS=({shlex.join(cluster.torchrun_options)})",
    ]
    return "\n".join(lines) + "\n"


def node_lines(cluster: Cluster, work_folder: Path, code_version: str) -> list[str]:
    """Shell lines that make a node ready for any job of ours: folder, setup, environment, PYTHON."""
    lines = [
        f"# Code version: {code_version}",
        f"cd {shlex.quote(str(work_folder))} || exit 2   # relative paths start here",
    ]
    for line in cluster.setup:
        complaint = shlex.quote(f"setup failed: {line}")
        lines.append(f"{line} || {{ echo {complaint} >&2; exit 2; }}")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
    return [
        *lines,
        f'export PYTHONPATH={shlex.quote(str(REPOSITORY))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        f"PYTHON={shlex.quote(cluster.python or sys.executable)}",
    ]
