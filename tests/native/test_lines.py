"""Lines that the native core reads by itself are read as orjson and the Python reader do; all else it leaves to them."""

import json
import random

import numpy as np
import orjson
import pytest

native = pytest.importorskip("megatron_jmed.native")
if native._core is None:
    pytest.skip("the native core is not compiled: pip install -e . with a C++17 compiler", allow_module_level=True)

from megatron_jmed.corpus.document import Document, parse_batch  # noqa: E402
from megatron_jmed.corpus.reader import RawBatch  # noqa: E402
from megatron_jmed.corpus.tokenizer import Encoder  # noqa: E402

PLAIN = [
    {"text": "急性心筋梗塞の患者 blood pressure 120/80", "id": 7, "source": "chart", "lang": "ja"},
    {"text": "é\u2028\U0001f3e5 \"quoted\" \\ / \b\f\n\r\t", "meta": {"a": [1, -2.5e3, {"b": None}], "c": [True, False, {}, []]}},
    {"source": "", "lang": None, "text": "x", "year": 2021.0},
    {"text": "𠮷野家", "source": ["no", "string"], "lang": {"en": 1}},
]


def by_python(encoder: Encoder, block: bytes):
    """What the Python reader and the encoder make of a block, or None if a record in it is no document."""
    records = list(parse_batch(RawBatch("f", 1, "jsonl", block, 0)))
    if not all(isinstance(record, Document) for record in records):
        return None
    ids, lengths = encoder.encode([record.text for record in records])
    groups: dict[tuple[str, str], list[int]] = {}
    for record, length in zip(records, lengths.tolist(), strict=True):
        group = groups.setdefault((record.source, record.lang), [0, 0, 0])
        for place, amount in enumerate((1, len(record.text), length)):
            group[place] += amount
    return ids, lengths, groups


def check_same(encoder: Encoder, block: bytes) -> bool:
    """Whether the core read the block; if so, it must have read it as Python does."""
    found = encoder.encode_lines(block, "text")
    if found is None:
        return False
    expected = by_python(encoder, block)
    assert expected is not None, block
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1]), block
    summed: dict[tuple[str, str], list[int]] = {}
    for source, lang, *counts in found[2]:
        group = summed.setdefault((source or "unknown", lang or "unknown"), [0, 0, 0])
        for place, amount in enumerate(counts):
            group[place] += amount
    assert summed == expected[2], block
    return True


@pytest.fixture
def encoder(train) -> Encoder:
    return Encoder(train(), bos=True, eos=True)


def test_plain_documents_are_read_without_python(encoder) -> None:
    written = [orjson.dumps(row) for row in PLAIN] + [json.dumps(row).encode() for row in PLAIN]
    assert all(check_same(encoder, line) for line in written)
    assert check_same(encoder, b"\n".join(written) + b"\n")
    assert check_same(encoder, b' { "text" : "a" , "n" : -0 , "text" : "b" } \r\n{"lang":"ja","lang":3,"text":"c"}')


@pytest.mark.parametrize(
    "line",
    [
        b"", b" ", b"{}", b"[]", b'"text"', b'{"text": "a"', b'{"text": "a"} x', b'{"text": "a",}', b'{"text" "a"}', b"{text: 1}",
        b'{"body": "a"}', b'{"text": null}', b'{"text": ["a"]}', b'{"text": ""}', b'{"text": " \\u3000\\n"}',
        b'{"text": "a\\u0000"}',
        b'{"text": "a\x00"}', b'{"text": "a\nb"}', b'{"text": "\xff"}', b'{"text": "\xed\xa0\x80"}', b'{"text": "\\ud800"}',
        b'{"text": "\\ud800\\u0041"}', b'{"text": "\\x41"}', b'{"text": "a", "n": 01}',
        b'{"text": "a", "n": 1.}', b'{"text": "a", "n": +1}',
        b'{"text": "a", "n": NaN}', b'{"text": "a", "n": 1e999}', b'{"text": "a", "n": "\xc3"}', b'{"text": "a", "n": tru}',
        b'{"te\\u0078t": "a"}', b'{"text": "a", "n": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
    ids=lambda line: ascii(line[:24]),
)  # fmt: skip
def test_everything_else_is_left_to_the_reader(line, encoder) -> None:
    assert encoder.encode_lines(line, "text") is None or not line
    good = orjson.dumps(PLAIN[0])
    assert encoder.encode_lines(good + b"\n" + line + b"\n" + good, "text") is None


def test_damaged_lines_are_never_read_in_another_way(encoder) -> None:
    rng = random.Random(3)
    texts = [json.dumps(row, ensure_ascii=ascii_only).encode() for row in PLAIN for ascii_only in (False, True)]
    alphabet = [bytes([byte]) for byte in b'"\\{}[],:0e.-u\xe3\x80\x01 '] + [b"\\u"]
    num_read = 0
    for _ in range(20_000):
        line = bytearray(rng.choice(texts))
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(line))
            line[place : place + rng.randrange(3)] = rng.choice(alphabet) if rng.random() < 0.8 else b""
        num_read += check_same(encoder, bytes(line).replace(b"\n", b" "))
    assert 1000 < num_read < 19_000


def test_a_text_under_another_name_and_names_that_have_a_meaning(encoder) -> None:
    assert encoder.encode_lines(b'{"body": "a"}', "body")[2] == [("", "", 1, 1, len(encoder.encode(["a"])[0]))]
    assert encoder.encode_lines(b'{"source": "a"}', "source") is None
