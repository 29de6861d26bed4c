"""Which mixture should be tried next, and how much better may it be: or can the runs not tell mixtures apart?

In: the shares of the runs and their scores on one target. Out: the fit of a mixture model, its prediction for runs left out, and a
proposal with an interval that is honest about having been searched for.
Invariant: a gain is claimed only if it holds for the best of all candidates at once.

The model is linear in the shares, score = sum_g b_g share_g + noise, by least squares. Its interval for one mixture is
Student's. But the proposal is the best of hundreds of candidates, and the best of many looks better than it is; so its interval
is Scheffe's, which holds for all mixtures simultaneously: half width sqrt(p F(p, n - p)) standard errors (p - 1 for the gain
over the base mixture, whose constant drops out). "Distinguishable" means that the simultaneous interval of the gain lies above
zero.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from megatron_jmed.corpus.blend import solve_blend
from megatron_jmed.corpus.blend_plan import Plan, load_sources
from megatron_jmed.evaluate.mixture_design import feasible_points, with_shares
from megatron_jmed.evaluate.mixture_runs import StudyRun, lower_is_better

CONFIDENCE = 0.95
_STEPS = 20
_SHOWN = 200


@dataclass(frozen=True)
class ShareFit:
    """score = coefficients . shares; `cover` is (X'X)^-1, `noise` the residual standard deviation on `freedom` degrees."""

    coefficients: np.ndarray
    cover: np.ndarray
    noise: float
    freedom: int
    f_p: float  # of any difference between groups at all

    def contrast(self, change: np.ndarray, is_simultaneous: bool = False) -> tuple[float, float]:
        """(change in the score, half its interval) for a change of shares, which adds up to 0, or a mixture, which adds up to 1."""
        num = len(self.coefficients) - (abs(change.sum()) < 1e-9)
        factor = (math.sqrt(num * stats.f.ppf(CONFIDENCE, num, self.freedom)) if is_simultaneous else
                  stats.t.ppf(0.5 + CONFIDENCE / 2, self.freedom))
        return float(self.coefficients @ change), float(factor * self._error(change))

    def contrast_p(self, change: np.ndarray) -> float:
        """Student's two-sided p of no change."""
        error = self._error(change)
        return float(2 * stats.t.sf(abs(self.coefficients @ change) / error, self.freedom)) if error > 0 else 0.0

    def _error(self, change: np.ndarray) -> float:
        return self.noise * math.sqrt(max(0.0, float(change @ self.cover @ change)))


def fit_shares(shares: np.ndarray, scores: np.ndarray) -> ShareFit | None:
    """Least squares of `scores` [R] on `shares` [R, G]; None where the runs do not determine it."""
    num_runs, num_groups = shares.shape
    freedom = num_runs - num_groups
    if freedom < 1 or np.linalg.matrix_rank(shares, tol=1e-6) < num_groups:
        return None
    coefficients = np.linalg.lstsq(shares, scores, rcond=None)[0]
    rest = float(np.sum((scores - shares @ coefficients) ** 2))
    explained = float(np.sum((scores - scores.mean()) ** 2)) - rest
    if rest <= 0:
        f_p = 0.0 if explained > 0 else 1.0
    else:
        f_p = float(stats.f.sf(max(0.0, explained) / (num_groups - 1) / (rest / freedom), num_groups - 1, freedom))
    return ShareFit(coefficients, np.linalg.inv(shares.T @ shares), math.sqrt(max(0.0, rest) / freedom), freedom, f_p)


def left_out(shares: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """What ridge regression on all other runs foretells of each run [R]; its penalty is chosen among the others, too."""
    predictions = np.empty(len(scores))
    for run in range(len(scores)):
        others = np.arange(len(scores)) != run
        penalty = _penalty(shares[others], scores[others])
        predictions[run] = _ridge(shares[others], scores[others], shares[run : run + 1], penalty)[0]
    return predictions


_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def _penalty(shares: np.ndarray, scores: np.ndarray) -> float:
    """The penalty with the least error of leaving one out (by the hat matrix, without refitting)."""
    x, y = shares - shares.mean(0), scores - scores.mean()
    errors = []
    for penalty in _PENALTIES:
        hat = x @ np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T) + 1 / len(y)
        errors.append(float(np.sum(((y - (hat - 1 / len(y)) @ y) / (1 - np.diag(hat))) ** 2)))
    return _PENALTIES[int(np.argmin(errors))]


def _ridge(shares: np.ndarray, scores: np.ndarray, asked: np.ndarray, penalty: float) -> np.ndarray:
    middle = shares.mean(0)
    x = shares - middle
    slopes = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (scores - scores.mean()))
    return scores.mean() + (asked - middle) @ slopes


def propose(target: str, groups: Sequence[str], shares: np.ndarray, scores: np.ndarray, mixtures: Sequence[StudyRun],
            candidates: np.ndarray) -> dict[str, Any]:
    """The best of the candidates [C, G], against the base mixture (without one: the mean of the runs)."""
    fit, is_lower = fit_shares(shares, scores), lower_is_better(target)
    base = np.mean([row for row, run in zip(shares, mixtures, strict=True) if run.is_base] or shares, axis=0)
    if fit is None:
        text = (f"The runs cannot tell mixtures apart: {len(shares)} different mixtures do not determine the effects of "
                f"{len(groups)} groups.")
        return {"target": target, "is_distinguishable": False, "shares": None, "base_shares": _named(groups, base), "text": text,
                "candidates": []}
    sign = -1 if is_lower else 1
    best = candidates[int(np.argmax(sign * (candidates @ fit.coefficients)))]
    predicted, half = fit.contrast(best, is_simultaneous=True)
    gain, gain_half = fit.contrast(best - base, is_simultaneous=True) if np.abs(best - base).max() > 1e-9 else (0.0, 0.0)
    gain *= sign
    answer = {
        "target": target, "is_distinguishable": bool(gain - gain_half > 0), "shares": _named(groups, best),
        "predicted": predicted, "low": predicted - half, "high": predicted + half,
        "base_shares": _named(groups, base), "base_predicted": float(base @ fit.coefficients),
        "gain": gain, "gain_low": gain - gain_half, "gain_high": gain + gain_half,
        "candidates": [{"shares": _named(groups, point), "predicted": float(point @ fit.coefficients)}
                       for point in candidates[:: max(1, len(candidates) // _SHOWN)]],
    }
    return answer | {"text": _sentence(answer, len(shares))}


def _named(groups: Sequence[str], shares: np.ndarray) -> dict[str, float]:
    return {group: float(share) for group, share in zip(groups, shares, strict=True)}


def candidate_mixtures(groups: Sequence[str], shares: np.ndarray, plan: Plan | None) -> np.ndarray:
    """What the plan can read, within the runs' range of each share: the model knows nothing beyond it. Without a plan, mixtures of
    the runs."""
    if plan is None:
        random = np.random.default_rng(1)
        points = random.dirichlet(np.ones(len(shares)), size=400) @ shares
        return np.vstack([shares, points])
    points = feasible_points(plan, load_sources(plan), tuple(groups), _STEPS)
    inside = ((points >= shares.min(0) - 1e-9) & (points <= shares.max(0) + 1e-9)).all(1)
    return points[inside] if inside.any() else shares


def proposed_epochs(plan: Plan, proposal: dict[str, Any]) -> dict[str, float]:
    """How often the proposal would read each source of the plan."""
    shares = proposal["shares"]
    blend = solve_blend(with_shares(plan, list(shares), list(shares.values())), load_sources(plan))
    return {each.source.name: float(each.epochs) for each in blend.sources}


def _sentence(answer: dict[str, Any], num_mixtures: int) -> str:
    mixture = ", ".join(f"{group} {share:.0%}" for group, share in answer["shares"].items())
    interval = f"{answer['gain_low']:+.4g} to {answer['gain_high']:+.4g}"
    if answer["is_distinguishable"]:
        return (f"Try {mixture}: {answer['target']} is predicted to be better by {answer['gain']:.4g} than with the base mixture "
                f"({interval} at 95 %, simultaneously for all mixtures that were searched).")
    return (f"These {num_mixtures} mixtures cannot tell the best from the base mixture: the best guess, {mixture}, differs in "
            f"{answer['target']} by {answer['gain']:.4g}, and anything from {interval} is compatible with the runs.")
