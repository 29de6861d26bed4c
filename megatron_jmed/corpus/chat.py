"""Which words of a conversation is a model to learn, and which does it only read?

In: one record of a chat file in a form that the field uses, and a chat template (Jinja, as Hugging Face tokenizers carry it).
Out: pieces of text, each learnt (what the assistant says, with the end mark that the template puts behind it) or only read.

    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ..., "weight": 0}]}   OpenAI's
    {"instruction": ..., "input": ..., "output": ..., "system": ...}                                       alpaca
    {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}                    sharegpt

What is learnt is found by rendering, not by looking for marks: the conversation before an answer, with the prompt that asks for
one, must be the beginning of the conversation with the answer; the rest is what the model has to write. Invariant: the pieces
laid end to end are the rendered conversation, and the text before each learnt piece is exactly what the model will have read
when it is asked. A template for which this does not hold would teach another text than the one it is asked for: an error.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from megatron_jmed.corpus.document import parse_lines
from megatron_jmed.corpus.reader import find_source, read_batches
from megatron_jmed.errors import CorpusError

CHAT_TEMPLATE = "chat_template.jinja"  # in a Hugging Face folder
ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_SYSTEM = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
# LLM-jp's instruction-tuned models: a line for the task, then questions and answers under headings of their own.
LLMJP_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}{{ '" + _SYSTEM + "' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '\\n\\n### 指示:\\n' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '\\n\\n### 応答:\\n' + message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### 応答:\\n' }}{% endif %}"
)


class BadConversation(ValueError):
    """Why a record is no conversation; the reader adds file and line."""


@dataclass(frozen=True)
class Turn:
    """What one side says; `weight` scales the loss of an assistant's words (0: only read)."""

    role: str
    content: str
    weight: float = 1.0


@dataclass(frozen=True)
class Piece:
    """A part of the rendered text; `weight` is 0 where it is only read."""

    text: str
    weight: float


def turns_from_record(record: Mapping[str, Any]) -> tuple[Turn, ...]:
    """The turns of a record in any of the three forms; BadConversation says what is wrong with it."""
    if not isinstance(record, Mapping):
        raise BadConversation("not a JSON object")
    forms = [form for form in ("messages", "conversations", "instruction") if form in record]
    if len(forms) != 1:
        raise BadConversation(f"{'none' if not forms else 'more than one'} of the fields messages, conversations and instruction")
    if forms == ["instruction"]:
        turns = _from_alpaca(record)
    else:
        listed = record[forms[0]]
        if not isinstance(listed, Sequence) or isinstance(listed, str):
            raise BadConversation(f"{forms[0]} is not a list")
        turns = [(_from_message if forms == ["messages"] else _from_sharegpt)(number, turn) for number, turn in enumerate(listed)]
    _check_order(turns)
    return tuple(turns)


def _from_alpaca(record: Mapping[str, Any]) -> list[Turn]:
    instruction, given = _text(record, "instruction", "the record"), record.get("input") or ""
    if not isinstance(given, str):
        raise BadConversation("input is not a text")
    question = f"{instruction}\n\n{given}" if given.strip() else instruction
    turns = [Turn("user", question), Turn("assistant", _text(record, "output", "the record"))]
    return [Turn("system", _text(record, "system", "the record")), *turns] if record.get("system") else turns


def _from_message(number: int, message: Any) -> Turn:
    where = f"messages[{number}]"
    role = _text(message, "role", where)
    if role not in ROLES:
        raise BadConversation(f"{where} has the role {role!r}; choose from {', '.join(ROLES)}")
    weight = message.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
        raise BadConversation(f"{where} has the weight {weight!r}; a number from 0 on is needed")
    return Turn(role, _text(message, "content", where), float(weight))


def _from_sharegpt(number: int, turn: Any) -> Turn:
    where = f"conversations[{number}]"
    sender = _text(turn, "from", where)
    if sender not in _SHAREGPT_ROLES:
        raise BadConversation(f"{where} is from {sender!r}; choose from {', '.join(_SHAREGPT_ROLES)}")
    return Turn(_SHAREGPT_ROLES[sender], _text(turn, "value", where))


def _text(of: Any, name: str, where: str) -> str:
    if not isinstance(of, Mapping) or not isinstance(of.get(name), str):
        raise BadConversation(f"{where} has no text {name!r}")
    if not of[name].strip():
        raise BadConversation(f"{where} has an empty {name!r}")
    return of[name]


def _check_order(turns: list[Turn]) -> None:
    """A system prompt at most first, then user and assistant in turn; somebody must be answered."""
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    for number, turn in enumerate(spoken):
        expected = ("user", "assistant")[number % 2]
        if turn.role != expected:
            raise BadConversation(f"turn {len(turns) - len(spoken) + number} is the {turn.role}'s; the {expected}'s was expected")
    if len(spoken) < 2:
        raise BadConversation("the assistant says nothing")
    if not any(turn.weight > 0 for turn in spoken if turn.role == "assistant"):
        raise BadConversation("every answer has weight 0: there is nothing to learn")


def read_conversations(source: str | Path) -> Iterator[tuple[str, tuple[Turn, ...] | str]]:
    """("FILE:LINE", the turns, or why there are none) of every record of a chat source, JSON lines as everywhere."""
    for batch in read_batches(find_source(source)):
        if batch.kind != "jsonl":
            raise CorpusError(f"{batch.file}: conversations are read from JSON lines (.jsonl, .jsonl.gz, .jsonl.zst)")
        for offset, (record, _) in enumerate(parse_lines(batch.payload, "")):
            where = f"{batch.file}:{batch.first_line + offset}"
            try:
                yield where, record.replace("_", " ") if isinstance(record, str) else turns_from_record(record)
            except BadConversation as problem:
                yield where, str(problem)


class ChatTemplate:
    """A chat template with the marks of its tokenizer. `name` is what errors call it."""

    def __init__(self, source: str, bos: str, eos: str, name: str = "the chat template"):
        self.source, self.name, self.bos, self.eos = source, name, bos, eos
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise CorpusError(f"{name} is no Jinja template: {error}") from None

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, bos_token=self.bos,
                                         eos_token=self.eos)
        except BadConversation:
            raise
        except (TemplateError, TypeError, KeyError) as error:
            raise CorpusError(f"{self.name} cannot render a conversation: {error}") from None

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """The rendered conversation, cut into what is read and what is learnt; CorpusError where the cut would be wrong."""
        pieces, done = [], ""
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            asked = self.render(turns[:number], add_generation_prompt=True)
            answered = self.render(turns[: number + 1], add_generation_prompt=False)
            if not asked.startswith(done):
                raise CorpusError(f"{self.name} changes earlier turns when later ones come: what was learnt there is not what "
                                  "would be read; take a template that only adds")
            if not answered.startswith(asked) or turn.content.strip() not in answered[len(asked):]:
                raise CorpusError(f"{self.name}: no assistant span found: what it renders with add_generation_prompt, ending in "
                                  f"{asked[-20:]!r}, is not how the answer begins: {answered[max(0, len(asked) - 20):][:60]!r}")
            learnt = self._as_far_as_written(answered[len(asked):])
            pieces += [Piece(asked[len(done):], 0.0), Piece(learnt, turn.weight)]
            done = asked + learnt
        rest = self.render(turns, add_generation_prompt=False)
        if not rest.startswith(done):
            raise CorpusError(f"{self.name} changes earlier turns when later ones come; take a template that only adds")
        return [*pieces, Piece(rest[len(done):], 0.0)] if rest != done else pieces

    def _as_far_as_written(self, answer: str) -> str:
        """Without the white space that a template may put behind the end mark, where a model has stopped writing."""
        head, mark, behind = answer.rpartition(self.eos) if self.eos else ("", "", answer)
        return head + mark if mark and not behind.strip() else answer


def _refuse(message: str) -> None:
    """What a template calls for conversations that it does not take."""
    raise BadConversation(f"the chat template refuses it: {message}")


def llmjp_template() -> ChatTemplate:
    return ChatTemplate(LLMJP_TEMPLATE, "<s>", "</s>", "LLM-jp's chat template")


def find_template(what: str) -> ChatTemplate:
    """"llmjp", a Hugging Face folder, or a .jinja file (whose marks are then <s> and </s>)."""
    if what == "llmjp":
        return llmjp_template()
    path = Path(what)
    if path.is_dir():
        return load_template(path)
    try:
        return ChatTemplate(path.read_text(encoding="utf-8"), "<s>", "</s>", str(path))
    except (OSError, UnicodeDecodeError):
        raise CorpusError(f"{what} is no chat template; give llmjp, a Hugging Face folder or a .jinja file") from None


def load_template(hf_folder: Path) -> ChatTemplate:
    """The template of a Hugging Face folder: chat_template.jinja, else the one in tokenizer_config.json."""
    path = hf_folder / "tokenizer_config.json"
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorpusError(f"{hf_folder} has no tokenizer_config.json; name the folder of a tokenizer that has a chat "
                          "template") from None
    except ValueError as error:
        raise CorpusError(f"{path}: {error}") from None
    own = hf_folder / CHAT_TEMPLATE
    source = own.read_text(encoding="utf-8") if own.exists() else words.get("chat_template")
    if not isinstance(source, str):
        raise CorpusError(f"{path} has no single chat_template; write one beside it, as chat_template.jinja")
    bos, eos = (_mark(words.get(name)) for name in ("bos_token", "eos_token"))
    return ChatTemplate(source, bos, eos, str(own if own.exists() else path))


def _mark(value: Any) -> str:
    """A special token as tokenizer_config.json writes it: a text, or an object with its content."""
    return value if isinstance(value, str) else (value or {}).get("content", "")
