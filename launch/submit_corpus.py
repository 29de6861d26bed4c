"""Plan and submit a corpus stage over many nodes of a Slurm cluster.

`python launch/submit_corpus.py STAGE SOURCE TARGET --shards N --cluster NAME_OR_TOML [--yes] [-- OPTIONS OF THE TOOL]`
STAGE is clean, mask, dedup, decontaminate, translate or tokenize: tools/STAGE_corpus.py runs as an array job with --shard i/N, then
once with --merge. Checks what it can, prints the plan and both sbatch commands; only --yes submits. The same command
again goes on after a failure: finished shards are left as they are.
"""

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a login node need not have the package installed

from launch.cluster import load_cluster
from launch.corpus_job import STAGES, CorpusJob, corpus_job_problems, source_size
from launch.job import Job
from launch.run_files import submit_command
from megatron_jmed.config import raise_problems
from megatron_jmed.corpus.manifest import code_version
from megatron_jmed.errors import run_tool


def main() -> None:
    words, options = _arguments()
    cluster = load_cluster(words.cluster)
    place = Job(
        name=words.job_name or f"{words.stage}-{words.target.name}",
        cluster=cluster,
        partition=words.partition or cluster.corpus.partition or cluster.partition,
        nodes=1,
        ranks_per_node=1,
        walltime=words.time or cluster.corpus.walltime or cluster.walltime,
    )
    job = CorpusJob(words.stage, words.source, words.target.absolute(), options, words.shards, place)
    raise_problems(f"{words.stage} on {cluster.name}", corpus_job_problems(job))
    num_files, num_bytes = source_size(job)
    print(f"stage       {job.stage}: {num_files:,} file(s), {num_bytes / 1e9:,.3f} GB, into {job.target}")
    each = f"partition {place.partition}, {place.walltime} each"
    print(f"jobs        {job.num_shards} shard(s) and their merge on {cluster.name}, {each}")
    print(f"logs        {job.folder}/logs")
    print(f"shards      {shlex.join(job.array_command())}")
    print(f"merge       {shlex.join(job.merge_command())}")
    if not words.yes:
        print("            not submitted; add --yes to submit")
        return
    (job.folder / "logs").mkdir(parents=True, exist_ok=True)  # Slurm does not make the folder of its output
    (job.folder / "corpus_env.sh").write_text(job.environment(Path.cwd(), code_version()), encoding="utf-8")
    notes, about = job.folder / "launch.json", {"cluster": cluster.name, "stage": job.stage, "shards": job.num_shards}
    array_job_id = submit_command(job.array_command(), notes, about)
    print(f"submitted   job {array_job_id}", flush=True)
    print(f"submitted   job {submit_command(job.merge_command(array_job_id), notes, about)}")


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    ours, options = sys.argv[1:], []
    if "--" in ours:
        place = ours.index("--")
        ours, options = ours[:place], ours[place + 1 :]
    parser = argparse.ArgumentParser(
        prog="launch/submit_corpus.py", description="Plan a corpus stage over many nodes, and submit it with --yes.",
        epilog="After -- come options of the stage's tool, such as --tokenizer FILE.",
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("source", type=Path, nargs="+", help="file, folder or glob; several for dedup")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--shards", type=int, required=True, help="array tasks; at most the number of files")
    parser.add_argument("--cluster", required=True, help="name in launch/clusters, or path of a .toml file")
    parser.add_argument("--partition", help="default: the cluster's for corpora")
    parser.add_argument("--time", help="walltime of one task, as hours:minutes:seconds (default: the cluster's for corpora)")
    parser.add_argument("--job-name", help="default: STAGE-TARGET")
    parser.add_argument("--yes", action="store_true", help="submit")
    words = parser.parse_intermixed_args(ours)
    if len(words.source) > 1 and words.stage != "dedup":
        parser.error(f"{words.stage} takes one source, {len(words.source)} were given; options of the tool come after --")
    return words, options


if __name__ == "__main__":
    run_tool(main)
