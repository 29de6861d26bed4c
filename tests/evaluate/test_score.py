"""Scores against values worked out by hand or by another formula."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.correct import chance_of, is_correct
from megatron_jmed.evaluate.intervals import bootstrap_difference, bootstrap_interval, mcnemar_p, wilson_interval
from megatron_jmed.evaluate.passing import judge
from megatron_jmed.evaluate.question import ExamRules
from megatron_jmed.evaluate.score import compare_records, load_scores, save_scores, score_records, summarize
from megatron_jmed.evaluate.score_table import scores_as_text

METHODS = ("sum", "per_token")


def record(question_id: str, picked: str, answers: tuple[str, ...] = ("c",), **changes: Any) -> dict[str, Any]:
    facts = {
        "id": question_id, "year": 2018, "paper": question_id[3], "subject": "総論", "category": "", "lang": "ja",
        "type": "single", "needs_image": False, "essential": False, "withdrawn": False,
        "points": 1, "num_choices": 5, "num_to_pick": len(answers[0]),
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
    scores = score_records(records, METHODS)
    assert scores["accuracy"]["sum"]["num_correct"] == 1
    assert scores["accuracy"]["per_token"]["num_correct"] == 0


def test_groups_add_up_and_nothing_is_dropped() -> None:
    records = [
        record("112A1", "c"),
        record("112B1", "a", needs_image=True, subject="産科"),
        record("113B1", "ab", ("ab",), year=2019, type="multiple"),
        record("113B2", "", year=2019) | NUMERIC,
    ]
    scores = score_records(records, METHODS)
    assert scores["not_scored"] == {"asks for a number": 1}
    assert list(scores["by_year"]) == ["2018", "2019"]
    assert scores["by_type"]["numeric"]["sum"]["accuracy"] is None
    assert scores["by_type"]["numeric"]["sum"]["verdict"] == "nothing was scored"
    assert scores["by_image"]["with image"]["sum"]["num_correct"] == 0
    assert scores["by_subject"]["産科"]["sum"]["num_questions"] == 1
    for group in ("by_year", "by_paper", "by_type", "by_image", "by_subject"):
        assert sum(by_method["sum"]["num_questions"] for by_method in scores[group].values()) == 4
        assert sum(by_method["sum"]["num_correct"] for by_method in scores[group].values()) == 2


def test_scores_file_round_trip_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "igakuqa.json"
    head = {"format_version": 2, "exam": "igakuqa", "model": {"name": "tiny/hf"}}
    scores = head | score_records([record("112A1", "c"), record("112A2", "") | NUMERIC], METHODS)
    save_scores(scores, path)
    assert load_scores(path) == scores
    assert [p.name for p in tmp_path.iterdir()] == ["igakuqa.json"]
    text = scores_as_text(scores)
    assert "1 of 2 scored" in text and "not scored: 1 (asks for a number)" in text and "1/1" in text
    path.write_text(json.dumps(scores | {"format_version": 7}), encoding="utf-8")
    with pytest.raises(ExamError, match="format_version is 7; expected 2"):
        load_scores(path)
    for damage in ({"accuracy": 5}, {"methods": []}, {"accuracy": {}}):
        path.write_text(json.dumps(scores | damage), encoding="utf-8")
        with pytest.raises(ExamError, match="accuracy does not have each of the methods"):
            load_scores(path)
    path.write_text('{"format_version": 2', encoding="utf-8")
    with pytest.raises(ExamError, match=r"igakuqa\.json: no scores file"):
        load_scores(path)


# --- pass rules, intervals, comparison -----------------------------------------------------------------------------


def whole_exam(essential_right: int, general_right: int, forbidden: int = 0) -> list[dict[str, Any]]:
    """10 essential questions of 2 points and 10 others of 1 point, one of them withdrawn; so many right, so many harmful."""
    essential = [record(f"112B{n}", "c" if n < essential_right else "a", essential=True, points=2) for n in range(10)]
    others = [record(f"112A{n}", "c" if n < general_right else "a") for n in range(9)]
    others.append(record("112A9", "c", points=0, withdrawn=True))
    return [r | {"forbidden": ["c", "a"] if i < forbidden else []} for i, r in enumerate([*essential, *others])]


RULES = ExamRules(pass_points=6, possible_points=9, essential_ratio=0.8, max_forbidden=3)


@pytest.mark.parametrize(
    ("counts", "passed"),
    [((8, 6, 3), True), ((7, 9, 0), False), ((10, 5, 0), False), ((10, 9, 4), False), ((10, 9, 0), True)],
)
def test_all_rules_must_be_kept(counts: tuple[int, int, int], passed: bool) -> None:
    verdict = judge(whole_exam(*counts), "sum", RULES)
    assert verdict["passed"] is passed
    essential = {"points": 2 * counts[0], "possible": 20, "needed": 16, "passed": counts[0] >= 8}
    assert verdict["rules"]["essential"] == essential
    assert verdict["rules"]["general"] == {"points": counts[1], "possible": 9, "needed": 6, "passed": counts[1] >= 6}
    assert verdict["rules"]["forbidden"] == {"picked": counts[2], "allowed": 3, "passed": counts[2] <= 3}


def test_no_verdict_where_not_the_whole_exam_was_asked_or_no_line_is_known() -> None:
    records = whole_exam(10, 9)
    assert judge(records[:-4], "sum", RULES)["passed"] is None
    assert judge(records, "sum", ExamRules(essential_ratio=0.8, max_forbidden=3))["passed"] is None
    assert judge(whole_exam(2, 9), "sum", ExamRules(essential_ratio=0.8))["passed"] is False
    assert judge(records, "sum", ExamRules(pass_ratio=0.6))["rules"]["general"]["possible"] == 29
    unanswered = [r | {"not_scored": "asks for a number"} if r["id"] == "112A0" else r for r in whole_exam(10, 6)]
    assert judge(unanswered, "sum", RULES)["rules"]["general"]["points"] == 5  # an empty line gives no points
    void = record("112A10", "c", num_to_pick=1, not_scored="withdrawn: there is no right answer") | {"answers": []}
    assert judge([*whole_exam(10, 6), void], "sum", RULES)["passed"] is True


def test_mcnemar_is_the_binomial_test() -> None:
    assert mcnemar_p(0, 0) == 1 and mcnemar_p(3, 3) == 1
    assert mcnemar_p(5, 0) == mcnemar_p(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_p(9, 1) == pytest.approx(2 * 11 / 1024)
    scipy_stats = pytest.importorskip("scipy.stats")
    for pair in ((12, 5), (101, 140), (1, 0), (400, 300)):
        assert mcnemar_p(*pair) == pytest.approx(scipy_stats.binomtest(pair[0], sum(pair)).pvalue, rel=1e-9)


def test_bootstrap_agrees_with_the_normal_approximation() -> None:
    low, high = bootstrap_interval([1] * 600 + [0] * 400, [1] * 1000)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 1000)
    assert (low, high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.004)
    assert bootstrap_interval([], []) == [0.0, 1.0] and bootstrap_interval([2, 2], [2, 2]) == [1.0, 1.0]
    weighted = bootstrap_interval([3] * 50 + [0] * 50, [3] * 50 + [1] * 50)  # 75 % of the points, 50 % of the questions
    assert weighted[0] < 0.75 < weighted[1] and weighted != bootstrap_interval([1] * 75 + [0] * 25, [1] * 100)
    # Paired: two models that are right on the same questions differ by nothing, however few they are.
    assert bootstrap_difference([1, 0, 1, 0], [1, 0, 1, 0]) == [0, 0]
    low, high = bootstrap_difference([1] * 30 + [0] * 70, [0] * 100)
    assert 0.2 < low < 0.3 < high < 0.4


def test_comparison_with_a_base_model_is_paired() -> None:
    ours = [record(f"112A{n}", "c" if n < 14 else "a") for n in range(20)]
    base = [record(f"112A{n}", "c" if 4 <= n < 8 else "a") for n in range(20)]
    scores = {"model": {"name": "base"}, "questions": list(reversed(base))} | score_records(base, METHODS)
    compared = compare_records(ours, scores, METHODS, "base.json")
    assert compared["model"] == "base" and compared["num_questions"] == 20
    assert (compared["sum"]["num_gained"], compared["sum"]["num_lost"], compared["sum"]["difference"]) == (10, 0, 0.5)
    assert compared["sum"]["p_value"] == mcnemar_p(10, 0) and compared["sum"]["interval_low"] > 0
    with pytest.raises(ExamError, match=r"base\.json: holds 20 questions that are not the 19 asked here"):
        compare_records(ours[:-1], scores, METHODS, "base.json")
    with pytest.raises(ExamError, match="was scored by sum, per_token, not by generated"):
        compare_records(ours, scores, ("generated",), "base.json")
    head = {"format_version": 2, "exam": "igakuqa", "model": {"name": "tiny/hf"}, "against": compared}
    text = scores_as_text(head | score_records(ours, METHODS))
    assert "+50.0%" in text and "10 gained, 0 lost" in text


def test_written_answers_report_their_form() -> None:
    written = [record(f"112A{n}", "", is_compliant=n < 2, text="") for n in range(4)]
    written = [r | {"picked": {"generated": ["c"] if n < 3 else []}} for n, r in enumerate(written)]
    number = record("112A9", "", type="numeric", num_choices=0, num_to_pick=0, is_compliant=True, text="")
    written.append(number | {"answers": [["26"]], "picked": {"generated": ["26"]}})
    scores = score_records(written, ("generated",))
    counts = {name: scores["format"][name] for name in ("num_written", "num_compliant", "num_read", "compliance")}
    assert counts == {"num_written": 5, "num_compliant": 3, "num_read": 4, "compliance": 0.6}
    assert scores["accuracy"]["generated"]["num_correct"] == 4
    assert scores["by_type"]["numeric"]["generated"]["chance"] == 0
    text = scores_as_text({"exam": "e", "model": {"name": "m"}} | scores)
    assert "readable: 4 of 5 written answers; in the form asked for: 3 (60.0%)" in text
