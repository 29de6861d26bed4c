"""Which pictures and tables tell how the exams went?

In: scores files' contents. Out: tiles, sentences, figures and tables (HTML text): first every sitting in one table and, where an
exam was sat at several checkpoints, its course; then each sitting by year, type, subject and contamination.
Invariant: never a score without its interval and its chance level.
"""

from collections.abc import Sequence
from typing import Any

from megatron_jmed.evaluate.page import details, figure, table
from megatron_jmed.evaluate.score_table import format_as_text, passed_as_text, rule_as_text
from megatron_jmed.evaluate.svg import Interval, Line, Panel, interval_chart, line_chart

Scores = dict[str, Any]

MIN_GROUP = 5  # smaller subjects go to the table only: their interval covers nearly everything
METHOD_NAMES = {"sum": "sum", "per_token": "per token", "per_byte": "per byte", "generated": "written"}
SMALL_GROUPS = (("by_image", ""), ("by_type", ""), ("by_contamination", ""), ("by_language", "language "), ("by_year", "year "))
ALL_GROUPS = ("by_year", "by_type", "by_image", "by_contamination", "by_language", "by_paper", "by_subject", "by_category")


def first_of(scores: Scores) -> dict[str, Any]:
    """The whole exam under the method that is named first."""
    return scores["accuracy"][scores["methods"][0]]


def interval_text(s: dict[str, Any]) -> str:
    return f"{100 * s['interval_low']:.1f}–{100 * s['interval_high']:.1f}%"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def exam_tiles(every: Sequence[Scores]) -> list[tuple[str, str, str]]:
    tiles = []
    for scores in latest_of_each(every):
        s = first_of(scores)
        note = s["verdict"] if s["chance"] is None else f"{interval_text(s)}; chance {s['chance']:.1%}: {s['verdict']}"
        tiles.append((f"{scores['exam']}, accuracy", percent(s["accuracy"]), note))
    return tiles or [("Exams", "none", "no exam was taken")]


def exam_notes(every: Sequence[Scores]) -> list[str]:
    """What the reader must know before believing a score."""
    notes = []
    for scores in every:
        notes += [
            f"{scores['exam']}: {count} of {scores['num_questions']} questions were not scored ({reason})."
            for reason, count in scores["not_scored"].items()
        ]
        luck = [METHOD_NAMES[m] for m in scores["methods"] if scores["accuracy"][m]["verdict"] == "not distinguishable from chance"]
        if luck:
            notes.append(f"{scores['exam']} (compared by {' and by '.join(luck)}): not distinguishable from chance.")
        dirty = scores["by_contamination"].get("contaminated")
        if dirty:
            count = dirty[scores["methods"][0]]["num_questions"]
            notes.append(
                f"{scores['exam']}: {count} of {scores['num_questions']} questions stand in the corpus; read the clean subset."
            )
    unchecked = [scores["exam"] for scores in every if not scores["by_contamination"]]
    if unchecked:
        notes.append(f"Not checked for contamination (the questions may have been in the corpus): {', '.join(unchecked)}.")
    return notes


def exam_parts(every: Sequence[Scores]) -> list[str]:
    if not every:
        return []
    return [_overview(every), *_rows(courses(every)), *(row for s in latest_of_each(every) for row in _rows(_sitting_parts(s)))]


def _rows(parts: Sequence[str]) -> list[str]:
    """Parts that belong together, as one block of the page's width."""
    return [f'<div class="wide grid">{"".join(parts)}</div>'] if parts else []


# --- over checkpoints ----------------------------------------------------------------------------------------------


def sitting_key(scores: Scores) -> tuple[Any, ...]:
    """What sittings must share to be compared: the questions and the way they were put."""
    return tuple(scores.get(name) for name in ("exam_fingerprint", "template", "way", "target", "chat", "num_shots"))


def latest_of_each(every: Sequence[Scores]) -> list[Scores]:
    """Of the same exam put in the same way at several checkpoints, the last; in their order otherwise."""
    latest: dict[Any, Scores] = {}
    for number, scores in enumerate(every):
        key = (sitting_key(scores) if scores.get("tokens") is not None else (), "" if scores.get("tokens") is not None else number)
        if key not in latest or scores["tokens"] >= latest[key]["tokens"]:
            latest[key] = scores
    return list(latest.values())


def courses(every: Sequence[Scores]) -> list[str]:
    """A curve over tokens for each exam that was sat at several checkpoints."""
    groups: dict[Any, list[Scores]] = {}
    for scores in every:
        if scores.get("tokens") is not None and first_of(scores)["accuracy"] is not None:
            groups.setdefault(sitting_key(scores), []).append(scores)
    figures = []
    for group in groups.values():
        if len(group) < 2:
            continue
        group.sort(key=lambda scores: scores["tokens"])
        methods = group[0]["methods"]
        lines = [_course(group, method) for method in methods]
        chance = first_of(group[0])["chance"] or 0.0
        title = f"{group[-1]['exam']} over checkpoints"
        panel = Panel("accuracy", lines, from_zero=True, marks=((chance, "chance"),))
        chart = line_chart(f"Accuracy in {title}", [panel], "tokens trained on", panel_height=190)
        caption = "The strokes are 95% intervals of the first way of comparing. Points whose strokes overlap much may not differ."
        figures.append(figure(title, caption, chart, [METHOD_NAMES[m] for m in methods], of_lines=True))
    return figures


def _course(group: Sequence[Scores], method: str) -> Line:
    s = [scores["accuracy"][method] for scores in group]
    ends = [(x["interval_low"], x["interval_high"]) for x in s] if method == group[0]["methods"][0] else ()
    return Line(METHOD_NAMES[method], [scores["tokens"] for scores in group], [x["accuracy"] for x in s], dots=True, ends=ends)


def _overview(every: Sequence[Scores]) -> str:
    head = ["exam", "model", "put", "tokens", "right", "accuracy", "95% interval", "chance", "points", "passed", "against base"]
    rows = []
    for scores in every:
        s = first_of(scores)
        words = f"{scores.get('template', '')}{' in chat' if scores.get('chat') else ''}"
        shots = f", {scores['num_shots']} shown" if scores.get("num_shots") else ""
        put = f"{words}, {METHOD_NAMES[scores['methods'][0]]}{shots}".replace(" ", "\u00a0")
        tokens = scores.get("tokens")
        right = f"{s['num_correct']} / {s['num_scored']}"
        rows.append([
            scores["exam"], scores["model"]["name"], put, "–" if tokens is None else f"{tokens:,}", right,
            percent(s["accuracy"]), interval_text(s), percent(s["chance"]), f"{s['points']} / {s['points_possible']}",
            _passed(scores), _against(scores),
        ])  # fmt: skip
    return table(
        "Every sitting", head, rows, num_texts=3, note="By the first way of comparing."
    )


def _passed(scores: Scores) -> str:
    method = scores["methods"][0]
    holdings = scores.get("passing", {})
    return ", ".join(f"{name}: {passed_as_text(by_method[method]['passed'])}" for name, by_method in holdings.items()) or "–"


def _against(scores: Scores) -> str:
    if "against" not in scores:
        return "–"
    c = scores["against"][scores["methods"][0]]
    return f"{c['difference']:+.1%} (p = {c['p_value']:.2g})"


# --- one sitting ---------------------------------------------------------------------------------------------------


def _sitting_parts(scores: Scores) -> list[str]:
    first, methods = scores["methods"][0], scores["methods"]
    title = f"{scores['exam']}: {scores['model']['name']}"
    asked = (
        f"{scores['num_scored']} of {scores['num_questions']} questions scored, {scores.get('num_shots', 0)} solved examples shown"
    )
    whole = [(f"all ({METHOD_NAMES[m]})", scores["accuracy"][m], True) for m in methods]
    for group, prefix in SMALL_GROUPS:
        if len(scores[group]) > 1 or group == "by_contamination":
            whole += [(prefix + name, s[first], False) for name, s in scores[group].items()]
    left = [
        _accuracy_figure(f"Accuracy, {title}", f"{asked}. Groups are compared by {METHOD_NAMES[first]}.", whole),
        _summary(scores),
    ]
    large = [
        (name, s[first], False)
        for name, s in scores["by_subject"].items()
        if s[first]["num_scored"] >= MIN_GROUP and name != "unknown"
    ]
    parts = [f'<div class="stack">{"".join(left)}</div>'] if len(large) > 1 else left
    if len(large) > 1:
        large.sort(key=lambda row: -row[1]["accuracy"])
        caption = (
            f"Compared by {METHOD_NAMES[first]}; subjects with at least {MIN_GROUP} scored questions, best first. "
            "About one interval in twenty misses the truth by luck alone."
        )
        parts.append(_accuracy_figure(f"Accuracy by subject, {scores['exam']}", caption, large))
    return [*parts, *_verdicts(scores), _whole_table(scores)]


def _accuracy_figure(title: str, caption: str, rows: Sequence[tuple[str, dict[str, Any], bool]]) -> str:
    intervals = [
        Interval(name, s["accuracy"], s["interval_low"], s["interval_high"], s["chance"],
                 f"{s['accuracy']:.1%}  ({s['num_correct']}/{s['num_scored']})", heading)
        for name, s, heading in rows
        if s["accuracy"] is not None
    ]  # fmt: skip
    if not intervals:
        return figure(title, "No question could be scored.", "")
    legend = ["accuracy with 95% interval", "chance"]
    hint = f"{caption} A hollow dot: not distinguishable from chance."
    return figure(title, hint, interval_chart(title, intervals, "accuracy"), legend)


def _summary(scores: Scores) -> str:
    """The whole exam in words and numbers, one column for each way of comparing."""
    rows = [
        ("right, of those scored", lambda s: f"{s['num_correct']} of {s['num_scored']}"),
        ("accuracy", lambda s: percent(s["accuracy"])),
        ("95% interval (Wilson)", interval_text),
        ("95% interval (bootstrap)", lambda s: "–".join(f"{100 * end:.1f}" for end in s["bootstrap"]) + "%"),
        ("chance", lambda s: percent(s["chance"])),
        ("verdict", lambda s: s["verdict"]),
        ("accuracy over all questions", lambda s: percent(s["accuracy_over_all"])),
        ("points", lambda s: f"{s['points']} of {s['points_possible']}"),
        ("questions with a forbidden choice picked", lambda s: str(s["num_forbidden_picked"])),
    ]
    head = ["compared by", *(METHOD_NAMES[m] for m in scores["methods"])]
    cells = [[name, *(value(scores["accuracy"][m]) for m in scores["methods"])] for name, value in rows]
    note = "“Over all” counts questions that could not be scored as wrong. Forbidden choices would harm the patient."
    if f := scores.get("format"):
        note += f" {format_as_text(f).capitalize()}."
    return table("The whole exam", head, cells, num_texts=1, note=note, wide=False)


def _verdicts(scores: Scores) -> list[str]:
    """Pass rules, and the comparison with a base model."""
    parts = []
    if "passing" in scores:
        rows = [
            [name, METHOD_NAMES[m], passed_as_text(v["passed"]), "; ".join(rule_as_text(*item) for item in v["rules"].items())]
            for name, by_method in scores["passing"].items()
            for m, v in by_method.items()
        ]
        note = "Questions that were not scored give no points. Undecided: no pass line is known, or not the whole exam was asked."
        parts.append(
            table(f"Pass rules, {scores['exam']}", ["holding", "compared by", "verdict", "rules"], rows, num_texts=4, note=note)
        )
    if against := scores.get("against"):
        rows = []
        for m in scores["methods"]:
            c = against[m]
            ends = f"{100 * c['interval_low']:+.1f} to {100 * c['interval_high']:+.1f}%"
            rows.append(
                [METHOD_NAMES[m], f"{c['difference']:+.1%}", ends, str(c["num_gained"]), str(c["num_lost"]), f"{c['p_value']:.2g}"]
            )
        head = ["compared by", "difference", "95% interval (paired bootstrap)", "gained", "lost", "p (McNemar, exact)"]
        note = f"On the same {against['num_questions']} questions. Gained: right here, wrong there. p: of so uneven a split."
        parts.append(table(f"{scores['exam']} against {against['model']}", head, rows, num_texts=1, note=note))
    return parts


def _whole_table(scores: Scores) -> str:
    head = ["group", "compared by", "right", "accuracy", "95% interval", "chance", "verdict", "over all", "points",
            "forbidden picked"]  # fmt: skip
    groups = [("all", scores["accuracy"])]
    for key in ALL_GROUPS:
        groups += list(scores[key].items())
    rows = [_row(name, method, by_method[method]) for name, by_method in groups for method in scores["methods"]]
    return details(f"All scores of {scores['exam']}", table("", head, rows, num_texts=2))


def _row(name: str, method: str, s: dict[str, Any]) -> list[str]:
    right, points = f"{s['num_correct']} / {s['num_scored']}", f"{s['points']} / {s['points_possible']}"
    if s["accuracy"] is None:
        return [name, METHOD_NAMES[method], right, "–", "–", "–", s["verdict"], "–", points, "–"]
    numbers = [percent(s["accuracy"]), interval_text(s), percent(s["chance"]), s["verdict"], percent(s["accuracy_over_all"])]
    return [name, METHOD_NAMES[method], right, *numbers, points, str(s["num_forbidden_picked"])]
