"""Plan and submit a training run on a cluster.

`python launch/submit.py RECIPE_OR_TOML --cluster NAME_OR_TOML --nodes N [--yes] [section.word=value ...]`
Checks config and cluster, writes the run folder, prints what the run will cost and the command; only --yes submits.
Needs neither torch nor Megatron nor a GPU: it runs on a login node. All that is wrong is reported at once, exit code 2.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a login node need not have the package installed

from launch.cluster import load_cluster
from launch.job import Job, job_problems
from launch.login_checks import disk_problems, login_problems
from launch.run_files import live_job, missing_files, prepare, printed_commands, submit
from megatron_jmed.config import RunConfig, load_config, raise_problems
from megatron_jmed.errors import ConfigError, run_tool
from megatron_jmed.run_folder import RunFolder, changed_words
from megatron_jmed.train.estimate import GIB, checkpoint_bytes, count_parameters, stage_memory
from megatron_jmed.train.machine import BALANCED, H100


def main() -> None:
    words = _arguments()
    cluster = load_cluster(words.cluster)
    config = load_config(words.recipe, words.changes)
    job = Job(
        name=words.job_name or config.name,
        cluster=cluster,
        partition=words.partition or cluster.partition,
        nodes=words.nodes,
        ranks_per_node=cluster.ranks_per_node if words.ranks_per_node is None else words.ranks_per_node,
        walltime=words.time or cluster.walltime,
        spares=words.spares,
        segments=words.segments,
        account=words.account,
    )
    missing = missing_files(config) + disk_problems(config, job) + login_problems(job)
    raise_problems(f"{config.name} on {cluster.name}", job_problems(config, job) + (missing if words.yes else []))
    folder = RunFolder(config.run_folder)
    if live := live_job(folder):
        raise ConfigError(f"job {live} trains in {folder.path}; it comes back by itself until the run is done. To change "
                          f"something, end it first: touch {folder.stop}, or scancel {live.split()[0]}")
    changes = changed_words(folder, config)
    notes = prepare(config, job)
    for line in _plan(config, job, changes):
        print(line)
    for note in [*missing, *notes]:
        print(f"note        {note}")
    for command in printed_commands(job, folder.path.resolve()):
        print(f"command     {command}")
    if not words.yes:
        print("            not submitted; add --yes to submit")
    for job_id in submit(config, job) if words.yes else ():
        print(f"submitted   job {job_id}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch/submit.py", description="Plan a training run, and submit it with --yes.")
    parser.add_argument("recipe", help="recipe name, .toml experiment, or config.json of a run")
    parser.add_argument("changes", nargs="*", help="changes such as optim.peak_lr=5e-5")
    parser.add_argument("--cluster", required=True, help="name in launch/clusters, or path of a .toml file")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--partition", help="default: the cluster's")
    parser.add_argument("--ranks-per-node", type=int, help="default: the cluster's")
    parser.add_argument("--time", help="walltime of one attempt, as hours:minutes:seconds (default: the cluster's)")
    parser.add_argument("--spares", type=int, default=0, help="more nodes, for the gate to put in the place of bad ones")
    parser.add_argument("--segments", type=int, default=1, help="jobs submitted at once, each held for the end of the one before "
                        "(PBS, AGE; Slurm requeues one job)")
    parser.add_argument("--account", default="", help="Slurm account (default: the cluster's, or your own default)")
    parser.add_argument("--job-name", help="default: the config's name")
    parser.add_argument("--yes", action="store_true", help="submit")
    return parser.parse_intermixed_args()  # changes may also follow the options


def _plan(config: RunConfig, job: Job, changes: list[str]) -> Iterator[str]:
    folder = RunFolder(config.run_folder)
    latest = folder.latest_checkpoint()
    beginning = f"goes on from {latest.name}" if latest else f"begins from {config.init} weights"
    yield f"run         {config.name} in {folder.path.resolve()}, {beginning}"
    spares = f" (and {job.spares} spare)" if job.spares else ""
    for change in changes:
        yield f"changed     {change}"
    yield (f"job         {job.name}: {job.nodes} nodes{spares} x {job.ranks_per_node} = {job.world_size} ranks on "
           f"{job.cluster.name}, partition {job.partition}, {job.walltime} an attempt, saved "
           f"{job.cluster.save_margin_seconds} s before its end")
    parameters = count_parameters(config.model, config.padded_vocab_size)
    yield f"parameters  {parameters.total:,} in all, {parameters.active:,} active for a token"
    for stage in range(config.parallel.pp):
        yield _memory_line(config, job, stage)
    yield (f"budget      {config.num_steps:,} steps of {config.tokens_per_step:,} tokens = "
           f"{config.num_steps * config.tokens_per_step:,} tokens; a checkpoint of {checkpoint_bytes(config) / 1e9:,.4g} GB "
           f"every {config.steps_of(config.budget.save_every_tokens):,} steps, {config.budget.keep_checkpoints} kept")


def _memory_line(config: RunConfig, job: Job, stage: int) -> str:
    limit = job.cluster.gpu_memory_gib
    memory = stage_memory(config, job.world_size, stage, H100 if limit else BALANCED)  # a CPU has no allocator to reserve for
    total = memory.total / GIB
    of_gpu = f" of {limit}" if limit else ""
    warning = "; MAY NOT FIT: more recompute or smaller micro-batches" if limit and total > limit else ""
    return (f"memory      stage {stage}: {total:.2f}{of_gpu} GiB a rank (weights {memory.weights / GIB:.2f}, gradients "
            f"{memory.gradients / GIB:.2f}, optimizer {memory.optimizer / GIB:.2f}, a step about "
            f"{memory.peak / GIB:.2f}, reserve {memory.reserve / GIB:.2f}){warning}")


if __name__ == "__main__":
    run_tool(main)
