"""Rows of conversations: none is cut, none is lost, none sees another, and which are in row i is a matter of seed and set alone."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import megatron_jmed.parallel  # noqa: F401  (the CPU patches come before Megatron-Core)
from megatron_jmed.corpus.chat_tokens import ChatSettings, tokenize_chat
from megatron_jmed.corpus.indexed import read_index
from megatron_jmed.data.packing import epoch_order, packing
from megatron_jmed.data.pretrain import batches, blend_account, build_data
from megatron_jmed.data.read_account import read_account
from megatron_jmed.data.replay import open_replay
from megatron_jmed.data.sources import budget_tokens, load_token_sets
from megatron_jmed.errors import CorpusError

CPU = torch.device("cpu")
BATCH, LENGTH, STEPS = 4, 400, 8
SMALL = (f"budget.seq_length={LENGTH}", f"budget.global_batch_size={BATCH}", "budget.micro_batch_size=2", "optim.warmup_tokens=0",
         f"budget.total_tokens={LENGTH * BATCH * STEPS}", "data.attention=document", "data.valid_ratio=0", "budget.eval_steps=1")


@pytest.fixture(scope="module")
def chat_set(token_folder, tmp_path_factory):
    """The first 60 of the example conversations, of which two have fractional weights."""
    folder = tmp_path_factory.mktemp("chat")
    lines = (Path(__file__).parents[2] / "examples/data/chat/messages.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    records = [json.loads(line) for line in lines]
    for record in records[:2]:
        record["messages"][-1]["weight"] = 0.25
    (folder / "source.jsonl").write_text("\n".join(json.dumps(record) for record in records) + "\n")
    tokenize_chat(folder / "source.jsonl", folder / "set", ChatSettings(tokenizer=token_folder / "tokenizer.model"))
    return folder / "set"


@pytest.fixture
def config_for(small_config, chat_set, token_folder):
    """config_for(replay, change, ...): a run on the conversations, and with this weight on Japanese texts."""

    def config(replay: float = 0, *changes: str):
        path = token_folder / "runs/tiny/tokens/texts_ja"
        texts = f', {{name="texts", path="{path}", weight={replay}, lang="ja"}}' if replay else ""
        return small_config(*SMALL, f'data.blend=[{{name="chat", path="{chat_set}", weight=1, lang="ja"}}{texts}]', *changes)

    return config


@pytest.fixture
def read(groups):
    """read(config, start): the token sets, the data, and all batches from a step on."""

    def all_batches(config, start: int = 0):
        token_sets = load_token_sets(config)
        data = build_data(config, token_sets)
        return token_sets, data, list(batches(config, data.train, groups, start, config.num_steps, CPU))

    return all_batches


# ---- packing


@pytest.mark.parametrize("seed", range(5))
def test_no_row_is_too_full_and_every_conversation_is_in_one(seed):
    random = np.random.RandomState(seed)
    num_tokens = random.randint(2, 102, size=500)
    made = packing(num_tokens, 100)
    sizes = np.sort(num_tokens)[::-1] - 1
    assert np.bincount(made.row_of_slot, sizes, made.num_rows).max() <= 100
    assert np.bincount(made.row_of_slot).min() >= 1 and len(made.row_of_slot) == 500
    assert made.num_rows <= 11 / 9 * np.ceil(sizes.sum() / 100) + 4
    order = epoch_order(made, num_tokens, 1000, seed)
    assert sorted(order.document_index) == list(range(1000, 1500))
    rows = itertools.pairwise(order.sample_index[:, 0])
    assert all((num_tokens[order.document_index[a:b] - 1000] - 1).sum() <= 100 for a, b in rows)


def test_best_fit_takes_the_fullest_row_that_has_room():
    """60 and 50 open a row each; 40 fits the first exactly, though the second has room too; 45 goes to the second."""
    assert packing(np.array([61, 51, 46, 41]), 100).row_of_slot.tolist() == [0, 1, 1, 0]
    assert packing(np.array([61, 51, 46, 41]), 100, several_a_row=False).row_of_slot.tolist() == [0, 1, 2, 3]


def test_epochs_have_the_same_rows_of_lengths_and_other_conversations():
    num_tokens = np.random.RandomState(0).randint(10, 20, size=300)
    made = packing(num_tokens, 64)
    first, again, second = (epoch_order(made, num_tokens, 0, seed) for seed in (7, 7, 8))
    assert np.array_equal(first.document_index, again.document_index) and len(first.sample_index) == len(second.sample_index)
    assert not np.array_equal(first.document_index, second.document_index)


# ---- what stands in a row


def test_rows_hold_whole_conversations_with_their_weights_and_nothing_across(config_for, read, chat_set):
    index = read_index(chat_set / "tokens.idx")
    ends = np.cumsum(index.lengths)
    ids, weights = np.fromfile(chat_set / "tokens.bin", "<u2"), np.fromfile(chat_set / "tokens.weights", "<f2")
    known = {tuple(ids[end - n : end].tolist()): weights[end - n : end] for n, end in zip(index.lengths, ends, strict=True)}
    seen, num_padding = 0, 0
    for batch in read(config_for())[2]:
        for row in range(2):
            for document in batch.document_BS[row].unique():
                place = batch.document_BS[row] == document
                inputs, labels, mask = (tensor[row][place] for tensor in (batch.tokens_BS, batch.labels_BS, batch.loss_mask_BS))
                assert batch.position_ids_BS[row][place].tolist() == list(range(len(inputs)))
                if document == batch.document_BS[row].max() and (inputs == 2).all():
                    assert not mask.any()
                    num_padding += len(inputs)
                    continue
                whole = (*inputs.tolist(), int(labels[-1]))
                assert whole in known and labels.tolist() == list(whole[1:])
                assert np.array_equal(mask.numpy(), known[whole][1:].astype(np.float32)) and mask.sum() > 0
                seen += 1
    assert seen > 60 and num_padding > 0, "more than an epoch"
    assert {0.25, 1.0} <= set(weights.tolist())


@pytest.mark.parametrize("pack", ["true", "false"])
def test_an_epoch_reads_every_conversation_once(pack, config_for, read):
    config = config_for(0, f"data.pack={pack}")
    token_sets, data, _ = read(config)
    (source,) = data.train.sources
    rows = source.num_sequences
    assert (rows == 60) if pack == "false" else rows < 28
    documents = [source._in_row(epoch, row) for epoch in range(1) for row in range(rows)]
    assert sorted(np.concatenate(documents)) == list(range(60))
    assert budget_tokens(config, token_sets[0]) == rows * LENGTH
    assert source.fill_ratio == pytest.approx((token_sets[0].num_tokens - 60) / (rows * LENGTH))


@pytest.mark.parametrize("replay", [0, 1])
def test_every_micro_batch_is_divided_by_the_mean_weight_of_its_step(replay, config_for, read):
    _, data, found = read(config_for(replay))
    assert data.source_names == (("chat", "texts") if replay else ("chat",))
    for step in range(STEPS):
        of_step = found[step * 2 : step * 2 + 2]
        weight = sum(float(batch.loss_mask_BS.sum()) for batch in of_step)
        assert all(batch.mean_loss_weight == pytest.approx(weight / 2) for batch in of_step)
    if replay:
        texts = [(batch, row) for batch in found for row in range(2) if batch.source_B[row] == 1]
        assert len(texts) == pytest.approx(STEPS * BATCH / 2, abs=1)
        for batch, row in texts:
            assert batch.loss_mask_BS[row].eq(1).all() and batch.document_BS[row].max() > 0
            begins = batch.position_ids_BS[row][1:] == 0
            assert torch.equal(begins, batch.tokens_BS[row][1:] == 1)


# ---- resume, account, replay


@pytest.mark.parametrize("replay", [0, 0.5])
def test_a_resumed_or_longer_run_reads_the_same_rows(replay, config_for, read):
    whole = read(config_for(replay))[2]
    longer = read(config_for(replay, f"budget.total_tokens={LENGTH * BATCH * STEPS * 3}"))[2]
    for found, expected in ((read(config_for(replay), start=3)[2], whole[6:]), (longer[: len(whole)], whole)):
        assert len(found) == len(expected) > 0
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours.tokens_BS, theirs.tokens_BS) and torch.equal(ours.loss_mask_BS, theirs.loss_mask_BS)
            assert torch.equal(ours.document_BS, theirs.document_BS) and ours.mean_loss_weight == theirs.mean_loss_weight


def test_nothing_is_written_into_a_finished_cache(config_for, read):
    """Several ranks open one cache: what is made when it is first asked for, two of them would write at once."""
    _, data, _ = read(config_for(0.5))
    for path in data.index_cache.iterdir():
        path.chmod(0o444)
    before = {path: path.stat().st_mtime_ns for path in data.index_cache.iterdir()}
    assert "conversations0-train-weights.npy" in {path.name for path in before}
    read(config_for(0.5))
    assert before == {path: path.stat().st_mtime_ns for path in data.index_cache.iterdir()}


def test_account_and_replay_say_what_was_read(config_for, read):
    config = config_for(0.5)
    token_sets, data, found = read(config)
    account = blend_account(config, token_sets, data, 4)
    chat, texts = account["sources"]
    rows = int(torch.cat([batch.source_B for batch in found[:8]]).eq(0).sum())
    assert (chat["consumed_tokens"], texts["consumed_tokens"]) == (rows * LENGTH, (16 - rows) * LENGTH)
    assert chat["epochs"] == pytest.approx(rows / data.train.sources[0].num_sequences) and 0.8 < chat["fill_ratio"] <= 1
    replay = open_replay(config, token_sets)
    for step, batch in ((1, found[0]), (3, found[4])):
        for row in range(2):
            tokens = replay.tokens(step, row)
            assert np.array_equal(tokens[:-1], batch.tokens_BS[row].numpy()) and tokens[-1] == batch.labels_BS[row, -1]
    pieces = replay.pieces_of_steps(1, STEPS)
    conversation = int(pieces.document[pieces.source == 0][0])
    places = replay.pieces_of_documents(0, [conversation])
    assert set(zip(places.step, places.sequence, strict=True)) == {
        (int(pieces.step[n]), int(pieces.sequence[n])) for n in range(len(pieces))
        if pieces.source[n] == 0 and pieces.document[n] == conversation}
    mine = pieces.where((pieces.source == 0) & (pieces.step <= 4))
    (counted,) = [source for source in read_account(replay, 4)["sources"] if source["name"] == "chat"]
    assert counted["tokens"] == int((mine.end - mine.begin).sum())


def test_the_last_conversations_are_for_validation_alone(config_for, read, groups):
    config = config_for(0.5, "data.valid_ratio=0.1")
    _, data, _ = read(config)
    train, valid = (set(np.concatenate([epoch.document_index for epoch in part.sources[0].epochs]).tolist())
                    for part in (data.train, data.valid))
    assert train == set(range(54)) and valid == set(range(54, 60))
    found = list(batches(config, data.valid, groups, 0, config.budget.eval_steps, CPU))
    assert torch.cat([batch.source_B for batch in found]).bincount().tolist() == [BATCH // 2] * 2


# ---- refusals


@pytest.mark.parametrize(("changes", "said"), [
    (["data.attention=sequence"], 'each would see those before it in its sequence; set data.attention="document"'),
    (["budget.seq_length=64", "budget.total_tokens=65536"], "tokenise with --max-tokens 65"),
    (["model.vocab_size=1999"], "was tokenised with 2000 pieces"),
])
def test_wrong_combinations_are_refused_with_what_would_work(changes, said, config_for):
    with pytest.raises(CorpusError) as error:
        load_token_sets(config_for(0, *changes))
    assert said in str(error.value)
