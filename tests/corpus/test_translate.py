"""Translation against a real server on this machine: protocol, retries, cache, filter, and the origin down to the token set."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import orjson
import pytest
import zstandard

from megatron_jmed.corpus.clean import clean, clean_settings
from megatron_jmed.corpus.datasheet import DescribeSettings, describe
from megatron_jmed.corpus.dedup import DedupSettings, dedup
from megatron_jmed.corpus.document import read_documents
from megatron_jmed.corpus.manifest import load_manifest
from megatron_jmed.corpus.provenance import follow_chain
from megatron_jmed.corpus.shards import merge_shards
from megatron_jmed.corpus.token_set import load_token_set
from megatron_jmed.corpus.token_shards import merge_token_shards
from megatron_jmed.corpus.tokens import tokenize
from megatron_jmed.corpus.translate import TranslateSettings, translate
from megatron_jmed.corpus.translate_pieces import cut, join
from megatron_jmed.corpus.translate_quality import Answer, Bounds, copied_share, find_problem
from megatron_jmed.corpus.translate_server import ChatServer
from megatron_jmed.errors import CorpusError

sys.path.insert(0, str(Path(__file__).parent))
from chat_stub import ChatStub, translated

TOOL = Path(__file__).parents[2] / "tools" / "translate_corpus.py"
SENTENCE = "The patient number {n} was admitted with pneumonia and treated with antibiotics for {n} days."
TEXT = " ".join(SENTENCE.format(n=n) for n in range(3))


@pytest.fixture
def stub():
    """Make servers that are stopped in the end."""
    with contextlib.ExitStack() as stack:

        def make(**words) -> ChatStub:
            server = ChatStub(**words)
            stack.callback(server.close)
            return server

        yield make


def run(source, target, server, *, tries=4, concurrency=4, address=None, body=None, words=None, **settings):
    body = body or {"temperature": 0, "max_tokens": 100}
    settings = TranslateSettings(**{"from_lang": "en", "to_lang": "ja", "model": "stub", "decoding": body, **settings})
    make = partial(ChatServer, address or server.address, "stub", body, concurrency, tries, 10.0, 0.01)
    return translate(source, target, settings, make, progress=False, **(words or {}))


def removed(target: Path, reason: str) -> list[dict]:
    data = (target / "removed" / f"{reason}.jsonl.zst").read_bytes()
    text = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    return [orjson.loads(line) for line in text.splitlines()]


def numbered(count: int, text: str = TEXT) -> list[dict]:
    return [{"id": f"d{n}", "text": f"Case {n}. {text}", "lang": "en", "source": "notes", "year": 2020} for n in range(count)]


def test_documents_keep_their_id_and_say_what_they_are(stub, write_lines, tmp_path):
    server = stub()
    manifest = run(write_lines(numbered(5)), tmp_path / "t", server)
    documents = list(read_documents(tmp_path / "t"))
    assert [one.id for one in documents] == [f"d{n}" for n in range(5)]
    assert documents[1].text == translated(f"Case 1. {TEXT}")
    assert {one.lang for one in documents} == {"ja"} and {one.source for one in documents} == {"notes"}
    assert documents[0].meta == {"year": 2020, "machine_translated": True, "translated_from": "en"}
    assert manifest.origin.kind == "machine_translated"
    assert [step.model_dump() for step in manifest.origin.translations] == [{"from_lang": "en", "to_lang": "ja", "model": "stub"}]
    assert manifest.details["counts"]["pieces"] == 5
    request = server.requests[0]
    assert request["model"] == "stub" and request["temperature"] == 0 and request["max_tokens"] == 100
    assert "from English into Japanese" in request["messages"][0]["content"]


def test_busy_servers_are_asked_again_and_never_by_more_than_allowed(stub, write_lines, tmp_path):
    server = stub(busy=(429, 500, 503, 429, 502), delay=0.02)
    manifest = run(write_lines(numbered(12)), tmp_path / "t", server, concurrency=3)
    assert manifest.counts.documents == 12 and not manifest.counts.dropped
    assert set(server.asked.values()) == {1} and server.most_at_once == 3


def test_equal_texts_are_asked_for_once(stub, write_lines, tmp_path):
    server = stub()
    manifest = run(write_lines([{"id": str(n), "text": TEXT, "lang": "en"} for n in range(4)]), tmp_path / "t", server)
    assert manifest.counts.documents == 4 and server.asked.total() == 1


@pytest.mark.parametrize(
    ("word", "reason"),
    [("ENDLESS", "truncated"), ("SILENT", "empty"), ("UNTOUCHED", "copied_through"), ("GERMAN", "wrong_language"),
     ("SHORT", "length_ratio"), ("CHATTY", "length_ratio"), ("UNFIT", "refused"), ("FORBIDDEN", "refused")],
)  # fmt: skip
def test_what_is_unfit_is_filed_by_reason(stub, write_lines, tmp_path, word, reason):
    text = f"{word} {TEXT}"
    manifest = run(write_lines([*numbered(2), {"id": "bad", "text": text, "lang": "en"}]), tmp_path / "t", stub())
    assert manifest.counts.dropped == {reason: 1} and manifest.counts.documents == 2
    [kept] = removed(tmp_path / "t", reason)
    assert kept["id"] == "bad" and kept["text"] == text and kept["detail"] and "translation" in kept["meta"]


def test_text_in_another_language_is_not_sent(stub, write_lines, tmp_path):
    japanese = "患者は肺炎のために入院し、抗菌薬による治療を受けたのちに退院した。"
    server = stub()
    manifest = run(write_lines([{"text": japanese}, {"text": TEXT, "lang": "fr"}, {"text": TEXT}]), tmp_path / "t", server)
    assert manifest.counts.dropped == {"not_source_language": 2} and server.asked.total() == 1


def test_a_kill_loses_nothing_that_was_answered(write_lines, tmp_path):
    """kill -9 in the middle; the rerun asks only for what had no answer, and a third run with other bounds asks nothing."""
    source, target, log, port = write_lines(numbered(40)), tmp_path / "t", tmp_path / "log", tmp_path / "port"
    stub = subprocess.Popen([sys.executable, str(Path(__file__).with_name("chat_stub.py")), str(port), str(log), "0.05"])
    try:
        _wait_for(lambda: port.exists() and port.read_text())
        command = [sys.executable, str(TOOL), str(source), str(target), "--server", port.read_text(), "--model", "stub",
                   "--concurrency", "2"]
        first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        _wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= 12)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        time.sleep(0.2)
        asked = log.read_text().splitlines()
        assert len(asked) < 40 and not (target / "manifest.json").exists()
        second = subprocess.run(command, capture_output=True, text=True, check=True)
        twice = len(log.read_text().splitlines()) - 40
        assert 0 <= twice <= 2 and len(set(log.read_text().splitlines())) == 40  # the two that were on their way
        assert "40 documents of 40 pieces" in second.stdout
        body = {"temperature": 0, "max_tokens": 4096}
        nobody = "http://127.0.0.1:9"
        third = run(source, target, None, address=nobody, body=body, length_ratio=(0.9, 3), words={"overwrite": True})
        assert third.counts.dropped == {"length_ratio": 40} and len(log.read_text().splitlines()) == 40 + twice
    finally:
        stub.kill()
        stub.wait()


def _wait_for(happened, seconds=20.0):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_the_tool_names_all_that_is_wrong(tmp_path):
    words = ["--server", "host:8000", "--concurrency", "0", "--body", "[1]"]
    done = subprocess.run([sys.executable, str(TOOL), "in", str(tmp_path / "t"), *words], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "t").exists()
    for part in ("needs --model NAME", "host:8000 is no http:// address", "--concurrency 0", "--body must be a JSON object"):
        assert part in done.stderr


def test_a_failing_run_keeps_what_was_answered(stub, write_lines, tmp_path):
    source, target = write_lines(numbered(6)), tmp_path / "t"
    server = stub()
    run(write_lines(numbered(3), "half.jsonl"), target, server)
    with pytest.raises(CorpusError, match="cannot be reached.*same command again"):
        run(source, target, None, address="http://127.0.0.1:9", words={"overwrite": True})
    run(source, target, server, words={"overwrite": True})
    assert server.asked.total() == 6


def test_errors_name_what_is_wrong(stub, write_lines, tmp_path, monkeypatch):
    source, server = write_lines(numbered(3)), stub(key="secret")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(CorpusError, match="answered 401: .*set its key in OPENAI_API_KEY"):
        run(source, tmp_path / "t", server)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert run(source, tmp_path / "t", server).counts.documents == 3
    assert not [path for path in (tmp_path / "t").rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
    with pytest.raises(CorpusError, match="answered 404.*is the address right"):
        run(source, tmp_path / "u", server, address=server.address + "/elsewhere")
    number = b'{"choices": [{"message": {"content": 3}, "finish_reason": "stop"}]}'
    for nonsense in (b"<html>Welcome</html>", b'{"choices": []}', number):
        server.nonsense = nonsense
        with pytest.raises(CorpusError, match="did not answer with a chat completion|answered with finish_reason"):
            run(source, tmp_path / "u", server)
    server.nonsense, server.busy = None, [503] * 20
    with pytest.raises(CorpusError, match="answered 503.*asked 2 times"):
        run(source, tmp_path / "u", server, tries=2)
    server.busy = []
    with pytest.raises(CorpusError, match="refused 10 pieces one after another: answered 400.*context length"):
        run(write_lines(numbered(12, "UNFIT " + TEXT), "unfit.jsonl"), tmp_path / "v", server)


def test_settings_that_cannot_work_are_named_together():
    with pytest.raises(CorpusError) as error:
        TranslateSettings("en", "xx", "m", prompt="no place", max_piece_characters=3, length_ratio=(2, 1), max_bad_share=2)
    for part in ("--to xx", "holds {text} 0 times", "--max-piece-characters 3", "--length-ratio (2, 1)", "--max-bad-share 2"):
        assert part in str(error.value)
    with pytest.raises(CorpusError, match="both ja"):
        TranslateSettings("ja", "ja", "m")


def test_every_setting_that_decides_an_answer_asks_again(stub, write_lines, tmp_path):
    source, server = write_lines(numbered(2)), stub()
    again = {"words": {"overwrite": True}}
    run(source, tmp_path / "t", server)
    run(source, tmp_path / "t", server, prompt="Into {to}:\n\n{text}", **again)
    run(source, tmp_path / "t", server, body={"temperature": 1, "max_tokens": 100}, **again)
    assert server.asked.total() == 6 and server.requests[2]["messages"][0]["content"].startswith("Into Japanese:\n\nCase ")
    run(source, tmp_path / "t", server, max_copied_share=0.2, **again)
    assert server.asked.total() == 6


def test_a_field_of_the_request_can_be_taken_out(stub, write_lines, tmp_path):
    server = stub()
    run(write_lines(numbered(1)), tmp_path / "t", server, body={"temperature": None, "max_completion_tokens": 9})
    assert "temperature" not in server.requests[0] and server.requests[0]["max_completion_tokens"] == 9


# ---- pieces


def test_pieces_end_at_sentences_and_hold_the_whole_text():
    text = f"{TEXT}\n\n{TEXT} {TEXT}\n- an item of a list"
    pieces = cut(text, "en", 200)
    assert "".join(piece.text + piece.gap for piece in pieces) == text
    assert all(len(piece.text) <= 200 for piece in pieces) and len(pieces) > 3
    assert all(piece.text.endswith(".") for piece in pieces[:-1])
    assert join(pieces, [piece.text for piece in pieces], "en") == text
    assert join(cut(f"{TEXT}\n\n{TEXT}", "en", 300), ["訳"] * 2, "ja") == "訳\n\n訳"
    assert join(cut(f"{TEXT} {TEXT}", "en", 300), ["訳"] * 2, "ja") == "訳訳"


def test_sentences_longer_than_a_piece_are_cut():
    for lang, text in (("ja", "患者は、" * 90), ("en", "word, " * 90 + "end."), ("en", "x" * 450), ("ja", "「" * 300)):
        pieces = cut(text, lang, 100)
        assert "".join(piece.text + piece.gap for piece in pieces) == text.strip()
        assert all(0 < len(piece.text) <= 100 for piece in pieces)
    assert cut("  \n ", "en", 100) == [] and [piece.text for piece in cut(" a ", "en", 100)] == ["a"]


def test_a_long_document_is_joined_again(stub, write_lines, tmp_path):
    text = "\n\n".join([TEXT] * 4 + [TEXT.replace("pneumonia", "a stroke")])
    server = stub()
    manifest = run(write_lines([{"id": "long", "text": text, "lang": "en"}]), tmp_path / "t", server, max_piece_characters=300)
    [document] = read_documents(tmp_path / "t")
    assert document.text == translated(text) and manifest.details["counts"]["pieces"] == 5
    assert server.asked.total() == 2  # four of the five pieces are the same


# ---- the filter alone


EN_JA = Bounds("en", "ja", (0.2, 0.8))


def test_copied_share_is_of_long_runs():
    assert copied_share(TEXT, TEXT.upper()) == copied_share("HbA1c", "HbA1cは") == 1.0
    assert copied_share(TEXT, translated(TEXT)) == 0.0
    untouched = "His blood pressure rose overnight and the dose of amlodipine was doubled by the physician on call."
    changed = "She slept well, ate a light breakfast and walked along the corridor without any help from nurses."
    assert 0.4 < copied_share(f"{untouched} {changed}", f"{untouched} {translated(changed)}") < 0.5
    assert copied_share("Give trastuzumab emtansine now to everyone", "トラスツズマブ（trastuzumab）") == 0.0


def test_some_pieces_may_stay_as_they_were():
    references = "N Engl J Med 2019;381:2103-13. Lancet 2020;395:1054-62. JAMA 2021;325:1436-49. BMJ 2018;360:k322. Chest 2017."
    sources = [TEXT] * 6 + [references]
    answers = [Answer(translated(TEXT))] * 6 + [Answer(references)]
    assert find_problem(sources, answers, "\n".join(answer.text for answer in answers), EN_JA) is None
    left = "His blood pressure rose overnight and the dose of amlodipine was doubled by the physician on call. " * 3
    sources, answers = [TEXT] * 3 + [left], [Answer(translated(TEXT))] * 3 + [Answer(left)]
    reason, detail = find_problem(sources, answers, "\n".join(answer.text for answer in answers), EN_JA)
    assert reason == "copied_through" and "pieces with 0.2" in detail


def test_few_words_are_not_measured_by_their_ratio():
    assert find_problem(["ICU"], [Answer("集中治療室")], "集中治療室", EN_JA) is None


# ---- shards, and where the origin goes


def test_shards_share_the_answers_and_make_the_same(stub, write_lines, tmp_path):
    for name, word in (("a", "one"), ("b", "two"), ("c", "three")):
        write_lines(numbered(2, f"{word} {TEXT}"), f"in/{name}.jsonl")
    server = stub()
    run(tmp_path / "in", tmp_path / "whole", server)
    for number in (1, 2):
        run(tmp_path / "in", tmp_path / "t", server, words={"shard": (number, 2)})
    merged = merge_shards(tmp_path / "t")
    assert [file.sha256 for file in merged.files] == [file.sha256 for file in load_manifest(tmp_path / "whole").files]
    assert merged.origin.kind == "machine_translated"
    run(tmp_path / "in", tmp_path / "t", server, words={"overwrite": True, "workers": 2}, max_bad_share=0.1)
    assert server.asked.total() == 12


def test_the_origin_reaches_the_token_set_and_its_datasheet(stub, write_lines, tmp_path, settings, tokenizer):
    varied = [{"id": str(n), "text": " ".join(SENTENCE.format(n=n * 7 + k) for k in range(6)), "lang": "en"} for n in range(4)]
    run(write_lines(varied), tmp_path / "t", stub())
    clean(tmp_path / "t", tmp_path / "c", clean_settings(changes=["max_repeated_pieces_share=1", "min_compressed_share=0"]),
          progress=False)
    dedup([tmp_path / "c"], tmp_path / "d", DedupSettings(progress=False))
    tokenize(tmp_path / "d", tmp_path / "tokens", settings())
    token_set = load_token_set(tmp_path / "tokens")
    assert token_set.origin == "machine_translated" and token_set.manifest.origin.translations[0].model == "stub"
    assert [step["origin"]["kind"] for step in follow_chain(tmp_path / "tokens").steps] == ["machine_translated"] * 4
    describe([tmp_path / "tokens"], tmp_path / "sheet", DescribeSettings(tokenizer, progress=False))
    sheet = json.loads((tmp_path / "sheet" / "datasheet.json").read_text())
    assert sheet["sets"][0]["origin"]["kind"] == "machine_translated"
    assert sheet["sets"][0]["groups"][0]["declared"]["machine_translated_documents"] == token_set.num_documents
    assert "machine-translated; en to ja by stub" in (tmp_path / "sheet" / "datasheet.md").read_text()
    # One file of a stage, named by itself, is what its folder is.
    tokenize(str(tmp_path / "d" / "documents" / "*.zst"), tmp_path / "of_glob", settings())
    assert load_token_set(tmp_path / "of_glob").origin == "machine_translated"


def test_text_translated_elsewhere_is_declared(write_lines, tmp_path, settings):
    source = write_lines([{"text": "患者は高血圧であった。"}])
    tokenize(source, tmp_path / "plain", settings())
    tokenize(source, tmp_path / "said", settings(origin="machine_translated"))
    assert [load_token_set(tmp_path / name).origin for name in ("plain", "said")] == ["original", "machine_translated"]
    tokenize(source, tmp_path / "shards", settings(origin="machine_translated"), shard=(1, 1))
    merge_token_shards(tmp_path / "shards")
    assert load_token_set(tmp_path / "shards").origin == "machine_translated"
    with pytest.raises(CorpusError, match="another run .*origin"):
        tokenize(source, tmp_path / "said", settings())
    with pytest.raises(CorpusError, match="--origin guessed is unknown; choose from original, machine_translated"):
        settings(origin="guessed")


def test_a_token_set_has_one_origin(stub, write_lines, tmp_path, settings):
    run(write_lines(numbered(3)), tmp_path / "t", stub())
    write_lines([{"id": "o", "text": "心電図では異常を認めなかった。経過は良好であった。"}], "o/original.jsonl")
    dedup([tmp_path / "t", tmp_path / "o"], tmp_path / "d", DedupSettings(progress=False))
    assert load_manifest(tmp_path / "d").origin.kind == "mixed"
    with pytest.raises(CorpusError, match="original and machine-translated text; .*tokenise them apart"):
        tokenize(tmp_path / "d", tmp_path / "tokens", settings())
    with pytest.raises(CorpusError, match="--origin original: the manifests .* machine_translated"):
        tokenize(tmp_path / "t", tmp_path / "tokens", settings(origin="original"))


def test_half_a_document_left_as_it_was_is_found():
    sources = ["He was given amlodipine, and his blood pressure fell.", "The scan showed no sign of bleeding or a tumour."]
    answers = [Answer(translated(sources[0])), Answer(sources[1])]
    assert find_problem(sources, answers, "".join(answer.text for answer in answers), EN_JA)[0] == "copied_through"
