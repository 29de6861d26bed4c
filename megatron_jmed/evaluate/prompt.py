"""In which words is a question put?

In: a question, solved examples, a template's name. Out: a `Prompt`, the text before the answer. The templates, by the names
that Japanese medical benchmarks use for them:

    minimal    {question}                                   no options shown
    standard   質問：{question} / A. ... B. ... / 答え：        the form of the published IgakuQA likelihood scores
    english    Question: {question} / A. ... B. ... / Answer:   English words around the question, whatever its language
    instructed the model's own chat template: what to do, the question, its options, and the form of the answer

`chat` puts any of them into the model's chat template as a user's message, as tuned models expect to be asked. Examples stand
before the question, separated by blank lines (in the instructed form inside the user's message).
Invariant: the prompt is a pure function of its arguments; an example is the prompt it would get, with its right answer behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_jmed.evaluate.question import LETTERS, Question

SEPARATOR = "\n\n"
Target = Literal["choice", "letter"]


@dataclass(frozen=True)
class Prompt:
    """Text to be continued; a chat prompt is a user's message that the back end puts into the model's chat template."""

    text: str
    is_chat: bool = False


@dataclass(frozen=True)
class Template:
    """`asks` has {context}, {question} and {options}, each with its line end where it is not empty."""

    asks: str
    context: str = "{context}\n"
    shows_options: bool = True
    is_chat: bool = False
    introduction: str = ""


_RULE = "問題をよく読み、最後の行に「Answer: 」に続けて答えだけを書いてください（{form}）。"
TEMPLATES = {
    "minimal": Template("{context}{question}\n", shows_options=False),
    "standard": Template("{context}質問：{question}\n{options}答え：", "要旨：{context}\n"),
    "english": Template("{context}Question: {question}\n{options}Answer: ", "Abstract: {context}\n"),
    "instructed": Template("{context}質問：{question}\n{options}", "要旨：{context}\n", is_chat=True,
                           introduction="次の医学の試験問題に答えてください。" + _RULE),
}  # fmt: skip


def render_prompt(
    question: Question, examples: Sequence[Question] = (), template: str = "standard", target: Target = "choice",
    chat: bool = False,
) -> Prompt:
    """The prompt of `question` with its solved examples; the answers of the examples are choices' texts or their letters."""
    form = TEMPLATES[template]
    if not form.is_chat:
        solved = [_ask(form, q) + answer_text(q, target) for q in examples]
        return Prompt(SEPARATOR.join([*solved, _ask(form, question)]), chat)
    solved = [_ask(form, q).rstrip("\n") + f"\nAnswer: {_marks(q)}" for q in examples]
    introduction = form.introduction.format(form=_form_of_answer(question))
    return Prompt(SEPARATOR.join([introduction, *solved, _ask(form, question).rstrip("\n")]), is_chat=True)


def answer_text(question: Question, target: Target = "choice") -> str:
    """The right answer as it would be written behind the prompt."""
    if target == "letter":
        return _marks(question).upper()
    return "、".join(question.choices[LETTERS.index(letter)] for letter in sorted(question.answers[0])) or _marks(question)


def option_texts(question: Question, target: Target = "choice") -> tuple[str, ...]:
    """What may stand behind the prompt, one for each choice."""
    return question.choices if target == "choice" else tuple(LETTERS[: len(question.choices)].upper())


def _ask(form: Template, question: Question) -> str:
    shown = form.shows_options and question.show_choices
    options = "".join(f"{LETTERS[i].upper()}. {choice}\n" for i, choice in enumerate(question.choices)) if shown else ""
    context = form.context.format(context=question.context) if question.context else ""
    return form.asks.format(context=context, question=question.text, options=options)


def _marks(question: Question) -> str:
    return ", ".join(sorted(question.answers[0]))


def _form_of_answer(question: Question) -> str:
    if question.kind == "numeric":
        return "例：Answer: 26"
    example = ", ".join(LETTERS[: question.num_to_pick])
    return f"選択肢を{question.num_to_pick}つ選ぶ。例：Answer: {example}"
