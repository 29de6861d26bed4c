"""An index cache is whole or not there: killed builds, cut copies, full disks, two builders; and a start that builds nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import megatron_jmed.parallel  # noqa: F401  (the CPU patches come before Megatron-Core)
from megatron_jmed.data.index_cache import LIST_NAME, is_whole, whole_cache
from megatron_jmed.data.pretrain import build_data
from megatron_jmed.data.sources import load_token_sets
from megatron_jmed.errors import CorpusError

REPO = Path(__file__).parents[2]
KILLER = Path(__file__).with_name("kill_builds.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
RUN = ["tiny", "model.num_layers=2", "budget.seq_length=64", "budget.total_tokens=8192", "optim.warmup_tokens=0",
       "budget.save_every_tokens=8192", "budget.eval_every_tokens=8192", "budget.eval_steps=1"]


@pytest.fixture
def small(small_config, token_folder):
    """A config on the two example token sets, with further changes."""
    tokens = token_folder / "runs/tiny/tokens"
    blend = ", ".join(f'{{name="{name}", path="{tokens / name}", weight=1}}' for name in ("texts_ja", "texts_en"))
    return lambda *changes: small_config(*RUN[1:], f"data.blend=[{blend}]", *changes)


@pytest.fixture
def built(groups):
    return lambda config: build_data(config, load_token_sets(config))


def order(data) -> list[np.ndarray]:
    """Every index of the training sequences, in memory."""
    parts = [(d.document_index, d.sample_index, d.shuffle_index) for source in data.train.sources for d in source.epochs]
    return [np.array(index) for index in (data.train.dataset_index, data.train.dataset_sample_index, *sum(parts, ()))]


def same(ours, theirs) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(order(ours), order(theirs), strict=True))


def state(folder: Path) -> dict[str, tuple]:
    """What would change if anybody wrote there."""
    found = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_ino, p.stat().st_size) for p in found}


def kill(folder: Path, how: str, config, tmp_path: Path) -> tuple[list[dict], str]:
    path = tmp_path / "killed.json"
    path.write_text(config.model_dump_json())
    done = subprocess.run([sys.executable, str(KILLER), str(folder), how, str(path)], env=ENVIRONMENT, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.stderr


# ---- killed


@pytest.mark.parametrize(("how", "signal", "least"), [("calls", 9, 20), ("bytes", 25, 3)])
def test_a_build_killed_at_any_moment_is_never_taken_for_whole(how, signal, least, small, built, tmp_path):
    config = small()
    reference = built(config)
    builds, _ = kill(tmp_path / how, how, config, tmp_path)
    *killed, last = builds
    assert len(killed) >= least and all(build["signal"] == signal for build in killed)
    assert last == {"number": len(builds), "signal": 0, "exit": 0}
    num_cut = 0
    for build in builds:
        folder = tmp_path / how / str(build["number"])
        caches = [path for path in folder.glob("*") if ".partial-" not in path.name]
        assert all(is_whole(cache) for cache in caches)
        num_cut += sum(path.stat().st_size == build["number"] * 600 for path in folder.glob("*.partial-*/*"))
        before = {str(cache): state(cache) for cache in caches}
        data = built(small(f"data.cache_folder={folder}"))
        assert same(data, reference) and is_whole(data.index_cache)
        assert not caches or {str(data.index_cache): state(data.index_cache)} == before
    assert how == "calls" or num_cut == len(killed)  # the files were really cut


def test_megatron_core_alone_takes_a_cut_cache_for_whole(small, built):
    """The upstream behaviour (0.16.1) that all this is for; should it go, so may this module."""
    cache = built(small()).index_cache
    path = next(cache.glob("*train-document_index.npy"))
    path.write_bytes(path.read_bytes()[:-4])
    listed = json.loads((cache / LIST_NAME).read_text())
    listed["file_bytes"][path.name] -= 4  # as if the cut file had been published
    (cache / LIST_NAME).write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="mmap length"):
        built(small())


# ---- damaged, full, shared


@pytest.mark.parametrize("damage", ["cut", "missing", "no_list", "broken_list"])
def test_a_damaged_cache_is_built_anew(damage, small, built, capsys):
    first = built(small())
    reference = order(first)
    victim = next(first.index_cache.glob("*GPTDataset-train-shuffle_index.npy")) if damage in ("cut", "missing") else (
        first.index_cache / LIST_NAME)
    if damage in ("cut", "broken_list"):
        shutil.copy(victim, victim.with_suffix(".copy"))  # a new file: the old one stays mapped
        victim.with_suffix(".copy").replace(victim)
        os.truncate(victim, victim.stat().st_size - 4)
    else:
        victim.unlink()
    assert not is_whole(first.index_cache)
    again = built(small())
    assert "is damaged" in capsys.readouterr().err
    assert again.index_cache == first.index_cache and is_whole(again.index_cache)
    assert all(np.array_equal(a, b) for a, b in zip(order(again), reference, strict=True))
    assert [path.name for path in first.index_cache.parent.iterdir()] == [first.index_cache.name]


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(small, tmp_path):
    builds, stderr = kill(tmp_path / "full", "refuse", small(), tmp_path)
    assert builds == [{"number": 1, "signal": 0, "exit": 2}], stderr
    assert str(tmp_path / "full") in stderr and "data.cache_folder=FOLDER" in stderr
    assert not list((tmp_path / "full/1").iterdir())


def test_of_two_builders_the_first_wins_and_the_second_uses_its_cache(groups, tmp_path):
    found: list[Path] = []

    def build_theirs(into: Path) -> None:
        (into / "index").write_text("theirs")

    def build_ours(into: Path) -> None:
        (into / "index").write_text("ours")
        found.append(whole_cache(tmp_path, {"seed": 1}, build_theirs))  # another job is faster

    cache = whole_cache(tmp_path, {"seed": 1}, build_ours)
    assert found == [cache] and (cache / "index").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [cache]


def test_folders_of_dead_builders_are_removed_after_a_day_and_living_ones_are_not(small, built):
    cache = built(small()).index_cache
    old, young = (cache.with_name(f"{cache.name}.partial-{name}") for name in ("old", "young"))
    shutil.rmtree(cache)
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (1, 1))
    built(small())
    assert not old.exists() and young.exists()


# ---- what a cache is made for


def test_whatever_decides_an_index_makes_another_cache_and_the_rest_does_not(small, built):
    base = built(small()).index_cache
    for change in ("seed=7", "budget.total_tokens=16384", "budget.seq_length=32", "data.valid_ratio=0.1", "budget.eval_steps=2",
                   "data.valid_ratio=0"):
        data = built(small(change))
        assert data.index_cache != base and is_whole(data.index_cache)
    for change in ("optim.peak_lr=1e-3", "budget.micro_batch_size=2", "data.num_workers=1", "model.hidden_size=128"):
        before = state(base)
        assert built(small(change)).index_cache == base and state(base) == before


def test_token_set_made_again_at_the_same_place_makes_another_cache(small_config, token_folder, built, tmp_path):
    """Megatron-Core names its files by the path alone: it would read the new tokens in the old one's order."""
    tokens = shutil.copytree(token_folder / "runs/tiny/tokens/texts_ja", tmp_path / "tokens")
    config = small_config(*RUN[1:], f'data.blend=[{{name="a", path="{tokens}", weight=1}}]')
    first = built(config).index_cache
    shutil.rmtree(tokens)
    shutil.copytree(token_folder / "runs/tiny/tokens/texts_en", tokens)
    second = built(config).index_cache
    names = [{path.name for path in cache.iterdir()} for cache in (first, second)]
    assert first != second and names[0] == names[1]


def test_a_build_that_fails_for_another_reason_keeps_its_error_and_leaves_nothing(groups, tmp_path):
    def build(_into: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        whole_cache(tmp_path / "caches", {"seed": 1}, build)
    assert not list((tmp_path / "caches").iterdir())


def test_folder_that_cannot_be_made_is_a_users_error(small, built, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CorpusError, match="cannot be written"):
        built(small(f"data.cache_folder={tmp_path / 'file'}"))


# ---- the tool, and a training after it


def test_a_training_after_the_tool_writes_no_index_file(token_folder, tmp_path):
    run = [*RUN, f"run_folder={tmp_path / 'run'}", f"data.cache_folder={tmp_path / 'caches'}"]

    def command(*words: str) -> str:
        done = subprocess.run([sys.executable, *words, *run], cwd=token_folder, env=ENVIRONMENT, capture_output=True, text=True,
                              timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    built = command(str(REPO / "tools/build_index_cache.py"))
    (cache,) = (tmp_path / "caches").iterdir()
    assert built.startswith(str(cache)) and is_whole(cache)
    before = state(tmp_path / "caches")
    assert sum(name.endswith(".npy") for name in before) == 2 * 2 * 3 + 2  # splits x (sources x indices + the blend's)
    command("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "megatron_jmed.train")
    assert (tmp_path / "run/done").exists() and "valid" in (tmp_path / "run/metrics.jsonl").read_text()
    assert state(tmp_path / "caches") == before
    assert not list((tmp_path / "run").glob("**/*.npy"))
