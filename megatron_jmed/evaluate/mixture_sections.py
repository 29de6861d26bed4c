"""Which parts of a study's page show mixtures, effects, predictions, forgetting and scaling?

In: the analysis. Out: figures and tables (HTML text), an empty list where the analysis has nothing to show. Invariant: never an
effect or a prediction without its interval.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from megatron_jmed.evaluate.mixture_charts import Dot, Effect, dot_chart, effect_chart, run_lines
from megatron_jmed.evaluate.mixture_correlations import number, p_text
from megatron_jmed.evaluate.mixture_pictures import Mixture, ramp_of, simplex_plot
from megatron_jmed.evaluate.mixture_runs import lower_is_better
from megatron_jmed.evaluate.mixture_scores import LOSS
from megatron_jmed.evaluate.page import details, figure, table
from megatron_jmed.evaluate.svg import short_number

Analysis = Mapping[str, Any]

MOST_TARGETS_DRAWN = 6  # effects of more targets stand in the table alone


def _r2(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _ordered(analysis: Analysis, shares: Mapping[str, float]) -> list[float]:
    return [shares.get(group, 0.0) for group in analysis["groups"]]


def mixture_figures(analysis: Analysis) -> list[str]:
    runs, target, groups, proposal = analysis["runs"], analysis["target"], analysis["groups"], analysis["proposal"]
    mixtures = [
        Mixture(run["name"], _ordered(analysis, run["shares"]), run["scores"][target], "base" if run["is_base"] else "run")
        for run in runs
    ]
    ramp = ramp_of([m.value for m in mixtures], lower_is_better(target))
    if proposal and proposal["is_distinguishable"]:
        mixtures.append(Mixture("proposal (predicted)", _ordered(analysis, proposal["shares"]), proposal["predicted"], "proposal"))
    caption = (
        "Shares of the tokens really read. Circle: a run; square: the base mixture (its seeds lie on one place); diamond: the "
        "proposal, in the colour of its predicted score."
    )
    if len(groups) == 3:
        caption += f" The numbers below are shares of {groups[0]}, at the right of {groups[1]}, at the left of {groups[2]}."
    return [figure(f"Mixtures by {target}", caption, simplex_plot(groups, mixtures, ramp, target))]


def runs_table(analysis: Analysis) -> str:
    runs, target, groups = analysis["runs"], analysis["target"], analysis["groups"]
    best_first = sorted(runs, key=lambda run: run["scores"][target] * (1 if lower_is_better(target) else -1))
    rows = [
        [
            run["name"] + (" (base)" if run["is_base"] else ""),
            str(run["seed"]),
            short_number(run["tokens_read"]),
            *(f"{share:.1%}" for share in _ordered(analysis, run["shares"])),
            f"{run['scores'][target]:.4g}",
        ]
        for run in best_first
    ]
    note = "The best of many runs is also the luckiest: its score overstates its mixture by about the noise between seeds."
    return table(
        f"Runs by {target}, best first",
        ["run", "seed", "tokens read", *groups, "score"],
        rows,
        num_texts=1,
        note=note,
        wide=len(groups) > 3,
    )


def effect_parts(analysis: Analysis) -> list[str]:
    effects = analysis["effects"]
    targets = sorted(dict.fromkeys(e["target"] for e in effects), key=lambda t: t != analysis["target"])
    parts = []
    for target in targets[:MOST_TARGETS_DRAWN]:
        mine = [e for e in effects if e["target"] == target]
        rows = [Effect(e["group"], e["effect"], e["low"], e["high"]) for e in mine]
        better = "left" if lower_is_better(target) else "right"
        unit, what = (1.0, "nats per token") if target.startswith(LOSS) else (100.0, "percentage points")
        chart = effect_chart(f"Effects of shares on {target}", rows, f"change of the score ({what})", unit=unit)
        parts.append(
            figure(
                target,
                f"For +0.1 share of a group, taken from the others in proportion; 95% intervals. Better is to the "
                f"{better}. Hollow and grey: the interval holds 0, so even the direction is not known.",
                chart,
            )
        )
    if effects:
        rows = [
            [e["target"], e["group"], f"{e['effect']:+.4g}", f"{e['low']:+.4g} to {e['high']:+.4g}", p_text(e["p"])]
            for e in effects
        ]
        parts.append(
            details("All effects", table("", ["target", "group", "effect of +0.1", "95% interval", "p"], rows, num_texts=2))
        )
    return parts


def fit_of(analysis: Analysis, target: str) -> Mapping[str, Any] | None:
    return next((fit for fit in analysis["fits"] if fit["target"] == target), None)


def fit_parts(analysis: Analysis) -> list[str]:
    parts = []
    bases = {run["name"] for run in analysis["runs"] if run["is_base"]}
    fit = fit_of(analysis, analysis["target"])
    if fit and fit["predictions"]:
        dots = [Dot(p["run"], p["predicted"], p["measured"], _kind(p["run"], bases)) for p in fit["predictions"]]
        chart = dot_chart(
            f"Measured against predicted {fit['target']}", dots, "predicted from the other runs", "measured", diagonal=True
        )
        parts.append(
            figure(
                fit["target"],
                "Each run predicted by a model that has not seen it. On the dashed line both agree; squares are "
                "the base mixture. " + _fit_in_words(fit),
                chart,
            )
        )
    if analysis["fits"]:
        rows = [
            [f["target"], _r2(f["r2_left_out"]), number(f["rmse_left_out"]), number(f["noise"]), p_text(f["f_p"])]
            for f in analysis["fits"]
        ]
        note = (
            "R² of runs left out: 1 is perfect; 0 or less: the mean of the other runs predicts as well. Noise: standard deviation "
            "between seeds of the base mixture."
        )
        parts.append(
            table(
                "All targets",
                ["target", "R² left out", "error left out", "noise", "p of the shares"],
                rows,
                num_texts=1,
                note=note,
                wide=False,
            )
        )
    return parts


def _kind(name: str, bases: set[str]) -> str:
    """What to draw for a run, or for several that were averaged ("A and B")."""
    return "base" if bases & set(name.split(" and ")) else "run"


def _fit_in_words(fit: Mapping[str, Any]) -> str:
    r2 = fit["r2_left_out"]
    if r2 is None:
        return ""
    if r2 <= 0:
        return "The shares predict no better than the mean of the other runs."
    return f"The shares account for {r2:.0%} of the differences between runs that the model had not seen."


def proposal_parts(analysis: Analysis) -> list[str]:
    proposal = analysis["proposal"]
    if not proposal:
        return []
    better, is_clear = "lower" if lower_is_better(proposal["target"]) else "higher", proposal["is_distinguishable"]
    words = (
        f'<div class="wide table verdict"><h3>{"A mixture to try" if is_clear else "No mixture can be recommended"}'
        f'</h3><p class="ink">{escape(proposal["text"])}</p></div>'
    )
    if not proposal["shares"]:
        return [words]
    rows = [
        [group, f"{proposal['base_shares'].get(group, 0.0):.1%}", f"{proposal['shares'].get(group, 0.0):.1%}"]
        for group in analysis["groups"]
    ]
    note = (
        "A prediction from a few small runs: train it, with two seeds or more, beside the base before believing it. It holds for "
        "this model size and token budget."
    )
    shares = table(
        "Shares",
        ["group", "base", "proposal" if proposal["is_distinguishable"] else "best predicted"],
        rows,
        num_texts=1,
        note=note,
        wide=False,
    )
    scores = [
        ["base mixture", number(proposal["base_predicted"]), "–"],
        ["this mixture", number(proposal["predicted"]), f"{number(proposal['low'])} to {number(proposal['high'])}"],
        ["gain over the base", number(proposal["gain"]), f"{number(proposal['gain_low'])} to {number(proposal['gain_high'])}"],
    ]
    predicted = table(
        f"Predicted {proposal['target']} ({better} is better)", ["", "predicted", "95% interval"], scores, num_texts=1, wide=False
    )
    parts = [words, shares, predicted]
    if proposal["candidates"]:
        sign = 1 if better == "lower" else -1
        ranked = sorted(proposal["candidates"], key=lambda c: sign * c["predicted"])
        listed = [[*(f"{share:.1%}" for share in _ordered(analysis, c["shares"])), number(c["predicted"])] for c in ranked]
        head = [*analysis["groups"], "predicted"]
        parts.append(details("Other feasible mixtures, best predicted first", table("", head, listed, num_texts=0)))
    return parts


def mixed_model_parts(analysis: Analysis) -> list[str]:
    model = analysis["mixed_model"]
    if not model:
        return []
    rows = [Effect(term["name"], term["effect"], term["low"], term["high"]) for term in model["terms"]]
    caption = (
        f"The probability of {model['target']} if all text were of one group, extrapolated from the mixtures, with 95% intervals; "
        f"runs and questions are random effects. Standard deviation between runs {number(model['sd_run'])}, between questions "
        f"{number(model['sd_item'])}."
    )
    return [
        figure(
            "Effects, questions taken one by one",
            caption,
            effect_chart("Terms of the mixed model", rows, "probability at a share of 100%"),
        )
    ]


def forgetting_parts(analysis: Analysis) -> list[str]:
    ledger = analysis["forgetting"]
    if not ledger:
        return []
    bases = {run["name"] for run in analysis["runs"] if run["is_base"]}
    dots = [Dot(one["run"], one["medical_gain"], one["general_loss"], _kind(one["run"], bases)) for one in ledger]
    chart = dot_chart("General loss against medical gain", dots, "medical gain", "general loss", zero=True)
    rows = [[one["run"], f"{one['medical_gain']:+.4f}", f"{one['general_loss']:+.4f}"] for one in ledger]
    return [
        figure(
            "Gain and loss",
            "Against the mean of the base mixture, validation losses in nats per token. Right: better in medicine; up: worse in "
            "general text. The best place is at the lower right.",
            chart,
        ),
        table("Ledger", ["run", "medical gain", "general loss"], rows, num_texts=1, wide=False),
    ]


def scaling_figures(analysis: Analysis) -> list[str]:
    scaling = [one for one in analysis["scaling"] if one["points"]]
    names = sorted({name for one in scaling for point in one["points"] for name in point if name != "tokens"})
    figures = []
    for name in names:
        lines = []
        for one in scaling:
            points = [(p["tokens"], p[name]) for p in one["points"] if p.get(name) is not None]
            if points:
                lines.append((one["run"], points, points[-1][1]))
        ramp = ramp_of([value for _, _, value in lines], True)
        chart = run_lines(f"{name} over tokens", lines, ramp, "validation loss (nats per token)", "tokens trained on")
        figures.append(
            figure(
                name,
                "A line a run, coloured by its last value. Where lines still cross, the order of the mixtures depends "
                "on the token budget.",
                chart,
            )
        )
    return figures
