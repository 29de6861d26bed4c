"""What is refused as an exam sheet before a run starts, with the file, the line and the field."""

import json
from pathlib import Path

import pytest

from megatron_jmed.data.exam_sheet import FORMAT, load_sheet
from megatron_jmed.errors import CorpusError

HEADER = json.dumps({"format": FORMAT, "name": "exam", "tokenizer_sha256": "00"})
QUESTION = json.dumps({"prefix": [1, 5], "continuations": [[6], [7, 8]], "num_truncated": 0})


def sheet(folder: Path, *lines: str) -> Path:
    path = folder / "exam.jsonl"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_each_option_is_a_row_also_of_one_token(tmp_path):
    assert load_sheet(sheet(tmp_path, HEADER, QUESTION), 10, 8).rows == (((1, 5, 6), 1), ((1, 5, 7, 8), 2))


@pytest.mark.parametrize(("lines", "message"), [
    ([], "exam.jsonl: no exam sheet"),
    ([QUESTION], "its first line is no header of 'exam sheet 1'"),
    ([json.dumps({"format": FORMAT, "name": "exam"})], "its first line is no header"),
    ([HEADER], "no question after the header"),
    ([HEADER, QUESTION, QUESTION[:20]], "exam.jsonl:3: no exam sheet"),
    ([HEADER, "[]"], "exam.jsonl:2: no exam sheet, not a JSON object"),
    ([HEADER, '{"continuations": [[6]]}'], "exam.jsonl:2: 'prefix' must be"),
    ([HEADER, '{"prefix": [], "continuations": [[6, 7]]}'], "exam.jsonl:2: 'prefix' must be"),
    ([HEADER, '{"prefix": [1, -5], "continuations": [[6, 7]]}'], "exam.jsonl:2: 'prefix' must be"),
    ([HEADER, '{"prefix": [1]}'], "exam.jsonl:2: 'continuations' must be"),
    ([HEADER, '{"prefix": [1], "continuations": []}'], "exam.jsonl:2: 'continuations' must be"),
    ([HEADER, '{"prefix": [1], "continuations": [[6], []]}'], "exam.jsonl:2: 'continuations' must be"),
    ([HEADER, '{"prefix": [1], "continuations": [["six"]]}'], "exam.jsonl:2: 'continuations' must be"),
])
def test_a_damaged_sheet_is_refused_with_its_line(tmp_path, lines, message):
    with pytest.raises(CorpusError, match=message):
        load_sheet(sheet(tmp_path, *lines), 10, 8)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "exam.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorpusError, match="no exam sheet"):
        load_sheet(tmp_path / "exam.jsonl", 10, 8)
