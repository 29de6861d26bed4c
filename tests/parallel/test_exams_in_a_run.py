"""A model answers an exam while it trains: the log-likelihoods of its exported checkpoint, on every layout; training stays the
same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_jmed.corpus.token_set import load_token_set
from megatron_jmed.data.exam_sheet import load_sheet
from megatron_jmed.errors import CorpusError
from megatron_jmed.evaluate.score import load_scores

REPO = Path(__file__).parents[2]
EXAM = REPO / "examples/data/qa_exam.jsonl"
SHEET = "qa_exam.jsonl"
RUN = ["tiny", "budget.total_tokens=4096", "budget.eval_every_tokens=0", "optim.warmup_tokens=0", "model.num_layers=2",
       "parallel.ep=1", "budget.save_every_tokens=4096"]
SAT = [f'exams.sheets=["{SHEET}"]', "exams.every_tokens=2048"]
LAYOUTS = {"tp2": ["parallel.tp=2", "parallel.sequence_parallel=true", "parallel.ep=2"], "pp2": ["parallel.pp=2"], "dp2": [],
           "cp2": ["parallel.cp=2"]}


def tool(folder: Path, name: str, *words) -> str:
    command = [sys.executable, str(REPO / f"tools/{name}.py"), *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200,
                          env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def answered(token_folder, train_runs) -> Path:
    tool(token_folder, "prepare_exam", EXAM, SHEET, "--tokenizer", "tokenizer.model", "--max-tokens", 128)
    train_runs(1, [[*RUN, "init=random", "run_folder=runs/exam_none"], [*RUN, *SAT, "init=random", "run_folder=runs/exam_one"]])
    begun = "init=runs/exam_one/checkpoints/step_0000002"
    late = ["optim.peak_lr=1e-9", "optim.min_lr=1e-9", "exams.every_tokens=4096"]  # the weights stay what they are
    train_runs(2, [[*RUN, *SAT, *late, begun, f"run_folder=runs/exam_{name}", *changes] for name, changes in LAYOUTS.items()])
    return token_folder


def answers(folder: Path, run: str, step: int) -> dict:
    return json.loads((folder / f"runs/{run}/exams/qa_exam_step_{step:07d}.json").read_text())


def test_answers_are_those_of_the_exported_checkpoint(answered):
    tool(answered, "export_hf", "runs/exam_one/checkpoints/step_0000002", "exam_hf", "--tokenizer", "tokenizer.model")
    tool(answered, "take_exam", "exam_hf", EXAM, "exam_scores.json")
    said = tool(answered, "score_exams", "runs/exam_one")
    ours, theirs = (load_scores(answered / path) for path in ("runs/exam_one/scores/qa_exam_step_0000002.json", "exam_scores.json"))
    assert ours["step"] == 2 and ours["tokens"] == 4096 and "qa_exam_step_0000001.json" in said
    assert len(ours["questions"]) == len(theirs["questions"]) == 40
    for mine, other in zip(ours["questions"], theirs["questions"], strict=True):
        assert mine["id"] == other["id"] and mine["num_tokens"] == other["num_tokens"]
        assert mine["log_likelihoods"] == pytest.approx(other["log_likelihoods"], abs=2e-4)
        assert mine["picked"] == other["picked"]
    assert ours["accuracy"] == theirs["accuracy"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_do_not_depend_on_the_layout(answered, layout):
    found, one = answers(answered, f"exam_{layout}", 2), answers(answered, "exam_one", 2)
    assert found["log_likelihoods"] == pytest.approx(one["log_likelihoods"], abs=1e-3)
    assert one["log_likelihoods"] != answers(answered, "exam_one", 1)["log_likelihoods"]


def test_training_is_the_same_to_the_bit_with_and_without_exams(answered, step_records):
    assert [record["loss"] for record in step_records("exam_one").values()] == [
        record["loss"] for record in step_records("exam_none").values()]


def test_bad_sheets_are_refused_before_anything_starts(answered, tmp_path):
    vocab_size = load_token_set(answered / "runs/tiny/tokens/texts_ja").vocab_size
    assert len(load_sheet(answered / SHEET, vocab_size, 128).rows) == 200
    with pytest.raises(CorpusError, match=r"tokens long, budget.seq_length=16; make the sheet again with --max-tokens 16"):
        load_sheet(answered / SHEET, vocab_size, 16)
    with pytest.raises(CorpusError, match="is beyond model.vocab_size=100"):
        load_sheet(answered / SHEET, 100, 128)
    (tmp_path / "no.jsonl").write_text("{}\n")
    with pytest.raises(CorpusError, match="no exam sheet, its first line is no header .*make it with tools/prepare_exam.py"):
        load_sheet(tmp_path / "no.jsonl", 100, 128)
    with pytest.raises(CorpusError, match="does not exist"):
        load_sheet(tmp_path / "nowhere.jsonl", 100, 128)
