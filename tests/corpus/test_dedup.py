"""Which copies go, which document stays, and does the answer depend on anything but the texts and their order?"""

import hashlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest
import zstandard

from megatron_jmed.corpus.dedup import DedupSettings, dedup
from megatron_jmed.corpus.document import read_documents
from megatron_jmed.corpus.duplicates import find_duplicates
from megatron_jmed.corpus.manifest import Manifest, check_files, load_manifest
from megatron_jmed.corpus.minhash import MinHash, exact_key, ngram_hashes, normalised, similarity, unit_of, units_of
from megatron_jmed.corpus.reader import find_source
from megatron_jmed.corpus.signatures import Signatures, SignTask, sign_file
from megatron_jmed.errors import CorpusError

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_SIGMAS = 4.5
SYLLABLES = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほ症例患者血圧検査治療投与診断病院手術"


def settings(**changes) -> DedupSettings:
    return DedupSettings(**{"progress": False, **changes})


def invented(seed: int, length: int = 400) -> str:
    """A Japanese-looking text of which no two share n-grams to speak of."""
    return "".join(random.Random(seed).choices(SYLLABLES, k=length))


def edited(text: str, num_changes: int, seed: int = 0) -> str:
    """The text with single characters replaced, each of which costs up to five n-grams on either side."""
    letters, draw = list(text), random.Random(seed)
    for place in draw.sample(range(len(letters)), num_changes):
        letters[place] = "#"
    return "".join(letters)


def jaccard(left: str, right: str, ngram: int = 5, lang: str = "ja") -> float:
    sets = [set(ngram_hashes(units_of(t, unit_of(lang, t)), ngram).tolist()) for t in map(normalised, (left, right))]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def record(identity: str, text: str, lang: str = "ja", **more) -> dict:
    return {"id": identity, "text": text, "source": "test", "lang": lang, **more}


def removed(target: Path, reason: str) -> list[dict]:
    path = target / "removed" / f"{reason}.jsonl.zst"
    if not path.exists():
        return []
    with open(path, "rb") as stream:
        raw = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True).read()
    return [orjson.loads(line) for line in raw.splitlines()]


def hashes(manifest: Manifest) -> list[tuple[str, int, str]]:
    return [(file.path, file.rows, file.sha256) for file in [*manifest.files, *manifest.removed_files]]


@pytest.fixture
def two_sources(write_lines: Callable[..., Path], tmp_path: Path) -> list[Path]:
    """Folders first/ (four files) and second/ (two), with exact and near copies within and across them."""
    for number in range(4):
        lines = [record(f"a{number}-{i}", invented(100 * number + i), title=f"{number}") for i in range(12)]
        lines.append(record(f"a{number}-again", invented(100 * number)))
        lines.append(record(f"a{number}-near", edited(invented(100 * number + 1), 4)))
        write_lines(lines, f"first/{number}.jsonl")
    for number in range(2):
        lines = [record(f"b{number}-{i}", edited(invented(100 * number + 2 + i), 3)) for i in range(5)]
        lines += [record(f"b{number}-new-{i}", invented(9000 + 100 * number + i)) for i in range(5)]
        lines.append(record(f"b{number}-across", "  " + invented(305) + "\n"))
        write_lines(lines, f"second/{number}.jsonl")
    return [tmp_path / "first", tmp_path / "second"]


# ---- what is compared


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("ＡＢＣ１２３", "abc123"),
        ("患者は、発熱した。", "患者は，発熱した．"),
        ("ｶﾞﾝ の治療", "ガンの治療"),
        ("高血圧\n症の患者　は", "高血圧症の患者は"),
        ("He said “no” – twice", 'he said "no" - twice'),
        ("zero\u200bwidth", "zerowidth"),
        ("e\u0301tude", "étude"),
    ],
)
def test_texts_that_differ_in_form_only_have_one_exact_key(left, right):
    assert exact_key(normalised(left)) == exact_key(normalised(right))


@pytest.mark.parametrize(
    ("left", "right"), [("5 mg", "50 mg"), ("高血圧", "低血圧"), ("はは", "ばば"), ("1.5", "15"), ("は", "ば")]
)
def test_texts_that_differ_in_meaning_have_different_exact_keys(left, right):
    assert exact_key(normalised(left)) != exact_key(normalised(right))


@pytest.mark.parametrize(
    ("lang", "text", "unit"),
    [
        ("ja", "all Latin", "character"),
        ("ja-JP", "日本語", "character"),
        ("en", "日本語", "word"),
        ("unknown", "発熱 and fever", "character"),
        ("unknown", "fever and cough", "word"),
        ("fr", "fièvre", "word"),
    ],
)
def test_ngrams_are_of_characters_in_japanese_and_of_words_in_english(lang, text, unit):
    assert unit_of(lang, text) == unit


def test_ngrams_are_all_runs_of_units_and_a_short_text_is_one():
    words = units_of("a b c d e f a b c d e", "word")
    assert len(words) == 11
    assert len(ngram_hashes(words, 5)) == 7
    assert len(set(ngram_hashes(words, 5).tolist())) == 6  # "a b c d e" stands twice
    assert len(ngram_hashes(words[:3], 5)) == 1
    assert ngram_hashes(words[:3], 5)[0] != ngram_hashes(words[:2], 5)[0]
    assert len(units_of("日本 語", "character")) == 3
    assert len(units_of("!?", "word")) == 2


def test_signatures_are_the_same_for_ever():
    text = normalised("患者は３日前から３８度の発熱があり、近医を受診した。")
    found = MinHash().signature(units_of(text, "character"))
    assert found.shape == (200,) and found.dtype == np.uint32
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == "4c82ddd43907056c"
    assert hashlib.sha256(MinHash().band_keys(found[None]).tobytes()).hexdigest()[:16] == "7eb2356174c523c7"


def test_a_long_text_is_hashed_in_pieces_without_a_seam(monkeypatch):
    units = np.random.default_rng(0).integers(0, 2**20, 5000).astype(np.uint64)
    whole = MinHash().signature(units)
    monkeypatch.setattr("megatron_jmed.corpus.minhash.CHUNK_UNITS", 97)
    monkeypatch.setattr("megatron_jmed.corpus.minhash.BLOCK_NGRAMS", 13)
    assert np.array_equal(MinHash().signature(units), whole)


@pytest.mark.parametrize("wanted", [0.3, 0.6, 0.8, 0.95])
def test_the_estimate_is_as_good_as_datasketch_and_as_the_formula(wanted):
    datasketch = pytest.importorskip("datasketch", reason="datasketch is the peer that signatures are checked against")
    hasher, draw, ours, theirs = MinHash(ngram=1), np.random.default_rng(7), [], []
    num_pairs, size = 60, 300
    for _ in range(num_pairs):
        shared = round(2 * size * wanted / (1 + wanted))
        items = draw.integers(0, 2**63, 2 * size - shared).astype(np.uint64)
        sides, true = (items[:size], items[size - shared :]), shared / (2 * size - shared)
        signatures = [hasher.signature(side).astype(np.uint16)[None] for side in sides]
        ours.append(similarity(*signatures)[0] - true)
        peers = [datasketch.MinHash(num_perm=200) for _ in sides]
        for peer, side in zip(peers, sides, strict=True):
            peer.update_batch([item.tobytes() for item in side])
        theirs.append(peers[0].jaccard(peers[1]) - true)
    sigma = (wanted * (1 - wanted) / 200) ** 0.5
    assert abs(np.mean(ours)) < NUM_SIGMAS * sigma / num_pairs**0.5
    assert 0.6 * sigma < np.std(ours) < 1.4 * sigma
    assert np.std(ours) < 1.5 * np.std(theirs)


@pytest.mark.parametrize(("wanted", "shape"), [(0.6, (20, 10)), (0.75, (20, 10)), (0.85, (20, 10)), (0.5, (16, 4))])
def test_pairs_meet_in_a_band_as_often_as_the_curve_says(wanted, shape):
    hasher, draw = MinHash(ngram=1, bands=shape[0], rows=shape[1]), np.random.default_rng(3)
    num_pairs, size, met = 500, 200, 0
    shared = round(2 * size * wanted / (1 + wanted))
    for _ in range(num_pairs):
        items = draw.integers(0, 2**63, 2 * size - shared).astype(np.uint64)
        pair = np.stack([hasher.signature(items[:size]), hasher.signature(items[size - shared :])])
        left, right = hasher.band_keys(pair)
        met += bool((left == right).any())
    share = hasher.found_share(shared / (2 * size - shared))
    assert abs(met / num_pairs - share) < NUM_SIGMAS * (share * (1 - share) / num_pairs) ** 0.5


# ---- which documents stay


def test_copies_go_and_the_first_stays_within_and_across_sources(two_sources, tmp_path):
    target = tmp_path / "target"
    manifest = dedup(two_sources, target, settings())
    kept = list(read_documents(target))
    ids = [document.id for document in kept]
    exact = {line["id"]: line["detail"] for line in removed(target, "exact")}
    near = {line["id"]: line["detail"] for line in removed(target, "near")}
    assert exact == {f"a{n}-again": f"a{n}-0" for n in range(4)} | {f"b{n}-across": "a3-5" for n in range(2)}
    assert near == {f"a{n}-near": f"a{n}-1" for n in range(4)} | {f"b{n}-{i}": f"a{n}-{i + 2}" for n in range(2) for i in range(5)}
    originals = [document for source in two_sources for document in read_documents(source)]
    assert ids == [document.id for document in originals if document.id not in exact and document.id not in near]
    assert kept[0] == originals[0] and kept[0].meta == {"title": "0"}
    assert manifest.counts.dropped == {"exact": 6, "near": 14}
    assert manifest.counts.documents == len(ids) == len(originals) - 20
    assert removed(target, "exact")[0]["file"] == "first/0.jsonl" and removed(target, "exact")[0]["line"] == 13
    check_files(target, load_manifest(target))
    assert not (target / ".parts").exists() and not (target / ".partial").exists()


def test_the_order_of_the_sources_decides_who_stays(two_sources, tmp_path):
    dedup(two_sources[::-1], tmp_path / "target", settings())
    near = {line["id"]: line["detail"] for line in removed(tmp_path / "target", "near")}
    assert near["a0-2"] == "b0-0" and "b0-0" not in near


def test_one_source_keeps_the_ids_that_other_stages_would_give(write_lines, tmp_path):
    path = write_lines([{"text": invented(1)}, {"text": invented(1)}], "one.jsonl")
    dedup([path], tmp_path / "target", settings())
    assert [document.id for document in read_documents(tmp_path / "target")] == ["one.jsonl:1"]
    assert removed(tmp_path / "target", "exact")[0]["detail"] == "one.jsonl:1"


def test_the_threshold_decides_and_chains_lead_to_the_first(write_lines, tmp_path):
    # Each step is close to the one before; the ends are far apart.
    steps = list(itertools.accumulate(range(12), lambda text, seed: edited(text, 3, seed), initial=invented(5, 300)))
    assert min(jaccard(left, right) for left, right in itertools.pairwise(steps)) > 0.85
    assert jaccard(steps[0], steps[-1]) < 0.5
    path = write_lines([record(f"{i}", text) for i, text in enumerate(steps)], "chain.jsonl")
    manifest = dedup([path], tmp_path / "loose", settings())
    assert {line["id"]: line["detail"] for line in removed(tmp_path / "loose", "near")} == {f"{i}": "0" for i in range(1, 13)}
    assert manifest.details["near_duplicates_by_similarity_to_kept"]["below 0.8 (through others)"] >= 6
    assert manifest.details["largest_group_documents"] == 13
    assert dedup([path], tmp_path / "strict", settings(threshold=1.0)).counts.dropped == {}


def test_an_exact_copy_of_a_near_copy_names_a_document_that_is_there(write_lines, tmp_path):
    near = edited(invented(1), 3)
    path = write_lines([record("first", invented(1)), record("near", near), record("copy", near)], "x.jsonl")
    dedup([path], tmp_path / "target", settings())
    assert [line["detail"] for reason in ("near", "exact") for line in removed(tmp_path / "target", reason)] == ["first"] * 2


def test_english_is_compared_by_words(write_lines, tmp_path):
    words = [f"{a}{b}" for a in ("fever", "cough", "dose", "renal") for b in ("low", "high", "past", "day", "ward", "drug")]
    text = " ".join(random.Random(0).choices(words, k=300))
    lines = [record("1", text, "en"), record("2", text.replace("ward", "WARD ", 1), "en")]
    lines += [record("3", " ".join([*text.split()[:-5], "one", "two", "three"]), "en"), record("4", text[::-1], "en")]
    dedup([write_lines(lines, "en.jsonl")], tmp_path / "target", settings())
    assert [line["id"] for line in removed(tmp_path / "target", "exact")] == ["2"]
    assert [line["id"] for line in removed(tmp_path / "target", "near")] == ["3"]


def test_texts_of_invisible_characters_are_no_copies_of_each_other(write_lines, tmp_path):
    texts = ["\u200b", "\u200b\u200b", "\u200b", "\u2060\u200b\u200d\u00ad\u200c\ufeff", "?"]
    path = write_lines([record(f"{i}", text) for i, text in enumerate(texts)], "odd.jsonl")
    dedup([path], tmp_path / "target", settings())
    assert [document.id for document in read_documents(tmp_path / "target")] == ["0", "1", "3", "4"]


# ---- the answer depends on nothing else


def test_workers_shards_and_memory_change_nothing(two_sources, tmp_path):
    alone = hashes(dedup(two_sources, tmp_path / "alone", settings()))
    assert hashes(dedup(two_sources, tmp_path / "workers", settings(workers=2, memory_mib=32))) == alone
    for index in (3, 1, 2):
        assert dedup(two_sources, tmp_path / "shards", settings(memory_mib=16), shard=(index, 3)) is None
    assert not (tmp_path / "shards/manifest.json").exists()
    assert hashes(dedup(two_sources, tmp_path / "shards", settings(), merge=True)) == alone


@pytest.mark.parametrize(("run_documents", "memory_bytes"), [(1, 2**20), (7, 20_000), (1000, 3000)])
def test_groups_are_the_same_out_of_core(write_lines, tmp_path, run_documents, memory_bytes):
    texts = [invented(i % 60) if i % 7 else edited(invented(i % 60), 4, i) for i in range(150)]
    path = write_lines([record(f"{i}", text) for i, text in enumerate(texts)], "many.jsonl")

    def groups(name: str, run: int, memory: int) -> tuple[list[int], list[bool]]:
        task = SignTask(path.parent, path, "text", 0, tmp_path / name, name, MinHash(), run)
        signed = sign_file(task)
        assert sum(signed.runs) == len(texts) and len(signed.runs) == -(-len(texts) // run)
        found = find_duplicates(Signatures.of([task.folder], [signed]), MinHash(), 0.8, memory, task.folder)
        return found.kept.tolist(), found.exact.tolist()

    kept, exact = groups("whole", 2**16, 2**30)
    assert groups("pieces", run_documents, memory_bytes) == (kept, exact)
    assert kept == [i % 60 for i in range(150)]
    assert exact == [texts.index(text) != i for i, text in enumerate(texts)]


def test_a_killed_run_goes_on_where_it_was(tmp_path, write_lines):
    for number in range(6):
        lines = [record(f"{number}-{i}", invented(1000 * number + i % 250, 500)) for i in range(300)]
        write_lines(lines, f"source/{number}.jsonl")
    source, target = tmp_path / "source", tmp_path / "target"
    whole = hashes(dedup([source], tmp_path / "whole", settings()))
    command = [sys.executable, str(REPOSITORY / "tools/dedup_corpus.py"), str(source), str(target), "--workers", "1"]
    quiet, stamps = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | {"OMP_NUM_THREADS": "1"}}, {}

    def killed_when_there_is(part: str) -> None:
        run = subprocess.Popen(command, **quiet)
        deadline = time.monotonic() + 60
        while not (target / ".parts" / part).exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        run.kill()
        run.wait()

    for waited_for in ("000001-keys", "000004-keys", "kept.npy", "000002"):
        killed_when_there_is(waited_for)
        while (target / "manifest.json").exists():  # on a busy machine it may have finished before it was killed: once more
            shutil.rmtree(target)
            stamps = {}
            killed_when_there_is(waited_for)
        with pytest.raises(CorpusError, match="did not finish"):
            find_source(target)
        now = {path.parent.name: path.stat().st_mtime_ns for path in (target / ".parts").glob("*-keys/record.json")}
        assert stamps.items() <= now.items(), "what was finished was done again"
        stamps = now
    assert hashes(dedup([source], target, settings())) == whole
    assert hashes(dedup([source], target, settings())) == whole  # and a finished target is left alone
    assert sorted(path.name for path in target.iterdir()) == ["documents", "manifest.json", "removed"]


# ---- what the user is told


def test_a_merge_without_all_shards_names_what_is_missing(two_sources, tmp_path):
    dedup(two_sources, tmp_path / "target", settings(), shard=(1, 2))
    with pytest.raises(CorpusError, match=r"3 of 6 files have no keys.*first 1\.jsonl"):
        dedup(two_sources, tmp_path / "target", settings(), merge=True)
    with pytest.raises(CorpusError, match="6 of 6 files have no keys"):
        dedup(two_sources, tmp_path / "target", settings(minhash=MinHash(seed=1)), merge=True)
    with pytest.raises(CorpusError, match="3/2 does not exist"):
        dedup(two_sources, tmp_path / "target", settings(), shard=(3, 2))


def test_files_of_others_are_not_touched(two_sources, tmp_path):
    mine = tmp_path / "target/documents/mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    for shard in (None, (1, 2)):
        with pytest.raises(CorpusError, match="1 file"):
            dedup(two_sources, tmp_path / "target", settings(), shard=shard)
    assert [path.name for path in mine.parent.parent.iterdir()] == ["documents"] and mine.read_text() == "precious"


def test_another_threshold_is_another_result(two_sources, tmp_path):
    dedup(two_sources, tmp_path / "target", settings())
    with pytest.raises(CorpusError, match=r"threshold = 0\.8 there, 0\.9 now"):
        dedup(two_sources, tmp_path / "target", settings(threshold=0.9))
    assert dedup(two_sources, tmp_path / "target", settings(threshold=0.9, overwrite=True)).settings["threshold"] == 0.9


def test_bad_records_are_kept_and_limited_over_all_files(write_lines, tmp_path):
    for name in ("a", "b"):
        write_lines([record(f"{name}1", invented(ord(name))), b"{broken", record(f"{name}2", invented(7))], f"s/{name}.jsonl")
    manifest = dedup([tmp_path / "s"], tmp_path / "target", settings(max_bad=2))
    assert manifest.counts.dropped == {"broken_json": 2, "exact": 1}
    kept = [orjson.loads(line) for line in (tmp_path / "target/removed/broken_json.jsonl").read_bytes().splitlines()]
    assert [(line["file"], line["line"]) for line in kept] == [("a.jsonl", 2), ("b.jsonl", 2)]
    with pytest.raises(CorpusError, match=r"2 bad record\(s\) up to .*b\.jsonl, more than 1"):
        dedup([tmp_path / "s"], tmp_path / "strict", settings(max_bad=1))


def test_sources_of_one_name_are_refused(write_lines, tmp_path):
    for folder in ("x", "y"):
        write_lines([record("1", "text")], f"{folder}/documents/0.jsonl")
    with pytest.raises(CorpusError, match="several sources are called documents"):
        dedup([tmp_path / "x/documents", tmp_path / "y/documents"], tmp_path / "target", settings())


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(CorpusError, match=r"--bands 0.*--threshold 1\.5.*--memory-mib 20 is too small; 32"):
        settings(minhash=MinHash(bands=0), threshold=1.5, memory_mib=20, workers=2)


def test_the_output_is_read_by_the_next_stage_in_order(two_sources, tmp_path):
    dedup(two_sources, tmp_path / "once", settings())
    again = dedup([tmp_path / "once"], tmp_path / "twice", settings())
    assert again.counts.dropped == {}
    assert list(read_documents(tmp_path / "twice")) == list(read_documents(tmp_path / "once"))


# ---- real text


@pytest.mark.parametrize("name", ["jmed_llm_ja.jsonl.zst", "medquad_en.jsonl.gz"])
def test_real_copies_are_those_that_brute_force_finds(shared_data, write_lines, tmp_path, name):
    documents = list(itertools.islice(read_documents(shared_data / "corpora" / name), 3000, 3600))
    path = write_lines([record(f"{i}", d.text, d.lang) for i, d in enumerate(documents)], "real.jsonl")
    dedup([path], tmp_path / "target", settings())
    stands_for = {line["id"]: line["detail"] for reason in ("exact", "near") for line in removed(tmp_path / "target", reason)}
    folded = [normalised(document.text) for document in documents]
    sets = [set(ngram_hashes(units_of(t, unit_of(d.lang, t)), 5).tolist()) for t, d in zip(folded, documents, strict=True)]
    closest: dict[int, float] = {}
    for left, right in itertools.combinations(range(len(sets)), 2):
        shared = len(sets[left] & sets[right])
        alike = shared / (len(sets[left]) + len(sets[right]) - shared)
        if alike >= 0.93:
            assert stands_for.get(f"{left}", f"{left}") == stands_for[f"{right}"], (left, right, alike)
        for one in (left, right):
            closest[one] = max(closest.get(one, 0.0), alike)
    assert len(stands_for) > 10
    # Nothing goes that has no other text near it: 0.8 less 4.5 standard errors of the estimate.
    assert min(closest[int(identity)] for identity in stands_for) > 0.8 - NUM_SIGMAS * 0.028
