"""How many ranks are we, which one am I, and with whom do I share what: the only door to torch.distributed start-up
and to Megatron-Core's global `parallel_state`.

In: a ParallelConfig and the environment that torchrun or srun sets. Out: `Groups`, Megatron-Core's
ProcessGroupCollection, which everything above passes on explicitly. On a CPU the backend is gloo, on a GPU NCCL.
"""

import os
import signal
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from megatron_jmed.config import ParallelConfig
from megatron_jmed.errors import ConfigError

# What upstream tells its own developers, dozens of times a rank; a user of this program can do nothing about it.
for _message in (r"\s*(Transformer Engine and )?[Aa]pex (is|are) not installed", r".*Transformer Engine.*not installed",
                 r".*deprecated", r".*Please use DTensor instead"):
    warnings.filterwarnings("ignore", message=_message, module=r"(megatron\.core|torch)(\.|$)")

if not torch.cuda.is_available():
    from megatron_jmed.cpu import enter_cpu

    enter_cpu()

from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection

if not torch.cuda.is_available():
    from megatron_jmed.cpu import patch_megatron_on_cpu

    patch_megatron_on_cpu()

Groups = ProcessGroupCollection

_TIMEOUT = timedelta(minutes=30)


# With these a scheduler or a person asks a job to save and end; Slurm sends them to every process of a step.
JOB_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


@dataclass(frozen=True)
class World:
    """This process among the ranks of the job."""

    rank: int
    size: int
    local_rank: int


def read_world() -> World:
    """The world that torchrun (RANK ...), mpirun (OMPI_COMM_WORLD_*) or srun (SLURM_*) gave; alone without any of them.

    ConfigError if srun or mpirun started several tasks without MASTER_ADDR and MASTER_PORT: each would count as alone.
    """
    env = os.environ
    if "RANK" in env:
        return World(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)))
    for launcher, rank, size, local_rank in (
        ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # the step's variables: a batch shell has none
    ):
        if size not in env or int(env[size]) == 1:
            continue
        if "MASTER_ADDR" not in env or "MASTER_PORT" not in env:
            raise ConfigError(f"{launcher} started {env[size]} tasks, but MASTER_ADDR and MASTER_PORT are not set; export both "
                              "(the first host's name and a free port) in the job script")
        return World(int(env[rank]), int(env[size]), int(env[local_rank]))
    return World(0, 1, 0)


def start_groups(parallel: ParallelConfig, world: World, seed: int) -> Groups:
    """Start torch.distributed and Megatron's groups for `parallel`, and seed this rank. Collective over all ranks."""
    if torch.cuda.is_available():
        if world.local_rank >= torch.cuda.device_count():
            raise ConfigError(f"local rank {world.local_rank} has no GPU: this node shows {torch.cuda.device_count()}; "
                              "start as many ranks a node as it has GPUs")
        torch.cuda.set_device(world.local_rank)
    store = None
    if world.size == 1:
        store = torch.distributed.HashStore()  # a lone rank needs no address and no port
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(
        backend, rank=world.rank, world_size=world.size, store=store, timeout=_TIMEOUT
    )
    return _model_parallel_groups(parallel, seed)


def start_fake_groups(parallel: ParallelConfig, rank: int, world_size: int, seed: int = 0) -> Groups:
    """The groups of one rank in a world that does not exist (torch's fake process group): for dry runs."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    return _model_parallel_groups(parallel, seed)


def stop_groups() -> None:
    """Leave the world: destroy Megatron's groups and torch.distributed. Collective over all ranks."""
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def _model_parallel_groups(parallel: ParallelConfig, seed: int) -> Groups:
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tp,
        pipeline_model_parallel_size=parallel.pp,
        virtual_pipeline_model_parallel_size=parallel.vpp if parallel.vpp > 1 else None,
        context_parallel_size=parallel.cp,
        expert_model_parallel_size=parallel.ep,
        expert_tensor_parallel_size=parallel.etp,
        create_gloo_process_groups=False,
    )
    groups = ProcessGroupCollection.use_mpu_process_groups()
    # The stages of a pipeline hold different layers, so they must not draw the same random weights.
    tensor_parallel.model_parallel_cuda_manual_seed(seed + 100_000 * groups.pp.rank())
    return groups


def from_rank_zero(what: Any) -> Any:
    """Rank 0's object, on every rank. Collective over all ranks."""
    box = [what]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def part_of_sequence(whole: torch.Tensor, dim: int, rank: int, size: int) -> torch.Tensor:
    """The part of `whole` that context-parallel rank `rank` of `size` holds along the sequence dimension `dim`.

    Megatron-Core's order: of 2 * size equal chunks, number `rank` from the front and from the back, so that under a causal
    mask every rank has the same work.
    """
    if size == 1:
        return whole
    chunks = whole.chunk(2 * size, dim)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]], dim)


def device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def gpu_name() -> str:
    """What this rank's GPU calls itself; empty without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def is_first_stage(groups: Groups) -> bool:
    return groups.pp.rank() == 0


def is_last_stage(groups: Groups) -> bool:
    return groups.pp.rank() == groups.pp.size() - 1
