"""A Hugging Face tokenizer gives the tokenizers library's ids, with this project's <s> and </s> around documents."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from megatron_jmed.convert.tokenizer import write_tokenizer
from megatron_jmed.corpus.document import read_documents
from megatron_jmed.corpus.indexed import read_index
from megatron_jmed.corpus.token_set import load_token_set
from megatron_jmed.corpus.tokenizer import build_encoder
from megatron_jmed.corpus.tokens import tokenize
from megatron_jmed.errors import CorpusError


@pytest.fixture
def bpe(texts_en: Path, tmp_path: Path) -> Path:
    """A byte-level BPE with special tokens, that truncates, pads and adds [CLS] if it is let."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<pad>", "<|begin|>", "<|end|>", "[CLS]"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator((d.text for d in read_documents(texts_en)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 3)])
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    folder = tmp_path / "bpe"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    words = {"bos_token": {"content": "<|begin|>", "special": True}, "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder


def token_file(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    index = read_index(folder / "tokens.idx")
    return np.fromfile(folder / "tokens.bin", index.dtype), index.lengths


@pytest.mark.parametrize("workers", [1, 2])
def test_ids_are_the_librarys_without_its_additions(workers, bpe, texts_en, settings, tmp_path) -> None:
    plain = Tokenizer.from_file(str(bpe / "tokenizer.json"))
    plain.no_truncation()
    plain.no_padding()
    expected = [[1, *plain.encode(d.text, add_special_tokens=False).ids, 2] for d in read_documents(texts_en)]
    manifest = tokenize(texts_en, tmp_path / "out", settings(tokenizer=bpe, workers=workers))
    tokens, lengths = token_file(tmp_path / "out")
    assert tokens.tolist() == [id_ for ids in expected for id_ in ids] and lengths.tolist() == list(map(len, expected))
    assert max(lengths) > 64
    info = load_token_set(tmp_path / "out").tokenizer
    assert (info.engine, info.bos_id, info.eos_id, info.vocab_size) == ("huggingface", 1, 2, plain.get_vocab_size())
    assert manifest.settings["family"] == "tokenizers"


def test_a_converted_sentencepiece_model_gives_its_ids(tokenizer, texts_ja, settings, tmp_path) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    write_tokenizer(tokenizer, folder)
    for source_tokenizer, target in ((tokenizer, "sp"), (folder / "tokenizer.json", "by_hf")):
        tokenize(texts_ja, tmp_path / target, settings(tokenizer=source_tokenizer))
    assert (tmp_path / "sp/tokens.bin").read_bytes() == (tmp_path / "by_hf/tokens.bin").read_bytes()
    assert (tmp_path / "sp/tokens.idx").read_bytes() == (tmp_path / "by_hf/tokens.idx").read_bytes()


def test_what_is_missing_or_damaged_is_said(bpe, tmp_path) -> None:
    (bpe / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    for bos, eos, named in ((True, False, "bos_token"), (False, True, "eos_token")):
        with pytest.raises(CorpusError, match=f"no {named} that it knows.*--no-{named[:3]}"):
            build_encoder(bpe, bos, eos)
    assert build_encoder(bpe, False, False).encode(["", "a"])[1].tolist() == [0, 1]
    (bpe / "tokenizer_config.json").write_text("{")
    with pytest.raises(CorpusError, match=r"tokenizer_config\.json is not JSON"):
        build_encoder(bpe, False, False)
    with pytest.raises(CorpusError, match="--engine and --family are for SentencePiece"):
        build_encoder(bpe, False, False, engine="native")
    (bpe / "tokenizer.json").write_text("{}")
    with pytest.raises(CorpusError, match="is not one of the tokenizers library"):
        build_encoder(bpe, False, False)
    with pytest.raises(CorpusError, match=r"gone\.json does not exist"):
        build_encoder(tmp_path / "gone.json", False, False)
