"""Each rule with a text it keeps and one it removes, each spelling change, languages, and the tool on real text."""

import random
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import zstandard
from dirty_texts import Labelled, dirty_texts, good_texts

from megatron_jmed.corpus.boilerplate import drop_boilerplate
from megatron_jmed.corpus.clean import clean, clean_document, clean_settings
from megatron_jmed.corpus.clean_rules import RULES, CleanSettings, Look
from megatron_jmed.corpus.document import Document, read_documents
from megatron_jmed.corpus.language import find_language
from megatron_jmed.corpus.spelling import SPELLING, normalise
from megatron_jmed.corpus.stage import Kept, Removed
from megatron_jmed.errors import CorpusError

REPOSITORY = Path(__file__).resolve().parents[2]
JA = "患者は六十五歳の男性で、三日前から続く発熱と咳を訴えて来院した。胸部X線で右下肺野に浸潤影を認めた。"
EN = "The patient was admitted to the hospital with fever and a cough that had lasted for three days. "
WORDS = "angina arteria basilar cardiac cranial dermis enamel femoral gastric hepatic ileum jejunum kidney lumbar maxilla nasal "
DIGITS = "138 4.2 101 24 0.9 7.41 40 95 12.5 8.1 "
SETTINGS = CleanSettings()


def varied(sentence: str, times: int) -> str:
    """A long text of one kind without repetition: the letters of each sentence in another order."""
    source = random.Random(1)
    return "".join("".join(source.sample(sentence, len(sentence))) for _ in range(times))


KEPT_AND_REMOVED = {
    "too_short": ("高血圧症の診断と治療について", "図1-2"),
    "too_long": ("あ" * 5_000_000, "あ" * 5_000_001),
    "language_not_wanted": (("ja", JA), ("other", JA)),
    "few_letters": ("検査値：Na 138、K 4.2、Cl 101、CRP 陰性、肝機能は正常", "検査 " + DIGITS * 3),
    "unreadable": (JA + "※" * 5, JA.replace("の", "\ufffd")),
    "same_character": ("痛みの程度" + "ー" * 19 + JA, "記入欄" + "＿" * 60),
    "repeated_lines": (f"{JA}\n痛い\n{EN}\n痛い", "\n".join([JA, "トップ　診療科　アクセス　採用情報", *[f"{JA}"] * 3])),
    "repeated_pieces": (varied(JA, 20), JA + ("インフルエンザの予防接種についてのお知らせ" * 40)),
    "compresses_away": (varied(EN, 20), "0001 あり なし あり なし\n" * 300),
    "cut_lines": (f"{JA}\n{JA}\n…\n{JA}\n{EN}", "糖尿病とは…\n高血圧の人は…\n脂質異常症で…\n痛風の原因は何か"),
    "no_sentence": (varied("心電図検査。", 400), varied("内科　外科　眼科　小児科　皮膚科　", 150)),
    "odd_words": (("en", EN * 4), ("en", "a b c d e f g h i j " * 6)),
    "few_common_words": (("en", EN * 4), ("en", WORDS * 4)),
    "few_particles": ("糖尿病と高血圧の診断、" * 20, "糖尿病、高血圧、腰痛、貧血、" * 20),
}


def look(case: str | tuple[str, str]) -> Look:
    lang, text = case if isinstance(case, tuple) else ("ja", case)
    return Look(text, lang, SETTINGS)


def test_every_rule_has_its_examples() -> None:
    assert KEPT_AND_REMOVED.keys() == RULES.keys()


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_keeps_one_and_removes_the_other(rule: str) -> None:
    kept, removed = KEPT_AND_REMOVED[rule]
    assert RULES[rule](look(kept)) is None
    assert RULES[rule](look(removed))


def test_ordinary_texts_break_no_rule() -> None:
    for lang, text in (("ja", JA), ("en", EN)):
        assert {rule: detail for rule in RULES if (detail := RULES[rule](look((lang, text))))} == {}


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("line_ends", "一\r\n二\r三\u2028四\f五", "一\n二\n三\n四\n五"),
        ("controls", "投\x00与\u200b\ufeff量\x07\u202e\xad10", "投与量10"),
        ("spaces", "5\u00a0mg\u2009/\u202fday", "5 mg / day"),
        ("half_width_katakana", "ﾍﾟﾆｼﾘﾝ｢ｶﾞﾝ｣､ｲﾝｽﾘﾝ･ﾎﾟﾝﾌﾟ｡", "ペニシリン「ガン」、インスリン・ポンプ。"),
        ("full_width_letters", "ＣＴで１２．５ｍｇ、１，０００人．", "CTで12.5mg、1,000人．"),
        ("nfc", "か\u3099ん　e\u0301", "がん　é"),
        ("wave_dash", "２～３日".translate({0xFF12: "2", 0xFF13: "3"}), "2〜3日"),
        ("blank_space", "\n\n　主訴 \t\n\n\n\n発熱　\n", "　主訴\n\n発熱"),
    ],
)
def test_a_step_changes_what_it_says(step: str, before: str, after: str) -> None:
    assert normalise(before) == (after, {f"changed_{step}": 1})
    assert normalise(after) == (after, {})


def test_every_step_is_tested() -> None:
    marks = test_a_step_changes_what_it_says.pytestmark[0].args[1]
    assert [mark[0] for mark in marks] == list(SPELLING)


def test_what_is_written_otherwise_stays() -> None:
    text = "（①㎎㌍ｍ²＋－−ー―…％：！？）　﨑塚\ufa10\U0002f800 葛\U000e0100城\t5－10\u200d".replace("ｍ", "m")
    assert normalise(text) == (text, {})


def test_a_lone_sound_mark_does_not_change_its_neighbour() -> None:
    assert normalise("かﾞ")[0] == "か゛"


def test_cleaning_twice_changes_nothing() -> None:
    source = random.Random(0)
    alphabet = "aＡ1１．，,.\r\n\x85\u2028 \u3000\xa0\u200b\x07か\u3099\u309aﾊﾞﾟ｡～〜\ufa19神e\u0301\ufffe\u1100\u1161続きを読む©"
    for _ in range(20_000):
        text, _ = drop_boilerplate(normalise("".join(source.choices(alphabet, k=source.randrange(20))))[0])
        assert drop_boilerplate(normalise(text)[0]) == (text, 0), ascii(text)


def test_a_long_line_of_spaces_takes_no_quadratic_time() -> None:
    text = "a" + " " * 1_000_000 + "b"
    assert normalise(text)[0] == text


@pytest.mark.parametrize(
    "line",
    [
        "続きを読む",
        "▲ページの先頭へ戻る",
        "このページを印刷する",
        "プライバシーポリシー",
        "お問い合わせはこちら >",
        "本サイトの内容の無断転載を禁じます。",
        "Copyright © 2019 Example Clinic. All Rights Reserved.",
        "Skip to main content",
        "Read more about quitting smoking",
        "Follow us on social media",
        "This site uses cookies to improve your experience.",
    ],
)
def test_boilerplate_lines_go(line: str) -> None:
    assert drop_boilerplate(f"発熱\n\n{line}\n\n咳") == ("発熱\n\n咳", 1)


@pytest.mark.parametrize(
    "line",
    [
        "続きを読むと、著者の意図が分かる。",
        "患者は前のページに示した通りである。",
        "個人情報保護方針の策定は管理者の責務である。",
        "The copyright of the questionnaire is held by its developer.",
        "Cookies were offered to the children after the test.",
        "Patients should read more about the drug before use, says the guideline.",
    ],
)
def test_sentences_on_the_same_matters_stay(line: str) -> None:
    assert drop_boilerplate(line) == (line, 0)


# More than half English, but not enough of it to be called so without the Japanese; kana are few among so many letters.
BILINGUAL = (
    "The patient was admitted with fever and a productive cough and treated with antibiotics for a week. " * 9
    + "急性呼吸窮迫症候群、肺炎球菌性肺炎、慢性閉塞性肺疾患、気管支喘息発作、間質性肺炎急性増悪の鑑別診断を要する。" * 5
)


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        (JA, "ja"),
        ("今日", None),
        ("HbA1c 7.2%", None),
        (EN, "en"),
        ("CTで多発肺結節を認め、CRP elevated、procalcitonin elevated、blood culture陰性であった", "ja"),
        ("Der Patient wurde mit Fieber und Husten in das Krankenhaus aufgenommen und dort behandelt.", "other"),
        ("患者因胸痛和发热入院治疗，经过检查后诊断为急性心肌梗死，给予药物治疗后好转出院。", "other"),
        ("환자는 사흘 전부터 계속된 발열과 기침을 호소하며 내원하였다.", "other"),
        ("急性心筋梗塞、陳旧性脳梗塞、慢性腎臓病、本態性高血圧症、糖尿病性網膜症", "ja"),
        (EN * 3 + "（咳）", "en"),
        (BILINGUAL, "en"),
    ],
)
def test_languages(text: str, lang: str | None) -> None:
    assert find_language(text) == lang


def test_a_wrongly_declared_language_is_corrected_and_remembered() -> None:
    kept = clean_document(Document("1", EN, "s", "ja", {"year": 2020}), SETTINGS)
    assert kept == Kept(
        Document("1", EN.rstrip(), "s", "en", {"year": 2020, "declared_lang": "ja"}),
        {"changed_blank_space": 1, "lang_ja_to_en": 1},
    )


def test_a_removed_document_is_returned_as_it_came() -> None:
    document = Document("1", "図１\r\n", "s", "ja", {})
    assert clean_document(document, SETTINGS) == Removed(document, "too_short", "1 letters, at least 10")


def test_settings_from_words() -> None:
    settings = clean_settings(["too_short"], ["min_letters=30", "languages=ja"])
    assert (settings.rules, settings.min_letters, settings.languages) == (("too_short",), 30, ("ja",))
    for rules, changes, message in (
        (["short"], [], "there is no short; choose from too_short"),
        ([], ["min_letter=3"], "is not NAME=VALUE"),
        ([], ["min_letters=x"], "min_letters: .*integer"),
        ([], ["languages=de"], "there is no de; choose from ja, en, other"),
    ):
        with pytest.raises(CorpusError, match=message):
            clean_settings(rules, changes)


def test_the_tool_in_shards(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "clean"
    source.mkdir()
    for name, text in {"a": JA, "b": EN, "c": "表１"}.items():
        (source / f"{name}.jsonl").write_bytes(orjson.dumps({"id": name, "text": text}))

    def tool(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, REPOSITORY / "tools/clean_corpus.py", *words]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True)

    assert tool(str(source), str(target), "--shard", "1/2").returncode == 0
    refused = tool("--merge", str(target))
    assert (refused.returncode, "shard-2-of-2" in refused.stderr) == (2, True)
    assert tool(str(source), str(target), "--shard", "2/2").returncode == 0
    merged = tool("--merge", str(target))
    assert "2 documents" in merged.stdout and "{'too_short': 1}" in merged.stdout, merged.stderr
    assert [d.id for d in read_documents(target)] == ["a", "b"]
    both = tool(str(source), str(target), "--merge")
    assert (both.returncode, "error: " in both.stderr) == (2, True)


def test_real_text_is_hardly_removed(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "corpora" / "wac_ja.jsonl"
    manifest = clean(source, tmp_path / "clean", SETTINGS, progress=False)
    before = list(read_documents(source))
    assert manifest.counts.documents + sum(manifest.counts.dropped.values()) == len(before)
    assert manifest.counts.documents >= 0.99 * len(before)
    (documents,) = (tmp_path / "clean" / "documents").iterdir()
    assert "｢" not in zstandard.open(documents, "rt", encoding="utf-8").read()


def test_dirty_texts_go_and_good_ones_stay() -> None:
    def removed(texts: list[Labelled]) -> list[Labelled]:
        results = [clean_document(Document("", one.text, "", one.lang, {}), SETTINGS) for one in texts]
        return [one for one, result in zip(texts, results, strict=True) if isinstance(result, Removed)]

    dirty, good = dirty_texts(), good_texts()
    assert len({one.text for one in dirty}) >= 60 and len({one.text for one in good}) >= 60
    assert {(one.label, one.lang) for one in removed(good)} == {("good list", "ja"), ("good list", "en")}  # of diseases alone
    assert len(removed(good)) == 2
    missed = {(one.label, one.lang) for one in set(dirty) - set(removed(dirty))}
    assert missed == {("navigation", "ja"), ("navigation", "en")}  # the shortest: a menu of nine lines, once or twice
