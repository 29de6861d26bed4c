"""The exact counts equal those of decoded text; the sampled measures give what a hand can work out."""

import dataclasses
import random
from collections import Counter

import numpy as np
import orjson
import pytest
import sentencepiece

from megatron_jmed.corpus import piece_counts, profile
from megatron_jmed.corpus.document import read_documents
from megatron_jmed.corpus.indexed import read_index
from megatron_jmed.corpus.measures import lexical_diversity, sentence_lengths, sentences
from megatron_jmed.corpus.piece_table import SCRIPTS, script_of
from megatron_jmed.corpus.profile import ProfileSettings, choose_documents, profile_token_set
from megatron_jmed.corpus.terms import Terms, load_terms, term_coverage
from megatron_jmed.corpus.tokens import tokenize
from megatron_jmed.errors import CorpusError

ODD_TEXTS = ["𠮟る😀 ①Ａｂ９", "\n\n改行\t空白　全角", "  two spaces", "ギリシャ αβγ кириллица 한국어",
             "ﾊﾝｶｸ・ー々〆〇", "é à ñ 10.5%", "。"]


def script_counts(text: str) -> Counter:
    return Counter(SCRIPTS[script_of(character)] for character in text)


def test_scripts_of_characters():
    named = {"kanji": "漢々𠮟〇", "hiragana": "あっ", "katakana": "アーｱ", "latin": "aZéＡ", "digits": "0９", "space": " 　\n\t",
             "punctuation": "。・!＋%", "other": "α한я\x01"}
    for name, characters in named.items():
        assert {SCRIPTS[script_of(character)] for character in characters} == {name}, name


@pytest.fixture
def odd_set(write_lines, settings, tmp_path, texts_ja):
    """A token set of odd and of ordinary texts, and the ordinary way to its numbers: decode every document."""
    texts = [*ODD_TEXTS, *(document.text for document in read_documents(texts_ja))][:120]
    source = write_lines([{"text": text, "lang": "ja"} for text in texts])
    tokenize(source, tmp_path / "set", settings())
    return tmp_path / "set" / "tokens.bin"


def decoded(bin_path, tokenizer) -> list[str]:
    lengths = read_index(bin_path.with_suffix(".idx")).lengths
    tokens = np.fromfile(bin_path, read_index(bin_path.with_suffix(".idx")).dtype)
    parts = np.split(tokens, np.cumsum(lengths)[:-1])
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    return [processor.decode(part.tolist()) for part in parts]


@pytest.mark.parametrize("chunk_tokens", [1, 50, 2**21])
def test_counts_equal_those_of_decoded_text(odd_set, tokenizer, monkeypatch, chunk_tokens):
    monkeypatch.setattr(piece_counts, "CHUNK_TOKENS", chunk_tokens)
    texts = decoded(odd_set, tokenizer)
    groups = np.arange(len(texts), dtype=np.int16) % 3
    found = profile_token_set(odd_set, tokenizer, groups, ["ja", "ja", "en"], Terms(), ProfileSettings())
    for group, one in enumerate(found):
        mine = texts[group::3]
        whole = script_counts("".join(mine))
        assert one["characters"] == sum(map(len, mine))
        assert one["utf8_bytes"] == sum(len(text.encode()) for text in mine)
        assert {name: count for name, count in one["scripts"].items() if count} == dict(whole)
        assert one["characters_of_documents"]["max"] == max(map(len, mine))
        assert one["special_tokens"] == 2 * len(mine)
        assert sum(one["histogram_characters"]) == one["documents"] == len(mine)


def test_counts_with_a_real_tokenizer(shared_data, write_lines, settings, tmp_path):
    model = shared_data / "tokenizer" / "llm-jp-tokenizer-100k.ver3.0b1.model"
    generator = random.Random(5)
    ranges = [(0x20, 0x7F), (0xA1, 0x500), (0x3041, 0x30FF), (0x4E00, 0x9FFF), (0x1F300, 0x1F600), (0x20000, 0x20100)]
    noise = ["x" + "".join(chr(generator.randrange(*generator.choice(ranges))) for _ in range(60)) for _ in range(200)]
    tokenize(write_lines([{"text": text} for text in [*ODD_TEXTS, *noise]]), tmp_path / "set", settings(tokenizer=model))
    bin_path = tmp_path / "set" / "tokens.bin"
    texts = decoded(bin_path, model)
    found = profile_token_set(bin_path, model, np.zeros(len(texts), np.int16), ["ja"], Terms(), ProfileSettings())[0]
    assert found["characters"] == sum(map(len, texts))
    assert {name: count for name, count in found["scripts"].items() if count} == dict(script_counts("".join(texts)))
    assert found["byte_tokens"] > 0


def test_repeated_documents_and_ids_beyond_the_tokenizer(write_lines, settings, tokenizer, tmp_path):
    tokenize(write_lines([{"text": t} for t in ("一つ。", "二つ。", "一つ。", "一つ。")]), tmp_path / "set", settings())
    bin_path = tmp_path / "set" / "tokens.bin"
    one = profile_token_set(bin_path, tokenizer, np.zeros(4, np.int16), ["ja"], Terms(), ProfileSettings())[0]
    assert one["repeated_documents"] == 2
    ids = np.fromfile(bin_path, "<u2")
    ids[0] = 5000
    ids.tofile(bin_path)
    with pytest.raises(CorpusError, match="id 5000, the tokenizer has 2000"):
        profile_token_set(bin_path, tokenizer, np.zeros(4, np.int16), ["ja"], Terms(), ProfileSettings())


def test_the_sample_is_seeded_even_and_does_not_depend_on_blocks(monkeypatch):
    documents = np.arange(20_000)
    chosen = choose_documents(documents, 1, 2000)
    assert len(set(chosen.tolist())) == 2000 and chosen.tolist() != choose_documents(documents, 2, 2000).tolist()
    tenths = np.bincount(chosen // 2000)
    assert tenths.min() > 150 and tenths.max() < 250
    monkeypatch.setattr(profile, "HASH_BLOCK_DOCUMENTS", 777)
    assert choose_documents(documents, 1, 2000).tolist() == chosen.tolist()
    assert sorted(choose_documents(documents[:5], 1, 9).tolist()) == [0, 1, 2, 3, 4]


def test_lexical_diversity_by_hand():
    assert lexical_diversity(list("abcd"), 2) == {"pieces": 4, "ttr": 1.0, "mattr": 1.0, "mtld": 4.0}
    found = lexical_diversity(["a"] * 10, 5)
    assert (found["ttr"], found["mattr"], found["mtld"]) == (0.1, 0.2, 2.0)
    assert lexical_diversity(list("aab"), 2)["mattr"] == 0.75
    assert lexical_diversity(["a"], 5) == {"pieces": 1, "ttr": 1.0, "mattr": None, "mtld": None}
    assert lexical_diversity([], 5)["ttr"] is None


def test_sentences():
    assert sentences("熱がある。「痛い！」と言う。\n項目\n体温は３７．５度．次の日．", True) == [
        "熱がある。", "「痛い！」", "と言う。", "項目", "体温は３７．５度．", "次の日．"]
    assert sentences('It is 37.5 now. "Pain!" Yes?\nwrapped line\n\nNext -- ... 5', False) == [
        "It is 37.5 now.", '"Pain!"', "Yes?", "wrapped line", "Next -- ...", "5"]
    found = sentence_lengths(["One two. Three four five six.", "..."], False)
    assert (found["sentences"], found["words"]["max"], found["characters"]["min"]) == (2, 4, 8)
    assert sentence_lengths(["熱。"], True)["words"] == {}


def test_terms():
    texts = ["Fever fever FEVERS feverish. X-ray of heart  failure.", "no"]
    english = term_coverage(texts, ["fever", "x-ray", "heart failure"], False)
    assert dict(english["most_common"]) == {"fever": 3, "x-ray": 1, "heart failure": 1}
    assert (english["found"], english["documents_share"], english["occurrences"]) == (3, 0.5, 5)
    japanese = term_coverage(["糖尿病と糖尿。"], ["糖尿", "糖尿病", "肺炎"], True)
    assert dict(japanese["most_common"]) == {"糖尿": 2, "糖尿病": 1} and japanese["listed"] == 3


def test_the_list_of_terms(texts_ja, tmp_path):
    terms = load_terms(texts_ja.parent / "medical_terms.txt").by_lang
    assert set(terms) == {"ja", "en"} and min(map(len, terms.values())) >= 150
    for text, problem in (("en fever\n", "TAB"), ("en\tfever\nen\tFever\n", "twice"), ("# nothing\n", "no term")):
        (tmp_path / "terms.txt").write_text(text)
        with pytest.raises(CorpusError, match=problem):
            load_terms(tmp_path / "terms.txt")


def test_settings_that_are_too_small():
    with pytest.raises(CorpusError, match="sample_tokens"):
        dataclasses.replace(ProfileSettings(), sample_tokens=0)
    assert orjson.dumps(dataclasses.asdict(ProfileSettings()))
