"""In what proportion are the sources read, so that a token budget meets its target shares and no source is worn out?

In: a plan (see blend_plan.py): the token budget, the sources, target shares by domain and by language, epoch caps, a minimum of
general text. Out: Megatron-Core's weights (share of the samples drawn) with tokens and epochs by source; or, where no
blend can meet the plan, the constraints that stand in the way, with the numbers that would make it feasible.
Invariant: a returned blend satisfies every constraint of its plan to within 1e-6 of the budget.

## The linear programme

A source i has s_i = num_tokens (1 - valid_ratio) tokens to train on; the plan reads T tokens. With p_i = s_i / S,
S = sum s_i, and w_i its share of the T tokens read, its epochs are e_i = w_i T / s_i, and r_i = w_i / p_i is how often
it is read compared with the average. Among all w >= 0 with

    sum_i w_i = 1                                     the whole budget is read
    e_i <= max_epochs_i                               cap of each source
    lo_d <= sum_i w_i [domain_i = d] <= hi_d          target share of domain d
    lo_l <= sum_i w_i lang_il <= hi_l                 target share of language l; lang_il: share of l in source i
    lo_g <= sum_i w_i group_ig <= hi_g                the same of a group: language and origin
    sum_i w_i [domain_i = general] >= min_general     replay of general text

the blend returned minimises the Gini coefficient of "how often is a token read", taken over all tokens:

    G(w) = sum_{i<j} p_i p_j |r_i - r_j| = sum_{i<j} |p_j w_i - p_i w_j|

0 means that every token is read equally often (the weights are the sizes). Moving reads from a source to one that is
read less often, inside the same domain and language, always lowers G: so sources under the same constraints are read
equally often until a cap binds, and sources under identical constraints are merged into one variable before solving,
which loses nothing. |.| becomes two inequalities a pair; scipy's HiGHS solves the programme.

Where there is none, each constraint in turn (and the budget, and a common factor on all caps) is given slack and the
least slack is found that makes the rest feasible: what that needs is what the message says. If no single one is
enough, the least slack over all together is reported.
"""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import OptimizeResult, linprog
from scipy.sparse import block_array, coo_array, eye_array, vstack

from megatron_jmed.corpus.blend_plan import TOLERANCE, Plan, Source, percent
from megatron_jmed.errors import CorpusError

_SOLVER = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
_INFEASIBLE = 2


# ---- constraints


@dataclass(frozen=True)
class _Row:
    """lo <= coefficients . w <= hi, with w the shares of the groups; `say(reached)` words what would have to give."""

    coefficients: np.ndarray
    lo: float
    hi: float
    say: Callable[[float], str]


@dataclass(frozen=True)
class _Problem:
    """A plan's programme over groups of sources that stand under identical constraints."""

    total_tokens: int
    members: list[list[Source]]
    group_tokens: np.ndarray  # tokens to train on, by group
    caps: np.ndarray  # epochs, by group
    rows: list[_Row]  # domains, languages and replay

    @property
    def cap_shares(self) -> np.ndarray:
        """The largest share of the budget that the cap lets each group have."""
        return self.caps * self.group_tokens / self.total_tokens


def _problem(plan: Plan, sources: list[Source]) -> _Problem:
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
        rows.append(_Row(of_domain(plan.general_domain), plan.min_general, 1.0, lambda reached:
                         f"min_general: {percent(plan.min_general)} is asked; with all else kept "
                         f"{_giving_way(reached, plan.min_general)} works"))
    tokens = np.array([math.fsum(source.train_tokens for source in group) for group in members])
    return _Problem(plan.total_tokens, members, tokens, np.array([source.max_epochs for source in firsts]), rows)


def _target_row(kind: str, name: str, coefficients: np.ndarray, share: tuple[float, float]) -> _Row:
    lo, hi = share
    asked = percent(lo) if lo == hi else f"{percent(lo)} to {percent(hi)}"
    return _Row(coefficients, lo, hi, lambda reached:
                f"share of {kind} {name!r}: {asked} is asked; with all else kept {_giving_way(reached, lo)} works")


def _cap_rows(problem: _Problem) -> list[_Row]:
    """The finite caps as rows, for giving them slack."""
    rows = []
    for index, (group, cap, limit) in enumerate(zip(problem.members, problem.caps, problem.cap_shares, strict=True)):
        if math.isfinite(cap):
            names = ", ".join(source.name for source in group)
            rows.append(_Row(np.eye(len(problem.members))[index], 0.0, limit, lambda reached, cap=cap, limit=limit, names=names:
                             f"max_epochs of {names}: {cap:g} is asked; with all else kept {_up(cap * reached / limit)} works"))
    return rows


# ---- solving


@dataclass(frozen=True)
class SourceBlend:
    """How much of a source is read; `weight` is Megatron-Core's."""

    source: Source
    weight: float
    tokens: float
    epochs: float

    @property
    def is_at_cap(self) -> bool:
        return self.epochs >= self.source.max_epochs * (1 - TOLERANCE)


@dataclass(frozen=True)
class Blend:
    """A blend that meets its plan; `gini` is the unevenness that could not be avoided."""

    plan: Plan
    sources: tuple[SourceBlend, ...]
    gini: float

    def domain_shares(self) -> dict[str, float]:
        return _sums((s.source.domain, s.weight) for s in self.sources)

    def group_shares(self) -> dict[str, float]:
        return _sums((group, s.weight * part) for s in self.sources for group, part in s.source.groups.items())

    def lang_shares(self) -> dict[str, float]:
        return _sums((lang, s.weight * part) for s in self.sources for lang, part in s.source.langs.items())


def _sums(pairs) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for name, share in pairs:
        totals[name] += share
    return dict(totals)


def is_feasible(plan: Plan, sources: list[Source]) -> bool:
    """Whether any blend meets the plan."""
    problem = _problem(plan, sources)
    upper, limits = _row_limits(problem.rows, len(problem.members))
    bounds = [(0.0, min(1.0, cap)) for cap in problem.cap_shares]
    return _solve(np.zeros(len(bounds)), upper, limits, np.ones(len(bounds)), bounds) is not None


def solve_blend(plan: Plan, sources: list[Source]) -> Blend:
    """The most even blend that meets the plan; CorpusError that names the binding constraints if there is none."""
    problem = _problem(plan, sources)
    relative_sizes = problem.group_tokens / problem.group_tokens.sum()
    shares = _most_even_shares(problem, relative_sizes)
    if shares is None:
        raise CorpusError(_why_not(problem))
    blended = {}
    for group, share, tokens in zip(problem.members, shares, problem.group_tokens, strict=True):
        for source in group:
            weight = share * source.train_tokens / tokens
            read = weight * plan.total_tokens
            blended[source.name] = SourceBlend(source, weight, read, read / source.train_tokens)
    gini = sum(abs(q * v - p * w) for (p, v), (q, w) in itertools.combinations(zip(relative_sizes, shares, strict=True), 2))
    blend = Blend(plan, tuple(blended[source.name] for source in sources), float(gini))
    assert not (broken := violations(blend)), broken
    return blend


def _most_even_shares(problem: _Problem, sizes: np.ndarray) -> np.ndarray | None:
    """The shares w of the groups, or None; the variables are r = w / sizes and one |r_i - r_j| a pair."""
    num = len(sizes)
    pairs = list(itertools.combinations(range(num), 2))
    cost = np.concatenate([np.zeros(num), [sizes[i] * sizes[j] for i, j in pairs]])
    upper, limits = _row_limits(problem.rows, num)
    upper = np.hstack([upper * sizes, np.zeros((len(limits), len(pairs)))])
    # r_i - r_j - d_ij <= 0 and r_j - r_i - d_ij <= 0; sparse, for a hundred sources have 5,000 pairs
    firsts, seconds = np.array(pairs, dtype=int).reshape(-1, 2).T
    each, ones = np.arange(len(pairs)), np.ones(len(pairs))
    difference = coo_array((np.concatenate([ones, -ones]), (np.tile(each, 2), np.concatenate([firsts, seconds]))),
                           shape=(len(pairs), num))
    distances = block_array([[difference, -eye_array(len(pairs))], [-difference, -eye_array(len(pairs))]]) if pairs else None
    whole = np.concatenate([sizes, np.zeros(len(pairs))])
    bounds = [(0.0, cap) for cap in problem.cap_shares / sizes] + [(0.0, None)] * len(pairs)
    matrix = vstack([upper, distances]) if pairs else upper
    answer = _solve(cost, matrix, np.concatenate([limits, np.zeros(2 * len(pairs))]), whole, bounds)
    if answer is None:
        return None
    shares = np.clip(answer[:num], 0.0, None) * sizes
    shares[shares < 1e-9] = 0.0
    return shares / shares.sum()


def _row_limits(rows: list[_Row], num: int) -> tuple[np.ndarray, np.ndarray]:
    """Both sides of every row as `matrix . w <= limits`."""
    matrix = [side * row.coefficients for row in rows for side in (1.0, -1.0)]
    limits = [limit for row in rows for limit in (row.hi, -row.lo)]
    return np.array(matrix).reshape(len(limits), num), np.array(limits)


def _solve(cost, upper, limits, whole, bounds) -> np.ndarray | None:
    """min cost.x with upper.x <= limits, whole.x = 1; None if infeasible."""
    answer: OptimizeResult = linprog(cost, A_ub=upper if len(limits) else None, b_ub=limits if len(limits) else None,
                                     A_eq=whole[None, :], b_eq=[1.0], bounds=bounds, method="highs", options=_SOLVER)
    assert answer.status in (0, _INFEASIBLE), answer.message
    return answer.x if answer.status == 0 else None


def violations(blend: Blend) -> list[str]:
    """What in a blend does not meet its plan: nothing, if the solver is right."""
    plan, domains, langs = blend.plan, blend.domain_shares(), blend.lang_shares()
    slack = TOLERANCE
    found = [f"{s.source.name}: {s.epochs} epochs" for s in blend.sources if s.epochs > s.source.max_epochs * (1 + slack)]
    for asked, got in ((plan.domains, domains), (plan.langs, langs), (plan.groups, blend.group_shares())):
        found += [f"{name}: {got.get(name, 0)}" for name, (lo, hi) in asked.items()
                  if not lo - slack <= got.get(name, 0) <= hi + slack]
    if domains.get(plan.general_domain, 0) < plan.min_general - slack:
        found.append(f"general: {domains.get(plan.general_domain, 0)}")
    if abs(math.fsum(s.weight for s in blend.sources) - 1) > slack or min(s.weight for s in blend.sources) < 0:
        found.append("the weights are no shares")
    return found


# ---- why there is no blend


def _why_not(problem: _Problem) -> str:
    """Each single change that would make the plan feasible, or else the least of all changes together."""
    rows = [*problem.rows, *_cap_rows(problem)]
    singles = []
    for row in rows:
        if (reached := _with_slack(problem, rows, [row])) is not None:
            singles.append(row.say(reached[0]))
    singles += _budget_and_caps(problem, rows)
    available = float((problem.cap_shares * problem.total_tokens).sum())
    supply = f"{_tokens(problem.total_tokens)} tokens are to be read"
    if math.isfinite(available):
        supply += f"; all sources together give at most {_tokens(available)} under their epoch caps"
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


def _with_slack(problem: _Problem, rows: list[_Row], loose: list[_Row]) -> list[float] | None:
    """The values of the `loose` rows when they give way as little as possible and all others hold; None if not enough."""
    num, num_loose = len(problem.members), len(loose)
    upper, limits = _row_limits(rows, num)
    slack = np.zeros((len(limits), 2 * num_loose))
    numbers = {id(row): number for number, row in enumerate(loose)}
    for position, row in enumerate(rows):
        if (number := numbers.get(id(row))) is not None:
            slack[2 * position, 2 * number] = slack[2 * position + 1, 2 * number + 1] = -1.0
    cost = np.concatenate([np.zeros(num), np.ones(2 * num_loose)])
    whole = np.concatenate([np.ones(num), np.zeros(2 * num_loose)])
    answer = _solve(cost, np.hstack([upper, slack]), limits, whole, [(0.0, None)] * len(cost))
    return None if answer is None else [float(row.coefficients @ answer[:num]) for row in loose]


def _budget_and_caps(problem: _Problem, rows: list[_Row]) -> list[str]:
    """How far all caps would have to be raised by one factor, and how large a budget the caps allow."""
    capped = np.isfinite(problem.caps)
    if not capped.any():
        return []
    num = len(problem.members)
    upper, limits = _row_limits(problem.rows, num)
    upper = np.hstack([upper, np.zeros((len(limits), 1))])
    caps = np.hstack([np.eye(num), -np.where(capped, problem.cap_shares, 0.0)[:, None]])[capped]
    answer = _solve(np.eye(num + 1)[num], np.vstack([upper, caps]), np.concatenate([limits, np.zeros(len(caps))]),
                    np.append(np.ones(num), 0.0), [(0.0, None)] * (num + 1))
    if answer is None:
        return []
    # Caps are in epochs of a fixed size: the budget that fits is the one asked, divided by the same factor.
    factor = float(answer[num])
    fits = math.floor(problem.total_tokens / factor * (1 - 1e-9))
    return [f"max_epochs: all caps {_up(factor)} times as high",
            f"total_tokens: {problem.total_tokens:,} is asked; with all else kept {fits:,} works"]


def _giving_way(reached: float, lo: float) -> str:
    """Rounded away from what was asked, so that the number named really suffices."""
    number = 1e4 * reached
    return f"{(math.floor(number + 1e-6) if reached < lo else math.ceil(number - 1e-6)) / 100:g}%"


def _up(number: float) -> str:
    """Rounded up to three digits after the point, so that the number named really suffices."""
    return f"{math.ceil(number * 1000 - 1e-6) / 1000:g}"


def _tokens(number: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            return f"{number / unit:.4g}{name}"
    return f"{number:.0f}"


# ---- output


def blend_table(blend: Blend) -> str:
    """The blend for the eye: sources, then shares by domain and language beside their targets."""
    plan = blend.plan
    lines = [f"{'source':24} {'language':>10} {'domain':>12} {'to train on':>12} {'weight':>9} {'read':>9} {'epochs':>8} "
             f"{'cap':>6}"]
    for s in blend.sources:
        cap = f"{s.source.max_epochs:g}{'*' if s.is_at_cap else ' '}" if math.isfinite(s.source.max_epochs) else "- "
        lines.append(f"{s.source.name:24} {'+'.join(sorted(s.source.langs)) or '-':>10} {s.source.domain:>12} "
                     f"{_tokens(s.source.train_tokens):>12} {s.weight:9.5f} {_tokens(s.tokens):>9} {s.epochs:8.3f} {cap:>7}")
    lines.append("* the cap binds\n")
    kinds = [("domain", blend.domain_shares(), plan.domains), ("language", blend.lang_shares(), plan.langs)]
    if plan.groups:
        kinds.append(("group", blend.group_shares(), plan.groups))
    for kind, shares, asked in kinds:
        for name, share in shares.items():
            target = f"asked {' to '.join(dict.fromkeys(map(percent, asked[name])))}" if name in asked else "free"
            if kind == "domain" and name == plan.general_domain and plan.min_general:
                target += f", at least {percent(plan.min_general)} to be replayed"
            read = _tokens(share * plan.total_tokens)
            lines.append(f"{kind:8} {name or '(unknown)':15} {percent(share):>8} {read:>9}  {target}")
    lines.append(f"\n{plan.total_tokens:,} tokens; unevenness (Gini coefficient of how often a token is read): {blend.gini:.4f}")
    return "\n".join(lines)


def blend_toml(blend: Blend) -> str:
    """The `data` lines of an experiment; they come before its first [section]."""
    lines = [f"# made by tools/check_blend.py for budget.total_tokens = {blend.plan.total_tokens}",
             f"data.valid_ratio = {blend.plan.valid_ratio!r}", "data.blend = ["]
    for s in blend.sources:
        source = s.source
        if not s.weight:
            lines.append(f"  # {json.dumps(source.name, ensure_ascii=False)} is not read at all")
            continue
        words = {"name": source.name, "path": source.path, "weight": float(s.weight)}
        if len(source.langs) == 1:
            words["lang"] = next(iter(source.langs))
        if source.is_declared:
            words["num_tokens"] = source.num_tokens
        # A JSON string or number is a TOML one as well, but for DEL, which TOML wants escaped.
        text = ", ".join(f"{word} = {json.dumps(value, ensure_ascii=False)}" for word, value in words.items())
        lines.append(f"  {{ {text} }},".replace("\x7f", "\\u007f"))
    return "\n".join([*lines, "]"])
