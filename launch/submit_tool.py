"""Plan and submit one tool as a job on one node: a conversion, an exam, a report, an index.

`python launch/submit_tool.py TOOL --cluster NAME_OR_TOML [--after JOB] [--yes] -- WORDS OF THE TOOL`
TOOL is a file of tools/ without `.py`: import_hf, export_hf, upcycle_dense, take_exam, write_report, build_index_cache ... What
stands after `--` goes to it. `--after` holds it until another job has ended well: an export behind a training run, an exam behind
the export. Prints the command; only --yes submits.
"""

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a login node need not have the package installed

from launch.cluster import did_you_mean, load_cluster
from launch.job import REPOSITORY, Job, container_lines, node_lines, place_and_time_problems, pyxis_options
from launch.run_files import submit_command
from megatron_jmed.config import raise_problems
from megatron_jmed.corpus.manifest import code_version
from megatron_jmed.errors import run_tool

TOOLS = sorted(path.stem for path in (REPOSITORY / "tools").glob("*.py"))
JOBS_FOLDER = Path("tool_jobs")


def main() -> None:
    words, options = _arguments()
    cluster = load_cluster(words.cluster)
    partition = words.partition or cluster.tools.partition or cluster.partition
    job = Job(name=words.job_name or words.tool, cluster=cluster, partition=partition, nodes=1, ranks_per_node=1,
              walltime=words.time or cluster.tools.walltime or cluster.walltime, account=words.account)
    found = place_and_time_problems(job)
    if words.tool not in TOOLS:
        found.append(f"{words.tool}: no such tool{did_you_mean(words.tool, TOOLS)}; tools: {', '.join(TOOLS)}")
    if cluster.scheduler != "slurm":
        found.append(f"{cluster.name} has scheduler={cluster.scheduler!r}; start the tool from a job script of your own there: "
                     f"python tools/{words.tool}.py {shlex.join(options)}")
    raise_problems(f"{words.tool} on {cluster.name}", found)
    folder = JOBS_FOLDER.absolute() / job.name
    hold = [f"--dependency=afterok:{words.after}", "--kill-on-invalid-dep=yes"] if words.after else []
    command = ["sbatch", f"--job-name={job.name}", f"--partition={job.partition}", f"--time={job.walltime}", *hold,
               f"--output={folder}/%x-%j.out", *cluster.tools.sbatch_options, *pyxis_options(cluster),
               *([f"--account={job.account}"] if job.account else []), str(REPOSITORY / "launch" / "tool.sbatch"), str(folder),
               str(REPOSITORY / "tools" / f"{words.tool}.py"), *options]
    print(f"tool        {words.tool} on {cluster.name}, partition {job.partition}, {job.walltime}; its output in {folder}")
    print(f"command     {shlex.join(command)}")
    if not words.yes:
        print("            not submitted; add --yes to submit")
        return
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# Written by launch/submit_tool.py; sourced by launch/tool.sbatch.", *node_lines(cluster, Path.cwd(), code_version()),
             *container_lines(cluster)]
    (folder / "tool_env.sh").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"submitted   job {submit_command(command, folder / 'launch.json', {'cluster': cluster.name, 'tool': words.tool})}")


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    ours, options = sys.argv[1:], []
    if "--" in ours:
        place = ours.index("--")
        ours, options = ours[:place], ours[place + 1 :]
    parser = argparse.ArgumentParser(prog="launch/submit_tool.py", description="Plan one tool as a job, and submit it with --yes.",
                                     epilog="After -- come the tool's own words.")
    parser.add_argument("tool", help=f"one of {', '.join(TOOLS)}")
    parser.add_argument("--cluster", required=True, help="name in launch/clusters, or path of a .toml file")
    parser.add_argument("--after", help="id of a job that must have ended well")
    parser.add_argument("--partition", help="default: the cluster's for tools")
    parser.add_argument("--time", help="walltime, as hours:minutes:seconds (default: the cluster's for tools)")
    parser.add_argument("--account", default="", help="Slurm account")
    parser.add_argument("--job-name", help="default: the tool's name; jobs of one name share a folder")
    parser.add_argument("--yes", action="store_true", help="submit")
    return parser.parse_args(ours), options


if __name__ == "__main__":
    run_tool(main)
