"""In what proportion are the sources read, so that a token budget meets its target shares and no source is worn out?

In: a plan (see blend_plan.py): the token budget, the sources, target shares by domain and by language, epoch caps, a minimum of
general text. Out: Megatron-Core's weights (share of the samples drawn) with tokens and epochs by source; or, where no
blend can meet the plan, the constraints that stand in the way, with the numbers that would make it feasible (blend_refusal.py).
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
"""

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from scipy.sparse import block_array, coo_array, eye_array, vstack

from megatron_jmed.corpus.blend_plan import TOLERANCE, Plan, Source
from megatron_jmed.corpus.blend_problem import Problem, blend_problem, row_limits, solve_programme
from megatron_jmed.corpus.blend_refusal import why_no_blend
from megatron_jmed.errors import CorpusError


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
    problem = blend_problem(plan, sources)
    upper, limits = row_limits(problem.rows, len(problem.members))
    bounds = [(0.0, min(1.0, cap)) for cap in problem.cap_shares]
    return solve_programme(np.zeros(len(bounds)), upper, limits, np.ones(len(bounds)), bounds) is not None


def solve_blend(plan: Plan, sources: list[Source]) -> Blend:
    """The most even blend that meets the plan; CorpusError that names the binding constraints if there is none."""
    problem = blend_problem(plan, sources)
    relative_sizes = problem.group_tokens / problem.group_tokens.sum()
    shares = _most_even_shares(problem, relative_sizes)
    if shares is None:
        raise CorpusError(why_no_blend(problem))
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


def _most_even_shares(problem: Problem, sizes: np.ndarray) -> np.ndarray | None:
    """The shares w of the groups, or None; the variables are r = w / sizes and one |r_i - r_j| a pair."""
    num = len(sizes)
    pairs = list(itertools.combinations(range(num), 2))
    cost = np.concatenate([np.zeros(num), [sizes[i] * sizes[j] for i, j in pairs]])
    upper, limits = row_limits(problem.rows, num)
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
    answer = solve_programme(cost, matrix, np.concatenate([limits, np.zeros(2 * len(pairs))]), whole, bounds)
    if answer is None:
        return None
    shares = np.clip(answer[:num], 0.0, None) * sizes
    shares[shares < 1e-9] = 0.0
    return shares / shares.sum()


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
