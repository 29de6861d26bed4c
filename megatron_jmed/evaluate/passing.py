"""Would this candidate have passed the exam?

In: the records of one holding of an exam, a method, its `ExamRules`. Out: each rule with what was reached and what was needed.
Invariant: a question that was not scored gives no points, as an empty line on an answer sheet; withdrawn questions are in neither
sum; and where the questions asked are not the whole exam, there is no verdict.
"""

from collections.abc import Sequence
from typing import Any

from megatron_jmed.evaluate.correct import Record, is_correct
from megatron_jmed.evaluate.question import ExamRules


def judge(records: Sequence[Record], method: str, rules: ExamRules) -> dict[str, Any]:
    """Every rule of the exam; `passed` is None where a rule cannot be decided."""
    found: dict[str, dict[str, Any]] = {}
    rest = [r for r in records if not r["essential"]] if rules.essential_ratio is not None else list(records)
    if rules.essential_ratio is not None:
        found["essential"] = _points_rule([r for r in records if r["essential"]], method, ratio=rules.essential_ratio)
    if rules.pass_points is not None:
        found["general"] = _points_rule(rest, method, needed=rules.pass_points, possible=rules.possible_points)
    elif rules.pass_ratio is not None:
        found["general"] = _points_rule(rest, method, ratio=rules.pass_ratio)
    if rules.max_forbidden is not None:
        num = num_forbidden(records, method)
        found["forbidden"] = {"picked": num, "allowed": rules.max_forbidden, "passed": num <= rules.max_forbidden}
    verdicts = [rule["passed"] for rule in found.values()]
    is_whole = rules.pass_points is not None or rules.pass_ratio is not None
    passed = False if False in verdicts else None if None in verdicts or not is_whole else True
    return {"rules": found, "passed": passed, "source": rules.source}


def num_forbidden(records: Sequence[Record], method: str) -> int:
    """Questions in which a choice was picked that would harm the patient."""
    return sum(bool(set(r["picked"][method]) & set(r["forbidden"])) for r in records if r["not_scored"] is None)


def _points_rule(
    records: Sequence[Record], method: str, needed: int | None = None, ratio: float = 0.0, possible: int | None = None
) -> dict[str, Any]:
    counted = [r for r in records if r["answers"]]  # withdrawn ones are worth no points, or have no right answer
    points = sum(r["points"] for r in counted if r["not_scored"] is None and is_correct(r, method))
    total = sum(r["points"] for r in counted)
    wanted = needed if needed is not None else ratio * total
    is_decided = total > 0 and possible in (None, total)
    return {"points": points, "possible": total, "needed": wanted, "passed": points >= wanted - 1e-9 if is_decided else None}
