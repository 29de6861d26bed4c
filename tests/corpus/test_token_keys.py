"""Several fields of a record become token sets of their own, each as if it were the only one."""

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from megatron_jmed.corpus.manifest import MANIFEST_NAME, load_manifest, sha256_file
from megatron_jmed.corpus.token_keys import merge_token_keys, tokenize_keys
from megatron_jmed.corpus.token_set import load_token_set
from megatron_jmed.corpus.tokens import tokenize
from megatron_jmed.errors import CorpusError

REPOSITORY = Path(__file__).resolve().parents[2]
KEYS = ["text", "abstract", "title"]


@pytest.fixture
def source(tmp_path: Path, texts_ja: Path) -> Path:
    """Three files of records with a text and a title; every fifth has an abstract, one an abstract that is no text."""
    folder = tmp_path / "source"
    folder.mkdir()
    records = [orjson.loads(line) for line in texts_ja.read_bytes().splitlines()]
    for number, record in enumerate(records):
        record["title"] = f"第{number}の記録。"
        if number % 5 == 0:
            record["abstract"] = record["text"][:30] if number else None
    for file in range(3):
        lines = [orjson.dumps(record) + b"\n" for record in records[file * 142 : (file + 1) * 142]]
        (folder / f"{file}.jsonl").write_bytes(b"".join(lines))
    return folder


def hashes(target: Path) -> dict[str, str]:
    files = [path for path in sorted(target.rglob("*")) if path.is_file() and path.name != MANIFEST_NAME]
    return {path.relative_to(target).as_posix(): sha256_file(path) for path in files}


@pytest.mark.parametrize("split_sentences", [False, True])
def test_each_key_is_as_if_alone_also_in_shards(split_sentences, source, settings, tmp_path) -> None:
    words = settings(max_bad=400, split_sentences=split_sentences, sentence_engine="rules")
    made = tokenize_keys(source, tmp_path / "sets", KEYS, words)
    for index in (1, 2):
        tokenize_keys(source, tmp_path / "merged", KEYS, words, (index, 2))
    merged = merge_token_keys(tmp_path / "merged", KEYS)
    assert list(made) == KEYS
    for key in KEYS:
        alone = settings(max_bad=400, split_sentences=split_sentences, sentence_engine="rules", text_field=key)
        reference = tokenize(source, tmp_path / "alone" / key, alone).model_dump(exclude={"created"})
        assert made[key].model_dump(exclude={"created"}) == merged[key].model_dump(exclude={"created"}) == reference
        assert hashes(tmp_path / "sets" / key) == hashes(tmp_path / "merged" / key) == hashes(tmp_path / "alone" / key)
        assert load_token_set(tmp_path / "sets" / key).manifest.settings["text_field"] == key


def test_a_record_without_a_key_counts_for_that_key_only(source, settings, tmp_path) -> None:
    made = tokenize_keys(source, tmp_path / "sets", KEYS, settings(max_bad=341))
    assert [made[key].counts.documents for key in KEYS] == [426, 85, 426]
    assert [made[key].counts.dropped for key in KEYS] == [{}, {"missing_text": 340, "text_not_string": 1}, {}]
    kept = (tmp_path / "sets" / "abstract" / "removed" / "missing_text.jsonl").read_bytes().splitlines()
    assert len(kept) == 340 and orjson.loads(orjson.loads(kept[0])["raw"])["title"] == "第1の記録。"
    assert not (tmp_path / "sets" / "title" / "removed").exists()


def test_the_budget_is_each_keys_own(source, settings, tmp_path) -> None:
    with pytest.raises(CorpusError, match=r"key 'abstract': .*more than 340 bad.*abstract.*\(finished: text\)"):
        tokenize_keys(source, tmp_path / "sets", KEYS, settings(max_bad=340))
    written = (tmp_path / "sets" / "text" / "tokens.bin").stat().st_mtime_ns
    with pytest.raises(CorpusError, match="no manifest.json"):
        load_token_set(tmp_path / "sets" / "abstract")
    tokenize_keys(source, tmp_path / "sets", ["title"], settings(max_bad=0))
    assert (tmp_path / "sets" / "text" / "tokens.bin").stat().st_mtime_ns == written
    for index in (1, 2):
        tokenize_keys(source, tmp_path / "t", KEYS, settings(max_bad=340), (index, 2))
    with pytest.raises(CorpusError, match="key 'abstract': .*341 bad record"):
        merge_token_keys(tmp_path / "t", KEYS)
    assert merge_token_keys(tmp_path / "t", KEYS, max_bad=341)["abstract"].counts.documents == 85


@pytest.mark.parametrize(
    "key", ["", " ", " text", "..", ".hidden", "a/b", "/tmp", "../text", "a\\b", "a\0b", "a\nb", "C:x", "x" * 256, "shard-1-of-2",
            MANIFEST_NAME]
)
def test_unsafe_keys_are_refused(key, source, settings, tmp_path) -> None:
    for make in (lambda keys: tokenize_keys(source, tmp_path / "sets", keys, settings()),
                 lambda keys: merge_token_keys(tmp_path / "sets", keys)):
        with pytest.raises(CorpusError, match="--json-keys: "):
            make(["text", key])
    assert not (tmp_path / "sets").exists()


def test_other_refusals(source, settings, tmp_path) -> None:
    with pytest.raises(CorpusError, match=r"--json-keys: '.a' begins with a dot; 'text' is given twice; 'text' and 'Text' are one"):
        tokenize_keys(source, tmp_path / "sets", ["text", ".a", "text", "Text"], settings())
    with pytest.raises(CorpusError, match="name at least one"):
        tokenize_keys(source, tmp_path / "sets", [], settings())
    tokenize(source, tmp_path / "sets", settings())
    with pytest.raises(CorpusError, match="holds a finished result itself"):
        tokenize_keys(source, tmp_path / "sets", ["title"], settings())


def test_the_tool_with_keys(source, tokenizer, tmp_path) -> None:
    def run(*words: object) -> subprocess.CompletedProcess:
        command = [sys.executable, REPOSITORY / "tools" / "tokenize_corpus.py", *words]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    keys = ["--json-keys", "text", "title"]
    whole = run("source", "sets", "--tokenizer", tokenizer, "--workers", 1, *keys)
    assert whole.returncode == 0, whole.stderr
    assert [line.split(",")[0] for line in whole.stdout.splitlines()] == ["sets/text: 426 documents", "sets/title: 426 documents"]
    for index in (1, 2):
        made = run("source", "t", "--tokenizer", tokenizer, "--workers", 1, *keys, "--shard", f"{index}/2")
        assert made.returncode == 0, made.stderr
    merged = run("t", "--merge", "--tokenizer", tokenizer, *keys)
    assert merged.returncode == 0 and hashes(tmp_path / "t") == hashes(tmp_path / "sets"), merged.stderr
    assert load_manifest(tmp_path / "t" / "title").settings["text_field"] == "title"
    for words, message in (
        (["--text-field", "text", *keys], "not allowed with argument"),
        (["--json-keys", "../x"], "begins with a dot"),
        (["--sentence-engine", "rules"], "splits nothing without --split-sentences"),
    ):
        refused = run("source", "x", "--tokenizer", tokenizer, *words)
        assert refused.returncode == 2 and message in refused.stderr
