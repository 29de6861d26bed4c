"""What is learnt of a conversation is exactly what the model will be asked to write, in every usual form and template."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_jmed.corpus.chat import (
    BadConversation,
    ChatTemplate,
    Piece,
    Turn,
    llmjp_template,
    load_template,
    turns_from_record,
)
from megatron_jmed.errors import CorpusError

TOOL = Path(__file__).parents[2] / "tools/check_chat.py"
QUESTION, ANSWER = "発熱の原因は？", "感染症が多いです。"
TURNS = (Turn("user", QUESTION), Turn("assistant", ANSWER))
SYSTEM = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


@pytest.mark.parametrize("record", [
    {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]},
    {"instruction": QUESTION, "input": "", "output": ANSWER},
    {"instruction": QUESTION, "output": ANSWER},
    {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}], "id": 7},
], ids=["messages", "alpaca", "alpaca without input", "sharegpt"])
def test_three_forms_say_the_same(record):
    assert turns_from_record(record) == TURNS


def test_input_system_and_weights_are_kept():
    record = {"instruction": "要約せよ。", "input": "長い文。", "output": "短い。", "system": "簡潔に。"}
    assert turns_from_record(record) == (Turn("system", "簡潔に。"), Turn("user", "要約せよ。\n\n長い文。"),
                                         Turn("assistant", "短い。"))
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
                {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 0.5}]
    assert [turn.weight for turn in turns_from_record({"messages": messages})] == [1, 0, 1, 0.5]


@pytest.mark.parametrize(("record", "said"), [
    ([], "not a JSON object"),
    ({}, "none of the fields"),
    ({"messages": [], "instruction": "x"}, "more than one of the fields"),
    ({"messages": "x"}, "messages is not a list"),
    ({"messages": []}, "the assistant says nothing"),
    ({"messages": [{"role": "user", "content": "a"}]}, "the assistant says nothing"),
    ({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}, "turn 0 is the assistant's"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "turn 1 is the user's; the assistant's"),
    ({"messages": [{"role": "tool", "content": "a"}]}, r"messages\[0\] has the role 'tool'"),
    ({"messages": [{"role": "user", "content": " "}]}, r"messages\[0\] has an empty 'content'"),
    ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\] has no text 'content'"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": -1}]}, "weight -1"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}, "nothing to learn"),
    ({"conversations": [{"from": "bing", "value": "a"}]}, r"conversations\[0\] is from 'bing'"),
    ({"instruction": "a"}, "no text 'output'"),
    ({"instruction": "a", "input": 3, "output": "b"}, "input is not a text"),
])
def test_what_is_no_conversation_is_named(record, said):
    with pytest.raises(BadConversation, match=said):
        turns_from_record(record)


def test_llmjp_form_and_its_pieces():
    assert llmjp_template().pieces(TURNS) == [Piece(f"<s>{SYSTEM}\n\n### 指示:\n{QUESTION}\n\n### 応答:\n", 0.0),
                                              Piece(f"{ANSWER}</s>", 1.0)]


@pytest.mark.parametrize("template", [llmjp_template(), ChatTemplate(CHATML, "", "<|im_end|>")], ids=["llm-jp", "chatml"])
@pytest.mark.parametrize("system", [False, True])
def test_pieces_are_the_whole_text_and_each_answer_follows_what_it_is_asked_with(template, system):
    turns = [Turn("user", "一"), Turn("assistant", "二", 0.5), Turn("user", "三"), Turn("assistant", "四", 0.0),
             Turn("user", "五"), Turn("assistant", "六"), Turn("user", "七")]
    turns = [Turn("system", "短く。"), *turns] if system else turns
    pieces = template.pieces(turns)
    assert "".join(piece.text for piece in pieces) == template.render(turns, add_generation_prompt=False)
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    for number, where in zip(answers, (1, 3, 5), strict=True):
        before = "".join(piece.text for piece in pieces[:where])
        assert before == template.render(turns[:number], add_generation_prompt=True)
        assert pieces[where].text.startswith(turns[number].content) and pieces[where].weight == turns[number].weight
    assert [piece.weight for piece in pieces[::2]] == [0.0] * len(pieces[::2])


@pytest.mark.parametrize(("source", "said"), [
    ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}{{ '[bot]' if add_generation_prompt }}",
     "no assistant span found"),
    ("{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}", "no assistant span found"),
    ("{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}", "no assistant span found"),
    # what several reasoning models do: earlier answers lose a part of themselves
    ("{% for m in messages %}{% if m['role'] == 'user' %}{{ 'Q:' + m['content'] + 'A:' }}{% elif loop.last %}{{ m['content'] }}"
     "{% else %}{{ m['content'][:1] }}{% endif %}{% endfor %}", "changes earlier turns"),
])
def test_a_template_whose_masks_would_be_wrong_is_an_error(source, said):
    turns = [Turn("user", "問い"), Turn("assistant", "答え"), Turn("user", "次"), Turn("assistant", "終わり")]
    with pytest.raises(CorpusError, match=said):
        ChatTemplate(source, "<s>", "</s>").pieces(turns)


def test_a_template_may_refuse_and_may_be_wrong():
    with pytest.raises(BadConversation, match="no system prompts here"):
        ChatTemplate("{{ raise_exception('no system prompts here') }}", "", "").pieces(TURNS)
    with pytest.raises(CorpusError, match="no Jinja template"):
        ChatTemplate("{% for %}", "", "")
    with pytest.raises(CorpusError, match="cannot render"):
        ChatTemplate("{{ messages[0].content.mro() }}{{ ''.__class__.__mro__[1].__subclasses__() }}", "", "").pieces(TURNS)


@pytest.mark.parametrize("separate", [False, True])
def test_template_of_a_hugging_face_folder_renders_as_transformers_does(separate, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{{ bos_token }}" + CHATML + "{{ eos_token if not add_generation_prompt }}"
    tokenizer.save_pretrained(tmp_path)
    if not separate:
        words = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"chat_template": tokenizer.chat_template}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(words))
        (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    template = load_template(tmp_path)
    messages = [{"role": turn.role, "content": turn.content} for turn in TURNS]
    for asks in (False, True):
        assert template.render(TURNS, asks) == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)


def test_a_folder_without_a_template_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="has no tokenizer_config.json"):
        load_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CorpusError, match="no single chat_template"):
        load_template(tmp_path)


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_tool_counts_and_shows_what_is_learnt(tmp_path):
    lines = [{"instruction": QUESTION, "output": ANSWER}, {"instruction": QUESTION}, {"instruction": "次", "output": "答え"}]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\nno json\n"
    (tmp_path / "chat.jsonl").write_text(text, encoding="utf-8")
    done = run(tmp_path / "chat.jsonl", "--show", 1)
    assert done.returncode == 1, "two of the records are no conversations"
    assert f"### 応答:\n[[{ANSWER}</s>]]" in done.stdout and done.stdout.count("### 指示") == 1
    assert "chat.jsonl:2: the record has no text 'output'" in done.stdout and "chat.jsonl:4: broken json" in done.stdout
    assert "2 conversations, 2 answers to learn" in done.stdout and "2 records are none" in done.stdout


def test_tool_says_that_a_good_file_is_good(tmp_path):
    (tmp_path / "chat.jsonl").write_text(json.dumps({"instruction": "a", "output": "b"}))
    done = run(tmp_path / "chat.jsonl")
    assert done.returncode == 0 and "every record is a conversation" in done.stdout, done.stderr
    assert run(tmp_path / "chat.jsonl", "--template", tmp_path).returncode == 2


def test_an_empty_file_is_no_success(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    done = subprocess.run([sys.executable, str(TOOL), str(tmp_path / "empty.jsonl")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "empty.jsonl holds no record" in done.stderr
