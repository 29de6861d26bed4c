"""What must be true before a process group starts, all problems at once: the last check while no GPU is awake.

Every rank runs it on the same files, so all ranks fail together and alike.
"""

from pathlib import Path

from megatron_jmed.config import RANDOM_INIT, RunConfig, problems, raise_problems
from megatron_jmed.corpus.tokens import TokenSet
from megatron_jmed.data.sources import load_token_sets
from megatron_jmed.errors import CheckpointError, ConfigError, CorpusError
from megatron_jmed.model.precision import missing_for
from megatron_jmed.model.transformer import transformer_config
from megatron_jmed.run_folder import CheckpointState, RunFolder, changed_words, check_same_model, load_state


def check_before_start(config: RunConfig, world_size: int) -> tuple[list[TokenSet], Path | None, CheckpointState | None]:
    """(the blend's token sets, the checkpoint to begin from, its state); an error that lists everything that is wrong.

    The checkpoint is the run folder's latest whole one, else `init`, else None for random weights.
    """
    found = problems(config, world_size) + missing_for(config.precision)
    token_sets: list[TokenSet] = []
    checkpoint, state = None, None
    error_type: type = ConfigError
    try:
        token_sets = load_token_sets(config)
    except CorpusError as error:
        found.append(str(error))
        error_type = CorpusError
    try:
        checkpoint, state = _find_beginning(config)
    except (CheckpointError, ConfigError) as error:
        found.append(str(error))
        error_type = type(error)
    if not problems(config, world_size):
        try:
            transformer_config(config)
        except ConfigError as error:
            found.append(str(error))
        except (AssertionError, ValueError, TypeError) as error:
            found.append(f"Megatron-Core refuses this configuration: {error}")
    if len(found) == 1:
        raise error_type(f"{config.name}: {found[0]}")
    raise_problems(config.name, found)
    return token_sets, checkpoint, state


def _find_beginning(config: RunConfig) -> tuple[Path | None, CheckpointState | None]:
    resumed = RunFolder(config.run_folder).latest_checkpoint()
    if resumed is None and config.init == RANDOM_INIT:
        return None, None
    checkpoint = resumed or Path(config.init)
    state = load_state(checkpoint)
    check_same_model(checkpoint, state, config.model)
    if resumed:
        changed_words(RunFolder(config.run_folder), config)
    return checkpoint, state
