"""The native core gives sentencepiece's ids for every text, says what it does not know, and steps aside when it is wrong."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import orjson
import pytest
import sentencepiece

native = pytest.importorskip("megatron_jmed.native")
if native._core is None:
    pytest.skip("the native core is not compiled: pip install -e . with a C++17 compiler", allow_module_level=True)

from random_texts import count_differing  # noqa: E402
from sentencepiece import sentencepiece_model_pb2  # noqa: E402

from megatron_jmed.corpus import tokenizer as tokenizer_module  # noqa: E402
from megatron_jmed.corpus.document import read_documents  # noqa: E402
from megatron_jmed.corpus.token_set import load_token_set  # noqa: E402
from megatron_jmed.corpus.token_settings import TokenizeSettings  # noqa: E402
from megatron_jmed.corpus.tokenizer import FAMILIES, Encoder  # noqa: E402
from megatron_jmed.corpus.tokens import tokenize  # noqa: E402
from megatron_jmed.errors import CorpusError  # noqa: E402
from megatron_jmed.native import NativeUnavailable, check_ids, load_unigram, sums_in_double  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = ("llm-jp-tokenizer-100k.ver3.0b1.model", "code10K_en20K_ja30K.ver2.2.model")


def split(ids: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def encoders(model: Path):
    return native._core.Unigram(model.read_bytes()), sentencepiece.SentencePieceProcessor(model_file=str(model))


# ---- the same ids


@pytest.mark.parametrize("name", MODELS)
def test_random_texts_have_sentencepieces_ids(name, shared_data) -> None:
    done, num_characters, differing = count_differing(shared_data / "tokenizer" / name, 10_000, seed=11)
    assert (done, [ascii(text) for text in differing]) == (10_000, []) and num_characters > 200_000


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("file", ["wac_ja.jsonl", "medquad_en.jsonl.gz", "jaquad_ja.jsonl.zst"])
def test_real_texts_have_sentencepieces_ids(name, file, shared_data) -> None:
    unigram, processor = encoders(shared_data / "tokenizer" / name)
    texts = [d.text for d, _ in zip(read_documents(shared_data / "corpora" / file), range(100), strict=False)]
    ids, lengths, characters = unigram.encode(texts)
    assert split(ids, lengths) == processor.encode(texts) and len(texts) > 10
    assert characters.tolist() == [len(text) for text in texts]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"add_dummy_prefix": False},
        {"byte_fallback": False},
        {"byte_fallback": False, "add_dummy_prefix": False},
        {"user_defined_symbols": ["患者", "<tag>", "aa", "a", "心電図所見", "\n", "😀"]},
        {"control_symbols": ["<cls>", "痛"], "split_digits": True, "allow_whitespace_only_pieces": True},
        {"unk_id": 5, "bos_id": 3, "eos_id": 1, "pad_id": 0, "vocab_size": 1500},
    ],
    ids=lambda changes: "-".join(changes) or "llmjp",
)
def test_models_of_many_settings(changes, train, example_texts) -> None:
    model = train(**changes)
    done, _, differing = count_differing(model, 3000, seed=5)
    assert (done, [ascii(text) for text in differing]) == (3000, [])
    unigram, processor = encoders(model)
    texts = [*example_texts, "aaa<tag>患者さんの心電図所見😀\n\n<cls>痛み", "𠮷" * 50, "x𠮷𠮷y"]
    ids, lengths, _ = unigram.encode(texts)
    assert split(ids, lengths) == processor.encode(texts)


def test_very_long_texts_pass_the_score_limit(train) -> None:
    unigram, processor = encoders(train())
    # Unknown characters cost more than 10 each: the sum passes 100,000 several times.
    texts = ["\ue000" * 40_000 + "患者の血圧は" * 3000, "急性心筋梗塞 " * 20_000, "a" * 100_000]
    ids, lengths, _ = unigram.encode(texts)
    assert split(ids, lengths) == processor.encode(texts)


TIES = {"byte_fallback": False, "user_defined_symbols": ["aa", "a", "blood "]}


@pytest.mark.parametrize("changes", [{}, TIES], ids=["llmjp", "ties"])
def test_kept_words_have_the_ids_of_a_new_search_at_any_sum(changes, train, example_texts) -> None:
    model = train(**changes)
    words = [word for text in example_texts for word in text.split() if word.isascii()][:300]
    texts = [" ".join(words * times) for times in (3, 30, 60)]
    texts += ["\ue000" * 8000 + " " + texts[1], " ".join(["aab" * 3] * 999)]
    for double in (False, True):
        kept = native._core.Unigram(model.read_bytes())
        for text in (*texts, *texts):
            alone = native._core.Unigram(model.read_bytes())
            assert split(*kept.encode([text], double_sums=double)[:2]) == split(*alone.encode([text], double_sums=double)[:2])
    assert split(*kept.encode(texts)[:2]) == sentencepiece.SentencePieceProcessor(model_file=str(model)).encode(texts)


def test_near_ties_in_returning_words_fall_as_the_sum_before_them_rounds(train, tmp_path) -> None:
    """Two ways through a word, 0.0001 apart: the better one wins while sums are small, the first one where they are not."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(train().read_bytes())
    for piece, score in (("\u2581ξ", -2.5), ("\u2581ξψ", -5.0), ("ζ", -3.0), ("ψζ", -5.5001), ("ξ", -9), ("ψ", -9)):
        proto.pieces.add(piece=piece, score=score)
    model = tmp_path / "ties.model"
    model.write_bytes(proto.SerializeToString())
    unigram, processor = encoders(model)
    text = "ξψζ " * 15_000
    found = split(*unigram.encode([text])[:2])[0]
    assert found == processor.encode(text)
    id_of = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    assert id_of["\u2581ξψ"] in found and id_of["ψζ"] in found, "both ways occur"


def test_the_double_family_differs_only_at_ties_and_long_texts(shared_data) -> None:
    """Against sentencepiece 0.2.1 itself it is compared in benchmarks/tokenizer.md; here it must not be the float one."""
    model = shared_data / "tokenizer" / MODELS[0]
    unigram, _ = encoders(model)
    texts = [d.text for d in read_documents(shared_data / "corpora" / "pubmedqa_en.jsonl.zst")]
    one, other = (split(*unigram.encode(texts, double_sums=double)[:2]) for double in (False, True))
    differing = sum(a != b for a, b in zip(one, other, strict=True))
    assert 0 < differing < len(texts) / 20


# ---- the interface


def test_special_ids_types_and_empty_texts(train) -> None:
    unigram, processor = encoders(train())
    texts = ["心臓", "", "肺", b"", "é".encode()]
    plain, lengths, characters = unigram.encode(texts)
    assert (plain.dtype, lengths.dtype, characters.dtype) == (np.int32, np.int32, np.int64)
    assert characters.tolist() == [2, 0, 1, 0, 1] and lengths.tolist()[1] == lengths.tolist()[3] == 0
    ids, lengths, _ = unigram.encode(texts, before=[1, 9], after=[2], uint16=True)
    wanted = [[1, 9, *part, 2] if part else [] for part in processor.encode(["心臓", "", "肺", "", "é"])]
    assert ids.dtype == np.uint16 and split(ids, lengths) == wanted
    ids, lengths, characters = unigram.encode([])
    assert len(ids) == len(lengths) == len(characters) == 0


def test_texts_that_cannot_be_encoded_are_named(train) -> None:
    unigram, _ = encoders(train())
    with pytest.raises(TypeError, match="text 1 is int, not str or bytes"):
        unigram.encode(["a", 5])
    with pytest.raises(ValueError, match="text 2 holds a lone surrogate"):
        unigram.encode(["a", "b", "c\ud800d"])


def test_other_threads_run_while_texts_are_encoded(train, example_texts) -> None:
    unigram, _ = encoders(train())
    texts = example_texts * 60
    thread = threading.Thread(target=unigram.encode, args=(texts,))
    thread.start()
    steps = 0
    while thread.is_alive():
        steps += 1
        time.sleep(0.001)
    assert steps > 10


def test_start_up_takes_less_than_a_second(shared_data) -> None:
    code = (
        "import time, sys; from pathlib import Path; from megatron_jmed.native import _core\n"
        "begin = time.process_time(); _core.Unigram(Path(sys.argv[1]).read_bytes()); print(time.process_time() - begin)"
    )
    command = [sys.executable, "-c", code, str(shared_data / "tokenizer" / MODELS[0])]
    seconds = float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert seconds < 1


# ---- stepping aside


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "bpe"}, "its model type is 2, not unigram"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises texts by the rules 'nmt_nfkc'"),
        ({"remove_extra_whitespaces": True}, "removes extra white space"),
        ({"treat_whitespace_as_suffix": True}, "puts the space after a word"),
    ],
)
def test_models_of_other_kinds_go_to_sentencepiece_and_it_is_said(changes, reason, train, tmp_path, capsys) -> None:
    model = train(**changes)
    source = tmp_path / "source.jsonl"
    source.write_bytes(orjson.dumps({"text": "心臓の 検査 １２"}))
    manifest = tokenize(source, tmp_path / "set", TokenizeSettings(tokenizer=model, progress=False))
    assert manifest.details["tokenizer"]["engine"] == "sentencepiece"
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1
    ids = np.fromfile(tmp_path / "set" / "tokens.bin", "<u2").tolist()
    assert ids == [1, *encoders_reference(model).encode("心臓の 検査 １２"), 2]
    with pytest.raises(CorpusError, match=f"--engine native: .*{reason}.*use --engine sentencepiece"):
        Encoder(model, True, True, engine="native")


def encoders_reference(model: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


def test_a_damaged_model_is_refused_not_half_read(train) -> None:
    data = train().read_bytes()
    for end in range(1, len(data), 997):
        try:
            unigram = native._core.Unigram(data[:end])
        except ValueError:
            continue
        assert unigram.num_pieces < 2000  # cut exactly between two pieces: fewer pieces, which the self-test then catches


def test_a_model_with_a_piece_twice_is_refused(train) -> None:
    proto = sentencepiece_model_pb2.ModelProto.FromString(train().read_bytes())
    proto.pieces.add(piece=proto.pieces[-1].piece, score=-1)
    with pytest.raises(ValueError, match="two of its pieces are the same"):
        native._core.Unigram(proto.SerializeToString())


def test_ids_that_differ_are_noticed_at_load(train) -> None:
    right, wrong = train(), train(vocab_size=1500)
    reference = encoders_reference(right)
    version = sentencepiece.__version__
    check_ids(native._core.Unigram(right.read_bytes()), reference.encode, version)
    with pytest.raises(NativeUnavailable, match="sentencepiece .* or others"):
        load_unigram(wrong, reference.encode, version)


def test_a_wrong_or_missing_core_falls_back(train, monkeypatch) -> None:
    model = train()
    monkeypatch.setattr(native, "PROBES", ("患者",))
    monkeypatch.setattr(native._core.Unigram, "encode", lambda *_, **__: (np.array([7]), np.array([1]), np.array([2])))
    encoder = Encoder(model, False, False)
    assert encoder.engine == "sentencepiece" and "gives 1 ids for '患者'" in encoder.fallback
    monkeypatch.setattr(native, "_core", None)
    monkeypatch.setattr(native, "_MISSING", "No module named _core", raising=False)
    encoder = Encoder(model, False, False)
    assert encoder.engine == "sentencepiece" and "not compiled" in encoder.fallback
    assert encoder.encode(["心臓"])[0].tolist() == encoders_reference(model).encode("心臓")


# ---- the whole tool


@pytest.mark.parametrize("workers", [1, 2])
def test_both_engines_write_the_same_files(workers, train, example_texts, tmp_path) -> None:
    model = train()
    source = tmp_path / "source.jsonl"
    records = [{"text": text, "lang": "ja", "source": f"s{i % 3}"} for i, text in enumerate(example_texts)]
    source.write_bytes(b"\n".join(map(orjson.dumps, [*records[:50], {"text": ""}, *records[50:]])) + b"\n")
    manifests = {}
    for engine in ("native", "sentencepiece"):
        settings = TokenizeSettings(tokenizer=model, engine=engine, workers=workers, progress=False)
        manifests[engine] = tokenize(source, tmp_path / engine, settings)
    one, other = manifests["native"], manifests["sentencepiece"]
    assert (one.files, one.counts, one.settings, one.inputs) == (other.files, other.counts, other.settings, other.inputs)
    for name in ("tokens.bin", "tokens.idx"):
        assert (tmp_path / "native" / name).read_bytes() == (tmp_path / "sentencepiece" / name).read_bytes()
    infos = [load_token_set(tmp_path / engine).tokenizer for engine in manifests]
    assert [info.engine for info in infos] == ["native", "sentencepiece"]
    assert [info.engine_version for info in infos] == [native.VERSION, sentencepiece.__version__]


def test_the_family_is_recorded_and_part_of_the_result(train, tmp_path) -> None:
    model = train()
    source = tmp_path / "source.jsonl"
    source.write_bytes(orjson.dumps({"text": "心臓"}))
    settings = {"tokenizer": model, "progress": False}
    tokenize(source, tmp_path / "set", TokenizeSettings(family="double", **settings))
    assert load_token_set(tmp_path / "set").tokenizer.family == FAMILIES["double"] == "sentencepiece<=0.2.1"
    with pytest.raises(CorpusError, match="family = 'sentencepiece<=0.2.1' there, 'sentencepiece>=0.2.2' now"):
        tokenize(source, tmp_path / "set", TokenizeSettings(**settings))
    with pytest.raises(CorpusError, match="need --engine native or such a version; sentencepiece .* is installed"):
        Encoder(model, True, True, engine="sentencepiece", family="double")
    with pytest.raises(CorpusError, match="--family triple is unknown; choose from float, double"):
        TokenizeSettings(family="triple", **settings)


def test_versions_and_families() -> None:
    found = [sums_in_double(version) for version in ("0.1.99", "0.2.0", "0.2.1", "0.2.2", "0.2.3", "0.3.0", "1.0", "0.2.2rc1")]
    assert found == [True, True, True, False, False, False, False, False]
    assert sums_in_double(tokenizer_module.sentencepiece.__version__) is False


def test_the_tool_passes_engine_and_family(train, tmp_path) -> None:
    source = tmp_path / "source.jsonl"
    source.write_bytes(orjson.dumps({"text": "心臓"}))
    command = [sys.executable, str(REPOSITORY / "tools/tokenize_corpus.py"), source, tmp_path / "set", "--tokenizer", train(),
               "--engine", "native", "--family", "double", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    info = load_token_set(tmp_path / "set").tokenizer
    assert (info.engine, info.family) == ("native", "sentencepiece<=0.2.1")


# ---- installation


def test_installation_survives_without_a_compiler(tmp_path) -> None:
    copy = tmp_path / "copy"
    (copy / "megatron_jmed").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "megatron_jmed/native", copy / "megatron_jmed/native", ignore=shutil.ignore_patterns("*.so"))
    for name in ("setup.py", "pyproject.toml", "megatron_jmed/__init__.py"):
        shutil.copy(REPOSITORY / name, copy / name)
    environment = {**os.environ, "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
    command = [sys.executable, "setup.py", "-q", "build"]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not list((copy / "build").rglob("_core*.so")) and list((copy / "build").rglob("native/__init__.py"))
