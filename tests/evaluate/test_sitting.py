"""Whole sittings: batches, templates, contamination, a base model; a model that knows everything, and one that knows nothing."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from megatron_jmed.corpus.chat import Turn, llmjp_template
from megatron_jmed.corpus.decontaminate import decontaminate
from megatron_jmed.errors import CheckpointError, ExamError
from megatron_jmed.evaluate import sitting
from megatron_jmed.evaluate.answer import answer_by_generation
from megatron_jmed.evaluate.exam import load_exam
from megatron_jmed.evaluate.hf_model import HfModel, load_hf_model
from megatron_jmed.evaluate.prompt import Prompt, option_texts, render_prompt
from megatron_jmed.evaluate.question import Question
from megatron_jmed.evaluate.sitting import SittingSettings, check_same_exam, take_exam, years_of

SHARED = Path(os.environ.get("MEGATRON_JMED_SHARED", Path(__file__).parents[3] / "shared"))
REAL_EXAM = SHARED / "data/exams/igakuqa"
CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '\n### ' + message['role'] + ':\n' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n### assistant:\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def model(hf_folder: Path) -> HfModel:
    return load_hf_model(hf_folder)


@pytest.fixture
def chat_folder(hf_folder: Path, tmp_path: Path) -> Path:
    """The same model with a chat template."""
    folder = tmp_path / "chat"
    folder.mkdir()
    for path in hf_folder.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT})
    )
    return folder


# --- batches -------------------------------------------------------------------------------------------------------


def test_questions_in_one_batch_score_as_alone(hf_folder: Path, tmp_path: Path, samples: SimpleNamespace) -> None:
    choices = ["骨折", "肺炎", "高血圧症と糖尿病の合併", "白内障", "抗菌薬の投与", "咳"]
    rows = [{"id": f"{n}", "question": "発熱をきたす疾患はどれか。" * (1 + n % 4), "choices": choices[: 2 + n % 5], "answer": "b"}
            for n in range(13)]  # fmt: skip
    path = samples.write_jsonl(tmp_path / "own.jsonl", rows)
    alone = take_exam(hf_folder, path, tmp_path / "alone/exam.json")
    together = take_exam(hf_folder, path, tmp_path / "together/exam.json", SittingSettings(batch_size=5))
    for one, other in zip(alone["questions"], together["questions"], strict=True):
        assert other["log_likelihoods"] == pytest.approx(one["log_likelihoods"], abs=2e-5)
        assert one["picked"] == other["picked"] and one["num_tokens"] == other["num_tokens"]


def test_written_answers_in_one_batch_are_those_of_each_alone(model: HfModel, exam_folder: Path) -> None:
    questions = load_exam(exam_folder).questions
    assert len({len(q.text) for q in questions}) > 1
    together = answer_by_generation(model, [(q, []) for q in questions], "standard", max_new_tokens=8)
    alone = [answer_by_generation(model, [(q, [])], "standard", max_new_tokens=8)[0] for q in questions]
    assert together == alone


@pytest.mark.parametrize("num_kept", [1, 3, 5])
def test_interrupted_in_the_midst_of_a_batch(hf_folder: Path, exam_folder: Path, tmp_path: Path, num_kept: int) -> None:
    settings = SittingSettings(batch_size=4, num_shots=1, years=(2018,))
    take_exam(hf_folder, exam_folder, tmp_path / "whole/exam.json", settings)
    records = json.loads((tmp_path / "whole/exam.json").read_text())["questions"]
    (tmp_path / "broken").mkdir()
    partial = tmp_path / "broken/exam.partial.jsonl"

    def stop(*_: Any) -> list[dict[str, Any]]:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sitting, "_answer", stop)
        take_exam(hf_folder, exam_folder, tmp_path / "broken/exam.json", settings)
    with partial.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records[:num_kept])
    take_exam(hf_folder, exam_folder, tmp_path / "broken/exam.json", settings)
    assert (tmp_path / "broken/exam.json").read_bytes() == (tmp_path / "whole/exam.json").read_bytes()


# --- templates -----------------------------------------------------------------------------------------------------


def test_templates(exam_folder: Path) -> None:
    question = next(q for q in load_exam(exam_folder).questions if q.id == "112B2")
    options = "A. 高血圧症\nB. 糖尿病と骨折\nC. 肺炎\nD. 骨折\nE. 白内障の治療\n"
    assert render_prompt(question, template="minimal").text == f"{question.text}\n"
    assert render_prompt(question, template="english").text == f"Question: {question.text}\n{options}Answer: "
    assert render_prompt(question, [question], "standard").text.startswith(
        f"質問：{question.text}\n{options}答え：高血圧症、骨折\n\n質問："
    )
    assert render_prompt(question, [question], "english", "letter").text.startswith(
        f"Question: {question.text}\n{options}Answer: A, D\n\n"
    )
    chat = render_prompt(question, [question], "instructed")
    assert chat.is_chat and chat.text.count("Answer: a, d") == 1 and "選択肢を2つ選ぶ。例：Answer: a, b" in chat.text
    assert option_texts(question, "letter") == ("A", "B", "C", "D", "E")
    with_context = Question(
        "1", "pubmedqa", "Q?", ("yes", "no", "maybe"), (frozenset("a"),), 1, context="It helped.", show_choices=False
    )
    assert render_prompt(with_context, template="english").text == "Abstract: It helped.\nQuestion: Q?\nAnswer: "
    assert render_prompt(with_context).text == "要旨：It helped.\n質問：Q?\n答え："


def test_instructed_form_goes_through_the_models_own_chat_template(
    chat_folder: Path, hf_folder: Path, exam_folder: Path, tmp_path: Path, model: HfModel
) -> None:
    settings = SittingSettings(template="instructed", limit=2)
    scores = take_exam(chat_folder, exam_folder, tmp_path / "exam.json", settings)
    question = load_exam(exam_folder).questions[0]
    message = render_prompt(question, template="instructed").text
    as_text = Prompt(f"\n### user:\n{message}\n### assistant:\n")
    expected = model.score_options([as_text], [question.choices])[0].log_likelihoods
    assert scores["questions"][0]["log_likelihoods"] == pytest.approx(expected, abs=1e-6)
    assert scores["chat_template"] == "tokenizer_config.json"
    other = take_exam(hf_folder, exam_folder, tmp_path / "other.json", settings)  # a folder without one: LLM-jp's
    assert other["chat_template"] == "LLM-jp's chat template"
    as_text = Prompt(llmjp_template().render([Turn("user", message)], add_generation_prompt=True).removeprefix("<s>"))
    expected = model.score_options([as_text], [question.choices])[0].log_likelihoods
    assert other["questions"][0]["log_likelihoods"] == pytest.approx(expected, abs=1e-6)
    plain = take_exam(hf_folder, exam_folder, tmp_path / "plain.json", SittingSettings(chat=True, limit=1))
    as_text = llmjp_template().render([Turn("user", render_prompt(question).text)], add_generation_prompt=True)
    expected = model.score_options([Prompt(as_text.removeprefix("<s>"))], [question.choices])[0].log_likelihoods
    assert plain["questions"][0]["log_likelihoods"] == pytest.approx(expected, abs=1e-6)


def test_letters_may_be_compared_instead_of_words(hf_folder: Path, exam_folder: Path, tmp_path: Path, model: HfModel) -> None:
    scores = take_exam(hf_folder, exam_folder, tmp_path / "exam.json", SittingSettings(target="letter", limit=1))
    prompt = render_prompt(load_exam(exam_folder).questions[0])
    assert scores["questions"][0]["log_likelihoods"] == pytest.approx(
        model.score_options([prompt], ["ABCDE"])[0].log_likelihoods, abs=1e-6
    )


def test_examples_come_from_the_train_split(hf_folder: Path, tmp_path: Path, samples: SimpleNamespace) -> None:
    row = {"question": "どれか。", "choices": ["骨折", "肺炎"], "answer": "b"}
    samples.write_jsonl(tmp_path / "own/test.jsonl", [row | {"id": f"t{n}", "question": f"問{n}"} for n in range(4)])
    samples.write_jsonl(tmp_path / "own/train.jsonl", [row | {"id": f"r{n}", "question": f"例{n}"} for n in range(6)])
    one = take_exam(hf_folder, tmp_path / "own", tmp_path / "a.json", SittingSettings(num_shots=2))
    other = take_exam(hf_folder, tmp_path / "own", tmp_path / "b.json", SittingSettings(num_shots=2, seed=7))
    assert one["demos_fingerprint"] == other["demos_fingerprint"]
    assert [r["log_likelihoods"] for r in one["questions"]] != [r["log_likelihoods"] for r in other["questions"]]
    with pytest.raises(ExamError, match="7 solved examples wanted, but only 6 usable"):
        take_exam(hf_folder, tmp_path / "own", tmp_path / "c.json", SittingSettings(num_shots=7))
    with pytest.raises(ExamError, match="template 'polite'; choose from minimal, standard, english, instructed"):
        take_exam(hf_folder, tmp_path / "own", tmp_path / "c.json", SittingSettings(template="polite"))


# --- contamination and a base model --------------------------------------------------------------------------------


def test_clean_subset_by_the_corpus_own_report_and_comparison_with_a_base(
    hf_folder: Path, exam_folder: Path, tmp_path: Path, samples: SimpleNamespace
) -> None:
    question = load_exam(exam_folder).questions[0]
    leak = question.text + " " + " ".join(question.choices)
    texts = [{"text": "今日は晴れている。" * 9, "id": "a"}, {"text": f"前書き。{leak}。後書き。", "id": "b"}]
    samples.write_jsonl(tmp_path / "raw/texts.jsonl", texts)
    (exam_folder / "2018/112-B_translate.jsonl").unlink()
    decontaminate(tmp_path / "raw", tmp_path / "flagged", [exam_folder], action="flag")
    decontaminate(tmp_path / "raw", tmp_path / "removed", [exam_folder], action="remove")
    target, base = tmp_path / "scores.json", tmp_path / "base.json"
    take_exam(hf_folder, exam_folder, base, SittingSettings(template="standard"))
    take_exam(hf_folder, exam_folder, target)
    settings = SittingSettings(contamination=(tmp_path / "flagged/contamination.json",), base=base)
    scores = take_exam(hf_folder, exam_folder, target, settings)  # the exam is not sat again
    flags = {r["id"]: r["contamination"] for r in scores["questions"]}
    assert flags["112B1"] == "contaminated" and "clean" in flags.values()
    counts = {name: s["sum"]["num_questions"] for name, s in scores["by_contamination"].items()}
    assert counts["contaminated"] == list(flags.values()).count("contaminated") and sum(counts.values()) == 11
    assert scores["against"]["sum"] | {"interval_low": 0, "interval_high": 0} == {
        "difference": 0, "interval_low": 0, "interval_high": 0, "num_gained": 0, "num_lost": 0, "p_value": 1}  # fmt: skip
    cleaned = SittingSettings(contamination=(tmp_path / "removed/contamination.json",))
    assert "contaminated" not in take_exam(hf_folder, exam_folder, target, cleaned)["by_contamination"]
    report = json.loads((tmp_path / "flagged/contamination.json").read_text())
    report["question_ids"].remove("112B1")
    (tmp_path / "other.json").write_text(json.dumps(report))
    with pytest.raises(ExamError, match="did not look for 1 of the 11 questions, such as 112B1"):
        take_exam(hf_folder, exam_folder, target, SittingSettings(contamination=(tmp_path / "other.json",)))


# --- who knows everything, and who knows nothing -------------------------------------------------------------------


def rig(hf_folder: Path, answers: dict[str, Question], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the tiny model's logits a push towards the right options: a real model that happens to know them all.

    Every option is pushed with the same strength on the tokens that it begins with; the right ones up, the others down.
    """
    import torch

    model = load_hf_model(hf_folder)
    forward = model.model.forward
    known: list[tuple[list[int], list[list[int]], list[bool]]] = []
    for question in answers.values():
        right = next(iter(question.answers))
        request = model._request(render_prompt(question).text, question.choices)
        known.append((request.prefix, request.continuations, [letter in right for letter in "abcdefgh"[: len(question.choices)]]))

    def knowing(input_ids: torch.Tensor, **more: Any) -> Any:
        output = forward(input_ids=input_ids, **more)
        for prefix, continuations, is_right in known:
            if input_ids.shape[0] == 1 and input_ids[0].tolist() == prefix:
                for continuation, right in zip(continuations, is_right, strict=True):
                    output.logits[0, -1, continuation[0]] += 1000.0 if right else 0.0
        return output

    monkeypatch.setattr(model.model, "forward", knowing)
    monkeypatch.setattr(sitting, "load_backend", lambda *_: model)


def test_a_model_that_prefers_the_right_option_gets_every_point(
    hf_folder: Path, tmp_path: Path, samples: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = ["白内障", "糖尿病", "肺炎", "骨折", "高血圧症"]

    def row(name: str, answer: list[str], points: str) -> dict[str, Any]:
        return samples.question_row(name, choices=choices, answer=answer, points=points)

    rows = {"112-A": [row("112A1", ["a"], "1"), row("112A2", ["b", "d"], "1"), row("112A3", ["e"], "0")],
            "112-B": [row("112B1", ["c"], "3"), row("112B30", ["a or d"], "3"), row("112B31", ["b", "c", "e"], "1")]}  # fmt: skip
    for name, lines in rows.items():
        samples.write_jsonl(tmp_path / f"exam/2018/{name}.jsonl", lines)
    questions = load_exam(tmp_path / "exam").questions
    rig(hf_folder, {q.id: q for q in questions}, monkeypatch)
    scores = take_exam(hf_folder, tmp_path / "exam", tmp_path / "exam.json")
    assert scores["accuracy"]["sum"]["accuracy"] == 1 and scores["accuracy"]["sum"]["num_correct"] == 6
    assert scores["accuracy"]["sum"]["points"] == scores["accuracy"]["sum"]["points_possible"] == 9
    verdict = scores["passing"]["2018"]["sum"]
    assert verdict["rules"]["essential"] == {"points": 7, "possible": 7, "needed": pytest.approx(5.6), "passed": True}
    assert verdict["passed"] is None, "these are not all 299 points of the other questions"


@pytest.mark.skipif(not REAL_EXAM.is_dir(), reason=f"no real exam at {REAL_EXAM}; set MEGATRON_JMED_SHARED")
@pytest.mark.parametrize("year", [2018, 2019, 2020, 2021])
def test_a_random_model_scores_at_chance_on_the_real_exam(hf_folder: Path, tmp_path: Path, year: int) -> None:
    scores = take_exam(hf_folder, REAL_EXAM, tmp_path / "exam.json", SittingSettings(years=(year,)))
    for method in scores["methods"]:
        s = scores["accuracy"][method]
        assert s["interval_low"] <= s["chance"] <= s["interval_high"], (method, s["accuracy"], s["chance"])
    assert scores["num_scored"] >= 394


def test_the_real_exam_answered_by_its_key_is_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All points of the real exam, and its pass rules, with a back end that reads the key."""
    if not REAL_EXAM.is_dir():
        pytest.skip(f"no real exam at {REAL_EXAM}; set MEGATRON_JMED_SHARED")
    exam = load_exam(REAL_EXAM, [2018])
    key = {render_prompt(q, template="instructed").text: q for q in exam.questions}

    class Key:
        name = "key"
        identity: ClassVar = {"name": "key"}

        def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
            return ["Answer: " + ", ".join(sorted(next(iter(key[p.text].answers)))) for p in prompts]

    monkeypatch.setattr(sitting, "load_backend", lambda *_: Key())
    scores = take_exam(
        "key", REAL_EXAM, tmp_path / "exam.json", SittingSettings(years=(2018,), way="generate", template="instructed")
    )
    assert scores["accuracy"]["generated"]["points"] == 499 == scores["accuracy"]["generated"]["points_possible"]
    assert scores["format"]["compliance"] == 1 and scores["passing"]["2018"]["generated"]["passed"] is True
    assert scores["accuracy"]["generated"]["num_forbidden_picked"] == 0


# --- what cannot be meant ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "said"), [
    ({"limit": -1}, "limit is -1; at least 1"),
    ({"limit": 0}, "limit is 0; at least 1"),
    ({"num_shots": -1}, "num_shots is -1"),
    ({"way": "generate", "max_new_tokens": 0}, "max_new_tokens is 0"),
])
def test_numbers_that_cannot_be_meant_are_refused(words, said, exam_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExamError, match=said):
        take_exam("nowhere", exam_folder, tmp_path / "exam.json", SittingSettings(**words))


def test_a_damaged_model_is_named(hf_folder: Path, exam_folder: Path, tmp_path: Path) -> None:
    for name, content in (("model.safetensors", b"short"), ("config.json", b"{")):
        folder = tmp_path / name
        folder.mkdir()
        for path in hf_folder.iterdir():
            (folder / path.name).symlink_to(path)
        (folder / name).unlink()
        (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{folder}.*: transformers cannot"):
            take_exam(folder, exam_folder, tmp_path / "exam.json")


def test_another_exam_than_the_bases_is_refused_before_it_is_taken(hf_folder: Path, exam_folder: Path, tmp_path: Path) -> None:
    take_exam(hf_folder, exam_folder, tmp_path / "base.json", SittingSettings(limit=1))
    with pytest.raises(ExamError, match="holds 1 questions that are not the 2 asked here"):
        take_exam("nowhere", exam_folder, tmp_path / "exam.json", SittingSettings(limit=2, base=tmp_path / "base.json"))
    check_same_exam(tmp_path / "base.json", exam_folder, SittingSettings(limit=1))
    with pytest.raises(ExamError, match="base.json: belongs to another sitting"):
        check_same_exam(tmp_path / "base.json", exam_folder, SittingSettings(limit=2))


def test_a_partial_file_of_something_else_is_refused(hf_folder: Path, exam_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "exam.partial.jsonl").write_text("[]\n")
    with pytest.raises(ExamError, match=r"exam.partial.jsonl: broken \(a line that is no object\)"):
        take_exam(hf_folder, exam_folder, tmp_path / "exam.json", SittingSettings(limit=1))


def test_years_are_numbers_with_commas() -> None:
    assert years_of("2018,2019") == (2018, 2019)
    with pytest.raises(ExamError, match="--years 2018-2020: give years with commas"):
        years_of("2018-2020")


def test_an_exam_without_a_question_is_refused(tmp_path: Path) -> None:
    (tmp_path / "exam.json").write_text("[]")
    with pytest.raises(ExamError, match="exam.json: an exam without a question"):
        take_exam("nowhere", tmp_path / "exam.json", tmp_path / "scores.json")
