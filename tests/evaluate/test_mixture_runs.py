"""What a study takes from run folders is what was read and scored; what is no run, or unlike the others, is refused in words."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_jmed.corpus.datasheet import DescribeSettings, describe
from megatron_jmed.corpus.document import read_documents
from megatron_jmed.corpus.piece_table import load_pieces
from megatron_jmed.corpus.token_settings import TokenizeSettings
from megatron_jmed.corpus.tokenizer import train_tokenizer
from megatron_jmed.corpus.tokens import tokenize
from megatron_jmed.errors import CorpusError, ExamError
from megatron_jmed.evaluate.cloze import held_out, make_cloze
from megatron_jmed.evaluate.exam import load_exam
from megatron_jmed.evaluate.mixture_runs import lower_is_better, read_study
from megatron_jmed.evaluate.mixture_texts import SourceTexts
from megatron_jmed.evaluate.score import save_scores, score_records

DATA = Path(__file__).parents[2] / "examples/data"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The invented texts as token sets ja and en, their tokenizer, an exam of what is held out, and a datasheet of ja."""
    folder = tmp_path_factory.mktemp("study_corpus")
    sources = {"ja": DATA / "texts_ja.jsonl", "en": DATA / "texts_en.jsonl.gz"}
    train_tokenizer(list(map(str, sources.values())), folder / "tokenizer.model", 2000)
    for name, source in sources.items():
        tokenize(source, folder / name, TokenizeSettings(folder / "tokenizer.model", progress=False))
    describe(
        [folder / "ja"], folder / "sheet", DescribeSettings(folder / "tokenizer.model", DATA / "medical_terms.txt", progress=False)
    )
    documents = [document for source in sources.values() for document in held_out(list(read_documents(source)), 0.1)]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in make_cloze(documents, 40, seed=1)]
    (folder / "cloze.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def scores_file(path: Path, num_right: int) -> None:
    """40 questions, the first `num_right` right; half of them Japanese."""
    facts = {"year": None, "paper": "", "category": "", "subject": "", "essential": False, "withdrawn": False, "type": "single",
             "needs_image": False, "points": 1, "num_choices": 4, "num_to_pick": 1, "answers": [["b"]], "always_correct": False,
             "forbidden": [], "not_scored": None, "num_truncated_tokens": 0}  # fmt: skip
    records = [
        facts | {"id": f"q{n}", "lang": ("ja", "en")[n % 2], "picked": {"sum": ["b" if n < num_right else "a"], "per_byte": ["a"]}}
        for n in range(40)
    ]
    head = {"format_version": 2, "exam": path.stem, "model": {"name": "hf", "fingerprint": "0"}, "num_shots": 0}
    path.parent.mkdir(exist_ok=True)
    save_scores(head | score_records(records, ("sum", "per_byte")) | {"questions": records}, path)


def make_run(folder: Path, corpus: Path, ja_tokens: int, en_tokens: int, num_right: int = 20, seed: int = 1) -> Path:
    """A finished run of 3000 tokens: what training writes, planned differently from what was read."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": folder.name, "seed": seed, "data": {"valid_ratio": 0.1}}))
    steps = [
        {
            "step": step,
            "tokens": 1000 * step,
            "valid_loss": {"all": 9.0, "ja": 5 - step / 4, "en": 6.0 - ja_tokens / 1000, "wiki": 4.0 + en_tokens / 10_000},
        }
        for step in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in steps))
    sources = [
        {
            "name": name,
            "path": str(corpus / name),
            "lang": lang,
            "num_tokens": 10_000,
            "num_documents": 10,
            "planned_tokens": 7,
            "consumed_tokens": tokens,
            "epochs": tokens / 9000,
        }
        for name, lang, tokens in (("ja", "", ja_tokens), ("en", "en", en_tokens), ("wiki", "ja", 0))
    ]
    (folder / "blend.json").write_text(json.dumps({"sources": sources}))
    (folder / "done").write_text("3\n")
    scores_file(folder / "scores/cloze.json", num_right)
    return folder


@pytest.fixture
def runs(tmp_path: Path, corpus: Path) -> Path:
    make_run(tmp_path / "runs/a", corpus, 1000, 2000, 20)
    make_run(tmp_path / "runs/b", corpus, 2400, 600, 30)
    make_run(tmp_path / "runs/c", corpus, 3000, 0, 8, seed=5)
    return tmp_path / "runs"


def change_blend(run: Path, **words: Any) -> None:
    blend = json.loads((run / "blend.json").read_text())
    for source in blend["sources"]:
        source |= words
    (run / "blend.json").write_text(json.dumps(blend))


def test_shares_features_and_scores_are_those_of_what_was_read(runs):
    study = read_study([runs], domains={"ja": "medical", "en": "medical", "wiki": "general"}, base_losses={"ja": 3.0, "en": 4.0})
    a, b, c = study.runs
    assert [run.name for run in study.runs] == ["a", "b", "c"] and c.seed == 5 and a.tokens_read == 3000
    assert a.shares == pytest.approx({"ja": 1 / 3, "en": 2 / 3}) and c.shares == {"en": 0.0, "ja": 1.0}
    assert a.features["share ja"] == pytest.approx(1 / 3)
    assert a.features["base perplexity"] == pytest.approx(np.exp(3 / 3 + 4 * 2 / 3))
    assert a.features["epochs max"] == pytest.approx(2000 / 9000)
    assert not {"tokens read", "share domain medical", "epochs"} & set(a.features), "the same in all runs"
    assert "tokens read" in study.notes[0] and "share domain medical" in study.notes[0]
    assert study.notes[1] == "Scores that are the same in all runs teach nothing and are left out: valid loss ja."
    assert a.scores["valid loss en"] == 5.0 and a.scores["valid loss wiki"] == pytest.approx(4.2), (
        "also of a source that was not read"
    )
    assert "valid loss all" not in a.scores and lower_is_better("valid loss en") and not lower_is_better("exam cloze")
    assert set(a.scores) == {"valid loss en", "valid loss wiki", "exam cloze", "exam cloze / ja", "exam cloze / en"}
    assert a.scores["exam cloze"] == 0.5 and b.scores["exam cloze / ja"] == 0.75
    assert sum(b.items["cloze"].values()) == 30 and b.items["cloze"]["q29"] and not b.items["cloze"]["q30"]
    assert study.scaling[0]["points"][1] == {"tokens": 2000, "valid loss en": 5.0, "valid loss ja": 4.5, "valid loss wiki": 4.2}
    assert read_study([runs / "b"], method="per_byte").runs[0].scores["exam cloze"] == 0.0
    assert read_study([runs / "c", runs / "a", runs / "b"]).runs == read_study([runs]).runs


def test_machine_translated_text_is_a_group_of_its_own(runs, corpus, tmp_path):
    tokenize(DATA / "texts_ja.jsonl", tmp_path / "mt", TokenizeSettings(corpus / "tokenizer.model", origin="machine_translated",
                                                                        progress=False))  # fmt: skip
    blend = json.loads((runs / "a/blend.json").read_text())
    blend["sources"][0]["path"] = str(tmp_path / "mt")
    (runs / "a/blend.json").write_text(json.dumps(blend))
    a = read_study([runs / "a"]).runs[0]
    assert a.shares == pytest.approx({"ja+mt": 1 / 3, "en": 2 / 3, "ja": 0}), "as the token set says"
    for run in "abc":
        change_blend(runs / run, origin="machine_translated")
    assert read_study([runs]).runs[0].shares == pytest.approx({"ja+mt": 1 / 3, "en+mt": 2 / 3}), "as the run's blend.json says"


def test_base_is_what_the_design_says_else_the_mixture_that_is_repeated(runs, corpus):
    assert not any(run.is_base for run in read_study([runs / "a"]).runs)
    change_blend(runs / "c", planned_tokens=8)
    assert [run.is_base for run in read_study([runs]).runs] == [True, True, False]
    design = {"runs": [{"name": name, "is_base": name == "c"} for name in "abc"]}
    assert [run.is_base for run in read_study([runs], design=design).runs] == [False, False, True]
    with pytest.raises(ExamError, match="c: not in the design, which has a; b"):
        read_study([runs], design={"runs": design["runs"][:2]})


def test_folders_that_cannot_be_studied_are_named(runs, tmp_path, corpus):
    with pytest.raises(ExamError, match="nothing: no run folder and no folder of runs"):
        read_study([runs, tmp_path / "nothing"])
    (runs / "b/done").unlink()
    with pytest.raises(ExamError, match=r"1 of 3 runs are not finished: b; .*--allow-unfinished"):
        read_study([runs])
    study = read_study([runs], allow_unfinished=True)
    assert [run.name for run in study.runs] == ["a", "c"] and "not finished and are left out: b" in study.notes[0]
    (runs / "c/scores/cloze.json").unlink()
    with pytest.raises(ExamError, match="the scores of the runs differ: c lacks exam cloze; exam cloze / en; exam cloze / ja"):
        read_study([runs], allow_unfinished=True)
    with pytest.raises(ExamError, match="exam cloze was scored by sum, per_byte, not by generated"):
        read_study([runs / "a"], method="generated")
    with pytest.raises(ExamError, match="a: the base model was not validated on en; it has ja"):
        read_study([runs / "a"], base_losses={"ja": 1.0})
    make_run(tmp_path / "other/a", corpus, 1, 1)
    with pytest.raises(ExamError, match="a occurs twice"):
        read_study([runs, tmp_path / "other"])
    change_blend(runs / "a", consumed_tokens=0, epochs=0.0)
    with pytest.raises(ExamError, match=r"a: blend\.json: no token was read"):
        read_study([runs / "a"])
    (runs / "a/blend.json").unlink()
    with pytest.raises(ExamError, match=r"a: no blend\.json"):
        read_study([runs / "a"])


def test_runs_that_are_not_there_and_validation_before_the_end_are_noted(runs):
    assert read_study([runs]).notes == read_study([runs], design={"runs": [{"name": n, "is_base": True} for n in "abc"]}).notes
    notes = read_study([runs], design={"runs": [{"name": n, "is_base": True} for n in "abcdx"]}).notes
    assert "2 runs of the design are not among these: d; x." in notes
    with open(runs / "b/metrics.jsonl", "a") as file:
        file.write('{"step": 99, "tokens": 99000, "loss": 4.0}\n')
    assert "The last validation losses are of a step before the last in b." in read_study([runs]).notes


def test_features_that_differ_are_refused(runs):
    blend = json.loads((runs / "a/blend.json").read_text())
    blend["sources"][1]["lang"] = "fr"
    (runs / "a/blend.json").write_text(json.dumps(blend))
    with pytest.raises(ExamError, match="the features of the runs differ: a lacks share en; b lacks share fr; c lacks share fr"):
        read_study([runs])


def test_texts_are_the_same_from_a_datasheet_and_counted_here(corpus, runs):
    counted = SourceTexts((), corpus / "tokenizer.model", DATA / "medical_terms.txt")
    described = SourceTexts([corpus / "sheet"])
    ours, theirs = (read_study([runs / "c"], texts).runs[0].features for texts in (counted, described))
    assert ours == theirs and ours["script hiragana"] > 0.3 and ours["terms per 1000 characters"] > 1
    with pytest.raises(CorpusError, match="en is in no datasheet given"):
        read_study([runs / "a"], described)
    mixed = read_study([runs / "a"], counted).runs[0].features
    english = counted([source(corpus / "en")], 0.1)
    for name in ("characters a token", "sentence characters"):
        assert mixed[name] == pytest.approx(ours[name] / 3 + english[name] * 2 / 3)
    assert 0 < mixed["script latin"] < english["script latin"]


def source(path: Path, tokens: int = 9000, train_tokens: float = 9000.0):
    from megatron_jmed.evaluate.mixture_runs import ReadSource

    return ReadSource(path.name, str(path), tokens, train_tokens, {"en": 1.0})


def test_vocabulary_met_is_counted_over_what_was_read(corpus):
    tokenizer = corpus / "tokenizer.model"
    texts = SourceTexts((), tokenizer, exams=[corpus / "cloze.jsonl"])
    met = texts([source(corpus / "ja")], 0.0)
    table = load_pieces(tokenizer)
    ids = np.fromfile(corpus / "ja/tokens.bin", dtype="<u2")
    exam = [table.processor.encode(text) for q in load_exam(corpus / "cloze.jsonl").questions for text in (q.text, *q.choices)]
    words = {i for text in exam for i in text}
    pairs = {pair for text in exam for pair in itertools.pairwise(text)}
    assert met["exam cloze words met"] == pytest.approx(len(words & set(ids.tolist())) / len(words))
    assert met["exam cloze pairs met"] == pytest.approx(
        len(pairs & set(zip(ids.tolist(), ids[1:].tolist(), strict=False))) / len(pairs)
    )
    less, more = (texts([source(corpus / "ja", tokens)], 0.1)["exam cloze pairs met"] for tokens in (900, 4500))
    assert 0 < less < more < met["exam cloze pairs met"]
    assert texts([source(corpus / "ja", 18_000)], 0.0) == met, "reading again meets nothing new"
    with pytest.raises(CorpusError, match="--tokenizer"):
        SourceTexts(exams=[corpus / "cloze.jsonl"])


def test_cloze_asks_for_the_next_sentence_of_documents_that_were_held_out(corpus):
    exam = load_exam(corpus / "cloze.jsonl")
    assert len(exam.questions) == 40 and {q.lang for q in exam.questions} == {"ja", "en"}
    every = {d.id: d for path in (DATA / "texts_ja.jsonl", DATA / "texts_en.jsonl.gz") for d in read_documents(path)}
    ids = {lang: sorted(i for i in every if i.startswith(lang)) for lang in ("ja", "en")}
    for question in exam.questions:
        document = every[question.category]
        right = question.choices["abcd".index(next(iter(question.answers[0])))]
        place = document.text.index(question.text) + len(question.text)
        assert document.text[place:].lstrip().startswith(right)
        others = [choice for choice in question.choices if choice != right]
        assert len(set(others)) == 3 and all(2 / 3 <= len(choice) / len(right) <= 1.5 for choice in others)
        assert document.id in ids[document.lang][round(0.9 * len(ids[document.lang])) :], "training reads the others"
    positions = [q.answers[0] for q in exam.questions]
    assert len(set(positions)) == 4


def test_cloze_tool_says_what_is_missing(tmp_path, samples, monkeypatch, capsys):
    tool = samples.load_tool("make_cloze")

    def call(*words: str) -> None:
        monkeypatch.setattr("sys.argv", ["make_cloze", *words])
        tool.main()

    texts, target = str(DATA / "texts_ja.jsonl"), tmp_path / "cloze.jsonl"
    call(texts, str(target), "--questions", "20", "--valid-ratio", "0.1")
    first = target.read_bytes()
    call(texts, str(target), "--questions", "20", "--valid-ratio", "0.1")
    assert target.read_bytes() == first and "20 questions from 43 documents" in capsys.readouterr().out
    with pytest.raises(CorpusError, match=r"43 documents give \d+ questions, and 500 are asked"):
        call(texts, str(target), "--questions", "500", "--valid-ratio", "0.1")
    with pytest.raises(ExamError, match="is there already and holds something else"):
        call(texts, str(target), "--questions", "21", "--valid-ratio", "0.1")
    assert target.read_bytes() == first
    with pytest.raises(CorpusError, match="--context-characters 0"):
        call(texts, str(tmp_path / "other.jsonl"), "--questions", "5", "--context-characters", "0")
    with pytest.raises(CorpusError, match=r"give a name such as cloze\.jsonl"):
        call(texts, str(tmp_path / "cloze.txt"), "--questions", "5")
