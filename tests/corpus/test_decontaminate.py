"""A planted exam question is found however it is written; a textbook on the same disease is left alone; nothing is lost.

The questions here are invented; real ones are read from the shared data only.
"""

import json
import random
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import orjson
import pytest

from megatron_jmed.corpus.decontaminate import decontaminate, merge_decontaminated
from megatron_jmed.corpus.document import read_documents
from megatron_jmed.corpus.exam_index import PIECE_CHARACTERS, ExamIndex
from megatron_jmed.corpus.exam_texts import ExamText, exam_texts
from megatron_jmed.corpus.manifest import load_manifest
from megatron_jmed.corpus.symbols import GRAM_BASE, gram_hashes, symbol_codes
from megatron_jmed.errors import CorpusError

TOOL = Path(__file__).resolve().parents[2] / "tools" / "decontaminate_corpus.py"

ASK = "次のうち正しいのはどれか。1つ選べ。"
CASE = (
    "52歳の男性。3日前からの右下腿の腫れとｶﾞﾏﾝできない痛みを訴えて受診した。2週前に長時間のバス旅行をした。体温37.1℃、"
    f"脈拍96/分、整。右下腿の周径は左より4cm太く、足関節を背屈させると痛みが増す。まず行う検査として適切なのはどれか。{ASK}"
)
CASE_CHOICES = ["下肢静脈超音波検査", "関節穿刺", "筋生検", "下肢単純MRI", "神経伝導検査"]
CASE_ENGLISH = (
    "A 52-year-old man came with a swollen right calf and pain that he could not bear for 3 days. Two weeks ago he had "
    "travelled by coach for many hours. The right calf measures 4 cm more than the left, and bending the ankle upwards "
    "makes the pain worse. Which examination should come first?"
)
CASE_CHOICES_ENGLISH = ["Venous ultrasound of the leg", "Joint puncture", "Muscle biopsy", "Plain MRI", "Nerve conduction"]
SHORT = f"巨赤芽球性貧血の原因となるのはどれか。{ASK}"
SHORT_CHOICES = ["胃全摘後", "鉄の欠乏", "慢性腎不全", "銅の過剰", "脾臓摘出"]
TOPICS = ["肺炎", "喘息", "胃潰瘍", "肝硬変", "膵炎", "腎結石", "痛風", "緑内障"]
TEXTBOOK = (
    "下肢の深部静脈血栓症は、長時間の旅行や手術のあとに起こりやすい。下腿の腫れと痛みがあり、足関節を背屈させると痛みが増すことが"
    "ある。診断には下肢静脈超音波検査が用いられ、肺塞栓の予防のために抗凝固療法を始める。右よりも左に多い。巨赤芽球性貧血は、"
    "胃全摘後のビタミンB12の欠乏や葉酸の欠乏で起こる。"
)
TEXTBOOK_ENGLISH = (
    "Deep vein thrombosis of the leg follows long travel or surgery. The calf is swollen and painful, and bending the "
    "ankle upwards may hurt. Venous ultrasound of the leg is the first examination; treatment is anticoagulation."
)


def invented_questions() -> list[ExamText]:
    others = [
        ExamText(f"900A{i}", "original", f"{topic}の患者への説明として{ASK}", tuple(f"{topic}{c}" for c in "甲乙丙丁戊"))
        for i, topic in enumerate(TOPICS, start=10)
    ]
    return [
        ExamText("900A1", "original", CASE, tuple(CASE_CHOICES)),
        ExamText("900A1", "translation", CASE_ENGLISH, tuple(CASE_CHOICES_ENGLISH)),
        ExamText("900A2", "original", SHORT, tuple(SHORT_CHOICES)),
        *others,
    ]


@pytest.fixture(scope="module")
def index() -> ExamIndex:
    return ExamIndex(invented_questions())


def ids(index: ExamIndex, text: str) -> list[tuple[str, str]]:
    return [(hit.question_id, hit.form) for hit in index.find(text)]


def wide(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def page(text: str, place: int = 4000) -> str:
    filler = "".join(f"第{i}節では調理と掃除の手順を述べる。" for i in range(600))
    return f"{filler[:place]}\n{text}\n{filler[place:]}"


WAYS = {
    "exact": lambda stem, choices: "\n".join([stem, *choices]),
    "shuffled": lambda stem, choices: " ".join([stem, *(f"({i}) {c}" for i, c in enumerate(choices[::-1], start=1))]),
    "full width": lambda stem, choices: wide("\n".join([stem, *choices])),
    "half width": lambda stem, choices: unicodedata.normalize("NFKC", "\n".join([stem, *choices])),
    "punctuation": lambda stem, choices: re.sub("[、。,?-]", " ", "\n".join([stem, *choices])),
    "embedded": lambda stem, choices: page("\n".join([stem, *choices])),
    "numbered page": lambda stem, choices: page("\n".join(["問12", stem, *(f"{i}. {c}　" for i, c in enumerate(choices))])),
}
QUESTIONS = {
    "case": (CASE, CASE_CHOICES, ("900A1", "original")),
    "short": (SHORT, SHORT_CHOICES, ("900A2", "original")),
    "english": (CASE_ENGLISH, CASE_CHOICES_ENGLISH, ("900A1", "translation")),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_found_however_it_is_written(index, question, way) -> None:
    stem, choices, expected = QUESTIONS[question]
    assert ids(index, WAYS[way](stem, choices)) == [expected]


@pytest.mark.parametrize("question", ["case", "short"])
def test_spaces_within_japanese_change_nothing(index, question) -> None:
    stem, choices, expected = QUESTIONS[question]
    # In normal form first: a half-width ｶﾞ is one letter that a space would cut in two.
    text = "\u3000".join(unicodedata.normalize("NFKC", "\n".join([stem, *choices])))
    assert ids(index, text) == [expected]
    assert index.find(text)[0].overlap == 1.0


def test_a_long_stem_is_enough_and_a_short_one_is_not(index) -> None:
    assert [(hit.question_id, hit.kind) for hit in index.find(CASE)] == [("900A1", "stem")]
    assert not index.find(SHORT)
    assert not index.find("、".join(SHORT_CHOICES))
    assert [hit.kind for hit in index.find(SHORT + "、".join(SHORT_CHOICES))] == ["stem_and_choices"]


@pytest.mark.parametrize("text", [TEXTBOOK, TEXTBOOK_ENGLISH, ASK, ASK * 50, page(ASK), page(TEXTBOOK), "", " ", "肺", "a"])
def test_texts_that_hold_no_question_are_left_alone(index, text) -> None:
    assert index.find(text) == []


def test_phrases_that_many_questions_share_carry_no_weight() -> None:
    """The same phrase counts as soon as few questions have it: it is the sharing that takes its weight away."""
    long_ask = "以下の五つの選択肢の中から、最も適切であると考えられるものを必ず一つだけ選んで、その記号を解答用紙に記入しなさい。"
    few = [ExamText(f"q{i}", "original", f"{topic}。{long_ask}", ("一", "二")) for i, topic in enumerate(TOPICS[:2])]
    many = [ExamText(f"q{i}", "original", f"{topic}。{long_ask}", ("一", "二")) for i, topic in enumerate(TOPICS)]
    assert len(ExamIndex(few).find(long_ask)) == 2
    assert ExamIndex(many).find(long_ask) == []


def test_parts_of_a_question_far_apart_are_no_question(index) -> None:
    half = len(CASE) // 2
    assert ids(index, CASE[:half] + page("") + CASE[half:]) == []


@pytest.mark.parametrize("before", [-2000, -150, -20, 0, 20])
def test_a_question_across_two_pieces_of_a_long_text_is_found(index, before) -> None:
    filler = "本日は晴天なり。" * (PIECE_CHARACTERS // 8 + 1000)
    place = PIECE_CHARACTERS + before
    text = filler[:place] + CASE + "".join(CASE_CHOICES) + filler[place:]
    assert [(hit.question_id, hit.overlap > 0.99) for hit in index.find(text)] == [("900A1", True)]


def test_questions_that_could_never_be_found_are_named() -> None:
    texts = [*invented_questions(), ExamText("900A3", "original", "図を見よ。", ("①", "②", "③"))]
    assert [text.question_id for text in ExamIndex(texts).not_testable] == ["900A3"]


def test_symbols_are_the_letters_and_digits_of_the_normal_form(texts_ja, texts_en) -> None:
    odd = "ｶﾞｷﾞﾊﾟ ㎎㎝①½ ＡｂＣ１２ e\u0301é İß が か\u3099 々ー〇 𠮷 😀 \U000e0001 Ⅳ ﾞ"
    samples = [odd, *(document.text for path in (texts_ja, texts_en) for document in read_documents(path))]
    for text in samples:
        codes = symbol_codes(text)
        normal = unicodedata.normalize("NFKC", text).lower()
        assert "".join(map(chr, codes[codes != 0])) == "".join(c for c in normal if c.isalnum())


@pytest.mark.parametrize("n", range(1, 15))
def test_gram_hashes_are_the_polynomial(n) -> None:
    rng = random.Random(n)
    symbols = [rng.getrandbits(64) for _ in range(40)]
    wanted = []
    for i in range(len(symbols) - n + 1):
        value = 0
        for symbol in symbols[i : i + n]:
            value = (value * GRAM_BASE + symbol) % 2**64
        wanted.append(value)
    assert gram_hashes(np.array(symbols, np.uint64), n).tolist() == wanted
    assert gram_hashes(np.array(symbols[: n - 1], np.uint64), n).size == 0


# ---- exam files


def write_exams(folder: Path) -> Path:
    """The invented questions in all the forms that exams come in."""
    questions = invented_questions()
    paper = folder / "igakuqa" / "2099"
    paper.mkdir(parents=True)
    rows = [{"problem_id": q.question_id, "problem_text": q.stem, "choices": q.choices} for q in (questions[0], questions[2])]
    (paper / "900-A.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    english = {"problem_id": "900A1", "problem_text_en": CASE_ENGLISH, "choices_en": CASE_CHOICES_ENGLISH}
    (paper / "900-A_translate.jsonl").write_bytes(orjson.dumps(english))
    (paper / "900-A_metadata.jsonl").write_bytes(b'{"problem_id": "900A1", "category": "x"}\n')
    (folder / "jmmlu").mkdir()
    (folder / "jmmlu" / "sleep.csv").write_bytes('\ufeff眠りは何か?,甲,乙,丙,丁,A\n"二行の\n問い",1,2,3,4,B\n'.encode())
    (folder / "plain").mkdir()
    plain = [{"id": q.question_id, "question": q.stem, "choices": q.choices} for q in questions[3:]]
    (folder / "plain" / "more.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in plain))
    (folder / "README.md").write_text("not an exam")
    return folder


def test_exams_are_read_in_all_their_forms(tmp_path) -> None:
    texts = exam_texts(write_exams(tmp_path))
    table = [ExamText("sleep/1", "original", "眠りは何か?", ("甲", "乙", "丙", "丁"))]
    table.append(ExamText("sleep/2", "original", "二行の\n問い", ("1", "2", "3", "4")))
    questions = invented_questions()
    assert texts == [questions[0], questions[2], questions[1], *table, *questions[3:]]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("900-A.jsonl", b'{"problem_id": "1", "problem_text": "a", "choices": []}\n{"problem_id"', r"900-A\.jsonl:2"),
        ("900-A.jsonl", b'{"problem_id": "1", "choices": []}\n', r"900-A\.jsonl:1: .*problem_text"),
        ("900-A_translate.jsonl", b'{"problem_id": "1", "problem_text": "a", "choices": []}', "problem_text_en"),
        ("more.jsonl", b'{"id": 1, "question": "a", "choices": "bc"}', r"more\.jsonl:1: .*list of strings"),
        ("sleep.csv", "問い,甲,乙\n".encode(), r"row 1 has 3 columns"),
        ("note.txt", b"", "holds no exam"),
    ],
)
def test_what_is_no_exam_is_refused_with_its_place(tmp_path, name, content, message) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        exam_texts(tmp_path)


# ---- the stage


@pytest.fixture
def corpus(write_lines) -> Path:
    for number in range(3):
        records = [
            {"id": f"clean-{number}", "text": TEXTBOOK, "source": "book", "lang": "ja"},
            {"id": f"case-{number}", "text": page("\n".join([CASE, *CASE_CHOICES])), "source": "web", "lang": "en"},
            {"id": f"english-{number}", "text": CASE_ENGLISH, "source": "web", "lang": "en", "year": 2031},
        ]
        path = write_lines(records, f"corpus/{number}.jsonl")
    return path.parent


@pytest.fixture
def exams(tmp_path) -> Path:
    return write_exams(tmp_path / "exams")


def run(corpus: Path, target: Path, exams: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, TOOL, corpus, target, "--exams", exams / "igakuqa", exams / "plain", *words]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


def load_report(target: Path) -> dict:
    return json.loads((target / "contamination.json").read_text(encoding="utf-8"))


def test_the_tool_removes_what_it_finds_and_says_where_it_stood(corpus, exams, tmp_path) -> None:
    target = tmp_path / "target"
    done = run(corpus, target, exams, "--workers", "2")
    assert done.returncode == 0, done.stderr
    manifest = load_manifest(target)
    assert (manifest.counts.documents, manifest.counts.dropped) == (3, {"exam_question": 6})
    assert [document.text for document in read_documents(target)] == [TEXTBOOK] * 3
    removed = list(read_documents(target / "removed" / "exam_question.jsonl.zst"))
    assert [(r.id, r.meta["detail"]) for r in removed[:2]] == [("case-0", "900A1"), ("english-0", "900A1")]
    assert removed[1].text == CASE_ENGLISH and removed[1].meta["meta"]["year"] == 2031
    report = load_report(target)
    assert report["num_questions"] == 10 and list(report["questions"]) == ["900A1"]
    assert {hit["document"]: hit["form"] for hit in report["questions"]["900A1"]} == {
        **{f"case-{i}": "original" for i in range(3)},
        **{f"english-{i}": "translation" for i in range(3)},
    }


def test_flagging_keeps_every_document_and_reports_the_same(corpus, exams, tmp_path) -> None:
    flagged, removed = tmp_path / "flagged", tmp_path / "removed"
    decontaminate(corpus, flagged, [exams], "flag", progress=False)
    decontaminate(corpus, removed, [exams], progress=False)
    documents = list(read_documents(flagged))
    assert [d.text for d in documents] == [d.text for d in read_documents(corpus)]
    assert [[h["question_id"] for h in d.meta.get("contamination", [])] for d in documents[:3]] == [[], ["900A1"], ["900A1"]]
    assert load_manifest(flagged).details["counts"] == {"flagged": 6}
    there, here = load_report(flagged)["questions"], load_report(removed)["questions"]
    assert [{**hit, "removed": True} for hit in there["900A1"]] == here["900A1"]
    assert not any(hit["removed"] for hit in there["900A1"])


def test_the_number_of_workers_changes_nothing(corpus, exams, tmp_path) -> None:
    for workers in (1, 2):
        decontaminate(corpus, tmp_path / str(workers), [exams / "igakuqa"], workers=workers, progress=False)
    files = [sorted(p.relative_to(tmp_path / str(w)) for p in (tmp_path / str(w)).rglob("*.*st*")) for w in (1, 2)]
    assert files[0] == files[1] and len(files[0]) == 4
    names = [*files[0], Path("contamination.json")]
    assert all((tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes() for name in names)


def test_a_rerun_restores_a_lost_report_and_other_exams_are_another_result(corpus, exams, tmp_path) -> None:
    target, paper = tmp_path / "target", exams / "igakuqa" / "2099" / "900-A.jsonl"
    decontaminate(corpus, target, [exams / "igakuqa"], progress=False)
    before = load_report(target)
    (target / "contamination.json").unlink()
    decontaminate(corpus, target, [exams / "igakuqa"], progress=False)
    assert load_report(target) == before
    paper.write_bytes(paper.read_bytes().replace("右下腿".encode(), "左下腿".encode()))
    with pytest.raises(CorpusError, match="exams_sha256"):
        decontaminate(corpus, target, [exams / "igakuqa"], progress=False)
    decontaminate(corpus, target, [exams / "igakuqa"], overwrite=True, progress=False)
    changed = [hit["overlap"] for hit in load_report(target)["questions"]["900A1"] if hit["form"] == "original"]
    assert len(changed) == 3 and all(0.8 < overlap < 1 for overlap in changed)


@pytest.mark.parametrize("action", ["remove", "flag"])
def test_merged_shards_equal_an_unsharded_run(action, corpus, exams, tmp_path) -> None:
    folder, target = tmp_path / "several", tmp_path / "merged"
    folder.mkdir()
    lines = b"".join(path.read_bytes() for path in sorted(corpus.rglob("*.jsonl"))).splitlines(keepends=True)
    for number in range(4):
        (folder / f"{number}.jsonl").write_bytes(b"".join(lines[number::4]))
    decontaminate(folder, tmp_path / "whole", [exams], action, progress=False)
    for index in (3, 1, 2):
        decontaminate(folder, target, [exams], action, shard=(index, 3), progress=False)
        assert not list(target.rglob("contamination.json")), "a shard's findings are not those of the corpus"
    with pytest.raises(CorpusError, match=r"shard-1-of-3 was made with other exams \(exams,.* give the same --exams"):
        merge_decontaminated(target, [exams / "igakuqa"])
    assert not (target / "contamination.json").exists()
    merged = merge_decontaminated(target, [exams])
    assert merged.model_dump(exclude={"created"}) == load_manifest(tmp_path / "whole").model_dump(exclude={"created"})
    files = [{p.relative_to(t): p.read_bytes() for p in t.rglob("*") if p.is_file() and p.name != "manifest.json"}
             for t in (target, tmp_path / "whole")]  # fmt: skip
    assert files[0] == files[1] and Path("contamination.json") in files[0]
    (target / "contamination.json").unlink()  # killed between the documents and their report
    merge_decontaminated(target, [exams])
    assert load_report(target) == load_report(tmp_path / "whole")


def test_an_old_report_does_not_outlive_its_documents(corpus, exams, tmp_path) -> None:
    target, paper = tmp_path / "target", exams / "igakuqa" / "2099" / "900-A.jsonl"
    decontaminate(corpus, target, [exams], progress=False)
    old = load_report(target)
    with pytest.raises(CorpusError, match="holds a finished result already"):
        decontaminate(corpus, target, [exams], shard=(1, 1), progress=False)
    paper.write_bytes(paper.read_bytes().replace("右下腿".encode(), "左下腿".encode()))
    decontaminate(corpus, target, [exams], overwrite=True, shard=(1, 1), progress=False)
    assert load_report(target) == old, "until the merge the old result stands whole"
    (target / "shard-1-of-1" / "manifest.json").rename(tmp_path / "away")
    with pytest.raises(CorpusError, match="not finished"):
        merge_decontaminated(target, [exams], overwrite=True)
    assert load_report(target) == old
    (tmp_path / "away").rename(target / "shard-1-of-1" / "manifest.json")
    merge_decontaminated(target, [exams], overwrite=True)
    assert load_report(target) != old


def test_the_tool_in_shards(corpus, exams, tmp_path) -> None:
    for index in (1, 2):
        made = run(corpus, tmp_path / "t", exams, "--shard", f"{index}/2")
        assert made.returncode == 0 and "the report comes with --merge" in made.stdout, made.stderr
    command = [sys.executable, str(TOOL), str(tmp_path / "t"), "--merge", "--exams", str(exams / "igakuqa"), str(exams / "plain")]
    merged = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert merged.returncode == 0 and "contamination.json" in merged.stdout, merged.stderr


def test_exams_that_name_a_question_twice_are_refused(corpus, exams, tmp_path) -> None:
    with pytest.raises(CorpusError, match="900A1"):
        decontaminate(corpus, tmp_path / "target", [exams, exams], progress=False)


def test_the_report_holds_no_exam_text(corpus, exams, tmp_path) -> None:
    decontaminate(corpus, tmp_path / "target", [exams], progress=False)
    assert CASE[:12] not in (tmp_path / "target" / "contamination.json").read_text(encoding="utf-8")


# ---- real exams and corpora


@pytest.fixture(scope="module")
def real(shared_data: Path) -> tuple[list[ExamText], ExamIndex]:
    texts = exam_texts(shared_data / "exams")
    return texts, ExamIndex(texts)


def test_real_questions_are_found_in_real_documents(shared_data, real) -> None:
    texts, index = real
    hosts = [document.text for document in read_documents(shared_data / "corpora" / "wac_ja.jsonl")]
    rng, missed, sample = random.Random(5), [], [text for text in texts if "/" not in text.question_id][::16]
    for text in sample:
        host, choices = rng.choice(hosts), rng.sample(text.choices, len(text.choices))
        place = rng.randrange(len(host) + 1)
        planted = wide(f"{host[:place]}\n{text.stem}\n" + "\n".join(choices) + f"\n{host[place:]}")
        if (text.question_id, text.form) not in ids(index, planted):
            missed.append(text.question_id)
    assert len(sample) == 200 and not missed


@pytest.mark.parametrize("name", ["wac_ja.jsonl", "openstax_nursing_en.jsonl.gz", "pubmedqa_en.jsonl.zst"])
def test_no_real_document_is_flagged(shared_data, real, name) -> None:
    flagged = [document.id for document in read_documents(shared_data / "corpora" / name) if real[1].find(document.text)]
    assert not flagged


def test_an_exam_that_is_a_file_or_lacks_a_field_is_named(tmp_path):
    path = tmp_path / "exam.jsonl"
    path.write_text('{"question": "Q?", "choices": ["one", "two"]}\n')
    with pytest.raises(CorpusError, match=r"exam.jsonl: a file; give the folder that holds it"):
        exam_texts(path)
    with pytest.raises(CorpusError, match=r"exam.jsonl:1: no field 'id'; expected an object with id, question, choices"):
        exam_texts(tmp_path)
