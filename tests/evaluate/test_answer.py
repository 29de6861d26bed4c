"""Option likelihoods against a plain full forward; whole sittings, interrupted and not."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import MixtralForCausalLM

from megatron_jmed.errors import CheckpointError, ExamError
from megatron_jmed.evaluate import hf_model, sitting
from megatron_jmed.evaluate.answer import answer_by_likelihood, pick_letters, why_not_scored
from megatron_jmed.evaluate.backend import OptionScores
from megatron_jmed.evaluate.exam import load_exam
from megatron_jmed.evaluate.hf_model import HfModel, load_hf_model
from megatron_jmed.evaluate.prompt import Prompt, render_prompt
from megatron_jmed.evaluate.question import Question
from megatron_jmed.evaluate.seam import split_at_seam
from megatron_jmed.evaluate.sitting import SittingSettings, draw_demos, find_demos, take_exam


@pytest.fixture(scope="module")
def candidate(hf_folder: Path) -> HfModel:
    return load_hf_model(hf_folder)


def score_options(candidate: HfModel, prompt: str, options: Sequence[str]) -> OptionScores:
    return candidate.score_options([Prompt(prompt)], [options])[0]


def answer_question(candidate: HfModel, question: Question) -> dict[str, Any]:
    return answer_by_likelihood(candidate, [(question, [])])[0]


@pytest.fixture
def questions(exam_folder: Path) -> dict[str, Question]:
    return {question.id: question for question in load_exam(exam_folder).questions}


def plain_log_likelihoods(
    hf_folder: Path, prompt: str, options: tuple[str, ...], keep_last: int = 10**9
) -> list[float]:
    """One full forward per option, with a tokenizer and model loaded apart from the code under test."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(hf_folder / "tokenizer.model"))
    model = MixtralForCausalLM.from_pretrained(hf_folder, dtype=torch.float32).eval()
    totals = []
    for option in options:
        num_option = len(pieces.encode(prompt + option)) - len(pieces.encode(prompt))
        ids = [1, *pieces.encode(prompt + option)[-keep_last:]]
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        totals.append(sum(log_p[i - 1, ids[i]].item() for i in range(len(ids) - num_option, len(ids))))
    return totals


def test_prompt_is_the_template(questions: dict[str, Question]) -> None:
    prompt = render_prompt(questions["112C1"]).text
    assert prompt == (
        "質問：発熱をきたす疾患はどれか。問題112C1\n"
        "A. 高血圧症\nB. 糖尿病と骨折\nC. 肺炎\nD. 骨折\nE. 白内障の治療\n答え："
    )
    with_demo = render_prompt(questions["112C1"], [questions["112B1"]]).text
    assert with_demo == render_prompt(questions["112B1"]).text + "肺炎\n\n" + prompt


def test_options_of_one_token_and_of_many(
    candidate: HfModel, hf_folder: Path, questions: dict[str, Question]
) -> None:
    for question in (questions["112C1"], questions["112C2"]):
        prompt = render_prompt(question).text
        scores = score_options(candidate, prompt, question.choices)
        assert len(set(scores.num_tokens)) > 1  # else padding would not be tested
        assert scores.log_likelihoods == pytest.approx(
            plain_log_likelihoods(hf_folder, prompt, question.choices), abs=1e-4
        )
        assert scores.num_truncated_tokens == 0
    single = score_options(candidate, "答え：", ["A", "B"])
    assert single.num_tokens == [1, 1]
    assert single.log_likelihoods == pytest.approx(plain_log_likelihoods(hf_folder, "答え：", ("A", "B")), abs=1e-4)


def test_long_prompt_loses_its_left_end_and_says_so(candidate: HfModel, hf_folder: Path) -> None:
    prompt, options = "発熱をきたす疾患はどれか。" * 60 + "答え：", ("肺炎", "骨折")
    num_tokens = len(candidate.tokenizer.encode(prompt))
    scores = score_options(candidate, prompt, options)
    longest = max(scores.num_tokens)
    assert scores.num_truncated_tokens == num_tokens + longest - candidate.max_tokens > 0
    for option, num_option, found in zip(options, scores.num_tokens, scores.log_likelihoods, strict=True):
        kept = candidate.max_tokens - 1 - longest + num_option
        assert found == pytest.approx(plain_log_likelihoods(hf_folder, prompt, (option,), keep_last=kept)[0], abs=1e-4)


def test_option_longer_than_the_context_is_refused(candidate: HfModel) -> None:
    with pytest.raises(CheckpointError, match=r"an option of \d+ tokens does not fit a context of 256"):
        score_options(candidate, "答え：", ["肺炎。" * 300, "骨折"])


def test_seam_moves_left_for_all_options_when_the_tokenizer_merges_across_it() -> None:
    prompt, wholes = [1, 7, 8, 9], [[1, 7, 8, 9, 20], [1, 7, 8, 30, 31], [1, 7, 8, 9, 40, 41]]
    assert split_at_seam(prompt, wholes) == ([1, 7, 8], [[9, 20], [30, 31], [9, 40, 41]])
    assert split_at_seam(prompt, [[1, 7, 8, 9, 20], [1, 7, 8, 9, 20, 5]]) == ([1, 7, 8, 9], [[20], [20, 5]])


def test_pick_letters() -> None:
    assert pick_letters([-3.0, -1.0, -2.0, -9.0], 1) == ["b"]
    assert pick_letters([-3.0, -1.0, -2.0, -9.0], 2) == ["b", "c"]
    assert pick_letters([-1.0, -3.0, -2.0, -0.5], 3) == ["a", "c", "d"]
    assert pick_letters([-1.0, -1.0], 1) == ["a"]


def test_two_methods_may_disagree(
    candidate: HfModel, questions: dict[str, Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = OptionScores([-4.0, -6.0, -9.0, -9.0, -8.0], [1, 3, 3, 3, 3], 0)
    monkeypatch.setattr(HfModel, "score_options", lambda *_: [fixed])
    single = answer_question(candidate, questions["112C1"])
    assert single["picked"] == {"sum": ["a"], "per_token": ["b"], "per_byte": ["a"]}
    double = answer_question(candidate, questions["112B2"])
    assert double["picked"] == {"sum": ["a", "b"], "per_token": ["b", "e"], "per_byte": ["a", "b"]}


def test_questions_that_likelihood_cannot_answer_are_kept_with_a_reason(
    candidate: HfModel, questions: dict[str, Question]
) -> None:
    numeric = answer_question(candidate, questions["112B3"])
    assert numeric["not_scored"] == "asks for a number" and "picked" not in numeric
    assert numeric["answers"] == [["26"]]
    blank = answer_question(candidate, questions["112B31"])
    assert blank["not_scored"] == "options are blank or repeated in the data"
    for choices in (("肺炎", "　", "骨折"), ("肺炎", "骨折", "肺炎 ")):
        assert why_not_scored(dataclasses.replace(questions["112C1"], choices=choices)) == blank["not_scored"]
    assert why_not_scored(questions["112C1"]) is None


def test_broken_weights_are_an_error(
    candidate: HfModel, questions: dict[str, Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = OptionScores([float("nan")] * 5, [1] * 5, 0)
    monkeypatch.setattr(HfModel, "score_options", lambda *_: [fixed])
    with pytest.raises(CheckpointError, match=r"112C1 are \[nan"):
        answer_question(candidate, questions["112C1"])


# --- the folder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", r"no config\.json"),
        ("model.safetensors", r"no \*\.safetensors"),
        ("tokenizer.model", r"no tokenizer\.model"),
    ],
)
def test_missing_parts_are_named(hf_folder: Path, tmp_path: Path, missing: str, message: str) -> None:
    folder = shutil.copytree(hf_folder, tmp_path / "hf")
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=message):
        load_hf_model(folder)


def test_missing_shard_and_missing_weight_are_refused(hf_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(hf_folder, tmp_path / "hf")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"1 of 2 weight files missing, such as model-2\.safetensors"):
        load_hf_model(folder)
    (folder / "model.safetensors.index.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"\d+ missing keys, such as model\.layers\.2"):
        load_hf_model(folder)


def test_fingerprint_sees_a_changed_weight_at_either_end_and_in_the_middle(
    hf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(hf_folder, tmp_path / "hf")
    assert hf_model.fingerprint(folder) == hf_model.fingerprint(hf_folder)
    monkeypatch.setattr(hf_model, "SAMPLE_BYTES", 16)
    original = (folder / "model.safetensors").read_bytes()
    prints = {hf_model.fingerprint(folder)}
    for place in (3, len(original) // 2, len(original) - 1):
        weights = bytearray(original)
        weights[place] ^= 1
        (folder / "model.safetensors").write_bytes(weights)
        prints.add(hf_model.fingerprint(folder))
    assert len(prints) == 4


def test_a_hugging_face_tokenizer_serves_as_well(hf_folder: Path, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    folder = shutil.copytree(hf_folder, tmp_path / "hf")
    (folder / "tokenizer.model").unlink()
    letters = {character: 2 + i for i, character in enumerate("発熱をきたす答え：肺炎")}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters | {"<unk>": 0, "<s>": 1}, unk_token="<unk>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", unk_token="<unk>").save_pretrained(folder)
    candidate = load_hf_model(folder)
    assert candidate.tokenizer.encode("肺炎") == [1, letters["肺"], letters["炎"]]
    assert score_options(candidate, "答え：", ["肺炎", "熱"]).num_tokens == [2, 1]


# --- the sitting ---------------------------------------------------------------------------------------------------


def test_scores_of_a_whole_sitting(hf_folder: Path, exam_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "scores/igakuqa.json"
    scores = take_exam(hf_folder, exam_folder, target)
    assert json.loads(target.read_text(encoding="utf-8")) == scores
    assert [p.name for p in target.parent.iterdir()] == ["igakuqa.json"]
    assert set(scores["passing"]) == {"2018", "2022"} and scores["passing"]["2018"]["sum"]["passed"] in (None, False)
    assert (scores["num_questions"], scores["num_scored"]) == (11, 9)
    assert scores["not_scored"] == {"asks for a number": 1, "options are blank or repeated in the data": 1}
    assert scores["model"]["fingerprint"] == hf_model.fingerprint(hf_folder)
    by_id = {record["id"]: record for record in scores["questions"]}
    assert len(by_id["112B2"]["picked"]["sum"]) == 2
    num_right = sum(
        r["always_correct"] or r["picked"]["sum"] in r["answers"] for r in by_id.values() if r["not_scored"] is None
    )
    assert scores["accuracy"]["sum"]["num_correct"] == num_right


@pytest.mark.parametrize("cut", ["between lines", "inside a line", "inside the first line"])
def test_interrupted_sitting_writes_the_same_file(
    hf_folder: Path, exam_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    whole, broken = tmp_path / "whole/exam.json", tmp_path / "broken/exam.json"
    settings = SittingSettings(years=(2018,), num_shots=1)
    take_exam(hf_folder, exam_folder, whole, settings)
    asked: list[str] = []
    answer = sitting._answer

    def ask(num_questions: int) -> None:
        """Take the exam until `num_questions` more were answered, then be interrupted."""
        stop = len(asked) + num_questions

        def answer_or_stop(backend: Any, group: Any, settings: Any) -> list[dict[str, Any]]:
            if len(asked) == stop:
                raise KeyboardInterrupt
            asked.extend(question.id for question, _ in group)
            return answer(backend, group, settings)

        monkeypatch.setattr(sitting, "_answer", answer_or_stop)
        take_exam(hf_folder, exam_folder, broken, settings)

    with pytest.raises(KeyboardInterrupt):
        ask(4)
    assert not broken.exists()
    partial = tmp_path / "broken/exam.partial.jsonl"
    lines = partial.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 5
    kept = {
        "between lines": lines,
        "inside a line": [*lines[:-1], lines[-1][:40]],
        "inside the first line": [lines[0][:40]],
    }
    partial.write_text("".join(kept[cut]), encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        ask(1)
    ask(8)
    assert broken.read_bytes() == whole.read_bytes()
    assert len(asked) == {"between lines": 8, "inside a line": 9, "inside the first line": 12}[cut]
    assert not partial.exists()


def test_finished_sitting_is_not_repeated_and_another_is_refused(
    hf_folder: Path, exam_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "igakuqa.json"
    scores = take_exam(hf_folder, exam_folder, target, SittingSettings(limit=2))
    monkeypatch.setattr(sitting, "_answer", None)  # asking again would fail
    assert take_exam(hf_folder, exam_folder, target, SittingSettings(limit=2)) == scores
    with pytest.raises(ExamError, match=r"belongs to another sitting \(exam_fingerprint"):
        take_exam(hf_folder, exam_folder, target, SittingSettings(limit=3))
    (tmp_path / "other.partial.jsonl").write_text(json.dumps({"seed": 1}) + "\n", encoding="utf-8")
    with pytest.raises(ExamError, match="seed 1, not 42"):
        take_exam(hf_folder, exam_folder, tmp_path / "other.json", SittingSettings(limit=2))
    with pytest.raises(ExamError, match="the scores are a JSON file"):
        take_exam(hf_folder, exam_folder, tmp_path / "scores", SittingSettings())


def test_demos_are_clear_questions_outside_of_the_exam(exam_folder: Path) -> None:
    everything = load_exam(exam_folder).questions
    asked = load_exam(exam_folder, [2022]).questions
    pool = find_demos(everything, asked, 3)
    assert [q.id for q in pool] == ["112B1", "112C1", "112C2", "112C3"]
    settings = SittingSettings(num_shots=3, seed=1)
    drawn = {q.id: [d.id for d in draw_demos(pool, q, settings)] for q in asked}
    assert drawn == {q.id: [d.id for d in draw_demos(pool, q, settings)] for q in reversed(asked)}
    assert all(len(set(ids)) == 3 for ids in drawn.values())
    other = [
        [d.id for d in draw_demos(pool, q, SittingSettings(num_shots=3, seed=seed))]
        for q in asked[:1]
        for seed in range(5)
    ]
    assert len({tuple(ids) for ids in other}) > 1
    with pytest.raises(ExamError, match="5 solved examples wanted, but only 4 usable"):
        find_demos(everything, asked, 5)


def test_tool_prints_a_table(
    hf_folder: Path, exam_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
    samples: SimpleNamespace,
) -> None:  # fmt: skip
    target = tmp_path / "scores.json"
    tool = samples.load_tool("take_exam")
    monkeypatch.setattr("sys.argv", ["take_exam.py", str(hf_folder), str(exam_folder), str(target), "--years", "2018"])
    tool.main()
    printed = capsys.readouterr().out
    assert "6 of 8 scored" in printed and "not scored: 1 (asks for a number)" in printed
    assert json.loads(target.read_text(encoding="utf-8"))["num_questions"] == 8
