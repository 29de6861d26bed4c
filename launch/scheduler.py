"""How is a prepared run submitted to Slurm, PBS Pro or AGE: the commands, and the job script where the scheduler wants one?

In: a `Job` and its run folder. Out: command lines and the text of RUN/job.sh. Thin by intent: a segment of a run is the
same everywhere (launch/segment.sh); a scheduler's own words stand in the cluster's TOML. Nothing is read or written here.

A chain. Slurm requeues a job. Where that is not allowed, and under PBS and AGE, `--segments N` submits N jobs at once, each
held for the end of the one before; those after the run's end, or after a failure that needs a person, end at once.
"""

import shlex
from pathlib import Path

from launch.cluster import walltime_seconds
from launch.job import Job

AFTER = "JOB_BEFORE"  # stands for the id of the job before in a printed command


def command_of(job: Job, run: Path, after: str | None = None) -> list[str]:
    """The command that submits the run folder `run`, to begin when job `after` has ended, however it did."""
    if job.cluster.scheduler == "slurm":
        return _sbatch(job, run, after)
    hold = [] if after is None else ["-W", f"depend=afterany:{after}"] if job.cluster.scheduler == "pbs" else ["-hold_jid", after]
    return ["qsub", *job.cluster.qsub_options, *hold, str(run / "job.sh")]


def _sbatch(job: Job, run: Path, after: str | None) -> list[str]:
    tasks = job.ranks_per_node if job.cluster.rank_launcher == "scheduler" else 1
    return [
        "sbatch",
        f"--job-name={job.name}",
        f"--partition={job.partition}",
        f"--nodes={job.nodes + job.spares}",
        f"--ntasks-per-node={tasks}",
        f"--time={job.walltime}",
        f"--signal=B:USR1@{job.cluster.save_margin_seconds}",  # B: to the job script alone, which asks the ranks to save
        f"--output={run}/logs/%x-%j.out",
        *([f"--dependency=afterany:{after}"] if after else []),
        *job.cluster.sbatch_options,
        *([f"--account={job.account}"] if job.account else []),
        str(run / "code" / "launch" / "train.sbatch"),
        str(run),
    ]


def job_script(job: Job, run: Path) -> str | None:
    """RUN/job.sh for PBS and AGE, which read their directives from a script; None for Slurm."""
    scheduler = job.cluster.scheduler
    if scheduler == "slurm":
        return None
    sign = {"pbs": "#PBS", "age": "#$"}[scheduler]
    values = {"nodes": job.nodes + job.spares, "partition": job.partition, "walltime": _qsub_walltime(job.walltime)}
    own = [f"-N {job.name}", "-j oe" if scheduler == "pbs" else "-j y", f"-o {run}/logs/"]
    words = [line.format(**values) for line in job.cluster.directives]
    return (
        "\n".join(
            [
                "#!/bin/bash",
                *(f"{sign} {line}" for line in [*own, *words]),
                "# Written by launch/submit.py. One segment of the run; its output: logs/NAME-JOB.out",
                f"exec bash {shlex.quote(str(run / 'code/launch/train_qsub.sh'))} {shlex.quote(str(run))}",
            ]
        )
        + "\n"
    )


def _qsub_walltime(text: str) -> str:
    """ "1-02:00:00" as hours:minutes:seconds: PBS and AGE know no days."""
    seconds = walltime_seconds(text)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def job_id_of(answer: str, scheduler: str) -> str:
    """The job id in what the scheduler said: "41;cluster", "41.server", or "Your job 41 ("name") has been submitted"."""
    text = answer.strip()
    if scheduler == "slurm":
        return text.split(";")[0]
    if scheduler == "pbs":
        return text.split()[-1]
    return next(word for word in text.split() if word.isdigit())
