"""A Hugging Face config becomes our words and back without loss, and what cannot be converted is refused by name; the
tokenizer files that we write give sentencepiece's ids."""

import itertools
import json
import re
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from megatron_jmed.config import recipe_config
from megatron_jmed.convert import hf
from megatron_jmed.convert.hf_config import hf_config, model_from_hf_config
from megatron_jmed.convert.tokenizer import special_token_ids, write_tokenizer
from megatron_jmed.convert.weights import export_hf, import_hf
from megatron_jmed.corpus.document import read_documents
from megatron_jmed.errors import CheckpointError, CorpusError


def test_config_of_transformers_becomes_our_words(mixtral):
    model = model_from_hf_config(mixtral)
    others = {"vocab_divisor", "tied_embeddings", "z_loss_coeff", "mcore", "lora_rank", "lora_alpha", "lora_targets"}
    assert model.model_dump(exclude=others) == {
        "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 8,
        "ffn_hidden_size": 48, "num_experts": 4, "router_topk": 2, "vocab_size": 300, "max_position_embeddings": 256,
        "rotary_base": 500.0, "layernorm_epsilon": 1e-4, "init_method_std": 0.2, "aux_loss_coeff": 0.03,
    }


def test_config_in_the_words_of_transformers_4_is_read_alike(mixtral, change_words):
    folder = change_words(rope_parameters=..., rope_theta=500.0, rope_scaling=None, torch_dtype="float32", dtype=...)
    assert model_from_hf_config(folder) == model_from_hf_config(mixtral)


def test_absent_head_size_and_key_heads_follow_from_the_others(change_words):
    model = model_from_hf_config(change_words(head_dim=None, num_key_value_heads=None))
    assert (model.kv_channels, model.num_query_groups) == (8, 4)


@pytest.mark.parametrize("name", ["llmjp_8x13b", "tiny"])
def test_written_config_is_read_back_equal_by_us_and_understood_by_transformers(name, tmp_path):
    model = recipe_config(name).model
    (tmp_path / "config.json").write_text(json.dumps(hf_config(model, torch.bfloat16, special_token_ids(None), {})))
    assert model_from_hf_config(tmp_path) == model
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "MixtralConfig"
    assert theirs.rope_parameters["rope_theta"] == model.rotary_base
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.tie_word_embeddings) == (1, 2, False)
    assert (theirs.head_dim, theirs.num_key_value_heads) == (model.kv_channels, model.num_query_groups)
    assert theirs.dtype == torch.bfloat16


@pytest.mark.parametrize(("words", "said"), [
    ({"sliding_window": 4096}, "sliding_window=4096"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ({"model_type": "qwen3_moe"}, "model_type='qwen3_moe'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ({"quantization_config": {"bits": 4}}, "quantization_config="),
    ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
    ({"router_jitter_noise": 0.1}, "router_jitter_noise=0.1"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling"),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0}}, "rope scaling"),
    ({"rope_parameters": ...}, "rope_theta is missing"),
    ({"num_local_experts": ...}, "num_local_experts is missing"),
])
def test_what_cannot_be_converted_is_refused_by_name(words, said, change_words):
    folder = change_words(**words)
    with pytest.raises(CheckpointError, match=re.escape(str(folder / "config.json"))) as error:
        model_from_hf_config(folder)
    assert said in str(error.value)


@pytest.mark.parametrize(("words", "said"), [
    ({"hidden_size": "wide"}, "hidden_size='wide' (must be a whole number above 0)"),
    ({"num_attention_heads": 0}, "num_attention_heads=0 (must be a whole number above 0)"),
    ({"num_key_value_heads": -1}, "num_key_value_heads=-1 (must"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps='small' (must be a number above 0)"),
])
def test_a_word_of_another_kind_is_refused_by_name(words, said, change_words):
    with pytest.raises(CheckpointError) as error:
        model_from_hf_config(change_words(**words))
    assert said in str(error.value)


def test_everything_that_cannot_be_converted_is_named_at_once(change_words):
    with pytest.raises(CheckpointError) as error:
        model_from_hf_config(change_words(sliding_window=1, hidden_act="gelu", vocab_size=...))
    assert all(word in str(error.value) for word in ("sliding_window=1", "hidden_act='gelu'", "vocab_size is missing"))


@pytest.mark.parametrize(("text", "said"), [(None, "no such file"), ("{", "not JSON")])
def test_missing_or_broken_config_is_refused(text, said, tmp_path):
    if text:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        model_from_hf_config(tmp_path)


# ---- shards


def test_shards_hold_at_most_their_size_and_all_tensors(mixtral, tmp_path, monkeypatch):
    import_hf(mixtral, tmp_path / "checkpoint")
    monkeypatch.setattr(hf, "MAX_SHARD_BYTES", 40_000)
    export_hf(tmp_path / "checkpoint", tmp_path / "hf")
    index = json.loads((tmp_path / "hf" / hf.INDEX_NAME).read_text())
    files = {path.name: load_file(path) for path in (tmp_path / "hf").glob("*.safetensors")}
    theirs = load_file(mixtral / "model.safetensors")
    assert len(files) > 4 and set(files) == set(index["weight_map"].values())
    assert sum(tensor.numel() * 4 for tensor in theirs.values()) == index["metadata"]["total_size"]
    for name, tensors in files.items():
        assert sum(tensor.numel() * 4 for tensor in tensors.values()) <= 40_000
        assert all(index["weight_map"][key] == name for key in tensors)
    ours = {key: tensor for tensors in files.values() for key, tensor in tensors.items()}
    assert set(ours) == set(theirs) and all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())


# ---- the tokenizer


INVENTED = [
    "発熱と咳が三日続いた。", "血圧は120/80mmHg、脈拍72であった。",
    "  二つの  空白", "行の\n終わり\n\nと段落", "タブ\tと全角　空白",
    "終わりの空白 ", " ", "   ", "\n", "絵文字🩺と🧑‍⚕️と👍🏽", "稀な字𠮷𩸽龘と結合文字か\u3099", "Ａ１２ｶﾅ①㌔", "a", "。",
    "The patient  was given 5 mg twice daily.", "naïve façade, µg and ≥ 37.5 °C", "Привет, мир", "العربية", "x" * 300,
    "mask <MASK0> is a word", "０．５㎎", "\u200bzero width", "a\r\nb", "\ufeffbom",
]


@pytest.fixture(scope="module")
def made(token_folder, tmp_path_factory):
    """(AutoTokenizer of the written files, sentencepiece's processor), for the tokenizer of the example texts."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(token_folder / "tokenizer.model", folder)
    words = hf_config(recipe_config("tiny").model, torch.float32, special_token_ids(None), {})
    (folder / "config.json").write_text(json.dumps(words))
    return AutoTokenizer.from_pretrained(folder), load(folder / "tokenizer.model")


def load(path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def example_texts(num: int) -> list[str]:
    data = Path(__file__).parents[2] / "examples/data"
    texts = [document.text for name in ("texts_ja.jsonl", "texts_en.jsonl.gz") for document in read_documents(data / name)]
    return texts[:: len(texts) // num][:num]


@pytest.mark.parametrize("text", INVENTED, ids=[f"{text[:12]!r}" for text in INVENTED])
def test_auto_tokenizer_gives_sentencepieces_ids_after_a_beginning(text, made):
    fast, processor = made
    assert fast(text)["input_ids"] == [1, *processor.encode(text)]


def test_auto_tokenizer_gives_sentencepieces_ids_on_the_example_texts(made):
    fast, processor = made
    texts = example_texts(180)
    assert len(texts) == 180
    assert fast(texts)["input_ids"] == [[1, *ids] for ids in processor.encode(texts)]


@pytest.mark.parametrize("text", [text for text in INVENTED if text.strip(" ")])
def test_decoding_gives_the_text_back(text, made):
    fast, _ = made
    assert fast.decode(fast(text)["input_ids"], skip_special_tokens=True) == text


def test_special_tokens_have_their_roles(made):
    fast, processor = made
    assert (fast.unk_token_id, fast.bos_token_id, fast.eos_token_id, fast.pad_token_id) == (0, 1, 2, processor.PieceToId("<PAD>"))
    assert len(fast) == len(processor) == 2000


def test_special_ids_are_those_of_the_tokenizer_or_llmjps(token_folder):
    assert special_token_ids(token_folder / "tokenizer.model") == special_token_ids(None)
    assert special_token_ids(None) == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 4}


@pytest.mark.parametrize(("content", "said"), [(None, "does not exist"), (b"\x00broken", "not a SentencePiece model")])
def test_missing_or_broken_tokenizer_is_refused(content, said, tmp_path):
    path = tmp_path / "x.model"
    if content:
        path.write_bytes(content)
    with pytest.raises(CorpusError, match=said):
        write_tokenizer(path, tmp_path)


@pytest.mark.parametrize("setting", [{"add_dummy_prefix": False}, {"normalization_rule_name": "nmt_nfkc"},
                                     {"remove_extra_whitespaces": True}])
def test_tokenizer_that_could_only_be_written_wrongly_is_refused(setting, tmp_path):
    words = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False} | setting
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(example_texts(60)), model_prefix=str(tmp_path / "other"), vocab_size=900,
        hard_vocab_limit=False, byte_fallback=True, minloglevel=2, **words)
    with pytest.raises(CheckpointError, match="would give other ids"):
        write_tokenizer(tmp_path / "other.model", tmp_path)


# ---- LLM-jp's tokenizer on real text


@pytest.fixture(scope="module")
def llmjp(shared_data, tmp_path_factory):
    path = shared_data / "tokenizer/llm-jp-tokenizer-100k.ver3.0b1.model"
    if not path.is_file():
        pytest.skip(f"LLM-jp's tokenizer is not at {path}")
    folder = tmp_path_factory.mktemp("llmjp")
    ids = write_tokenizer(path, folder)
    assert ids == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 4}
    return AutoTokenizer.from_pretrained(folder), load(path)


@pytest.mark.parametrize("name", ["jaquad_ja.jsonl.zst", "medquad_en.jsonl.gz"])
def test_llmjp_tokenizer_agrees_on_99_of_100_real_documents(name, llmjp, shared_data):
    texts = [document.text for document in itertools.islice(read_documents(shared_data / "corpora" / name), 0, None, 40)]
    fast, processor = llmjp
    assert len(texts) > 100
    equal = sum(ids == [1, *theirs] for ids, theirs in zip(fast(texts)["input_ids"], processor.encode(texts), strict=True))
    assert equal / len(texts) >= 0.99, f"{equal} of {len(texts)} documents get equal ids"
