"""How does a whole exam get taken, and survive an interruption?

In: a back end's address, an exam, a few settings. Out: one scores file (`score.save_scores`).
Invariant: a sitting that was interrupted and taken up again writes the same bytes as one that was not. Finished
questions are appended to `<target>.partial.jsonl`, whose first line says which model, questions and settings they
belong to; anything else is refused, and so is a scores file that already holds another sitting. The scores file is
written last. What is made of the answers (contamination, comparison with a base model) is computed anew each time, also
where the exam was taken before.
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
from megatron_jmed.evaluate.answer import METHODS, Way, answer_by_generation, answer_by_likelihood, why_not_scored
from megatron_jmed.evaluate.backend import Backend, load_backend
from megatron_jmed.evaluate.contamination import read_flags
from megatron_jmed.evaluate.exam import Exam, load_exam
from megatron_jmed.evaluate.prompt import TEMPLATES, Target
from megatron_jmed.evaluate.question import Question
from megatron_jmed.evaluate.score import FORMAT_VERSION, check_comparable, compare_records, load_scores, save_scores, score_records


@dataclass(frozen=True)
class SittingSettings:
    """How an exam is put and answered.

    `demos` is where solved examples come from (default: the exam's training split, else its questions that are not asked).
    Questions in groups of `batch_size` share a batch; their numbers then agree with those of single ones to rounding.
    `step` and `tokens` say which checkpoint of its run the model is.
    """

    years: tuple[int, ...] | None = None
    template: str = "standard"
    way: Way = "likelihood"
    target: Target = "choice"
    chat: bool = False
    num_shots: int = 0
    demos: Path | None = None
    seed: int = 42
    limit: int | None = None
    batch_size: int = 1
    max_new_tokens: int = 64
    contamination: tuple[Path, ...] = ()
    base: Path | None = None
    engine: str | None = None
    model: str | None = None
    step: int | None = None
    tokens: int | None = None


def take_exam(
    address: Path | str, exam_path: Path | str, target: Path | str, settings: SittingSettings = SittingSettings()
) -> dict[str, Any]:
    """Ask every question, write the scores to `target` and return them; done already: only score them anew.

    `address` is a Hugging Face folder or a server. The exam is called after the target: scores/igakuqa.json is "igakuqa".
    """
    target = Path(target)
    _check(target, settings)
    exam, questions, pool = asked_questions(exam_path, settings)
    base = load_scores(settings.base) if settings.base else None
    if base:
        check_comparable([q.id for q in questions], base, METHODS[settings.way], str(settings.base))
    flags = read_flags(settings.contamination, [q.id for q in questions]) if settings.contamination else {}
    backend = load_backend(address, settings.engine, settings.model)
    identity = exam_identity(target.stem, backend, questions, pool, settings)
    if target.exists():
        records = _finished(target, identity)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        records = _sit(backend, questions, pool, settings, target.with_suffix(".partial.jsonl"), identity)
    flagged = [r | {"contamination": flags[r["id"]]} if flags else r for r in records]
    methods = METHODS[settings.way]
    scores = identity | {k: v for k in ("step", "tokens") if (v := getattr(settings, k)) is not None}
    scores |= score_records(flagged, methods, exam.rules)
    if base:
        scores["against"] = compare_records(flagged, base, methods, str(settings.base))
    save_scores(scores | {"questions": flagged}, target)
    target.with_suffix(".partial.jsonl").unlink(missing_ok=True)
    return scores | {"questions": flagged}


def _check(target: Path, settings: SittingSettings) -> None:
    if target.suffix != ".json":
        raise ExamError(f"{target}: the scores are a JSON file; give a name such as scores/igakuqa.json")
    if settings.template not in TEMPLATES:
        raise ExamError(f"template {settings.template!r}; choose from {', '.join(TEMPLATES)}")
    if settings.batch_size < 1:
        raise ExamError(f"batch_size is {settings.batch_size}; at least 1 question shares a batch")
    if settings.max_new_tokens < 1:
        raise ExamError(f"max_new_tokens is {settings.max_new_tokens}; an answer has at least 1")


def _sit(
    backend: Backend, questions: list[Question], pool: list[Question], settings: SittingSettings, partial: Path,
    identity: dict[str, Any],
) -> list[dict[str, Any]]:
    """The records of all questions; groups are the same whether or not the sitting was interrupted."""
    size = settings.batch_size
    records = _resume(partial, identity)
    del records[len(records) // size * size :]  # a group of which not all was written is asked again
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in [identity, *records])
        file.flush()
        progress = tqdm(initial=len(records), total=len(questions), unit="question", mininterval=0.5 if sys.stderr.isatty() else 30)
        for start in range(len(records), len(questions), size):
            asked = [(q, draw_demos(pool, q, settings)) for q in questions[start : start + size]]
            answered = _answer(backend, asked, settings)
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in answered)
            file.flush()
            records += answered
            progress.update(len(answered))
        progress.close()
    return records


def _answer(backend: Backend, asked: list[tuple[Question, list[Question]]], settings: SittingSettings) -> list[dict[str, Any]]:
    if settings.way == "generate":
        return answer_by_generation(backend, asked, settings.template, settings.target, settings.chat,
                                    settings.max_new_tokens)
    return answer_by_likelihood(backend, asked, settings.template, settings.target, settings.chat)


def years_of(text: str) -> tuple[int, ...]:
    """The years of a command line; ExamError for what is no list of them."""
    try:
        return tuple(int(year) for year in text.split(","))
    except ValueError:
        raise ExamError(f"--years {text}: give years with commas between, such as 2018,2019") from None


def asked_questions(exam_path: Path | str, settings: SittingSettings) -> tuple[Exam, list[Question], list[Question]]:
    """(the exam, what is asked of it, what solved examples are drawn from)."""
    if settings.limit is not None and settings.limit < 1:
        raise ExamError(f"limit is {settings.limit}; at least 1 question must be asked")
    if settings.num_shots < 0:
        raise ExamError(f"num_shots is {settings.num_shots}; give 0 or more solved examples")
    exam = load_exam(exam_path, settings.years)
    questions = exam.questions[: settings.limit]
    if not questions:
        raise ExamError(f"{exam_path}: an exam without a question")
    if not settings.num_shots:
        return exam, questions, []
    return exam, questions, find_demos(candidates_for_demos(exam, exam_path, settings), questions, settings.num_shots)


def candidates_for_demos(exam: Exam, exam_path: Path | str, settings: SittingSettings) -> list[Question]:
    if settings.demos:
        found = load_exam(settings.demos)
        return found.training or found.questions
    return exam.training or load_exam(exam_path).questions


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
    return q.kind == "single" and not q.needs_image and undisputed and why_not_scored(q) is None


def draw_demos(pool: list[Question], question: Question, settings: SittingSettings) -> list[Question]:
    """Solved examples for one question; they depend on seed and question alone, not on what was asked before."""
    return random.Random(f"{settings.seed}:{question.id}").sample(pool, settings.num_shots)


def exam_identity(
    name: str, backend: Backend, questions: list[Question], pool: list[Question], settings: SittingSettings
) -> dict[str, Any]:
    """Everything that decides the records; two sittings with the same identity give the same scores."""
    identity = {
        "format_version": FORMAT_VERSION,
        "exam": name,
        "exam_fingerprint": _fingerprint(questions),
        "model": backend.identity,
        "template": settings.template,
        "template_text": TEMPLATES[settings.template].introduction + TEMPLATES[settings.template].asks,
        "way": settings.way,
        "target": settings.target,
        "chat": settings.chat or TEMPLATES[settings.template].is_chat,
        "num_shots": settings.num_shots,
        "seed": settings.seed,
        "demos_fingerprint": _fingerprint(pool),
        "batch_size": settings.batch_size,
    }
    if identity["chat"] and (template := getattr(backend, "chat_template", None)):
        identity["chat_template"] = template.name.removeprefix(f"{backend.folder}/")
    return identity | ({"max_new_tokens": settings.max_new_tokens} if settings.way == "generate" else {})


def _fingerprint(questions: list[Question]) -> str:
    """SHA-256 over all fields of the questions."""
    rows = [dataclasses.asdict(question) for question in questions]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, default=sorted).encode()).hexdigest()


def _finished(target: Path, identity: dict[str, Any]) -> list[dict[str, Any]]:
    scores = load_scores(target)
    _check_same(target, {key: scores.get(key) for key in identity}, identity)
    return [{k: v for k, v in record.items() if k != "contamination"} for record in scores["questions"]]


def _resume(partial: Path, identity: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of an earlier, interrupted sitting; none if there was none. What follows the last line end was never finished."""
    whole = partial.read_text(encoding="utf-8").rpartition("\n")[0] if partial.exists() else ""
    if not whole:
        return []
    try:
        header, *records = [json.loads(line) for line in whole.split("\n")]
        if not all(isinstance(line, dict) for line in (header, *records)):
            raise ValueError("a line that is no object")
    except ValueError as error:
        raise ExamError(f"{partial}: broken ({error}); delete it and take the exam again") from None
    _check_same(partial, header, identity)
    return records


def check_same_exam(path: Path, exam_path: Path | str, settings: SittingSettings) -> None:
    """ExamError where a scores file holds other questions than would be asked, or asked in another way."""
    _, questions, pool = asked_questions(exam_path, settings)
    wanted = {"exam_fingerprint": _fingerprint(questions), "template": settings.template, "num_shots": settings.num_shots,
              "chat": settings.chat or TEMPLATES[settings.template].is_chat, "demos_fingerprint": _fingerprint(pool)}
    scores = load_scores(path)
    _check_same(path, {key: scores.get(key) for key in wanted}, wanted)


def _check_same(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    different = [f"{key} {found.get(key)!r}, not {wanted[key]!r}" for key in wanted if found.get(key) != wanted[key]]
    if different:
        raise ExamError(
            f"{path}: belongs to another sitting ({'; '.join(different)}); delete it or choose another target"
        )
