"""No text in which a question would be found is screened out, and most others are."""

import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest

native = pytest.importorskip("megatron_jmed.native")
if not hasattr(native._core, "Screen"):
    pytest.skip("the native core is not compiled: pip install -e . with a C++17 compiler", allow_module_level=True)

from test_signing import CORPORA, random_texts  # noqa: E402

from megatron_jmed.corpus import exam_index  # noqa: E402
from megatron_jmed.corpus.code_map import all_characters  # noqa: E402
from megatron_jmed.corpus.document import read_documents  # noqa: E402
from megatron_jmed.corpus.exam_index import ExamIndex  # noqa: E402
from megatron_jmed.corpus.exam_question import Hit, Rule  # noqa: E402
from megatron_jmed.corpus.exam_texts import ExamText, exam_texts  # noqa: E402
from megatron_jmed.corpus.symbols import symbol_codes, symbol_map  # noqa: E402

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from decontamination import FORMS, planted  # noqa: E402

LETTERS = {"characters": "あいうえおかきくけこ心肺ガ一二", "words": "abcdefghij"}


def without_screen(index: ExamIndex, text: str) -> list[Hit]:
    screen, index._screen = index._screen, None
    try:
        return index.find(text)
    finally:
        index._screen = screen


def parts(codes: str) -> list[str]:
    """Symbols, and where words end; how many characters between two words are left out does not matter."""
    return [part for part in codes.split("\0") if part]


def sure_and_same(texts: list[str]) -> list[bool]:
    """Whether the core is sure of each text; then it must have Python's symbols."""
    mapped = symbol_map().map(texts)
    for text, found in zip(texts, mapped, strict=True):
        if found is not None:
            wanted = symbol_codes(text).astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
            assert parts(found) == parts(wanted), ascii(text)
    return [found is not None for found in mapped]


# ---- symbols


@pytest.mark.parametrize("beside", ["", "㎎"])
def test_every_character_is_the_symbol_that_python_has_or_unsure(beside):
    # The second one needs its neighbours, so that the text goes the other way in Python.
    characters = all_characters()
    sure = sure_and_same([character + beside for character in characters])
    assert not all(sure) and sum(sure) > len(characters) - 500
    # What is unsure is rare: Hangul by halves (half-width ones too), some Indic vowels, sigma.
    unsure = "".join(character for character, ok in zip(characters, sure, strict=True) if not ok)
    assert not re.search("[\0-\u0390\u3000-\u312f\u3190-\udfff\uff00-\uff9f]", unsure)


def test_random_texts_have_the_symbols_of_python_or_are_unsure():
    sure = sure_and_same(random_texts(20_000, seed=4))
    assert 1000 < sum(sure) < 20_000


def test_a_capital_sigma_is_not_screened():
    index = ExamIndex([ExamText("q", "original", "心電図でΣが上がるのはどれか心電図で何が", ("右", "左"))])
    assert index.may_hold(["ΟΔΟΣ", "sinus", "ΟΔΟσ"]).tolist() == [True, False, False]


# ---- texts


@pytest.mark.parametrize("kind", ["characters", "words"])
@pytest.mark.parametrize("seed", range(6))
def test_invented_questions_are_never_screened_out(kind, seed):
    """Questions over few letters, so that parts of many stand everywhere, and rules of many kinds."""
    draw = random.Random(seed)
    joint = " " if kind == "words" else ""

    def some(least: int, most: int) -> str:
        return joint.join(draw.choices(LETTERS[kind], k=draw.randrange(least, most)))

    questions = [
        ExamText(f"{i}", "original", some(4, 40), tuple(some(1, 9) for _ in range(draw.randrange(6)))) for i in range(60)
    ]
    n, coverage, long_stem = draw.choice([2, 3, 4]), draw.choice([0.5, 0.6, 0.8]), draw.choice([10, 20])
    rule = Rule(n, coverage, long_stem, draw.choice([5, 10]), draw.choice([1, 5]))
    index = ExamIndex(questions, {"characters": rule, "words": rule})
    found = passed = 0
    for number in range(600):
        question = draw.choice(questions)
        pieces = [question.stem, *question.choices]
        draw.shuffle(pieces)
        text = "。 ".join(part[: draw.randrange(len(part) // 2, len(part) + 1)] for part in pieces if draw.random() < 0.9)
        text = some(0, 60) + "、 " + (text if number % 3 else "") + " " + some(0, 60)
        hits, may_hold = without_screen(index, text), bool(index.may_hold([text])[0])
        assert may_hold or not hits
        found, passed = found + bool(hits), passed + may_hold
    assert 0 < found <= passed < 600


def test_the_count_that_a_verdict_needs_changes_no_finding(shared_data):
    """The larger number, with the choices' share, against the stem's alone."""
    texts = exam_texts(shared_data / "exams")[::5]
    index, loose = ExamIndex(texts), ExamIndex(texts)
    loose._screen = None
    for table in (loose.characters, loose.words):
        rule = table.rule
        needed = [rule.coverage * (q.num_grams[0] or q.num_grams.sum() / 3) for q in table.questions]
        table.num_needed = np.array(needed)
    assert (index.words.num_needed > loose.words.num_needed).any()
    hosts = [document.text for document in read_documents(shared_data / "corpora" / "jaquad_ja.jsonl.zst")][:300]
    draw = random.Random(3)
    for text in texts[::4]:
        for form in FORMS.values():
            host = draw.choice(hosts)
            whole = planted(host, form(text, draw, host), draw)
            assert index.find(whole) == loose.find(whole)


@pytest.fixture(scope="module")
def index(shared_data) -> ExamIndex:
    return ExamIndex(exam_texts(shared_data / "exams"))


@pytest.mark.parametrize("name", CORPORA)
def test_real_texts_with_and_without_questions(shared_data, index, name):
    """What is found in documents with a planted question is the same with the screen; few others pass it."""
    documents = [document.text for document in read_documents(shared_data / "corpora" / name)]
    documents = documents[:: max(1, len(documents) // 60)]
    texts = [text for tables in (index.characters, index.words) for text in (q.text for q in tables.questions)]
    draw, forms = random.Random(name), list(FORMS.values())
    found = 0
    for host in documents:
        text = draw.choice(texts)
        whole = planted(host, draw.choice(forms)(text, draw, host), draw)
        hits = without_screen(index, whole)
        assert index.find(whole) == hits
        found += bool(hits)
        assert without_screen(index, host) == [] == index.find(host)
    assert found > len(documents) / 2
    assert index.may_hold(documents).mean() < 0.3


def test_without_the_core_every_text_is_looked_at(monkeypatch):
    monkeypatch.setattr(exam_index, "symbol_map", lambda: None)
    stem, choices = "心筋梗塞の患者に初めに行う検査はどれか選びなさい", ("心電図", "採血検査", "胸部単純撮影", "聴診", "問診")
    index = ExamIndex([ExamText("q", "original", stem, choices)])
    assert index.may_hold(["a", ""]).tolist() == [True, True]
    assert [hit.question_id for hit in index.find("。".join([stem, *choices]))] == ["q"] and not index.find("晴天")


def test_tables_that_do_not_fit_are_refused():
    make = native._core.GramTable
    with pytest.raises(ValueError, match="each n-gram needs its questions"):
        make(6, [1, 2], [0, 1], [0], [1.0], [10])
    with pytest.raises(ValueError, match="a question that is not there"):
        make(6, [1], [0, 1], [1], [1.0], [10])
    with pytest.raises(ValueError, match="each question needs a window"):
        make(6, [1], [0, 1], [0], [1.0], [0])
