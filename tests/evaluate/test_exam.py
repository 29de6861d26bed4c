"""The exam is read whole and honestly, or refused with file, line and field."""

import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.exam import load_exam
from megatron_jmed.evaluate.question import ExamRules, Question

SHARED = Path(os.environ.get("MEGATRON_JMED_SHARED", Path(__file__).parents[3] / "shared"))
REAL_EXAM = SHARED / "data/exams/igakuqa"


def by_id(questions: list[Question]) -> dict[str, Question]:
    return {question.id: question for question in questions}


def test_every_question_of_every_paper_in_order(exam_folder: Path) -> None:
    questions = load_exam(exam_folder).questions
    expected = ["112B1", "112B2", "112B3", "112B30", "112B31", "112C1", "112C2", "112C3", "116A70", "116A71", "116A72"]
    assert [q.id for q in questions] == expected
    assert [q.year for q in questions] == [2018] * 8 + [2022] * 3
    assert {q.paper for q in questions} == {"A", "B", "C"}


def test_kinds_and_numbers_to_pick(exam_folder: Path) -> None:
    questions = by_id(load_exam(exam_folder).questions)
    assert (questions["112B1"].kind, questions["112B1"].num_to_pick) == ("single", 1)
    assert (questions["112B2"].kind, questions["112B2"].num_to_pick) == ("multiple", 2)
    assert (questions["112B3"].kind, questions["112B3"].num_to_pick) == ("numeric", 0)
    assert questions["112B3"].answers == (frozenset({"26"}),)


def test_special_cases(exam_folder: Path) -> None:
    questions = by_id(load_exam(exam_folder).questions)
    assert questions["112B30"].answers == (frozenset("a"), frozenset("d"))
    assert questions["112B30"].num_to_pick == 1
    assert [q.id for q in questions.values() if q.always_correct] == ["116A71"]
    assert questions["116A70"].points == 0 and questions["116A70"].withdrawn
    assert [q.id for q in questions.values() if q.essential] == ["112B1", "112B2", "112B3", "112B30", "112B31"]


def test_metadata_and_spellings_of_forbidden_choices(exam_folder: Path) -> None:
    questions = by_id(load_exam(exam_folder).questions)
    assert questions["112B1"].subject == "産科"
    assert questions["112B1"].forbidden == frozenset("be")
    assert questions["112B30"].forbidden == frozenset("be")
    assert questions["112C1"].subject == ""
    assert questions["112C1"].forbidden == frozenset()


def test_one_year_folder_and_chosen_years(exam_folder: Path) -> None:
    assert len(load_exam(exam_folder / "2022").questions) == 3
    assert load_exam(exam_folder, [2022]) == load_exam(exam_folder / "2022")
    assert load_exam(exam_folder, [2018, 2022]) == load_exam(exam_folder)


def test_absent_year_or_folder_is_refused(exam_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExamError, match=r"no exam of 2017; the folder holds 2018, 2022"):
        load_exam(exam_folder, [2017, 2018])
    with pytest.raises(ExamError, match="no such exam"):
        load_exam(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExamError, match=r"no exam here; expected 2018/112-A\.jsonl"):
        load_exam(tmp_path / "empty")


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"problem_id": "113A1"}, "problem_id", "'113A1' is not of this paper; expected 112A1"),
        ({"problem_id": None}, "problem_id", "None; expected a text"),
        ({"problem_id": "112A1"}, "problem_id", "112A1 occurs twice"),
        ({"problem_text": 3}, "problem_text", "3; expected a text"),
        ({"choices": "abc"}, "choices", "'abc'; expected a list of texts"),
        ({"choices": ["骨折"]}, "choices", "1 choices; expected none"),
        ({"answer": ["f"]}, "answer", "f is none of the 5 choices a to e"),
        ({"answer": ["a or b"]}, "answer", "o, r is none of the 5 choices a to e"),
        ({"answer": [""]}, "answer", "empty; expected"),
        ({"answer": []}, "answer", "empty; expected at least one letter or number"),
        ({"points": "one"}, "points", "'one'; expected a whole number"),
        ({"text_only": "yes"}, "text_only", "'yes'; expected true or false"),
    ],
)
def test_bad_lines_are_named_with_file_line_and_field(
    tmp_path: Path, samples: SimpleNamespace, changes: dict, field: str, message: str
) -> None:
    rows = [samples.question_row("112A1"), samples.question_row("112A2") | changes]
    path = samples.write_jsonl(tmp_path / "exam/2018/112-A.jsonl", rows)
    with pytest.raises(ExamError) as error:
        load_exam(tmp_path / "exam")
    assert str(error.value).startswith(f"{path}:2: {field}: {message}")


def test_other_spellings_of_the_same_answer_are_read(tmp_path: Path, samples: SimpleNamespace) -> None:
    for number, (marks, expected) in enumerate([(["ｃ"], "c"), (["C"], "c"), (["３"], "c"), (["ｄ", "Ａ"], "ad"), ([" e "], "e")]):
        path = samples.write_jsonl(tmp_path / f"{number}/2018/112-A.jsonl", [samples.question_row("112A1", answer=marks)])
        path.write_text("\ufeff" + path.read_text(encoding="utf-8"), encoding="utf-8")  # a byte order mark
        assert load_exam(tmp_path / str(number)).questions[0].answers == (frozenset(expected),)


def test_broken_json_and_empty_files_are_refused(tmp_path: Path, samples: SimpleNamespace) -> None:
    path = samples.write_jsonl(tmp_path / "exam/2018/112-A.jsonl", [samples.question_row("112A1")])
    path.write_text(path.read_text(encoding="utf-8") + '{"problem_id": "112A2", ', encoding="utf-8")
    with pytest.raises(ExamError, match=r"112-A\.jsonl:2: not JSON"):
        load_exam(tmp_path / "exam")
    path.write_text("", encoding="utf-8")
    with pytest.raises(ExamError, match=r"112-A\.jsonl: empty"):
        load_exam(tmp_path / "exam")


@pytest.mark.parametrize(
    ("kinki_by_id", "message"),
    [
        ({"112A1": []}, r"112-A\.jsonl:2: problem_id: 112A2 has no line in 112-A_metadata\.jsonl"),
        ({"112A1": [], "112A2": [], "112A3": []}, r"112-A_metadata\.jsonl:3: problem_id: 112A3 is no question of"),
        ({"112A1": ["g"], "112A2": []}, r"112-A_metadata\.jsonl:1: kinki: g is none of the 5"),
    ],
)
def test_metadata_must_fit_the_questions(
    tmp_path: Path, samples: SimpleNamespace, kinki_by_id: dict[str, list[str]], message: str
) -> None:
    questions = [samples.question_row("112A1"), samples.question_row("112A2")]
    metadata = [samples.metadata_row(question_id, kinki=kinki) for question_id, kinki in kinki_by_id.items()]
    samples.write_jsonl(tmp_path / "exam/2018/112-A.jsonl", questions)
    samples.write_jsonl(tmp_path / "exam/2018/112-A_metadata.jsonl", metadata)
    with pytest.raises(ExamError, match=message):
        load_exam(tmp_path / "exam")


def test_pharmacists_exam_has_numbers_any_two_pictures_and_no_answer(tmp_path: Path, samples: SimpleNamespace) -> None:
    rows = [samples.question_row(f"097A{n:03d}", comment="", answer=answer) for n, answer in enumerate(
        [["4"], ["1", "5"], ["2", "4", "5（いずれか2つを選択で正解とする）"], ["解なし（設問が不明確）"]], start=1)]
    rows.append(samples.question_row("097B001", comment="", answer=["7"], choices="IMAGES", text_only=False))
    samples.write_jsonl(tmp_path / "exam/2012/097-A.jsonl", rows[:4])
    samples.write_jsonl(tmp_path / "exam/2012/097-B.jsonl", rows[4:])
    samples.write_jsonl(tmp_path / "exam/2012/097.jsonl", rows)  # the whole year once more, as published
    lines = [{"problem_id": f"097{n:03d}", "category": f"field {n}", "note": ""} for n in range(1, 6)]
    samples.write_jsonl(tmp_path / "exam/2012/metadata_097.jsonl", lines * 4)
    questions = load_exam(tmp_path / "exam").questions
    assert [sorted("".join(sorted(a)) for a in q.answers) for q in questions] == [["d"], ["ae"], ["bd", "be", "de"], [], ["g"]]
    assert [q.num_to_pick for q in questions] == [1, 2, 2, 1, 1] and {q.exam for q in questions} == {"yakugakuqa"}
    assert [q.withdrawn for q in questions] == [False, False, False, True, False]
    assert [q.subject for q in questions] == [f"field {n}" for n in range(1, 6)] and questions[4].needs_image


@pytest.mark.skipif(not REAL_EXAM.is_dir(), reason=f"no real exam at {REAL_EXAM}; set MEGATRON_JMED_SHARED")
def test_real_exams() -> None:
    exam = load_exam(REAL_EXAM)
    questions = exam.questions
    assert exam.rules[2018] == ExamRules(208, 299, None, 0.8, 3, "the ministry's announcement")
    for year, of in ((2018, (200, 299)), (2019, (200, 296)), (2020, (197, 299)), (2021, (200, 300))):  # as announced
        points = [sum(q.points for q in questions if q.year == year and q.essential is is_so) for is_so in (True, False)]
        assert tuple(points) == of
    assert Counter(q.year for q in questions) == {2018: 400, 2019: 400, 2020: 400, 2021: 400}
    assert Counter(q.kind for q in questions) == {"single": 1354, "multiple": 237, "numeric": 9}
    assert Counter(q.num_to_pick for q in questions) == {0: 9, 1: 1354, 2: 199, 3: 38}
    assert Counter(len(q.choices) for q in questions) == {0: 9, 5: 1588, 6: 1, 8: 2}
    assert Counter(q.points for q in questions) == {0: 7, 1: 1394, 3: 199}
    assert sum(q.needs_image for q in questions) == 430
    assert sum(bool(q.forbidden) for q in questions) == 110
    assert by_id(questions)["112B30"].answers == (frozenset("a"), frozenset("d"))
    assert len({q.subject for q in questions}) == 28 and all(q.subject for q in questions)
