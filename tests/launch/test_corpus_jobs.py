"""A corpus stage as an array job: planned and refused as it should be, and on a real Slurm the very result of one run."""

import contextlib
import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from private_slurm import ENDED, PrivateSlurm, wait_for

from megatron_jmed.corpus.document import read_documents
from megatron_jmed.corpus.manifest import MANIFEST_NAME, load_manifest, sha256_file

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests/corpus"))
from chat_stub import ChatStub

DATA = REPOSITORY / "examples" / "data"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the example texts in five files, and a tokenizer."""
    folder = tmp_path_factory.mktemp("corpus_jobs")
    (folder / "raw").mkdir()
    lines = (DATA / "texts_ja.jsonl").read_bytes().splitlines(True) + gzip.open(DATA / "texts_en.jsonl.gz").readlines()
    for number in range(5):
        (folder / "raw" / f"{number}.jsonl").write_bytes(b"".join(lines[number * 170 : (number + 1) * 170]))
    made = run_tool(folder, "tools/train_tokenizer.py", "raw", "tiny.model", "--vocab-size", 1500)
    assert made.returncode == 0, made.stderr
    return folder


def run_tool(folder: Path, *words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / str(words[0])), *map(str, words[1:])]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT | (env or {}), capture_output=True, text=True, timeout=120)


def submit(folder: Path, *words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return run_tool(folder, "launch/submit_corpus.py", *words, env=env)


def commands(plan: str) -> list[list[str]]:
    """The two sbatch commands of a printed plan."""
    return [shlex.split(re.search(rf"^{name} +(sbatch .*)$", plan, re.MULTILINE)[1]) for name in ("shards", "merge")]


# --- planning ------------------------------------------------------------------------------------------------------


def test_prints_both_commands_and_writes_nothing(folder: Path, tmp_path: Path):
    options = ["--", "--set", "min_letters=5"]
    plan = submit(folder, "clean", "raw", tmp_path / "t", "--shards", 3, "--cluster", "generic_h100", *options)
    assert plan.returncode == 0, plan.stderr
    array, merge = commands(plan.stdout)
    jobs, tool = tmp_path / "t.jobs", REPOSITORY / "tools/clean_corpus.py"
    place = ["--partition=gpu", "--time=12:00:00", "--cpus-per-task=32", "--mem-per-cpu=2G"]
    script = str(REPOSITORY / "launch/corpus.sbatch")
    assert array == ["sbatch", "--job-name=clean-t", *place, "--array=1-3", f"--output={jobs}/logs/%x-%A_%a.out", script, str(jobs),
                     "3", str(tmp_path / "t"), str(tool), "raw", str(tmp_path / "t"), "--set", "min_letters=5"]
    assert merge == ["sbatch", "--job-name=clean-t-merge", *place, "--dependency=afterok:ARRAY_JOB_ID", "--kill-on-invalid-dep=yes",
                     f"--output={jobs}/logs/%x-%j.out", script, str(jobs), "merge", str(tmp_path / "t"), str(tool),
                     str(tmp_path / "t"), "--set", "min_letters=5"]
    assert "5 file(s)" in plan.stdout and "not submitted" in plan.stdout
    assert not list(tmp_path.iterdir())


def test_a_stage_that_reads_its_sources_again_gets_them_for_the_merge(folder: Path, tmp_path: Path):
    plan = submit(folder, "dedup", "raw", DATA / "texts_ja.jsonl", tmp_path / "t", "--shards", 6, "--cluster", "local")
    assert plan.returncode == 0, plan.stderr
    assert commands(plan.stdout)[1][-3:] == ["raw", str(DATA / "texts_ja.jsonl"), str(tmp_path / "t")]


@pytest.mark.parametrize(("words", "complaints"), [
    (("clean", "raw", "t", "--shards", 6, "--cluster", "local"), ["--shards=6: the source has 5 file(s)", "choose 1 to 5"]),
    (("clean", "raw", "t", "--shards", 0, "--cluster", "local", "--time", "x"), ["2 problems", "--shards=0", "--time: 'x'"]),
    (("clean", "none", "t", "--shards", 1, "--cluster", "local"), ["none does not exist"]),
    (("clean", "raw", "t", "--shards", 1, "--cluster", "local", "--partition", "mian"), ["did you mean 'main'?"]),
    (("clean", "raw", "t", "--shards", 1, "--cluster", "local", "--", "--shard", "1/3"), ["--shard: the array job itself"]),
    (("clean", "raw", "raw", "t", "--shards", 1, "--cluster", "local"), ["clean takes one source, 2 were given"]),
])
def test_refuses_with_every_problem(folder: Path, words, complaints):
    answer = submit(folder, *words, "--yes") if "--" not in words else submit(folder, *words)
    assert answer.returncode == 2
    for complaint in complaints:
        assert complaint in answer.stderr
    assert not (folder / "t.jobs").exists()


def test_a_finished_target_is_not_begun_again(folder: Path, tmp_path: Path):
    assert run_tool(folder, "tools/clean_corpus.py", "raw", tmp_path / "t", "--workers", 1).returncode == 0
    words = ["clean", "raw", tmp_path / "t", "--shards", 2, "--cluster", "local"]
    refused = submit(folder, *words)
    assert refused.returncode == 2 and "is finished already" in refused.stderr
    assert submit(folder, *words, "--", "--overwrite").returncode == 0


def test_a_word_of_the_corpus_table_is_explained(folder: Path):
    text = (REPOSITORY / "launch/clusters/local.toml").read_text()
    (folder / "mine.toml").write_text(text.replace("[corpus]", "[corpus]\npartitoin = 1"))
    answer = submit(folder, "clean", "raw", "t", "--shards", 1, "--cluster", "mine.toml")
    assert answer.returncode == 2 and "corpus.partitoin: no such word, did you mean 'partition'?" in answer.stderr


# --- on a real Slurm -----------------------------------------------------------------------------------------------


@pytest.fixture
def start(slurm: PrivateSlurm, folder: Path) -> Callable[..., tuple[str, str]]:
    """Submit a stage over shards; returns the ids of the array job and of the merge."""

    def run(*words: object) -> tuple[str, str]:
        answer = submit(folder, *words[: words.index("--")], "--yes", *words[words.index("--") :], env=slurm.env)
        assert answer.returncode == 0, answer.stderr
        array, merge = re.findall(r"submitted   job (\d+)", answer.stdout)
        slurm._jobs.extend([array, merge])
        return array, merge

    return run


def test_translating_over_two_shards_equals_one_run(slurm: PrivateSlurm, start, folder: Path):
    (folder / "english").mkdir()
    for number in (1, 2):
        text = f"The patient number {number} was admitted with pneumonia and treated with antibiotics for {number} days."
        (folder / f"english/{number}.jsonl").write_text(json.dumps({"id": str(number), "text": text}) + "\n")
    with contextlib.closing(ChatStub()) as stub:
        options = ["--server", stub.address, "--model", "stub"]
        _, merge = start("translate", "english", "ja", "--shards", 2, "--cluster", "local", "--", *options)
        assert slurm.wait_state(merge, *ENDED, seconds=120) == "COMPLETED", logs(folder / "ja")
        one = run_tool(folder, "tools/translate_corpus.py", "english", "ja_one", *options)
        assert one.returncode == 0, one.stderr
    both = [list(read_documents(folder / name)) for name in ("ja", "ja_one")]
    assert both[0] == both[1] and len(both[0]) == 2 and load_manifest(folder / "ja").origin.kind == "machine_translated"


def logs(target: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((target.with_name(f"{target.name}.jobs") / "logs").iterdir()))


def result(target: Path) -> tuple[dict, dict[str, str]]:
    """The manifest without its time, and the hash of every other file."""
    files = [path for path in sorted(target.rglob("*")) if path.is_file() and path.name != MANIFEST_NAME]
    manifest = load_manifest(target).model_dump(exclude={"created"})
    return manifest, {path.relative_to(target).as_posix(): sha256_file(path) for path in files}


def test_cleaning_and_tokenising_over_three_shards_equal_one_run(slurm: PrivateSlurm, start, folder: Path):
    tokenizer = ["--tokenizer", "tiny.model"]
    for stage, source, options in (("clean", "raw", []), ("tokenize", "cleaned", tokenizer)):
        name = {"clean": "cleaned", "tokenize": "tokens"}[stage]
        _, merge = start(stage, source, name, "--shards", 3, "--cluster", "local", "--", *options)
        assert slurm.wait_state(merge, *ENDED, seconds=120) == "COMPLETED", logs(folder / name)
        one = run_tool(folder, f"tools/{stage}_corpus.py", source, f"{name}_one", *options, "--workers", 1)
        assert one.returncode == 0, one.stderr
        assert result(folder / name) == result(folder / f"{name}_one")
    assert len(json.loads((folder / "tokens.jobs" / "launch.json").read_text())["submissions"]) == 2
    assert "--shard 3/3" in logs(folder / "tokens") and "--merge" in logs(folder / "tokens")
    _, merge = start("clean", "raw", "cleaned2", "--shards", 1, "--cluster", "local", "--", "--max-bad", 0)
    assert slurm.wait_state(merge, *ENDED, seconds=60) == "COMPLETED", logs(folder / "cleaned2")


def test_a_failed_shard_cancels_the_merge_and_a_missing_one_is_named(slurm: PrivateSlurm, start, folder: Path):
    (folder / "damaged").mkdir()
    for number in range(3):
        (folder / "damaged" / f"{number}.jsonl").write_bytes((folder / "raw" / f"{number}.jsonl").read_bytes())
    (folder / "damaged" / "1.jsonl").write_bytes(b"{\n" * 9)
    _, merge = start("clean", "damaged", "d", "--shards", 3, "--cluster", "local", "--", "--max-bad", 5)
    assert slurm.wait_state(merge, *ENDED, seconds=60) == "CANCELLED"
    assert "1.jsonl:1: broken_json; this is the first of more than 5 bad record(s)" in logs(folder / "d")
    assert sorted(path.name for path in (folder / "d").glob(f"shard-*/{MANIFEST_NAME}")) == [MANIFEST_NAME] * 2
    plan = submit(folder, "clean", "damaged", "d", "--shards", 3, "--cluster", "local", env=slurm.env)
    forced = [word for word in commands(plan.stdout)[1] if "--dependency" not in word]
    job = slurm.command(forced[0], "--parsable", *forced[1:]).strip()
    assert slurm.wait_state(job, *ENDED, seconds=60) == "FAILED"
    assert "error: " in logs(folder / "d") and "1 of 3 shards are not finished: shard-2-of-3" in logs(folder / "d")
    # With a larger budget only the missing one is done.
    _, merge = start("clean", "damaged", "d", "--shards", 3, "--cluster", "local", "--", "--max-bad", 9)
    assert slurm.wait_state(merge, *ENDED, seconds=60) == "COMPLETED", logs(folder / "d")
    assert logs(folder / "d").count("is finished already") == 2
    assert load_manifest(folder / "d").counts.dropped["broken_json"] == load_manifest(folder / "d").settings["max_bad"] == 9


def test_of_eight_shards_one_fails_and_is_tried_again(slurm: PrivateSlurm, start, folder: Path):
    (folder / "eight").mkdir()
    lines = b"".join((folder / "raw" / f"{number}.jsonl").read_bytes() for number in range(5)).splitlines(True)
    for number in range(8):
        (folder / "eight" / f"{number}.jsonl").write_bytes(b"".join(lines[number * 20 : (number + 1) * 20]))
    python = folder / "a python"  # whose file system fails once, in one shard
    python.write_text(f"""#!/bin/bash
case "$* ${{SLURM_RESTART_COUNT:-0}}" in *"--shard 5/8 0") echo "OSError: [Errno 5] Input/output error: 'eight'" >&2; exit 1 ;; esac
exec {sys.executable} "$@"
""")
    python.chmod(0o755)
    text = (REPOSITORY / "launch/clusters/local.toml").read_text()
    (folder / "flaky.toml").write_text(f'python = "{python}"\n{text}')
    array, merge = start("clean", "eight", "eighths", "--shards", 8, "--cluster", "flaky.toml", "--")
    listed = ["squeue", "--noheader", "--array", f"--jobs={array}_5", "--states=PENDING", "--format=%A|%K|%r"]
    # BeginTime: it has run, and waits for its next attempt
    failed = wait_for(lambda: line if "BeginTime" in (line := slurm.command(*listed, check=False)) else "", 120, "shard 5 to wait")
    assert failed.split("|")[1] == "5"
    slurm.start_requeued(failed.split("|")[0])
    assert slurm.wait_state(merge, *ENDED, seconds=120) == "COMPLETED", logs(folder / "eighths")
    assert logs(folder / "eighths").count("file system: OSError: [Errno 5] Input/output error") == 1
    assert "attempt 2" in logs(folder / "eighths") and load_manifest(folder / "eighths").counts.documents > 0
    one = run_tool(folder, "tools/clean_corpus.py", "eight", "eighths_one", "--workers", 1)
    assert one.returncode == 0 and result(folder / "eighths") == result(folder / "eighths_one")


def test_at_the_time_limit_a_task_comes_back_if_it_had_finished_something(slurm: PrivateSlurm, start, folder: Path):
    stand_in = folder / "stand_in"
    stand_in.write_text(f"""#!{sys.executable}
import os, sys, time
from pathlib import Path
target = Path(sys.argv[3])
(target / "shard-1-of-1").mkdir(parents=True, exist_ok=True)
if "--merge" in sys.argv or os.environ.get("SLURM_RESTART_COUNT"):
    sys.exit(0)
if target.name == "slow":
    (target / "shard-1-of-1" / "record.json").write_text("finished")
(target / "running").touch()
time.sleep(60)
""")
    stand_in.chmod(0o755)
    text = (REPOSITORY / "launch/clusters/local.toml").read_text()
    (folder / "stand_in.toml").write_text(f'python = "{stand_in}"\n{text}')
    for name in ("slow", "stuck"):
        array, merge = start("mask", "raw", name, "--shards", 1, "--cluster", "stand_in.toml", "--")
        wait_for(lambda name=name: (folder / name / "running").exists(), 60, "the tool to run")
        slurm.command("scancel", "--batch", "--signal=USR1", f"{array}_1")
        if name == "stuck":
            assert slurm.wait_state(merge, *ENDED) == "CANCELLED"
            assert "nothing was finished within the time limit: not requeued" in logs(folder / name)
        else:
            slurm.start_requeued(array)
            assert slurm.wait_state(merge, *ENDED, seconds=120) == "COMPLETED", logs(folder / name)
            assert "requeued, goes on" in logs(folder / name) and "attempt 2" in logs(folder / name)
