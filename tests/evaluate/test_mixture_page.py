"""The page of a study is one well-formed file that says what so few runs cannot show; its tables hold the same numbers."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from megatron_jmed.evaluate.mixture_charts import Effect, effect_chart
from megatron_jmed.evaluate.mixture_page import render_study
from megatron_jmed.evaluate.mixture_pictures import Mixture, ramp_of, simplex_plot
from megatron_jmed.evaluate.mixture_tables import TABLES, write_tables

VOID = {"meta", "br", "hr", "img", "link", "input"}
GROUPS = ("en", "ja", "ja+mt", "zh", "ko")
TARGETS = (
    "exam cloze",
    "exam cloze / ja",
    "exam cloze / en",
    "valid loss medical_ja",
    "valid loss medical_en",
    "valid loss wiki_ja",
)


class Page(HTMLParser):
    """Collects words, tags and references; fails on any tag that is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def sample_analysis(num_groups: int = 3, is_distinguishable: bool = True) -> dict[str, Any]:
    """A study of 12 mixtures and three seeds of the base, in which Japanese helps the exam; written down as the analysis would."""
    random, groups = np.random.default_rng(7), GROUPS[:num_groups]
    points = np.vstack([random.dirichlet(np.ones(num_groups), 12), np.tile(np.ones(num_groups) / num_groups, (3, 1))])
    runs = []
    for number, shares in enumerate(points):
        is_base, ja = number >= 12, shares[1]
        scores = {
            "exam cloze": 0.35 + 0.2 * ja,
            "exam cloze / ja": 0.3 + 0.35 * ja,
            "exam cloze / en": 0.45 - 0.2 * ja,
            "valid loss medical_ja": 4.1 - 0.9 * ja,
            "valid loss medical_en": 3.4 + 0.8 * ja,
            "valid loss wiki_ja": 4.4 - 0.5 * ja,
        }
        scores = {name: float(value + random.normal(0, 0.015)) for name, value in scores.items()}
        features = {f"share {group}": float(share) for group, share in zip(groups, shares, strict=True)}
        features |= {
            "epochs max": float(1 + 6 * shares.max()),
            "unique tokens": float(2e5 * (1 - shares.max() / 2)),
            "characters a token": float(1.9 + 2 * shares[0]),
            "exam cloze words met": float(0.6 + 0.3 * ja + random.normal(0, 0.05)),
        }
        runs.append(
            {
                "name": f"base_seed_{number - 11}" if is_base else f"mix_{number + 1:02d}",
                "seed": max(1, number - 11),
                "is_base": is_base,
                "tokens_read": 245_760,
                "shares": dict(zip(groups, map(float, shares), strict=True)),
                "features": features,
                "scores": scores,
                "items": {"cloze": {"cloze-1": bool(number % 2), "cloze-2": True}},
            }
        )
    names = list(runs[0]["features"])
    columns = {name: np.array([run["features"][name] for run in runs]) for name in names}
    correlations = []
    for feature in names:
        for target in TARGETS:
            r = float(np.corrcoef(columns[feature], [run["scores"][target] for run in runs])[0, 1])
            half = 0.54
            correlations.append(
                {
                    "feature": feature,
                    "target": target,
                    "num_runs": 13,
                    "pearson": r,
                    "low": max(-1, r - half),
                    "high": min(1, r + half),
                    "spearman": 0.95 * r,
                    "p": 0.0004 if abs(r) > 0.75 else 0.2,
                    "q": 0.004 if abs(r) > 0.75 else 0.31,
                    "bootstrap_low": None,
                    "bootstrap_high": None,
                    "partial": None if feature == "unique tokens" else 0.9 * r,
                    "is_significant": abs(r) > 0.75,
                }
            )
    means = points.mean(0)
    effects = [
        {"target": target, "group": group, "effect": sign * size, "low": sign * size - 0.012, "high": sign * size + 0.012, "p": p}
        for target, sign in zip(TARGETS, (1, 1, -1, -3, 3, -2), strict=True)
        for group, size, p in zip(groups, (-0.006, 0.021, -0.011, -0.001, 0.002), (0.3, 0.002, 0.07, 0.9, 0.8), strict=False)
    ]
    fits = [
        {
            "target": target,
            "r2_left_out": 0.81 - 0.2 * number,
            "rmse_left_out": 0.017,
            "noise": 0.0148,
            "f_p": 0.0002 * 5**number,
            "predictions": [
                {
                    "run": run["name"],
                    "measured": run["scores"][target],
                    "predicted": float(run["scores"][target] + random.normal(0, 0.015)),
                }
                for run in runs[:12]
            ]
            + [{"run": "base_seed_1 and base_seed_2 and base_seed_3", "measured": 0.41, "predicted": 0.42}],
        }
        for number, target in enumerate(TARGETS)
    ]
    best = dict(
        zip(groups, [0.15, 0.8, *[0.05 / (num_groups - 2)] * (num_groups - 2)] if num_groups > 2 else [0.2, 0.8], strict=True)
    )
    base = dict(zip(groups, map(float, means), strict=True))
    text = (
        "Try ja 80%: exam cloze is predicted to be better by 0.09."
        if is_distinguishable
        else "These 13 mixtures cannot tell the best from the base mixture."
    )
    proposal = {
        "target": "exam cloze",
        "is_distinguishable": is_distinguishable,
        "shares": best,
        "predicted": 0.512,
        "low": 0.486,
        "high": 0.538,
        "base_shares": base,
        "base_predicted": 0.42,
        "gain": 0.092,
        "gain_low": 0.055,
        "gain_high": 0.129,
        "text": text,
        "candidates": [{"shares": best, "predicted": 0.512}, {"shares": base, "predicted": 0.42}],
    }
    scaling = [
        {
            "run": run["name"],
            "points": [
                {
                    "tokens": 81_920 * step,
                    **{name: run["scores"][name] + 1.4 / step - 1.4 / 3 for name in TARGETS if name.startswith("valid")},
                }
                for step in (1, 2, 3)
            ],
        }
        for run in runs
    ]
    ledger = [
        {
            "run": run["name"],
            "medical_gain": 3.8 - run["scores"]["valid loss medical_ja"],
            "general_loss": run["scores"]["valid loss wiki_ja"] - 4.2,
        }
        for run in runs
    ]
    mixed = {
        "target": "a right answer in cloze",
        "terms": [
            {"name": group, "effect": 0.2 * i, "low": 0.2 * i - 0.15, "high": 0.2 * i + 0.15} for i, group in enumerate(groups)
        ],
        "sd_run": 0.011,
        "sd_item": 0.31,
    }
    return {
        "runs": runs,
        "groups": list(groups),
        "features": names,
        "targets": list(TARGETS),
        "target": "exam cloze",
        "design": None,
        "correlations": correlations,
        "power": {"num_runs": 13, "smallest_r": 0.7, "power": 0.8, "alpha": 0.05},
        "collinearity": [{"feature": name, "vif": None if name.startswith("share") else 3.2} for name in names],
        "feature_correlations": np.corrcoef(np.array(list(columns.values()))).tolist(),
        "effects": effects,
        "fits": fits,
        "mixed_model": mixed,
        "proposal": proposal,
        "forgetting": ledger,
        "scaling": scaling,
        "notes": ["One run was left out."],
    }


@pytest.mark.parametrize("num_groups", [2, 3, 5])
def test_page_is_whole_refers_to_nothing_and_says_what_cannot_be_seen(num_groups):
    page = Page(render_study(sample_analysis(num_groups)))
    assert page.links == [] and "script" not in page.tags
    assert page.tags.count("svg") >= 1 + 6 + 2 + 1 + 1 + 1 + 3  # mixtures, effects, correlations, fit, mixed model, ledger, scaling
    assert "below |r| = 0.70 cannot be seen reliably" in page.text and "Shares add up to 1" in page.text
    assert "share ja (wholly)" in page.text and "One run was left out." in page.text
    assert "Try ja 80%" in page.text and "0.055 to 0.129" in page.text
    assert "Each run predicted by a model that has not seen it" in page.text
    assert ("With two groups there is one direction" in page.text) == (num_groups == 2)


def test_page_without_a_distinguishable_mixture_recommends_none():
    analysis = sample_analysis(is_distinguishable=False)
    page = Page(render_study(analysis))
    assert "No mixture can be recommended" in page.text and "A mixture to try" not in page.text
    assert "proposal (predicted)" not in page.text


def test_page_of_a_study_that_could_not_say_much_says_so():
    analysis = sample_analysis() | {
        "effects": [],
        "fits": [],
        "mixed_model": None,
        "forgetting": [],
        "scaling": [],
        "collinearity": [],
    }
    analysis["proposal"] = {
        "target": "exam cloze",
        "is_distinguishable": False,
        "shares": None,
        "base_shares": {"en": 1.0},
        "text": "The runs cannot tell mixtures apart.",
        "candidates": [],
    }
    for run in analysis["runs"]:
        run["is_base"] = False
    page = Page(render_study(analysis))
    for words in (
        "The runs cannot tell mixtures apart.",
        "too few runs to leave one out",
        "no general text was validated",
        "nothing is known of chance between two trainings",
        "not fitted: no exam",
    ):
        assert words in page.text


def test_texts_are_escaped_and_the_page_is_a_function_of_the_analysis():
    analysis = sample_analysis()
    analysis["runs"][0]["name"] = "<b>&"
    whole = render_study(analysis)
    assert whole == render_study(json.loads(json.dumps(analysis))) and "&lt;b&gt;&amp;" in whole
    Page(whole)


def test_what_is_not_significant_is_grey_and_what_is_has_a_colour():
    page = render_study(sample_analysis())
    correlations = {(c["feature"], c["target"]): c for c in sample_analysis()["correlations"]}
    sure = correlations["share ja", "exam cloze / ja"]
    unsure = next(c for c in correlations.values() if not c["is_significant"])
    for c, tints in ((sure, ("var(--hot)",)), (unsure, ("var(--faint)",))):
        tip = page.index(f"<title>{c['feature']}, {c['target']}: r = {c['pearson']:+.2f}")
        assert page[page.rindex("<rect", 0, tip) : tip].count(tints[0]) == 1
    drawn = effect_chart("", [Effect("a", 0.2, 0.1, 0.3), Effect("b", 0.2, -0.1, 0.5)], "")
    assert drawn.count('fill="var(--c1)"') == 1 and drawn.count('fill="var(--card)"') == 1


def test_best_is_yellow_for_losses_and_for_accuracies():
    assert (
        ramp_of([1.0, 2.0], lower_is_better=True).colour(1.0) == ramp_of([1.0, 2.0], lower_is_better=False).colour(2.0) == "#fee838"
    )
    assert ramp_of([1.0, 1.0], lower_is_better=False).colour(1.0)  # all alike


def test_corners_of_the_triangle_are_pure_mixtures():
    corners = [
        Mixture(name, shares, 0.1 * i)
        for i, (name, shares) in enumerate({"left": (1, 0, 0), "right": (0, 1, 0), "top": (0, 0, 1)}.items())
    ]
    drawn = simplex_plot(("en", "ja", "ja+mt"), corners, ramp_of([0.0, 0.2], False), "exam")
    for name, place in (("left", ("90.0", "363.1")), ("right", ("470.0", "363.1")), ("top", ("280.0", "34.0"))):
        circle = drawn[drawn.rindex("<circle", 0, drawn.index(f"<title>{name}:")) :]
        assert circle.startswith(f'<circle cx="{place[0]}" cy="{place[1]}"')


def test_tables_hold_the_numbers_twice_and_the_same_bytes_again(tmp_path: Path):
    analysis = sample_analysis()
    written = write_tables(analysis, tmp_path)
    assert {path.name for path in written} == {f"{name}.{kind}" for name in TABLES for kind in ("csv", "parquet")}
    before = {path: path.read_bytes() for path in written}
    with open(tmp_path / "runs.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 15 and float(rows[3]["score: exam cloze"]) == analysis["runs"][3]["scores"]["exam cloze"]
    whole = pyarrow.parquet.read_table(tmp_path / "correlations.parquet").to_pylist()
    assert [row["pearson"] for row in whole] == [c["pearson"] for c in analysis["correlations"]]
    assert pyarrow.parquet.read_table(tmp_path / "items.parquet").num_rows == 30
    write_tables(json.loads(json.dumps(analysis)), tmp_path)
    assert {path: path.read_bytes() for path in written} == before
