"""A checkpoint counts when its state.json is there, and not before; one of another model is refused, word by word."""

import json
import shutil

import pytest

from megatron_jmed.config import load_config, recipe_config, save_config
from megatron_jmed.errors import CheckpointError, ConfigError
from megatron_jmed.run_folder import (
    STATE_NAME,
    CheckpointState,
    RunFolder,
    begin_checkpoint,
    changed_words,
    check_same_model,
    finish_checkpoint,
    load_state,
    remove_checkpoint,
    write_json,
)

MODEL = recipe_config("tiny").model


def state(step: int = 0, **changes: object) -> CheckpointState:
    return CheckpointState(step=step, tokens=step * 2048, model=MODEL.model_copy(update=changes), has_optimizer=True)


def written(run: RunFolder, step: int, is_whole: bool = True):
    folder = run.checkpoint(step)
    begin_checkpoint(folder)
    (folder / "tensors").write_bytes(b"\0" * 100)
    if is_whole:
        finish_checkpoint(folder, state(step))
    return folder


def test_half_written_checkpoint_is_never_the_latest(tmp_path):
    run = RunFolder(tmp_path)
    assert run.latest_checkpoint() is None
    whole = [written(run, step) for step in (20, 100)]
    written(run, 110, is_whole=False)
    assert run.whole_checkpoints() == whole
    assert run.latest_checkpoint() == whole[-1]


def test_latest_checkpoint_is_that_of_the_most_steps_not_of_the_last_name(tmp_path):
    run = RunFolder(tmp_path)
    steps = [9_999_999, 90, 1_000]
    for step in steps:
        written(run, step)
    assert [load_state(path).step for path in run.whole_checkpoints()] == sorted(steps)


def test_beginning_a_checkpoint_clears_what_a_killed_writer_left(tmp_path):
    run = RunFolder(tmp_path)
    folder = written(run, 5, is_whole=False)
    begin_checkpoint(folder)
    assert list(folder.iterdir()) == []


def test_removal_interrupted_at_any_point_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    folder = written(run, 5)
    monkeypatch.setattr(shutil, "rmtree", lambda _folder: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        remove_checkpoint(folder)
    assert (folder / "tensors").exists()
    assert run.latest_checkpoint() is None
    monkeypatch.undo()
    remove_checkpoint(folder)
    assert not folder.exists()


def test_finished_state_is_read_back_equal(tmp_path):
    folder = written(RunFolder(tmp_path), 7)
    assert load_state(folder) == state(7)


def test_writing_json_leaves_no_partial_file_and_keeps_japanese_readable(tmp_path):
    write_json(tmp_path / "a.json", {"名": 1})
    assert "名" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_unfinished_checkpoint_is_refused_as_such(tmp_path):
    folder = written(RunFolder(tmp_path), 5, is_whole=False)
    with pytest.raises(CheckpointError, match=f"{folder}: .*never finished"):
        load_state(folder)


def test_a_run_in_the_place_of_its_checkpoint_is_called_so(tmp_path):
    folder = written(RunFolder(tmp_path), 5)
    with pytest.raises(CheckpointError, match=f"it is a run, whose latest is {folder}"):
        load_state(tmp_path)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="it is a run or a Hugging Face folder"):
        load_state(tmp_path / "hf")


def test_missing_folder_is_refused_as_such(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        load_state(tmp_path / "none")


@pytest.mark.parametrize("spoil", [
    lambda words: "{",
    lambda words: json.dumps(words | {"format_version": 2}),
    lambda words: json.dumps(words | {"surprise": 1}),
    lambda words: json.dumps({key: value for key, value in words.items() if key != "model"}),
])
def test_damaged_or_newer_state_is_refused_with_its_file(spoil, tmp_path):
    folder = written(RunFolder(tmp_path), 5)
    path = folder / STATE_NAME
    path.write_text(spoil(json.loads(path.read_text())))
    with pytest.raises(CheckpointError, match=str(path)):
        load_state(folder)


# ---- is it the same model?


def test_same_model_passes(tmp_path):
    check_same_model(tmp_path, state(), MODEL)


def test_every_differing_word_is_listed_with_both_values(tmp_path):
    changes = {"num_layers": 3, "hidden_size": 96, "num_attention_heads": 8, "num_query_groups": 1, "kv_channels": 8,
               "ffn_hidden_size": 64, "num_experts": 4, "router_topk": 1, "vocab_size": 5000, "rotary_base": 5e5,
               "layernorm_epsilon": 1e-6}
    with pytest.raises(CheckpointError) as error:
        check_same_model(tmp_path, state(**changes), MODEL)
    for word, value in changes.items():
        assert f"model.{word} is {value} in the checkpoint and {getattr(MODEL, word)} in the config" in str(error.value)


def test_words_that_change_no_tensor_may_differ(tmp_path):
    check_same_model(tmp_path, state(aux_loss_coeff=0.5, init_method_std=0.1, max_position_embeddings=9999), MODEL)


@pytest.mark.parametrize(("pieces", "is_same"), [(99_574, True), (99_584, True), (99_457, True), (99_456, False),
                                                 (99_585, False)])
def test_vocabularies_that_pad_to_the_same_rows_are_the_same(pieces, is_same, tmp_path):
    model = recipe_config("llmjp_8x13b").model
    there = CheckpointState(step=0, tokens=0, model=model.model_copy(update={"vocab_size": pieces}), has_optimizer=False)
    if is_same:
        check_same_model(tmp_path, there, model)
    else:
        with pytest.raises(CheckpointError, match=f"model.vocab_size is {pieces} in the checkpoint and 99574"):
            check_same_model(tmp_path, there, model)


# ---- is it the same run?


@pytest.mark.parametrize(("step", "before", "now", "is_free"), [
    (None, "[]", "[1, 2]", True),  # nothing is done yet
    (50, "[]", "[51]", True),
    (50, "[]", "[50]", False),
    (50, "[10, [60, 70]]", "[10]", True),
    (50, "[10]", "[]", False),
    (50, "[[40, 60]]", "[[40, 80]]", True),
    (50, "[[40, 60]]", "[[41, 60]]", False),
    (50, "[[40, 50], 45]", "[[40, 44], [45, 50]]", True),  # the same, said otherwise
])
def test_steps_may_be_skipped_or_taken_back_only_while_they_lie_ahead(step, before, now, is_free, tmp_path):
    run = RunFolder(tmp_path)
    save_config(load_config("tiny", [f"data.skip_steps={before}"]), run.config)
    if step:
        written(run, step)
    config = load_config("tiny", [f"data.skip_steps={now}"])
    if is_free:
        assert [change.partition(":")[0] for change in changed_words(run, config)] == ["data.skip_steps"]
        return
    with pytest.raises(ConfigError, match="of the 50 steps that are done: .* steps after 50 are free to be skipped or not"):
        changed_words(run, config)
