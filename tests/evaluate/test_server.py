"""A model behind a real HTTP server scores as the same model in this process."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_jmed.errors import ExamError, UserError
from megatron_jmed.evaluate import server as client
from megatron_jmed.evaluate.backend import load_backend
from megatron_jmed.evaluate.prompt import Prompt
from megatron_jmed.evaluate.sitting import SittingSettings, take_exam


@pytest.fixture(scope="module")
def served(hf_folder: Path, samples: SimpleNamespace) -> Iterator[Any]:
    server = samples.TinyServer(hf_folder)
    yield server
    server.stop()


def test_likelihoods_over_http_are_those_of_the_model(served: Any, hf_folder: Path, exam_folder: Path, tmp_path: Path) -> None:
    here = take_exam(hf_folder, exam_folder, tmp_path / "here/exam.json")
    there = take_exam(served.address, exam_folder, tmp_path / "there/exam.json")
    assert there["model"] == {"name": "tiny", "server": f"{served.address}/v1"}
    for ours, theirs in zip(here["questions"], there["questions"], strict=True):
        assert ours.get("picked") == theirs.get("picked") and ours.get("num_tokens") == theirs.get("num_tokens")
        assert theirs.get("log_likelihoods", []) == pytest.approx(ours.get("log_likelihoods", []), abs=1e-3)
    assert there["num_scored"] == 9


def test_what_is_written_over_http_is_what_the_model_writes(
    served: Any, hf_folder: Path, exam_folder: Path, tmp_path: Path
) -> None:
    settings = SittingSettings(template="standard", way="generate", max_new_tokens=6, batch_size=4)
    here = take_exam(hf_folder, exam_folder, tmp_path / "here/exam.json", settings)
    there = take_exam(served.address, exam_folder, tmp_path / "there/exam.json", settings)
    assert [r.get("text") for r in here["questions"]] == [r.get("text") for r in there["questions"]]
    assert here["methods"] == ["generated"] and here["num_scored"] == 10  # also the one that wants a number
    assert here["format"]["num_written"] == 10 and "compliance" not in here["format"], "this template asks for no form"


def test_chat_goes_to_the_chat_endpoint_and_is_only_written(served: Any, exam_folder: Path, tmp_path: Path) -> None:
    served.asked.clear()
    settings = SittingSettings(template="instructed", way="generate", max_new_tokens=4, limit=2)
    scores = take_exam(served.address, exam_folder, tmp_path / "exam.json", settings)
    assert [path for path, _ in served.asked] == ["/v1/chat/completions"] * 2
    (message,) = served.asked[0][1]["messages"]
    assert message["role"] == "user" and "「Answer: 」" in message["content"] and "A. 高血圧症" in message["content"]
    assert scores["num_scored"] == 2 and 0 <= scores["format"]["compliance"] <= 1
    with pytest.raises(ExamError, match="cannot compare options behind its chat template"):
        take_exam(served.address, exam_folder, tmp_path / "other.json", SittingSettings(template="instructed"))


def test_servers_that_cannot_do_it_are_named(hf_folder: Path, samples: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.time, "sleep", lambda _: None)
    server = samples.TinyServer(hf_folder, models=("one", "two"), refuse_echo=True, num_busy=2)
    try:
        with pytest.raises(ExamError, match=r"has 2 models \(one, two\); choose one with --model"):
            load_backend(server.address)
        backend = load_backend(server.address, model="two")
        assert len(backend.generate([Prompt("答え：")], 3)) == 1 and len(server.asked) == 3  # twice busy, then answered
        with pytest.raises(ExamError, match="gives no log-probabilities of what it reads"):
            backend.score_options([Prompt("答え：")], [["肺炎", "骨折"]])
    finally:
        server.stop()
    with pytest.raises(ExamError, match="cannot be reached"):
        load_backend(server.address)


def test_engines_are_named_when_they_are_not_there(hf_folder: Path) -> None:
    with pytest.raises(ExamError, match="engine 'onnx'; choose from transformers, vllm"):
        load_backend(hf_folder, "onnx")
    with pytest.raises(ExamError, match="is a server; it cannot be run by vllm"):
        load_backend("http://127.0.0.1:9", "vllm")
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="vLLM is not installed here; pip install vllm"):
            load_backend(hf_folder, "vllm")
