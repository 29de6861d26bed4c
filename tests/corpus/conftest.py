"""Shared by the corpus tests: the example texts, a tokenizer trained on them, and small ways to write a source."""

from collections.abc import Callable, Iterable
from pathlib import Path

import orjson
import pytest

from megatron_jmed.corpus.token_settings import TokenizeSettings
from megatron_jmed.corpus.tokenizer import train_tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
VOCAB_SIZE = 2000


@pytest.fixture(scope="session")
def texts_ja() -> Path:
    return REPOSITORY / "examples" / "data" / "texts_ja.jsonl"


@pytest.fixture(scope="session")
def texts_en() -> Path:
    return REPOSITORY / "examples" / "data" / "texts_en.jsonl.gz"


@pytest.fixture(scope="session")
def tokenizer(texts_ja: Path, texts_en: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
    train_tokenizer([texts_ja, texts_en], model, VOCAB_SIZE)
    return model


@pytest.fixture
def settings(tokenizer: Path) -> Callable[..., TokenizeSettings]:
    """Settings with the tiny tokenizer and no progress bar."""
    return lambda **changes: TokenizeSettings(**{"tokenizer": tokenizer, "progress": False, **changes})


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Write records (dictionaries, or raw bytes to be taken as they are) as a .jsonl file."""

    def write(records: Iterable[dict | bytes], name: str = "source.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join((r if isinstance(r, bytes) else orjson.dumps(r)) + b"\n" for r in records))
        return path

    return write
