"""How good were the answers, and could they be luck?

In: records, one dict per question (see `answer`), holding the facts of the question and `picked`: {method: letters}. Out: counts,
accuracy, points, intervals and the chance level, for the whole exam and by year, paper, subject, category, type, image, language
and contamination.
Invariant: pure functions of the records; how the letters were found (likelihood, generation) does not matter here.

Accuracy is given twice, because some questions cannot be scored (numbers, options missing in the data): over the
questions that were scored, and over all, where an unscored one counts as wrong. Chance is what guessing would reach:
the mean over questions of (accepted answers) / (ways to pick k of m choices).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.correct import Record, chance_of, is_correct
from megatron_jmed.evaluate.intervals import bootstrap_difference, bootstrap_interval, mcnemar_p, wilson_interval
from megatron_jmed.evaluate.passing import judge, num_forbidden
from megatron_jmed.evaluate.question import ExamRules

FORMAT_VERSION = 2
UNKNOWN = "unknown"

GROUPS: dict[str, Callable[[Record], str]] = {
    "by_year": lambda r: str(r["year"] or UNKNOWN),
    "by_paper": lambda r: r["paper"] or UNKNOWN,
    "by_type": lambda r: r["type"],
    "by_image": lambda r: "with image" if r["needs_image"] else "text only",
    "by_subject": lambda r: r["subject"] or UNKNOWN,
    "by_category": lambda r: r["category"] or UNKNOWN,
    "by_language": lambda r: r["lang"] or UNKNOWN,
    "by_contamination": lambda r: r.get("contamination", UNKNOWN),
}


def summarize(records: Iterable[Record], method: str) -> dict[str, Any]:
    """Counts, accuracy with intervals and chance, and points of `records` under one method."""
    every = list(records)
    scored = [r for r in every if r["not_scored"] is None]
    right = [is_correct(r, method) for r in scored]
    num_correct, points = sum(right), [r["points"] for r in scored]
    gained = [p * is_right for p, is_right in zip(points, right, strict=True)]
    low, high = wilson_interval(num_correct, len(scored))
    chance = sum(map(chance_of, scored)) / len(scored) if scored else None
    return {
        "num_questions": len(every),
        "num_scored": len(scored),
        "num_correct": num_correct,
        "accuracy": num_correct / len(scored) if scored else None,
        "accuracy_over_all": num_correct / len(every) if every else None,
        "interval_low": low,
        "interval_high": high,
        "bootstrap": bootstrap_interval(right, [1] * len(scored)),
        "chance": chance,
        "verdict": _verdict(low, high, chance),
        "points": sum(gained),
        "points_scored": sum(points),
        "points_possible": sum(r["points"] for r in every),
        "points_bootstrap": bootstrap_interval(gained, points),
        "num_forbidden_picked": num_forbidden(every, method),
    }


def _verdict(low: float, high: float, chance: float | None) -> str:
    if chance is None:
        return "nothing was scored"
    if low <= chance <= high:
        return "not distinguishable from chance"
    return "above chance" if low > chance else "below chance"


def score_records(
    records: list[Record], methods: Sequence[str], rules: dict[int | None, ExamRules] | None = None
) -> dict[str, Any]:
    """All scores of one sitting, as they are written into the scores file; groups in which all questions are alike are left out."""
    reasons = [r["not_scored"] for r in records if r["not_scored"] is not None]
    scores: dict[str, Any] = {
        "methods": list(methods),
        "num_questions": len(records),
        "num_scored": len(records) - len(reasons),
        "not_scored": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        "num_prompts_truncated": sum(r["num_truncated_tokens"] > 0 for r in records),
        "accuracy": {method: summarize(records, method) for method in methods},
    }
    if any("text" in r for r in records):
        scores["format"] = _format(records)
    if rules:
        scores["passing"] = _passing(records, methods, rules)
    for name, key_of in GROUPS.items():
        keys = sorted({key_of(r) for r in records})
        scores[name] = {
            key: {method: summarize([r for r in records if key_of(r) == key], method) for method in methods}
            for key in keys if keys != [UNKNOWN]
        }  # fmt: skip
    return scores


def _format(records: list[Record]) -> dict[str, Any]:
    """How many written answers could be read, and, where the template asks for a form, how many had it."""
    written = [r for r in records if "text" in r]
    found: dict[str, Any] = {"num_written": len(written), "num_read": sum(bool(r["picked"]["generated"]) for r in written)}
    if all("is_compliant" in r for r in written):
        num_compliant = sum(r["is_compliant"] for r in written)
        low, high = wilson_interval(num_compliant, len(written))
        found |= {"num_compliant": num_compliant, "compliance": num_compliant / len(written)}
        found |= {"interval_low": low, "interval_high": high}
    return found


def _passing(records: list[Record], methods: Sequence[str], rules: dict[int | None, ExamRules]) -> dict[str, Any]:
    """Verdicts by holding (year), or under "all" where one set of rules holds for the whole exam."""
    return {
        "all" if year is None else str(year): {
            method: judge([r for r in records if year is None or r["year"] == year], method, its_rules) for method in methods
        }
        for year, its_rules in rules.items()
    }


def check_comparable(ids: Sequence[str], base: dict[str, Any], methods: Sequence[str], name: str) -> None:
    """ExamError where a base model's scores file holds other questions, or was scored in another way."""
    theirs = {r.get("id") for r in base.get("questions", ())}
    if set(ids) != theirs:
        raise ExamError(f"{name}: holds {len(theirs)} questions that are not the {len(ids)} asked here; compare the same exam")
    if set(methods) != set(base["methods"]):
        raise ExamError(f"{name}: was scored by {', '.join(base['methods'])}, not by {', '.join(methods)}; compare the same way")


def compare_records(records: Sequence[Record], base: dict[str, Any], methods: Sequence[str], name: str) -> dict[str, Any]:
    """Paired comparison with a base model's scores file on the same questions; ExamError where they are not the same."""
    check_comparable([r["id"] for r in records], base, methods, name)
    theirs = {r["id"]: r for r in base["questions"]}
    both = [(r, theirs[r["id"]]) for r in records if r["not_scored"] is None and theirs[r["id"]]["not_scored"] is None]
    compared: dict[str, Any] = {"model": base["model"]["name"], "num_questions": len(both)}
    for method in methods:
        ours, others = ([is_correct(pair[side], method) for pair in both] for side in (0, 1))
        gained = sum(a and not b for a, b in zip(ours, others, strict=True))
        lost = sum(b and not a for a, b in zip(ours, others, strict=True))
        low, high = bootstrap_difference(ours, others) if both else (0.0, 0.0)
        compared[method] = {"difference": (gained - lost) / max(1, len(both)), "interval_low": low, "interval_high": high,
                            "num_gained": gained, "num_lost": lost, "p_value": mcnemar_p(gained, lost)}  # fmt: skip
    return compared


# --- the file ------------------------------------------------------------------------------------------------------


def save_scores(scores: dict[str, Any], path: Path) -> None:
    """Write a scores file atomically, so that a file which exists is complete."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def load_scores(path: Path) -> dict[str, Any]:
    """Read a scores file; ExamError when it is none, or of another format."""
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExamError(f"{path}: no scores file ({error}); take the exam again") from None
    found = scores.get("format_version") if isinstance(scores, dict) else None
    if found != FORMAT_VERSION:
        raise ExamError(f"{path}: format_version is {found}; expected {FORMAT_VERSION}; delete it and take the exam again")
    wanted = {"exam", "model", "methods", "accuracy", "num_questions", "num_scored", "not_scored", *GROUPS}
    missing = sorted(wanted - set(scores))
    if missing:
        raise ExamError(f"{path}: {', '.join(missing)} missing; take the exam again")
    methods, accuracy = scores["methods"], scores["accuracy"]
    if not isinstance(methods, list) or not methods or not isinstance(accuracy, dict) or set(methods) - set(accuracy):
        raise ExamError(f"{path}: accuracy does not have each of the methods {methods}; take the exam again")
    return scores
