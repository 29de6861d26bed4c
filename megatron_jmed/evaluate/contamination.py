"""Which questions of the exam has the corpus held, or could have?

In: the `contamination.json` of one or more corpora (corpus/decontaminate writes it). Out: for every question one of three words.
A question is "removed" where every document that held it was taken out, so that training never saw it; it counts as clean.
Invariant: a question of which the reports do not know whether it was looked for is an error, not a clean question.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from megatron_jmed.errors import ExamError

Flag = Literal["clean", "contaminated", "not testable"]


def read_flags(paths: Sequence[Path], question_ids: Iterable[str]) -> dict[str, Flag]:
    """Question id -> flag, over all reports; ExamError for a report that did not look for all of them."""
    wanted = list(question_ids)
    flags: dict[str, Flag] = dict.fromkeys(wanted, "clean")
    for path in paths:
        report = _read(path)
        unknown = [name for name in wanted if name not in set(report["question_ids"])]
        if unknown:
            raise ExamError(f"{path}: did not look for {len(unknown)} of the {len(wanted)} questions, such as {unknown[0]}; "
                            "decontaminate with this exam")
        found = {name for name, places in report["questions"].items() if any(not place.get("removed") for place in places)}
        untestable = {entry["question_id"] for entry in report["not_testable"] if entry.get("form", "original") == "original"}
        for name in wanted:
            if name in found:
                flags[name] = "contaminated"
            elif name in untestable and flags[name] == "clean":
                flags[name] = "not testable"
    return flags


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExamError(f"{path}: no contamination report ({error}); tools/decontaminate_corpus.py writes it") from None
    if not isinstance(report, dict) or not {"question_ids", "questions", "not_testable"} <= set(report):
        raise ExamError(f"{path}: no contamination report; expected question_ids, questions, not_testable")
    return report
