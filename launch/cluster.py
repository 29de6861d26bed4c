"""What does a cluster offer, and what must a job set there? The schema of `launch/clusters/NAME.toml`.

In: a name or the path of a TOML file. Out: a frozen `Cluster`. Another cluster is another TOML file, nothing else.
Invariant: every partition, path, option and environment variable of a machine stands in its TOML, with its reason.
"""

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from megatron_jmed.config import raise_problems
from megatron_jmed.errors import ConfigError

CLUSTERS = Path(__file__).parent / "clusters"
_SECRET = re.compile(r"\w*(API_KEY|TOKEN|SECRET|PASSWORD)(?=\W*=|$)")
_WALLTIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")


def walltime_seconds(text: str) -> int:
    """Seconds of "[days-]hours:minutes:seconds"; ValueError otherwise."""
    match = _WALLTIME.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a time; write it as hours:minutes:seconds or days-hours:minutes:seconds, "
                         "such as 24:00:00 or 7-00:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _checked_walltime(text: str) -> str:
    walltime_seconds(text)
    return text


Walltime = Annotated[str, AfterValidator(_checked_walltime)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Partition(_Table):
    """What one partition (queue) allows."""

    max_nodes: int = Field(gt=0)
    max_walltime: Walltime | None = Field(None, description="none: no limit")


class CorpusJobs(_Table):
    """Where corpus stages (`corpus`) or conversions and exams (`tools`) run: one node a task."""

    partition: str | None = Field(None, description="none: the cluster's")
    walltime: Walltime | None = Field(None, description="of one task; none: the cluster's")
    sbatch_options: tuple[str, ...] = Field((), description="in place of the cluster's, which ask for GPUs; a stage uses all "
                                            "the cores it gets")


class Gate(_Table):
    """What every node must show before the ranks start; a number that is not given is compared with the other nodes."""

    enabled: bool = True
    network: bool = Field(True, description="also time an all-reduce and pairs of nodes; needs torch on the nodes")
    seconds: int = Field(60, ge=5, description="a node that has not answered by then is bad")
    tolerance: float = Field(0.8, gt=0, lt=1, description="least part of the expectation, or of the nodes' median")
    gemm_tflops: float | None = Field(None, gt=0, description="of one GPU in bf16; without GPUs of the node in fp32")
    memory_gb_s: float | None = Field(None, gt=0, description="of one GPU's memory, read and written; without GPUs of the node's")
    network_gb_s: float | None = Field(None, gt=0, description="between two nodes, one direction")
    sm_clock_mhz: int | None = Field(None, gt=0, description="least clock of a GPU under load")
    local_folder: str = Field("/tmp", description="a disk of the node itself")
    local_mb_s: float | None = Field(None, gt=0, description="writing there, with fsync")
    shared_mb_s: float | None = Field(None, gt=0, description="one node writing to the run folder, with fsync")
    clock_skew_seconds: float = Field(5.0, gt=0)


class Container(_Table):
    """What the ranks run in."""

    kind: Literal["none", "apptainer", "enroot", "pyxis"] = "none"
    image: str = Field("", description="a .sif, a .sqsh, or an enroot container's name, on shared storage")
    mounts: tuple[str, ...] = Field((), description="HOST_PATH:CONTAINER_PATH; the run folder, data and code need the same path")
    options: tuple[str, ...] = Field((), description="further options of the container's program")

    @model_validator(mode="after")
    def _has_an_image(self) -> "Container":
        if (self.kind != "none") != bool(self.image):
            raise ValueError(f"kind={self.kind!r} and image={self.image!r}: a container needs an image, and an image a kind of "
                             "container (apptainer, enroot or pyxis)")
        return self


class Cluster(_Table):
    """One cluster as a job sees it."""

    name: str
    scheduler: Literal["slurm", "pbs", "age"] = "slurm"
    partitions: dict[str, Partition] = Field(min_length=1, description="queues, where the scheduler calls them so")
    partition: str = Field(description="the partition of a job that names none")
    walltime: Walltime = Field(description="of a job that names none")
    save_margin_seconds: int = Field(ge=1, description="how long before the limit a job is asked to save; covers one "
                                     "step, one checkpoint, and the 30 s within which Slurm looks at its clock")
    max_idle_segments: int = Field(2, ge=1, description="a job stays away after so many attempts in a row without a new checkpoint")
    gpus_per_node: int = Field(ge=0, description="0: ranks compute on CPUs, over gloo")
    gpu_memory_gib: float | None = Field(None, gt=0, description="of one GPU; jobs that cannot fit are refused")
    ranks_per_node: int = Field(gt=0, description="of a job that says nothing else")
    max_ranks_per_node: int = Field(gt=0)
    rank_launcher: Literal["torchrun", "scheduler"] = Field("torchrun", description="torchrun: one on each node starts its "
                                                            "ranks; scheduler: srun or mpirun starts every rank")
    storage_tb: float | None = Field(None, gt=0, description="the quota that a run's checkpoints must fit into")
    python: str = Field("", description="interpreter on the nodes; empty: the one that runs submit.py")
    setup: tuple[str, ...] = Field((), description="shell lines that prepare a job: module load, venv; the first that "
                                   "fails ends it")
    environment: dict[str, str] = Field({}, description="variables of every rank, set as they stand ($ is not expanded)")
    sbatch_options: tuple[str, ...] = Field((), description="such as --gpus-per-node=8, --account=NAME")
    srun_options: tuple[str, ...] = Field((), description="such as --cpu-bind=none")
    directives: tuple[str, ...] = Field((), description="of a PBS or AGE job, without #PBS or #$; {nodes} {partition} {walltime} "
                                        "are put in")
    qsub_options: tuple[str, ...] = Field((), description="what must stand on qsub's command line, such as -g GROUP")
    mpirun_options: tuple[str, ...] = Field((), description="of the mpirun that starts the processes where there is no srun")
    torchrun_options: tuple[str, ...] = ()
    container: Container = Container()
    gate: Gate = Gate()
    corpus: CorpusJobs = CorpusJobs()
    tools: CorpusJobs = Field(CorpusJobs(), description="where conversions and exams run: one node; same words as corpus")
    master_port_first: int = Field(10_000, ge=1024, description="a job meets at one of `master_port_count` ports from here, its "
                                   "gate at the next: jobs with following ids, which may share a node, differ")
    master_port_count: int = Field(20_000, ge=2)

    @model_validator(mode="after")
    def _fits_together(self) -> "Cluster":
        if self.partition not in self.partitions:
            raise ValueError(f"partition={self.partition!r} is none of partitions: {', '.join(self.partitions)}")
        for name in ("corpus", "tools"):
            partition = getattr(self, name).partition
            if partition not in (None, *self.partitions):
                raise ValueError(f"{name}.partition={partition!r} is none of partitions: {', '.join(self.partitions)}")
        if self.ranks_per_node > self.max_ranks_per_node:
            raise ValueError(f"ranks_per_node={self.ranks_per_node} is more than max_ranks_per_node="
                             f"{self.max_ranks_per_node}")
        if 0 < self.gpus_per_node < self.max_ranks_per_node:
            raise ValueError(f"max_ranks_per_node={self.max_ranks_per_node} is more than gpus_per_node="
                             f"{self.gpus_per_node}; every rank needs its own GPU")
        if self.master_port_first + self.master_port_count > 65_536:
            raise ValueError(f"master_port_first + master_port_count = {self.master_port_first + self.master_port_count} "
                             "is more than 65536, the number of ports")
        if self.container.kind == "pyxis" and self.scheduler != "slurm":
            raise ValueError(f"container.kind='pyxis' is a plugin of Slurm, and scheduler={self.scheduler!r}; take apptainer or "
                             "enroot")
        return self

    @model_validator(mode="after")
    def _keeps_no_secret(self) -> "Cluster":
        """What stands here is copied into run folders, which are shared and archived."""
        for text in (*self.environment, *self.setup):
            if found := _SECRET.search(text):
                raise ValueError(f"{found[0]} does not belong here: this file is copied into every run folder; export it in your "
                                 "shell before you submit, or use the program's own login (wandb login, huggingface-cli login)")
        return self


def load_cluster(what: str) -> Cluster:
    """The cluster of a TOML path, or of a name in `launch/clusters`; ConfigError names file and field."""
    path = Path(what) if what.endswith(".toml") else CLUSTERS / f"{what}.toml"
    known = sorted(file.stem for file in CLUSTERS.glob("*.toml"))
    if path.parent == CLUSTERS and path.stem not in known:
        raise ConfigError(f"unknown cluster {what!r}{did_you_mean(what, known)}; clusters: {', '.join(known)}; or give the "
                          "path of a .toml file")
    try:
        return Cluster.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except ValidationError as error:
        raise_problems(str(path), [_explain(problem) for problem in error.errors()])
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def did_you_mean(word: str, known) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def _explain(problem: Any) -> str:
    location = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        tables = {"partitions": Partition, "corpus": CorpusJobs, "tools": CorpusJobs, "gate": Gate, "container": Container}
        words = tables.get(problem["loc"][0], Cluster).model_fields
        return f"{location}: no such word{did_you_mean(str(problem['loc'][-1]), words)}"
    if problem["type"] == "missing":
        return f"{location}: must be given"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{location}={problem['input']!r}: {message}" if location else message
