"""Each alarm is raised by what it is for, once, and by nothing that a healthy run does; a resumed run raises the same ones."""

import json
import math
import random

import pytest

from megatron_jmed.config import ConfigError, WatchConfig, load_config
from megatron_jmed.train.alarms import Alarm, UpdateGuard, check, grad_norm_limit, recent, why_end

WATCH = WatchConfig()


def normal(num_steps: int, seed: int = 0, **fixed) -> list[dict]:
    """A healthy run: a loss that falls with noise that is correlated and has tails, skewed norms, uneven experts, jitter."""
    rng, noise, records = random.Random(seed), 0.0, []
    for step in range(1, num_steps + 1):
        noise = 0.5 * noise + rng.gauss(0, 0.03) * (3 if rng.random() < 0.01 else 1)
        load = [[abs(rng.gauss(0.25 * weight, 0.05)) for weight in (1.6, 0.3, 1.1, 1.0)] for _ in range(2)]
        records.append({
            "step": step, "loss": 2 + 9 * math.exp(-step / 300) + noise,
            "grad_norm": math.exp(rng.gauss(0, 0.3)) * (1 + 5 * math.exp(-step / 100)),
            "expert_load": [[share / sum(layer) for share in layer] for layer in load],
            "tflops_per_second_per_gpu": 400 * rng.uniform(0.9, 1.0) / (5 if rng.random() < 0.02 else 1), **fixed})
    return records


def replay(records: list[dict], watch: WatchConfig = WATCH, history=()) -> list[Alarm]:
    """The alarms of a run that had this history and then makes these records."""
    history, raised = recent(history, watch), []
    for record in records:
        history.append(record)
        for alarm in check(history, watch):
            history.append({"step": alarm.step, "alarm": alarm._asdict()})
            raised.append(alarm)
    return raised


def changed(records: list[dict], steps: range, **changes) -> list[dict]:
    """The records with some numbers replaced or, where a function is given, changed at these steps."""
    return [record | {name: change(record[name]) if callable(change) else change for name, change in changes.items()}
            if record["step"] in steps else record for record in records]


def names(alarms: list[Alarm]) -> list[tuple[str, int]]:
    return [(alarm.name, alarm.step) for alarm in alarms]


def test_ten_thousand_healthy_steps_raise_no_alarm():
    assert replay(normal(10_000)) == []


@pytest.mark.parametrize("seed", range(1, 4))
def test_nor_do_the_noisy_first_steps_of_other_seeds(seed):
    assert replay(normal(600, seed)) == []


SICK = {
    "loss_spike": ({"loss": lambda loss: loss + 0.6}, range(300, 303), 302),
    "grad_norm_spike": ({"grad_norm": 40.0}, range(300, 301), 300),
    "dead_expert": ({"expert_load": [[0.25] * 4, [0.33, 0.33, 0.34, 0.0]]}, range(300, 400), 328),
    "overloaded_expert": ({"expert_load": [[0.25] * 4, [0.0367, 0.0367, 0.0366, 0.89]]}, range(300, 400), 326),
    "slow": ({"tflops_per_second_per_gpu": lambda speed: speed / 2}, range(300, 400), 305),
    "non_finite": ({"loss": "nan"}, range(300, 301), 300),
}


@pytest.mark.parametrize("name", SICK)
def test_each_sickness_raises_its_alarm_once_and_no_other(name):
    changes, steps, expected = SICK[name]
    raised = replay(changed(normal(390), steps, **changes))
    assert names(raised) == [(name, pytest.approx(expected, abs=4))]
    assert raised[0].action == getattr(WATCH, name) and raised[0].sentence


@pytest.mark.parametrize("name", SICK)
def test_an_alarm_that_is_off_is_not_raised(name):
    if name == "non_finite":
        with pytest.raises(ConfigError, match="non_finite"):
            load_config("tiny", ["watch.non_finite=off"])
        return
    changes, steps, _ = SICK[name]
    assert replay(changed(normal(390), steps, **changes), WatchConfig(**{name: "off"})) == []


NEARLY_SICK = {
    "loss spike of too few steps": ({"loss": lambda loss: loss + 5}, range(300, 302)),
    "loss that falls": ({"loss": lambda loss: loss / 3}, range(300, 390)),
    "gradient norm three times as large": ({"grad_norm": 3.0}, range(300, 301)),
    "gradient norm that falls": ({"grad_norm": 0.001}, range(300, 301)),
    "an expert without tokens for few steps": ({"expert_load": [[0.25] * 4, [0.33, 0.33, 0.34, 0.0]]}, range(300, 310)),
    "a few slow steps": ({"tflops_per_second_per_gpu": 10.0}, range(300, 304)),
    "a faster machine": ({"tflops_per_second_per_gpu": 900.0}, range(300, 390)),
    "no experts": ({"expert_load": []}, range(0, 390)),
}


@pytest.mark.parametrize("case", NEARLY_SICK)
def test_what_is_nearly_sick_raises_nothing(case):
    changes, steps = NEARLY_SICK[case]
    assert replay(changed(normal(390), steps, **changes)) == []


@pytest.mark.parametrize("name", ["loss_spike", "grad_norm_spike", "slow"])
def test_too_short_a_history_says_nothing_but_that_a_number_is_not_finite(name):
    changes, *_ = SICK[name]
    records = changed(normal(31), range(28, 32), **changes)
    assert replay(records) == []
    assert names(replay([*records, records[-1] | {"step": 32, "grad_norm": "inf"}])) == [("non_finite", 32)]


def test_what_lasts_is_said_again_only_after_the_quiet_steps():
    records = changed(normal(700), range(300, 701), expert_load=SICK["dead_expert"][0]["expert_load"])
    steps = [alarm.step for alarm in replay(records)]
    assert steps == [steps[0] + 100 * n for n in range(4)]


def test_a_record_that_is_no_step_raises_nothing():
    records = changed(normal(300), range(300, 301), grad_norm=400.0)
    assert names(check(records, WATCH)) == [("grad_norm_spike", 300)]
    assert check([*records, {"step": 300, "valid_loss": {"all": 9.9}}], WATCH) == []
    assert check([], WATCH) == []


@pytest.mark.parametrize("stopped_at", [150, 299, 301, 340, 399])
def test_a_resumed_run_raises_what_the_whole_run_raises(stopped_at, tmp_path):
    records = changed(normal(700), range(300, 303), loss=lambda loss: loss + 1)
    records = changed(records, range(400, 401), grad_norm="nan")
    records = changed(records, range(450, 701), tflops_per_second_per_gpu=50.0)
    whole = replay(records)
    assert {alarm.name for alarm in whole} == {"loss_spike", "non_finite", "slow"}
    file = tmp_path / "metrics.jsonl"  # what the first part leaves behind: its steps, its alarms, a validation
    written = []
    for record in records[:stopped_at]:
        written += [record, *({"step": a.step, "alarm": a._asdict()} for a in whole if a.step == record["step"])]
    written.append({"step": stopped_at, "valid_loss": {"all": 2.0}})
    file.write_text("".join(json.dumps(line) + "\n" for line in written))
    read = [json.loads(line) for line in file.read_text().splitlines()]
    assert replay(records[stopped_at:], history=read) == [alarm for alarm in whole if alarm.step > stopped_at]


# ---- the guard of the update


def test_guard_refuses_spikes_only_where_asked_and_what_is_not_finite_always():
    records = normal(200)
    spike = 1.01 * grad_norm_limit([record["grad_norm"] for record in records], WATCH)
    for action, is_refused in (("warn", False), ("skip_step", True)):
        assert UpdateGuard(WatchConfig(grad_norm_spike=action), records).refuses(spike) is is_refused
        assert UpdateGuard(WatchConfig(grad_norm_spike=action), records).refuses(0.95 * spike) is False
        assert all(UpdateGuard(WatchConfig(grad_norm_spike=action), []).refuses(norm) for norm in (math.nan, math.inf))
        assert not UpdateGuard(WatchConfig(grad_norm_spike=action), []).refuses(1e9)  # nothing to compare with


def test_guard_and_alarm_judge_alike():
    watch = WatchConfig(grad_norm_spike="skip_step", quiet_steps=1)
    records = changed(normal(500), range(200, 500, 50), grad_norm=lambda norm: 15 * norm)
    guard = UpdateGuard(watch, [])
    refused = [record["step"] for record in records if guard.refuses(record["grad_norm"])]
    assert refused == [alarm.step for alarm in replay(records, watch) if alarm.name == "grad_norm_spike"] != []


def test_guard_that_resumes_refuses_the_same_and_counts_on():
    watch = WatchConfig(grad_norm_spike="skip_step")
    records = changed(normal(300), range(250, 253), grad_norm=99.0)

    def run(guard, part):
        return [guard.count(guard.refuses(record["grad_norm"])) for record in part]

    whole = run(UpdateGuard(watch, []), records)
    assert whole[248:253] == [0, 1, 2, 3, 0]
    for stop in (200, 251):
        history = [record | ({"skipped_in_a_row": n} if n else {}) for record, n in zip(records[:stop], whole, strict=False)]
        assert run(UpdateGuard(watch, history), records[stop:]) == whole[stop:]


@pytest.mark.parametrize(("non_finite", "loss", "num_skipped", "ends"), [
    ("stop", math.nan, 1, True), ("skip_step", math.nan, 1, False), ("skip_step", math.nan, 5, False),
    ("skip_step", math.nan, 6, True), ("stop", 2.0, 5, False), ("stop", 2.0, 6, True), ("stop", 2.0, 0, False),
    ("skip_step", math.nan, 0, True),
])
def test_when_a_run_cannot_go_on(non_finite, loss, num_skipped, ends):
    assert bool(why_end(WatchConfig(non_finite=non_finite), 7, loss, 1.0, num_skipped)) is ends
