"""Scores against values worked out by hand or by another formula."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.score import (
    chance_of,
    is_correct,
    load_scores,
    save_scores,
    score_records,
    scores_as_text,
    summarize,
    wilson_interval,
)


def record(question_id: str, picked: str, answers: tuple[str, ...] = ("c",), **changes: Any) -> dict[str, Any]:
    facts = {
        "id": question_id, "year": 2018, "paper": question_id[3], "category": "総論", "type": "single",
        "text_only": True, "points": 1, "num_choices": 5, "num_to_pick": len(answers[0]),
        "answers": [list(a) for a in answers],
        "always_correct": False, "forbidden": [], "not_scored": None, "num_truncated_tokens": 0,
        "picked": {"sum": list(picked), "per_token": list(picked)},
    }  # fmt: skip
    return facts | changes


NUMERIC = {"not_scored": "asks for a number", "type": "numeric", "num_choices": 0, "num_to_pick": 0, "picked": None}


@pytest.mark.parametrize(
    ("num_correct", "num_questions", "expected"),
    # 8 of 10 and 0 of 10 are textbook values; 0 of n ends at z^2 / (n + z^2).
    [
        (8, 10, (0.4902, 0.9433)),
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
        (50, 100, (0.4038, 0.5962)),
        (0, 0, (0, 1)),
    ],
)
def test_wilson_interval(num_correct: int, num_questions: int, expected: tuple[float, float]) -> None:
    assert wilson_interval(num_correct, num_questions) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("num_correct", [0, 1, 37, 399, 400])
def test_wilson_ends_solve_the_score_equation(num_correct: int) -> None:
    p, n, z = num_correct / 400, 400, 1.959963984540054
    for end in wilson_interval(num_correct, n):
        assert abs(p - end) == pytest.approx(z * math.sqrt(max(0.0, end * (1 - end)) / n), abs=1e-8)


def test_chance() -> None:
    assert chance_of(record("112A1", "a")) == 1 / 5
    assert chance_of(record("112A1", "ab", ("ab",))) == 1 / 10
    assert chance_of(record("112A1", "abc", ("abc",))) == 1 / 10
    assert chance_of(record("112B30", "a", ("a", "d"))) == 2 / 5
    assert chance_of(record("113F83", "g", ("g",), num_choices=8)) == 1 / 8
    assert chance_of(record("116A71", "a", ("e",), always_correct=True)) == 1


def test_correct_means_the_whole_set() -> None:
    assert is_correct(record("112A1", "c"), "sum") and not is_correct(record("112A1", "b"), "sum")
    assert is_correct(record("112A1", "ba", ("ab",)), "sum")
    assert not is_correct(record("112A1", "ac", ("ab",)), "sum")
    assert [is_correct(record("112B30", letter, ("a", "d")), "sum") for letter in "abd"] == [True, False, True]
    assert is_correct(record("116A71", "a", ("e",), always_correct=True), "sum")


def test_summary_by_hand() -> None:
    records = [
        record("112A1", "c", points=3),
        record("112A2", "b", forbidden=["b", "d"]),
        record("112A3", "ab", ("ab",), points=1),
        record("112A4", "c", points=0),
        record("112A5", "", points=1) | NUMERIC,
    ]
    summary = summarize(records, "sum")
    assert (summary["num_questions"], summary["num_scored"], summary["num_correct"]) == (5, 4, 3)
    assert summary["accuracy"] == 3 / 4
    assert summary["accuracy_over_all"] == 3 / 5
    assert (summary["points"], summary["points_scored"], summary["points_possible"]) == (4, 5, 6)
    assert summary["chance"] == pytest.approx((0.2 + 0.2 + 0.1 + 0.2) / 4)
    assert summary["num_forbidden_picked"] == 1
    assert (summary["interval_low"], summary["interval_high"]) == wilson_interval(3, 4)


@pytest.mark.parametrize(
    ("num_correct", "verdict"), [(0, "below chance"), (20, "not distinguishable from chance"), (40, "above chance")]
)
def test_verdict(num_correct: int, verdict: str) -> None:
    records = [record(f"112A{n}", "c" if n < num_correct else "a") for n in range(100)]
    assert summarize(records, "sum")["verdict"] == verdict


def test_methods_are_scored_apart() -> None:
    records = [record("112A1", "") | {"picked": {"sum": ["c"], "per_token": ["a"]}}]
    scores = score_records(records)
    assert scores["accuracy"]["sum"]["num_correct"] == 1
    assert scores["accuracy"]["per_token"]["num_correct"] == 0


def test_groups_add_up_and_nothing_is_dropped() -> None:
    records = [
        record("112A1", "c"),
        record("112B1", "a", text_only=False, category="産科"),
        record("113B1", "ab", ("ab",), year=2019, type="multiple"),
        record("113B2", "", year=2019) | NUMERIC,
    ]
    scores = score_records(records)
    assert scores["not_scored"] == {"asks for a number": 1}
    assert list(scores["by_year"]) == ["2018", "2019"]
    assert scores["by_type"]["numeric"]["sum"]["accuracy"] is None
    assert scores["by_type"]["numeric"]["sum"]["verdict"] == "nothing was scored"
    assert scores["by_image"]["with image"]["sum"]["num_correct"] == 0
    assert scores["by_category"]["産科"]["sum"]["num_questions"] == 1
    for group in ("by_year", "by_paper", "by_type", "by_image", "by_category"):
        assert sum(by_method["sum"]["num_questions"] for by_method in scores[group].values()) == 4
        assert sum(by_method["sum"]["num_correct"] for by_method in scores[group].values()) == 2


def test_scores_file_round_trip_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "igakuqa.json"
    head = {"format_version": 1, "exam": "igakuqa", "model": {"name": "tiny/hf"}}
    scores = head | score_records([record("112A1", "c"), record("112A2", "") | NUMERIC])
    save_scores(scores, path)
    assert load_scores(path) == scores
    assert [p.name for p in tmp_path.iterdir()] == ["igakuqa.json"]
    text = scores_as_text(scores)
    assert "1 of 2 scored" in text and "not scored: 1 (asks for a number)" in text and "1/1" in text
    path.write_text(json.dumps(scores | {"format_version": 7}), encoding="utf-8")
    with pytest.raises(ExamError, match="format_version is 7; expected 1"):
        load_scores(path)
    path.write_text('{"format_version": 1', encoding="utf-8")
    with pytest.raises(ExamError, match=r"igakuqa\.json: no scores file"):
        load_scores(path)
