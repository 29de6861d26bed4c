"""Which mixture makes the better model, and how sure are we? The study's analysis as one page.

In: the analysis (analysis.json: the plain dictionary that mixture_statistics.py returns). Out: HTML text that needs no network; the
tables beside it are mixture_tables.py's. Invariant: the page is a pure function of the analysis, says first what so few runs cannot
show, and never an effect, a correlation or a prediction without its interval.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from megatron_jmed.evaluate.mixture_correlations import correlation_parts
from megatron_jmed.evaluate.mixture_runs import lower_is_better
from megatron_jmed.evaluate.mixture_sections import (
    effect_parts,
    fit_of,
    fit_parts,
    forgetting_parts,
    mixed_model_parts,
    mixture_figures,
    proposal_parts,
    runs_table,
    scaling_figures,
)
from megatron_jmed.evaluate.page import page, section
from megatron_jmed.evaluate.svg import short_number

Analysis = Mapping[str, Any]

HIGH_VIF = 10.0
CLOSURE = (
    "Shares add up to 1: more of one group is always less of others, so shares correlate with each other, and a raw correlation of "
    "a score with one share also holds what the others do. Effects are therefore of taking a tenth of all tokens from the others, "
    "in proportion; the correlations are description, not cause."
)


def render_study(analysis: Analysis, title: str = "Mixture study") -> str:
    """The whole page as HTML."""
    target = analysis["target"]
    sections = [
        section("Proposed next mixture", proposal_parts(analysis), "no mixture was proposed"),
        section("Mixtures", [*mixture_figures(analysis), runs_table(analysis)], "no run"),
        section("Effects of shares", effect_parts(analysis), "no effect could be estimated: too few runs for so many groups"),
        section("Correlations of features with scores", correlation_parts(analysis), "no correlation could be computed"),
        section("Do the shares predict a run that was left out?", fit_parts(analysis), "too few runs to leave one out"),
        section(
            "Runs and questions as random effects", mixed_model_parts(analysis), "not fitted: no exam with records of its items"
        ),
        section(
            "What medicine makes the model forget", forgetting_parts(analysis), "no general text was validated beside medical text"
        ),
        section("Validation losses over tokens", scaling_figures(analysis), "no validation was recorded"),
    ]
    runs = analysis["runs"]
    subtitle = (
        f"{len(runs)} runs, {sum(run['is_base'] for run in runs)} of them of the base mixture with different seeds · groups: "
        f"{', '.join(analysis['groups'])} · judged by: {target} ({'lower' if lower_is_better(target) else 'higher'} is better)"
    )
    body = [f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>", _tiles(analysis), _notes(analysis), *sections]
    return page(title, body).replace("</style>", f"{STYLE}</style>", 1)


def _tiles(analysis: Analysis) -> str:
    runs, target, power = analysis["runs"], analysis["target"], analysis["power"]
    values = {run["name"]: run["scores"][target] for run in runs}
    best = (min if lower_is_better(target) else max)(values, key=values.__getitem__)
    fit = fit_of(analysis, target)
    noise = fit["noise"] if fit else None
    visible = [c for c in analysis["correlations"] if c["is_significant"]]
    tiles = [
        ("Best run measured", short_number(values[best], 4), f"{best}; {target}"),
        (
            "Between seeds",
            "unknown" if noise is None else f"± {short_number(noise)}",
            "standard deviation of the base mixture" if noise is not None else "the base mixture was not repeated",
        ),
        (
            "Smallest correlation visible",
            f"|r| {power['smallest_r']:.2f}",
            f"with {power['num_runs']} runs, power {power['power']:.0%}",
        ),
        (
            "Significant correlations",
            f"{len(visible)} of {len(analysis['correlations'])}",
            f"at most {power['alpha']:.0%} of these expected false (Benjamini-Hochberg)",
        ),
    ]
    if proposal := analysis["proposal"]:
        tiles.append(
            (
                "Proposal",
                "yes" if proposal["is_distinguishable"] else "none",
                "distinguishable from the base mixture"
                if proposal["is_distinguishable"]
                else "the data cannot tell mixtures apart",
            )
        )
    cells = [
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(note)}</small></div>'
        for name, value, note in tiles
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _notes(analysis: Analysis) -> str:
    """What the reader must know before believing the pictures."""
    power, groups = analysis["power"], analysis["groups"]
    notes = [
        f"With {power['num_runs']} runs a correlation below |r| = {power['smallest_r']:.2f} cannot be seen reliably (power "
        f"{power['power']:.0%} at the {power['alpha']:.0%} level, for one pair alone; many pairs need more). A grey cell is not "
        "evidence that a feature does not matter.",
        CLOSURE,
    ]
    tangled = [one for one in analysis["collinearity"] if _is_tangled(one["vif"])]
    if tangled:
        names = ", ".join(f"{one['feature']} ({_vif(one['vif'])})" for one in tangled[:6]) + (
            " and others" if len(tangled) > 6 else ""
        )
        notes.append(
            f"{len(tangled)} of {len(analysis['collinearity'])} features are nearly or wholly determined by the others (variance "
            f"inflation above {HIGH_VIF:g}): {names}. These runs cannot say which of them acts."
        )
    if _noise_unknown(analysis):
        notes.append("The base mixture was not repeated with seeds, so nothing is known of chance between two trainings.")
    if len(groups) == 2:
        notes.append(
            "With two groups there is one direction to move in: all that is said of one share is said, reversed, of the other."
        )
    notes += analysis.get("notes", [])
    return f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>'


def _noise_unknown(analysis: Analysis) -> bool:
    return sum(run["is_base"] for run in analysis["runs"]) < 2


def _is_tangled(vif: float | None) -> bool:
    return vif is None or not vif <= HIGH_VIF


def _vif(vif: float | None) -> str:
    return "wholly" if vif is None or vif > 1e6 else f"VIF {short_number(vif)}"


STYLE = """
.grid { grid-template-columns:repeat(auto-fill, minmax(min(100%, 500px), 1fr)); } th, td { overflow-wrap:break-word; }
.table:not(.wide) th, .table:not(.wide) td { padding-right:14px; }
.legend i.unsure { background:var(--faint); opacity:0.35; } .verdict p.ink { color:var(--ink); font-size:15px; }
@media print { main { max-width:none; } figure, .table { break-inside:avoid; } svg { max-height:11cm; }
  .tile b { font-size:20px; } }
"""
