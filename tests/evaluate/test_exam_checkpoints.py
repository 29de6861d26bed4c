"""What the examiner of checkpoints refuses before it exports anything."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_jmed.errors import CheckpointError, ExamError
from megatron_jmed.evaluate.score import FORMAT_VERSION, GROUPS


@pytest.fixture
def examine(samples: SimpleNamespace, exam_folder: Path, tmp_path: Path, monkeypatch):
    """examine(words): the tool on a run folder without weights."""
    tool = samples.load_tool("exam_checkpoints")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")

    def run(*words: str) -> None:
        run_and_exam = [str(tmp_path / "run"), str(exam_folder)]
        monkeypatch.setattr("sys.argv", ["exam_checkpoints", *run_and_exam, "--tokenizer", "none", *words])
        tool.main()

    return run


def test_a_run_without_weights_is_no_success(examine):
    with pytest.raises(ExamError, match="the run has saved no weights yet; wait for them with --watch SECONDS"):
        examine()


@pytest.mark.parametrize(("words", "said"), [(("--watch", "0"), "--watch 0: give a number of seconds above 0"),
                                             (("--limit", "-2"), "limit is -2")])
def test_numbers_that_cannot_be_meant_are_refused(examine, words, said):
    with pytest.raises(ExamError, match=said):
        examine(*words)


def test_a_damaged_checkpoint_is_named(examine, tmp_path):
    state = tmp_path / "run/checkpoints/step_0000001/state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{")
    with pytest.raises(CheckpointError, match="state.json: not a checkpoint state"):
        examine()


def test_what_was_examined_otherwise_is_not_taken_for_it(examine, exam_folder, tmp_path):
    state, scores = (tmp_path / f"run/{name}" for name in ("checkpoints/step_0000001/state.json",
                                                           f"scores/{exam_folder.stem}_step_0000001.json"))
    for path in (state, scores):
        path.parent.mkdir(parents=True)
    state.write_text("{}")
    words = {"format_version": FORMAT_VERSION, "methods": ["sum"], "accuracy": {"sum": {}}, "template": "standard"}
    rest = ("exam", "model", "num_questions", "num_scored", "not_scored", *GROUPS)
    scores.write_text(json.dumps(words | dict.fromkeys(rest, 0)))
    with pytest.raises(ExamError, match="belongs to another sitting"):
        examine()
