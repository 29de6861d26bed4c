"""How are scores shown in a terminal?

In: a scores file's content. Out: lines of text: the whole exam, each year and type, then format, passing, comparison.
"""

from typing import Any

LABELS = {"general": "other questions", "essential": "essential questions", "forbidden": "forbidden choices"}


def scores_as_text(scores: dict[str, Any]) -> str:
    """A small table for the terminal."""
    rows = [("all", scores["accuracy"])]
    for group in ("by_year", "by_type", "by_image", "by_contamination"):
        rows += scores[group].items() if len(scores[group]) > 1 else []
    lines = [f"{scores['exam']}, {scores['model']['name']}: {scores['num_scored']} of {scores['num_questions']} scored"]
    lines += [f"  not scored: {count} ({reason})" for reason, count in scores["not_scored"].items()]
    lines.append(f"{'':12}{'method':>10}{'right':>12}{'accuracy':>10}{'95 % interval':>16}{'chance':>8}{'points':>12}")
    lines += [_row(name, method, by_method[method]) for name, by_method in rows for method in scores["methods"]]
    return "\n".join([*lines, *_format(scores), *_passing(scores), *_comparison(scores)])


def _row(name: str, method: str, s: dict[str, Any]) -> str:
    right, points = f"{s['num_correct']}/{s['num_scored']}", f"{s['points']}/{s['points_possible']}"
    if s["accuracy"] is None:
        return f"{name:12}{method:>10}{right:>12}  nothing was scored"
    interval = f"{s['interval_low']:.1%} - {s['interval_high']:.1%}"
    row = f"{name:12}{method:>10}{right:>12}{s['accuracy']:>10.1%}{interval:>16}{s['chance']:>8.1%}{points:>12}"
    return row if s["verdict"] == "above chance" else f"{row}  {s['verdict']}"


def _format(scores: dict[str, Any]) -> list[str]:
    return [format_as_text(scores["format"])] if "format" in scores else []


def format_as_text(f: dict[str, Any]) -> str:
    """How many written answers could be read, and how many had the form that was asked for (where one was)."""
    share = f" in the form asked for: {f['num_compliant']} ({f['compliance']:.1%})" if "compliance" in f else ""
    return f"readable: {f['num_read']} of {f['num_written']} written answers;{share or ' no form was asked for'}"


def _passing(scores: dict[str, Any]) -> list[str]:
    lines = []
    for name, by_method in scores.get("passing", {}).items():
        for method, verdict in by_method.items():
            said = ", ".join(rule_as_text(rule, found) for rule, found in verdict["rules"].items())
            lines.append(f"{name:12}{method:>10}  {passed_as_text(verdict['passed'])}: {said}")
    return lines


def passed_as_text(passed: bool | None) -> str:
    return {True: "passed", False: "not passed", None: "undecided"}[passed]


def rule_as_text(name: str, found: dict[str, Any]) -> str:
    """One rule in words: what was reached, and what was needed."""
    if name == "forbidden":
        return f"{found['picked']} forbidden choices (at most {found['allowed']})"
    return f"{LABELS[name]} {found['points']}/{found['possible']} points ({found['needed']:g} needed)"


def _comparison(scores: dict[str, Any]) -> list[str]:
    against = scores.get("against")
    if not against:
        return []
    lines = [f"against {against['model']}, on the same {against['num_questions']} questions (McNemar's exact test):"]
    for method in scores["methods"]:
        c = against[method]
        interval = f"{c['interval_low']:+.1%} to {c['interval_high']:+.1%}"
        lines.append(f"{'':12}{method:>10}  {c['difference']:+.1%} ({interval}), {c['num_gained']} gained, {c['num_lost']} lost, "
                     f"p = {c['p_value']:.2g}")
    return lines
