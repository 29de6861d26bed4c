"""The datasheet's numbers add up to the manifests and the files, and the tool writes the same bytes each time."""

import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from megatron_jmed.corpus import datasheet, provenance, reader
from megatron_jmed.corpus.datasheet import OUTPUT_NAMES, DescribeSettings, describe
from megatron_jmed.corpus.manifest import load_manifest
from megatron_jmed.corpus.tokens import tokenize
from megatron_jmed.errors import CorpusError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def token_sets(write_lines, settings, tmp_path, texts_en):
    records = [
        {"text": "発熱がある。<b>&", "source": "a", "lang": "ja", "date": "2019-02-01", "machine_translated": True},
        {"text": "Fever is common. |x|", "source": "b", "lang": "en", "year": 2021, "machine_translated": False},
        {"text": "発熱がある。<b>&", "source": "a", "lang": "ja"},
        b"broken",
    ]
    tokenize(write_lines(records), tmp_path / "one", settings(licence="CC0"))
    tokenize(texts_en, tmp_path / "two", settings())
    return [tmp_path / "one", tmp_path / "two"]


@pytest.fixture
def describing(tokenizer, texts_ja):
    terms = texts_ja.parent / "medical_terms.txt"
    return lambda **changes: DescribeSettings(**{"tokenizer": tokenizer, "terms": terms, "progress": False, **changes})


def test_numbers_add_up(token_sets, describing, tmp_path):
    describe(token_sets, tmp_path / "sheet", describing())
    sheet = orjson.loads((tmp_path / "sheet" / "datasheet.json").read_bytes())
    manifests = [load_manifest(folder) for folder in token_sets]
    for name in ("documents", "tokens", "characters"):
        assert sheet["totals"][name] == sum(getattr(manifest.counts, name) for manifest in manifests)
    size = sum((folder / "tokens.bin").stat().st_size for folder in token_sets)
    assert sheet["totals"]["bin_bytes"] == 2 * sheet["totals"]["tokens"] == size
    for one, manifest in zip(sheet["sets"], manifests, strict=True):
        found = {group["source"]: group["tokens"] for group in one["groups"]}
        assert found == {name: counts.tokens for name, counts in manifest.counts.by_source.items()}
    assert sheet["sets"][0]["removed"] == {"other": {"tokenize: broken_json": 1}}
    assert "no stage made" in sheet["sets"][0]["chain_ends"][0] and sheet["sets"][0]["licences"] == ["CC0"]
    japanese = next(group for group in sheet["sets"][0]["groups"] if group["source"] == "a")
    assert japanese["repeated_documents"] == 1 and japanese["declared"]["first_year"] == 2019
    assert japanese["declared"]["machine_translated_share"] == 1 and japanese["declared"]["translation_undeclared_documents"] == 1


def test_the_page_is_self_contained_and_escaped(token_sets, describing, tmp_path):
    describe(token_sets, tmp_path / "sheet", describing(title="<i>corpus</i>"))
    page = (tmp_path / "sheet" / "datasheet.html").read_text()
    assert "<i>corpus" not in page and "発熱がある。&lt;b&gt;&amp;" in page and "<svg" in page
    assert not re.search(r"(src|href)=|url\(|@import|http", page)
    assert "\\|x\\|" in (tmp_path / "sheet" / "datasheet.md").read_text()


def test_the_same_bytes_for_any_number_of_workers(token_sets, describing, tmp_path):
    for name, workers in (("a", 1), ("b", 2)):
        describe(token_sets, tmp_path / name, describing(workers=workers))
    for name in OUTPUT_NAMES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_sets_described_apart_give_the_same_sheet(token_sets, describing, tmp_path, monkeypatch):
    describe(token_sets, tmp_path / "whole", describing())
    assert describe(token_sets, tmp_path / "sheet", describing(), shard=(2, 2)) is None
    assert describe(token_sets, tmp_path / "sheet", describing(), shard=(1, 2)) is None
    assert not (tmp_path / "sheet" / "manifest.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(datasheet, "describe_set", None)  # nothing is left to do
        describe(token_sets, tmp_path / "sheet", describing())
    for name in OUTPUT_NAMES:
        assert (tmp_path / "sheet" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "sheet").iterdir()) == sorted([*OUTPUT_NAMES, "manifest.json"])
    with pytest.raises(CorpusError, match="--shard 3/2 does not exist"):
        describe(token_sets, tmp_path / "other", describing(), shard=(3, 2))


def test_documents_are_told_apart_by_any_number_of_workers(write_lines, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "BATCH_BYTES", 700)
    monkeypatch.setattr(reader, "CHUNK_BYTES", 100)
    monkeypatch.setattr(provenance, "MAX_GROUPS", 4)
    records = [
        {"text": f"text {n}", "source": f"s{n * n % 7}", "lang": "en", "year": 1990 + n % 20, "translated": n % 3 == 0}
        if n % 11 else b"broken" for n in range(300)
    ]
    manifest = tokenize(write_lines(records), tmp_path / "set", settings())
    one, two = (provenance.attribute(tmp_path / "set", manifest, workers) for workers in (1, 2))
    assert one.names == [("s1", "en"), ("s4", "en"), ("s2", "en"), ("(other)", "(other)")] == two.names
    assert one.groups.tolist() == two.groups.tolist() and one.facts == two.facts
    kept = [record for record in records if isinstance(record, dict)]
    for number, name in enumerate(one.names[:3]):
        mine = [record for record in kept if record["source"] == name[0]]
        facts = one.facts[number]
        assert (one.groups == number).sum() == len(mine) == facts.dated
        assert facts.translated == sum(record["translated"] for record in mine) == len(mine) - facts.not_translated
        assert (facts.first_year, facts.last_year) == (min(r["year"] for r in mine), max(r["year"] for r in mine))


def test_without_the_source_there_is_one_group(token_sets, describing, tmp_path):
    (tmp_path / "source.jsonl").unlink()
    describe(token_sets[:1], tmp_path / "sheet", describing())
    one = orjson.loads((tmp_path / "sheet" / "datasheet.json").read_bytes())["sets"][0]
    assert [group["source"] for group in one["groups"]] == ["(mixed)"] and "no longer there" in one["chain_ends"][0]


def test_changed_tokens_are_refused(token_sets, describing, tmp_path):
    data = bytearray((token_sets[0] / "tokens.bin").read_bytes())
    data[2] ^= 1
    (token_sets[0] / "tokens.bin").write_bytes(data)
    with pytest.raises(CorpusError, match="SHA-256"):
        describe(token_sets, tmp_path / "sheet", describing())
    assert not (tmp_path / "sheet" / "manifest.json").exists()


def test_the_tool(token_sets, tokenizer, tmp_path):
    tool = [sys.executable, REPOSITORY / "tools/describe_corpus.py", *token_sets, tmp_path / "sheet", "--workers", "1"]
    done = subprocess.run([*tool, "--tokenizer", tokenizer], capture_output=True, text=True)
    assert done.returncode == 0 and "documents" in done.stdout, done.stderr
    wrong = subprocess.run([*tool, "--tokenizer", tmp_path / "none.model"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "does not exist" in wrong.stderr
