"""How sure is a score, and is one model better than another?

Pure functions of counts and points. Three tools:

* Wilson's interval of a proportion at 95 % (E. B. Wilson, JASA 22, 1927), which stays inside [0, 1] also for few questions:

      centre = (p + z^2 / 2n) / (1 + z^2 / n)      half = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)

* The bootstrap's percentile interval (Efron, 1979) where questions weigh differently (points), or two models are compared:
  questions are drawn anew with replacement, with a fixed seed.
* McNemar's exact test for two models on the same questions: of the questions that only one of them got right, how likely is a
  split as uneven as this, or more, if either were as likely? Twice the tail of the binomial with p = 1/2, at most 1.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054
NUM_DRAWS = 2000
SEED = 20260101


def wilson_interval(num_correct: int, num_questions: int) -> tuple[float, float]:
    """The 95 % interval of a proportion; (0, 1), which says nothing, for no questions."""
    if num_questions == 0:
        return 0.0, 1.0
    p, shrink = num_correct / num_questions, Z_95**2 / num_questions
    centre = (p + shrink / 2) / (1 + shrink)
    half = Z_95 / (1 + shrink) * math.sqrt(p * (1 - p) / num_questions + shrink / (4 * num_questions))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(gained: Sequence[float], possible: Sequence[float]) -> list[float]:
    """The 95 % interval of sum(gained) / sum(possible) over questions drawn anew; (0, 1) where nothing could be gained."""
    if not sum(possible):
        return [0.0, 1.0]
    tops, bottoms = _resampled(gained), _resampled(possible)
    return _middle_95(tops[bottoms > 0] / bottoms[bottoms > 0])


def bootstrap_difference(gained: Sequence[float], other: Sequence[float]) -> list[float]:
    """The 95 % interval of mean(gained) - mean(other) over questions drawn anew; both lists in the order of the same questions."""
    differences = np.asarray(gained, float) - np.asarray(other, float)
    return _middle_95(_resampled(differences) / max(1, len(differences)))


def mcnemar_p(num_only_first: int, num_only_second: int) -> float:
    """Two-sided exact p-value; 1 where the models never differ."""
    total, fewer = num_only_first + num_only_second, min(num_only_first, num_only_second)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**total)


def _resampled(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over `NUM_DRAWS` draws of as many questions as there are; equal lengths are drawn alike."""
    numbers = np.asarray(values, float)
    picked = np.random.default_rng(SEED).integers(len(numbers), size=(NUM_DRAWS, len(numbers)), dtype=np.int32)
    return numbers[picked].sum(axis=1)


def _middle_95(values: NDArray[np.float64]) -> list[float]:
    return np.quantile(values, [0.025, 0.975]).tolist()
