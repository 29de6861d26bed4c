"""Which linear constraints does a plan put on the shares of its sources?

In: a plan and its sources. Out: a `Problem`: rows lo <= coefficients . w <= hi over groups of sources, and the solver for any
programme over them. Invariant: sources of one group stand under identical constraints, so that to merge them loses nothing.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import OptimizeResult, linprog

from megatron_jmed.corpus.blend_plan import Plan, Source, percent

_SOLVER = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
_INFEASIBLE = 2


@dataclass(frozen=True)
class Row:
    """lo <= coefficients . w <= hi, with w the shares of the groups; `say(reached)` words what would have to give."""

    coefficients: np.ndarray
    lo: float
    hi: float
    say: Callable[[float], str]


@dataclass(frozen=True)
class Problem:
    """A plan's programme over groups of sources that stand under identical constraints."""

    total_tokens: int
    members: list[list[Source]]
    group_tokens: np.ndarray  # tokens to train on, by group
    caps: np.ndarray  # epochs, by group
    rows: list[Row]  # domains, languages and replay

    @property
    def cap_shares(self) -> np.ndarray:
        """The largest share of the budget that the cap lets each group have."""
        return self.caps * self.group_tokens / self.total_tokens


def blend_problem(plan: Plan, sources: list[Source]) -> Problem:
    """The constraints of a plan, but for the caps, over groups of its sources."""
    groups: dict[tuple, list[Source]] = defaultdict(list)
    for source in sources:
        groups[source.domain, tuple(sorted(source.groups.items())), source.max_epochs].append(source)
    members = list(groups.values())
    firsts = [group[0] for group in members]

    def of_domain(domain: str) -> np.ndarray:
        return np.array([float(source.domain == domain) for source in firsts])

    rows = [_target_row("domain", name, of_domain(name), share) for name, share in plan.domains.items()]
    rows += [_target_row("language", name, np.array([source.langs.get(name, 0.0) for source in firsts]), share)
             for name, share in plan.langs.items()]
    rows += [_target_row("group", name, np.array([source.groups.get(name, 0.0) for source in firsts]), share)
             for name, share in plan.groups.items()]
    if plan.min_general:
        rows.append(Row(of_domain(plan.general_domain), plan.min_general, 1.0, lambda reached:
                        f"min_general: {percent(plan.min_general)} is asked; with all else kept "
                        f"{_giving_way(reached, plan.min_general)} works"))
    tokens = np.array([math.fsum(source.train_tokens for source in group) for group in members])
    return Problem(plan.total_tokens, members, tokens, np.array([source.max_epochs for source in firsts]), rows)


def _target_row(kind: str, name: str, coefficients: np.ndarray, share: tuple[float, float]) -> Row:
    lo, hi = share
    asked = percent(lo) if lo == hi else f"{percent(lo)} to {percent(hi)}"
    return Row(coefficients, lo, hi, lambda reached:
               f"share of {kind} {name!r}: {asked} is asked; with all else kept {_giving_way(reached, lo)} works")


def _giving_way(reached: float, lo: float) -> str:
    """Rounded away from what was asked, so that the number named really suffices."""
    number = 1e4 * reached
    return f"{(math.floor(number + 1e-6) if reached < lo else math.ceil(number - 1e-6)) / 100:g}%"


def row_limits(rows: list[Row], num: int) -> tuple[np.ndarray, np.ndarray]:
    """Both sides of every row as `matrix . w <= limits`."""
    matrix = [side * row.coefficients for row in rows for side in (1.0, -1.0)]
    limits = [limit for row in rows for limit in (row.hi, -row.lo)]
    return np.array(matrix).reshape(len(limits), num), np.array(limits)


def solve_programme(cost, upper, limits, whole, bounds) -> np.ndarray | None:
    """min cost.x with upper.x <= limits, whole.x = 1; None if infeasible."""
    answer: OptimizeResult = linprog(cost, A_ub=upper if len(limits) else None, b_ub=limits if len(limits) else None,
                                     A_eq=whole[None, :], b_eq=[1.0], bounds=bounds, method="highs", options=_SOLVER)
    assert answer.status in (0, _INFEASIBLE), answer.message
    return answer.x if answer.status == 0 else None
