"""A small invented exam and a tiny random Mixtral folder to sit it."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import sentencepiece
import torch
from transformers import MixtralConfig, MixtralForCausalLM

SENTENCES = [
    "質問：発熱をきたす疾患はどれか。",
    "答え：インフルエンザ",
    "A. 高血圧症 B. 糖尿病 C. 肺炎 D. 骨折 E. 白内障",
    "患者は三十歳の女性で咳と痰を主訴に来院した。",
    "適切な治療は抗菌薬の投与である。",
    "血圧は百二十、脈拍は七十二であった。",
    "The patient was given fluids and rest.",
]


def question_row(question_id: str, **changes: object) -> dict:
    row = {
        "problem_id": question_id,
        "problem_text": f"発熱をきたす疾患はどれか。問題{question_id}",
        "choices": ["高血圧症", "糖尿病と骨折", "肺炎", "骨折", "白内障の治療"],
        "text_only": True,
        "answer": ["c"],
        "points": "1",
    }
    return row | changes


def metadata_row(question_id: str, **changes: object) -> dict:
    return {"problem_id": question_id, "category": "総論", "kinki": []} | changes


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def load_tool(name: str) -> ModuleType:
    """The script tools/<name>.py as a module."""
    return load_module(Path(__file__).parents[2] / f"tools/{name}.py")


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def samples() -> SimpleNamespace:
    """The helpers above, reachable whatever way pytest imports the tests."""
    return SimpleNamespace(
        question_row=question_row, metadata_row=metadata_row, write_jsonl=write_jsonl, load_tool=load_tool,
        TinyServer=load_module(Path(__file__).with_name("tiny_server.py")).TinyServer,
    )


@pytest.fixture
def exam_folder(tmp_path: Path) -> Path:
    """Eleven questions of two years: single, multiple, numeric, image, disputed, blank, withdrawn, always correct."""
    folder = tmp_path / "exam"
    rows_b = [
        question_row("112B1", points="3"),
        question_row("112B2", answer=["a", "d"], text_only=False),
        question_row("112B3", choices=[], answer=["26"]),
        question_row("112B30", answer=["a or d"], points="3"),
        question_row("112B31", choices=["　", "　", "　", "　", "ｅ"], answer=["a"]),
    ]
    kinki = {"112B1": ["ｂ", " e"], "112B30": ["be"]}
    metadata = [metadata_row(r["problem_id"], kinki=kinki.get(r["problem_id"], [])) for r in rows_b]
    write_jsonl(folder / "2018/112-B.jsonl", rows_b)
    write_jsonl(folder / "2018/112-B_metadata.jsonl", [metadata[0] | {"category": "産科"}, *metadata[1:]])
    write_jsonl(folder / "2018/112-B_translate.jsonl", [{"problem_id": "112B1", "problem_text_en": "?"}])
    write_jsonl(folder / "2018/112-C.jsonl", [question_row(f"112C{n}", answer=["abcde"[n]]) for n in range(1, 4)])
    rows_a = [question_row("116A70", points="0"), question_row("116A71", answer=["e"]), question_row("116A72")]
    write_jsonl(folder / "2022/116-A.jsonl", rows_a)
    return folder


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mixtral of two layers and four experts, with a SentencePiece model of its own; do not change it."""
    folder = tmp_path_factory.mktemp("model") / "hf"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_prefix=str(folder / "tokenizer"), model_type="unigram",
        vocab_size=400, hard_vocab_limit=False, byte_fallback=True, normalization_rule_name="identity",
        add_dummy_prefix=False, bos_id=1, eos_id=2, unk_id=0, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256,
        initializer_range=0.3,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder
