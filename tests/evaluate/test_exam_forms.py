"""Exams in their public file forms, and one's own: read whole, or refused as an examiner would, with file, line and field."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.exam import load_exam
from megatron_jmed.evaluate.question import ExamRules, canonical_number

OWN = {"id": "1", "question": "発熱をきたすのはどれか。", "choices": ["骨折", "肺炎", "近視"], "answer": "b"}
MEDQA = {
    "question": "Which?",
    "answer": "two",
    "options": {"A": "one", "B": "two", "C": "three"},
    "meta_info": "step1",
    "answer_idx": "B",
}
MEDMCQA = {
    "id": "x1",
    "question": "Which?",
    "opa": "one",
    "opb": "two",
    "opc": "three",
    "opd": "four",
    "cop": 4,
    "choice_type": "single",
    "exp": None,
    "subject_name": "Anatomy",
    "topic_name": None,
}
PUBMEDQA = {
    "QUESTION": "Does it help?",
    "CONTEXTS": ["It was tried.", "It helped."],
    "final_decision": "no",
    "LONG_ANSWER": "",
    "YEAR": "2011",
}
JMEDBENCH = {
    "sample_id": 7,
    "question": "どれか。",
    "options": ["一", "二"],
    "answer_idx": 1,
    "n_options": 2,
    "metadata": {"source": "medqa_jp"},
}


def test_own_form_says_all_that_an_exam_needs(tmp_path: Path, samples: SimpleNamespace) -> None:
    rows = [
        OWN
        | {
            "points": 3,
            "essential": True,
            "forbidden": ["ｃ"],
            "year": 2031,
            "subject": "内科",
            "category": "感染症",
            "lang": "ja",
        },
        OWN | {"id": "2", "answer": ["a", "c"], "needs_image": True},
        OWN | {"id": "3", "answer": [["a"], ["b"]]},
        OWN | {"id": "4", "choices": [], "answer": "１２.50"},
        OWN | {"id": "5", "answer": None, "withdrawn": True, "choices": {"a": "骨折", "Ｂ": "肺炎"}},
    ]
    path = samples.write_jsonl(tmp_path / "mine.jsonl", rows)
    first, two, either, number, withdrawn = load_exam(path).questions
    assert (first.points, first.essential, first.forbidden, first.year) == (3, True, frozenset("c"), 2031)
    assert (first.subject, first.category, first.lang, first.exam, first.kind) == ("内科", "感染症", "ja", "mine", "single")
    assert two.kind == "multiple" and two.num_to_pick == 2 and two.needs_image
    assert either.answers == (frozenset("a"), frozenset("b")) and either.num_to_pick == 1
    assert number.kind == "numeric" and number.answers == (frozenset({"12.5"}),)
    assert withdrawn.answers == () and withdrawn.withdrawn and withdrawn.choices == ("骨折", "肺炎")
    assert load_exam(path).rules == {} and [q.id for q in load_exam(path, [2031]).questions] == ["1"]
    (tmp_path / "rules.json").write_text('{"pass_ratio": 0.6, "essential_ratio": 0.8, "max_forbidden": 3}')
    assert load_exam(tmp_path).rules == {None: ExamRules(pass_ratio=0.6, essential_ratio=0.8, max_forbidden=3)}
    (tmp_path / "rules.json").write_text('{"pas_ratio": 0.6}')
    with pytest.raises(ExamError, match=r"rules\.json: pas_ratio; choose from pass_points"):
        load_exam(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": None}, "answer: missing; expected a letter"),
        ({"answer": ""}, "answer: missing"),
        ({"answer": "d"}, "answer: d is none of the 3 choices a to c"),
        ({"answer": {"b": 1}}, "answer: {'b': 1}; expected"),
        ({"answer": ["a", "b"], "pick": 1}, "pick: 1, but an answer has 2 letters"),
        ({"answer": [["a"], ["b", "c"]]}, "pick: 2, but an answer has 1 letters"),
        ({"choices": ["骨折"]}, "choices: 1 choices; expected none"),
        ({"choices": [], "answer": "b"}, r"answer: \['b'\]; a question without choices wants one number"),
        ({"forbidden": ["e"]}, "forbidden: e is none of the 3 choices"),
        ({"id": None}, "id: None; expected a text"),
        ({"id": "1"}, "id: 1 occurs twice; the first is at"),
        ({"anser": "b"}, "anser: no field of an exam; choose from answer"),
        ({"points": -1}, "points: -1; expected a whole number"),
    ],
)
def test_bad_lines_of_ones_own_exam(tmp_path: Path, samples: SimpleNamespace, changes: dict, message: str) -> None:
    path = samples.write_jsonl(tmp_path / "mine.jsonl", [OWN, OWN | {"id": "2"} | changes])
    with pytest.raises(ExamError, match=message) as error:
        load_exam(path)
    assert str(error.value).startswith(f"{path}:2: ")


def test_medqa_in_both_spellings_of_its_options(tmp_path: Path, samples: SimpleNamespace) -> None:
    listed = [{"key": name, "value": value} for name, value in MEDQA["options"].items()]
    path = samples.write_jsonl(tmp_path / "test.jsonl", [MEDQA, MEDQA | {"options": listed, "answer_idx": "Ｃ"}])
    first, second = load_exam(path).questions
    assert first.choices == second.choices == ("one", "two", "three") and first.id == "test/1"
    assert (first.answers, second.answers) == ((frozenset("b"),), (frozenset("c"),))
    samples.write_jsonl(path, [MEDQA | {"answer_idx": "E"}])
    with pytest.raises(ExamError, match="answer_idx: e is none of the 3 choices"):
        load_exam(path)
    samples.write_jsonl(path, [MEDQA | {"options": {"A": "one", "C": "two"}}])
    with pytest.raises(ExamError, match="options: by the letters A, C; expected a, b, c"):
        load_exam(path)


@pytest.mark.parametrize(("positions", "letters"), [([4, 1, 2], "dab"), ([0, 3, 1], "adb")])
def test_medmcqa_counts_from_one_as_published_or_from_zero_as_on_the_hub(
    tmp_path: Path, samples: SimpleNamespace, positions: list[int], letters: str
) -> None:
    rows = [MEDMCQA | {"id": f"x{n}", "cop": position} for n, position in enumerate(positions)]
    questions = load_exam(samples.write_jsonl(tmp_path / "dev.jsonl", rows)).questions
    assert [q.answers for q in questions] == [(frozenset(letter),) for letter in letters]
    assert questions[0].subject == "Anatomy" and questions[0].category == ""


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([1, 2, 3], "cannot tell whether options are counted"),
        ([0, 4], "cannot tell"),
        ([0, -1], "cop: -1; expected 0 to 3 .the test split has no public"),
    ],
)
def test_medmcqa_whose_count_cannot_be_known_is_refused(
    tmp_path: Path, samples: SimpleNamespace, positions: list[int], message: str
) -> None:
    rows = [MEDMCQA | {"id": f"x{n}", "cop": position} for n, position in enumerate(positions)]
    with pytest.raises(ExamError, match=message):
        load_exam(samples.write_jsonl(tmp_path / "test.jsonl", rows))


def test_pubmedqa_takes_its_test_only_and_shows_no_options(tmp_path: Path, samples: SimpleNamespace) -> None:
    path = tmp_path / "ori_pqal.json"
    path.write_text(json.dumps({"11": PUBMEDQA, "12": PUBMEDQA | {"final_decision": "maybe"}}), encoding="utf-8")
    assert [q.id for q in load_exam(path).questions] == ["11", "12"]
    (tmp_path / "test_ground_truth.json").write_text('{"12": "maybe"}')
    (only,) = load_exam(tmp_path).questions
    assert only.id == "12" and only.answers == (frozenset("c"),) and only.choices == ("yes", "no", "maybe")
    assert only.context == "It was tried.\nIt helped." and not only.show_choices
    row = {"pubid": 12, "question": "Does it help?", "context": {"contexts": ["It helped."]}, "final_decision": "yes"}
    (again,) = load_exam(samples.write_jsonl(tmp_path / "hub/test.jsonl", [row])).questions
    assert (again.id, again.context, again.answers) == ("12", "It helped.", (frozenset("a"),))
    path.write_text(json.dumps({"12": PUBMEDQA | {"final_decision": "perhaps"}}))
    with pytest.raises(ExamError, match="12: final_decision: 'perhaps'; expected yes, no or maybe"):
        load_exam(path)


def test_jmedbench_and_its_train_split(tmp_path: Path, samples: SimpleNamespace) -> None:
    samples.write_jsonl(tmp_path / "medqa_jp/test.jsonl", [JMEDBENCH])
    samples.write_jsonl(tmp_path / "medqa_jp/train.jsonl", [JMEDBENCH | {"sample_id": n} for n in range(3)])
    exam = load_exam(tmp_path / "medqa_jp")
    assert [(q.id, q.exam, q.answers) for q in exam.questions] == [("7", "medqa_jp", (frozenset("b"),))]
    assert [q.id for q in exam.training] == ["0", "1", "2"]
    samples.write_jsonl(tmp_path / "medqa_jp/test.jsonl", [JMEDBENCH | {"answer_idx": 2}])
    with pytest.raises(ExamError, match="answer_idx: 2 is none of the 2 options 0 to 1"):
        load_exam(tmp_path / "medqa_jp")
    (tmp_path / "medqa_jp/test.jsonl").unlink()
    with pytest.raises(ExamError, match=r"only files for training \(train\.jsonl\)"):
        load_exam(tmp_path / "medqa_jp")


def test_tables_of_mmlu_and_jmmlu(tmp_path: Path) -> None:
    (tmp_path / "anatomy_test.csv").write_text(
        '\ufeff"どれか。\n二行目",骨,"肉, 赤い",皮,毛,Ｂ\nどれか？,一,二,三,四,D\n', encoding="utf-8"
    )
    (tmp_path / "anatomy_dev.csv").write_text("例題,一,二,三,四,A\n", encoding="utf-8")
    exam = load_exam(tmp_path)
    first, second = exam.questions
    assert first.text == "どれか。\n二行目" and first.choices[1] == "肉, 赤い" and first.answers == (frozenset("b"),)
    assert (first.id, second.id, first.subject) == ("anatomy_test/1", "anatomy_test/2", "anatomy")
    assert [q.text for q in exam.training] == ["例題"]
    (tmp_path / "anatomy_test.csv").write_text("どれか。,骨,肉,皮,毛,F\n", encoding="utf-8")
    with pytest.raises(ExamError, match=r"anatomy_test\.csv:1: column 6: 'F'; expected a letter from A to D"):
        load_exam(tmp_path)
    (tmp_path / "anatomy_test.csv").write_text("どれか。\n", encoding="utf-8")
    with pytest.raises(ExamError, match="1 columns; expected question, choices, letter"):
        load_exam(tmp_path)


def test_unknown_forms_are_refused(tmp_path: Path, samples: SimpleNamespace) -> None:
    with pytest.raises(ExamError, match="fields text; expected those of a known form"):
        load_exam(samples.write_jsonl(tmp_path / "corpus.jsonl", [{"text": "a"}]))
    (tmp_path / "list.json").write_text("[3]")
    with pytest.raises(ExamError, match="0: a int; expected a JSON object"):
        load_exam(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("26", "26"),
        ("２６", "26"),
        ("7.20", "7.2"),
        ("1,200", "1200"),
        ("-0.50", "-0.5"),
        ("0.0", "0"),
        ("100", "100"),
        ("b", None),
        ("1,2", None),
        ("", None),
    ],
)
def test_numbers_in_one_spelling(text: str, number: str | None) -> None:
    assert canonical_number(text) == number
