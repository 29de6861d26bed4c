"""The exported task is what would be asked here; where lm-evaluation-harness is installed, it picks the same options."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
import yaml

from megatron_jmed.convert.tokenizer import write_tokenizer
from megatron_jmed.evaluate.exam import load_exam
from megatron_jmed.evaluate.lm_eval_task import export_task
from megatron_jmed.evaluate.prompt import render_prompt
from megatron_jmed.evaluate.sitting import SittingSettings, take_exam


def test_what_is_exported_is_what_would_be_asked(exam_folder: Path, tmp_path: Path) -> None:
    counts = export_task(exam_folder, tmp_path / "task", "igakuqa", SittingSettings(num_shots=1, years=(2018,)))
    assert counts == {
        "exported": 4, "asks for several letters": 1, "asks for a number": 1, "has several right answers": 1,
        "options are blank or repeated in the data": 1,
    }  # fmt: skip
    task = yaml.safe_load((tmp_path / "task/igakuqa.yaml").read_text(encoding="utf-8"))
    assert task["task"] == "igakuqa" and task["output_type"] == "multiple_choice" and task["target_delimiter"] == ""
    data = Path(task["dataset_kwargs"]["data_files"]["test"])
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    first = next(q for q in load_exam(exam_folder).questions if q.id == rows[0]["id"])
    assert rows[0]["query"].endswith(render_prompt(first).text) and rows[0]["query"].count("質問：") == 2
    assert rows[0]["choices"] == list(first.choices) and first.choices[rows[0]["gold"]] == "肺炎"


def test_the_harness_picks_the_same_options(hf_folder: Path, tmp_path: Path, samples: SimpleNamespace) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    folder = shutil.copytree(hf_folder, tmp_path / "hf")
    pieces = tmp_path / "own"  # the harness reads tokenizer.json, which can only be written of such a model
    texts = ["質問：発熱をきたすのはどれか。", "答え：肺炎", "A. 骨折 B. 高血圧症", "白内障"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(pieces),
        model_type="unigram", vocab_size=400, hard_vocab_limit=False, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, bos_id=1, eos_id=2, unk_id=0, minloglevel=2,
    )  # fmt: skip
    write_tokenizer(pieces.with_suffix(".model"), folder)
    choices = ["骨折", "肺炎", "高血圧症", "白内障"]
    rows = [{"id": str(n), "question": f"発熱をきたすのはどれか{n}。", "choices": choices, "answer": "b"} for n in range(8)]
    exam = samples.write_jsonl(tmp_path / "own.jsonl", rows)
    export_task(exam, tmp_path / "task", "own", SittingSettings())
    scores = take_exam(folder, exam, tmp_path / "own_scores.json")
    found = lm_eval.simple_evaluate("hf", f"pretrained={folder},dtype=float32", tasks=["own"], device="cpu",
                                    task_manager=TaskManager(include_path=str(tmp_path / "task")))
    assert found["results"]["own"]["acc,none"] == pytest.approx(scores["accuracy"]["sum"]["accuracy"])
