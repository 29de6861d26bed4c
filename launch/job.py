"""Does a training job fit its cluster, and with what environment is it started?

In: a config, a cluster and what was asked for. Out: sentences that say what cannot work, and the text of RUN/launch_env.sh.
`place_and_time_problems` and `node_lines` serve any job (corpus_job.py, submit_tool.py). Nothing is read or written here.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.cluster import Cluster, Container, did_you_mean, walltime_seconds
from megatron_jmed.config import RunConfig, problems
from megatron_jmed.train.estimate import GIB, stage_memory

REPOSITORY = Path(__file__).resolve().parents[1]
ESTIMATE_ERROR = 0.05  # of the memory that a step takes (benchmarks/plan.md)


@dataclass(frozen=True)
class Job:
    """What is asked of a cluster."""

    name: str
    cluster: Cluster
    partition: str
    nodes: int
    ranks_per_node: int
    walltime: str
    spares: int = 0  # nodes beyond `nodes` that the gate may put in the place of bad ones
    segments: int = 1  # jobs submitted at once, each held for the end of the one before; 1 under Slurm: the job is requeued
    account: str = ""

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
    if job.segments < 1 or job.spares < 0:
        found.append(f"--segments={job.segments} --spares={job.spares}: at least one segment, and no fewer than no spares")
    if job.spares and not cluster.gate.enabled:
        found.append(f"--spares={job.spares}: without a gate ({cluster.name}: gate.enabled=false) no node is ever replaced")
    if cluster.scheduler != "slurm" and " " in str(Path(config.run_folder).absolute()):
        found.append(f"run_folder={config.run_folder}: directives of {cluster.scheduler} cannot hold a space; name another folder")
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
    if job.nodes < 1 or job.nodes + job.spares > partition.max_nodes:
        spares = f" with {job.spares} spare(s)" if job.spares else ""
        return [f"--nodes={job.nodes}{spares}: partition {job.partition} of {cluster.name} takes 1 to {partition.max_nodes}"]
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
    """Stages whose weights, gradients and optimizer, which are exact, or a step of which exceed a GPU."""
    limit = job.cluster.gpu_memory_gib
    if limit is None:
        return []
    found = []
    for stage in range(config.parallel.pp):
        memory = stage_memory(config, job.world_size, stage)
        state, least = memory.state / GIB, (memory.state + memory.peak * (1 - ESTIMATE_ERROR)) / GIB
        if state > limit:
            found.append(f"pipeline stage {stage} needs {state:.1f} GiB a rank for weights, gradients and optimizer, more than "
                         f"the {limit} GiB of a GPU; raise parallel.pp={config.parallel.pp} or parallel.ep="
                         f"{config.parallel.ep}, or take more nodes")
        elif least > limit:
            found.append(f"pipeline stage {stage} needs at least {least:.1f} GiB a rank, {state:.1f} of them for weights, "
                         f"gradients and optimizer, more than the {limit} GiB of a GPU; recompute more than budget.recompute="
                         f"{config.budget.recompute}, take smaller micro-batches, or ask tools/plan_run.py --advise")
    return found


def launch_env(job: Job, run: Path, work_folder: Path, code_version: str, submission: int, submit: list[str]) -> str:
    """The text of RUN/launch_env.sh, which segment.sh sources: everything that a machine or a submission decides."""
    cluster, seconds = job.cluster, walltime_seconds(job.walltime)
    comes_back = "requeue" if cluster.scheduler == "slurm" and job.segments == 1 else "chain"
    lines = [
        f"# Written by launch/submit.py for the cluster {cluster.name}; sourced by launch/segment.sh.",
        *node_lines(cluster, work_folder, code_version, run / "code"),
        *container_lines(cluster),
        f"RUN_FOLDER={shlex.quote(str(run))}",
        f"SUBMISSION={submission}",
        f"SCHEDULER={'slurm' if cluster.scheduler == 'slurm' else 'mpirun'}",
        f"RANK_LAUNCHER={cluster.rank_launcher}",
        f"COME_BACK={comes_back}",
        f"NUM_NODES={job.nodes}",
        f"NPROC_PER_NODE={job.ranks_per_node}",
        f"MAX_IDLE_SEGMENTS={cluster.max_idle_segments}",
        f"SAVE_AFTER_SECONDS={seconds - cluster.save_margin_seconds}",
        # Two for each job: the next one is where its gate meets.
        f"MASTER_PORT=$(({cluster.master_port_first} + JOB_NUMBER % {cluster.master_port_count // 2} * 2))",
        f"HAS_GATE={1 if cluster.gate.enabled else ''}",
        f"HAS_NETWORK_GATE={1 if cluster.gate.network else ''}",
        f"GATE_SECONDS={cluster.gate.seconds}",
        f"SRUN_OPTIONS=({shlex.join([*cluster.srun_options, *pyxis_options(cluster)])})",
        f"MPIRUN_OPTIONS=({shlex.join(cluster.mpirun_options)})",
        f"TORCHRUN_OPTIONS=({shlex.join(cluster.torchrun_options)})",
        f"EXPORTS=({shlex.join([*cluster.environment, 'PATH', 'LD_LIBRARY_PATH', 'PYTHONPATH'])})",
        f"SUBMIT=({shlex.join(submit)})",
    ]
    return "\n".join(lines) + "\n"


def container_lines(cluster: Cluster) -> list[str]:
    """Shell lines: CONTAINER, what stands before a command in the container; HOST_PYTHON, the interpreter outside of it."""
    kind = cluster.container.kind
    words = [] if kind == "pyxis" else _container_words(cluster.container)
    return [f"CONTAINER=({shlex.join(words)})", 'HOST_PYTHON=$PYTHON' if kind == "none" else 'HOST_PYTHON=python3']


def pyxis_options(cluster: Cluster) -> list[str]:
    """What srun and sbatch are told where Slurm itself starts the container."""
    return _container_words(cluster.container) if cluster.container.kind == "pyxis" else []


def _container_words(container: Container) -> list[str]:
    """What stands before the command in a container, or, for pyxis, srun's options."""
    mounts, image = ",".join(container.mounts), container.image
    if container.kind == "apptainer":
        binds = ["--bind", mounts] if mounts else []
        return ["apptainer", "exec", "--nv", *binds, *container.options, image]
    if container.kind == "enroot":
        return ["enroot", "start", *(word for mount in container.mounts for word in ("--mount", mount)), *container.options, image]
    if container.kind == "pyxis":
        return [f"--container-image={image}", *([f"--container-mounts={mounts}"] if mounts else []), *container.options]
    return []


def gate_words(job: Job) -> dict[str, Any]:
    """What RUN/gate.json tells the gate: the cluster's expectations of a node."""
    cluster = job.cluster
    return cluster.gate.model_dump() | {"gpus": cluster.gpus_per_node, "gpu_memory_gib": cluster.gpu_memory_gib}


def node_lines(cluster: Cluster, work_folder: Path, code_version: str, code: Path = REPOSITORY) -> list[str]:
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
        f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        f"PYTHON={shlex.quote(cluster.python or sys.executable)}",
    ]
