"""What does a model answer to a question?

In: a back end, questions with their solved examples, a way of answering. Out: one record a question: its facts and what was
picked. Two ways:
* likelihood: the log-likelihoods of the options behind the prompt are compared in three ways that are kept apart: their sum, the
  sum divided by the option's tokens, and by its UTF-8 bytes (long options are unlikely for their length alone). A question that
  asks for k options gets the k best.
* generate: what the model writes is read by `parse`.
Invariant: a record holds everything that its score needs, and does not depend on what was asked before.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from megatron_jmed.errors import CheckpointError
from megatron_jmed.evaluate.backend import Backend, OptionScores
from megatron_jmed.evaluate.parse import parse_answer
from megatron_jmed.evaluate.prompt import SEPARATOR, TEMPLATES, Target, option_texts, render_prompt
from megatron_jmed.evaluate.question import LETTERS, Question

Way = Literal["likelihood", "generate"]
Asked = Sequence[tuple[Question, Sequence[Question]]]  # each question with its solved examples
METHODS: dict[Way, tuple[str, ...]] = {"likelihood": ("sum", "per_token", "per_byte"), "generate": ("generated",)}
# A base model goes on with the next question of its own making; what it writes from there on is no part of the answer.
NEXT_QUESTION = (SEPARATOR, "\n質問：", "\nQuestion:")


def why_not_scored(question: Question, way: Way = "likelihood") -> str | None:
    """The reason why this question cannot be scored in this way, if there is one."""
    if not question.answers:
        return "withdrawn: there is no right answer"
    if question.kind == "numeric":
        return "asks for a number" if way == "likelihood" else None
    texts = [choice.strip() for choice in question.choices]
    if "" in texts or len(set(texts)) < len(texts):
        return "options are blank or repeated in the data"
    return None


def answer_by_likelihood(
    backend: Backend, asked: Asked, template: str = "standard", target: Target = "choice", chat: bool = False
) -> list[dict[str, Any]]:
    """Records of questions whose options are compared; they share one batch."""
    able = [(q, examples) for q, examples in asked if why_not_scored(q) is None]
    prompts = [render_prompt(q, examples, template, target, chat) for q, examples in able]
    options = [option_texts(q, target) for q, _ in able]
    scored = backend.score_options(prompts, options) if able else []
    parts = {q.id: _compared(backend, q, texts, s) for (q, _), texts, s in zip(able, options, scored, strict=True)}
    return [facts_of(q, "likelihood") | parts.get(q.id, {}) for q, _ in asked]


def answer_by_generation(
    backend: Backend, asked: Asked, template: str = "instructed", target: Target = "choice", chat: bool = False,
    max_new_tokens: int = 64,
) -> list[dict[str, Any]]:
    """Records of questions to which the model writes an answer; they share one batch."""
    able = [(q, examples) for q, examples in asked if why_not_scored(q, "generate") is None]
    prompts = [render_prompt(q, examples, template, target, chat) for q, examples in able]
    texts = backend.generate(prompts, max_new_tokens) if able else []
    asks_form = bool(TEMPLATES[template].introduction)
    parts = {q.id: _written(q, text, prompt.is_chat, asks_form) for (q, _), prompt, text in zip(able, prompts, texts, strict=True)}
    return [facts_of(q, "generate") | parts.get(q.id, {}) for q, _ in asked]


def pick_letters(values: Sequence[float], num_to_pick: int) -> list[str]:
    """The letters of the largest values, in the order of the alphabet; of equals, the first."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    return sorted(LETTERS[i] for i in order[:num_to_pick])


def _compared(backend: Backend, question: Question, options: Sequence[str], scores: OptionScores) -> dict[str, Any]:
    totals = scores.log_likelihoods
    if not all(map(math.isfinite, totals)):
        raise CheckpointError(f"{backend.name}: log-likelihoods of {question.id} are {totals}; the weights are broken")
    num_bytes = [len(option.encode()) for option in options]
    values = {
        "sum": totals,
        "per_token": [total / n for total, n in zip(totals, scores.num_tokens, strict=True)],
        "per_byte": [total / n for total, n in zip(totals, num_bytes, strict=True)],
    }
    return {
        "picked": {method: pick_letters(values[method], question.num_to_pick) for method in METHODS["likelihood"]},
        "log_likelihoods": [round(total, 6) for total in totals],
        "num_tokens": scores.num_tokens,
        "num_bytes": num_bytes,
        "num_truncated_tokens": scores.num_truncated_tokens,
    }


def _written(question: Question, text: str, is_chat: bool, asks_form: bool) -> dict[str, Any]:
    kept = text
    if not is_chat:
        for mark in NEXT_QUESTION:
            kept = kept.lstrip("\n").split(mark)[0]
    answer = parse_answer(kept, question)
    said = {"picked": {"generated": list(answer.picked)}, "text": kept}
    return said | ({"is_compliant": answer.is_compliant} if asks_form else {})


def facts_of(question: Question, way: Way) -> dict[str, Any]:
    """What the scores need to know of a question, without its text."""
    return {
        "id": question.id,
        "year": question.year,
        "paper": question.paper,
        "subject": question.subject,
        "category": question.category,
        "lang": question.lang,
        "type": question.kind,
        "needs_image": question.needs_image,
        "essential": question.essential,
        "points": question.points,
        "num_choices": len(question.choices),
        "num_to_pick": question.num_to_pick,
        "answers": [sorted(answer) for answer in question.answers],
        "always_correct": question.always_correct,
        "withdrawn": question.withdrawn,
        "forbidden": sorted(question.forbidden),
        "not_scored": why_not_scored(question, way),
        "num_truncated_tokens": 0,
    }
