"""Killed at any moment, or on a full disk: a rerun gives the very files of an undisturbed run, and no process stays behind."""

import errno
import gzip
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from megatron_jmed.corpus.clean import clean
from megatron_jmed.corpus.clean_rules import CleanSettings
from megatron_jmed.corpus.dedup import DedupSettings, dedup
from megatron_jmed.corpus.duplicates import Forest
from megatron_jmed.corpus.manifest import MANIFEST_NAME, sha256_file
from megatron_jmed.corpus.part_folders import PARTS
from megatron_jmed.corpus.tokens import tokenize
from megatron_jmed.errors import CorpusError

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_KILLS = 6
# The tool as it is, but it saves often: a test cannot wait for a minute.
SAVES_OFTEN = """
import runpy, sys
from megatron_jmed.corpus import token_progress
token_progress.SECONDS_BETWEEN_SAVES = 0.02
if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def hashes(target: Path) -> dict[str, str]:
    files = [path for path in sorted(target.rglob("*")) if path.is_file() and path.name != MANIFEST_NAME]
    return {path.relative_to(target).as_posix(): sha256_file(path) for path in files}


@pytest.fixture(scope="module")
def source(texts_ja: Path, texts_en: Path, tmp_path_factory) -> Path:
    """Some seconds of work: five files of one size and one that is larger than all the others, with bad records."""
    folder = tmp_path_factory.mktemp("source")
    lines = texts_ja.read_bytes() + gzip.decompress(texts_en.read_bytes())
    for number, times in enumerate((8, 8, 40, 8, 8, 8)):
        data = lines * times + b"{broken\n"
        (folder / f"{number}.jsonl.gz").write_bytes(gzip.compress(data, 1, mtime=0))
    return folder


def processes_of(session: int) -> list[int]:
    """The processes of a session that are not dead."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(status.parent.name))
    return found


def anything_saved(target: Path) -> bool:
    """Whether a part or its progress is on disk; unlike glob, walk goes on where the tool takes a folder away meanwhile."""
    names = (name for _, _, files in os.walk(target / PARTS) for name in files)
    return any(name.endswith(".json") and not name.startswith(".") for name in names)


def wait_for_a_save(process: subprocess.Popen, target: Path) -> None:
    while process.poll() is None and not anything_saved(target):
        time.sleep(0.002)


@pytest.mark.parametrize("stage", ["clean", "tokenize"])
def test_killed_at_random_moments(stage: str, source: Path, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "saves_often.py").write_text(SAVES_OFTEN)
    options = ["--tokenizer", str(tokenizer)] if stage == "tokenize" else []

    def start(target: Path, workers: int) -> subprocess.Popen:
        tool = REPOSITORY / "tools" / f"{stage}_corpus.py"
        command = [sys.executable, tmp_path / "saves_often.py", tool, source, target, "--workers", workers, *options]
        return subprocess.Popen(list(map(str, command)), env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

    begin = time.monotonic()
    undisturbed = start(tmp_path / "undisturbed", 2)
    assert undisturbed.wait(timeout=120) == 0, undisturbed.stderr.read()
    seconds = time.monotonic() - begin

    moments, target, num_kills, num_resumed = random.Random(stage), tmp_path / "target", 0, 0
    while num_kills < NUM_KILLS or not (target / MANIFEST_NAME).exists():
        if (target / MANIFEST_NAME).exists():
            shutil.rmtree(target)  # finished too early: once more
        process = start(target, 2)
        try:
            if num_kills % 2:  # soon after something was saved, which in a fast stage no random moment may hit
                wait_for_a_save(process, target)
                process.wait(timeout=moments.uniform(0, 0.05))
            process.wait(timeout=moments.uniform(0.2, 1) * seconds if num_kills < NUM_KILLS else 120)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            num_kills += 1
        _, errors = process.communicate(timeout=30)
        assert process.returncode in (0, -signal.SIGKILL), errors
        num_resumed += "by an earlier run" in errors
        end = time.monotonic() + 20
        while (left := processes_of(process.pid)) and time.monotonic() < end:
            time.sleep(0.02)
        assert not left, "workers end with their parent"
        if (target / MANIFEST_NAME).exists():  # finished, or killed just after
            assert hashes(tmp_path / "undisturbed").items() <= hashes(target).items()
    assert num_resumed, "no kill came after the first save"
    start(target, 1).wait(timeout=60)  # clears away what a kill after the end may have left
    assert hashes(target) == hashes(tmp_path / "undisturbed")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 KiB; `grow` gives it room."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", folder]).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def grow(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=20m", folder], check=True)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stage", ["clean", "dedup", "tokenize"])
def test_a_full_disk_is_a_clear_error_and_with_room_the_run_goes_on(
    stage: str, workers: int, settings, small_disk: Path, tmp_path: Path, texts_ja: Path
) -> None:
    folder = tmp_path / "noise"
    folder.mkdir()
    texts = [orjson.loads(line)["text"] for line in texts_ja.read_bytes().splitlines()]
    for file in range(8):
        noise = random.Random(file)
        lines = [{"text": "".join(noise.sample(texts[n], len(texts[n]))), "lang": "ja"} for n in range(file, 400, 5)]
        (folder / f"{file}.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))

    def run(target: Path) -> None:
        if stage == "clean":
            clean(folder, target, CleanSettings(), workers=workers, progress=False)
        elif stage == "dedup":
            dedup([folder], target, DedupSettings(workers=workers, progress=False))
        else:
            tokenize(folder, target, settings(workers=workers))

    target = small_disk / "target"
    with pytest.raises(CorpusError, match=r"the disk that holds .* is full .* kept: make room and run the same command again"):
        run(target)
    assert not (target / MANIFEST_NAME).exists()
    parts = [path for path in (target / PARTS).glob("??????") if not (path / "record.json").exists()]
    assert not parts, "a folder without its record has no final name"
    grow(small_disk)
    run(target)
    run(tmp_path / "undisturbed")
    assert hashes(target) == hashes(tmp_path / "undisturbed")


def test_an_array_that_will_be_mapped_has_its_room_from_the_start(small_disk: Path) -> None:
    """Without it, the first write to a page that the disk has no room for ends the process with a bus error."""
    with pytest.raises(OSError) as caught:
        Forest(small_disk / "kept.npy", 100_000)
    assert caught.value.errno == errno.ENOSPC
