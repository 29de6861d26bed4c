"""A small study, whole: designed mixtures are trained one after the other, sit a cloze exam, and become the same page twice."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_jmed.convert.source import open_weights
from megatron_jmed.convert.weights import export_weights
from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.sitting import SittingSettings, take_exam

REPO = Path(__file__).parents[2]
DATA, TOOLS = REPO / "examples/data", REPO / "tools"
STEPS, STEP_TOKENS = 8, 2048


def tool(folder: Path, name: str, *words: object) -> str:
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(TOOLS / f"{name}.py"), *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `examples/06_mixture.sh 5 8` would have worked: 5 mixtures and 3 seeds of the base, 8 steps each.

    Trained in one process, which saves seven starts of Megatron."""
    folder = tmp_path_factory.mktemp("mixture_story")
    mixture = Path("runs/mixture")
    sources = {"texts_ja": DATA / "texts_ja.jsonl", "texts_en": DATA / "texts_en.jsonl.gz"}
    (folder / mixture).mkdir(parents=True)
    tool(folder, "train_tokenizer", *sources.values(), mixture / "tokenizer.model", "--vocab-size", 2000)
    for name, source in sources.items():
        tool(folder, "tokenize_corpus", source, mixture / "tokens" / name, "--tokenizer", mixture / "tokenizer.model")
    tool(folder, "make_cloze", *sources.values(), mixture / "cloze.jsonl", "--questions", 60, "--valid-ratio", 0.1)
    budget = STEPS * STEP_TOKENS
    changes = {"model.num_layers": 2, "parallel.ep": 1, "budget.save_every_tokens": budget, "budget.eval_every_tokens": budget // 4,
               "optim.warmup_tokens": 4 * STEP_TOKENS}  # fmt: skip
    tool(folder, "design_mixtures", DATA / "mixture.toml", "tiny", mixture, "--runs", 5, "--tokens", budget,
         *(f"{word}={value}" for word, value in changes.items()))  # fmt: skip
    mixture = folder / mixture
    blends = sorted(str(path) for path in (mixture / "blends").glob("*.toml"))
    assert len(blends) == 8
    trained = subprocess.run(
        [sys.executable, str(REPO / "tests/parallel/train_runs.py"), json.dumps([[blend] for blend in blends])], cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stdout[-2000:] + trained.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def scored(study: Path) -> Path:
    mixture = study / "runs/mixture"
    for run in sorted((mixture / "runs").iterdir()):
        export_weights(open_weights(run), run / "hf", mixture / "tokenizer.model")
        take_exam(run / "hf", mixture / "cloze.jsonl", run / "scores/cloze.json", SittingSettings(template="minimal", batch_size=8))
    return study


def analyze(folder: Path, monkeypatch: pytest.MonkeyPatch, samples: SimpleNamespace, *words: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        "sys.argv",
        [
            "analyze_mixture",
            "runs/mixture/runs",
            "--out",
            "runs/mixture",
            "--design",
            "runs/mixture/design.json",
            "--plan",
            str(DATA / "mixture.toml"),
            "--tokenizer",
            "runs/mixture/tokenizer.model",
            *words,
        ],
    )
    samples.load_tool("analyze_mixture").main()


def test_a_study_becomes_the_same_page_and_tables_twice(scored, monkeypatch, samples, capsys):
    mixture = scored / "runs/mixture"
    words = ("--target", "valid loss texts_ja", "--exam-words", "runs/mixture/cloze.jsonl")
    analyze(scored, monkeypatch, samples, *words)
    assert "8 runs, " in capsys.readouterr().out
    written = [path for path in mixture.rglob("*") if path.name in ("analysis.json", "study.html") or path.parent.name == "tables"]
    assert len(written) == 2 + 18
    before = {path: path.read_bytes() for path in written}
    analysis = json.loads(before[mixture / "analysis.json"])
    assert [run["name"] for run in analysis["runs"] if run["is_base"]] == ["base_seed_1", "base_seed_2", "base_seed_3"]
    designed = {run["name"]: run["shares"] for run in analysis["design"]["runs"]}
    for run in analysis["runs"]:
        assert run["tokens_read"] == STEPS * STEP_TOKENS and len(run["items"]["cloze"]) == 60
        assert run["shares"] == pytest.approx(designed[run["name"]], abs=0.02), (
            "what was read is near what was planned, not equal to it"
        )
        assert "exam cloze pairs met" in run["features"] and "script hiragana" in run["features"]
    assert [point["tokens"] for point in analysis["scaling"][0]["points"]] == [STEP_TOKENS * step for step in (2, 4, 6, 8)]
    loss = {run["name"]: (run["shares"]["ja"], run["scores"]["valid loss texts_ja"]) for run in analysis["runs"]}
    most, least = max(loss.values()), min(loss.values())
    assert most[1] < least[1], "who reads more Japanese predicts Japanese better"
    assert analysis["power"]["num_runs"] == 6
    for path in written:
        path.unlink()
    analyze(scored, monkeypatch, samples, *words)
    assert {path: path.read_bytes() for path in written} == before


def test_the_story_skips_what_is_done_and_ends_with_the_report(scored):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(REPO)}
    runs = sorted((scored / "runs/mixture/runs").iterdir())
    before = {run: (run / "metrics.jsonl").read_bytes() for run in runs}
    done = subprocess.run(["bash", str(REPO / "examples/06_mixture.sh"), "5", str(STEPS)], cwd=scored, env=environment,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "the report of the study is at" in done.stdout and "8 runs of 8 steps" in done.stdout
    assert {run: (run / "metrics.jsonl").read_bytes() for run in runs} == before, "nothing is trained again"
    assert json.loads((scored / "runs/mixture/analysis.json").read_text())["target"] == "exam cloze"


def test_the_tool_names_what_is_there_when_asked_for_something_else(scored, monkeypatch, samples):
    with pytest.raises(ExamError, match=r"--target 'exam cloz': the runs have .*valid loss texts_en"):
        analyze(scored, monkeypatch, samples, "--target", "exam cloz")
    with pytest.raises(ExamError, match=r"--features share fr: the runs have share en; share ja"):
        analyze(scored, monkeypatch, samples, "--target", "valid loss texts_en", "--features", "share fr")
    (scored / "no.json").write_text("{}")
    with pytest.raises(ExamError, match=r"no\.json: no design"):
        analyze(scored, monkeypatch, samples, "--target", "valid loss texts_en", "--design", "no.json")
