"""Shared by the native tests: a skip where the core is not compiled, and small models of every kind."""

from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece

from megatron_jmed.corpus.document import read_documents

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def example_texts() -> list[str]:
    data = REPOSITORY / "examples" / "data"
    return [d.text for name in ("texts_ja.jsonl", "texts_en.jsonl.gz") for d in read_documents(data / name)]


@pytest.fixture(scope="session")
def train(example_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a small model, by default of LLM-jp's kind; takes changes to sentencepiece's settings."""

    def make(**changes) -> Path:
        path = tmp_path_factory.mktemp("model") / "small.model"
        settings = {"vocab_size": 2000, "byte_fallback": True, "normalization_rule_name": "identity",
                    "remove_extra_whitespaces": False, "minloglevel": 2, **changes}
        with open(path, "wb") as stream:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(example_texts), model_writer=stream, num_threads=1, **settings
            )
        return path

    return make
