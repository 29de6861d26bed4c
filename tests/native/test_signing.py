"""The native core folds and signs texts exactly as corpus/minhash.py says it in Python, and Python does it alone without it."""

import random
import threading
import time

import numpy as np
import pytest
import xxhash

native = pytest.importorskip("megatron_jmed.native")
if not hasattr(native._core, "CodeMap"):
    pytest.skip("the native core is not compiled: pip install -e . with a C++17 compiler", allow_module_level=True)

from megatron_jmed.corpus import code_map, minhash  # noqa: E402
from megatron_jmed.corpus.document import read_documents  # noqa: E402
from megatron_jmed.corpus.minhash import MinHash, exact_key, normalised, unit_of, units_of  # noqa: E402

CORPORA = ["craft_pmc_en.parquet", "jaquad_ja.jsonl.zst", "jmed_llm_ja.jsonl.zst", "medquad_en.jsonl.gz",
           "openstax_nursing_en.jsonl.gz", "pubmedqa_en.jsonl.zst", "wac_ja.jsonl", "aozora_ja.jsonl.zst"]  # fmt: skip
RANGES = ((0, 0x250), (0x300, 0x370), (0x900, 0xE00), (0x1100, 0x1200), (0x3000, 0x3100), (0xAC00, 0xD7B0), (0xFB00, 0x10000),
          (0x1D100, 0x1D200), (0, 0xD800), (0x10000, 0x110000))  # fmt: skip


def folded(texts: list[str]) -> list[str]:
    return minhash._fold_map().map(texts, one_space=True)


def in_python(hasher: MinHash, texts: list[str], langs: list[str]) -> tuple[list[bytes], np.ndarray]:
    forms = [normalised(text) or text for text in texts]
    units = [units_of(form, unit_of(lang, form)) for form, lang in zip(forms, langs, strict=True)]
    return [exact_key(form) for form in forms], np.stack([hasher.signature(one) for one in units])


def random_texts(number: int, seed: int) -> list[str]:
    """Characters of one or two ranges, half of them such as join with others, with spaces of all kinds between."""
    draw = random.Random(seed)
    joining = sorted(code_map.joining_characters(code_map.all_characters())[0])
    texts = []
    for _ in range(number):
        ranges = draw.choices(RANGES, k=2)
        letters = [chr(draw.randrange(*draw.choice(ranges))) for _ in range(int(2 ** draw.uniform(0, 6)))]
        letters += draw.choices(joining, k=draw.randrange(len(letters) + 1)) + draw.choices(" \n\u3000\x1f\u00ad", k=2)
        draw.shuffle(letters)
        texts.append("".join(letter for letter in letters if not "\ud800" <= letter < "\ue000") or ".")
    return texts


# ---- the comparison form


def test_every_character_alone_and_between_others_is_folded_as_in_python():
    for before, after in (("", ""), ("a", "b"), ("か", "\u3099"), ("\u1112", "\u11ab")):
        for start in range(0, 0x110000, 2**14):
            texts = [before + chr(code) + after for code in range(start, start + 2**14)]
            assert folded(texts) == list(map(normalised, texts))


def test_pairs_around_joining_characters_are_folded_as_in_python():
    joining = sorted(code_map.joining_characters(code_map.all_characters())[0])
    assert {"\u0301", "\u3099", "\uff9e", "\u1161", "\u09be"} <= set(joining)
    draw = random.Random(0)
    others = [*joining[::7], *map(chr, draw.sample(range(0xD800), 150)), *"aeカはﾊ가\u1100 \u0344\ufb1d"]
    texts = [left + right for left in others for right in joining]
    texts += ["x" + right + left for left in others for right in joining]
    assert folded(texts) == list(map(normalised, texts))


def test_random_texts_are_folded_as_in_python():
    texts = random_texts(20_000, seed=1)
    assert folded(texts) == list(map(normalised, texts))


def test_long_runs_and_long_expansions_are_folded_as_in_python():
    texts = ["a" + "\u0301\u0323" * 5000 + "b", "\ufdfa" * 3000, "か\u3099" * 3000, "\u0301" * 100, " " * 999 + "ｶﾞ" * 999]
    assert folded(texts) == list(map(normalised, texts))


@pytest.mark.parametrize("name", CORPORA)
def test_real_texts_are_folded_as_in_python(shared_data, name):
    texts = [document.text for document in read_documents(shared_data / "corpora" / name)][::3]
    assert folded(texts) == list(map(normalised, texts))


def test_the_table_is_made_in_a_moment():
    minhash.normalised("warm")
    began = time.process_time()
    assert code_map.code_map(minhash._with_spaces) is not None
    assert time.process_time() - began < 1


def test_a_table_that_gives_something_else_is_not_used(monkeypatch):
    monkeypatch.setattr(code_map, "joining_characters", lambda characters: (set(), {0x0, 0x300}))
    assert code_map.code_map(minhash._with_spaces) is None


def test_tables_that_lead_nowhere_and_things_that_are_no_text_are_refused():
    table, none = np.arange(0x110000, dtype=np.uint32), np.zeros(0, np.uint32)
    core = native._core.CodeMap
    for entry in (0x110000, core.EXPANSION | 1 << core.OFFSET_BITS | 1):
        with pytest.raises(ValueError, match="nowhere|no code point"):
            core(np.where(table == 65, np.uint32(entry), table), none, str)
    with pytest.raises(ValueError, match="an entry for each code point"):
        core(table[1:], none, str)
    with pytest.raises(TypeError, match="text 1 is bytes, not str"):
        core(table, none, str).map(["a", b"b"])


def test_an_error_in_the_function_for_runs_is_raised():
    def broken(run: str) -> str:
        raise ZeroDivisionError(run)

    table = np.arange(0x110000, dtype=np.uint32)
    table[0x301] = native._core.CodeMap.JOINING
    with pytest.raises(ZeroDivisionError, match="e\u0301"):
        native._core.CodeMap(table, np.zeros(0, np.uint32), broken).map(["e\u0301"])


# ---- keys and signatures


@pytest.mark.parametrize("hasher", [MinHash(), MinHash(ngram=1, bands=3, rows=1), MinHash(ngram=13, bands=7, rows=9, seed=5)])
@pytest.mark.parametrize("vectors", native._core.Signer.vectors())
def test_random_texts_have_the_keys_and_signatures_of_python(monkeypatch, hasher, vectors):
    factors, summands = hasher._functions
    signer = native._core.Signer(hasher.ngram, factors.ravel(), summands.ravel(), minhash._in_words(), vectors)
    monkeypatch.setattr(minhash, "_signer", lambda _: signer)
    texts = [*random_texts(600, seed=2), "\u200b", " \u200b \u2060\n", "a b", "あ" * 2000 + " b", "a " * 1500 + "漢字" * 500]
    langs = [("ja", "en", "unknown", "zh-TW")[i % 4] for i in range(len(texts))]
    keys, signatures = hasher.sign(texts, langs)
    wanted_keys, wanted = in_python(hasher, texts, langs)
    assert keys == wanted_keys and signatures.dtype == wanted.dtype and np.array_equal(signatures, wanted)


@pytest.mark.parametrize("name", CORPORA)
def test_real_texts_have_the_keys_and_signatures_of_python(shared_data, name):
    documents = list(read_documents(shared_data / "corpora" / name))
    documents = documents[:: max(1, len(documents) // 40)]
    texts, langs = [d.text for d in documents], [d.lang for d in documents]
    keys, signatures = MinHash().sign(texts, langs)
    wanted_keys, wanted = in_python(MinHash(), texts, langs)
    assert keys == wanted_keys and np.array_equal(signatures, wanted)


@pytest.mark.parametrize("num_cjk", [198, 199, 200, 201])
@pytest.mark.parametrize("spaces", [" ", "   \n"])
def test_the_script_is_judged_by_the_first_two_thousand_characters(num_cjk, spaces):
    text = "  " + spaces.join(["語" * num_cjk, "x" * (1997 - num_cjk), "y語語語語語語語語"])
    keys, signatures = MinHash().sign([text], ["unknown"])
    wanted_keys, wanted = in_python(MinHash(), [text], ["unknown"])
    assert keys == wanted_keys and np.array_equal(signatures, wanted)


def test_words_are_those_of_pythons_re():
    text = "fièvre_38 — O'Neil's x²+y²=z² 患者 ١٢٣ ⅷ ① a\u0301b \U0001d7d8 नमस्ते _ ™"
    words = minhash.WORD.findall(normalised(text))
    assert len(units_of(normalised(text), "word")) == len(words)
    for word in words:
        assert units_of(word, "word")[0] in units_of(normalised(text), "word")


def test_without_the_core_everything_is_the_same(monkeypatch):
    texts, langs = ["患者は、発熱した。", "Fever and cough", "\u200b"], ["ja", "en", "unknown"]
    keys, signatures = MinHash().sign(texts, langs)
    monkeypatch.setattr(code_map, "_core", None)
    monkeypatch.setattr(minhash, "_fold_map", lambda: code_map.code_map(minhash._with_spaces))
    minhash._signer.cache_clear()
    try:
        assert minhash._signer(MinHash()) is None
        again_keys, again = MinHash().sign(texts, langs)
        assert MinHash().sign([], [])[1].shape == (0, 200)
    finally:
        minhash._signer.cache_clear()
    assert again_keys == keys and np.array_equal(again, signatures)
    assert keys[1] == xxhash.xxh3_128_digest(b"feverandcough")


def test_a_lone_surrogate_is_refused_with_its_place():
    with pytest.raises(ValueError, match="text 1 holds a lone surrogate"):
        MinHash().sign(["a", "\ud800"], ["ja", "ja"])
    with pytest.raises(ValueError, match="no vectors called mmx"):
        native._core.Signer(5, np.ones(1, np.uint32), np.ones(1, np.uint32), minhash._in_words(), "mmx")


def test_other_threads_run_while_texts_are_signed():
    texts = ["患者は発熱した。ｶﾞ" * 100] * 3000
    thread = threading.Thread(target=MinHash().sign, args=(texts, ["ja"] * len(texts)))
    thread.start()
    steps = 0
    while thread.is_alive():
        steps += 1
        time.sleep(0.001)
    assert steps > 5
