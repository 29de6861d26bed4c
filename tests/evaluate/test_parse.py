"""Written answers, as models really write them."""

import pytest

from megatron_jmed.evaluate.parse import parse_answer
from megatron_jmed.evaluate.question import Question

ONE = Question("1", "e", "q", ("高血圧症", "糖尿病", "肺炎", "骨折", "糖尿病性腎症"), (frozenset("c"),), 1)
TWO = Question("2", "e", "q", ("高血圧症", "糖尿病", "肺炎", "骨折", "白内障"), (frozenset("ad"),), 2)
NUMBER = Question("3", "e", "q", (), (frozenset({"26"}),), 0)
ENGLISH = Question("4", "e", "q", ("a cold", "fever", "influenza", "a fracture"), (frozenset("b"),), 1)


@pytest.mark.parametrize(
    "text",
    [
        "Answer: c",
        "咳と発熱がある。\n肺炎を疑う。\n\nAnswer: C",
        "Answer：ｃ",
        "**Answer: c**",
        "Answer: (c)",
        "Answer: c.",
        "answer:c\n",
        "<think>Answer: a かな</think>\nAnswer: c",
        "Answer: \\boxed{c}",
        "Answer: a\n訂正する。\nAnswer: c",
    ],
)
def test_the_form_asked_for(text: str) -> None:
    assert parse_answer(text, ONE) == parse_answer("Answer: c", ONE)
    assert parse_answer(text, ONE).picked == ("c",) and parse_answer(text, ONE).is_compliant


@pytest.mark.parametrize(
    "text",
    [
        "正解はcです。",
        "したがって、正解は「c」である。",
        "答え：c",
        "回答: C",
        "正答は選択肢cです",
        "The answer is (C).",
        "the correct answer is c",
        "正解は肺炎です。",
        "答えはaではない。正解はc。",
        "c",
        "(c)",
        "c. 肺炎",
        "C 肺炎",
        "ｃ",
        "3",
        "肺炎",
        "肺炎が正しい。",
        "「肺炎」",
        "cが正しい",
        "Answer: c 肺炎のため",
        "Answer: 肺炎",
        "Answer: c\n以上です。",
        "答えは3番",
        "正解の選択肢は c です",
    ],
)
def test_other_ways_of_saying_it_are_read_but_not_compliant(text: str) -> None:
    assert parse_answer(text, ONE).picked == ("c",) and not parse_answer(text, ONE).is_compliant


@pytest.mark.parametrize(
    "text",
    [
        "Answer: a, d",
        "Answer: a、d",
        "Answer: d,a",
        "Answer: ad",
        "Answer: a d",
        "Answer: A and D",
        "Answer: ａ・ｄ",
        "Answer: (a), (d)",
        "Answer: aとd",
    ],
)
def test_several_letters(text: str) -> None:
    assert parse_answer(text, TWO).picked == ("a", "d") and parse_answer(text, TWO).is_compliant


def test_several_letters_in_other_words() -> None:
    for text in ("正解はaとdです。", "a、d", "ad", "The answers are a and d.", "1と4"):
        assert parse_answer(text, TWO).picked == ("a", "d"), text
    assert parse_answer("Answer: a", TWO).picked == ("a",)  # too few: read as it is, and wrong
    assert parse_answer("Answer: a, b", ONE).picked == ("a", "b")


@pytest.mark.parametrize(
    "text",
    ["Answer: 26", "Answer: ２６", "Answer: 26.0", "計算すると\nAnswer: 26 Torr", "正解は26です。", "答えは約26 Torr", "26", "26%"],
)
def test_numbers(text: str) -> None:
    assert parse_answer(text, NUMBER).picked == ("26",)
    assert parse_answer(text, NUMBER).is_compliant is (text in ("Answer: 26", "Answer: ２６", "Answer: 26.0"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "わからない。",
        "Answer: f",
        "Answer: 9",
        "患者は入院した。",
        "a fever is likely",
        "正解はない。",
        "Answer:",
        "cat",
        "because it hurts",
        "抗菌薬を投与する。",
    ],
)
def test_what_says_nothing_is_no_answer(text: str) -> None:
    assert parse_answer(text, ONE).picked == () and not parse_answer(text, ONE).is_compliant


def test_the_longest_choice_and_articles() -> None:
    assert parse_answer("糖尿病性腎症である", ONE).picked == ("e",)
    assert parse_answer("糖尿病である", ONE).picked == ("b",)
    assert parse_answer("The answer is a fever.", ENGLISH).picked == ("b",)
    assert parse_answer("The answer is a fracture.", ENGLISH).picked == ("d",)
    assert parse_answer("The answer is a.", ENGLISH).picked == ("a",)
