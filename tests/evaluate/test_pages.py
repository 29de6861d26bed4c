"""The model card and the comparison page, made of runs as training leaves them."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.compare_runs import write_comparison
from megatron_jmed.evaluate.model_card import CardWords, write_card
from megatron_jmed.evaluate.report import render_report, write_report
from megatron_jmed.evaluate.run import read_run
from megatron_jmed.evaluate.score import compare_records, save_scores, score_records

FACTS = {
    "year": None, "paper": "", "subject": "", "category": "", "lang": "ja", "type": "single", "needs_image": False,
    "essential": False, "points": 1, "num_choices": 5, "num_to_pick": 1, "answers": [["c"]], "always_correct": False,
    "withdrawn": False, "forbidden": ["e"], "not_scored": None, "num_truncated_tokens": 0,
}  # fmt: skip


def sitting(num_correct: int, tokens: int, base: dict[str, Any] | None = None) -> dict[str, Any]:
    records = [FACTS | {"id": str(n), "picked": {"sum": ["c" if n < num_correct else "e"]},
                        "contamination": "clean" if n < 30 else "contaminated"} for n in range(40)]  # fmt: skip
    head = {
        "format_version": 2, "exam": f"qa_{tokens}", "model": {"name": "run/hf", "fingerprint": "0"}, "exam_fingerprint": "q",
        "tokens": tokens, "template": "standard", "way": "likelihood", "target": "choice", "chat": True, "num_shots": 0,
    }  # fmt: skip
    scores = head | score_records(records, ("sum",)) | {"questions": records}
    return scores | ({"against": compare_records(records, base, ("sum",), "base")} if base else {})


def make_run(folder: Path, samples: SimpleNamespace, num_steps: int = 40, lift: int = 20, **words: Any) -> Path:
    (folder / "scores").mkdir(parents=True)
    records = [
        {
            "step": s,
            "tokens": s * 4096,
            "loss": 4.0 - s / num_steps,
            "grad_norm": 0.5,
            "lr": 3e-5,
            "tokens_per_second": 2000.0,
            "step_seconds": 2.0,
            "loss_by_source": {"papers": 4.0, "web": 3.5 - s / num_steps},
            "expert_load": [[0.4 - s / num_steps / 5, 0.2, 0.2, 0.2 + s / num_steps / 5], [0.25] * 4],
        }
        for s in range(1, num_steps + 1)
    ]
    records.append({"step": num_steps, "tokens": num_steps * 4096, "valid_loss": {"all": 3.2, "papers": 3.4}})
    samples.write_jsonl(folder / "metrics.jsonl", records)
    config = {
        "name": folder.name,
        "init": "checkpoints/parent",
        "model": {"num_layers": 2, "num_experts": 4, "router_topk": 2, "hidden_size": 64},
        "budget": {"total_tokens": num_steps * 8192, "seq_length": 128, "global_batch_size": 32},
        "optim": {"peak_lr": 3e-5},
    }
    source = {
        "name": "papers",
        "lang": "ja",
        "num_documents": 9,
        "num_tokens": 9,
        "planned_tokens": 200_000,
        "epochs": 1.5,
        "consumed_tokens": 100_000,
    }
    starts = [
        {
            "time": "2026-01-02T03:04:05",
            "step": 0,
            "code_version": "0.1.0",
            "world_size": 8,
            "host": "a",
            "versions": {"torch": "2.13.0"},
        },
        {
            "time": "2026-01-03T03:04:05",
            "step": 20,
            "code_version": "0.1.0",
            "world_size": 8,
            "host": "b",
            "versions": {"torch": "2.14.0"},
        },
    ]
    for name, content in (("config", config | words), ("blend", {"sources": [source]}), ("run", {"starts": starts})):
        (folder / f"{name}.json").write_text(json.dumps(content))
    first = sitting(8, 0)
    save_scores(first, folder / "scores/a.json")
    save_scores(sitting(8 + lift, 81920, first), folder / "scores/b.json")
    return folder


def test_report_tells_plan_course_comparison_contamination_and_versions(tmp_path: Path, samples: SimpleNamespace) -> None:
    page = render_report(read_run(make_run(tmp_path / "run", samples)))
    for shown in ("Plan against fact", "<td class=n>50.0%</td>", "qa_81920 over checkpoints", "Expert load over time, layer 0",
                  "Training loss by source", "The same at every start", "2.14.0", "+50.0%", "McNemar, exact",
                  "10 of 40 questions stand in the corpus", "contaminated", "stroke-dasharray"):  # fmt: skip
        assert shown in page, shown
    assert page.count("Accuracy, qa_") == 2 and "Accuracy, qa_0" not in page, "only the last checkpoint's sitting is shown in full"


def test_card_has_the_metadata_that_the_hub_reads(tmp_path: Path, samples: SimpleNamespace) -> None:
    run = make_run(tmp_path / "run", samples)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/README.md").write_text("of something else")
    with pytest.raises(ExamError, match=r"hf: no Hugging Face folder \(no config.json\)"):
        write_card(run, tmp_path / "hf")
    assert (tmp_path / "hf/README.md").read_text() == "of something else"
    (tmp_path / "hf/config.json").write_text("{}")
    card = write_card(run, tmp_path / "hf", CardWords("apache-2.0", "llm-jp/llm-jp-3-8x13b")).read_text(encoding="utf-8")
    _, block, text = card.split("---\n", 2)
    metadata = yaml.safe_load(block)
    assert (metadata["license"], metadata["base_model"], metadata["language"]) == ("apache-2.0", "llm-jp/llm-jp-3-8x13b", ["ja"])
    assert metadata["library_name"] == "transformers" and "moe" in metadata["tags"]
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "name": "accuracy (sum)", "value": 0.7}]
    for shown in (
        "| qa_81920 | standard, sum | 70.0% |",
        "| 93.3% |",
        "20.0%",
        "torch 2.14.0",
        "163,840 in 40 steps",
        "12 choices that would harm",
    ):
        assert shown in text, shown
    bare = write_card(make_run(tmp_path / "bare", samples, init="random"), tmp_path / "hf").read_text(encoding="utf-8")
    assert yaml.safe_load(bare.split("---\n", 2)[1])["license"] == "other" and "trained from `random`" in bare


def test_comparison_of_runs(tmp_path: Path, samples: SimpleNamespace) -> None:
    runs = [make_run(tmp_path / "one", samples, lift=20), make_run(tmp_path / "two", samples, lift=4, optim={"peak_lr": 6e-5})]
    page = write_comparison(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    for shown in ("Comparison: one, two", "optim.peak_lr", "6e-05", "28 / 40", "12 / 40", "Training loss of every run"):
        assert shown in page, shown
    assert "http" not in page and "budget.seq_length" not in page
    with pytest.raises(ExamError, match="1 run folder; a comparison needs at least two"):
        write_comparison(runs[:1], tmp_path / "page.html")


def test_a_run_of_5000_steps_is_reported_in_seconds(tmp_path: Path, samples: SimpleNamespace) -> None:
    run = make_run(tmp_path / "long", samples, num_steps=5_000)
    start = time.process_time()
    size = write_report(run).stat().st_size
    assert time.process_time() - start < 15 and size < 1_000_000
