"""Which mixtures are worth a run each, when ten to thirty runs are all there is?

In: a blend plan (sources with language and origin, token budget, epoch caps) and a number of runs. Out: that many mixtures, each
one that the planner can read, and what they cover; the plan's own blend again with other seeds, so that chance is measured.
Invariant: the same plan, method and seed give the same design.

A mixture is a point of the simplex: its shares g by group (language and origin) are positive and add up to 1. Candidates are the
points of the lattice {q, m} (shares in m-ths; Scheffe 1958) that the planner finds feasible. From them are chosen

    maximin     one after the other, the one farthest from those chosen (space-filling; makes no assumption)
    d-optimal   those that maximise det(X'X) for the mixture model  score = sum_g b_g g + sum_{g<h} b_gh g h  (Scheffe's quadratic;
                linear where the runs are too few for it), by exchange (Fedorov 1972)
    lattice     the coarsest lattice with at least so many feasible points; what is too much is left out by maximin

What a design covers is said by the largest hole (distance from a feasible mixture to the nearest run, of the distance between two
pure mixtures), the D-efficiency, and the correlations between shares: they add up to 1, so some are always negative.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from megatron_jmed.corpus.blend import Blend, is_feasible, solve_blend
from megatron_jmed.corpus.blend_plan import Plan, Source
from megatron_jmed.errors import CorpusError

Method = Literal["maximin", "d-optimal", "lattice"]
_MOST_CANDIDATES = 600
_EXCHANGES = 20


@dataclass(frozen=True)
class DesignedRun:
    """One run to be made."""

    name: str
    seed: int
    is_base: bool
    shares: dict[str, float]
    blend: Blend


@dataclass(frozen=True)
class Design:
    """The runs and what they cover."""

    groups: tuple[str, ...]
    method: Method
    runs: tuple[DesignedRun, ...]
    coverage: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """What design.json holds."""
        runs = [{"name": run.name, "seed": run.seed, "is_base": run.is_base, "shares": run.shares,
                 "epochs": {s.source.name: s.epochs for s in run.blend.sources}} for run in self.runs]
        return {"groups": list(self.groups), "method": self.method, "coverage": self.coverage, "runs": runs}


def design_runs(plan: Plan, sources: list[Source], num_mixtures: int, base_seeds: Sequence[int], method: Method = "maximin",
                steps: int = 20) -> Design:
    """`num_mixtures` mixtures of the plan, and the plan's own blend once for each of `base_seeds`; CorpusError if there are not as
    many feasible ones, or only one group."""
    groups = tuple(sorted({group for source in sources for group in source.groups}))
    if len(groups) < 2:
        raise CorpusError(f"the plan's sources are all of one group, {groups[0]!r}: there is nothing to mix; add a language, "
                          "or text of another origin")
    base = solve_blend(plan, sources)
    points, chosen = choose_mixtures(plan, sources, groups, num_mixtures, method, steps)
    width = len(str(len(chosen)))
    blends = [solve_blend(with_shares(plan, groups, point), sources) for point in chosen]
    repeats = [sum(bool((other == point).all()) for other in chosen[:number]) for number, point in enumerate(chosen)]
    # the same mixture with the same seed would be the same run to the bit
    runs = [DesignedRun(f"mix_{number:0{width}d}", 1 + again, False, _shares(blend, groups), blend)
            for number, (blend, again) in enumerate(zip(blends, repeats, strict=True), 1)]
    runs += [DesignedRun(f"base_seed_{seed}", seed, True, _shares(base, groups), base) for seed in base_seeds]
    return Design(groups, method, tuple(runs), _coverage(groups, points, np.array([list(run.shares.values()) for run in runs])))


def choose_mixtures(plan: Plan, sources: list[Source], groups: tuple[str, ...], number: int, method: Method,
                    steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(all feasible candidates [C, G], the chosen ones [number, G])."""
    if method == "lattice":
        lattices = (feasible_points(plan, sources, groups, coarse) for coarse in range(1, steps))
        points = next((lattice for lattice in lattices if len(lattice) >= number), None)
        points = feasible_points(plan, sources, groups, steps) if points is None else points
    else:
        points = feasible_points(plan, sources, groups, steps)
    if len(points) < number:
        raise CorpusError(f"only {len(points)} mixtures in steps of 1/{steps} are feasible, and {number} are asked; widen the "
                          "plan's shares or epoch caps, lower the budget, or ask for fewer")
    return points, points[_d_optimal(points, number) if method == "d-optimal" else _maximin(points, number)]


def feasible_points(plan: Plan, sources: list[Source], groups: tuple[str, ...], steps: int) -> np.ndarray:
    """The lattice points [C, G] that the planner can read; the lattice is coarser than asked where it would have too many."""
    while steps > 1 and math.comb(steps + len(groups) - 1, len(groups) - 1) > _MOST_CANDIDATES:
        steps -= 1
    points = [np.array(parts) / steps for parts in _compositions(steps, len(groups))]
    return np.array([point for point in points if is_feasible(with_shares(plan, groups, point), sources)]).reshape(-1, len(groups))


def with_shares(plan: Plan, groups: Sequence[str], shares: Sequence[float]) -> Plan:
    """The plan with the shares of all groups fixed (the last by what is left: a sum of rounded numbers is not 1)."""
    fixed = {group: (float(share), float(share)) for group, share in zip(groups[:-1], shares, strict=False)}
    return plan.model_copy(update={"groups": {**plan.groups, **fixed}})


def _compositions(total: int, parts: int):
    """All ways to write `total` as `parts` numbers from 0, in their order."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total, -1, -1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


def _shares(blend: Blend, groups: Sequence[str]) -> dict[str, float]:
    shares = blend.group_shares()
    return {group: float(shares.get(group, 0.0)) for group in groups}


def _distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[P, O], 1 between two pure mixtures."""
    return np.linalg.norm(points[:, None] - others[None], axis=2) / math.sqrt(2)


def _maximin(points: np.ndarray, number: int) -> list[int]:
    """Greedy: the candidate nearest to the middle of what is feasible, then always the one farthest from those chosen."""
    distances = _distances(points, points)
    chosen = [int(np.argmin(_distances(points, points.mean(0)[None])[:, 0]))]
    while len(chosen) < number:
        nearest = distances[:, chosen].min(1)
        nearest[chosen] = -1.0
        chosen.append(int(np.argmax(nearest)))
    return chosen


def scheffe_terms(shares: np.ndarray, is_quadratic: bool) -> np.ndarray:
    """[R, G] -> [R, terms]: the shares, and with `is_quadratic` their products two by two. No constant: shares add up to 1."""
    if not is_quadratic:
        return shares
    pairs = [shares[:, i] * shares[:, j] for i, j in itertools.combinations(range(shares.shape[1]), 2)]
    return np.column_stack([shares, *pairs])


def _d_optimal(points: np.ndarray, number: int) -> list[int]:
    """Exchange from the maximin design until no single exchange raises the determinant."""
    num_terms = scheffe_terms(points[:1], True).shape[1]
    terms = scheffe_terms(points, is_quadratic=number >= num_terms + 2)
    chosen = _maximin(points, number)
    best = _log_det(terms[chosen])
    for _ in range(_EXCHANGES):
        before = best
        for place in range(number):
            trials = {other: _log_det(terms[[*chosen[:place], other, *chosen[place + 1:]]]) for other in range(len(points))}
            other = max(trials, key=trials.__getitem__)
            if trials[other] > best + 1e-9:
                chosen[place], best = other, trials[other]
        if best <= before + 1e-9:
            break
    return chosen


def _log_det(terms: np.ndarray) -> float:
    sign, value = np.linalg.slogdet(terms.T @ terms + 1e-9 * np.eye(terms.shape[1]))
    return value if sign > 0 else -math.inf


def _coverage(groups: tuple[str, ...], points: np.ndarray, shares: np.ndarray) -> dict[str, Any]:
    """How well `shares` [R, G] cover the feasible points: numbers for design.json."""
    unlike = np.unique(shares.round(9), axis=0)  # repeated mixtures differ by their seeds
    apart = _distances(unlike, unlike)[np.triu_indices(len(unlike), 1)]
    varied = [place for place in range(len(groups)) if shares[:, place].std() > 1e-9]
    correlations = np.corrcoef(shares[:, varied].T) if len(varied) > 1 else np.ones((len(varied), len(varied)))
    log_det = _log_det(shares)
    return {
        "num_feasible": len(points),
        "largest_hole": float(_distances(points, shares).min(1).max()),
        "mean_hole": float(_distances(points, shares).min(1).mean()),
        "nearest_pair": float(apart.min()),
        # of the linear mixture model, against pure mixtures in equal numbers
        "d_efficiency": float(math.exp(log_det / len(groups)) * len(groups) / len(shares)) if math.isfinite(log_det) else 0.0,
        "ranges": {group: [float(shares[:, place].min()), float(shares[:, place].max())] for place, group in enumerate(groups)},
        "correlations": {f"{groups[a]} and {groups[b]}": float(correlations[i, j])
                         for (i, a), (j, b) in itertools.combinations(enumerate(varied), 2)},
    }
