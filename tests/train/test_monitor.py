"""Every step is in metrics.jsonl exactly once, also after an interruption; wandb and TensorBoard get the same history."""

import json
import math
import os
import signal
import struct

import pytest

from megatron_jmed.config import load_config
from megatron_jmed.parallel import World
from megatron_jmed.run_folder import RunFolder
from megatron_jmed.train.beginning import Beginning
from megatron_jmed.train.monitor import Monitor
from megatron_jmed.train.step import StepNumbers
from megatron_jmed.train.stop import StopRequest

BLEND = 'data.blend=[{name="ja", path="ja", weight=1}, {name="en", path="en", weight=3}]'
LOAD = [[0.75, 0.25], [0.5, 0.5]]
ALONE = World(0, 1, 0)


def numbers(loss: float = 2.0, **changes: object) -> StepNumbers:
    words = {"loss_by_source": {"ja": loss, "en": loss + 1}, "aux_loss": 1.01, "expert_load": LOAD, "grad_norm": 0.5,
             "router_z": [3.0, 4.0]}
    return StepNumbers(loss=loss, **words | changes)


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def open_monitor(small_config, folder):
    def opened(step: int = 0, *changes: str, world: World = ALONE) -> Monitor:
        return Monitor(small_config(BLEND, *changes), world, folder, Beginning(step, []))

    return opened


def records(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_step_is_one_line_with_all_its_numbers(open_monitor, folder):
    monitor = open_monitor()
    monitor.record_step(1, 3e-4, numbers())
    monitor.record_validation(1, numbers(1.5))
    step, valid = records(folder.metrics)
    assert step.pop("step_seconds") > 0 and step.pop("tokens_per_second") > 0
    assert step.pop("tflops_per_second_per_gpu") > 0
    assert step == {"step": 1, "tokens": 2048, "loss": 2.0, "aux_loss": 1.01, "grad_norm": 0.5, "lr": 3e-4,
                    "loss_by_source": {"ja": 2.0, "en": 3.0}, "expert_load": LOAD, "router_z": [3.0, 4.0]}
    assert valid == {"step": 1, "tokens": 2048, "valid_loss": {"all": 2.25, "ja": 1.5, "en": 2.5}}


def test_a_skipped_step_is_a_line_without_a_loss_and_the_terminal_says_so(open_monitor, folder, capsys):
    monitor = open_monitor(0, "data.skip_steps=[2]")
    monitor.record_step(1, 1e-4, numbers())
    monitor.record_step(2, 2e-4, StepNumbers(loss=math.nan, loss_by_source={}, is_skipped=True))
    monitor.record_step(3, 3e-4, numbers())
    assert records(folder.metrics)[1] == {"step": 2, "tokens": 4096, "lr": 2e-4, "skipped": True}
    assert [line["step"] for line in records(folder.metrics)] == [1, 2, 3]
    assert "step 2/120  skipped" in capsys.readouterr().out
    monitor.close(120, "")
    assert f"done: {119 * 2048:,} tokens read" in capsys.readouterr().out


def test_rates_belong_together(open_monitor, folder):
    monitor = open_monitor(0, world=World(0, 4, 0))
    monitor.record_step(1, 1e-4, numbers())
    (line,) = records(folder.metrics)
    assert line["tokens_per_second"] * line["step_seconds"] == pytest.approx(2048)
    from megatron_jmed.train.estimate import flops_a_token

    config = load_config(str(folder.config))
    assert line["tflops_per_second_per_gpu"] == pytest.approx(flops_a_token(config) * line["tokens_per_second"] / 4 / 1e12)


def test_what_is_not_finite_is_written_as_a_string_and_every_line_is_strict_json(open_monitor, folder):
    open_monitor().record_step(1, 1e-4, numbers(math.nan, grad_norm=math.inf))
    line, alarm = [json.loads(text, parse_constant=pytest.fail) for text in folder.metrics.read_text().splitlines()]
    assert alarm["alarm"]["name"] == "non_finite"
    assert line["loss"] == "nan" and line["grad_norm"] == "inf" and line["loss_by_source"] == {"ja": "nan", "en": "nan"}


def test_each_line_is_on_disk_as_soon_as_it_is_written(open_monitor, folder):
    monitor = open_monitor()
    for step in (1, 2):
        monitor.record_step(step, 1e-4, numbers())
        assert len(records(folder.metrics)) == step


def test_resuming_moves_later_and_half_lines_aside_and_goes_on(open_monitor, folder):
    monitor = open_monitor()
    for step in range(1, 6):
        monitor.record_step(step, 1e-4, numbers())
    with open(folder.metrics, "a") as stream:
        stream.write('{"step": 6, "loss": 2.')
    lines = folder.metrics.read_text().splitlines(keepends=True)
    again = open_monitor(3)
    assert folder.metrics.read_text() == "".join(lines[:3])
    assert folder.metrics.with_name("metrics.dropped.jsonl").read_text() == "".join(lines[3:]) + "\n"
    again.record_step(4, 1e-4, numbers(1.0))
    assert [(line["step"], line["loss"]) for line in records(folder.metrics)] == [(1, 2.0), (2, 2.0), (3, 2.0), (4, 1.0)]


def test_what_is_dropped_twice_is_kept_twice(open_monitor, folder):
    for loss in (2.0, 1.0):
        open_monitor().record_step(1, 1e-4, numbers(loss))
    open_monitor()
    dropped = records(folder.metrics.with_name("metrics.dropped.jsonl"))
    assert [line["loss"] for line in dropped] == [2.0, 1.0]
    assert folder.metrics.read_text() == ""


def test_resuming_after_the_last_line_drops_nothing(open_monitor, folder):
    open_monitor().record_step(1, 1e-4, numbers())
    before = folder.metrics.read_text()
    open_monitor(1)
    assert folder.metrics.read_text() == before
    assert not folder.metrics.with_name("metrics.dropped.jsonl").exists()


def test_a_last_line_that_lacks_only_its_end_does_not_swallow_the_next(open_monitor, folder):
    open_monitor().record_step(1, 1e-4, numbers())
    folder.metrics.write_text(folder.metrics.read_text().rstrip("\n"))
    open_monitor(1).record_step(2, 1e-4, numbers())
    assert [line["step"] for line in records(folder.metrics)] == [1, 2]


def test_every_start_is_noted_with_its_step_and_layout(open_monitor, folder):
    open_monitor()
    open_monitor(40, world=World(0, 2, 0))
    first, second = json.loads(folder.run.read_text())["starts"]
    assert (first["step"], second["step"], second["world_size"]) == (0, 40, 2)
    assert second["layout"] == "tp1 pp1 ep1 etp1 cp1" and second["code_version"]


def test_config_in_the_run_folder_repeats_the_run(open_monitor, folder, small_config):
    open_monitor(0, "optim.peak_lr=1e-3")
    assert load_config(str(folder.config)) == small_config(BLEND, "optim.peak_lr=1e-3")


@pytest.mark.parametrize(("step", "marker", "said"), [(120, "done", "120\n"), (40, "stopped", "40 stop file\n")])
def test_the_end_is_marked_and_the_request_taken_away(step, marker, said, open_monitor, folder):
    folder.path.mkdir()
    folder.stop.touch()
    open_monitor().close(step, "stop file")
    assert (folder.path / marker).read_text() == said
    assert [name for name in ("done", "stopped", "stop") if (folder.path / name).exists()] == [marker]


def test_other_ranks_write_nothing(open_monitor, folder):
    monitor = open_monitor(0, world=World(1, 2, 1))
    monitor.record_step(1, 1e-4, numbers())
    monitor.record_validation(1, numbers())
    monitor.close(1, "")
    assert not folder.path.exists()


# ---- requests to stop


@pytest.fixture
def signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_is_a_reason_to_stop(name, folder, signals):
    request = StopRequest(folder, ALONE)
    assert request.reason() == ""
    os.kill(os.getpid(), getattr(signal, name))
    assert request.reason() == name


def test_the_stop_file_is_a_reason_for_the_first_rank_to_tell_the_others(folder, signals):
    first, second = StopRequest(folder, World(0, 2, 0)), StopRequest(folder, World(1, 2, 1))
    assert first.reason() == second.reason() == ""
    folder.path.mkdir()
    folder.stop.touch()
    assert (first.reason(), second.reason()) == ("stop file", "")


# ---- the same history elsewhere


def record_a_history(monitor: Monitor) -> None:
    for step in (1, 2, 3):
        monitor.record_step(step, step * 1e-4, numbers(4.0 - step))
    monitor.record_validation(3, numbers(0.5))
    monitor.close(3, "")


def test_tensorboard_shows_the_history_by_tokens(open_monitor, folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record_a_history(open_monitor(0, "log.tensorboard=true"))
    events = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(2048, 3.0), (4096, 2.0), (6144, 1.0)]
    assert [e.value for e in events.Scalars("loss_by_source/en")] == [4.0, 3.0, 2.0]
    assert [(e.step, e.value) for e in events.Scalars("valid_loss/all")] == [(6144, 1.25)]
    assert [e.value for e in events.Scalars("expert_load_max_over_mean")] == [1.5] * 3


def wandb_records(path):
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB, chunks of crc, length, type) after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, pending = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while position < len(data):
        if 2**15 - position % 2**15 < 7:  # too little left in the block for a chunk
            position += 2**15 - position % 2**15
            continue
        _crc, length, kind = struct.unpack_from("<IHB", data, position)
        pending += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last chunk
            yield wandb_internal_pb2.Record.FromString(pending)
            pending = b""


def test_wandb_offline_folder_holds_config_and_history(open_monitor, folder):
    import wandb

    record_a_history(open_monitor(0, "log.wandb_project=jmed_test"))
    wandb.teardown()  # its writer is a process of its own, which may flush after `finish`; a program's end waits for it
    (path,) = folder.path.glob("wandb/offline-run-*/run-*.wandb")
    history, project, config = {}, None, {}
    for record in wandb_records(path):
        if record.HasField("run"):
            project = record.run.project
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            line = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            history.setdefault(record.history.step.num, {}).update(line)
    assert project == "jmed_test"
    assert config["optim"]["peak_lr"] == 3e-3
    assert [history[step]["loss"] for step in (1, 2, 3)] == [3.0, 2.0, 1.0]
    assert history[3]["lr"] == pytest.approx(3e-4) and history[3]["loss_by_source/en"] == 2.0
    assert history[3]["valid_loss/all"] == 1.25


def test_a_run_that_goes_on_stays_one_curve_in_wandb_and_tensorboard(open_monitor, folder):
    """Killed after step 3 and resumed at step 2: the same wandb id, and TensorBoard shows step 3 once, with its new value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record_a_history(open_monitor(0, "log.tensorboard=true", "log.wandb_project=jmed_test"))
    again = open_monitor(2, "log.tensorboard=true", "log.wandb_project=jmed_test")
    again.record_step(3, 3e-4, numbers(0.25))
    again.close(3, "")
    run_id = json.loads(folder.run.read_text())["wandb_id"]
    assert all(run_id in path.name for path in folder.path.glob("wandb/offline-run-*"))
    assert len(list(folder.path.glob("wandb/offline-run-*"))) == 2
    events = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(2048, 3.0), (4096, 2.0), (6144, 0.25)]
