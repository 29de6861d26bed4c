"""What do the runs of a mixture study say about language and origin of text, and how sure can ten to thirty runs be?

In: the runs (what each read, how it scored). Out: the analysis as plain values: correlations with intervals and honest
p-values, effects of shares, how well a left-out run is foretold, a proposal (mixture_proposal.py), forgetting.
Invariant: the same runs give the same numbers; nothing is called significant that the number of comparisons does not allow.

Correlations. Pearson's r with Fisher's interval (tanh(atanh r -+ z / sqrt(n - 3))), Spearman's rho, a permutation p-value of
|r| (all orders where there are few, else 9,999 seeded ones), and Benjamini and Hochberg's q over all pairs of a feature and a
target. The bootstrap interval beside it (BCa over runs) is shown because readers ask for it; with a dozen runs it is a
little short where correlations are strong (benchmarks/mixture.md), Fisher's is not. Runs of the base mixture
with other seeds are one observation, their mean: as several they would count one mixture many times.

Shares are compositional: they add up to 1, so where one rises another must fall, and correlations between them are negative
without any cause (Pearson 1897; Aitchison 1986). Two ways out are used. The correlation of a share is also given as that of its
centred log-ratio ("log-ratio of ja": log share minus the mean log share). And effects are those of a mixture model, score =
sum_g b_g share_g (Scheffe 1958), asked as: what does a tenth more of this group change, taken from the others in proportion?

Partial correlations hold the total of unique tokens fixed where the runs have that feature. Collinearity is said by variance
inflation.
"""

import itertools
import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy import stats

from megatron_jmed.corpus.blend_plan import Plan
from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.mixture_proposal import candidate_mixtures, fit_shares, left_out, propose, proposed_epochs
from megatron_jmed.evaluate.mixture_runs import StudyRun

ALPHA, POWER = 0.05, 0.8
LEAST_RUNS = 5
LEAST_SHARE = 0.005  # a share of nothing counts as half a percent in a logarithm
PERMUTATIONS, BOOTSTRAPS = 9_999, 999
HELD_FIXED = "unique tokens"


def analyze(runs: Sequence[StudyRun], target: str, design: dict[str, Any] | None = None,
            plan: Plan | None = None) -> dict[str, Any]:
    """Everything the page shows; ExamError where the runs are too few, or do not have the target."""
    check_runs(runs, target)
    mixtures = mean_of_repeats(runs)
    groups = sorted({group for run in runs for group in run.shares})
    shares = np.array([[run.shares.get(group, 0.0) for group in groups] for run in mixtures])
    features = {**_features(mixtures), **_log_ratios(groups, shares)}
    targets = {name: np.array([run.scores[name] for run in mixtures]) for name in _common(mixtures)}
    proposal = propose(target, groups, shares, targets[target], mixtures, candidate_mixtures(groups, shares, plan))
    if plan and proposal["shares"]:
        proposal["epochs"] = proposed_epochs(plan, proposal)
    fits = [_fit(name, scores, shares, mixtures, runs) for name, scores in targets.items()]
    return {
        "runs": [asdict(run) for run in runs],
        "groups": groups, "features": list(features), "targets": list(targets), "target": target, "design": design,
        "correlations": correlations(features, targets),
        "power": {"num_runs": len(mixtures), "smallest_r": smallest_visible_r(len(mixtures)), "power": POWER, "alpha": ALPHA},
        "collinearity": collinearity(features), "feature_correlations": _matrix(features),
        "effects": [effect for name, scores in targets.items() for effect in share_effects(name, scores, groups, shares)],
        "fits": fits, "mixed_model": mixed_model(runs, groups),
        "proposal": proposal,
        "forgetting": forgetting(runs, plan), "scaling": [],
    }


def check_runs(runs: Sequence[StudyRun], target: str) -> None:
    """ExamError with what is wrong."""
    if target not in _common(runs):
        there = ", ".join(_common(runs)) or "nothing in common"
        raise ExamError(f"--target {target!r}: not every run has it; all runs have: {there}")
    mixtures = mean_of_repeats(runs)
    if len(mixtures) < LEAST_RUNS:
        raise ExamError(f"{len(mixtures)} different mixtures are too few for any statistic; make at least {LEAST_RUNS}")
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ExamError(f"two runs are called {twice[0]!r}; give every run its own name")


def _common(runs: Sequence[StudyRun]) -> list[str]:
    """The targets that every run has, in the order of the first."""
    return [name for name in runs[0].scores if all(name in run.scores for run in runs)] if runs else []


def mean_of_repeats(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """One run a mixture: runs that read the same shares (to 0.1 %) with other seeds are averaged."""
    together: dict[tuple, list[StudyRun]] = defaultdict(list)
    for run in runs:
        together[tuple(sorted((group, round(share, 3)) for group, share in run.shares.items() if share >= 0.0005))].append(run)
    return [repeats[0] if len(repeats) == 1 else _mean_run(repeats) for repeats in together.values()]


def _mean_run(repeats: list[StudyRun]) -> StudyRun:
    first = repeats[0]

    def means(dictionaries: list[dict[str, float]]) -> dict[str, float]:
        return {name: float(np.mean([each[name] for each in dictionaries])) for name in dictionaries[0]
                if all(name in each for each in dictionaries)}

    return StudyRun(name=" and ".join(run.name for run in repeats), seed=first.seed, is_base=first.is_base,
                    tokens_read=first.tokens_read, shares=first.shares, features=means([run.features for run in repeats]),
                    scores=means([run.scores for run in repeats]), items={})


# ---- correlations


def _features(mixtures: Sequence[StudyRun]) -> dict[str, np.ndarray]:
    """Features that every mixture has and that are not the same in all."""
    names = [name for name in mixtures[0].features if all(name in run.features for run in mixtures)]
    columns = {name: np.array([run.features[name] for run in mixtures], dtype=float) for name in names}
    return {name: values for name, values in columns.items() if np.ptp(values) > 1e-9 * max(1.0, float(np.abs(values).max()))}


def _log_ratios(groups: Sequence[str], shares: np.ndarray) -> dict[str, np.ndarray]:
    """The centred log-ratio of each group; with two groups one says all."""
    logs = np.log(np.maximum(shares, LEAST_SHARE))
    centred = logs - logs.mean(1, keepdims=True)
    return {f"log-ratio of {group}": centred[:, place] for place, group in enumerate(groups[: 1 if len(groups) == 2 else None])
            if np.ptp(centred[:, place]) > 1e-9}


def correlations(features: dict[str, np.ndarray], targets: dict[str, np.ndarray], permutations: int = PERMUTATIONS,
                 bootstraps: int = BOOTSTRAPS) -> list[dict[str, Any]]:
    """A row for each feature and target that varies; `q` is over all rows."""
    rows = []
    for (feature, x), (target, y) in itertools.product(features.items(), targets.items()):
        if np.ptp(y) == 0:
            continue
        r = float(np.corrcoef(x, y)[0, 1])
        low, high = fisher_interval(r, len(x))
        bootstrap_low, bootstrap_high = bootstrap_interval(x, y, bootstraps) if bootstraps else (math.nan, math.nan)
        rows.append({"feature": feature, "target": target, "num_runs": len(x), "pearson": r, "low": low, "high": high,
                     "spearman": float(stats.spearmanr(x, y).statistic), "p": permutation_p(x, y, permutations),
                     "bootstrap_low": bootstrap_low, "bootstrap_high": bootstrap_high,
                     "partial": _partial(x, y, features.get(HELD_FIXED)) if feature != HELD_FIXED else None})
    q_values = stats.false_discovery_control([row["p"] for row in rows]) if rows else []
    for row, q in zip(rows, q_values, strict=True):
        row["q"], row["is_significant"] = float(q), bool(q <= ALPHA)
    return rows


def fisher_interval(r: float, num: int, confidence: float = 1 - ALPHA) -> tuple[float, float]:
    """Of Pearson's r of `num` pairs; exact to order 1 / num for normal scores."""
    if num <= 3:
        return -1.0, 1.0
    middle, half = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, r))), stats.norm.ppf(0.5 + confidence / 2) / math.sqrt(num - 3)
    return math.tanh(middle - half), math.tanh(middle + half)


def permutation_p(x: np.ndarray, y: np.ndarray, permutations: int = PERMUTATIONS) -> float:
    """How often a random order of y has an |r| as large; the order found counts as one of them."""
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    found = abs(x @ y) - 1e-9
    if math.factorial(len(x)) <= permutations:
        orders = np.array(list(itertools.permutations(range(len(x)))))
        return float(np.mean(np.abs(y[orders] @ x) >= found))
    random = np.random.default_rng(1)
    orders = random.permuted(np.tile(np.arange(len(x)), (permutations, 1)), axis=1)
    return float((1 + np.sum(np.abs(y[orders] @ x) >= found)) / (1 + permutations))


def bootstrap_interval(x: np.ndarray, y: np.ndarray, resamples: int = BOOTSTRAPS) -> tuple[float, float]:
    """BCa over runs (Efron 1987); NaN where resamples do not vary."""
    with np.errstate(all="ignore"):
        answer = stats.bootstrap((x, y), lambda a, b: float(np.corrcoef(a, b)[0, 1]), paired=True, vectorized=False,
                                 n_resamples=resamples, rng=np.random.default_rng(1))
    return float(answer.confidence_interval.low), float(answer.confidence_interval.high)


def _partial(x: np.ndarray, y: np.ndarray, fixed: np.ndarray | None) -> float | None:
    """The correlation of what `fixed` does not explain of either, linearly."""
    if fixed is None or len(x) < LEAST_RUNS:
        return None
    basis = np.column_stack([np.ones_like(fixed), fixed])
    rests = [values - basis @ np.linalg.lstsq(basis, values, rcond=None)[0] for values in (x, y)]
    if min(np.linalg.norm(rest) / max(np.linalg.norm(values - values.mean()), 1e-300)
           for rest, values in zip(rests, (x, y), strict=True)) < 1e-6:
        return None
    return float(np.corrcoef(*rests)[0, 1])


def smallest_visible_r(num: int, power: float = POWER, alpha: float = ALPHA) -> float:
    """The |r| that a two-sided test of `num` runs finds with probability `power` (Fisher's approximation)."""
    if num <= 3:
        return 1.0
    return math.tanh((stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)) / math.sqrt(num - 3))


def collinearity(features: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Variance inflation of each feature by all others; None where they determine it, as shares do, or more features than runs."""
    columns = np.array([(values - values.mean()) / values.std() for values in features.values()]).T
    rows = []
    for place, name in enumerate(features):
        others = np.delete(columns, place, axis=1)
        rest = columns[:, place]
        if others.size:
            rest = rest - others @ np.linalg.lstsq(others, rest, rcond=None)[0]
        left = float(rest @ rest / len(rest))
        rows.append({"feature": name, "vif": 1 / left if left > 1e-9 else None})
    return rows


def _matrix(features: dict[str, np.ndarray]) -> list[list[float]]:
    return np.atleast_2d(np.corrcoef(np.array(list(features.values())))).tolist() if features else []


# ---- effects of shares


def share_effects(target: str, scores: np.ndarray, groups: Sequence[str], shares: np.ndarray) -> list[dict[str, Any]]:
    """By the linear mixture model: what 0.1 more of a group changes, taken from the others in proportion to their mean shares."""
    fit, rows = fit_shares(shares, scores), []
    if fit is None:
        return []
    means = shares.mean(0)
    for place, group in enumerate(groups):
        others = np.delete(np.arange(len(groups)), place)
        change = np.zeros(len(groups))
        change[place], change[others] = 0.1, -0.1 * means[others] / max(means[others].sum(), 1e-12)
        effect, half = fit.contrast(change)
        rows.append({"target": target, "group": group, "effect": effect, "low": effect - half, "high": effect + half,
                     "p": fit.contrast_p(change)})
    return rows


def _fit(target: str, scores: np.ndarray, shares: np.ndarray, mixtures: Sequence[StudyRun],
         runs: Sequence[StudyRun]) -> dict[str, Any]:
    predictions = left_out(shares, scores)
    spread = float(np.sum((scores - scores.mean()) ** 2))
    errors = scores - predictions
    repeats = [run.scores[target] for run in runs if run.is_base]
    fit = fit_shares(shares, scores)
    return {
        "target": target, "r2_left_out": float(1 - np.sum(errors**2) / spread) if spread else None,
        "rmse_left_out": float(np.sqrt(np.mean(errors**2))), "noise": float(np.std(repeats, ddof=1)) if len(repeats) > 1 else None,
        "f_p": fit.f_p if fit else None,
        "predictions": [{"run": run.name, "measured": float(y), "predicted": float(guess)}
                        for run, y, guess in zip(mixtures, scores, predictions, strict=True)],
    }


def mixed_model(runs: Sequence[StudyRun], groups: Sequence[str]) -> dict[str, Any] | None:
    """Answers to single questions by shares, with runs and questions as random effects (a linear probability model fitted by REML);
    None without item-level records, or without statsmodels.

    The intervals of the shares count runs, not answers: many questions do not make a run more than one run.
    """
    exams = sorted({exam for run in runs for exam in run.items})
    try:
        import pandas
        from statsmodels.regression.mixed_linear_model import MixedLM
    except ImportError:
        return None
    rows = []
    for run in runs:
        read = {group: run.shares.get(group, 0.0) for group in groups}
        rows += [{"run": run.name, "item": f"{exam} {item}", "right": float(right), **read}
                 for exam in exams for item, right in run.items.get(exam, {}).items()]
    table = pandas.DataFrame(rows)
    if not rows or table["right"].nunique() < 2 or table["run"].nunique() < LEAST_RUNS:
        return None
    model = MixedLM(table["right"], table[list(groups)], groups=np.ones(len(table)), exog_re=None,
                    exog_vc={"run": {1.0: _indicators(table["run"])}, "item": {1.0: _indicators(table["item"])}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance of nothing lies on its bound: that is an answer, shown as 0
        fitted = model.fit(reml=True, method="lbfgs")
    half = stats.t.ppf(1 - ALPHA / 2, max(1, table["run"].nunique() - len(groups))) * fitted.bse_fe
    terms = [{"name": group, "effect": float(fitted.fe_params[group]), "low": float(fitted.fe_params[group] - half[group]),
              "high": float(fitted.fe_params[group] + half[group])} for group in groups]
    variances = dict(zip(model.exog_vc.names, fitted.vcomp, strict=True))
    return {"target": f"a right answer in {', '.join(exams)}", "terms": terms, "sd_run": float(math.sqrt(variances["run"])),
            "sd_item": float(math.sqrt(variances["item"]))}


def _indicators(labels) -> np.ndarray:
    names = sorted(set(labels))
    return np.array([[float(label == name) for name in names] for label in labels])


# ---- forgetting


def forgetting(runs: Sequence[StudyRun], plan: Plan | None) -> list[dict[str, Any]]:
    """A row for each run: by how much the mean validation loss of medical sources fell, and of general ones rose, against the base
    runs. Empty without base runs, or where the plan names no general source."""
    bases = [run for run in runs if run.is_base]
    domains = {f"valid loss {source.name}": source.domain for source in plan.sources} if plan else {}
    names = [name for name in _common(runs) if name in domains]
    general = [name for name in names if domains[name] == plan.general_domain]
    medical = [name for name in names if name not in general]
    if not bases or not general or not medical:
        return []

    def mean_loss(run: StudyRun, which: list[str]) -> float:
        return float(np.mean([run.scores[name] for name in which]))

    base_medical, base_general = (float(np.mean([mean_loss(run, which) for run in bases])) for which in (medical, general))
    return [{"run": run.name, "medical_gain": base_medical - mean_loss(run, medical),
             "general_loss": mean_loss(run, general) - base_general} for run in runs]
