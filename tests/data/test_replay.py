"""What replay says of a run is what Megatron-Core's datasets feed it, and both ways of asking give the same answer."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import megatron_jmed.parallel  # noqa: F401  (the CPU patches come before Megatron-Core)
from megatron_jmed.corpus.document import read_documents
from megatron_jmed.corpus.listing import list_documents, listing_folder
from megatron_jmed.data import read_account as accounts
from megatron_jmed.data.pretrain import batches, blend_account, build_data
from megatron_jmed.data.read_account import read_account
from megatron_jmed.data.replay import documents_of_step, open_replay, replay_of
from megatron_jmed.data.sources import load_token_sets
from megatron_jmed.errors import ConfigError, CorpusError

REPO = Path(__file__).parents[2]
BATCH = 4
LENGTH = 32


@pytest.fixture
def config_for(small_config, token_folder):
    """config_for(steps, change, ...): a run on the two example token sets, two parts of Japanese to one of English."""

    def config(steps: int, *changes: str):
        tokens = token_folder / "runs/tiny/tokens"
        blend = ", ".join(f'{{name="{name}", path="{tokens / name}", weight={weight}, lang="{name[-2:]}"}}'
                          for name, weight in (("texts_ja", 2), ("texts_en", 1)))
        return small_config(f"budget.seq_length={LENGTH}", f"budget.global_batch_size={BATCH}", "budget.micro_batch_size=2",
                            f"budget.total_tokens={LENGTH * BATCH * steps}", "optim.warmup_tokens=0", "budget.eval_steps=2",
                            f"data.blend=[{blend}]", *changes)

    return config


@pytest.fixture
def replayed(groups):
    """replayed(config): (replay, token sets, data), the data built by Megatron-Core, the replay opened from the disk."""

    def replay(config):
        token_sets = load_token_sets(config)
        data = build_data(config, token_sets)
        return open_replay(config, token_sets), token_sets, data

    return replay


@pytest.fixture
def with_listings(token_folder):
    """The documents of the two token sets, by source, in order."""
    for name in ("texts_ja", "texts_en"):
        list_documents(token_folder / "runs/tiny/tokens" / name)
    files = {"texts_ja": "texts_ja.jsonl", "texts_en": "texts_en.jsonl.gz"}
    return {name: list(read_documents(REPO / "examples/data" / file)) for name, file in files.items()}


def as_rows(pieces) -> list[tuple[int, ...]]:
    columns = (pieces.step, pieces.sequence, pieces.source, pieces.document, pieces.begin, pieces.end)
    return list(zip(*(column.tolist() for column in columns), strict=True))


# ---- the same tokens


@pytest.mark.parametrize(("steps", "changes"), [
    (12, []), (600, []), (30, ["data.valid_ratio=0"]), (30, ["seed=7"]), (900, ["data.valid_ratio=0.3"])])
def test_every_sequence_is_that_of_megatrons_datasets(steps, changes, config_for, replayed, groups):
    config = config_for(steps, *changes)
    replay, _, data = replayed(config)
    pieces = replay.pieces_of_steps(1, steps)
    ids = [np.fromfile(f"{token_set.prefix}.bin", replay.indices[0].dtype) for token_set in replay.token_sets]
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for step, sequence, source, document, begin, end in as_rows(pieces):
        start = int(replay.indices[source].offsets[document]) // 2
        found.setdefault((step, sequence), []).append(ids[source][start + begin : start + end])
    numbers = iter(range(steps * BATCH))
    for batch in batches(config, data.train, groups, 0, steps, torch.device("cpu")):
        for tokens, labels in zip(batch.tokens_BS.numpy(), batch.labels_BS.numpy(), strict=True):
            step, sequence = divmod(next(numbers), BATCH)
            assert np.array_equal(np.concatenate(found.pop((step + 1, sequence))), np.append(tokens, labels[-1]))
    assert not found
    assert np.array_equal(replay.tokens(3, 2)[:-1], data.train[2 * BATCH + 2]["tokens"].numpy())


def test_disk_and_running_data_give_the_same_answers(config_for, replayed):
    config = config_for(40)
    replay, token_sets, data = replayed(config)
    assert as_rows(replay.pieces_of_steps(1, 40)) == as_rows(replay_of(config, token_sets, data).pieces_of_steps(1, 40))


def test_two_sources_of_one_token_set_are_told_apart(config_for, replayed, token_folder):
    path = token_folder / "runs/tiny/tokens/texts_ja"
    blend = ", ".join(f'{{name="{name}", path="{path}", weight={weight}}}' for name, weight in (("a", 1), ("b", 3)))
    replay, _, data = replayed(config_for(30, f"data.blend=[{blend}]"))
    for number in range(30 * BATCH):
        step, sequence = divmod(number, BATCH)
        assert np.array_equal(replay.tokens(step + 1, sequence)[:-1], data.train[number]["tokens"].numpy())


# ---- both ways


@pytest.mark.parametrize("steps", [12, 600])
def test_from_steps_to_documents_and_back(steps, config_for, replayed):
    replay, token_sets, _ = replayed(config_for(steps))
    pieces = replay.pieces_of_steps(1, steps)
    forwards = Counter(as_rows(pieces))
    backwards = Counter()
    for source, token_set in enumerate(token_sets):
        for document in range(token_set.num_documents):
            found = as_rows(replay.pieces_of_documents(source, [document]))
            assert not found or not replay.is_for_validation(source, document)
            assert found == sorted(found)
            backwards.update(found)
    assert forwards == backwards and set(forwards.values()) == {1}
    many = [as_rows(replay.pieces_of_documents(source, np.arange(replay.token_sets[source].num_documents))) for source in (0, 1)]
    assert Counter(many[0] + many[1]) == forwards


def test_validation_documents_are_never_read(config_for, replayed):
    replay, token_sets, _ = replayed(config_for(900))
    last = token_sets[0].num_documents - 1
    assert replay.is_for_validation(0, last) and not replay.is_for_validation(0, 0)
    assert not len(replay.pieces_of_documents(0, [last])) and len(replay.pieces_of_documents(0, [0])) > 1


# ---- accounts


@pytest.mark.parametrize(("steps", "until", "skip"), [(12, 5, ""), (600, 600, ""), (600, 431, "[3, [7, 20], [400, 500]]")])
def test_account_is_the_count_of_every_token(steps, until, skip, config_for, replayed, with_listings, monkeypatch):
    monkeypatch.setattr(accounts, "POSITIONS_AT_ONCE", 17)
    config = config_for(steps, *([f"data.skip_steps={skip}"] if skip else []))
    replay, token_sets, data = replayed(config)
    pieces = replay.pieces_of_steps(1, until)
    pieces = pieces.where(np.array([not config.data.is_skipped(step) for step in pieces.step]))
    # the last token of each sequence is only a label
    rows = as_rows(pieces)
    is_last = [n + 1 == len(rows) or rows[n][:2] != rows[n + 1][:2] for n in range(len(rows))]
    tokens, seen = Counter(), set()
    for (_, _, source, document, begin, end), last in zip(rows, is_last, strict=True):
        tokens[source, document] += end - begin - last
    seen = {key for key, number in tokens.items() if number}
    account = read_account(replay, until)
    blend = blend_account(config, token_sets, data, until)
    names = ("texts_ja", "texts_en")
    for source, ours in enumerate(account["sources"]):
        assert ours["name"] == names[source] == blend["sources"][source]["name"]
        assert ours["tokens"] == blend["sources"][source]["consumed_tokens"]
        assert ours["tokens"] == sum(number for (of, _), number in tokens.items() if of == source)
        assert ours["unique_documents"] == sum(s == source for s, _ in seen)
        assert ours["epochs"] == pytest.approx(blend["sources"][source]["epochs"], rel=0.2)
    assert account["all"]["tokens"] == blend["consumed_tokens"] == (until - config.data.num_skipped(until)) * BATCH * LENGTH
    for group in account["groups"]:
        mine = {number for number, document in enumerate(with_listings[group["name"]])
                if (document.source, document.lang) == (group["source_of_documents"], group["lang"])}
        source = names.index(group["name"])
        assert group["tokens"] == sum(n for (s, d), n in tokens.items() if s == source and d in mine)
        assert group["unique_documents"] == sum(s == source and d in mine for s, d in seen)
    assert {one["lang"]: one["tokens"] for one in account["langs"]} == dict(
        zip(("en", "ja"), (account["sources"][1]["tokens"], account["sources"][0]["tokens"]), strict=True))


def test_one_whole_epoch_is_one(config_for, replayed):
    replay, _, _ = replayed(config_for(900))
    account = read_account(replay, 900)
    assert all(one["epochs"] > 1 and one["unique_documents"] == one["documents"] for one in account["sources"])


def test_account_without_a_listing_takes_the_languages_of_the_blend(config_for, replayed, token_folder, monkeypatch):
    monkeypatch.setattr("megatron_jmed.data.replay.load_listing", lambda _folder: None)
    replay, _, _ = replayed(config_for(12))
    assert {one["lang"] for one in read_account(replay, 12)["langs"]} == {"ja", "en"}
    assert read_account(replay, 0)["all"]["tokens"] == 0


# ---- names


def test_documents_of_a_step_are_named_for_an_alarm(config_for, replayed, with_listings, monkeypatch):
    config = config_for(12)
    replay, token_sets, data = replayed(config)
    pieces = replay.pieces_of_steps(5, 5)
    expected = Counter()
    for _, _, source, document, begin, end in as_rows(pieces):
        name = replay.source_names[source]
        expected[f"{name} {with_listings[name][document].id}"] += end - begin
    for where in (data, None):
        lines = documents_of_step(config, token_sets, where, 5)
        assert {line.rpartition(" (")[0]: int(line.rpartition("(")[2].split()[0]) for line in lines} == expected
    monkeypatch.setattr("megatron_jmed.data.replay.load_listing", lambda _folder: None)
    assert len(lines) == len(documents_of_step(config, token_sets, data, 5))
    assert " document " in documents_of_step(config, token_sets, data, 5)[0]


# ---- refusals


def test_asking_needs_neither_torch_nor_megatron():
    code = ("import sys, megatron_jmed.data.read_account, megatron_jmed.data.sources; "
            "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'megatron')])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd=REPO)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_steps_that_the_run_does_not_have_are_refused(config_for, replayed):
    replay, _, _ = replayed(config_for(12))
    for first, last in ((0, 3), (5, 4), (12, 13)):
        with pytest.raises(ConfigError, match="the run has the steps 1 to 12"):
            replay.pieces_of_steps(first, last)


def test_run_without_an_index_cache_is_refused_with_the_tool_that_builds_one(config_for, replayed):
    config = config_for(12)
    with pytest.raises(CorpusError, match=r"tools/build_index_cache\.py"):
        open_replay(config, load_token_sets(config))
    replayed(config)
    other = config.model_copy(update={"seed": 99})
    with pytest.raises(CorpusError, match=r"tools/build_index_cache\.py"):
        open_replay(other, load_token_sets(other))


def test_cache_of_another_version_of_megatron_core_still_answers(config_for, replayed):
    config = config_for(12)
    _, token_sets, data = replayed(config)
    path = data.index_cache / "index_cache.json"
    words = json.loads(path.read_text())
    words["made_for"]["megatron_core"] = "0.15.0"
    path.write_text(json.dumps(words))
    data.index_cache.rename(data.index_cache.with_name("0" * 16))
    assert len(open_replay(config, token_sets).pieces_of_steps(1, 12))


# ---- the tool


def run(*arguments, code: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPO / "tools/replay_data.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done


def test_tool_answers_on_the_terminal_and_in_json(config_for, replayed, with_listings, tmp_path):
    config = config_for(12, "data.skip_steps=[4]")
    replay, _, _ = replayed(config)
    path, answer = tmp_path / "run", tmp_path / "answers/answer.json"  # the run folder
    (path / "config.json").write_text(config.model_dump_json())

    assert "give one step, or the first and the last" in run(path, "--steps", 1, 2, 4, code=2).stderr
    missing = run(tmp_path / "nowhere", "--steps", 1, code=2).stderr
    assert "nowhere: no .toml experiment, no config.json of a run, no recipe" in missing
    out = run(path, "--steps", 3, 4, "--json", answer).stdout
    steps = json.loads(answer.read_text())["steps"]
    assert [(step["step"], step["is_skipped"], len(step["sequences"])) for step in steps] == [(3, False, BATCH), (4, True, BATCH)]
    rows = [(step["step"], sequence["sequence"], replay.number_of(sequence["source"]), d["document"], d["begin"], d["end"])
            for step in steps for sequence in step["sequences"] for d in sequence["documents"]]
    assert rows == as_rows(replay.pieces_of_steps(3, 4))
    assert "step 4  skipped: not read" in out and out.count("  sequence ") == 2 * BATCH

    first = steps[1]["sequences"][0]["documents"][0]
    document = with_listings[steps[1]["sequences"][0]["source"]][first["document"]]
    assert (first["id"], first["lang"], first["num_characters"]) == (document.id, document.lang, len(document.text))
    for asked in (("--document", first["id"]),
                  ("--document-number", steps[1]["sequences"][0]["source"], first["document"])):
        out = run(path, *asked, "--json", answer).stdout
        (found,) = json.loads(answer.read_text())["documents"]
        place = {"step": 4, "sequence": 0, "begin": first["begin"], "end": first["end"], "is_skipped": True}
        assert place in found["places"] and found["id"] == document.id
        assert document.id in out and "step 4  sequence 0" in out and "skipped: not read" in out

    out = run(path / "config.json", "--read-until", "end", "--json", answer).stdout
    assert json.loads(answer.read_text()) == read_account(replay, 12)
    assert f"{11 * BATCH * LENGTH:,}" in out and "language ja" in out and "12 (1 of them skipped)" in out


@pytest.mark.parametrize(("asked", "said"), [
    (("--document", "nobody"), "no document of texts_ja, texts_en has the id 'nobody'"),
    (("--document-number", "nobody", 1), "choose from texts_ja, texts_en"),
    (("--document-number", "texts_ja", 10**9), "texts_ja has the documents 0 to"),
    (("--steps", 13), "the run has the steps 1 to 12"),
    (("--read-until", 13), "the run has the steps 1 to 12"),
    (("--read-until", "nowhere"), "nowhere: not a checkpoint"),
])
def test_tool_says_what_it_cannot_answer(asked, said, config_for, replayed, with_listings, tmp_path):
    config = config_for(12)
    replayed(config)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert said in run(tmp_path / "config.json", *asked, code=2).stderr


def test_ids_without_a_listing_are_refused_with_the_tool_that_makes_it(config_for, replayed, monkeypatch, with_listings):
    replay, token_sets, _ = replayed(config_for(12))
    document = with_listings["texts_ja"][3]
    assert replay.find(document.id) == [(0, 3)]
    monkeypatch.setattr("megatron_jmed.data.replay.load_listing", lambda _folder: None)
    with pytest.raises(CorpusError, match=r"tools/list_documents\.py .*texts_ja"):
        open_replay(replay.config, token_sets).find(document.id)
    assert listing_folder(Path(token_sets[0].prefix).parent).is_dir()
