"""Which rank am I: as torchrun, mpirun or srun says, and never a silent lone trainer among many."""

import pytest
import torch

from megatron_jmed.config import ParallelConfig
from megatron_jmed.errors import ConfigError
from megatron_jmed.parallel import World, part_of_sequence, read_world, start_fake_groups, stop_groups

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
             "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NTASKS")
ADDRESS = {"MASTER_ADDR": "node001", "MASTER_PORT": "29500"}
SRUN = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}


@pytest.fixture
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def given(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return given


def test_alone_without_a_launcher_and_in_a_batch_shell(environment):
    assert read_world() == World(0, 1, 0)
    environment(SLURM_PROCID="0", SLURM_NTASKS="2", SLURM_LOCALID="0", **ADDRESS)  # no step: the sbatch script itself
    assert read_world() == World(0, 1, 0)


def test_torchrun_wins_over_the_srun_that_started_it(environment):
    environment(**SRUN, **ADDRESS, RANK="2", WORLD_SIZE="4", LOCAL_RANK="0")
    assert read_world() == World(2, 4, 0)


@pytest.mark.parametrize(("launcher", "world"), [(SRUN, World(5, 16, 1)), (MPIRUN, World(3, 8, 3))])
def test_one_process_a_rank(environment, launcher, world):
    environment(**launcher, **ADDRESS)
    assert read_world() == world


@pytest.mark.parametrize("launcher", [SRUN, MPIRUN])
def test_several_tasks_without_an_address_are_refused(environment, launcher):
    environment(**launcher)
    with pytest.raises(ConfigError, match="MASTER_ADDR and MASTER_PORT are not set"):
        read_world()


@pytest.mark.parametrize("rank", range(4))
def test_part_of_a_sequence_is_the_one_that_megatron_core_gives_its_rotary_embedding(rank):
    from megatron.core.models.common.embeddings.rope_utils import get_pos_emb_on_this_cp_rank

    whole = torch.arange(2 * 24 * 3).view(2, 24, 3)
    groups = start_fake_groups(ParallelConfig(cp=4), rank, world_size=4)
    theirs = get_pos_emb_on_this_cp_rank(whole, 1, groups.cp)
    stop_groups()
    assert torch.equal(part_of_sequence(whole, 1, rank, 4), theirs)
    first, last = range(3 * rank, 3 * rank + 3), range(21 - 3 * rank, 24 - 3 * rank)
    assert theirs[0, :, 0].tolist() == [3 * place for place in (*first, *last)]


def test_whole_sequence_without_context_parallelism():
    whole = torch.arange(7)
    assert part_of_sequence(whole, 0, 0, 1) is whole
