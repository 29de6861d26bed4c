"""What several folders of tests share."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
# These files take minutes each, whatever they count in tests: begun last, one of them would keep a single worker busy at the end.
LONGEST_FILES = ("test_story.py", "test_index_cache.py", "test_fp8.py", "test_interruptions.py", "test_mixture_story.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first (`--no-loadscope-reorder` keeps it so), the others in their order."""
    place = {name: number for number, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """A test that trains in this process has the signals of a job ignored in the end: the next test gets them back."""
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def token_folder(tmp_path_factory) -> Path:
    """runs/tiny/tokens as the tiny recipe names it, under a folder to start runs in."""
    from megatron_jmed.corpus.token_settings import TokenizeSettings
    from megatron_jmed.corpus.tokenizer import train_tokenizer
    from megatron_jmed.corpus.tokens import tokenize

    folder, data = tmp_path_factory.mktemp("work"), REPO / "examples/data"
    tokenizer = folder / "tokenizer.model"
    train_tokenizer([data / "texts_ja.jsonl", data / "texts_en.jsonl.gz"], tokenizer, 2000)
    for name in ("texts_ja.jsonl", "texts_en.jsonl.gz"):
        target = folder / "runs/tiny/tokens" / name.split(".")[0]
        target.parent.mkdir(parents=True, exist_ok=True)
        tokenize(data / name, target, TokenizeSettings(tokenizer=tokenizer, progress=False))
    return folder


@pytest.fixture
def small_config(tmp_path: Path) -> Callable[..., object]:
    """The tiny recipe for one rank, two layers and no blend, its run folder in `tmp_path`; takes dotted changes."""
    from megatron_jmed.config import load_config

    base = ("parallel.ep=1", "model.num_layers=2", f'run_folder="{tmp_path / "run"}"', "data.blend=[]")
    return lambda *changes: load_config("tiny", [*base, *changes])


@pytest.fixture
def groups() -> Iterator[object]:
    """The process groups of a lone rank."""
    from megatron_jmed.config import ParallelConfig
    from megatron_jmed.parallel import World, start_groups, stop_groups

    yield start_groups(ParallelConfig(), World(0, 1, 0), seed=1234)
    stop_groups()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real corpora and tokenizers: $MEGATRON_JMED_SHARED/data, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("MEGATRON_JMED_SHARED", REPO.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MEGATRON_JMED_SHARED to the folder that holds data/")
    return folder
