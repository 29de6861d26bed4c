"""How good were the answers, and could they be luck?

In: records, one dict per question, holding the facts of the question and `picked`: {method: letters}. Out: counts,
accuracy, points, Wilson intervals and the chance level, for the whole exam and by year, paper, category, type and
image.
Invariant: pure functions of the records; how the letters were found (likelihood, generation) does not matter here.

Accuracy is given twice, because some questions cannot be scored (numbers, options missing in the data): over the
questions that were scored, and over all, where an unscored one counts as wrong. The interval is Wilson's at 95 %:

    centre = (p + z^2 / 2n) / (1 + z^2 / n)      half = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)

(E. B. Wilson, JASA 22, 1927), which stays inside [0, 1] also for few questions. Chance is what guessing would reach:
the mean over questions of (accepted answers) / (ways to pick k of m choices).
"""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from megatron_jmed.errors import ExamError

FORMAT_VERSION = 1
METHODS = ("sum", "per_token")  # which log-likelihood was compared: the option's sum, or divided by its token count
Z_95 = 1.959963984540054

Record = dict[str, Any]
GROUPS: dict[str, Callable[[Record], str]] = {
    "by_year": lambda r: str(r["year"]),
    "by_paper": lambda r: r["paper"],
    "by_type": lambda r: r["type"],
    "by_image": lambda r: "text only" if r["text_only"] else "with image",
    "by_category": lambda r: r["category"],
}


def wilson_interval(num_correct: int, num_questions: int) -> tuple[float, float]:
    """The 95 % interval of a proportion; (0, 1), which says nothing, for no questions."""
    if num_questions == 0:
        return 0.0, 1.0
    p, shrink = num_correct / num_questions, Z_95**2 / num_questions
    centre = (p + shrink / 2) / (1 + shrink)
    half = Z_95 / (1 + shrink) * math.sqrt(p * (1 - p) / num_questions + shrink / (4 * num_questions))
    return max(0.0, centre - half), min(1.0, centre + half)


def chance_of(record: Record) -> float:
    """Probability that picking `num_to_pick` of `num_choices` at random is right."""
    if record["always_correct"]:
        return 1.0
    return len(record["answers"]) / math.comb(record["num_choices"], record["num_to_pick"])


def is_correct(record: Record, method: str) -> bool:
    """Whether the picked letters are exactly one of the accepted answers."""
    if record["always_correct"]:
        return True
    return sorted(record["picked"][method]) in [sorted(answer) for answer in record["answers"]]


def summarize(records: Iterable[Record], method: str) -> dict[str, Any]:
    """Counts, accuracy with interval and chance, and points of `records` under one method."""
    every = list(records)
    scored = [r for r in every if r["not_scored"] is None]
    correct = [r for r in scored if is_correct(r, method)]
    low, high = wilson_interval(len(correct), len(scored))
    chance = sum(map(chance_of, scored)) / len(scored) if scored else None
    return {
        "num_questions": len(every),
        "num_scored": len(scored),
        "num_correct": len(correct),
        "accuracy": len(correct) / len(scored) if scored else None,
        "accuracy_over_all": len(correct) / len(every) if every else None,
        "interval_low": low,
        "interval_high": high,
        "chance": chance,
        "verdict": _verdict(low, high, chance),
        "points": sum(r["points"] for r in correct),
        "points_scored": sum(r["points"] for r in scored),
        "points_possible": sum(r["points"] for r in every),
        "num_forbidden_picked": sum(bool(set(r["picked"][method]) & set(r["forbidden"])) for r in scored),
    }


def _verdict(low: float, high: float, chance: float | None) -> str:
    if chance is None:
        return "nothing was scored"
    if low <= chance <= high:
        return "not distinguishable from chance"
    return "above chance" if low > chance else "below chance"


def score_records(records: list[Record]) -> dict[str, Any]:
    """All scores of one sitting, as they are written into the scores file."""
    reasons = [r["not_scored"] for r in records if r["not_scored"] is not None]
    scores: dict[str, Any] = {
        "num_questions": len(records),
        "num_scored": len(records) - len(reasons),
        "not_scored": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        "num_prompts_truncated": sum(r["num_truncated_tokens"] > 0 for r in records),
        "accuracy": {method: summarize(records, method) for method in METHODS},
    }
    for name, key_of in GROUPS.items():
        keys = sorted({key_of(r) for r in records})
        scores[name] = {
            key: {method: summarize([r for r in records if key_of(r) == key], method) for method in METHODS}
            for key in keys
        }
    return scores


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
        raise ExamError(f"{path}: format_version is {found}; expected {FORMAT_VERSION}")
    missing = sorted({"exam", "model", "accuracy", "num_questions", "num_scored", "not_scored", *GROUPS} - set(scores))
    if missing:
        raise ExamError(f"{path}: {', '.join(missing)} missing; take the exam again")
    return scores


def scores_as_text(scores: dict[str, Any]) -> str:
    """A small table for the terminal: the whole exam, each year and each type."""
    rows = [
        ("all", scores["accuracy"]),
        *scores["by_year"].items(),
        *scores["by_type"].items(),
        *scores["by_image"].items(),
    ]
    lines = [f"{scores['exam']}, {scores['model']['name']}: {scores['num_scored']} of {scores['num_questions']} scored"]
    lines += [f"  not scored: {count} ({reason})" for reason, count in scores["not_scored"].items()]
    lines.append(f"{'':12}{'method':>10}{'right':>12}{'accuracy':>10}{'95 % interval':>16}{'chance':>8}{'points':>12}")
    lines += [_text_row(name, method, by_method[method]) for name, by_method in rows for method in METHODS]
    return "\n".join(lines)


def _text_row(name: str, method: str, s: dict[str, Any]) -> str:
    right, points = f"{s['num_correct']}/{s['num_scored']}", f"{s['points']}/{s['points_possible']}"
    if s["accuracy"] is None:
        return f"{name:12}{method:>10}{right:>12}  nothing was scored"
    interval = f"{s['interval_low']:.1%} - {s['interval_high']:.1%}"
    row = f"{name:12}{method:>10}{right:>12}{s['accuracy']:>10.1%}{interval:>16}{s['chance']:>8.1%}{points:>12}"
    return row if s["verdict"] == "above chance" else f"{row}  {s['verdict']}"
