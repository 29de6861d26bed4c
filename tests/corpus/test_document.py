"""Every record becomes one Document or one BadRecord, whatever file it stands in and however the file is damaged."""

import base64
import gzip
from pathlib import Path

import orjson
import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from megatron_jmed.corpus import reader
from megatron_jmed.corpus.document import BadRecord, Document, RemovedRecords, parse_batch, read_documents
from megatron_jmed.corpus.manifest import Counts, Manifest, OutputFile, sha256_file
from megatron_jmed.corpus.reader import find_source, read_batches
from megatron_jmed.errors import CorpusError

RECORDS = [{"text": f"文書 {i}\u2028改行\nあり", "id": i, "source": "notes", "lang": "ja", "year": 2000 + i} for i in range(50)]
LINES = b"".join(orjson.dumps(record) + b"\n" for record in RECORDS)


def parse_all(path: Path) -> list[Document | BadRecord]:
    return [record for batch in read_batches(find_source(path)) for record in parse_batch(batch)]


def write_as(path: Path) -> None:
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(LINES[:700]) + gzip.compress(LINES[700:]))  # two members, cut inside a line
    elif path.name.endswith(".zst"):
        pack = zstandard.ZstdCompressor().compress
        path.write_bytes(pack(LINES[:700]) + pack(LINES[700:]))
    elif path.name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
    else:
        path.write_bytes(LINES)


@pytest.mark.parametrize("suffix", reader.SUFFIXES)
def test_all_formats_give_the_same_documents(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    write_as(path)
    assert list(read_documents(path)) == [
        Document(id=str(r["id"]), text=r["text"], source="notes", lang="ja", meta={"year": r["year"]}) for r in RECORDS
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_batches_are_small_whole_lines_and_cover_the_file(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BATCH_BYTES", 300)
    monkeypatch.setattr(reader, "CHUNK_BYTES", 70)
    path = tmp_path / f"a{suffix}"
    write_as(path)
    batches = list(read_batches(find_source(path)))
    assert len(batches) > 10
    assert b"".join(batch.payload for batch in batches) == LINES
    assert all(batch.payload.endswith(b"\n") for batch in batches)
    if suffix == ".jsonl":
        assert max(len(batch.payload) for batch in batches) < 300 + 2 * 150
    assert [r.id for batch in batches for r in parse_batch(batch)] == [str(r["id"]) for r in RECORDS]
    assert sum(batch.input_bytes for batch in batches) == path.stat().st_size


def test_line_numbers_go_on_across_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BATCH_BYTES", 300)
    monkeypatch.setattr(reader, "CHUNK_BYTES", 70)
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES + b"{broken\n" + LINES)
    assert [r.line for r in parse_all(path) if isinstance(r, BadRecord)] == [51]


BAD_LINES = {
    b'{"text": "cut': "broken_json",
    b'{"text": NaN}': "broken_json",
    b"": "blank_line",
    b'{"text": "\xff\xfe"}': "invalid_utf8",
    b'{"text": "\\ud83d"}': "lone_surrogate",
    b'["text"]': "not_an_object",
    b'{"body": "x"}': "missing_text",
    b'{"text": null}': "text_not_string",
    b'{"text": ["x"]}': "text_not_string",
    b'{"text": ""}': "empty_text",
    b'{"text": " \\n\\u3000"}': "empty_text",
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.items())
def test_a_bad_line_is_named_and_its_neighbours_live(line: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + line + b'\n{"text": "\\ud83d\\ude00"}')
    first, bad, last = parse_all(path)
    assert bad == BadRecord("a.jsonl", 2, reason, line)
    assert (first.text, first.id, first.source, first.lang) == ("one", "a.jsonl:1", "unknown", "unknown")
    assert last.text == "😀"
    with pytest.raises(CorpusError, match=f"a.jsonl:2: {reason}"):
        list(read_documents(path))


def test_a_byte_order_mark_is_not_part_of_the_first_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n')
    assert [d.text for d in read_documents(tmp_path)] == ["one", "two"]


def test_a_damaged_parquet_string_costs_one_row(tmp_path: Path) -> None:
    damaged = pyarrow.array([b"good", b"\xff", None, b"also"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": damaged, "blob": [b"\x00", b"\x01", b"\x02", b"\x03"]}), tmp_path / "a.parquet")
    good, bad, null, also = parse_all(tmp_path / "a.parquet")
    assert (good.text, also.text) == ("good", "also")
    assert (bad.line, bad.reason, null.line, null.reason) == (2, "invalid_utf8", 3, "text_not_string")
    assert base64.b64decode(orjson.loads(bad.raw)["text"]["base64"]) == b"\xff"


def test_parquet_dictionary_and_column_choice(tmp_path: Path) -> None:
    body = pyarrow.array(["x", "y"] * 300).dictionary_encode()
    table = pyarrow.table({"body": body, "lang": ["ja", "en"] * 300, "n": range(600)})
    parquet.write_table(table, tmp_path / "a.parquet")
    batches = list(read_batches(find_source(tmp_path), "body", fields=("lang",)))
    documents = [d for batch in batches for d in parse_batch(batch, "body")]
    assert len(batches) == 3
    assert documents[-1] == Document(id="a.parquet:600", text="y", source="unknown", lang="en", meta={})
    with pytest.raises(CorpusError, match="no column 'text'; its columns are body, lang, n"):
        list(read_batches(find_source(tmp_path)))
    with pytest.raises(CorpusError, match="column 'n' holds int64, not strings"):
        list(read_batches(find_source(tmp_path), "n"))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_an_error_that_names_it(suffix: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / f"shard{suffix}"
    write_as(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CorpusError, match=f"shard{suffix}"):
        parse_all(path)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_file_of_another_kind_is_an_error(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"shard{suffix}").write_bytes(LINES)
    with pytest.raises(CorpusError, match="is not a sound"):
        parse_all(tmp_path)


def test_an_endless_line_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_RECORD_BYTES", 500_000)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n' + b"x" * 900_000)
    with pytest.raises(CorpusError, match="a.jsonl:1: a record is longer than 500000 bytes"):
        parse_all(tmp_path)


def test_a_folder_is_read_in_order_and_other_files_are_listed(tmp_path: Path) -> None:
    for name in ["b/2.jsonl", "b/10.jsonl", "a.jsonl", "c.jsonl", ".hidden.jsonl", "b/notes.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(orjson.dumps({"text": name}))
    source = find_source(tmp_path)
    assert [d.text for d in read_documents(tmp_path)] == ["a.jsonl", "b/10.jsonl", "b/2.jsonl", "c.jsonl"]
    assert source.ignored == ["b/notes.txt"]
    assert [file.path for file in source.inputs()] == ["a.jsonl", "b/10.jsonl", "b/2.jsonl", "c.jsonl"]


@pytest.mark.parametrize(("name", "message"), [("none", "does not exist"), ("a.pdf", "is none of"), ("empty", "holds no .jsonl")])
def test_a_source_without_files_is_an_error(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=message):
        find_source(tmp_path / name)


def test_a_stage_folder_gives_its_listed_files_only(tmp_path: Path) -> None:
    stage = tmp_path / "clean"
    (stage / "removed").mkdir(parents=True)
    (stage / "part.jsonl").write_bytes(LINES)
    (stage / "removed" / "too_short.jsonl").write_bytes(b'{"text": "removed"}\n')
    listed = OutputFile(path="part.jsonl", rows=50, bytes=len(LINES), sha256=sha256_file(stage / "part.jsonl"))
    Manifest(
        stage="clean", settings={}, code_version="1", source="x", inputs=[], files=[listed], counts=Counts(), licence="CC BY 4.0"
    ).save(stage)
    source = find_source(tmp_path)
    assert [source.name(path) for path in source.files] == ["clean/part.jsonl"]
    assert [file.path for file in source.inputs()] == ["clean/manifest.json"]
    assert source.licence() == "CC BY 4.0"

    (stage / "part.jsonl").write_bytes(LINES[:-1])
    with pytest.raises(CorpusError, match=f"has {len(LINES) - 1} bytes, its manifest says {len(LINES)}"):
        find_source(tmp_path)
    (stage / "manifest.json").unlink()
    (stage / ".partial").mkdir()
    with pytest.raises(CorpusError, match="did not finish"):
        find_source(tmp_path)


def test_removed_records_are_kept_without_loss_and_within_the_budget(tmp_path: Path) -> None:
    removed = RemovedRecords(tmp_path / "removed", max_bad=2)
    removed.add(BadRecord("a.jsonl", 7, "broken_json", b'{"text": "cut'))
    removed.add(BadRecord("a.jsonl", 9, "invalid_utf8", b'{"text": "\xff"}'))
    files = removed.close()
    assert [(file.path, file.rows) for file in files] == [("removed/broken_json.jsonl", 1), ("removed/invalid_utf8.jsonl", 1)]
    texts = [orjson.loads((tmp_path / file.path).read_bytes()) for file in files]
    assert texts[0] == {"file": "a.jsonl", "line": 7, "reason": "broken_json", "raw": '{"text": "cut'}
    assert base64.b64decode(texts[1]["raw_base64"]) == b'{"text": "\xff"}'


def test_more_bad_records_than_allowed_name_the_first(tmp_path: Path) -> None:
    removed = RemovedRecords(tmp_path / "removed", max_bad=1)
    removed.add(BadRecord("a.jsonl", 7, "broken_json", b"{"))
    with pytest.raises(CorpusError, match=r"a.jsonl:7: broken_json; .* more than 1 bad .*broken_json 2"):
        removed.add(BadRecord("b.jsonl", 1, "broken_json", b"{"))
