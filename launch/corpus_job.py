"""How does a corpus stage run on many nodes? Its two jobs: an array of shards, and their merge.

In: a stage's name, its source and target, the tool's options, a cluster. Out: what cannot work, the two sbatch commands,
and TARGET.jobs with what they read. Invariant: the two jobs run the same tool with the same options; the shards differ
in --shard alone, the merge has --merge, and Slurm starts it only if every shard ended well.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from launch.job import REPOSITORY, Job, node_lines, place_and_time_problems
from megatron_jmed.corpus.manifest import MANIFEST_NAME
from megatron_jmed.corpus.reader import find_source
from megatron_jmed.errors import CorpusError

JOB_SCRIPT = REPOSITORY / "launch" / "corpus.sbatch"
# Does a stage's merge read the source again?
STAGES = {"clean": False, "mask": False, "dedup": True, "decontaminate": False, "translate": False, "tokenize": False}
ARRAY_JOB_ID = "ARRAY_JOB_ID"
OURS = ("--shard", "--merge")


@dataclass(frozen=True)
class CorpusJob:
    """A stage over shards; `place` says on which partition and for how long each task may run."""

    stage: str
    sources: list[Path]
    target: Path
    options: list[str]
    num_shards: int
    place: Job

    @property
    def tool(self) -> Path:
        return REPOSITORY / "tools" / f"{self.stage}_corpus.py"

    @property
    def folder(self) -> Path:
        """Beside the target, because a stage refuses a target with files that are not its own."""
        return self.target.with_name(f"{self.target.name}.jobs")

    def array_command(self) -> list[str]:
        """The command that submits the shards."""
        words = [*self.sources, self.target, *self.options]
        return [*self._sbatch(), f"--array=1-{self.num_shards}", f"--output={self.folder}/logs/%x-%A_%a.out",
                *self._script(str(self.num_shards)), *map(str, words)]

    def merge_command(self, array_job_id: str = ARRAY_JOB_ID) -> list[str]:
        """The command that submits the merge; cancelled by Slurm if a shard failed."""
        words = [*(self.sources if STAGES[self.stage] else []), self.target, *self.options]
        return [*self._sbatch("-merge"), f"--dependency=afterok:{array_job_id}", "--kill-on-invalid-dep=yes",
                f"--output={self.folder}/logs/%x-%j.out", *self._script("merge"), *map(str, words)]

    def _sbatch(self, suffix: str = "") -> list[str]:
        place = self.place
        return ["sbatch", f"--job-name={place.name}{suffix}", f"--partition={place.partition}", f"--time={place.walltime}",
                *place.cluster.corpus.sbatch_options]

    def _script(self, what: str) -> list[str]:
        return [str(JOB_SCRIPT), str(self.folder), what, str(self.target), str(self.tool)]

    def environment(self, work_folder: Path, code_version: str) -> str:
        """The text of corpus_env.sh, which the job script sources."""
        name = self.place.cluster.name
        first = f"# Written by launch/submit_corpus.py for the cluster {name}; sourced by launch/corpus.sbatch."
        return "\n".join([first, *node_lines(self.place.cluster, work_folder, code_version)]) + "\n"


def corpus_job_problems(job: CorpusJob) -> list[str]:
    """Everything that cannot work, as sentences."""
    found = place_and_time_problems(job.place)
    if job.num_shards < 1:
        found.append(f"--shards={job.num_shards}: at least 1 is needed")
    if ours := [word for word in job.options if word.split("=")[0] in OURS]:
        found.append(f"{shlex.join(ours)}: the array job itself gives each task its shard; leave it out")
    if (job.target / MANIFEST_NAME).exists() and "--overwrite" not in job.options:
        found.append(f"{job.target} is finished already; delete it, choose another target, or give -- --overwrite")
    try:
        num_files, _ = source_size(job)
    except CorpusError as error:
        return [*found, str(error)]
    if job.num_shards > num_files:
        found.append(f"--shards={job.num_shards}: the source has {num_files} file(s), and a file is not divided between shards "
                     f"(but between the cores of one); choose 1 to {num_files}")
    return found


def source_size(job: CorpusJob) -> tuple[int, int]:
    """Files and bytes of all sources."""
    sources = [find_source(path) for path in job.sources]
    return sum(len(source.files) for source in sources), sum(source.num_bytes() for source in sources)
