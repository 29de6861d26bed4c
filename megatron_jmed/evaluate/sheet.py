"""An exam as a sheet for the trainer, and the trainer's answers as scores.

`write_sheet`: the questions, put as in any sitting, become token ids (data/exam_sheet.py reads them). `score_answers`: the
log-likelihoods that the trainer wrote for a sheet are scored as if a back end had just given them.
Invariant: prompts, seams and records are made by the same code as in `take_exam`; only who computes the log-likelihoods differs.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_jmed.corpus.chat import Turn, llmjp_template
from megatron_jmed.corpus.manifest import sha256_file
from megatron_jmed.corpus.sentencepiece_model import open_sentencepiece
from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.answer import METHODS, answer_by_likelihood
from megatron_jmed.evaluate.backend import OptionScores
from megatron_jmed.evaluate.contamination import read_flags
from megatron_jmed.evaluate.prompt import Prompt
from megatron_jmed.evaluate.rows import write_once
from megatron_jmed.evaluate.score import save_scores, score_records
from megatron_jmed.evaluate.seam import fit_request, split_at_seam
from megatron_jmed.evaluate.sitting import SittingSettings, asked_questions, draw_demos, exam_identity

FORMAT = "exam sheet 1"  # as data/exam_sheet.py reads it
_ANSWERS = {"sheet", "sheet_sha256", "step", "tokens", "precision", "log_likelihoods"}  # as train/exams.py writes them
_KEPT = ("years", "template", "target", "chat", "num_shots", "seed", "limit")


class _Writer:
    """A back end that writes down what it is asked."""

    def __init__(self, tokenizer: Path, max_tokens: int):
        self._pieces = open_sentencepiece(tokenizer)
        self.name, self.identity, self._max_tokens = str(tokenizer), {"name": "sheet"}, max_tokens
        self._bos = [self._pieces.bos_id()] if self._pieces.bos_id() >= 0 else []
        self.questions: list[dict[str, Any]] = []

    def _encode(self, text: str) -> list[int]:
        return self._bos + self._pieces.encode(text)

    def score_options(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        scores = []
        for prompt, texts in zip(prompts, options, strict=True):
            text = prompt.text
            if prompt.is_chat:
                template = llmjp_template()
                text = template.render([Turn("user", text)], add_generation_prompt=True).removeprefix(template.bos)
            prefix, continuations = split_at_seam(self._encode(text), [self._encode(text + option) for option in texts])
            request = fit_request(self.name, prefix, continuations, len(self._bos), self._max_tokens)
            self.questions.append({"prefix": request.prefix, "continuations": request.continuations,
                                   "num_truncated": request.num_truncated})
            scores.append(OptionScores([0.0] * len(texts), [len(c) for c in continuations], request.num_truncated))
        return scores


class _Recorded:
    """A back end that says what the trainer has written."""

    def __init__(self, name: str, identity: dict[str, Any], questions: list[dict[str, Any]], answers: list[float]):
        self.name, self.identity = name, identity
        self._left, self._answers = iter(questions), iter(answers)

    def score_options(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        scores = []
        for _ in prompts:
            question = next(self._left)
            lengths = [len(option) for option in question["continuations"]]
            scores.append(OptionScores([next(self._answers) for _ in lengths], lengths, question["num_truncated"]))
        return scores


def write_sheet(exam_path: Path, tokenizer: Path, target: Path, settings: SittingSettings, max_tokens: int) -> int:
    """Write the exam's sheet, called after the target; returns the number of questions that a model can answer so."""
    _, questions, pool = asked_questions(exam_path, settings)
    writer = _Writer(tokenizer, max_tokens)
    answer_by_likelihood(writer, [(q, draw_demos(pool, q, settings)) for q in questions], settings.template, settings.target,
                         settings.chat)
    if not writer.questions:
        raise ExamError(f"{exam_path}: no question of it can be answered by likelihood")
    header = {"format": FORMAT, "name": target.stem, "exam": str(exam_path), "tokenizer_sha256": sha256_file(tokenizer),
              "settings": {name: getattr(settings, name) for name in _KEPT},
              "identity": exam_identity(target.stem, writer, questions, pool, settings)}
    lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in (header, *writer.questions)]
    write_once(target, "".join(lines))
    return len(writer.questions)


def _read_answers(path: Path) -> dict[str, Any]:
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExamError(f"{path}: no answers of a run ({error}); delete it") from None
    missing = sorted(_ANSWERS - set(answers)) if isinstance(answers, dict) else ["a JSON object"]
    if missing:
        raise ExamError(f"{path}: no answers of a run ({', '.join(missing)} missing); delete it")
    return answers


def score_answers(answers_path: Path, target: Path, contamination: Sequence[Path] = (),
                  sheet: Path | None = None) -> dict[str, Any]:
    """Scores (as of `take_exam`) of what the trainer wrote, saved to `target`. `sheet`: where it lies now, if it was moved."""
    answers = _read_answers(answers_path)
    sheet = sheet or Path(answers["sheet"])
    if not sheet.is_file() or sha256_file(sheet) != answers["sheet_sha256"]:
        raise ExamError(f"{answers_path} answers the sheet {answers['sheet']}, which is no longer there as it was; give it with "
                        "--sheet")
    header, *lines = [json.loads(line) for line in sheet.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    found, num_options = answers["log_likelihoods"], sum(len(line["continuations"]) for line in lines)
    if len(found) != num_options:
        raise ExamError(f"{answers_path}: {len(found)} answers to the {num_options} options of {sheet}; delete it")
    words = header["settings"]
    settings = SittingSettings(**words | {"years": tuple(words["years"]) if words["years"] else None})
    exam, questions, pool = asked_questions(Path(header["exam"]), settings)
    name = f"{answers_path.parent.parent.name} at step {answers['step']}"
    model = {"name": name, "fingerprint": answers["sheet_sha256"], "dtype": answers["precision"]}
    backend = _Recorded(name, model, lines, found)
    identity = exam_identity(header["name"], backend, questions, pool, settings)
    if identity["exam_fingerprint"] != header["identity"]["exam_fingerprint"]:
        raise ExamError(f"{header['exam']}: no longer the exam that {sheet} was made of; make the sheet again and train with it")
    asked = [(q, draw_demos(pool, q, settings)) for q in questions]
    records = answer_by_likelihood(backend, asked, settings.template, settings.target, settings.chat)
    flags = read_flags(contamination, [q.id for q in questions]) if contamination else {}
    flagged = [record | {"contamination": flags[record["id"]]} if flags else record for record in records]
    scores = identity | {"step": answers["step"], "tokens": answers["tokens"]}
    scores |= score_records(flagged, METHODS["likelihood"], exam.rules) | {"questions": flagged}
    save_scores(scores, target)
    return scores
