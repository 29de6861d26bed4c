"""Shared by the launch tests: a small token set, an experiment on it, a way to run submit.py as a user does, a Slurm."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from private_slurm import PrivateSlurm, why_absent

REPOSITORY = Path(__file__).resolve().parents[2]
VOCAB_SIZE = 328  # 316 characters and bytes, and a few whole words; these sentences give at most 339
NUM_STEPS = 30
SEQUENCES_A_STEP, SEQ_LENGTH = 4, 32
TOKENS_A_STEP = SEQUENCES_A_STEP * SEQ_LENGTH


@pytest.fixture(scope="session")
def token_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few thousand tokens of made-up sentences, through the two tools that a user would run."""
    folder = tmp_path_factory.mktemp("corpus")
    source, model, target = folder / "texts.jsonl", folder / "tiny.model", folder / "tokens"
    medicines, signs = ("解熱薬", "鎮痛薬", "抗菌薬", "整腸薬", "点眼薬"), ("発熱", "頭痛", "発疹", "腹痛", "充血", "せき")
    texts = [f"{medicine}を{days}日使っても{sign}が続くときは、薬剤師に相談します。{sign}が強い日は{medicine}を休みます。"
             for medicine in medicines for sign in signs for days in range(2, 9)]
    source.write_bytes(b"".join(orjson.dumps({"text": text, "source": "made_up", "lang": "ja"}) + b"\n" for text in texts))
    for command in (
        ["tools/train_tokenizer.py", source, model, "--vocab-size", VOCAB_SIZE],
        ["tools/tokenize_corpus.py", source, target, "--tokenizer", model, "--workers", 1],
    ):
        made = subprocess.run([sys.executable, *map(str, command)], cwd=REPOSITORY, env=_environment(), text=True,
                              capture_output=True, timeout=120)
        assert made.returncode == 0, made.stderr
    return target


@pytest.fixture(scope="session")
def experiment(token_set: Path) -> Path:
    """The recipe `tiny`, made smaller still: a TOML file as a user writes it."""
    path = token_set.parent / "experiment.toml"
    path.write_text(f"""
recipe = "tiny"
[model]
vocab_size = {VOCAB_SIZE}
num_layers = 2
[data]
blend = [{{name = "made_up", path = "{token_set}", weight = 1.0}}]
valid_ratio = 0
[optim]
warmup_tokens = {5 * TOKENS_A_STEP}
[budget]
total_tokens = {NUM_STEPS * TOKENS_A_STEP}
seq_length = {SEQ_LENGTH}
global_batch_size = {SEQUENCES_A_STEP}
micro_batch_size = 2
save_every_tokens = {1000 * TOKENS_A_STEP}
eval_every_tokens = 0
""", encoding="utf-8")
    return path


Submit = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def submit() -> Submit:
    """Run launch/submit.py in a folder, as a user does; words of `env` are added to the environment."""

    def run(folder: Path, *arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        command = [sys.executable, str(REPOSITORY / "launch" / "submit.py"), *map(str, arguments)]
        return subprocess.run(command, cwd=folder, env=_environment() | (env or {}), capture_output=True, text=True,
                              timeout=60)

    return run


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def slurm() -> Iterator[PrivateSlurm]:
    if reason := why_absent():
        pytest.skip(reason)
    cluster = PrivateSlurm()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
