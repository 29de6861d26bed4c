"""The scanning part of the core refuses tables and words that it could not answer for; its answers are tested in corpus/."""

import numpy as np
import pytest

native = pytest.importorskip("megatron_jmed.native")
if not hasattr(native._core, "Scanner"):
    pytest.skip("the native core is not compiled: pip install -e . with a C++17 compiler", allow_module_level=True)

from megatron_jmed.native import _core  # noqa: E402

ALL = 0x110000
ONES = np.ones(ALL, np.uint8).tobytes()
SYMBOLS = np.zeros(ALL, np.uint16)
SYMBOLS[ord("a")] = 1


def test_neighbours_edges_and_runs_are_counted() -> None:
    scanner = _core.Scanner(ONES, 2, [(0b11, 0b10), (0b01, 0b10), (0b10, 0b01), (0b10, 0b10), (0b01, 0b01)])
    assert scanner.count("aab") == (3, 1, 1, 2, 0, 2)
    assert scanner.count("") == (0, 0, 0, 0, 1, 0)
    assert scanner.count("\U0010ffff" * 1001) == (1001, 1, 1, 1000, 0, 1001)


@pytest.mark.parametrize(
    ("table", "num_classes", "message"),
    [
        (ONES[:-1], 2, "a class for each code point"),
        (ONES, 1, "out of range"),
        (bytes(ALL), 2, "out of range"),
        (ONES, 65, "1 to 64 classes"),
        (ONES, 0, "1 to 64 classes"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table: bytes, num_classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.Scanner(table, num_classes, [])


def test_words_overlap_and_hold_each_other() -> None:
    words = _core.Words(SYMBOLS.tobytes(), [[1], [1, 1], [1, 1, 1]], [0, 1, 1])
    assert words.find("aaa b a") == [[0, 1, 2, 6], [0, 1]]
    assert words.find("b") == [(), ()]
    assert words.num_states == 4


@pytest.mark.parametrize(
    ("words", "groups", "message"),
    [
        ([[]], [0], "without characters"),
        ([[2]], [0], "without a symbol"),
        ([[0]], [0], "without a symbol"),
        ([[1]], [], "a group for each"),
    ],
)
def test_words_that_cannot_be_found_are_refused(words: list, groups: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.Words(SYMBOLS.tobytes(), words, groups)


def test_pieces_are_compared_by_their_characters() -> None:
    assert _core.num_different_pieces("abcabcabc", 3) == 3
    assert _core.num_different_pieces("ab", 3) == _core.num_different_pieces("ab", 0) == 0
    assert _core.num_different_pieces("\U0001f600a" * 50, 20) == 2
