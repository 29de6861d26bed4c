"""Conversations become the tokens that a chat program would make of them, and what the assistant says is what counts."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from megatron_jmed.corpus.chat import Turn, llmjp_template
from megatron_jmed.corpus.chat_tokens import ChatSettings, tokenize_chat
from megatron_jmed.corpus.indexed import read_index
from megatron_jmed.corpus.manifest import load_manifest
from megatron_jmed.corpus.token_set import load_token_set
from megatron_jmed.errors import CorpusError

REPO = Path(__file__).parents[2]
CHAT = REPO / "examples/data/chat"
CHATML = ("{% for m in messages %}{{ bos_token if loop.first }}{{ m['role'] + '\\n' + m['content'] + eos_token + '\\n' }}"
          "{% endfor %}{% if add_generation_prompt %}{{ 'assistant\\n' }}{% endif %}")


def conversation(*texts: str, weights: dict[int, float] | None = None) -> dict:
    """User and assistant in turn."""
    return {"messages": [{"role": ("user", "assistant")[number % 2], "content": text,
                          **({"weight": weights[number]} if weights and number in weights else {})}
                         for number, text in enumerate(texts)]}


@pytest.fixture
def made(tokenizer, write_lines, tmp_path):
    """made(records, setting=...): a list of (ids, weights) of the conversations, and the manifest."""

    def make(records, **changes):
        target = tmp_path / "set"
        manifest = tokenize_chat(write_lines(records), target, ChatSettings(**{"tokenizer": tokenizer, **changes}))
        ends = np.cumsum(read_index(target / "tokens.idx").lengths)[:-1]
        dtype = manifest.details["dtype"]
        ids, weights = np.fromfile(target / "tokens.bin", dtype), np.fromfile(target / "tokens.weights", "<f2")
        assert len(ids) == len(weights) == manifest.counts.tokens
        return list(zip(np.split(ids, ends), np.split(weights, ends), strict=True)), manifest

    return make


def decoded(tokenizer: Path, ids) -> str:
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer)).decode([int(number) for number in ids])


def test_what_is_learnt_is_the_answers_with_their_end_marks(made, tokenizer):
    (one,), manifest = made([conversation("発熱は？", "感染症が多いです。", "ほかには？", "薬もあります。", weights={1: 0.5})])
    ids, weights = one
    assert decoded(tokenizer, ids[weights == 0.5]) == "感染症が多いです。"
    assert decoded(tokenizer, ids[weights == 1]) == "薬もあります。"
    assert (ids[weights == 0.5][-1], ids[-1], ids[0]) == (2, 2, 1) and set(weights.tolist()) == {0, 0.5, 1}
    assert manifest.details["learnt_tokens"] == np.count_nonzero(weights) and manifest.details["answers"] == 2


def test_prompt_is_what_a_chat_program_makes_of_it(made, tokenizer):
    """The stretch before each answer, tokenised on its own as it is when the model is asked, begins the conversation's ids."""
    said = ("発熱の原因は？", "感染症です。", "本当に？", "はい。")
    turns = [Turn(("user", "assistant")[number % 2], text) for number, text in enumerate(said)]
    (one,), _ = made([conversation(*said)])
    ids, weights = (array.tolist() for array in one)
    model, template = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer)), llmjp_template()
    for number in (1, 3):
        asked = []
        for part in template.render(turns[:number], add_generation_prompt=True).replace("</s>", "<s>").split("<s>"):
            asked += [*model.encode(part), None] if part else [None]
        asked = asked[:-1]  # what stands between marks, None for a mark
        assert len(asked) < len(ids) and all(theirs in (None, ours) for ours, theirs in zip(ids, asked, strict=False))
        assert weights[len(asked)] == 1 and weights[len(asked) - 1] == 0


def test_hugging_face_tokenizer_gives_the_same(made, tokenizer, tmp_path):
    pytest.importorskip("tokenizers")
    from megatron_jmed.convert.tokenizer import write_tokenizer

    folder = tmp_path / "hf"
    folder.mkdir()
    write_tokenizer(tokenizer, folder)
    records = [json.loads(line) for line in (CHAT / "messages.jsonl").read_text(encoding="utf-8").splitlines()]
    ours, _ = made(records)
    theirs, _ = made(records, tokenizer=folder, overwrite=True)
    assert all(np.array_equal(a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True))


def test_another_template_and_bytes_without_a_piece(made, tokenizer, tmp_path):
    (tmp_path / "chatml.jinja").write_text(CHATML, encoding="utf-8")
    ((ids, weights),), manifest = made([conversation("𠮷野さん▁は？", "🩺 の𠮷です。")], template=str(tmp_path / "chatml.jinja"))
    assert decoded(tokenizer, ids[weights > 0]) == "🩺 の𠮷です。" and ids[weights > 0][-1] == 2
    assert manifest.settings["template"].endswith("chatml.jinja")


def test_a_token_across_the_border_is_read_and_counted(made, tokenizer, tmp_path):
    """A template that puts the answer right behind a word, so that one piece of the tokenizer covers the border."""
    (tmp_path / "glued.jinja").write_text(
        "{% for m in messages %}{{ m['content'] + (eos_token if m['role'] == 'assistant' else '') }}{% endfor %}", encoding="utf-8")
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    piece = next(piece for piece in (model.id_to_piece(number) for number in range(300, 2000))
                 if len(piece) == 2 and model.encode(f"。{piece}", out_type=str)[-1] == piece and "\u2581" not in piece)
    ((ids, weights),), manifest = made([conversation(f"。{piece[0]}", f"{piece[1]}。")], template=str(tmp_path / "glued.jinja"))
    assert manifest.details["straddling_tokens"] == 1
    assert weights[ids == model.piece_to_id(piece)] == 0 and decoded(tokenizer, ids[weights > 0]) == "。"


@pytest.mark.parametrize(("policy", "kept", "last"), [("drop", 1, None), ("turns", 2, "薬もあります。"), ("truncate", 2, None)])
def test_too_long_conversations_follow_a_named_policy(policy, kept, last, made, tokenizer):
    long = conversation("発熱の原因は？", "薬もあります。", "ほかには？", "感染症" * 40)
    short = conversation("熱は？", "はい。")
    limit = len(made([long])[0][0][0]) - 20
    found, manifest = made([short, long], max_tokens=limit, too_long=policy, overwrite=True)
    assert len(found) == kept and manifest.details["too_long"] == 1 and manifest.details["shortened"] == kept - 1
    assert max(len(ids) for ids, _ in found) <= limit == manifest.settings["max_tokens"]
    assert manifest.counts.dropped == ({"too_long": 1} if policy == "drop" else {})
    if last:
        ids, weights = found[1]
        assert decoded(tokenizer, ids[weights > 0]) == last and ids[-1] == 2
    if policy == "truncate":
        assert len(found[1][0]) == limit and found[1][1].any()


def test_nothing_to_learn_left_is_dropped_and_kept_aside(made, tmp_path):
    records = [conversation("熱は？", "はい。"), conversation("感染症" * 40, "はい。")]
    found, manifest = made(records, max_tokens=100, too_long="truncate")
    assert len(found) == 1 and manifest.counts.dropped == {"too_long": 1}
    kept = json.loads((tmp_path / "set/removed/too_long.jsonl").read_text(encoding="utf-8"))
    assert kept["line"] == 2 and json.loads(kept["raw"]) == records[1]


@pytest.mark.parametrize(("record", "said"), [
    ({"messages": [{"role": "user", "content": "a"}]}, "source.jsonl:2: the assistant says nothing"),
    (conversation("はい</s>", "a"), "source.jsonl:2: spells a mark"),
    (b"{", "source.jsonl:2: broken json"),
])
def test_what_is_no_conversation_stops_the_run_unless_allowed(record, said, made):
    with pytest.raises(CorpusError, match=said):
        made([conversation("熱は？", "はい。"), record])
    found, manifest = made([conversation("熱は？", "はい。"), record], max_bad=1)
    assert len(found) == 1 and sum(manifest.counts.dropped.values()) == 1


def test_a_template_of_another_tokenizer_or_without_an_answer_is_an_error(made, tmp_path):
    deaf = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ 'x' if add_generation_prompt }}"
    (tmp_path / "deaf.jinja").write_text(deaf)
    with pytest.raises(CorpusError, match="no assistant span found"):
        made([conversation("熱は？", "はい。")], template=str(tmp_path / "deaf.jinja"), max_bad=10)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x", "bos_token": "<|begin|>", "eos_token": "</s>"}')
    with pytest.raises(CorpusError, match="'<|begin|>', which the tokenizer does not know"):
        made([conversation("熱は？", "はい。")], template=str(tmp_path))


def test_same_bytes_for_any_number_of_workers_and_a_finished_set_is_left_alone(tokenizer, tmp_path):
    made = [tokenize_chat(CHAT, tmp_path / str(workers), ChatSettings(tokenizer=tokenizer, workers=workers)) for workers in (1, 2)]
    assert [file.sha256 for file in made[0].files] == [file.sha256 for file in made[1].files]
    assert made[0].counts.documents == 448 and made[0].details["answers"] == 488
    again = tokenize_chat(CHAT, tmp_path / "1", ChatSettings(tokenizer=tokenizer))
    assert again == made[0] == load_manifest(tmp_path / "1")
    token_set = load_token_set(tmp_path / "1")
    assert token_set.is_conversations and token_set.num_documents == 448
    with pytest.raises(CorpusError, match="too_long = 'drop' there, 'turns' now"):
        tokenize_chat(CHAT, tmp_path / "1", ChatSettings(tokenizer=tokenizer, too_long="turns"))


def test_real_tokenizer_has_no_token_across_a_border(shared_data, tmp_path):
    model = shared_data / "tokenizer/llm-jp-tokenizer-100k.ver3.0b1.model"
    manifest = tokenize_chat(CHAT, tmp_path / "set", ChatSettings(tokenizer=model))
    assert manifest.details["straddling_tokens"] == 0 and manifest.details["learnt_tokens"] > 2000


def test_tool_says_what_was_made(tokenizer, tmp_path):
    command = [sys.executable, str(REPO / "tools/tokenize_chat.py"), str(CHAT), str(tmp_path / "set"), "--workers", "1",
               "--tokenizer", str(tokenizer)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "448 conversations, 488 answers" in done.stdout and "to learn; the longest has" in done.stdout
