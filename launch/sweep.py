"""Plan and submit a grid of training runs as one array job, and say how its runs stand.

`python launch/sweep.py RECIPE --folder SWEEP --grid section.word=a,b --cluster NAME --nodes N [changes] [--yes [--wait]]`
`python launch/sweep.py --table SWEEP [--wait]`

Each point of the grid is a run folder SWEEP/NAME, prepared like any other; SWEEP/sweep.json lists them. Task i of the array runs
the i-th point (launch/sweep.sbatch) by the same rules as a single run: it is saved, requeued and resumed. The same command again
submits only the points that are not done. Blends: a grid over TOML files, `--grid @blends/a.toml,blends/b.toml`. With `--wait` it
stays, says how far the runs are, and ends when none is queued any more: well if all are done. Killed, it takes no run with it; the
same command waits again.
"""

import argparse
import itertools
import re
import shlex
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a login node need not have the package installed

from launch.cluster import load_cluster
from launch.job import Job, job_problems
from launch.login_checks import disk_problems, login_problems
from launch.run_files import live_job, missing_files, prepare, submit_command
from launch.scheduler import command_of
from launch.status import Status, read_status, read_sweep, runs_of_sweep, span, table
from megatron_jmed.config import RunConfig, load_config, raise_problems
from megatron_jmed.errors import ConfigError, run_tool, some_of
from megatron_jmed.run_folder import RunFolder, changed_words, write_json

MOST_POINTS = 1000
FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 1, 60  # a look asks the queue for each run that has not ended: ever more rarely


def main() -> None:
    words = _arguments()
    if words.table:
        runs = runs_of_sweep(words.table)
        if not runs:
            raise ConfigError(f"{words.table} is no sweep: it has no sweep.json; make one with launch/sweep.py")
        if words.wait:
            _wait(words.table)
        else:
            print(*table([read_status(run) for run in runs]), sep="\n")
        return
    cluster = load_cluster(words.cluster)
    if cluster.scheduler != "slurm":
        raise ConfigError(f"sweeps run as a Slurm array, and {cluster.name} has scheduler={cluster.scheduler!r}; submit its points "
                          "one by one with launch/submit.py")
    configs = points(words.recipe, words.grid, words.changes, words.folder)
    job = Job(name=words.job_name or words.folder.name, cluster=cluster, partition=words.partition or cluster.partition,
              nodes=words.nodes, ranks_per_node=cluster.ranks_per_node if words.ranks_per_node is None else words.ranks_per_node,
              walltime=words.time or cluster.walltime, account=words.account)
    found = login_problems(job) if words.yes else []
    for name, config in configs.items():
        problems = job_problems(config, job) + (missing_files(config) + disk_problems(config, job) if words.yes else [])
        found += [f"{name}: {problem}" for problem in problems]
    raise_problems(f"{words.folder} on {cluster.name}", found)
    if live := live_job(RunFolder(words.folder)):
        if words.yes and words.wait:  # this very command was killed while it waited
            _refuse_another_grid(words)
            _wait(words.folder)
            return
        raise ConfigError(f"job {live} runs this sweep; wait for it (launch/sweep.py --table {words.folder}), or end it: scancel "
                          f"{live.split()[0]}")
    todo = [number for number, config in enumerate(configs.values(), 1) if _is_to_do(config, job)]
    write_json(words.folder / "sweep.json", {"runs": list(configs)} | _asked(words))
    command = array_command(job, words.folder.resolve(), todo, words.at_once)
    print(f"sweep       {len(configs)} run(s) in {words.folder}, {len(configs) - len(todo)} of them done")
    for name in configs:
        print(f"run         {name}")
    if not todo:
        print("            nothing is left to do")
        return
    print(f"command     {shlex.join(command)}")
    if not words.yes:
        print("            not submitted; add --yes to submit")
        return
    (words.folder / "logs").mkdir(exist_ok=True)
    job_id = submit_command(command, words.folder / "launch.json", {"cluster": cluster.name, "nodes": job.nodes, "runs": len(todo)})
    print(f"submitted   job {job_id}", flush=True)
    if words.wait:
        _wait(words.folder)


def _asked(words: argparse.Namespace) -> dict[str, Any]:
    return {"recipe": words.recipe, "grid": words.grid, "changes": words.changes}


def _refuse_another_grid(words: argparse.Namespace) -> None:
    listed = read_sweep(words.folder)
    if different := [name for name, value in _asked(words).items() if listed.get(name) != value]:
        raise ConfigError(f"{words.folder}: a sweep with another {', '.join(different)} is running; wait for it: launch/sweep.py "
                          f"--table {words.folder} --wait")


def _wait(folder: Path) -> None:
    """Say how far a sweep is whenever that changes, until no run of it is queued; ConfigError if a run is then not done."""
    runs, said, seconds = runs_of_sweep(folder), "", FIRST_LOOK_SECONDS
    ended: dict[Path, Status] = {}  # they do not change any more
    while True:
        is_queued = live_job(RunFolder(folder)) is not None  # asked first: what ends meanwhile is seen in the files
        found = [ended.get(run) or read_status(run) for run in runs]
        ended = {status.run: status for status in found if status.state == "done" and not status.is_live}
        if (line := progress(found, is_queued)) != said:
            print(f"{datetime.now():%H:%M:%S}    {line}", flush=True)
            said = line
        if not is_queued and not any(status.is_live for status in found):
            break
        time.sleep(seconds)
        seconds = min(1.2 * seconds, LONGEST_LOOK_SECONDS)
    print(*table(found), sep="\n", flush=True)
    if undone := [str(status.run) for status in found if status.state != "done"]:
        raise ConfigError(f"{len(undone)} of {len(found)} runs did not end well: {some_of(undone)}; launch/status.py RUN says why, "
                          "and the same command runs them again")


def progress(found: list[Status], is_queued: bool) -> str:
    """How far the runs of a sweep are together. Time left: of those that run now, if those that wait are as fast."""
    running = [status for status in found if status.state == "running"]
    undone = [status for status in found if status.state != "done"]  # a run may be done and its job not yet out of the queue
    to_come = [status for status in undone if status.is_live or (is_queued and status.state in ("prepared", "not running"))]
    words = [f"{len(found) - len(undone)} of {len(found)} runs done, {len(running)} running, {len(to_come) - len(running)} waiting"]
    words.append(f"{sum(status.tokens for status in found):,} of {sum(status.total_tokens for status in found):,} tokens")
    if rate := sum(status.tokens_per_second or 0 for status in running):
        left = sum(status.total_tokens - status.tokens for status in to_come)
        words.append(f"{rate:,.0f} tokens/s, {span(left / rate)} left")
    return "; ".join(words)


def points(recipe: str, grid: list[str], changes: list[str], folder: Path) -> dict[str, RunConfig]:
    """The config of each point by its folder's name: what differs from the others, such as `peak_lr=1e-4,seed=2`."""
    axes = []
    for text in grid:
        word, equals, values = text.partition("=")
        if text.startswith("@"):
            axes.append([(value, "", Path(value).stem) for value in text[1:].split(",")])
        elif equals and values:
            axes.append([("", f"{word}={value}", f"{word.split('.')[-1]}={value}") for value in values.split(",")])
        else:
            raise ConfigError(f"--grid {text}: write section.word=value,value or @experiment.toml,experiment.toml")
    found = {}
    for point in itertools.product(*axes):
        name = re.sub(r"[^\w.=,+-]", "_", ",".join(label for _, _, label in point))
        sources = [source for source, _, _ in point if source]
        if len(sources) > 1:
            raise ConfigError("--grid @...: one axis of experiment files at most")
        own = [change for _, change, _ in point if change]
        found[name] = load_config(sources[0] if sources else recipe, [*changes, *own, f'run_folder="{folder / name}"'])
    if len(found) != len(list(itertools.product(*axes))) or len(found) > MOST_POINTS:
        raise ConfigError(f"--grid: {len(found)} different run(s); each needs a name of its own, and {MOST_POINTS} are the most")
    return found


def _is_to_do(config: RunConfig, job: Job) -> bool:
    """Prepare a point that is not done; whether it is one."""
    folder = RunFolder(config.run_folder)
    latest = folder.latest_checkpoint()
    if latest and int(latest.name[5:]) >= config.num_steps:
        return False
    changed_words(folder, config)
    prepare(config, job)
    return True


def array_command(job: Job, folder: Path, tasks: list[int], at_once: int | None) -> list[str]:
    """The sbatch command of the array; `sweep.sbatch` finds a task's run folder in sweep.json."""
    single = command_of(job, folder / "RUN")
    limit = f"%{at_once}" if at_once else ""
    output = [f"--output={folder}/logs/%x-%A_%a.out" if word.startswith("--output=") else word for word in single[:-2]]
    script = Path(__file__).resolve().parent / "sweep.sbatch"
    return [*output, f"--array={ranges(tasks)}{limit}", str(script), str(folder)]


def ranges(numbers: list[int]) -> str:
    """1,2,3,7 as 1-3,7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch/sweep.py", description="Plan a grid of runs, submit it, or show its table.")
    parser.add_argument("recipe", nargs="?", default="tiny", help="recipe name, or .toml experiment")
    parser.add_argument("changes", nargs="*", help="changes of all runs, such as budget.total_tokens=1_000_000_000")
    parser.add_argument("--table", type=Path, metavar="SWEEP", help="print how the runs of a sweep stand, and end")
    parser.add_argument("--folder", type=Path, help="the sweep's folder; its runs lie in it")
    parser.add_argument("--grid", action="append", default=[], help="section.word=value,value,...; several make a grid")
    parser.add_argument("--cluster", help="name in launch/clusters, or path of a .toml file")
    parser.add_argument("--nodes", type=int, help="of each run")
    parser.add_argument("--at-once", type=int, help="so many runs at the same time at most")
    parser.add_argument("--partition", help="default: the cluster's")
    parser.add_argument("--ranks-per-node", type=int, help="default: the cluster's")
    parser.add_argument("--time", help="walltime of one attempt, as hours:minutes:seconds (default: the cluster's)")
    parser.add_argument("--account", default="", help="Slurm account")
    parser.add_argument("--job-name", help="default: the folder's name")
    parser.add_argument("--yes", action="store_true", help="submit")
    parser.add_argument("--wait", action="store_true", help="stay until no run is queued, and say how far they are")
    words = parser.parse_intermixed_args()
    absent = [f"--{name}" for name in ("folder", "grid", "cluster", "nodes") if not getattr(words, name)]
    if words.at_once is not None and words.at_once < 1:
        parser.error(f"--at-once {words.at_once}: at least one run at a time")
    if absent and not words.table:
        parser.error(f"these are needed: {', '.join(absent)}")
    if words.wait and not (words.yes or words.table):
        parser.error("--wait needs --yes, or --table SWEEP of a sweep that is submitted")
    return words


if __name__ == "__main__":
    run_tool(main)
