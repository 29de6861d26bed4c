"""A user's mistake: one clear line on stderr, exit code 2, and no process group was started."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from megatron_jmed.config import load_config, recipe_config, save_config
from megatron_jmed.corpus.token_set import load_token_set
from megatron_jmed.data.exam_sheet import FORMAT
from megatron_jmed.errors import run_tool
from megatron_jmed.run_folder import CheckpointState, RunFolder, begin_checkpoint, finish_checkpoint
from megatron_jmed.train.__main__ import main

ALONE = "parallel.ep=1"


@pytest.fixture
def folder(token_folder, tmp_path, monkeypatch) -> Path:
    """A folder where the tiny recipe could start."""
    shutil.copytree(token_folder / "runs/tiny/tokens", tmp_path / "work/runs/tiny/tokens")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def refusal(monkeypatch, capsys):
    """refusal(argument, ...): run the trainer, expect exit code 2 before any process group, return the message."""

    def refused(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        with pytest.raises(SystemExit) as end:
            run_tool(main)
        assert end.value.code == 2
        assert not torch.distributed.is_initialized()
        err = capsys.readouterr().err
        assert err.startswith("error: ") and "Traceback" not in err
        return err

    return refused


def test_unknown_recipe(refusal):
    message = refusal("tinny")
    assert "unknown recipe 'tinny', did you mean 'tiny'" in message and message.count("\n") == 1


@pytest.mark.parametrize("ranks", ["0", "-2"])
def test_a_dry_run_of_no_ranks_is_no_training(folder, refusal, ranks):
    assert f"--dry-run {ranks}: a number of ranks begins at 1" in refusal("tiny", ALONE, "--dry-run", ranks)
    assert not (folder / "runs/tiny/config.json").exists()


def test_misspelt_field(refusal):
    message = refusal("tiny", "optim.peek_lr=1e-3")
    assert "optim.peek_lr" in message and "did you mean 'peak_lr'" in message and message.count("\n") == 1


def test_ep_that_does_not_divide_the_experts(refusal):
    message = refusal("tiny", "parallel.ep=3")
    assert "parallel.ep=3 does not divide model.num_experts=8; choose from [1, 2, 4, 8]" in message
    assert message.count("\n") == 1


def test_layout_that_needs_more_ranks(folder, refusal):
    message = refusal("tiny")
    assert "parallel.ep x etp x pp = 2 does not divide the 1 ranks" in message and message.count("\n") == 1


def test_missing_token_set(folder, refusal):
    shutil.rmtree(folder / "runs/tiny/tokens/texts_en")
    message = refusal("tiny", ALONE)
    assert "runs/tiny/tokens/texts_en does not exist" in message and "tokenize_corpus.py" in message
    assert message.count("\n") == 1


def test_truncated_bin(folder, refusal):
    path = folder / "runs/tiny/tokens/texts_ja/tokens.bin"
    full = path.stat().st_size
    path.write_bytes(path.read_bytes()[: full // 2])
    message = refusal("tiny", ALONE)
    assert "tokens.bin" in message and str(full) in message and str(full // 2) in message
    assert message.count("\n") == 1


def test_tokens_of_another_tokenizer(folder, refusal):
    message = refusal("tiny", ALONE, "model.vocab_size=1999")
    assert "tokenised with 2000 pieces; model.vocab_size is 1999" in message


def test_checkpoint_of_another_model_size(folder, refusal):
    other = folder / "other"
    begin_checkpoint(other)
    model = recipe_config("tiny").model.model_copy(update={"hidden_size": 96})
    finish_checkpoint(other, CheckpointState(step=0, tokens=0, model=model, has_optimizer=False))
    message = refusal("tiny", ALONE, f"init={other}")
    assert "checkpoint of another model: model.hidden_size is 96 in the checkpoint and 64 in the config" in message
    assert message.count("\n") == 1


def test_checkpoint_that_is_none(folder, refusal):
    message = refusal("tiny", ALONE, "init=nowhere")
    assert "nowhere: not a checkpoint, there is no such folder" in message


@pytest.mark.parametrize("change", ["budget.global_batch_size=32", "seed=5", "data.valid_ratio=0.1"])
def test_a_begun_run_keeps_its_data(folder, refusal, change):
    run = RunFolder("runs/tiny")
    begin_checkpoint(run.checkpoint(3))
    config = load_config("tiny", [ALONE])
    finish_checkpoint(run.checkpoint(3), CheckpointState(step=3, tokens=3 * 2048, model=config.model, has_optimizer=True))
    save_config(config, run.config)
    message = refusal("tiny", ALONE, change)
    word, _, value = change.partition("=")
    assert "holds another run" in message and f"{word}: " in message and f"-> {value}" in message
    assert f'init="{run.checkpoint(3)}"' in message


def test_a_disk_without_room_for_one_checkpoint(folder, refusal, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    assert "the disk has 0.001 GB free, and one checkpoint needs 0.0176 GB" in refusal("tiny", ALONE)


def test_wandb_that_could_not_be_reached(folder, refusal, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(folder / "none"))
    message = refusal("tiny", ALONE, "log.wandb_project=jmed", "log.wandb_mode=online")
    assert "needs WANDB_API_KEY" in message and '"offline"' in message


def test_a_source_that_would_be_read_too_often(folder, refusal):
    message = refusal("tiny", ALONE, "data.max_epochs=2")
    assert "'texts_ja' would be read 4." in message and "more than data.max_epochs=2" in message


def test_tokens_of_another_tokenizer_than_the_models(folder, refusal):
    checkpoint = Path("imported")
    begin_checkpoint(checkpoint)
    finish_checkpoint(checkpoint, CheckpointState(step=0, tokens=0, model=load_config("tiny", [ALONE]).model, has_optimizer=False))
    (checkpoint / "hf_files").mkdir()
    (checkpoint / "hf_files/tokenizer.model").write_bytes(b"another")
    message = refusal("tiny", ALONE, "init=imported")
    assert "made with another tokenizer (tokenizer.model" in message and "imported/hf_files/tokenizer.model" in message


def test_hardware_that_is_not_there(folder, refusal):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    message = refusal("tiny", ALONE, "precision.compute=fp8", "precision.backend=te", "precision.fp8_wgrad=true")
    assert "needs a CUDA GPU" in message


def test_a_folder_of_something_else_keeps_its_config(folder, refusal):
    Path("hf").mkdir()
    Path("hf/config.json").write_text('{"model_type": "mixtral"}')
    message = refusal("tiny", ALONE, "run_folder=hf")
    assert "run_folder=hf: its config.json is not a run's, and would be written over" in message
    assert Path("hf/config.json").read_text() == '{"model_type": "mixtral"}'


def test_a_file_in_the_place_of_the_run_folder(folder, refusal):
    Path("file").touch()
    assert f"run_folder=file/below: {folder}/file is a file; name another folder" in refusal("tiny", ALONE, "run_folder=file/below")


def test_a_run_has_a_folder(refusal):
    assert "run_folder=''" in refusal("tiny", "run_folder=''")


def test_two_sheets_of_one_name(folder, refusal):
    sha256 = load_token_set("runs/tiny/tokens/texts_ja").tokenizer_sha256
    header = json.dumps({"format": FORMAT, "name": "exam", "tokenizer_sha256": sha256})
    for name in ("a.jsonl", "b.jsonl"):
        Path(name).write_text(header + '\n{"prefix": [1], "continuations": [[5], [6]]}\n')
    message = refusal("tiny", ALONE, 'exams.sheets=["a.jsonl", "b.jsonl"]', "exams.every_tokens=2048")
    assert "exam sheets a.jsonl and b.jsonl are both called 'exam'" in message and message.count("\n") == 1


def test_all_problems_are_named_at_once(folder, refusal):
    shutil.rmtree(folder / "runs/tiny/tokens/texts_en")
    message = refusal("tiny", "init=nowhere")
    for part in ("does not divide the 1 ranks", "texts_en does not exist", "nowhere: not a checkpoint"):
        assert part in message
