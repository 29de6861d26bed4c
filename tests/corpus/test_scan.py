"""The core and the patterns see the same in every text, and what they see decides nothing that the patterns would not."""

import random
import re
import unicodedata

import pytest

from megatron_jmed.corpus import boilerplate, language, scan, spelling
from megatron_jmed.corpus.privacy import FOLD
from megatron_jmed.corpus.privacy_scan import DIGITS

EVERY_CODE_POINT = "".join(map(chr, range(0x110000)))
QUESTIONS = {
    "letters": language.LETTERS,
    "spaces": r"\s",
    "not_words": r"\W",
    "before_line_end": (r"[ \t\u3000]", "\n"),
    "at_start": (scan.EDGE, "[あ-ん]"),
    "at_end": ("[^A-Za-z]", scan.EDGE),
}
PIECES = ["a", "A", " ", "\n", "あ", "漢", "ー", "1", "٣", "𠮷", "😀", "é", "e\u0301",
          "\u3000", "12 Elm", "さん", "4-5", "ſkip to", "田中"]
needs_core = pytest.mark.skipif(not scan.NATIVE, reason="the native core is not compiled")


def random_texts(number: int) -> list[str]:
    source = random.Random(3)
    texts = ["", "a", "\n", "あ" * 50, "1" * 30, EVERY_CODE_POINT[:0xD800]]
    for _ in range(number):
        text = "".join(source.choices(PIECES, k=source.randrange(30))) + chr(source.choice((0x41, 0x3042, 0xE000, 0x1F600)))
        texts.append(text * source.choice((1, 1, 4)))
    return texts


@needs_core
def test_the_core_counts_what_the_patterns_count() -> None:
    native, python = scan.counter(QUESTIONS, native=True), scan.counter(QUESTIONS, native=False)
    for text in random_texts(2000):
        assert native(text) == python(text), ascii(text[:100])


@needs_core
@pytest.mark.parametrize("of", ["letters", "spaces", "words", "digits", "others", "controls", "nfc"])
def test_a_set_has_its_members_on_every_plane(of: str) -> None:
    of = {"letters": language.LETTERS, "spaces": r"\s", "words": r"\w", "digits": r"\d", "others": "[^A-Za-z]",
          "controls": spelling.CONTROLS.pattern, "nfc": spelling._not_surely_nfc()}[of]
    of = of.removesuffix("+")
    number = sum(len(match[0]) for match in re.finditer(f"{of}+", EVERY_CODE_POINT))
    assert scan.counter({"found": of})(EVERY_CODE_POINT).found == number > 0


@needs_core
def test_the_core_finds_the_words_that_a_search_finds() -> None:
    groups = [("さん", "ん", "田中さん"), ("0-0", "0 E", "0"), ("a", "Aa", "aあ漢"), ("𠮷", "😀a")]
    native, python = scan.finder(groups, DIGITS, native=True), scan.finder(groups, DIGITS, native=False)
    for text in random_texts(2000):
        places = native(text)
        assert list(map(list, places)) == list(map(list, python(text))), ascii(text)
        for group, found in zip(groups, places, strict=True):
            folded = re.sub(r"\d", "0", text)
            assert list(found) == [at for at in range(len(text)) if folded.startswith(group, at)]


@needs_core
def test_words_that_could_not_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="words hold A, for which a stands"):
        scan.finder([["a", "A"]], {"a": "aA"}, native=True)


@needs_core
def test_stretches_folding_and_pieces_are_those_of_python() -> None:
    stretches = [scan.stretches(r"[\d\-. ]", 3, native=native) for native in (True, False)]
    folds = [scan.folder(FOLD, native=native) for native in (True, False)]
    for text in [*random_texts(500), "1-2 3", " 12", "".join(map(chr, FOLD)), "Ａ", "Ａ😀", "ー－"]:
        assert stretches[0](text) == stretches[1](text)
        assert folds[0](text) == folds[1](text)
        for width in (1, 2, 20):
            assert scan.num_different_pieces(text, width, True) == scan.num_different_pieces(text, width, False)
    unchanged = "患者は発熱"
    assert folds[0](unchanged) is unchanged


@needs_core
@pytest.mark.parametrize("text", [b"bytes", None, 3])
def test_only_text_is_scanned(text: object) -> None:
    with pytest.raises(TypeError):
        scan.counter(QUESTIONS)(text)


# ---- what is seen decides nothing


def test_a_spelling_step_is_left_out_only_where_it_changes_nothing() -> None:
    alphabet = "aＡ1．，.\r\n\x85\u2028 \u3000\t\xa0\u2000\u200b\x07か\u3099ﾊﾞﾟ｡～\ufa19神e\u0301\ufffe\u1100\u1161\u212a\u0344ーA한"
    source = random.Random(5)
    for _ in range(20_000):
        text = "".join(source.choices(alphabet, k=source.randrange(12)))
        every_step = text
        for change in spelling.SPELLING.values():
            every_step = change(every_step)
        assert spelling.normalise(text)[0] == every_step, ascii(text)


def test_every_character_that_composes_or_decomposes_is_doubted() -> None:
    doubted = set(scan.characters_of(spelling._not_surely_nfc()))
    for one in EVERY_CODE_POINT[:0xD800] + EVERY_CODE_POINT[0xE000:]:
        if one not in doubted:
            assert unicodedata.is_normalized("NFC", one) and not unicodedata.combining(one)
    sure = [chr(point) for point in range(0x30000) if chr(point) not in doubted and not 0xD800 <= point < 0xE000]
    assert unicodedata.normalize("NFC", "".join(sure)) == "".join(sure)
    source = random.Random(7)
    for _ in range(20):
        shuffled = "".join(source.sample(sure, len(sure)))
        assert unicodedata.normalize("NFC", shuffled) == shuffled


def test_case_is_that_of_the_patterns() -> None:
    for letter, alike in boilerplate.LETTERS_ALIKE.items():
        assert set(re.findall(letter, EVERY_CODE_POINT, re.IGNORECASE)) == set(alike)


def test_a_line_that_a_boilerplate_pattern_matches_holds_one_of_its_words() -> None:
    source = random.Random(9)
    for pattern, words in boilerplate.BOILERPLATE.items():
        spelled, alone, matched = re.compile(pattern, re.IGNORECASE), scan.finder([words], boilerplate.LETTERS_ALIKE), 0
        for _ in range(400):
            line = example_of(pattern, source)
            if spelled.fullmatch(line):
                matched += 1
                assert alone(line)[0], line
                assert boilerplate.drop_boilerplate(f"咳\n{line}\n熱") == ("咳\n熱", 1), line
        assert matched > 100, pattern


def example_of(pattern: str, source: random.Random) -> str:
    """A line that a pattern of BOILERPLATE matches: choices made at random, from the innermost group outwards."""
    tokens = {r"\(": "\0", r"\)": "\1", r"\.": "\2", r"\d{4}": "2019", r"\b": " ", "[ ,]*": ", ", "[へに]?": "へ", "[へに]": "に"}
    for token, word in tokens.items():
        pattern = pattern.replace(token, word)
    pattern = re.sub(r"\.\{\d+,\d+\}", lambda _: source.choice(("x", "ab", "院内")), pattern)
    group = re.compile(r"\(([^()]*)\)([?+]?)")
    while match := group.search(pattern):
        word = source.choice(match[1].split("|")) if match[2] != "?" or source.random() < 0.5 else ""
        pattern = pattern[: match.start()] + word + pattern[match.end() :]
    pattern = re.sub(r"(.)\?", lambda one: source.choice((one[1], "")), pattern)
    return pattern.replace("\0", "(").replace("\1", ")").replace("\2", ".")
