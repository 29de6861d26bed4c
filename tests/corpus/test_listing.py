"""A listing names every document of a token set in its order, or there is none."""

import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow
import pytest
from pyarrow import parquet

from megatron_jmed.corpus import listing as listing_module
from megatron_jmed.corpus import reader
from megatron_jmed.corpus.document import read_documents
from megatron_jmed.corpus.indexed import read_index
from megatron_jmed.corpus.listing import list_documents, listing_folder, load_listing
from megatron_jmed.corpus.token_keys import tokenize_keys
from megatron_jmed.corpus.token_shards import merge_token_shards
from megatron_jmed.corpus.tokens import tokenize
from megatron_jmed.errors import CorpusError

REPOSITORY = Path(__file__).resolve().parents[2]


def names_in(token_set: Path) -> list[tuple[str, str, str, int]]:
    """(id, source, language, characters) of every document, in order."""
    found = load_listing(token_set)
    assert found is not None and len(found.groups) == read_index(token_set / "tokens.idx").num_documents
    return [(found.id(n), *found.names[group], int(found.characters[n])) for n, group in enumerate(found.groups)]


def names_of(documents) -> list[tuple[str, str, str, int]]:
    return [(d.id, d.source, d.lang, len(d.text)) for d in documents]


@pytest.mark.parametrize("workers", [1, 3])
def test_listing_names_the_documents_in_their_order(workers, texts_ja, texts_en, settings, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(reader, "BATCH_BYTES", 4000)
    monkeypatch.setattr(reader, "CHUNK_BYTES", 1000)
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.jsonl").write_bytes(texts_ja.read_bytes())
    (source / "b.jsonl.gz").write_bytes(texts_en.read_bytes())
    tokenize(source, tmp_path / "set", settings())
    manifest = list_documents(tmp_path / "set", workers)
    assert names_in(tmp_path / "set") == names_of(read_documents(source))
    assert manifest.counts.documents == len(names_of(read_documents(source)))
    before = {path.name: path.stat().st_mtime_ns for path in listing_folder(tmp_path / "set").iterdir()}
    list_documents(tmp_path / "set", workers)
    assert {path.name: path.stat().st_mtime_ns for path in listing_folder(tmp_path / "set").iterdir()} == before


def test_what_became_no_tokens_is_left_out(settings, write_lines, tmp_path) -> None:
    source = write_lines([
        {"text": "心臓は血液を送り出します。", "id": "a", "source": "notes", "lang": "ja"},
        b'{"text": "\xff"}', {"text": "  "}, {"id": "b", "text": "The heart.", "lang": "en"}, {"text": None}, b"",
        {"text": "No id.", "source": 5}, {"text": "A number.", "id": 17}])
    tokenize(source, tmp_path / "set", settings())
    list_documents(tmp_path / "set")
    assert names_in(tmp_path / "set") == [
        ("a", "notes", "ja", 13), ("b", "unknown", "en", 10), ("source.jsonl:7", "unknown", "unknown", 6),
        ("17", "unknown", "unknown", 9)]


def test_shards_keys_and_parquet_are_listed_like_any_source(settings, tmp_path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    records = [[{"title": f"Title {n} of {file}", "text": f"Text {n}.", "id": f"{file}-{n}", "lang": "en", "more": [1]}
                for n in range(5)] for file in range(3)]
    (source / "0.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records[0]))
    (source / "1.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records[1]))
    parquet.write_table(pyarrow.Table.from_pylist(records[2]), source / "2.parquet")
    for index in (1, 2):
        tokenize(source, tmp_path / "merged", settings(), (index, 2))
    merge_token_shards(tmp_path / "merged")
    tokenize_keys(source, tmp_path / "keys", ["title", "text"], settings())
    for folder, field in ((tmp_path / "merged", "text"), (tmp_path / "keys/title", "title"), (tmp_path / "keys/text", "text")):
        list_documents(folder)
        assert names_in(folder) == [(r["id"], "unknown", "en", len(r[field])) for file in records for r in file]


@pytest.mark.parametrize("at_once", [2**22, 3])
def test_an_id_is_found_wherever_it_stands_and_not_inside_another(at_once, settings, write_lines, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(listing_module, "DOCUMENTS_AT_ONCE", at_once)
    ids = ["1", "11", "111", "", "咳", "1", "a\nb", "咳と熱", "熱", "b", "111"]
    tokenize(write_lines([{"text": "The heart.", "id": one} for one in ids]), tmp_path / "set", settings())
    list_documents(tmp_path / "set")
    found = load_listing(tmp_path / "set")
    assert [found.id(n) for n in range(len(ids))] == ids
    for one in {*ids, "none", "と", "1111", "a"}:
        assert found.find(one) == [n for n, other in enumerate(ids) if other == one], one


def test_listing_of_a_set_that_was_made_anew_counts_for_nothing(texts_ja, texts_en, settings, tmp_path) -> None:
    target = tmp_path / "set"
    assert load_listing(target) is None
    tokenize(texts_ja, target, settings())
    list_documents(target)
    tokenize(texts_en, target, settings(overwrite=True))
    assert load_listing(target) is None
    list_documents(target)
    assert names_in(target) == names_of(read_documents(texts_en))


def test_source_that_changed_or_went_away_is_refused(settings, write_lines, tmp_path) -> None:
    source = write_lines([{"text": "The heart."}])
    tokenize(source, tmp_path / "set", settings())
    source.write_bytes(source.read_bytes() * 2)
    with pytest.raises(CorpusError, match="has changed since"):
        list_documents(tmp_path / "set")
    source.unlink()
    with pytest.raises(CorpusError, match="does not exist"):
        list_documents(tmp_path / "set")
    assert not listing_folder(tmp_path / "set").exists()


def test_records_that_do_not_line_up_are_refused(settings, write_lines, tmp_path, monkeypatch) -> None:
    """As if the rules of what is a document had changed since."""
    source = write_lines([{"text": "The heart."}, {"text": "The lung."}])
    tokenize(source, tmp_path / "set", settings())
    parse = listing_module.parse_batch
    monkeypatch.setattr(listing_module, "parse_batch", lambda batch, field: list(parse(batch, field))[:1])
    with pytest.raises(CorpusError, match="holds 1 documents of 10 characters, .* was made from 2 of 19"):
        list_documents(tmp_path / "set")
    assert load_listing(tmp_path / "set") is None
    monkeypatch.undo()
    list_documents(tmp_path / "set")
    assert len(names_in(tmp_path / "set")) == 2


def test_tool_lists_and_refuses(texts_ja, settings, tmp_path) -> None:
    tokenize(texts_ja, tmp_path / "set", settings())
    command = [sys.executable, str(REPOSITORY / "tools/list_documents.py"), str(tmp_path / "set")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and str(listing_folder(tmp_path / "set")) in done.stdout, done.stderr
    done = subprocess.run([*command, str(texts_ja.parent)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "manifest" in done.stderr


def test_nobody_cannot_list(texts_ja, settings, tmp_path) -> None:
    tokenize(texts_ja, tmp_path / "set", settings())
    with pytest.raises(CorpusError, match="--workers 0 is too small"):
        list_documents(tmp_path / "set", 0)
