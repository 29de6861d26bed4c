"""What can a login node know before a job waits in a queue for days: its disks, its image, and what Slurm would say to the job?

In: a config, a job. Out: sentences about what cannot work. Invariant: only questions are asked; nothing is written or submitted.
"""

import getpass
import os
import shutil
import subprocess
from pathlib import Path

from launch.job import REPOSITORY, Job
from launch.scheduler import command_of
from megatron_jmed.config import RunConfig
from megatron_jmed.run_folder import existing_parent
from megatron_jmed.train.estimate import checkpoint_bytes

_FEW_INODES = 100_000


def disk_problems(config: RunConfig, job: Job) -> list[str]:
    """What the run folder's disk, the quota of the cluster file, the image and its mounts do not allow."""
    folder = Path(config.run_folder)
    existing = existing_parent(folder)
    found = []
    if not os.access(existing, os.W_OK):
        found.append(f"run_folder={config.run_folder}: you may not write in {existing}")
    # the new checkpoint is whole before the oldest goes; those that are there already lie on the disk
    each, kept = checkpoint_bytes(config), config.budget.keep_checkpoints + 1
    needed = each * max(1, kept - len(list(folder.glob("checkpoints/step_*/state.json"))))
    free = shutil.disk_usage(existing).free
    if free < needed:
        found.append(
            f"run_folder={config.run_folder}: the disk has {free / 1e9:.4g} GB free, and {kept} checkpoints of {each / 1e9:.4g} "
            "GB will lie there; make room, keep fewer (budget.keep_checkpoints), or name another disk"
        )
    if job.cluster.storage_tb and each * kept > job.cluster.storage_tb * 1e12:
        found.append(
            f"run_folder={config.run_folder}: {kept} checkpoints of {each / 1e12:.3g} TB are more than the quota of "
            f"{job.cluster.name}, storage_tb={job.cluster.storage_tb:g}; keep fewer (budget.keep_checkpoints)"
        )
    inodes = os.statvfs(existing)
    if inodes.f_files > 0 and inodes.f_favail < _FEW_INODES:
        found.append(f"run_folder={config.run_folder}: the disk can take only {inodes.f_favail:,} more files; remove some first")
    return found + _container_problems(job)


def _container_problems(job: Job) -> list[str]:
    container, found = job.cluster.container, []
    if container.image.startswith("/") and not Path(container.image).exists():
        found.append(f"container.image={container.image} does not exist here; build or import it first (launch/README.md)")
    for mount in container.mounts:
        if not Path(mount.split(":")[0]).exists():
            found.append(f"container.mounts: {mount.split(':')[0]} does not exist here")
    python = job.cluster.python
    if container.kind == "none" and python.startswith("/") and not os.access(python, os.X_OK):
        found.append(f"python={python} is no program here; the nodes will look for it at the same path")
    return found


def login_problems(job: Job) -> list[str]:
    """What Slurm would say to this job: partition, account, nodes, options. Empty where there is no Slurm."""
    if job.cluster.scheduler != "slurm" or not shutil.which("sbatch"):
        return []
    command = [*command_of(job, Path("/run"))[:-2], str(REPOSITORY / "launch" / "train.sbatch"), "RUN"]
    try:
        asked = subprocess.run([command[0], "--test-only", *command[1:]], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return ["Slurm does not answer (sbatch --test-only, 60 s); try again later"]
    if asked.returncode == 0:
        return []
    said = [
        line.removeprefix("sbatch: ").removeprefix("error: ").removeprefix("allocation failure: ")
        for line in asked.stderr.splitlines()
        if line.strip()
    ]
    answer = "; ".join(said)
    if "configuration source" in answer or "contact slurm controller" in answer:
        return ["Slurm is installed here and does not answer: submit on a login node of the cluster"]
    return [f"Slurm would refuse this job: {answer}{_accounts(answer)}{_partitions(answer)}"]


def _accounts(answer: str) -> str:
    """Which accounts the user has, if that is what is wrong; nothing where Slurm keeps no accounts."""
    if "account" not in answer.lower() or not shutil.which("sacctmgr"):
        return ""
    listed = _ask(
        "sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={getpass.getuser()}", "format=account,partition"
    )
    known = sorted(set(listed.replace("|", " on ").split("\n")) - {""})
    return f"; yours are: {', '.join(word.removesuffix(' on ') for word in known)} (--account)" if known else ""


def _partitions(answer: str) -> str:
    """Which partitions there are, if that is what is wrong."""
    if "partition" not in answer.lower() or "account" in answer.lower():
        return ""
    listed = _ask("sinfo", "--noheader", "--format=%R (%D nodes, up to %l, %a)").splitlines()
    return f"; partitions: {', '.join(sorted(set(listed)))} (--partition)" if listed else ""


def _ask(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
