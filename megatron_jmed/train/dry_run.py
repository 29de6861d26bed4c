"""The plan of a run for a number of ranks, printed before any of them starts; no GPU is needed.

Counts are computed from the config (`plan.py`) and again from the real model: one rank of every kind is built on the meta
device in a world that does not exist. The two must agree, else our own arithmetic is wrong.
"""

from megatron_jmed.config import RunConfig, problems, raise_problems
from megatron_jmed.train.estimate import stage_memory
from megatron_jmed.train.plan import model_lines, run_lines, source_lines, stage_lines, time_lines


def print_plan(config: RunConfig, world_size: int) -> None:
    """Print the plan; ConfigError with every problem at once if the config cannot run on `world_size` ranks."""
    raise_problems(f"{config.name} on {world_size} ranks", problems(config, world_size))
    for stage, built in enumerate(built_stage_parameters(config, world_size)):
        computed = stage_memory(config, world_size, stage).params_on_rank
        assert computed == built, f"stage {stage}: {computed} computed, {built} built"
    for line in (*model_lines(config), *stage_lines(config, world_size), *time_lines(config, [world_size]), *run_lines(config),
                 *source_lines(config)):
        print(line)


def built_stage_parameters(config: RunConfig, world_size: int) -> list[int]:
    """Parameters of the rank that `build_model` really builds for each pipeline stage, on the meta device."""
    from megatron_jmed.model.build import build_meta_model
    from megatron_jmed.parallel import start_fake_groups, stop_groups

    counts = []
    for stage in range(config.parallel.pp):
        groups = start_fake_groups(config.parallel, stage * world_size // config.parallel.pp, world_size)
        chunks = [build_meta_model(config, groups, chunk) for chunk in range(config.parallel.vpp)]
        counts.append(sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters()))
        stop_groups()
    return counts
