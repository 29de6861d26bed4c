"""What is refused as a folder of weights, and why."""

import pytest

from megatron_jmed.config import recipe_config, save_config
from megatron_jmed.convert.source import open_weights
from megatron_jmed.convert.weights import import_weights
from megatron_jmed.errors import CheckpointError


def test_a_file_or_nothing_is_no_folder(mixtral, tmp_path):
    with pytest.raises(CheckpointError, match="a file; give the folder that holds it"):
        open_weights(mixtral / "config.json")
    with pytest.raises(CheckpointError, match="no such folder"):
        open_weights(tmp_path / "nowhere")


def test_a_run_without_a_checkpoint_is_called_so(tmp_path):
    save_config(recipe_config("tiny"), tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="a run that has saved no checkpoint yet"):
        open_weights(tmp_path)


def test_a_vocabulary_that_the_folder_contradicts_is_refused(mixtral):
    assert open_weights(mixtral, vocab_size=300).model.vocab_size == 300
    with pytest.raises(CheckpointError, match="its vocabulary is 300, not the 5 given"):
        open_weights(mixtral, vocab_size=5)
    with pytest.raises(CheckpointError, match="--vocab-size 0: the number of the tokenizer's pieces"):
        open_weights(mixtral, vocab_size=0)


def test_damaged_metadata_is_named(mixtral, tmp_path):
    import_weights(open_weights(mixtral), tmp_path / "checkpoint")
    (tmp_path / "checkpoint/.metadata").write_text("x")
    with pytest.raises(CheckpointError, match=r"checkpoint/.metadata: damaged"):
        open_weights(tmp_path / "checkpoint")


def test_nobody_cannot_do_the_work(mixtral, tmp_path):
    with pytest.raises(CheckpointError, match="--workers 0: at least 1"):
        import_weights(open_weights(mixtral), tmp_path / "checkpoint", workers=0)
