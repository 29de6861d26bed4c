"""The shared runner: nothing lost, same bytes however it runs, and a killed run goes on."""

import functools
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
import zstandard

from megatron_jmed.corpus import counts as counts_module
from megatron_jmed.corpus.counts import OTHER, Counting, sum_counts
from megatron_jmed.corpus.document import Document, read_documents
from megatron_jmed.corpus.manifest import MANIFEST_NAME, Manifest
from megatron_jmed.corpus.reader import find_source
from megatron_jmed.corpus.stage import PARTS, Kept, Removed, Task, Transform, large_and_small, merge_shards, parse_shard, run_stage
from megatron_jmed.errors import CorpusError

NUM_FILES, NUM_LINES = 5, 40


def make_transform(seconds: float = 0.0, dies_at: str = "") -> Transform:
    return functools.partial(_transform, seconds=seconds, dies_at=dies_at)


def _transform(document: Document, seconds: float, dies_at: str) -> Kept | Removed:
    time.sleep(seconds)
    if document.id == dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
    number = int(document.id.split("-")[1])
    if number % 4 == 0:
        return Removed(document, "multiple_of_four", f"{number}")
    return Kept(Document(document.id, document.text.upper(), document.source, document.lang, document.meta), {"upper": 1})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for file in range(NUM_FILES):
        lines = [
            {"id": f"{file}-{n}", "text": f"text {file} {n}", "source": f"s{n % 2}", "lang": "en", "n": n, "deep": {"a": [n]}}
            for n in range(NUM_LINES)
        ]
        (folder / f"{file}.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    with open(folder / "0.jsonl", "ab") as stream:
        stream.write(b'{"text": "a\\u0000b"}\n{"text": \n')
    return folder


def run(source: Path, target: Path, **words) -> Manifest:
    words = {"progress": False, "make_transform": make_transform, **words}
    return run_stage("test", source, target, {"case": "upper"}, **words)


def hashes(target: Path) -> dict[str, str]:
    """The SHA-256 of every file but the manifest, which holds the time."""
    files = [path for path in sorted(target.rglob("*")) if path.is_file() and path.name != MANIFEST_NAME]
    return {path.relative_to(target).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def removed_lines(target: Path, name: str) -> list[dict]:
    with zstandard.open(target / "removed" / name, "rb") as stream:
        return [orjson.loads(line) for line in stream.read().splitlines()]


def as_compared(manifest: Manifest) -> dict:
    return manifest.model_dump(exclude={"created"})


def test_every_record_is_kept_in_order_or_filed_with_everything_it_had(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    manifest = run(source, target)
    documents = list(read_documents(target))
    assert [d.id for d in documents] == [f"{f}-{n}" for f in range(NUM_FILES) for n in range(NUM_LINES) if n % 4]
    assert documents[0] == Document("0-1", "TEXT 0 1", "s1", "en", {"n": 1, "deep": {"a": [1]}})
    removed = removed_lines(target, "multiple_of_four.jsonl.zst")
    assert [r["id"] for r in removed] == [f"{f}-{n}" for f in range(NUM_FILES) for n in range(0, NUM_LINES, 4)]
    assert removed[1] == {
        "file": "0.jsonl", "line": 5, "reason": "multiple_of_four", "detail": "4", "id": "0-4", "text": "text 0 4",
        "source": "s0", "lang": "en", "meta": {"n": 4, "deep": {"a": [4]}},
    }  # fmt: skip
    bad = [orjson.loads(path.read_bytes()) for path in sorted((target / "removed").glob("*.jsonl"))]
    assert [(b["reason"], b["line"], b["raw"]) for b in bad] == [
        ("broken_json", 42, '{"text": '),
        ("nul_in_text", 41, '{"text": "a\\u0000b"}'),
    ]
    counts = manifest.counts
    assert (counts.documents, counts.characters) == (150, sum(len(d.text) for d in documents))
    assert counts.dropped == {"broken_json": 1, "multiple_of_four": 50, "nul_in_text": 1}
    assert {name: group.documents for name, group in counts.by_source.items()} == {"s0": 50, "s1": 100}
    assert manifest.details["counts"] == {"upper": 150}


def test_the_bytes_do_not_depend_on_the_number_of_workers(source: Path, tmp_path: Path) -> None:
    one, two = run(source, tmp_path / "1", workers=1), run(source, tmp_path / "2", workers=2)
    assert as_compared(one) == as_compared(two)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2")


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of several batches, with bad records among them."""
    path = tmp_path_factory.mktemp("large") / "large.jsonl.zst"
    lines = [orjson.dumps({"id": f"0-{n}", "text": f"{n} " * 300, "source": f"s{n % 3}"}) for n in range(4000)]
    lines[1500], lines[3500] = b"[]", b"{"
    with zstandard.open(path, "wb") as stream:
        stream.write(b"\n".join(lines))
    return path


@pytest.mark.parametrize("workers", [2, 3])
def test_one_large_file_is_shared_by_all_workers_without_changing_a_byte(
    workers: int, large_file: Path, source: Path, tmp_path: Path
) -> None:
    for place in (large_file, source):  # alone; and beside smaller ones, which stay whole
        if place == source:
            os.link(large_file, source / "large.jsonl.zst")
        one, several = run(place, tmp_path / f"1-{place.name}"), run(place, tmp_path / f"n-{place.name}", workers=workers)
        assert as_compared(one) == as_compared(several)
        assert hashes(tmp_path / f"1-{place.name}") == hashes(tmp_path / f"n-{place.name}")
    assert one.counts.dropped["not_an_object"] == 1 and one.counts.documents == 150 + 3000


class Marking:
    """Says in the document which process did it; `many` is taken where there is one."""

    def __call__(self, document: Document) -> Kept | Removed:
        raise AssertionError("many is faster")

    def many(self, documents: list[Document]) -> list[Kept | Removed]:
        return [Kept(document, {f"by_{os.getpid()}": 1}) for document in documents]


def test_every_worker_has_a_part_in_a_large_file(large_file: Path, tmp_path: Path) -> None:
    counts = run(large_file, tmp_path / "t", workers=2, make_transform=Marking).details["counts"]
    assert len(counts) == 2 and f"by_{os.getpid()}" not in counts and sum(counts.values()) == 3998


def test_files_are_shared_where_a_worker_would_be_left_alone(tmp_path: Path) -> None:
    def shares(sizes: list[int], workers: int) -> tuple[list[int], list[int]]:
        tasks = []
        for number, size in enumerate(sizes):
            (tmp_path / str(number)).write_bytes(bytes(size))
            tasks.append(Task(tmp_path, tmp_path / str(number), "text", 0, tmp_path, str(number), ""))
        large, small = large_and_small(tasks, workers)
        return [task.path.stat().st_size for task in large], [task.path.stat().st_size for task in small]

    assert shares([5], 2) == ([5], [])
    assert shares([4, 6, 5], 2) == ([], [6, 5, 4])
    assert shares([1, 12, 1, 1], 2) == ([12], [1, 1, 1])
    assert shares([9, 1, 99, 1], 3) == ([99, 9, 1, 1], []), "two small ones cannot keep three workers busy"


def test_counts_do_not_depend_on_how_the_work_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts_module, "MAX_GROUPS", 3)
    documents = [Document("", "x" * (n % 5), f"s{n * 7919 % 13}", f"l{n % 2}", {}) for n in range(200)]

    def counted(some: list[Document]):
        counting = Counting()
        for document in some:
            counting.keep(document)
        return counting.result()

    whole = counted(documents)
    assert list(whole.by_source) == [OTHER, "s0", "s1", "s10"] and whole.documents == 200
    assert whole.by_source["s10"].documents == sum(document.source == "s10" for document in documents)
    cuts = [counted(documents[start : start + 11]) for start in range(0, 200, 11)]
    assert sum_counts(cuts) == sum_counts([sum_counts(cuts[1::2]), sum_counts(cuts[0::2])]) == whole


def test_merged_shards_equal_an_unsharded_run(source: Path, tmp_path: Path) -> None:
    whole = run(source, tmp_path / "whole")
    for index in (3, 1, 2):
        run(source, tmp_path / "merged", shard=(index, 3))
    with pytest.raises(CorpusError, match="not merged"):
        find_source(tmp_path / "merged")
    assert as_compared(merge_shards(tmp_path / "merged")) == as_compared(whole)
    assert hashes(tmp_path / "merged") == hashes(tmp_path / "whole")
    assert as_compared(merge_shards(tmp_path / "merged")) == as_compared(whole), "a second merge changes nothing"


def test_a_missing_or_different_shard_is_refused(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "t", shard=(1, 2))
    with pytest.raises(CorpusError, match="1 of 2 shards are not finished: shard-2-of-2"):
        merge_shards(tmp_path / "t")
    (source / "9.jsonl").write_bytes(b'{"id": "9-1", "text": "late"}\n')
    run(source, tmp_path / "t", shard=(2, 2))
    with pytest.raises(CorpusError, match="shard-2-of-2: source files .* differ"):
        merge_shards(tmp_path / "t")
    run(source, tmp_path / "t", shard=(1, 4))
    with pytest.raises(CorpusError, match=r"shards of \[2, 4\]"):
        merge_shards(tmp_path / "t")
    with pytest.raises(CorpusError, match="holds no shard"):
        merge_shards(source)


@pytest.mark.parametrize("word", ["0/2", "3/2", "1", "a/b"])
def test_a_wrong_shard_is_refused(word: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="--shard"):
        run(source, tmp_path / "t", shard=parse_shard(word))


def test_a_dead_worker_is_an_error_and_the_rest_is_kept(source: Path, tmp_path: Path) -> None:
    target, dying = tmp_path / "t", functools.partial(make_transform, dies_at="4-39")
    with pytest.raises(CorpusError, match="a worker process died"):
        run(source, target, workers=2, make_transform=dying)
    assert not (target / MANIFEST_NAME).exists()
    with pytest.raises(CorpusError, match="did not finish"):
        find_source(target)
    run(source, target, workers=2)
    run(source, tmp_path / "undisturbed")
    assert hashes(target) == hashes(tmp_path / "undisturbed")


def _run_slowly(source: Path, target: Path, workers: int) -> None:
    run(source, target, workers=workers, make_transform=functools.partial(make_transform, seconds=0.002))


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN], ids=["", "where SIGTERM is ignored"])
def test_a_dead_worker_in_a_large_file_is_an_error(handler, large_file: Path, tmp_path: Path) -> None:
    signal.signal(signal.SIGTERM, handler)
    with pytest.raises(CorpusError, match="a worker process died"):
        run(large_file, tmp_path / "t", workers=2, make_transform=functools.partial(make_transform, dies_at="0-2001"))
    assert run(large_file, tmp_path / "t", workers=2).counts.dropped["broken_json"] == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_and_gives_the_same_bytes(workers: int, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "t"
    process = multiprocessing.get_context("spawn").Process(target=_run_slowly, args=(source, target, workers))
    process.start()
    wait_for(lambda: list((target / PARTS).glob("??????/record.json")))
    process.kill()
    process.join()
    assert not (target / MANIFEST_NAME).exists()
    # The workers end by themselves; until then they hold no lock and write under names of their own.
    finished = {path.parent.name: path.stat().st_mtime_ns for path in (target / PARTS).glob("??????/record.json")}
    assert 0 < len(finished) < NUM_FILES
    with pytest.raises(CorpusError, match="more than 1"):
        run(source, target, max_bad=1)
    kept = {path.parent.name: path.stat().st_mtime_ns for path in (target / PARTS).glob("??????/record.json")}
    assert finished.items() <= kept.items(), "finished files are not done again"
    run(source, target, workers=workers)
    run(source, tmp_path / "undisturbed")
    assert hashes(target) == hashes(tmp_path / "undisturbed")


def wait_for(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def test_a_changed_file_is_done_again_after_a_kill(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "t"
    with pytest.raises(CorpusError, match="truncated"):
        run_with_truncated_last_file(source, target)
    assert len(list((target / PARTS).glob("??????/record.json"))) == NUM_FILES
    (source / "zz.jsonl.gz").unlink()
    (source / "1.jsonl").write_bytes(b'{"id": "1-1", "text": "new"}\n')
    run(source, target)
    assert [d.text for d in read_documents(target) if d.id.startswith("1-")] == ["NEW"]


def run_with_truncated_last_file(source: Path, target: Path) -> None:
    import gzip

    data = gzip.compress(b"".join(orjson.dumps({"id": f"9-{n}", "text": f"{n * n}"}) + b"\n" for n in range(999)))
    (source / "zz.jsonl.gz").write_bytes(data[: len(data) // 2])
    run(source, target)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_truncated_file_is_named(workers: int, source: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"zz\.jsonl\.gz is truncated"):
        run_with_truncated_last_file(source, tmp_path / "t")
    assert not (tmp_path / "t" / MANIFEST_NAME).exists()


def test_the_budget_of_bad_records_is_for_all_files_together(source: Path, tmp_path: Path) -> None:
    with open(source / "1.jsonl", "ab") as stream:
        stream.write(b"[]\n")
    assert run(source, tmp_path / "enough", max_bad=3).counts.dropped["not_an_object"] == 1
    with pytest.raises(CorpusError, match=r"3 bad record\(s\) in . file\(s\), more than 2"):
        run(source, tmp_path / "few", max_bad=2)
    with pytest.raises(CorpusError, match=r"0.jsonl:41: nul_in_text; this is the first of more than 0"):
        run(source, tmp_path / "none", max_bad=0)


def test_the_budget_of_bad_records_holds_for_all_shards_together(source: Path, tmp_path: Path) -> None:
    with open(source / "1.jsonl", "ab") as stream:
        stream.write(b"[]\n")
    target = tmp_path / "t"
    for index in (1, 2):
        run(source, target, max_bad=index, shard=(3 - index, 2))
    message = r"3 bad record\(s\) in 2 file\(s\) of all shards together, more than 2; 0.jsonl has most of them \(2\), .*shard-1"
    with pytest.raises(CorpusError, match=message):
        merge_shards(target)
    assert not (target / MANIFEST_NAME).exists()
    assert as_compared(merge_shards(target, max_bad=3)) == as_compared(run(source, tmp_path / "whole", max_bad=3))
    assert hashes(target) == hashes(tmp_path / "whole")


def test_a_finished_target_is_left_alone_and_another_is_refused(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "t"
    first = run(source, target)
    assert run(source, target) == first
    with pytest.raises(CorpusError, match="licence"):
        run(source, target, licence="CC0")
    assert run(source, target, licence="CC0", overwrite=True).licence == "CC0"


def test_two_runs_at_once_are_refused(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "t"
    process = multiprocessing.get_context("spawn").Process(target=_run_slowly, args=(source, target, 1))
    process.start()
    try:
        wait_for(lambda: list((target / PARTS).glob("??????/record.json")))
        with pytest.raises(CorpusError, match="another run is writing"):
            run(source, target)
    finally:
        process.join()
    assert process.exitcode == 0
    assert len(list(read_documents(target))) == 150


def test_a_full_disk_is_a_clear_error(source: Path, tmp_path: Path) -> None:
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", make(tmp_path / "small")]).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        for file in range(NUM_FILES):
            noise = [{"id": f"{file}-{n}", "text": os.urandom(500).hex()} for n in range(1, NUM_LINES)]
            (source / f"{file}.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in noise))
        with pytest.raises(CorpusError, match="is full .* finished and kept"):
            run(source, tmp_path / "small" / "t")
        assert not (tmp_path / "small" / "t" / MANIFEST_NAME).exists()
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "small"], check=True)


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_stages_follow_each_other_and_names_stay_short(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "a")
    run(tmp_path / "a", tmp_path / "b", make_transform=functools.partial(make_transform))
    assert [file.path for file in find_source(tmp_path / "b").inputs()] == [MANIFEST_NAME]
    names = [path.name for path in find_source(tmp_path / "b").files]
    assert names == [f"{n:06d}-{n}.jsonl.zst" for n in range(NUM_FILES)]


def test_text_files_and_globs(tmp_path: Path) -> None:
    for name, text in {"b.txt": "\ufeff二\n三", "a.txt": "一", "notes/README.txt": "x", "notes/c.jsonl": '{"text": "c"}'}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert [(d.id, d.text) for d in read_documents(tmp_path / "*.txt")] == [("a.txt:1", "一"), ("b.txt:1", "二\n三")]
    assert [d.text for d in read_documents(tmp_path / "**" / "*.txt")] == ["一", "二\n三", "x"]
    assert find_source(tmp_path / "notes").ignored == ["README.txt"], "beside other kinds .txt files are notes"
    with pytest.raises(CorpusError, match=r"\*\.csv matches no"):
        find_source(tmp_path / "*.csv")


def test_another_text_field_becomes_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"id": "0-1", "body": "b", "text": "other", "when": 3}\n')
    run(tmp_path / "a.jsonl", tmp_path / "t", text_field="body")
    assert next(read_documents(tmp_path / "t")) == Document("0-1", "B", "unknown", "unknown", {"text_": "other", "when": 3})


def test_a_spawned_run_needs_no_torch(source: Path) -> None:
    code = "import sys, megatron_jmed.corpus.stage, megatron_jmed.corpus.clean; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_source_whose_text_has_another_name_is_no_empty_result(tmp_path):
    (tmp_path / "source.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    with pytest.raises(CorpusError, match=r"no record of .*source.jsonl is a document \(\{'missing_text': 2\}\).*--text-field"):
        run(tmp_path / "source.jsonl", tmp_path / "target")
    assert not (tmp_path / "target" / MANIFEST_NAME).exists()
