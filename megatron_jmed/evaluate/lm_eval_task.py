"""How does an exam become a task of EleutherAI's lm-evaluation-harness?

In: an exam and the words around a question. Out: TARGET/NAME.jsonl (the prompts as they would be put here, with choices and the
right one) and TARGET/NAME.yaml (the task), for `lm_eval --include_path TARGET --tasks NAME`. Its `acc` is our sum, its
`acc_bytes` our per_byte; its `acc_norm` divides by characters, which nobody does here.
Invariant: what is exported is what would be asked; a question that the harness cannot score so (several letters, a number, several
right answers, no options) is left out and counted.

Three of the harness' habits to know of: blanks and line ends behind a prompt are scored with the option, so they are left out here;
a text begins with <s> only if the tokenizer does so by itself; and a prompt that is too long loses its <s> as well.
"""

import json
from collections import Counter
from pathlib import Path

from megatron_jmed.evaluate.answer import why_not_scored
from megatron_jmed.evaluate.prompt import option_texts, render_prompt
from megatron_jmed.evaluate.question import LETTERS, Question
from megatron_jmed.evaluate.sitting import SittingSettings, asked_questions, draw_demos


def export_task(exam_path: Path, target: Path, name: str, settings: SittingSettings) -> Counter[str]:
    """Write the task and return how many questions were exported and left out, by reason."""
    _, questions, pool = asked_questions(exam_path, settings)
    counts, rows = Counter[str](), []
    for question in questions:
        reason = _why_left_out(question)
        counts[reason or "exported"] += 1
        if reason is None:
            rows.append(_row(question, draw_demos(pool, question, settings), settings))
    target.mkdir(parents=True, exist_ok=True)
    data = target / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    (target / f"{name}.yaml").write_text(_TASK.format(name=name, data=json.dumps(str(data.resolve()))), encoding="utf-8")
    return counts


def _why_left_out(question: Question) -> str | None:
    if reason := why_not_scored(question):
        return reason
    if question.kind == "multiple":
        return "asks for several letters"
    return "has several right answers" if len(question.answers) > 1 or question.always_correct else None


def _row(question: Question, examples: list[Question], settings: SittingSettings) -> dict[str, object]:
    (letter,) = next(iter(question.answers))
    prompt = render_prompt(question, examples, settings.template, settings.target)
    return {"id": question.id, "query": prompt.text.rstrip(), "choices": list(option_texts(question, settings.target)),
            "gold": LETTERS.index(letter)}  # fmt: skip


_TASK = """# Written by tools/export_lm_eval.py; the data are one JSON object a question.
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: query
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: acc_bytes
metadata:
  version: 1.0
"""
