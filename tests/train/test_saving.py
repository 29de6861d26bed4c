"""Checkpoints that are written while the training goes on: kept, checked, found again, and never trusted when damaged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import TINY, losses, tiny_run

from megatron_jmed.errors import CheckpointError
from megatron_jmed.run_folder import FILES_NAME, RunFolder, damage, load_state
from megatron_jmed.train import writer


def run(folder: Path, steps: int, *changes: str) -> RunFolder:
    return tiny_run(folder, steps, "budget.save_every_tokens=4096", *changes)


@pytest.fixture(scope="module")
def here(token_folder):
    before = Path.cwd()
    os.chdir(token_folder)
    yield token_folder
    os.chdir(before)


@pytest.fixture(scope="module")
def reference(here, tmp_path_factory) -> RunFolder:
    """Six steps without a break."""
    return run(tmp_path_factory.mktemp("reference") / "run", 6)


@pytest.fixture(scope="module")
def four_steps(here, tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("four") / "run", 4).path


@pytest.fixture
def begun(four_steps, tmp_path) -> RunFolder:
    """A copy of a run of four steps, saved at 2 and 4, to damage and to go on with."""
    return RunFolder(shutil.copytree(four_steps, tmp_path / "run"))


def test_a_run_whose_horizon_is_extended_equals_one_that_was_planned_so(begun, reference, capsys):
    longer = run(begun.path, 6)
    assert losses(longer) == losses(reference)
    assert same_bytes(longer.checkpoint(6), reference.checkpoint(6))
    said = capsys.readouterr().out
    assert "resume contract: step 4, 8,192 tokens" in said and "budget.total_tokens: 8192 -> 12288" in said
    assert "sequence 64 of the order" in said


def same_bytes(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same files (but for `.metadata`, which names the folder)."""
    sums = [json.loads((folder / FILES_NAME).read_text()) for folder in (a, b)]
    return all(sums[0][name] == sums[1][name] for name in sums[0] if name.endswith(".distcp")) and sums[0].keys() == sums[1].keys()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda folder: flip(folder / "__0_1.distcp"), "__0_1.distcp has another SHA-256"),
    (lambda folder: os.truncate(folder / "__0_0.distcp", 100), "__0_0.distcp has 100 bytes"),
    (lambda folder: (folder / ".metadata").unlink(), ".metadata is missing"),
    (lambda folder: os.truncate(folder / FILES_NAME, 30), "files.json is damaged"),
], ids=["bit flip", "cut", "deleted", "list cut"])
def test_damaged_newest_checkpoint_is_set_aside_and_the_one_before_it_taken(begun, reference, spoil, said, capsys):
    spoil(begun.checkpoint(4))
    longer = run(begun.path, 6)
    shown = capsys.readouterr()
    assert "IS DAMAGED" in shown.err and said in shown.err and "resume contract: step 2," in shown.out
    assert losses(longer) == losses(reference)
    assert (longer.checkpoints / "damaged_step_0000004").exists()
    assert not damage(longer.checkpoint(4)), "step 4 was trained and saved again"


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_not_begun_anew(begun):
    for checkpoint in begun.whole_checkpoints():
        flip(checkpoint / "__0_0.distcp")
    with pytest.raises(CheckpointError, match="every checkpoint of this run is damaged"):
        run(begun.path, 6)
    torch.distributed.destroy_process_group()
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()


def test_waiting_for_saves_changes_no_byte(begun, reference, tmp_path):
    waited = run(tmp_path / "waited", 6, "budget.async_save=false")
    assert losses(waited) == losses(reference) and same_bytes(waited.checkpoint(6), reference.checkpoint(6))


def test_the_last_ones_the_milestones_and_the_weights_stay(tmp_path, here):
    kept = run(tmp_path / "kept", 6, "budget.save_every_tokens=2048", "budget.keep_checkpoints=1", "budget.keep_every_tokens=6144",
               "budget.weights_every_tokens=4096")
    assert [path.name for path in kept.whole_checkpoints()] == ["step_0000003", "step_0000006"]
    weights = sorted(kept.weights.iterdir())
    assert [path.name for path in weights] == ["step_0000002", "step_0000004", "step_0000006"]
    assert not load_state(weights[0]).has_optimizer and not damage(weights[0])
    saves = [line for line in map(json.loads, kept.metrics.read_text().splitlines()) if "save" in line]
    assert len(saves) == 9 and all(0 < line["save"]["stall_seconds"] <= line["save"]["seconds"] for line in saves)


def test_weights_can_begin_a_run_and_moments_come_only_where_they_are_asked_for(begun, tmp_path, capsys):
    checkpoint = begun.checkpoint(4)
    found = {}
    for name, changes in {"weights": (), "moments": ("init_moments=true",)}.items():
        found[name] = losses(run(tmp_path / name, 2, f'init="{checkpoint}"', *changes))
        said = capsys.readouterr().out
        assert ("reset      Adam's moments" in said) == (name == "weights")
    assert found["weights"][0] == found["moments"][0] and found["weights"][1] != found["moments"][1]


def test_a_full_disk_ends_the_run_and_leaves_what_was_whole(begun, reference):
    command = [sys.executable, "-m", "megatron_jmed.train", *TINY, f"run_folder={begun.path}", "budget.total_tokens=12288",
               "budget.save_every_tokens=4096"]
    limited = ["bash", "-c", 'ulimit -f 500; exec "$@"', "bash", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(limited, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode not in (0, 75) and "cannot be written" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert begun.latest_checkpoint() == begun.checkpoint(4) and not damage(begun.checkpoint(4))
    assert losses(run(begun.path, 6)) == losses(reference)
    assert not list(begun.checkpoints.glob("partial_*"))


def test_what_does_not_read_back_as_it_was_written_is_an_error(tmp_path):
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import MetadataIndex
    from torch.distributed.checkpoint.storage import WriteResult

    path = tmp_path / "__0_0.distcp"
    with open(path, "wb") as stream:
        torch.save(torch.arange(1000), stream)
    size = path.stat().st_size
    result = WriteResult(MetadataIndex("weight"), size, _StorageInfo(path.name, 0, size))
    assert writer._checked_sum(path, [result])[0] == size
    flip(path)
    with pytest.raises(OSError, match="weight"):
        writer._checked_sum(path, [result])
