"""What the loop feeds at any layout, resumed or not, is what replay says without a log; skipped steps are never fed.

All runs train 6 steps, save after 3, and write a hash of every sequence that a rank was given (`log.hash_batches`).
"""

import json
import shutil

import pytest

from megatron_jmed.config import load_config
from megatron_jmed.data.batch_hashes import sequence_hash
from megatron_jmed.data.read_account import read_account
from megatron_jmed.data.replay import open_replay
from megatron_jmed.data.sources import load_token_sets
from megatron_jmed.errors import ConfigError
from megatron_jmed.run_folder import RunFolder, load_state
from megatron_jmed.train.preflight import check_before_start

STEPS = range(1, 7)
RUN = ["tiny", "budget.total_tokens=12288", "budget.save_every_tokens=6144", "budget.eval_every_tokens=6144", "budget.eval_steps=1",
       "optim.warmup_tokens=2048", "log.hash_batches=true", "parallel.ep=1"]
SKIP = ["data.skip_steps=[[2, 2], 5]"]
TP2 = ["parallel.tp=2", "parallel.etp=2", "parallel.sequence_parallel=true"]
RUNS = {"fed": [], "fed_again": [], "fed_tp2": TP2, "fed_dp2": ["data.num_workers=1"], "fed_pp2": ["parallel.pp=2"],
        "fed_cp2": ["parallel.cp=2"],
        "skip": SKIP, "skip_again": SKIP, "skip_dp2": SKIP, "skip_later": ["data.skip_steps=[5]"],
        "skip_last": ["data.skip_steps=[6]"]}


def run(name):
    return [*RUN, f"run_folder=runs/{name}", *RUNS[name]]


def checkpoint(name, step=3):
    return f"runs/{name}/checkpoints/step_{step:07d}"


def begun_like(name, source):
    """A run that goes on from the checkpoint of another, with its config."""
    return [["copy", checkpoint(source), checkpoint(name)], run(name)]


@pytest.fixture(scope="module")
def trained(train_runs, token_folder):
    train_runs(1, [run("fed"), *begun_like("fed_again", "fed"), run("skip"), *begun_like("skip_again", "skip"),
                   run("skip_last")])
    shutil.copytree(token_folder / "runs/fed", token_folder / "runs/skip_later",
                    ignore=lambda *_: ["step_0000006", "batches", "done"])
    train_runs(1, [run("skip_later")])
    train_runs(2, [*begun_like("fed_tp2", "fed"), *begun_like("fed_dp2", "fed"), *begun_like("fed_cp2", "fed"),
                   run("fed_pp2"), run("skip_dp2")])


@pytest.fixture
def replay_for(trained, token_folder, monkeypatch):
    """replay_for(run): what its index says."""
    monkeypatch.chdir(token_folder)

    def replay(name):
        config = load_config(str(RunFolder(f"runs/{name}").config))
        return open_replay(config, load_token_sets(config))

    return replay


def fed(name) -> dict[int, list[tuple[int, int, str]]]:
    """(step, sequence, hash) of every line, by rank."""
    files = sorted(RunFolder(f"runs/{name}").batches.glob("rank_*.jsonl"))
    lines = {int(path.stem.removeprefix("rank_")): path.read_text().splitlines() for path in files}
    return {rank: [tuple(json.loads(line).values()) for line in of_rank] for rank, of_rank in lines.items()}


def expected(replay, steps):
    return [(step, sequence, sequence_hash(replay.tokens(step, sequence)))
            for step in steps for sequence in range(replay.config.budget.global_batch_size)]


@pytest.mark.parametrize(("name", "steps", "copies"), [
    ("fed", STEPS, 1), ("fed_again", [4, 5, 6], 1), ("fed_tp2", [4, 5, 6], 2), ("fed_dp2", [4, 5, 6], 1), ("fed_pp2", STEPS, 2),
    ("fed_cp2", [4, 5, 6], 2),
    ("skip", [1, 3, 4, 6], 1), ("skip_again", [4, 6], 1), ("skip_dp2", [1, 3, 4, 6], 1), ("skip_later", [4, 6], 1),
    ("skip_last", [1, 2, 3, 4, 5], 1),
])
def test_every_sequence_fed_has_the_hash_that_the_index_gives(name, steps, copies, replay_for):
    by_rank = fed(name)
    found = [line for lines in by_rank.values() for line in lines]
    assert sorted(found) == sorted(copies * expected(replay_for(name), steps))
    assert len(set(found)) == len(found) // copies
    for lines in by_rank.values():
        assert [step for step, _, _ in lines] == sorted(step for step, _, _ in lines)


def test_one_other_token_is_another_hash(replay_for):
    tokens = replay_for("fed").tokens(1, 0)
    changed = tokens.copy()
    changed[-1] += 1  # the last label
    assert sequence_hash(tokens) != sequence_hash(changed)


# ---- skipped steps


def test_steps_before_a_skip_and_the_schedule_are_those_of_the_run_without(trained, step_records, token_folder):
    whole, skipped = step_records("fed"), step_records("skip")
    assert set(skipped) == {1, 3, 4, 6} and whole[1]["loss"] == skipped[1]["loss"] and whole[3]["loss"] != skipped[3]["loss"]
    assert all(skipped[step]["lr"] == whole[step]["lr"] and skipped[step]["tokens"] == whole[step]["tokens"] for step in skipped)
    records = [json.loads(line) for line in (token_folder / "runs/skip/metrics.jsonl").read_text().splitlines()]
    marked = {record["step"]: record for record in records if record.get("skipped")}
    assert set(marked) == {2, 5} and all(marked[step]["lr"] == whole[step]["lr"] for step in marked)


@pytest.mark.parametrize(("first", "again"), [("skip", "skip_again"), ("fed", "fed_again")])
def test_resume_after_skipped_steps_equals_uninterrupted_to_the_bit(first, again, trained, step_records):
    """Adam counts the steps, those that are skipped too."""
    whole, resumed = step_records(first), step_records(again)
    assert len(resumed) > 1
    for step, record in resumed.items():
        assert (record["loss"], record["grad_norm"]) == (whole[step]["loss"], whole[step]["grad_norm"])


def test_two_ranks_skip_alike(trained, step_records):
    ours, reference = step_records("skip_dp2"), step_records("skip")
    assert set(ours) == set(reference)
    assert all(ours[step]["loss"] == pytest.approx(reference[step]["loss"], rel=1e-6) for step in ours)


def test_a_skipped_last_step_is_saved_validated_and_done(trained, token_folder):
    folder = RunFolder(token_folder / "runs/skip_last")
    assert folder.done.exists() and load_state(folder.checkpoint(6)).step == 6
    records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    kinds = [set(record) & {"skipped", "valid_loss"} for record in records if record["step"] == 6]
    assert kinds[:2] == [{"skipped"}, {"valid_loss"}]


def test_skipped_tokens_count_as_not_read(replay_for):
    replay = replay_for("skip")
    blend = json.loads(RunFolder("runs/skip").blend.read_text())
    account = read_account(replay, 6)
    assert blend["consumed_tokens"] == blend["total_tokens"] == account["all"]["tokens"] == 4 * 2048
    assert blend["skipped_tokens"] == 2 * 2048
    assert [one["consumed_tokens"] for one in blend["sources"]] == [one["tokens"] for one in account["sources"]]


def test_skips_may_be_added_for_what_lies_ahead_only(replay_for):
    replay_for("skip_later")  # it was trained without, and went on from step 3 with step 5 left out
    config = RunFolder("runs/skip").config
    for skips, said in (("[]", "[[2, 2], [5, 5]] -> []"), ("[2, [4, 6]]", "[[2, 2], [5, 5]] -> [[2, 2], [4, 6]]")):
        changed = load_config(str(config), [f"data.skip_steps={skips}"])
        with pytest.raises(ConfigError, match="of the 6 steps that are done") as error:
            check_before_start(changed, 1)
        assert said in str(error.value)
    same = load_config(str(config), ["data.skip_steps=[5, [5, 5], 2]"])  # said in other words
    check_before_start(same, 1)
