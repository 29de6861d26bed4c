"""The study's numbers are those of textbooks and of scipy; effects that are there are found, and noise is not called one."""

import math

import numpy as np
import pytest
from scipy import stats

from megatron_jmed.corpus.blend_plan import Plan
from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.mixture_proposal import candidate_mixtures, fit_shares, left_out
from megatron_jmed.evaluate.mixture_runs import StudyRun
from megatron_jmed.evaluate.mixture_statistics import (
    analyze,
    correlations,
    fisher_interval,
    mean_of_repeats,
    permutation_p,
    share_effects,
    smallest_visible_r,
)

GROUPS = ("en", "ja", "ja+mt")
TRUTH = np.array([0.50, 0.60, 0.54])
TARGET, LOSS = "exam invented", "valid loss a"
POINTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [.5, .5, 0], [.5, 0, .5], [0, .5, .5], [.6, .2, .2], [.2, .6, .2], [.2, .2, .6],
                   [.4, .4, .2], [.3, .3, .4], [.8, .1, .1]], dtype=float)
PLAN = Plan.model_validate({"total_tokens": 1000, "sources": [
    {"name": name, "path": f"no/such/{name}", "num_tokens": 1000, "lang": lang, "origin": origin, "domain": domain}
    for name, lang, origin, domain in (("a", "en", "original", "medical"), ("b", "ja", "original", "general"),
                                       ("c", "ja", "machine_translated", "medical"))]})


def study(noise: float = 0.004, effect: float = 1.0, seed: int = 0, items: int = 0) -> list[StudyRun]:
    random = np.random.default_rng(seed)
    middle = TRUTH.mean()
    runs = []
    for number, point in enumerate([*POINTS, *[[1 / 3] * 3] * 3]):
        score = float(middle + effect * (np.array(point) @ TRUTH - middle) + noise * random.normal())
        answers = {f"q{item}": bool(random.random() < score + (0.3 if item % 2 else -0.3)) for item in range(items)}
        features = {"share ja": float(point[1]), "noise": float(random.normal()), "constant": 1.0, "unique tokens": 900.0 + number}
        runs.append(StudyRun(
            name=f"run_{number}", seed=max(1, number - 10), is_base=number >= len(POINTS), tokens_read=1000,
            shares=dict(zip(GROUPS, map(float, point), strict=True)), features=features,
            scores={TARGET: score, LOSS: 5 - score, "valid loss b": 4 + score}, items={"invented": answers} if items else {}))
    return runs


# ---- parts


def test_permutation_p_is_scipys():
    random = np.random.default_rng(3)
    for size in (6, 12):
        x, y = random.normal(size=size), random.normal(size=size)
        theirs = stats.permutation_test((y,), lambda z, x=x: np.abs(np.corrcoef(x, z)[0, 1]), permutation_type="pairings",
                                        alternative="greater", n_resamples=9999, rng=np.random.default_rng(4)).pvalue
        assert permutation_p(x, y) == pytest.approx(theirs, abs=1e-12 if size == 6 else 0.02)


@pytest.mark.parametrize(("r", "num", "low", "high"), [
    (0.5, 12, -0.1043, 0.8349), (0.0, 28, -0.3731, 0.3731), (-0.9, 10, -0.9763, -0.6239)])
def test_fishers_interval_is_the_textbooks(r, num, low, high):
    assert fisher_interval(r, num) == pytest.approx((low, high), abs=2e-3)
    theirs = stats.pearsonr(*_with_correlation(r, num)).confidence_interval(0.95)
    assert fisher_interval(r, num) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def _with_correlation(r: float, num: int) -> tuple[np.ndarray, np.ndarray]:
    """A sample whose correlation is exactly r."""
    x, rest = np.random.default_rng(0).normal(size=(2, num))
    x = (x - x.mean()) / np.linalg.norm(x - x.mean())
    rest = rest - rest.mean() - x * (x @ (rest - rest.mean()))
    return x, r * x + math.sqrt(1 - r * r) * rest / np.linalg.norm(rest)


def test_the_smallest_visible_correlation_falls_with_the_runs():
    assert smallest_visible_r(12) == pytest.approx(0.73, abs=0.01)
    assert smallest_visible_r(30) == pytest.approx(0.49, abs=0.01)
    assert smallest_visible_r(3) == 1.0


def test_a_feature_that_only_follows_another_has_no_partial_correlation():
    random = np.random.default_rng(0)
    unique = random.normal(size=200)
    features = {"follower": unique + 0.1 * random.normal(size=200), "unique tokens": unique}
    row = correlations(features, {TARGET: unique + 0.1 * random.normal(size=200)}, permutations=99, bootstraps=0)[0]
    assert row["pearson"] > 0.95 and abs(row["partial"]) < 0.2


def test_runs_of_one_mixture_count_once():
    runs = study()
    mixtures = mean_of_repeats(runs)
    assert len(runs) == 15 and len(mixtures) == 13
    base = next(run for run in mixtures if run.is_base)
    assert base.scores[TARGET] == pytest.approx(np.mean([run.scores[TARGET] for run in runs if run.is_base]))


def test_effects_without_noise_are_exact():
    effects = share_effects(TARGET, POINTS @ TRUTH, GROUPS, POINTS)
    means = POINTS.mean(0)
    for place, row in enumerate(effects):
        others = [other for other in range(3) if other != place]
        assert row["effect"] == pytest.approx(0.1 * (TRUTH[place] - TRUTH[others] @ means[others] / means[others].sum()))
        assert row["low"] == pytest.approx(row["effect"], abs=1e-9)


def test_a_left_out_run_is_foretold_where_shares_tell_and_not_where_they_do_not():
    scores = POINTS @ TRUTH
    assert left_out(POINTS, scores) == pytest.approx(scores, abs=1e-3)
    noise = np.random.default_rng(1).normal(size=len(POINTS))
    assert np.sum((noise - left_out(POINTS, noise)) ** 2) > 0.7 * np.sum((noise - noise.mean()) ** 2)


def test_too_few_mixtures_determine_nothing():
    assert fit_shares(POINTS[:3], (POINTS @ TRUTH)[:3]) is None and fit_shares(POINTS[3:4].repeat(5, 0), np.arange(5.0)) is None


# ---- the whole


def test_a_known_effect_is_found_and_the_right_mixture_proposed():
    answer = analyze(study(), TARGET, None, PLAN)
    found = {(row["feature"], row["target"]): row for row in answer["correlations"]}
    ja = found["share ja", TARGET]
    assert ja["is_significant"] and ja["low"] > 0 and found["log-ratio of ja", TARGET]["pearson"] > 0.5
    assert not found["noise", TARGET]["is_significant"] and ("constant", TARGET) not in found
    effects = {row["group"]: row for row in answer["effects"] if row["target"] == TARGET}
    assert effects["ja"]["low"] > 0 > effects["en"]["high"]
    proposal = answer["proposal"]
    assert proposal["is_distinguishable"] and proposal["shares"]["ja"] == pytest.approx(1) and proposal["gain_low"] > 0
    assert proposal["text"].startswith("Try en 0%, ja 100%, ja+mt 0%: exam invented is predicted to be better by")
    assert proposal["epochs"]["b"] == pytest.approx(1 / 0.99, rel=1e-3)
    fit = next(fit for fit in answer["fits"] if fit["target"] == TARGET)
    assert fit["r2_left_out"] > 0.8 and fit["f_p"] < 1e-3 and 0 < fit["noise"] < 0.02
    assert answer["power"]["num_runs"] == 13 and answer["groups"] == list(GROUPS)


def test_of_a_loss_the_lowest_is_proposed():
    proposal = analyze(study(), LOSS, None, PLAN)["proposal"]
    assert proposal["shares"]["ja"] == pytest.approx(1) and proposal["gain"] > 0


def test_where_nothing_is_there_nothing_is_claimed():
    answers = [analyze(study(noise=0.02, effect=0.0, seed=seed), TARGET, None, PLAN) for seed in range(4)]
    claims = [any(row["is_significant"] for row in answer["correlations"]) for answer in answers]
    better = [answer["proposal"]["is_distinguishable"] for answer in answers]
    assert sum(claims) <= 1 and sum(better) <= 1  # one in twenty is allowed; benchmarks/mixture.md counts 500
    for answer, is_better in zip(answers, better, strict=True):
        assert is_better or "cannot tell the best from the base mixture" in answer["proposal"]["text"]


def test_the_ledger_sets_the_gain_in_medicine_against_the_loss_elsewhere():
    rows = {row["run"]: row for row in analyze(study(noise=0), TARGET, None, PLAN)["forgetting"]}
    assert rows["run_1"]["medical_gain"] == pytest.approx(0.6 - TRUTH.mean()) and rows["run_1"]["general_loss"] == pytest.approx(
        0.6 - TRUTH.mean())
    assert rows["run_13"] == {"run": "run_13", "medical_gain": pytest.approx(0), "general_loss": pytest.approx(0)}


def test_a_proposal_stays_within_what_was_tried():
    narrow = POINTS[6:]
    points = candidate_mixtures(GROUPS, narrow, PLAN)
    assert len(points) > 10 and (points >= narrow.min(0) - 1e-9).all() and (points <= narrow.max(0) + 1e-9).all()


def test_single_answers_are_fitted_with_runs_and_questions_as_random_effects():
    pytest.importorskip("statsmodels", reason="statsmodels is not installed; pip install 'megatron_jmed[study]'")
    fitted = analyze(study(items=40), TARGET, None, PLAN)["mixed_model"]
    terms = {term["name"]: term for term in fitted["terms"]}
    assert set(terms) == set(GROUPS) and fitted["sd_item"] > 0.2 and fitted["sd_run"] < 0.1
    for group, truth in zip(GROUPS, TRUTH, strict=True):
        assert terms[group]["low"] < truth < terms[group]["high"]


def test_the_same_runs_give_the_same_numbers():
    assert repr(analyze(study(), TARGET, None, PLAN)) == repr(analyze(study(), TARGET, None, PLAN))


@pytest.mark.parametrize(("runs", "target", "complaint"), [
    (study(), "exam other", "--target 'exam other': not every run has it; all runs have: exam invented, valid loss a"),
    (study()[:4], TARGET, "4 different mixtures are too few"),
    ([*study(), study()[0]], TARGET, "two runs are called 'run_0'"),
])
def test_studies_that_say_nothing_are_refused(runs, target, complaint):
    with pytest.raises(ExamError, match=complaint.split("(")[0]):
        analyze(runs, target)
