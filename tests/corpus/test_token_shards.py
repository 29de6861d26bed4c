"""Shards of a token set give the very files of one run, or are refused; tokenising goes on where it was killed."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_jmed.corpus import indexed, reader, token_encoding, token_progress, tokens
from megatron_jmed.corpus.manifest import MANIFEST_NAME, Manifest, load_manifest, sha256_file
from megatron_jmed.corpus.part_folders import PARTS
from megatron_jmed.corpus.reader import find_source
from megatron_jmed.corpus.shards import MERGED, file_range, merge_shards
from megatron_jmed.corpus.stage import run_stage
from megatron_jmed.corpus.token_set import load_token_set
from megatron_jmed.corpus.token_shards import merge_token_shards
from megatron_jmed.corpus.tokens import tokenize
from megatron_jmed.errors import CorpusError

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_FILES = 7


@pytest.fixture
def source(texts_ja: Path, texts_en: Path, tmp_path: Path) -> Path:
    """The example texts in files of unequal size, an empty one and bad records among them."""
    folder = tmp_path / "source"
    folder.mkdir()
    lines = texts_ja.read_bytes().splitlines(keepends=True) + gzip.decompress(texts_en.read_bytes()).splitlines(keepends=True)
    cuts = [0, 40, 60, 60, 300, 301, 500, len(lines)]
    for number in range(NUM_FILES):
        bad = b"{broken\n[]\n" if number in (0, 4) else b'{"text": ""}\n' if number == 6 else b""
        (folder / f"{number}.jsonl").write_bytes(bad + b"".join(lines[cuts[number] : cuts[number + 1]]))
    return folder


class Killed(BaseException):
    """Stands for a kill: nothing that catches errors catches it."""


def hashes(target: Path) -> dict[str, str]:
    files = [path for path in sorted(target.rglob("*")) if path.is_file() and path.name != MANIFEST_NAME]
    return {path.relative_to(target).as_posix(): sha256_file(path) for path in files}


def as_compared(manifest: Manifest) -> dict:
    return manifest.model_dump(exclude={"created"})


def make_shards(source: Path, target: Path, settings, num_shards: int) -> None:
    for index in range(num_shards, 0, -1):
        tokenize(source, target, settings, (index, num_shards))


# --- shards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_shards", [1, 3, 9])
def test_merged_shards_equal_an_unsharded_run(num_shards: int, source: Path, settings, tmp_path: Path) -> None:
    whole = tokenize(source, tmp_path / "whole", settings())
    make_shards(source, tmp_path / "merged", settings(workers=2 if num_shards == 3 else 1), num_shards)
    merged = merge_token_shards(tmp_path / "merged")
    assert as_compared(merged) == as_compared(whole)
    assert hashes(tmp_path / "merged") == hashes(tmp_path / "whole")
    assert sorted(whole.counts.dropped) == ["broken_json", "empty_text", "not_an_object"]
    assert load_token_set(tmp_path / "merged").num_documents == whole.counts.documents == 835
    assert merge_token_shards(tmp_path / "merged") == merged, "a second merge changes nothing"
    assert tokenize(source, tmp_path / "merged", settings()) == merged, "nor does an unsharded run"


def test_a_range_of_files_for_each_shard(tmp_path: Path) -> None:
    sizes = [5, 0, 1000, 3, 400, 0, 7, 600, 90]
    files = [tmp_path / str(number) for number in range(len(sizes))]
    for path, size in zip(files, sizes, strict=True):
        path.write_bytes(bytes(size))
    for num_shards in (1, 2, 3, 9, 40):
        ranges = [file_range(files, (index, num_shards)) for index in range(1, num_shards + 1)]
        assert [path for files_of_one in ranges for path in files_of_one] == files
    halves = [sum(path.stat().st_size for path in file_range(files, (index, 2))) for index in (1, 2)]
    assert halves == [1008, 1097]


def test_missing_damaged_and_different_shards_are_refused(source: Path, settings, tmp_path: Path) -> None:
    target = tmp_path / "t"
    tokenize(source, target, settings(), (1, 3))
    tokenize(source, target, settings(), (3, 3))
    with pytest.raises(CorpusError, match="1 of 3 shards are not finished: shard-2-of-3"):
        merge_token_shards(target)
    with pytest.raises(CorpusError, match="shard 1/3 of a token set"):
        load_token_set(target / "shard-1-of-3")
    with pytest.raises(CorpusError, match="not merged"):
        find_source(target)
    tokenize(source, target, settings(bos=False), (2, 3))
    with pytest.raises(CorpusError, match="shard-2-of-3: settings .*'bos': False.* differ"):
        merge_token_shards(target)
    tokenize(source, target, settings(overwrite=True, engine="sentencepiece"), (2, 3))
    if load_manifest(target / "shard-1-of-3").details["tokenizer"]["engine"] == "native":
        with pytest.raises(CorpusError, match="shard-2-of-3: tokenizer .*'sentencepiece'.* differs"):
            merge_token_shards(target)
    tokenize(source, target, settings(overwrite=True), (2, 3))
    for name in ("tokens.bin", "tokens.idx"):
        path = target / "shard-2-of-3" / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(CorpusError, match=f"shard-2-of-3/{name} has SHA-256 .* damaged; run that shard again"):
            merge_token_shards(target)
        path.write_bytes(data)
    assert not (target / MANIFEST_NAME).exists()
    (source / "6.jsonl").write_bytes(b'{"text": "changed"}\n')
    tokenize(source, target, settings(overwrite=True), (3, 3))
    with pytest.raises(CorpusError, match="shard-3-of-3: source files .* differ"):
        merge_token_shards(target)
    with pytest.raises(CorpusError, match="shards of stage 'tokenize'|source files"):
        merge_shards(target)


def test_shards_of_another_stage_are_left_to_its_tool(source: Path, settings, tmp_path: Path) -> None:
    make_shards(source, tmp_path / "t", settings(), 2)
    with pytest.raises(CorpusError, match="shards of stage 'tokenize'; merge them with its own tool"):
        merge_shards(tmp_path / "t")
    assert merge_token_shards(tmp_path / "t").counts.documents == 835
    for index in (1, 2):
        run_stage("copy", source, tmp_path / "c", {}, _copying, shard=(index, 2), progress=False)
    with pytest.raises(CorpusError, match="shards of stage 'copy', not of tokens"):
        merge_token_shards(tmp_path / "c")


def _copying():
    from megatron_jmed.corpus.stage import Kept

    return Kept


def test_the_budget_of_bad_records_holds_for_all_shards_together(source: Path, settings, tmp_path: Path) -> None:
    make_shards(source, tmp_path / "t", settings(max_bad=3), 3)
    message = r"5 bad record.* 3 file.* more than 3; [04].jsonl has most of them \(2\), kept in .*shard-"
    with pytest.raises(CorpusError, match=message):
        merge_token_shards(tmp_path / "t")
    assert not (tmp_path / "t" / MANIFEST_NAME).exists()
    merged = merge_token_shards(tmp_path / "t", max_bad=5)
    assert as_compared(merged) == as_compared(tokenize(source, tmp_path / "whole", settings(max_bad=5)))


def test_a_source_without_documents_is_an_error_at_the_merge(settings, write_lines, tmp_path: Path) -> None:
    source = write_lines([{"text": ""}])
    make_shards(source, tmp_path / "t", settings(), 2)
    with pytest.raises(CorpusError, match="hold no document .*'empty_text': 1"):
        merge_token_shards(tmp_path / "t")


def test_a_merge_killed_while_it_deletes_the_shards_can_be_run_again(source: Path, settings, tmp_path, monkeypatch) -> None:
    target = tmp_path / "t"
    make_shards(source, target, settings(), 3)

    def killed(path: Path, *words, real=shutil.rmtree, **more) -> None:
        if "shard" not in path.name:
            return real(path, *words, **more)
        for name in ("manifest.json", "tokens.bin"):
            (path / name).unlink()
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("shutil.rmtree", killed)
        merge_token_shards(target)
    assert (target / "shard-1-of-3").exists() and load_token_set(target).num_documents == 835
    assert merge_token_shards(target).counts.documents == 835
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", "removed", "tokens.bin", "tokens.idx"]
    assert not (target / MERGED).exists()


def test_an_index_is_written_in_little_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(indexed, "DOCUMENTS_PER_WRITE", 2**12)
    np.full(2**20, 3, "<i4").tofile(tmp_path / "lengths")
    lengths = np.memmap(tmp_path / "lengths", "<i4", "r")
    tracemalloc.start()
    indexed.write_index(tmp_path / "a.idx", [lengths, lengths], np.dtype("int32"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**19, "two million documents, a quarter of a byte each"
    assert (tmp_path / "a.idx").stat().st_size == 34 + 20 * 2**21 + 8


def test_the_tool_in_shards(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    def run(*words: object) -> subprocess.CompletedProcess:
        command = [sys.executable, REPOSITORY / "tools" / "tokenize_corpus.py", *words]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    for index in (1, 2):
        made = run("source", "set", "--tokenizer", tokenizer, "--workers", 1, "--shard", f"{index}/2")
        assert made.returncode == 0, made.stderr
    strict = run("set", "--merge", "--max-bad", 4)
    assert strict.returncode == 2 and "5 bad record(s)" in strict.stderr
    merged = run("set", "--merge")
    assert merged.returncode == 0 and "835 documents" in merged.stdout, merged.stderr
    assert load_manifest(tmp_path / "set").settings["max_bad"] == 100
    for words in (["source", "set"], ["source", "set", "--merge"], ["set", "--tokenizer", tokenizer]):
        refused = run(*words)
        assert refused.returncode == 2 and "give SOURCE, TARGET and --tokenizer, or --merge" in refused.stderr


# --- going on after a kill -----------------------------------------------------------------------------------------


@pytest.fixture
def small_batches(monkeypatch) -> None:
    monkeypatch.setattr(reader, "BATCH_BYTES", 2000)
    monkeypatch.setattr(reader, "CHUNK_BYTES", 500)
    monkeypatch.setattr(token_progress, "SECONDS_BETWEEN_SAVES", 0)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("num_batches", [10, 41, 90])
def test_goes_on_where_it_was(num_batches, workers, small_batches, source, settings, tmp_path, monkeypatch, capsys) -> None:
    target, numbers = tmp_path / "t", [0]

    def dying(*words, limit, **more):
        for batch in reader.read_batches(*words, **more):
            numbers[0] += 1
            if numbers[0] > limit:
                raise Killed
            yield batch

    def patched(limit: float):
        monkeypatch.setattr(token_progress, "read_batches", lambda *words, **more: dying(*words, limit=limit, **more))

    patched(num_batches)
    with pytest.raises(Killed):
        tokenize(source, target, settings(workers=workers))
    # What a kill leaves behind the last save is not to be believed.
    for name in ("tokens.bin", "tokens.lengths"):
        with open(target / PARTS / name, "ab") as stream:
            stream.write(b"rubbish")
    with pytest.raises(CorpusError, match="no manifest.json"):
        load_token_set(target)
    saved = json.loads((target / PARTS / "progress.json").read_text())
    encoded = []
    real = token_encoding._encode
    monkeypatch.setattr(token_encoding, "_encode", lambda batch, *words: encoded.append(batch) or real(batch, *words))
    patched(float("inf"))
    resumed = tokenize(source, target, settings(max_bad=101))
    assert f"{saved['documents']:,} documents were tokenised by an earlier run" in capsys.readouterr().err
    num_resumed = len(encoded)
    whole = tokenize(source, tmp_path / "whole", settings(max_bad=101))
    num_whole = len(encoded) - num_resumed
    behind = 1 if workers == 1 else 2 + token_encoding.BATCHES_PER_WORKER * workers
    assert num_whole - num_batches <= num_resumed <= num_whole - num_batches + behind, "what was saved is not encoded again"
    assert as_compared(resumed) == as_compared(whole)
    assert hashes(target) == hashes(tmp_path / "whole"), "and .parts is gone"


@pytest.mark.parametrize("change", ["source", "setting", "setting and back"])
def test_a_changed_source_or_setting_begins_again(change, small_batches, source, settings, tmp_path, monkeypatch) -> None:
    target = tmp_path / "t"

    def killed_after_the_first_file(**words) -> None:
        def broken(*words, **more):
            yield from reader.read_batches(*words, **more)
            raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(token_progress, "read_batches", broken)
            patch.setattr(token_progress, "SECONDS_BETWEEN_SAVES", words.pop("seconds", 0))
            tokenize(source, target, settings(**words))

    killed_after_the_first_file()
    assert json.loads((target / PARTS / "progress.json").read_text())["documents"] == 40
    if change == "source":
        (source / "0.jsonl").write_bytes(b'{"text": "changed"}\n')
    elif change == "setting and back":
        killed_after_the_first_file(bos=False, seconds=60)
    changed = settings(bos=change != "setting")
    tokenize(source, target, changed)
    tokenize(source, tmp_path / "whole", changed)
    assert hashes(target) == hashes(tmp_path / "whole")


def test_what_is_published_is_never_cut(small_batches, source, settings, tmp_path, monkeypatch) -> None:
    target = tmp_path / "t"
    with monkeypatch.context() as patch, pytest.raises(Killed):  # killed after the manifest was written, before .parts went
        patch.setattr(tokens, "publish", lambda *words, real=tokens.publish: (real(*words), (_ for _ in ()).throw(Killed)))
        tokenize(source, target, settings())
    before = {name: (target / name).read_bytes() for name in ("tokens.bin", "tokens.idx")}
    assert (target / PARTS / "tokens.bin").samefile(target / "tokens.bin")

    def dying(*words, **more):
        raise Killed
        yield

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(token_progress, "read_batches", dying)
        tokenize(source, target, replace(settings(), overwrite=True))
    assert {name: (target / name).read_bytes() for name in before} == before
    tokenize(source, target, replace(settings(), overwrite=True))
    assert {name: (target / name).read_bytes() for name in before} == before
