"""Which pictures and tables tell what a run was trained on?

In: a `Run`. Out: figures and tables (HTML text), from its blend.json.
"""

from collections.abc import Sequence
from typing import Any

from megatron_jmed.evaluate.page import figure, table
from megatron_jmed.evaluate.run import Run
from megatron_jmed.evaluate.svg import Bar, bar_chart


def blend_figures(run: Run) -> list[str]:
    if not run.blend:
        return []
    with_consumed = any("consumed_tokens" in source for source in run.blend)
    kinds = ["planned_tokens", *(["consumed_tokens"] if with_consumed else [])]
    legend = ["planned", "consumed"][: len(kinds)]
    totals = [sum(source.get(kind, 0) for source in run.blend) or 1 for kind in kinds]
    languages = list(dict.fromkeys(source["lang"] for source in run.blend))

    def bar(label: str, sources: Sequence[dict[str, Any]], suffix: str = "") -> Bar:
        shares = [sum(s.get(kind, 0) for s in sources) / total for kind, total in zip(kinds, totals, strict=True)]
        return Bar(label, shares, f"{shares[0]:.1%}{suffix}")

    by_source = [bar(s["name"], [s], f" · {s['epochs']:.3g} epochs") for s in run.blend]
    by_language = [bar(lang or "not stated", [s for s in run.blend if s["lang"] == lang]) for lang in languages]
    by_language.sort(key=lambda row: -row.values[0])
    what = "share of tokens"
    return [
        figure("Blend by source", "Share of the run's tokens, and how often each source is read in the plan.",
                bar_chart("Share of every source in the blend", by_source, what), legend if with_consumed else ()),
        figure("Blend by language", "The same tokens, summed by language.",
                bar_chart("Share of every language in the blend", by_language, what), legend if with_consumed else ()),
    ]  # fmt: skip


def blend_tables(run: Run) -> list[str]:
    if not run.blend:
        return []
    head = ["source", "language", "origin", "documents", "tokens", "planned tokens", "epochs", "consumed tokens"]
    rows = [
        [s["name"], s["lang"], s.get("origin", "–").replace("_", "-"), count(s["num_documents"]), count(s["num_tokens"]),
         count(s["planned_tokens"]), f"{s['epochs']:.3f}", count(s.get("consumed_tokens"))]
        for s in run.blend
    ]  # fmt: skip
    return [table("Sources", head, rows, num_texts=3)]


def count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
