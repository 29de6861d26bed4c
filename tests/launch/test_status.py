"""Does status.py say what a run's files say; does a sweep name its points? Without Slurm."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from launch.status import main as status
from launch.status import read_status
from launch.sweep import main as sweep
from launch.sweep import points, progress, ranges
from megatron_jmed.errors import ConfigError, run_tool


@pytest.fixture(autouse=True)
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def run(*words: object) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["status.py", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run_tool(status)
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(words, ended.value.code, printed.out, printed.err)

    return run


def write_run(folder: Path, config, steps: int) -> Path:
    """A run folder as the trainer leaves it after `steps` of 30 steps."""
    from megatron_jmed.config import save_config

    folder.mkdir(parents=True)
    save_config(config, folder / "config.json")
    lines = [{"step": step, "tokens": step * 128, "loss": 4 - step / 100, "tokens_per_second": 64.0}
             for step in range(1, steps + 1)]
    alarm = {"name": "loss_spike", "step": steps, "action": "warn", "sentence": "loss 9 after 4"}
    lines.insert(-1, {"step": steps, "tokens": steps * 128, "alarm": alarm})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": ')  # being written
    (folder / f"checkpoints/step_{10:07d}").mkdir(parents=True)
    (folder / f"checkpoints/step_{10:07d}/state.json").write_text("{}")
    events = [{"event": "start", "job": "7"}, {"event": "end", "job": "7"}, {"event": "start", "job": "7"}]
    (folder / "segments.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


@pytest.fixture
def config(experiment: Path):
    from megatron_jmed.config import load_config

    return load_config(str(experiment))


def test_a_run_in_its_second_segment(say, config, tmp_path: Path):
    run = write_run(tmp_path / "runs/a", config, 12)
    (run / "failures.txt").write_text("old\n2026-11-29T10:00:00Z network: Connection closed; what to do: nothing\n")
    shown = say(run).stdout
    assert f"{run}: not running" in shown
    assert "segment 2, step 12 of 30 (40.0%), 1,536 of 3,840 tokens, 64 tokens/s, 0:00:36 left" in shown
    assert "loss 3.8800, checkpoint step_0000010" in shown
    assert "alarm     loss_spike at step 12: loss 9 after 4" in shown
    assert "failure   2026-11-29T10:00:00Z network: Connection closed" in shown
    as_json = json.loads(say(run, "--json").stdout)
    assert as_json["step"] == 12 and as_json["seconds_left"] == 36.0


def test_states_and_a_table_of_several(say, config, tmp_path: Path):
    runs = [write_run(tmp_path / "runs" / name, config, steps) for name, steps in (("done", 30), ("halted", 9), ("going", 3))]
    (runs[0] / "done").write_text("30\n")
    (runs[1] / "halted").write_text("full disk: x\n")
    lines = say(*runs).stdout.splitlines()
    assert lines[1].split() == ["done", "30/30", "3.7000", "2", "done"]
    assert lines[2].endswith("halted: full disk: x") and lines[3].endswith("not running")


def test_a_sweep_that_is_waited_for_ends_with_those_that_are_not_done(config, tmp_path: Path, monkeypatch, capsys):
    folder = tmp_path / "lr"
    runs = [write_run(folder / name, config, steps) for name, steps in (("a", 30), ("b", 9), ("c", 3))]
    (runs[0] / "done").write_text("30\n")
    (folder / "sweep.json").write_text(json.dumps({"runs": ["a", "b", "c"]}))
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--table", "lr", "--wait"])
    with pytest.raises(ConfigError, match="2 of 3 runs did not end well: lr/b; lr/c; launch/status.py RUN says why"):
        sweep()
    said = capsys.readouterr().out
    assert "1 of 3 runs done, 0 running, 0 waiting; 5,376 of 11,520 tokens\n" in said
    assert said.splitlines()[-1].endswith("not running")
    found = [read_status(run) for run in runs]
    going = [replace(found[0], is_live=True), replace(found[1], state="running", is_live=True), found[2]]
    assert progress(going, is_queued=True) == (
        "1 of 3 runs done, 1 running, 1 waiting; 5,376 of 11,520 tokens; 64 tokens/s, 0:01:36 left")


def test_no_run_folder(say, tmp_path: Path):
    answer = say(tmp_path)
    assert answer.returncode == 2 and "is no run folder: it has no config.json" in answer.stderr


def test_damaged_files_are_named(say, config, tmp_path: Path):
    run = write_run(tmp_path / "runs/a", config, 12)
    (run / "segments.jsonl").unlink()
    assert f"{run}: begun without a job" in say(run).stdout
    (run / "stopped").touch()
    assert f"{run}: stopped" in say(run).stdout
    text = (run / "metrics.jsonl").read_text()
    for damage in ('{"step": 1, "los\n', "[1]\n"):
        (run / "metrics.jsonl").write_text(damage + text)
        answer = say(run)
        assert answer.returncode == 2 and f"error: {run}/metrics.jsonl: " in answer.stderr and "is damaged" in answer.stderr
    (tmp_path / "sweep.json").write_text("{}")
    answer = say(tmp_path)
    assert answer.returncode == 2 and "sweep.json: does not list a sweep's runs" in answer.stderr


def test_points_of_a_grid_over_experiments_and_words(experiment: Path, tmp_path: Path):
    other = tmp_path / "other.toml"
    other.write_text(experiment.read_text().replace("micro_batch_size = 2", "micro_batch_size = 1"))
    found = points("tiny", [f"@{experiment},{other}", "seed=1,2"], ["optim.peak_lr=1e-3"], tmp_path / "s")
    assert list(found) == ["experiment,seed=1", "experiment,seed=2", "other,seed=1", "other,seed=2"]
    last = found["other,seed=2"]
    assert (last.seed, last.budget.micro_batch_size, last.optim.peak_lr) == (2, 1, 1e-3)
    assert last.run_folder == str(tmp_path / "s/other,seed=2")
    with pytest.raises(ConfigError, match="write section.word=value,value"):
        points("tiny", ["seed"], [], tmp_path)
    with pytest.raises(ConfigError, match="each needs a name of its own"):
        points("tiny", ["seed=1,1"], [], tmp_path)


def test_ranges_of_an_array():
    assert ranges([1, 2, 3, 7, 9, 10]) == "1-3,7,9-10"
