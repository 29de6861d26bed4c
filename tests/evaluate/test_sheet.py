"""A sheet replaces no other file, and what is no answer to it is named."""

import json
from pathlib import Path

import pytest

from megatron_jmed.corpus.manifest import sha256_file
from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.sheet import score_answers, write_sheet
from megatron_jmed.evaluate.sitting import SittingSettings


@pytest.fixture
def sheet(hf_folder: Path, exam_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "exam.jsonl"
    write_sheet(exam_folder, hf_folder / "tokenizer.model", path, SittingSettings(limit=2), 512)
    return path


def answers(sheet: Path, **changes) -> Path:
    path = sheet.parent / "run/exams/exam_step_0000001.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    words = {"sheet": str(sheet), "sheet_sha256": sha256_file(sheet), "step": 1, "tokens": 10, "precision": "fp32"}
    path.write_text(json.dumps(words | changes))
    return path


def test_a_sheet_does_not_replace_another_file(sheet, hf_folder, exam_folder, tmp_path):
    write_sheet(exam_folder, hf_folder / "tokenizer.model", sheet, SittingSettings(limit=2), 512)  # the same: nothing changes
    exam = tmp_path / "own.jsonl"
    exam.write_text('{"id": "1", "question": "Q?", "choices": ["one", "two"], "answer": "a"}\n')
    before = exam.read_bytes()
    with pytest.raises(ExamError, match="own.jsonl: is there already and holds something else"):
        write_sheet(exam, hf_folder / "tokenizer.model", exam, SittingSettings(), 512)
    assert exam.read_bytes() == before


def test_answers_are_scored_or_named(sheet, tmp_path):
    num_options = sum(len(json.loads(line)["continuations"]) for line in sheet.read_text().splitlines()[1:])
    scores = score_answers(answers(sheet, log_likelihoods=[-1.0] * num_options), tmp_path / "scores.json")
    assert scores["num_questions"] == 2 and scores["tokens"] == 10
    with pytest.raises(ExamError, match=f"7 answers to the {num_options} options"):
        score_answers(answers(sheet, log_likelihoods=[-1.0] * 7), tmp_path / "scores.json")
    with pytest.raises(ExamError, match=r"no answers of a run \(log_likelihoods missing\)"):
        score_answers(answers(sheet), tmp_path / "scores.json")
    path = answers(sheet, log_likelihoods=[])
    path.write_text(path.read_text()[:40])
    with pytest.raises(ExamError, match="exam_step_0000001.json: no answers of a run"):
        score_answers(path, tmp_path / "scores.json")
