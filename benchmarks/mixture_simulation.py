"""Does the mixture study find what is there, and nothing where nothing is? `python benchmarks/mixture_simulation.py [REPETITIONS]`

Synthetic runs: 12 mixtures of three groups from the maximin design of an invented plan, two features besides the shares, three
targets with normal noise. Printed for mixture.md: how often anything is claimed without an effect (any q at most 0.05; a
distinguishable proposal), how often a correlation of stated strength is found beside the predicted power, what share of the 95
% intervals cover the truth (Fisher, bootstrap, effects of shares, prediction and gain of the proposal), and how often the
proposal beats the median mixture.
"""

import argparse
import math

import numpy as np
from scipy import stats

from megatron_jmed.corpus.blend_plan import Plan, load_sources
from megatron_jmed.evaluate.mixture_design import choose_mixtures
from megatron_jmed.evaluate.mixture_proposal import candidate_mixtures, propose
from megatron_jmed.evaluate.mixture_runs import StudyRun
from megatron_jmed.evaluate.mixture_statistics import (
    bootstrap_interval,
    correlations,
    fisher_interval,
    permutation_p,
    share_effects,
    smallest_visible_r,
)

GROUPS, TARGET = ("en", "ja", "ja+mt"), "exam invented"
PLAN = Plan.model_validate({"total_tokens": 1_000_000, "max_epochs": 4, "sources": [
    {"name": name, "path": f"no/such/{name}", "num_tokens": size, "domain": "medical", "lang": lang, "origin": origin}
    for name, size, lang, origin in (("a", 400_000, "en", "original"), ("b", 300_000, "ja", "original"),
                                     ("c", 150_000, "ja", "machine_translated"))]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repetitions", type=int, nargs="?", default=500)
    parser.add_argument("--mixtures", type=int, default=12)
    words = parser.parse_args()
    shares = choose_mixtures(PLAN, load_sources(PLAN), GROUPS, words.mixtures, "maximin", 20)[1]
    print(f"{words.repetitions} repetitions, {words.mixtures} mixtures; standard error of a share near 5 %: "
          f"{math.sqrt(0.05 * 0.95 / words.repetitions):.1%}")
    candidates = candidate_mixtures(GROUPS, shares, PLAN)
    no_effect(shares, candidates, words.repetitions)
    power(shares, words.repetitions)
    coverage(shares, words.repetitions)
    proposals(shares, candidates, words.repetitions)


def no_effect(shares: np.ndarray, candidates: np.ndarray, repetitions: int) -> None:
    claims, distinguishable = 0, 0
    for seed in range(repetitions):
        random = np.random.default_rng(seed)
        features = {group: column for group, column in zip(GROUPS, shares.T, strict=True)}
        features |= {name: random.normal(size=len(shares)) for name in ("characters a token", "sentence length")}
        targets = {f"target {number}": random.normal(size=len(shares)) for number in range(3)}
        claims += any(row["is_significant"] for row in correlations(features, targets, permutations=1999, bootstraps=0))
        distinguishable += proposal(shares, targets["target 0"], candidates)["is_distinguishable"]
    print(f"no effect: anything called significant in {claims / repetitions:.1%}, a better mixture claimed in "
          f"{distinguishable / repetitions:.1%} of the studies (at most 5 % is wanted)")


def power(shares: np.ndarray, repetitions: int) -> None:
    """One feature and one target whose true correlation is what the page says can just be seen."""
    num = len(shares)
    visible = smallest_visible_r(num)
    for r in (visible / 2, visible):
        found = 0
        for seed in range(repetitions):
            x, y = _correlated(np.random.default_rng(seed), num, r)
            found += permutation_p(x, y, 1999) <= 0.05
        predicted = stats.norm.sf(stats.norm.ppf(0.975) - math.atanh(r) * math.sqrt(num - 3))
        print(f"power at r = {r:.2f}: found in {found / repetitions:.1%}, predicted {predicted:.1%}")


def coverage(shares: np.ndarray, repetitions: int) -> None:
    num = len(shares)
    for r in (0.0, 0.5, 0.8):
        fisher = bootstrap = 0
        for seed in range(repetitions):
            x, y = _correlated(np.random.default_rng(seed), num, r)
            low, high = fisher_interval(float(np.corrcoef(x, y)[0, 1]), num)
            fisher += low <= r <= high
            low, high = bootstrap_interval(x, y, 499)
            bootstrap += low <= r <= high
        print(f"95 % intervals of r = {r}: Fisher covers in {fisher / repetitions:.1%}, bootstrap (BCa) in "
              f"{bootstrap / repetitions:.1%}")
    truth, inside, total = np.array([0.50, 0.56, 0.52]), 0, 0
    for seed in range(repetitions):
        scores = shares @ truth + np.random.default_rng(seed).normal(scale=0.01, size=num)
        for row, place in zip(share_effects(TARGET, scores, GROUPS, shares), range(3), strict=True):
            others = [other for other in range(3) if other != place]
            means = shares.mean(0)[others]
            true = 0.1 * (truth[place] - truth[others] @ means / means.sum())
            inside += row["low"] <= true <= row["high"]
            total += 1
    print(f"95 % intervals of effects of shares: cover in {inside / total:.1%}")


def proposals(shares: np.ndarray, candidates: np.ndarray, repetitions: int) -> None:
    """True scores are linear in the shares; the noise of a run is a fraction of the range over the feasible mixtures."""
    truth = np.array([0.50, 0.56, 0.52])
    span = float(np.ptp(candidates @ truth))
    for noise in (0.1, 0.3, 1.0):
        beats = claims = right = covers = covers_gain = 0
        for seed in range(repetitions):
            scores = shares @ truth + np.random.default_rng(seed).normal(scale=noise * span, size=len(shares))
            answer = proposal(shares, scores, candidates)
            point = np.array([answer["shares"][group] for group in GROUPS])
            base = np.array([answer["base_shares"][group] for group in GROUPS])
            gain = (point - base) @ truth
            beats += point @ truth > np.median(candidates @ truth)
            claims += answer["is_distinguishable"]
            right += answer["is_distinguishable"] and gain > 0
            covers += answer["low"] <= point @ truth <= answer["high"]
            covers_gain += answer["gain_low"] <= gain <= answer["gain_high"]
        print(f"noise of a run {noise:g} of the range: the proposal beats the median mixture in {beats / repetitions:.1%}; "
              f"a gain is claimed in {claims / repetitions:.1%} (truly one in {right / max(1, claims):.1%} of "
              f"these); 95 % intervals of the searched-for best cover its score in {covers / repetitions:.1%}, its gain in "
              f"{covers_gain / repetitions:.1%}")


def proposal(shares: np.ndarray, scores: np.ndarray, candidates: np.ndarray) -> dict:
    runs = [StudyRun(f"mix_{number}", 1, False, 1_000_000, dict(zip(GROUPS, row, strict=True)), {}, {}, {})
            for number, row in enumerate(shares.tolist())]
    return propose(TARGET, GROUPS, shares, scores, runs, candidates)


def _correlated(random: np.random.Generator, num: int, r: float) -> tuple[np.ndarray, np.ndarray]:
    x, rest = random.normal(size=num), random.normal(size=num)
    return x, r * x + math.sqrt(1 - r * r) * rest


if __name__ == "__main__":
    main()
