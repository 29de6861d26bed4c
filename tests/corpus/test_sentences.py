"""Sentences end where they end, nothing of a text is lost, and a set of sentences is what Megatron-Core would have written."""

import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
from megatron.core.datasets.utils import Split

from megatron_jmed.corpus import indexed, reader, sentences, token_encoding, token_progress
from megatron_jmed.corpus.datasheet import DescribeSettings, describe
from megatron_jmed.corpus.document import read_documents
from megatron_jmed.corpus.indexed import TokenWriter, read_index, read_whole_documents, write_index
from megatron_jmed.corpus.manifest import MANIFEST_NAME, load_manifest, sha256_file
from megatron_jmed.corpus.part_folders import PARTS
from megatron_jmed.corpus.sentences import load_splitter, split_english, split_japanese, split_sentences
from megatron_jmed.corpus.token_set import load_token_set
from megatron_jmed.corpus.token_shards import merge_token_shards
from megatron_jmed.corpus.tokenizer import build_encoder
from megatron_jmed.corpus.tokens import tokenize
from megatron_jmed.errors import CorpusError

REPOSITORY = Path(__file__).resolve().parents[2]

# ---- where sentences end; | marks it


@pytest.mark.parametrize(
    "marked",
    [
        "心臓は動く。|肺も動く！？|そうか。。。|終わり",
        "「痛い。とても。」と彼は言った。|次の日。",
        "『「はい。」と言え。』と彼は言った。|次。",
        "「彼は「はい。」と言った。」と聞いた。|次。",
        "（前略。）そして（図１．参照）始まる。|次。",
        "「はい。」|「いいえ。」|「そう。」と言う。",
        "「閉じない。|次の文。",
        "開かない。」）|次の文。",
        "「" + "長い。|" * 500 + "長い。」",
        "量は３．５ｍｇ、12.5mgである．|2010年に始まる．|終わり．",
        "1．心臓。|2．肺。|(3) 肝臓。|① 腎臓。|ア．正しい。|イ．誤り。|2.1．小節。",
        "である.|次は 3.5 mg である.",
        "https://a.jp/?x=1 を見よ。|本当!|次。",
        "一行目\n|二行目\r\n|\r\n|\u3000三行目。\n」|次",
        "｡|半角です｡|次",
    ],
)
def test_japanese(marked: str) -> None:
    assert split_japanese(marked.replace("|", "")) == [piece.strip() for piece in marked.split("|") if piece.strip()]


@pytest.mark.parametrize(
    "marked",
    [
        "The heart beats. |It is a pump! |Is it? |Yes.",
        "Dr. Smith and J. R. Jones saw it, e.g. at night, i.e. late, vs. Mr. White et al. Approx. 5 were ill. |The end.",
        "See Fig. 2 and Eq. 3 of Vol. 4, pp. 5 to 6, No. 7. |He said no. |The end.",
        "Take 12.5 mg b.i.d. with food. |Give 3.5 mg p.o. Daily doses differ, cf. Table 2. |Stop.",
        'He said "Stop!" |"Why?" |(Nobody knew.) |Then they left.',
        "A heading\n\n|A line that\nis wrapped. |Next.\n|- one\n|- two\n|1. First. |Second.\n|2. Third.",
        "Was it so? no, it was . . . not. |3 were.",
    ],
)
def test_english(marked: str) -> None:
    assert split_english(marked.replace("|", "")) == [piece.strip() for piece in marked.split("|") if piece.strip()]


def test_the_language_or_else_the_script_decides() -> None:
    japanese, english = "心臓。肺。", "Heart. Lung."
    for lang in ("ja", "unknown", "zh"):
        assert len(split_sentences(japanese, lang)) == 2
    for lang in ("en", "unknown", "de"):
        assert len(split_sentences(english, lang)) == 2
    assert split_sentences(japanese, "en") == [japanese]
    assert split_sentences(english, "ja") == [english]
    assert split_sentences("", "ja") == split_sentences(" \n", "en") == []


def without_loss(text: str, pieces: list[str]) -> bool:
    """Whether the pieces follow each other in the text with nothing but white space between and around them."""
    place = 0
    for piece in pieces:
        assert piece and piece == piece.strip()
        found = text.find(piece, place)
        if found < 0 or text[place:found].strip():
            return False
        place = found + len(piece)
    return not text[place:].strip()


def test_nothing_of_any_text_is_lost() -> None:
    choose = random.Random(5)
    characters = "。．！？!?.｡「」『』（）()【】“”\"' \n\r\t\u3000\u2028あア漢aA1１①,、-Dr\0\x1c𠮷é"
    for _ in range(20_000):
        text = "".join(choose.choices(characters, k=choose.randrange(60)))
        for lang in ("ja", "en", "unknown"):
            assert without_loss(text, split_sentences(text, lang)), repr(text)
    assert not without_loss("a b。c", ["a", "c"]), "the check can fail"


@pytest.mark.parametrize("text", ["「あ", "(^o^ ", "「（『【あ", "。 \n ", "\n ", "Dr. ", "1. ", ". ", '."', "「「あ」", " ", "a"])
def test_time_grows_with_the_text_only(text: str) -> None:
    for lang in ("ja", "en"):
        begin = time.process_time()
        assert without_loss(text * 100_000, split_sentences(text * 100_000, lang))
        assert time.process_time() - begin < 10, "seconds for some 100,000 characters; a square would take hours"


# ---- nltk


@pytest.fixture
def punkt(tmp_path_factory, monkeypatch) -> str:
    """A model that knows one abbreviation, trained and saved by nltk itself, where nltk looks for its English one."""
    nltk = pytest.importorskip("nltk", reason="nltk is not installed: pip install -e '.[nltk]'")
    from nltk.tokenize.punkt import PunktTrainer, save_punkt_params

    folder = tmp_path_factory.mktemp("nltk_data") / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(folder.parents[2])])  # nltk reads and writes nowhere else
    trainer = PunktTrainer("The tbl. is small. A tbl. of it. One tbl. and a tbl. for all. Each tbl. counts. He left. " * 20)
    save_punkt_params(trainer.get_params(), dir=str(folder))
    return nltk.__version__


def test_punkt_splits_english_and_is_recorded(punkt: str, write_lines, settings, tmp_path: Path) -> None:
    text = "Look at tbl. Two of them. He left."
    splitter = load_splitter("auto")
    assert splitter.split(text, "en") == ["Look at tbl. Two of them.", "He left."] != split_english(text)
    assert splitter.split("心臓。肺。", "ja") == ["心臓。", "肺。"]
    assert load_splitter("rules").split(text, "en") == split_english(text)
    manifest = tokenize(write_lines([{"text": text}]), tmp_path / "set", settings(split_sentences=True))
    recorded = manifest.settings["sentences"]
    assert (recorded["engine"], recorded["nltk"], manifest.details["num_sequences"]) == ("nltk", punkt, 2)
    assert len(recorded["punkt_sha256"]) == 64
    with pytest.raises(CorpusError, match="sentences = .*nltk.* there, .*rules.* now"):
        tokenize(tmp_path / "source.jsonl", tmp_path / "set", settings(split_sentences=True, sentence_engine="rules"))


def test_without_nltk_auto_means_our_rules(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    assert load_splitter("auto").record == {"engine": "rules", "rules": sentences.RULES_VERSION}
    with pytest.raises(CorpusError, match="--sentence-engine nltk: nltk is not installed; .* or use --sentence-engine rules"):
        load_splitter("nltk")


def test_nltk_without_data_is_named(punkt: str, monkeypatch) -> None:
    monkeypatch.setattr("nltk.data.path", [])
    assert load_splitter("auto").engine == "rules"
    with pytest.raises(CorpusError, match="its English punkt data are not installed"):
        load_splitter("nltk")


# ---- a set of sentences


@pytest.fixture
def split(settings):
    """Settings that split, by our rules."""
    return lambda **changes: settings(split_sentences=True, sentence_engine="rules", **changes)


@pytest.fixture
def source(texts_ja: Path, texts_en: Path, tmp_path: Path) -> Path:
    """Japanese and English texts in files, with bad records (one file has no other) and a document of two full stops."""
    folder = tmp_path / "source"
    folder.mkdir()
    lines = texts_ja.read_bytes().splitlines(keepends=True)
    (folder / "a.jsonl").write_bytes(b"{broken\n" + b"".join(lines[:200]))
    (folder / "b.jsonl.gz").write_bytes(texts_en.read_bytes())
    (folder / "bad.jsonl").write_bytes(b'{"text": ""}\n')
    (folder / "c.jsonl").write_bytes(b"".join(lines[200:]) + '{"text": "。\\n\\n。"}\n{"text": ""}\n'.encode())
    return folder


def build_with_megatron(source: Path, model: Path, prefix: Path, bos: bool = True, eos: bool = True) -> None:
    """Write the same set with Megatron-Core's own builder, sentence by sentence; bad lines are left out by hand."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(len(processor)))
    for document in read_documents(source):
        pieces = [ids for one in split_sentences(document.text, document.lang) if (ids := processor.encode(one))]
        pieces[0] = [1] * bos + pieces[0]
        pieces[-1] = pieces[-1] + [2] * eos
        for ids in pieces:
            builder.add_item(torch.tensor(ids))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")


def assert_same_files(folder: Path, prefix: Path) -> None:
    for suffix in (".bin", ".idx"):
        assert (folder / f"tokens{suffix}").read_bytes() == prefix.with_suffix(suffix).read_bytes()


@pytest.mark.parametrize("engine", ["auto", "sentencepiece"])
@pytest.mark.parametrize(("bos", "eos"), [(True, True), (True, False), (False, True), (False, False)])
def test_files_equal_megatrons(bos, eos, engine, texts_ja, tokenizer, split, tmp_path) -> None:
    manifest = tokenize(texts_ja, tmp_path / "set", split(bos=bos, eos=eos, engine=engine))
    build_with_megatron(texts_ja, tokenizer, tmp_path / "reference", bos, eos)
    assert_same_files(tmp_path / "set", tmp_path / "reference")
    assert manifest.details["sequences"] == "sentences" and manifest.details["num_sequences"] > 426
    assert manifest.counts.documents == 426 and manifest.files[1].rows == 426


def test_one_sequence_for_each_sentence(write_lines, split, tmp_path) -> None:
    records = [{"text": "心臓。\n\n 肺。"}, {"text": "A heart"}, {"text": " "}, {"text": "一。二。三。", "lang": "ja"}]
    tokenize(write_lines(records), tmp_path / "set", split())
    token_set = load_token_set(tmp_path / "set")
    assert (token_set.num_documents, token_set.num_sequences, token_set.is_sentences) == (3, 6, True)
    dataset = IndexedDataset(token_set.prefix)
    assert dataset.document_indices.tolist() == [0, 2, 3, 6]
    assert [int(ids[0]) == 1 for ids in dataset] == [True, False, True, True, False, False]
    assert [int(ids[-1]) == 2 for ids in dataset] == [False, True, True, False, False, True]
    assert token_set.manifest.counts.characters == len("".join(r["text"] for r in records).rstrip()) - 1
    assert token_set.manifest.counts.dropped == {"empty_text": 1}


def test_a_sentence_without_ids_is_no_sequence(texts_ja, split, write_lines, tmp_path) -> None:
    model = tmp_path / "erasing"
    texts = (d.text for d in read_documents(texts_ja))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_prefix=str(model), vocab_size=1500, normalization_rule_name="nmt_nfkc", minloglevel=2
    )
    records = [{"text": text, "lang": "ja"} for text in ("\u0001\n心臓\n\u0001\n肺\n\u0001", "\u0001\n\u0001", "肝臓")]
    manifest = tokenize(write_lines(records), tmp_path / "set", split(tokenizer=model.with_suffix(".model")))
    dataset = IndexedDataset(str(tmp_path / "set" / "tokens"))
    assert dataset.document_indices.tolist() == [0, 2, 3]
    assert [(int(ids[0]), int(ids[-1])) == (1, 2) for ids in dataset] == [False, False, True]
    assert (int(dataset[0][0]), int(dataset[1][-1])) == (1, 2)
    assert (manifest.counts.documents, manifest.counts.dropped) == (2, {"no_tokens": 1})


def test_megatrons_dataset_reads_it(texts_ja, split, tmp_path) -> None:
    tokenize(texts_ja, tmp_path, split())
    token_set = load_token_set(tmp_path)
    stand_in = type("Tokens", (), {"eod": -1, "pad": -1, "vocab_size": None, "unique_identifiers": {}})()
    config = GPTDatasetConfig(
        random_seed=1, sequence_length=64, split="1", tokenizer=stand_in, reset_position_ids=False, reset_attention_mask=False,
        eod_mask_loss=False, create_attention_mask=False, path_to_cache=str(tmp_path / "cache"),
    )
    low_level = GPTDataset.build_low_level_dataset(token_set.prefix, config)
    num_sequences = GPTDataset.numel_low_level_dataset(low_level)
    assert num_sequences == token_set.num_sequences
    dataset = GPTDataset(low_level, token_set.prefix, np.arange(num_sequences, dtype=np.int32), None, Split.train, config)
    assert len(dataset) == (token_set.num_tokens - 1) // 64
    read = np.concatenate([dataset[i]["tokens"].numpy() for i in range(len(dataset))])
    assert len(read) == 64 * len(dataset) and abs(int((read == 1).sum()) - 426) < 5


@pytest.mark.parametrize("num_shards", [2, 5])
def test_workers_and_shards_do_not_change_it(num_shards, source, split, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(reader, "BATCH_BYTES", 4000)
    monkeypatch.setattr(reader, "CHUNK_BYTES", 1000)
    whole = tokenize(source, tmp_path / "whole", split())
    if num_shards == 2:
        assert tokenize(source, tmp_path / "workers", split(workers=2)).files == whole.files
    for index in range(1, num_shards + 1):
        tokenize(source, tmp_path / "merged", split(), (index, num_shards))
    merged = merge_token_shards(tmp_path / "merged")
    assert merged.model_dump(exclude={"created"}) == whole.model_dump(exclude={"created"})
    assert hashes(tmp_path / "merged") == hashes(tmp_path / "whole")
    assert load_token_set(tmp_path / "merged").num_sequences == len(read_index(tmp_path / "whole" / "tokens.idx").lengths)


def test_splitting_runs_in_processes(split, settings) -> None:
    """Patterns hold the interpreter's lock, so threads would wait for each other."""
    for words, by_threads in ((split(workers=2), False), (settings(workers=2), True)):
        encoder = build_encoder(words.tokenizer, True, True, "auto", "float")
        with token_encoding._executor(words, encoder, lambda: "") as (pool, _):
            assert isinstance(pool, ThreadPoolExecutor) == (by_threads and encoder.engine == "native")


def test_shards_split_and_unsplit_do_not_mix(source, split, settings, tmp_path) -> None:
    tokenize(source, tmp_path / "t", split(), (1, 2))
    tokenize(source, tmp_path / "t", settings(), (2, 2))
    with pytest.raises(CorpusError, match="shard-2-of-2: settings .* differ"):
        merge_token_shards(tmp_path / "t")


def hashes(target: Path) -> dict[str, str]:
    files = [path for path in sorted(target.rglob("*")) if path.is_file() and path.name != MANIFEST_NAME]
    return {path.relative_to(target).as_posix(): sha256_file(path) for path in files}


class Killed(BaseException):
    """Stands for a kill: nothing that catches errors catches it."""


@pytest.mark.parametrize("num_batches", [1, 10, 60])
def test_goes_on_where_it_was(num_batches, source, split, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(reader, "BATCH_BYTES", 2000)
    monkeypatch.setattr(reader, "CHUNK_BYTES", 500)
    monkeypatch.setattr(token_progress, "SECONDS_BETWEEN_SAVES", 0)
    numbers = [0]

    def dying(*words, **more):
        for batch in reader.read_batches(*words, **more):
            numbers[0] += 1
            if numbers[0] > num_batches:
                raise Killed
            yield batch

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(token_progress, "read_batches", dying)
        tokenize(source, tmp_path / "t", split())
    for name in ("tokens.bin", "tokens.lengths", "tokens.ends"):
        with open(tmp_path / "t" / PARTS / name, "ab") as stream:
            stream.write(b"rubbish")
    resumed = tokenize(source, tmp_path / "t", split())
    assert "documents were tokenised by an earlier run" in capsys.readouterr().err
    whole = tokenize(source, tmp_path / "whole", split())
    assert resumed.model_dump(exclude={"created"}) == whole.model_dump(exclude={"created"})
    assert hashes(tmp_path / "t") == hashes(tmp_path / "whole")


# ---- the index


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_index_of_any_documents_equals_megatrons(dtype, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(indexed, "DOCUMENTS_PER_WRITE", 7)
    for num in (1, 6, 7, 8, 50):
        rng = np.random.default_rng(num)
        sizes = [rng.integers(1, 100, rng.integers(1, 5), dtype=np.int32) for _ in range(num)]
        builder = IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=getattr(np, dtype))
        writer = TokenWriter(tmp_path, "ours", np.dtype(dtype), num_sequences=0)
        for lengths in sizes:
            ids = rng.integers(0, 100, lengths.sum()).astype(dtype)
            builder.add_document(ids, lengths.tolist())
            writer.add(ids, lengths, np.array([len(lengths)]))
        builder.finalize(str(tmp_path / "m.idx"))
        files = writer.finish()
        for suffix in ("bin", "idx"):
            assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"m.{suffix}").read_bytes()
        assert [file.rows for file in files] == [num, num]
        # The same from pieces, one of them empty, as a merge has them.
        pieces = [sizes[:num // 2], [], sizes[num // 2 :]]
        lengths = [np.concatenate([np.empty(0, np.int32), *piece]) for piece in pieces]
        ends = [np.cumsum([len(one) for one in piece], dtype=np.int64) for piece in pieces]
        write_index(tmp_path / "pieces.idx", lengths, np.dtype(dtype), ends)
        assert (tmp_path / "pieces.idx").read_bytes() == (tmp_path / "m.idx").read_bytes()
        index = read_index(tmp_path / "ours.idx")
        assert np.diff(index.entries).tolist() == [len(lengths) for lengths in sizes]


def test_an_index_whose_documents_do_not_fit_is_refused(texts_ja, split, tmp_path) -> None:
    tokenize(texts_ja, tmp_path, split())
    path = tmp_path / "tokens.idx"
    data, index = path.read_bytes(), read_index(path)
    begin = 34 + 12 * len(index.lengths)
    for place, value in ((0, 1), (3, int(index.entries[2])), (426, len(index.lengths) - 1)):
        entries = np.array(index.entries)
        entries[place] = value
        path.write_bytes(data[:begin] + entries.tobytes())
        with pytest.raises(CorpusError, match="documents that do not hold its .* sequences .*: damaged"):
            load_token_set(tmp_path)
    path.write_bytes(data)
    manifest = (tmp_path / MANIFEST_NAME).read_text()
    number = len(index.lengths)
    (tmp_path / MANIFEST_NAME).write_text(manifest.replace(f'"num_sequences":{number}', '"num_sequences":7')
                                          .replace(f'"num_sequences": {number}', '"num_sequences": 7'))
    with pytest.raises(CorpusError, match=f"sequences: 7 found, {number} according to"):
        load_token_set(tmp_path)


# ---- who wants whole documents says so


def test_a_datasheet_is_refused(texts_ja, split, tokenizer, tmp_path) -> None:
    tokenize(texts_ja, tmp_path / "set", split())
    with pytest.raises(CorpusError, match="hold sentences.*tokenise without --split-sentences"):
        describe([tmp_path / "set"], tmp_path / "sheet", DescribeSettings(tokenizer, progress=False))
    with pytest.raises(CorpusError, match="sentences of 426 documents; this needs whole documents"):
        read_whole_documents(tmp_path / "set" / "tokens.idx")


def test_without_the_option_the_record_is_as_it_was(texts_ja, settings, tmp_path) -> None:
    manifest = tokenize(texts_ja, tmp_path, settings())
    assert "sentences" not in manifest.settings and sorted(manifest.details) == ["dtype", "tokenizer"]
    token_set = load_token_set(tmp_path)
    assert (token_set.is_sentences, token_set.num_sequences) == (False, 426)


def test_the_tool_splits(source, tokenizer, tmp_path) -> None:
    command = [sys.executable, REPOSITORY / "tools" / "tokenize_corpus.py", source, "set", "--tokenizer", tokenizer,
               "--workers", "2", "--split-sentences", "--sentence-engine", "rules"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    made = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0 and "836 documents" in made.stdout, made.stderr
    entries = read_index(tmp_path / "set" / "tokens.idx").entries.tolist()
    assert len(entries) == 837 and all(a < b for a, b in pairwise(entries))
    assert load_manifest(tmp_path / "set").settings["sentences"] == {"engine": "rules", "rules": sentences.RULES_VERSION}
