"""Which parts of a study's page show correlations, and how little they may mean?

In: the analysis. Out: figures and tables (HTML text). Invariant: never a correlation without its interval in reach.
"""

from collections.abc import Mapping
from typing import Any

from megatron_jmed.evaluate.mixture_charts import Cell, correlation_map
from megatron_jmed.evaluate.page import details, figure, table
from megatron_jmed.evaluate.svg import short_number

Analysis = Mapping[str, Any]


def p_text(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def ends(low: float | None, high: float | None) -> str:
    return f"{signed(low)} to {signed(high)}"


def number(value: float | None) -> str:
    return "–" if value is None else short_number(value)


def correlation_parts(analysis: Analysis) -> list[str]:
    pairs = {(c["feature"], c["target"]): c for c in analysis["correlations"]}
    if not pairs:
        return []
    targets = [t for t in analysis["targets"] if any((f, t) in pairs for f in analysis["features"])]
    features = [f for f in analysis["features"] if any((f, t) in pairs for t in targets)]
    cells = [[_cell(pairs.get((feature, target))) for target in targets] for feature in features]
    chart = correlation_map("Correlation of every feature with every score", features, targets, cells)
    key = (
        '<ul class="legend"><li><i class="hot"></i>positive</li><li><i class="cold"></i>negative</li>'
        '<li><i class="unsure"></i>not significant</li></ul>'
    )
    caption = (
        f"Pearson's r over {analysis['power']['num_runs']} runs. Colour only where the false discovery rate over all pairs is at "
        f"most {analysis['power']['alpha']:.0%}; of losses a negative r is good."
    )
    return [
        figure("Features against scores", caption, key + chart, wide=True),
        *_collinearity_parts(analysis),
        _correlation_table(analysis),
    ]


def _cell(c: Mapping[str, Any] | None) -> Cell:
    if c is None or c["pearson"] is None:
        return Cell(None, False, "")
    tip = (
        f"{c['feature']}, {c['target']}: r = {signed(c['pearson'])} (95% {ends(c['low'], c['high'])}), Spearman "
        f"{signed(c['spearman'])}, p {p_text(c['p'])}, q {p_text(c['q'])}"
    )
    return Cell(c["pearson"], c["is_significant"], tip)


def _correlation_table(analysis: Analysis) -> str:
    head = ["feature", "target", "runs", "r", "95% (Fisher)", "95% (bootstrap)", "Spearman", "partial r", "p (permutation)",
            "q (all pairs)"]  # fmt: skip
    rows = [
        [
            c["feature"],
            c["target"],
            str(c["num_runs"]),
            signed(c["pearson"]),
            ends(c["low"], c["high"]),
            ends(c["bootstrap_low"], c["bootstrap_high"]),
            signed(c["spearman"]),
            signed(c["partial"]),
            p_text(c["p"]),
            p_text(c["q"]),
        ]
        for c in sorted(analysis["correlations"], key=lambda c: (c["q"] if c["q"] is not None else 2, c["feature"], c["target"]))
    ]
    return details("All correlations, the surest first", table("", head, rows, num_texts=2))


def _collinearity_parts(analysis: Analysis) -> list[str]:
    features, between = analysis["features"], analysis["feature_correlations"]
    parts = []
    if features and between:
        cells = [
            [
                Cell(r, r is not None and abs(r) >= 0.7 and a != b, f"{a}, {b}: r = {signed(r)}")
                for b, r in zip(features, row, strict=True)
            ]
            for a, row in zip(features, between, strict=True)
        ]
        chart = correlation_map("Correlations between features", features, features, cells)
        parts.append(
            figure(
                "Features against each other",
                "Where |r| is 0.7 or more (coloured), two features changed together in these "
                "runs, and what one seems to do may be the other's doing.",
                chart,
                wide=True,
            )
        )
    if analysis["collinearity"]:
        rows = [
            [one["feature"], "infinite" if one["vif"] is None or one["vif"] > 1e6 else short_number(one["vif"])]
            for one in analysis["collinearity"]
        ]
        note = "1: independent of all others. Above 10: its own effect cannot be told from theirs. Infinite: it follows from them."
        parts.append(details("Variance inflation of each feature", table("", ["feature", "VIF"], rows, num_texts=1, note=note)))
    return parts
