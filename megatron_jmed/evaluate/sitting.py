"""How does a whole exam get taken, and survive an interruption?

In: a Hugging Face folder, an exam folder, a few settings. Out: one scores file (`score.save_scores`).
Invariant: a sitting that was interrupted and taken up again writes the same bytes as one that was not. Finished
questions are appended to `<target>.partial.jsonl`, whose first line says which model, questions and settings they
belong to; anything else is refused, and so is a scores file that already holds another sitting. The scores file is
written last.
"""

import dataclasses
import hashlib
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.answer import TEMPLATE, Candidate, answer_question, load_candidate, why_not_scored
from megatron_jmed.evaluate.exam import Question, load_exam
from megatron_jmed.evaluate.score import FORMAT_VERSION, load_scores, save_scores, score_records


@dataclass(frozen=True)
class SittingSettings:
    """`demos` is the folder of solved examples (default: the exam's own, outside of the questions asked)."""

    years: tuple[int, ...] | None = None
    num_shots: int = 0
    demos: Path | None = None
    seed: int = 42
    limit: int | None = None


def take_exam(
    hf_folder: Path | str, exam_folder: Path | str, target: Path | str, settings: SittingSettings = SittingSettings()
) -> dict[str, Any]:
    """Ask every question, write the scores to `target` and return them; done already: only return them.

    The exam is called after the target: scores/igakuqa.json is "igakuqa" in the report.
    """
    target = Path(target)
    if target.suffix != ".json":
        raise ExamError(f"{target}: the scores are a JSON file; give a name such as scores/igakuqa.json")
    questions = load_exam(exam_folder, settings.years)[: settings.limit]
    if not questions:
        raise ExamError(f"limit is {settings.limit}; at least 1 question must be asked")
    pool = (
        find_demos(load_exam(settings.demos or exam_folder), questions, settings.num_shots)
        if settings.num_shots
        else []
    )
    candidate = load_candidate(hf_folder)
    identity = _identity(target.stem, candidate, questions, pool, settings)
    if target.exists():
        return _finished(target, identity)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial.jsonl")
    records = _resume(partial, identity)
    with partial.open("a", encoding="utf-8") as file:
        for question in tqdm(questions[len(records) :], initial=len(records), total=len(questions), unit="question",
                             mininterval=0.5 if sys.stderr.isatty() else 30):
            demos = draw_demos(pool, question, settings)
            records.append(answer_question(candidate, question, demos))
            file.write(json.dumps(records[-1], ensure_ascii=False) + "\n")
            file.flush()
    scores = identity | score_records(records) | {"questions": records}
    save_scores(scores, target)
    partial.unlink()
    return scores


def find_demos(candidates: Sequence[Question], asked: Sequence[Question], num_shots: int) -> list[Question]:
    """The questions that may serve as solved examples: one right letter, no image, and not asked themselves."""
    taken = {q.id for q in asked} | {q.text for q in asked}
    pool = [q for q in candidates if _is_clear(q) and not {q.id, q.text} & taken]
    if len(pool) < num_shots:
        raise ExamError(
            f"{num_shots} solved examples wanted, but only {len(pool)} usable questions lie outside of the exam; "
            "give another folder with --demos, or fewer --years"
        )
    return pool


def _is_clear(q: Question) -> bool:
    undisputed = len(q.answers) == 1 and q.points > 0 and not q.always_correct
    return q.kind == "single" and q.text_only and undisputed and why_not_scored(q) is None


def draw_demos(pool: list[Question], question: Question, settings: SittingSettings) -> list[Question]:
    """Solved examples for one question; they depend on seed and question alone, not on what was asked before."""
    return random.Random(f"{settings.seed}:{question.id}").sample(pool, settings.num_shots)


def _identity(
    name: str, candidate: Candidate, questions: list[Question], pool: list[Question], settings: SittingSettings
) -> dict[str, Any]:
    """Everything that decides the records; two sittings with the same identity give the same scores."""
    return {
        "format_version": FORMAT_VERSION,
        "exam": name,
        "exam_fingerprint": _fingerprint(questions),
        "model": {
            "name": candidate.name,
            "fingerprint": candidate.fingerprint,
            "dtype": str(candidate.model.dtype).removeprefix("torch."),
        },
        "template": TEMPLATE,
        "num_shots": settings.num_shots,
        "seed": settings.seed,
        "demos_fingerprint": _fingerprint(pool),
    }


def _fingerprint(questions: list[Question]) -> str:
    """SHA-256 over all fields of the questions."""
    rows = [dataclasses.asdict(question) for question in questions]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, default=sorted).encode()).hexdigest()


def _finished(target: Path, identity: dict[str, Any]) -> dict[str, Any]:
    scores = load_scores(target)
    _check_same(target, {key: scores.get(key) for key in identity}, identity)
    return scores


def _resume(partial: Path, identity: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of an earlier, interrupted sitting; a new file with the identity line if there was none."""
    whole, _, cut = partial.read_text(encoding="utf-8").rpartition("\n") if partial.exists() else ("", "", "")
    if not whole:
        partial.write_text(json.dumps(identity, ensure_ascii=False) + "\n", encoding="utf-8")
        return []
    if cut:  # the process died while writing its last line
        partial.write_text(whole + "\n", encoding="utf-8")
    try:
        header, *records = [json.loads(line) for line in whole.split("\n")]
    except json.JSONDecodeError as error:
        raise ExamError(f"{partial}: broken ({error}); delete it and take the exam again") from None
    _check_same(partial, header, identity)
    return records


def _check_same(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    different = [f"{key} {found.get(key)!r}, not {wanted[key]!r}" for key in wanted if found.get(key) != wanted[key]]
    if different:
        raise ExamError(
            f"{path}: belongs to another sitting ({'; '.join(different)}); delete it or choose another target"
        )
