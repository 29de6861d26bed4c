"""Why is there no blend that meets a plan, and which numbers would make one?

In: a problem that has no solution. Out: the message. Each constraint in turn (and the budget, and a common factor on all
caps) is given slack and the least slack is found that makes the rest feasible: what that needs is what the message says. If
no single one is enough, the least slack over all together is reported.
Invariant: every number named really suffices; it is rounded away from what was asked.
"""

import math

import numpy as np

from megatron_jmed.corpus.blend_plan import TOLERANCE, short_tokens
from megatron_jmed.corpus.blend_problem import Problem, Row, row_limits, solve_programme


def why_no_blend(problem: Problem) -> str:
    """Each single change that would make the plan feasible, or else the least of all changes together."""
    rows = [*problem.rows, *_cap_rows(problem)]
    singles = []
    for row in rows:
        if (reached := _with_slack(problem, rows, [row])) is not None:
            singles.append(row.say(reached[0]))
    singles += _budget_and_caps(problem)
    available = float((problem.cap_shares * problem.total_tokens).sum())
    supply = f"{short_tokens(problem.total_tokens)} tokens are to be read"
    if math.isfinite(available):
        supply += f"; all sources together give at most {short_tokens(available)} under their epoch caps"
    head = f"no blend meets the plan: {supply}."
    if singles:
        return f"{head} Any one of these changes makes it feasible:\n" + "\n".join(f"  - {text}" for text in singles)
    reached = _with_slack(problem, rows, rows)
    if reached is None:
        return head
    changes = [row.say(value) for row, value in zip(rows, reached, strict=True)
               if not row.lo - TOLERANCE <= value <= row.hi + TOLERANCE]
    return f"{head} No single change is enough; these together are the least that is:\n" + "\n".join(
        f"  - {text.replace('with all else kept ', 'with the other changes ')}" for text in changes)


def _with_slack(problem: Problem, rows: list[Row], loose: list[Row]) -> list[float] | None:
    """The values of the `loose` rows when they give way as little as possible and all others hold; None if not enough."""
    num, num_loose = len(problem.members), len(loose)
    upper, limits = row_limits(rows, num)
    slack = np.zeros((len(limits), 2 * num_loose))
    numbers = {id(row): number for number, row in enumerate(loose)}
    for position, row in enumerate(rows):
        if (number := numbers.get(id(row))) is not None:
            slack[2 * position, 2 * number] = slack[2 * position + 1, 2 * number + 1] = -1.0
    cost = np.concatenate([np.zeros(num), np.ones(2 * num_loose)])
    whole = np.concatenate([np.ones(num), np.zeros(2 * num_loose)])
    answer = solve_programme(cost, np.hstack([upper, slack]), limits, whole, [(0.0, None)] * len(cost))
    return None if answer is None else [float(row.coefficients @ answer[:num]) for row in loose]


def _budget_and_caps(problem: Problem) -> list[str]:
    """How far all caps would have to be raised by one factor, and how large a budget the caps allow."""
    capped = np.isfinite(problem.caps)
    if not capped.any():
        return []
    num = len(problem.members)
    upper, limits = row_limits(problem.rows, num)
    upper = np.hstack([upper, np.zeros((len(limits), 1))])
    caps = np.hstack([np.eye(num), -np.where(capped, problem.cap_shares, 0.0)[:, None]])[capped]
    answer = solve_programme(np.eye(num + 1)[num], np.vstack([upper, caps]), np.concatenate([limits, np.zeros(len(caps))]),
                             np.append(np.ones(num), 0.0), [(0.0, None)] * (num + 1))
    if answer is None:
        return []
    # Caps are in epochs of a fixed size: the budget that fits is the one asked, divided by the same factor.
    factor = float(answer[num])
    fits = math.floor(problem.total_tokens / factor * (1 - 1e-9))
    return [f"max_epochs: all caps {_up(factor)} times as high",
            f"total_tokens: {problem.total_tokens:,} is asked; with all else kept {fits:,} works"]


def _cap_rows(problem: Problem) -> list[Row]:
    """The finite caps as rows, for giving them slack."""
    rows = []
    for index, (group, cap, limit) in enumerate(zip(problem.members, problem.caps, problem.cap_shares, strict=True)):
        if math.isfinite(cap):
            names = ", ".join(source.name for source in group)
            rows.append(Row(np.eye(len(problem.members))[index], 0.0, limit, lambda reached, cap=cap, limit=limit, names=names:
                            f"max_epochs of {names}: {cap:g} is asked; with all else kept {_up(cap * reached / limit)} works"))
    return rows


def _up(number: float) -> str:
    """Rounded up to three digits after the point, so that the number named really suffices."""
    return f"{math.ceil(number * 1000 - 1e-6) / 1000:g}"
