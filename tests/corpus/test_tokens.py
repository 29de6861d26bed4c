"""A token set is what Megatron-Core would have written, the same for any number of workers, and whole or refused."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import orjson
import pytest
import sentencepiece
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from megatron_jmed.corpus import indexed, reader, token_progress
from megatron_jmed.corpus.document import read_documents
from megatron_jmed.corpus.indexed import token_dtype, write_index
from megatron_jmed.corpus.manifest import load_manifest, sha256_file
from megatron_jmed.corpus.token_set import load_token_set
from megatron_jmed.corpus.tokenizer import CONTROL_PIECES, train_tokenizer
from megatron_jmed.corpus.tokens import tokenize
from megatron_jmed.errors import CorpusError

REPOSITORY = Path(__file__).resolve().parents[2]


def build_with_megatron(source: Path, model: Path, prefix: Path, bos: bool = True, eos: bool = True) -> None:
    """Write the same token set with Megatron-Core's own builder, one document at a time."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(len(processor)))
    for text in [d.text for d in read_documents(source)]:
        ids = [1] * bos + processor.encode(text) + [2] * eos
        builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")


def assert_same_files(folder: Path, prefix: Path) -> None:
    for suffix in (".bin", ".idx"):
        assert (folder / f"tokens{suffix}").read_bytes() == prefix.with_suffix(suffix).read_bytes()


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_files_equal_megatrons(bos, eos, texts_en, tokenizer, settings, tmp_path) -> None:
    tokenize(texts_en, tmp_path / "set", settings(bos=bos, eos=eos))
    build_with_megatron(texts_en, tokenizer, tmp_path / "reference", bos, eos)
    assert_same_files(tmp_path / "set", tmp_path / "reference")


def test_megatron_reads_every_document_back(texts_ja, tokenizer, settings, tmp_path) -> None:
    tokenize(texts_ja, tmp_path, settings())
    token_set = load_token_set(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    dataset = IndexedDataset(token_set.prefix)
    texts = [d.text for d in read_documents(texts_ja)]
    assert len(dataset) == len(dataset.document_indices) - 1 == len(texts) == token_set.num_documents
    for ids, text in zip(dataset, texts, strict=True):
        assert ids.dtype == np.uint16 and (ids[0], ids[-1]) == (1, 2)
        assert processor.decode(ids[1:-1].tolist()) == text


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_index_of_any_lengths_equals_megatrons(dtype, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(indexed, "DOCUMENTS_PER_WRITE", 7)
    for num in (1, 6, 7, 8, 50):
        lengths = np.random.default_rng(num).integers(1, 100, num, dtype=np.int32)
        builder = IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=getattr(np, dtype))
        for length in lengths:
            builder.add_document(np.zeros(length, dtype), [int(length)])
        builder.finalize(str(tmp_path / "m.idx"))
        write_index(tmp_path / "ours.idx", [lengths[:13], lengths[13:]], np.dtype(dtype))
        assert (tmp_path / "ours.idx").read_bytes() == (tmp_path / "m.idx").read_bytes()


def test_offsets_beyond_32_bits(tmp_path) -> None:
    lengths = np.array([2**31 - 1, 2**31 - 1, 5], dtype=np.int32)
    write_index(tmp_path / "a.idx", [lengths], np.dtype("int32"))
    offsets = np.fromfile(tmp_path / "a.idx", dtype="<i8", offset=34 + 12, count=3)
    assert offsets.tolist() == [0, 4 * (2**31 - 1), 8 * (2**31 - 1)]
    assert indexed.read_index(tmp_path / "a.idx").num_tokens == 2**32 + 3


def test_dtype_follows_megatrons_limit() -> None:
    for vocab_size in (2000, 65_499, 65_500, 65_536, 99_574):
        assert token_dtype(vocab_size) == np.dtype(DType.optimal_dtype(vocab_size))


@pytest.mark.parametrize("engine", ["auto", "sentencepiece"])
def test_workers_do_not_change_the_output(engine, texts_ja, texts_en, settings, tmp_path, monkeypatch) -> None:
    # Small batches here; the workers get whole batches, so only the parent needs to know.
    monkeypatch.setattr(reader, "BATCH_BYTES", 4000)
    monkeypatch.setattr(reader, "CHUNK_BYTES", 1000)
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.jsonl").write_bytes(b"{broken\n" + texts_ja.read_bytes() + b'{"text": ""}\n')
    (source / "b.jsonl.gz").write_bytes(texts_en.read_bytes())
    manifests = [tokenize(source, tmp_path / f"{n}", settings(workers=n, engine=engine)) for n in (1, 3)]
    assert manifests[0].counts == manifests[1].counts
    assert manifests[0].files == manifests[1].files
    assert manifests[0].removed_files == manifests[1].removed_files
    for file in [*manifests[0].files, *manifests[0].removed_files]:
        contents = [(tmp_path / n / file.path).read_bytes() for n in ("1", "3")]
        assert contents[0] == contents[1]
        assert (file.bytes, file.sha256) == (len(contents[0]), sha256_file(tmp_path / "1" / file.path))


def test_manifest_accounts_for_every_record(tokenizer, settings, write_lines, tmp_path) -> None:
    source = write_lines(
        [
            {"text": "心臓は血液を送り出します。", "source": "notes", "lang": "ja"},
            b'{"text": "\xff"}',
            {"text": "The heart is a pump.", "source": "notes", "lang": "en"},
            {"text": None},
            {"text": "No source, no language."},
        ]
    )
    manifest = tokenize(source, tmp_path / "set", settings(licence="CC0-1.0", engine="sentencepiece"))
    counts = manifest.counts
    assert (counts.documents, counts.characters) == (3, 13 + 20 + 23)
    assert counts.dropped == {"invalid_utf8": 1, "text_not_string": 1}
    assert {name: group.documents for name, group in counts.by_source.items()} == {"notes": 2, "unknown": 1}
    assert {name: group.characters for name, group in counts.by_lang.items()} == {"ja": 13, "en": 20, "unknown": 23}
    dataset = IndexedDataset(str(tmp_path / "set" / "tokens"))
    assert counts.tokens == sum(len(ids) for ids in dataset) == sum(group.tokens for group in counts.by_lang.values())
    assert counts.by_lang["en"].tokens == len(dataset[1])
    assert manifest.details == {
        "dtype": "uint16",
        "tokenizer": {
            "file": "tiny.model",
            "sha256": sha256_file(tokenizer),
            "vocab_size": 2000,
            "bos_id": 1,
            "eos_id": 2,
            "engine": "sentencepiece",
            "engine_version": sentencepiece.__version__,
            "family": "sentencepiece>=0.2.2",
        },
    }
    assert manifest.licence == "CC0-1.0" and manifest.settings["bos"] is True
    assert [(file.path, file.bytes, file.sha256) for file in manifest.inputs] == [
        ("source.jsonl", source.stat().st_size, sha256_file(source))
    ]
    kept = [orjson.loads((tmp_path / "set" / file.path).read_bytes()) for file in manifest.removed_files]
    assert [(line["line"], line["reason"]) for line in kept] == [(2, "invalid_utf8"), (4, "text_not_string")]

    token_set = load_token_set(tmp_path / "set")
    assert sum(token_set.lang_share.values()) == pytest.approx(1)
    assert sum(token_set.source_share.values()) == pytest.approx(1)
    assert token_set.lang_share["en"] == len(dataset[1]) / counts.tokens
    assert (token_set.vocab_size, token_set.dtype, token_set.tokenizer_sha256) == (2000, "uint16", sha256_file(tokenizer))


def test_many_sources_share_one_line(settings, write_lines, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("megatron_jmed.corpus.counts.MAX_GROUPS", 3)
    manifest = tokenize(write_lines({"text": "x", "source": f"s{i}"} for i in range(9)), tmp_path / "set", settings())
    documents = {name: group.documents for name, group in manifest.counts.by_source.items()}
    assert documents == {"s0": 1, "s1": 1, "s2": 1, "(other)": 6}


def test_a_text_that_the_tokenizer_erases_is_a_bad_record(texts_ja, settings, write_lines, tmp_path) -> None:
    model = tmp_path / "erasing"
    texts = (d.text for d in read_documents(texts_ja))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_prefix=str(model), vocab_size=1500, normalization_rule_name="nmt_nfkc", minloglevel=2
    )
    source = write_lines([{"text": "心臓"}, {"text": "\u0001"}, {"text": "肺"}])
    manifest = tokenize(source, tmp_path / "set", settings(tokenizer=model.with_suffix(".model")))
    assert (manifest.counts.documents, manifest.counts.dropped) == (2, {"no_tokens": 1})
    kept = orjson.loads((tmp_path / "set" / "removed" / "no_tokens.jsonl").read_bytes())
    assert kept["line"] == 2 and orjson.loads(kept["raw"])["text"] == "\u0001"


@pytest.mark.parametrize("workers", [1, 2])
def test_too_many_bad_records_stop_the_run(workers, settings, write_lines, tmp_path) -> None:
    source = write_lines([{"text": "good"}, b"{", {"text": "good"}, b"{", b"{"])
    with pytest.raises(CorpusError, match=r"source.jsonl:2: broken_json; .* more than 2 bad"):
        tokenize(source, tmp_path / "set", settings(max_bad=2, workers=workers))
    with pytest.raises(CorpusError, match="no manifest.json"):
        load_token_set(tmp_path / "set")
    assert tokenize(source, tmp_path / "set", settings(max_bad=3)).counts.documents == 2


def test_a_source_without_documents_is_an_error(settings, write_lines, tmp_path) -> None:
    with pytest.raises(CorpusError, match="no usable document.*it is empty"):
        tokenize(write_lines([]), tmp_path / "set", settings())
    with pytest.raises(CorpusError, match="no usable document.*'empty_text': 1"):
        tokenize(write_lines([{"text": ""}]), tmp_path / "set", settings())


def test_a_truncated_source_stops_the_run(texts_en, settings, tmp_path) -> None:
    (tmp_path / "cut.jsonl.gz").write_bytes(texts_en.read_bytes()[:-9])
    with pytest.raises(CorpusError, match="cut.jsonl.gz is truncated"):
        tokenize(tmp_path / "cut.jsonl.gz", tmp_path / "set", settings(workers=2))
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_a_finished_set_is_skipped_and_another_one_refused(texts_ja, texts_en, settings, tmp_path, capsys) -> None:
    target = tmp_path / "set"
    first = tokenize(texts_ja, target, settings())
    written = (target / "tokens.bin").stat().st_mtime_ns
    assert tokenize(texts_ja, target, settings(workers=2)) == first
    assert "finished already (426 documents)" in capsys.readouterr().err
    assert (target / "tokens.bin").stat().st_mtime_ns == written
    with pytest.raises(CorpusError, match="eos = True there, False now.*--overwrite"):
        tokenize(texts_ja, target, settings(eos=False))
    with pytest.raises(CorpusError, match="input file.*differ"):
        tokenize(texts_en, target, settings())
    assert tokenize(texts_en, target, settings(overwrite=True)).counts.documents == 409
    assert load_token_set(target).num_documents == 409


@pytest.mark.parametrize("name", ["tokens.bin", "tokens.idx"])
def test_a_truncated_file_is_refused_with_both_sizes(name, texts_ja, settings, tmp_path) -> None:
    tokenize(texts_ja, tmp_path, settings())
    path = tmp_path / name
    size = path.stat().st_size
    os.truncate(path, size - 2)
    with pytest.raises(CorpusError, match=f"{name} has {size - 2} bytes, its manifest says {size}"):
        load_token_set(tmp_path)
    path.unlink()
    with pytest.raises(CorpusError, match=f"{name} is missing"):
        load_token_set(tmp_path)


def test_files_that_contradict_each_other_are_refused(texts_ja, settings, tmp_path) -> None:
    tokenize(texts_ja, tmp_path, settings())
    original = (tmp_path / "manifest.json").read_text()

    def refuse(change, message: str) -> None:
        data = json.loads(original)
        change(data)
        (tmp_path / "manifest.json").write_text(json.dumps(data))
        with pytest.raises(CorpusError, match=message):
            load_token_set(tmp_path)

    refuse(lambda data: data["counts"].update(tokens=7), "tokens: 7 found")
    refuse(lambda data: data["counts"].update(documents=7), "documents: 7 found, 426 according")
    refuse(lambda data: data["details"].update(dtype="int32"), "type of ids: int32 found, uint16")
    refuse(lambda data: data.update(stage="clean"), "stage 'clean', not a token set")
    refuse(lambda data: data["details"].pop("tokenizer"), "does not describe a tokenizer")

    (tmp_path / "manifest.json").write_text(original)
    index = (tmp_path / "tokens.idx").read_bytes()
    lengths = np.frombuffer(index, "<i4", offset=34, count=426).copy()
    lengths[0] += 1  # the size stays the same, the sum does not
    (tmp_path / "tokens.idx").write_bytes(index[:34] + lengths.tobytes() + index[34 + 4 * 426 :])
    bin_bytes = (tmp_path / "tokens.bin").stat().st_size
    with pytest.raises(CorpusError, match=f"{bin_bytes} found, {bin_bytes + 2} according"):
        load_token_set(tmp_path)


def test_tokenizers_that_cannot_work_are_refused(texts_ja, tokenizer, settings, tmp_path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    with pytest.raises(CorpusError, match="does not exist"):
        tokenize(texts_ja, tmp_path / "set", settings(tokenizer=tmp_path / "none.model"))
    (tmp_path / "text.model").write_text("no model")
    with pytest.raises(CorpusError, match="is not a SentencePiece model"):
        tokenize(texts_ja, tmp_path / "set", settings(tokenizer=tmp_path / "text.model"))
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.read_bytes())
    proto.trainer_spec.bos_id = -1
    proto.trainer_spec.bos_piece = "<none>"
    (tmp_path / "no_bos.model").write_bytes(proto.SerializeToString())
    with pytest.raises(CorpusError, match="has no <s> piece; use one that has, or --no-bos"):
        tokenize(texts_ja, tmp_path / "set", settings(tokenizer=tmp_path / "no_bos.model"))
    without_bos = settings(tokenizer=tmp_path / "no_bos.model", bos=False)
    assert tokenize(texts_ja, tmp_path / "set", without_bos).counts.documents == 426


def children() -> list[int]:
    """Process ids of this process's spawned workers."""
    listed = Path(f"/proc/{os.getpid()}/task/{threading.main_thread().native_id}/children").read_text().split()
    return [int(pid) for pid in listed if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.timeout(60)
def test_a_killed_worker_is_an_error_and_the_next_run_is_clean(texts_ja, settings, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(reader, "BATCH_BYTES", 4000)
    monkeypatch.setattr(reader, "CHUNK_BYTES", 1000)
    killed: list[int] = []

    def kill_one_after_some_batches(source, *arguments, **words):
        for number, batch in enumerate(reader.read_batches(source, *arguments, **words)):
            if number == 9 and not killed:
                killed.append(children()[0])
                os.kill(killed[0], signal.SIGKILL)
            yield batch

    monkeypatch.setattr(token_progress, "read_batches", kill_one_after_some_batches)
    with pytest.raises(CorpusError, match=r"a worker process died.*texts_ja.jsonl:\d+, 2 workers"):
        tokenize(texts_ja, tmp_path / "set", settings(workers=2, engine="sentencepiece"))  # the native engine has threads
    assert killed and children() == []
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [".partial", ".parts"]
    assert tokenize(texts_ja, tmp_path / "set", settings(workers=1)).counts.documents == 426
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["manifest.json", "tokens.bin", "tokens.idx"]


def test_the_tools_run_from_anywhere(texts_ja, texts_en, tmp_path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def run(tool: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(REPOSITORY / "tools" / tool), *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    trained = run("train_tokenizer.py", texts_ja, texts_en, "tiny.model", "--vocab-size", "1500")
    assert trained.returncode == 0, trained.stderr
    done = run("tokenize_corpus.py", texts_ja, "set", "--tokenizer", "tiny.model", "--workers", "2", "--no-bos")
    assert done.returncode == 0, done.stderr
    assert "426 documents" in done.stdout and "tokens/s" in done.stderr
    assert load_token_set(tmp_path / "set").vocab_size == 1500
    failed = run("tokenize_corpus.py", "nothing", "set", "--tokenizer", "tiny.model")
    assert (failed.returncode, failed.stderr) == (2, "error: nothing does not exist\n")


def test_workers_end_when_the_parent_is_killed(texts_ja, tokenizer, tmp_path) -> None:
    # The parent reads from a pipe that never ends, so its workers are alive and waiting when it is killed.
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from megatron_jmed.corpus import token_progress, token_settings, tokens\n"
        "def endless(*_, **__):\n"
        "    from megatron_jmed.corpus.reader import RawBatch\n"
        "    while True:\n"
        "        time.sleep(0.02)\n"
        "        yield RawBatch('a.jsonl', 1, 'jsonl', b'{\"text\": \"x\"}', 0)\n"
        "if __name__ == '__main__':\n"
        "    token_progress.read_batches = endless\n"
        "    tokens.tokenize(sys.argv[1], sys.argv[2], token_settings.TokenizeSettings(\n"
        "        Path(sys.argv[3]), workers=2, progress=False, engine='sentencepiece'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    parent = subprocess.Popen([sys.executable, script, texts_ja, tmp_path / "set", tokenizer], env=environment)
    listing = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    deadline = time.monotonic() + 60
    bin_path = tmp_path / "set" / ".parts" / "tokens.bin"
    while not (bin_path.exists() and len(listing.read_text().split()) >= 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    workers = [int(pid) for pid in listing.read_text().split()]
    parent.kill()
    parent.wait()
    assert len(workers) >= 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/exe").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in workers)


def test_a_trained_tokenizer_is_of_the_llmjp_kind_and_deterministic(texts_ja, texts_en, tokenizer, tmp_path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    assert [processor.id_to_piece(i) for i in range(8)] == ["<unk>", "<s>", "</s>", *CONTROL_PIECES]
    assert all(processor.is_control(i) for i in range(1, 8)) and processor.is_byte(8) and processor.is_byte(263)
    assert len(processor) == 2000
    for text in ["  two  spaces\n\nand lines\t", "ｶﾞ①㍉ stays", "𠮷野家 <s> 👩‍⚕️"]:
        assert processor.decode(processor.encode(text)) == text
        assert 0 not in processor.encode(text) and 1 not in processor.encode(text)
    train_tokenizer([texts_ja, texts_en], tmp_path / "again.model", 2000)
    assert (tmp_path / "again.model").read_bytes() == tokenizer.read_bytes()

    train_tokenizer([texts_ja, texts_en], tmp_path / "again.model", 2000)  # the same file once more is no error
    with pytest.raises(CorpusError, match="already holds another model"):
        train_tokenizer(texts_ja, tmp_path / "again.model", 1500)


def test_a_vocabulary_the_texts_cannot_carry_is_refused(texts_ja, tmp_path) -> None:
    with pytest.raises(CorpusError, match="50000 pieces"):
        train_tokenizer(texts_ja, tmp_path / "m.model", 50_000)
    with pytest.raises(CorpusError, match="alone need 265"):
        train_tokenizer(texts_ja, tmp_path / "m.model", 100)


def test_real_llmjp_tokenizer_on_real_texts(shared_data, settings, tmp_path) -> None:
    model = shared_data / "tokenizer" / "llm-jp-tokenizer-100k.ver3.0b1.model"
    source = shared_data / "corpora" / "wac_ja.jsonl"
    manifest = tokenize(source, tmp_path / "set", settings(tokenizer=model))
    build_with_megatron(source, model, tmp_path / "reference")
    assert_same_files(tmp_path / "set", tmp_path / "reference")
    assert (manifest.details["dtype"], manifest.details["tokenizer"]["vocab_size"]) == ("int32", 99_574)
    assert load_manifest(tmp_path / "set").counts.documents == load_token_set(tmp_path / "set").num_documents > 1000
