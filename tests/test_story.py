"""The story script, whole, in an empty folder: raw text to report on two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
SCRIPTS = sorted((REPO / "examples").glob("*.sh"))


def tell(script: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(REPO / "examples" / script)], cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=540)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("story")
    assert "the report is at" in tell("00_tiny.sh", folder)
    return folder / "runs/tiny"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_short(script):
    assert len(script.read_text().splitlines()) <= 30


def test_corpus_story_accounts_for_every_document(tmp_path):
    assert "the datasheet is at" in tell("01_corpus.sh", tmp_path)
    work = tmp_path / "runs/corpus"
    stages = [json.loads((work / name / "manifest.json").read_text())["counts"]
              for name in ("clean", "masked", "unique", "fit", "tokens")]
    read = 426 + 409
    for counts in stages:
        assert counts["documents"] + sum(counts["dropped"].values()) == read
        read = counts["documents"]
    datasheet = json.loads((work / "datasheet/datasheet.json").read_text())
    assert datasheet["totals"]["documents"] == read and datasheet["totals"]["tokens"] == stages[-1]["tokens"]
    again = tell("01_corpus.sh", tmp_path)
    assert again.count("the datasheet is at") == 1


def test_upcycling_story_proves_both_folders_equal_and_trains_on(run_folder):
    told = tell("02_upcycle.sh", run_folder.parents[1])
    assert "EQUAL: 127 tensors are equal to the bit, and the configs compute alike; logits agree within" in told
    work = run_folder.parents[1] / "runs/upcycle"
    losses = {name: [json.loads(line)["loss"] for line in (work / name / "metrics.jsonl").read_text().splitlines()
                     if '"loss"' in line] for name in ("dense", "trained")}
    assert losses["dense"][0] > 7 and losses["trained"][0] < 5.5, "the mixture must begin with what its parent knows"
    assert losses["trained"][-1] < losses["dense"][-1]


def test_rehearsal_of_a_pre_training_stops_goes_on_further_and_says_what_it_read(run_folder):
    told = tell("03_pretrain_8x13b.sh", run_folder.parents[1])
    work = run_folder.parents[1] / "runs/rehearsal"
    assert "256   64             16   cost model" in told, "the plan of the real run"
    assert "stop file); the same command goes on" in told and "budget.total_tokens: 49152 -> 81920" in told
    lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 41))
    assert [line["lr"] for line in lines if "loss" in line][-1] == pytest.approx(3e-4)
    assert "step 10\n  sequence 0  texts_" in told and "all                                      81,920" in told
    assert (work / "hf/config.json").exists()


def test_tuned_model_knows_what_it_was_taught_in_words_it_has_not_read(run_folder):
    """Asked in wordings that no conversation has, as a chat program asks; one answer in five is right by chance."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    told = tell("04_sft.sh", run_folder.parents[1])
    assert "448 conversations, 488 answers" in told and "every record is a conversation" in told
    tuned = run_folder.parent / "tiny_sft"
    (source,) = json.loads((tuned / "blend.json").read_text())["sources"]
    assert source["fill_ratio"] > 0.85 and source["epochs"] > 10
    questions = [json.loads(line) for line in (REPO / "examples/data/qa_exam.jsonl").read_text(encoding="utf-8").splitlines()]
    right = {}
    for name in ("hf", "base_hf"):
        tokenizer, model = AutoTokenizer.from_pretrained(tuned / name), AutoModelForCausalLM.from_pretrained(tuned / name)
        right[name] = 0
        for question in questions:
            asked = [{"role": "user", "content": question["question"]}]
            prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            written = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].size(1) :]
            right[name] += tokenizer.decode(written, skip_special_tokens=True) == question["choices"][question["answer"]]
    assert right["hf"] >= 18 and right["base_hf"] == 0, right


def test_exam_story_shows_what_tuning_has_taught_in_a_template_that_no_conversation_has(run_folder):
    tuned = run_folder.parent / "tiny_sft"
    if not (tuned / "hf/config.json").exists():
        tell("04_sft.sh", run_folder.parents[1])
    told = tell("05_exam.sh", run_folder.parents[1])
    assert "qa_exam.yaml: 40 exported" in told
    scores = {path.stem: json.loads(path.read_text()) for path in (tuned / "scores").glob("*.json")}
    course = [scores.pop(f"qa_exam_step_{step:07d}") for step in (150, 300)]
    assert [s["tokens"] for s in course] == [307_200, 614_400]
    assert course[0]["accuracy"]["sum"]["num_correct"] < course[1]["accuracy"]["sum"]["num_correct"] == (
        scores["after_standard"]["accuracy"]["sum"]["num_correct"])
    assert set(scores) == {f"{when}_{how}" for when in ("before", "after") for how in ("standard", "english", "written")}
    for how in ("standard", "english"):
        before, after = (scores[f"{when}_{how}"]["accuracy"]["sum"] for when in ("before", "after"))
        assert before["num_correct"] <= 16 and after["interval_low"] > 0.4 and after["verdict"] == "above chance"
        assert scores[f"after_{how}"]["against"]["sum"]["p_value"] < 1e-3
    assert scores["after_written"]["accuracy"]["generated"]["interval_low"] > 0.4
    assert "after_english over checkpoints" in (tuned / "report.html").read_text(encoding="utf-8")
    assert "model-index" in (tuned / "hf/README.md").read_text(encoding="utf-8") and (tuned / "comparison.html").exists()


def test_the_model_has_learnt(run_folder):
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 120 and losses[0] > 7 and losses[-1] < 4.5
    valid = [record["valid_loss"] for record in records if "valid_loss" in record]
    assert len(valid) == 3 and valid[-1]["texts_ja"] < valid[0]["texts_ja"] and valid[-1]["texts_en"] < valid[0]["texts_en"]


def test_every_token_is_accounted_for(run_folder):
    blend = json.loads((run_folder / "blend.json").read_text())
    assert sum(source["consumed_tokens"] for source in blend["sources"]) == blend["consumed_tokens"] == 120 * 16 * 128
    for source in blend["sources"]:
        assert source["consumed_tokens"] == pytest.approx(blend["consumed_tokens"] / 2, rel=0.01)


def test_hugging_face_folder_exam_and_report_are_there(run_folder):
    assert json.loads((run_folder / "hf/config.json").read_text())["architectures"] == ["MixtralForCausalLM"]
    scores = json.loads((run_folder / "scores/invented_exam.json").read_text())
    assert scores["num_questions"] == 40
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    assert "invented_exam" in page and "texts_ja" in page and "<svg" in page
