"""Which sequences a step reads is a matter of config, token sets and step alone, and every sequence is accounted for."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import megatron_jmed.parallel  # noqa: F401  (the CPU patches come before Megatron-Core)
from megatron_jmed.corpus.token_settings import TokenizeSettings
from megatron_jmed.corpus.tokens import tokenize
from megatron_jmed.data.pretrain import _RankSequences, batches, blend_account, build_data, train_batches
from megatron_jmed.data.sources import load_token_sets
from megatron_jmed.errors import CorpusError

CPU = torch.device("cpu")
BATCH, STEPS = 8, 12
SMALL = ("budget.seq_length=32", f"budget.global_batch_size={BATCH}", "budget.micro_batch_size=2",
         f"budget.total_tokens={32 * BATCH * STEPS}", "optim.warmup_tokens=0", "budget.eval_steps=2")


@pytest.fixture
def config_for(small_config, token_folder):
    """config_for(ja, en, change, ...): a run on the two example token sets in these proportions."""

    def config(ja: float = 1, en: float = 1, *changes: str):
        tokens = token_folder / "runs/tiny/tokens"
        blend = ", ".join(f'{{name="{name}", path="{tokens / name}", weight={weight}, lang="{name[-2:]}"}}'
                          for name, weight in (("texts_ja", ja), ("texts_en", en)) if weight)
        return small_config(*SMALL, f"data.blend=[{blend}]", *changes)

    return config


@pytest.fixture
def read(groups):
    """read(config, start, stop): the token sets, the data, and all batches of these steps."""

    def all_batches(config, start: int = 0, stop: int | None = None):
        token_sets = load_token_sets(config)
        data = build_data(config, token_sets)
        return token_sets, data, list(batches(config, data.train, groups, start, stop or config.num_steps, CPU))

    return all_batches


# ---- who reads what


def sequences(rank: int, ranks: int, start: int = 0, stop: int = 5, batch: int = 24, micro: int = 2) -> list[list[int]]:
    sampler = _RankSequences(start, stop, batch, micro, rank, ranks)
    found = list(sampler)
    assert len(sampler) == len(found)
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 12])
def test_the_micro_batches_of_a_step_do_not_depend_on_the_number_of_ranks(ranks):
    alone = sequences(0, 1)
    parts = [sequences(rank, ranks) for rank in range(ranks)]
    a_step = 24 // (2 * ranks)
    for step in range(5):
        together = [micro for part in parts for micro in part[step * a_step : (step + 1) * a_step]]
        assert sorted(together) == alone[step * 12 : (step + 1) * 12]
        assert sorted(itertools.chain(*together)) == list(range(step * 24, (step + 1) * 24))


@pytest.mark.parametrize("ranks", [1, 2])
def test_resuming_goes_on_in_the_same_order(ranks):
    for rank in range(ranks):
        assert sequences(rank, ranks, start=3) == sequences(rank, ranks)[3 * 12 // ranks :]


@pytest.mark.parametrize("ranks", [1, 3])
def test_skipped_steps_are_left_out_and_move_no_other(ranks):
    for rank in range(ranks):
        a_step = 12 // ranks
        left = [micro for step in (0, 3, 4) for micro in sequences(rank, ranks)[step * a_step : (step + 1) * a_step]]
        sampler = _RankSequences(0, 5, 24, 2, rank, ranks, lambda step: step in (1, 2))
        assert list(sampler) == left and len(sampler) == len(left)


def test_training_skips_and_validation_does_not(config_for, read, groups):
    config = config_for(1, 1, "data.skip_steps=[1, [3, 4]]")
    _, data, whole = read(config)
    found = list(train_batches(config, data, groups, 0, CPU))
    expected = [batch for number, batch in enumerate(whole) if number // (BATCH // 2) not in (0, 2, 3)]
    assert len(found) == len(expected) == len(whole) - 3 * BATCH // 2
    assert all(torch.equal(ours.tokens_BS, theirs.tokens_BS) for ours, theirs in zip(found, expected, strict=True))
    assert len(list(batches(config, data.valid, groups, 0, config.budget.eval_steps, CPU))) == BATCH


def test_resumed_batches_are_those_of_the_uninterrupted_run(config_for, read):
    whole = read(config_for())[2]
    resumed = read(config_for(), start=5)[2]
    rest = whole[5 * BATCH // 2 :]
    assert len(resumed) == len(rest) > 0
    for ours, theirs in zip(resumed, rest, strict=True):
        assert torch.equal(ours.tokens_BS, theirs.tokens_BS) and torch.equal(ours.source_B, theirs.source_B)


def test_a_longer_horizon_begins_with_the_sequences_of_the_shorter(config_for, read):
    """Also where the longer one reads more epochs of a source: the texts hold some 40 steps."""
    short = read(config_for(2, 1), stop=STEPS)[2]
    config = config_for(2, 1, f"budget.total_tokens={32 * BATCH * 200}")
    _, data, long = read(config, stop=STEPS)
    assert len(data.train.sources[0].epochs) > 1
    for ours, theirs in zip(short, long, strict=True):
        assert torch.equal(ours.tokens_BS, theirs.tokens_BS) and torch.equal(ours.source_B, theirs.source_B)


def test_every_epoch_reads_the_same_documents_in_another_order(config_for, read):
    _, data, _ = read(config_for(1, 0, f"budget.total_tokens={32 * BATCH * 200}"), stop=1)
    first, second, *_ = data.train.sources[0].epochs
    assert sorted(first.document_index) == sorted(second.document_index)
    assert not np.array_equal(first.document_index, second.document_index)
    assert not np.array_equal(first.shuffle_index, second.shuffle_index)


def test_another_seed_reads_another_order(config_for, read):
    first, second = (read(config_for(1, 1, f"seed={seed}"))[2] for seed in (1, 2))
    assert not all(torch.equal(a.tokens_BS, b.tokens_BS) for a, b in zip(first, second, strict=True))


# ---- what is in a sequence


def test_labels_are_the_tokens_shifted_by_one_and_all_count(config_for, read):
    for batch in read(config_for())[2]:
        assert batch.tokens_BS.shape == batch.labels_BS.shape == (2, 32)
        assert torch.equal(batch.tokens_BS[:, 1:], batch.labels_BS[:, :-1])
        assert torch.equal(batch.position_ids_BS, torch.arange(32).expand(2, 32))
        assert batch.loss_mask_BS.eq(1).all()


def test_sequences_run_across_documents_with_a_beginning_after_every_end(config_for, read):
    found = torch.cat([torch.cat([b.tokens_BS, b.labels_BS[:, -1:]], dim=1) for b in read(config_for())[2]])
    ends = (found[:, :-1] == 2).nonzero()
    assert len(ends) > 20
    assert all(found[row, column + 1] == 1 for row, column in ends)
    begins = (found[:, 1:] == 1).nonzero()
    assert all(found[row, column] == 2 for row, column in begins)


def test_one_epoch_reads_no_token_twice_and_leaves_out_less_than_a_step(config_for, read):
    config = config_for(1, 0, "data.valid_ratio=0")
    (token_set,), _, _ = read(config)
    num_sequences = (token_set.num_tokens - 1) // 32
    steps = num_sequences // BATCH
    config = config_for(1, 0, "data.valid_ratio=0", f"budget.total_tokens={steps * BATCH * 32}")
    _, data, found = read(config)
    assert len(data.train) >= steps * BATCH
    read_counts = np.bincount(torch.cat([b.tokens_BS.flatten() for b in found]).numpy(), minlength=2000)
    on_disk = np.bincount(np.fromfile(f"{token_set.prefix}.bin", dtype=token_set.dtype), minlength=2000)
    assert (read_counts <= on_disk).all()
    assert on_disk.sum() - read_counts.sum() <= 32 * BATCH  # the rest that fills no step


def test_validation_sequences_are_of_documents_that_training_never_reads(config_for, read):
    config = config_for(1, 1, "data.valid_ratio=0.1", f"budget.total_tokens={32 * BATCH * 400}")
    _, data, _ = read(config, stop=1)

    def documents(blended) -> list[set[int]]:
        return [{d for epoch in source.epochs for d in epoch.document_index.tolist()} for source in blended.sources]

    for train, valid in zip(documents(data.train), documents(data.valid), strict=True):
        assert train and valid and not train & valid
    assert len(data.valid) >= config.budget.eval_steps * BATCH


def test_validation_reads_every_source_alike_whatever_its_weight(config_for, read):
    _, data, _ = read(config_for(9, 1, "data.valid_ratio=0.1"), stop=1)
    assert np.bincount(data.valid.dataset_index).tolist() == [BATCH, BATCH]


def test_source_of_weight_0_is_only_validated(config_for, read, small_config, token_folder):
    tokens = token_folder / "runs/tiny/tokens"
    config = small_config(*SMALL, f'data.blend=[{{name="ja", path="{tokens / "texts_ja"}", weight=0}}, '
                                  f'{{name="en", path="{tokens / "texts_en"}", weight=1}}]')
    token_sets, data, found = read(config)
    assert torch.cat([batch.source_B for batch in found]).eq(1).all()
    assert np.bincount(data.valid.dataset_index).tolist() == [BATCH, BATCH]
    assert [s["consumed_tokens"] for s in blend_account(config, token_sets, data, 3)["sources"]] == [0, 3 * BATCH * 32]


def test_no_validation_share_gives_no_validation_data(config_for, read):
    assert read(config_for(1, 1, "data.valid_ratio=0"))[1].valid is None


def test_documents_of_a_sequence_are_those_of_the_data_set(config_for, read):
    """Their lengths, from token ids, are those that Megatron-Core's index gives."""
    _, data, (batch, *_) = read(config_for(1, 0, "data.attention=document"), stop=1)
    source = data.train.sources[0].epochs[0]
    for row in range(2):
        _, document_ids = source._query_document_sample_shuffle_indices(data.train.dataset_sample_index[row])
        lengths = torch.unique_consecutive(batch.document_BS[row], return_counts=True)[1].tolist()
        whole = [int(source.dataset.index.sequence_lengths[number]) for number in document_ids]
        # the index also names the document of the label that is one token further
        assert len(whole) - len(lengths) in (0, 1) and lengths[1:-1] == whole[1 : len(lengths) - 1]
        assert lengths[0] <= whole[0] and lengths[-1] <= whole[len(lengths) - 1]
    assert int(batch.document_BS.max()) > 0


def test_attention_within_documents_changes_no_sequence(config_for, read):
    across, within = (read(config_for(1, 1, f"data.attention={word}"))[2] for word in ("sequence", "document"))
    for ours, theirs in zip(within, across, strict=True):
        assert torch.equal(ours.tokens_BS, theirs.tokens_BS) and torch.equal(ours.labels_BS, theirs.labels_BS)
        assert torch.equal(ours.loss_mask_BS, theirs.loss_mask_BS)
        begins_BS = ours.position_ids_BS[:, 1:] == 0
        assert torch.equal(begins_BS, ours.tokens_BS[:, 1:] == 1) and torch.equal(begins_BS, ours.tokens_BS[:, :-1] == 2)


# ---- the blend and its account


@pytest.mark.parametrize(("ja", "en"), [(1, 1), (3, 1), (0.2, 0.8)])
def test_blend_draws_sequences_in_proportion(ja, en, config_for, read):
    from_ja = int(torch.cat([batch.source_B for batch in read(config_for(ja, en))[2]]).eq(0).sum())
    assert from_ja == pytest.approx(BATCH * STEPS * ja / (ja + en), abs=1)


@pytest.mark.parametrize("steps_done", [0, 5, STEPS])
def test_account_equals_counting_what_was_read(steps_done, config_for, read):
    config = config_for(2, 1)
    token_sets, data, found = read(config)
    account = blend_account(config, token_sets, data, steps_done)
    counted = torch.cat([batch.source_B for batch in found])
    planned = counted.bincount(minlength=2) * 32
    done = counted[: steps_done * BATCH].bincount(minlength=2) * 32
    assert [source["name"] for source in account["sources"]] == ["texts_ja", "texts_en"]
    assert [source["consumed_tokens"] for source in account["sources"]] == done.tolist()
    assert [source["planned_tokens"] for source in account["sources"]] == planned.tolist()
    assert account["consumed_tokens"] == steps_done * BATCH * 32 == sum(done.tolist())
    assert [source["weight"] for source in account["sources"]] == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize("steps_done", [0, 3, 6, STEPS])
def test_skipped_steps_are_neither_planned_nor_read(steps_done, config_for, read):
    config = config_for(2, 1, "data.skip_steps=[2, [5, 7]]")
    token_sets, data, found = read(config)
    of_step = torch.cat([batch.source_B for batch in found]).view(STEPS, BATCH)
    kept = [step for step in range(STEPS) if step + 1 not in (2, 5, 6, 7)]
    account = blend_account(config, token_sets, data, steps_done)
    for word, steps in (("planned_tokens", kept), ("consumed_tokens", [step for step in kept if step < steps_done])):
        assert [source[word] for source in account["sources"]] == (of_step[steps].flatten().bincount(minlength=2) * 32).tolist()
    assert account["total_tokens"] == len(kept) * BATCH * 32
    assert account["consumed_tokens"] + account["skipped_tokens"] == steps_done * BATCH * 32


def test_epochs_in_the_account_count_the_training_part_as_one(config_for, read):
    config = config_for(1, 0, "data.valid_ratio=0.1", f"budget.total_tokens={32 * BATCH * 200}")
    token_sets, data, _ = read(config, stop=1)
    (source,) = blend_account(config, token_sets, data, config.num_steps)["sources"]
    sequences_an_epoch = data.train.sources[0].num_sequences
    assert source["epochs"] == pytest.approx(200 * BATCH / sequences_an_epoch, rel=0.02)
    assert source["epochs"] > 1


def test_the_account_says_which_sources_a_machine_translated(small_config, token_folder, tmp_path, read):
    source = tmp_path / "source.jsonl"
    source.write_text('{"text": "咳と熱。心臓と肺と肝臓。"}\n' * 200, encoding="utf-8")
    settings = TokenizeSettings(tokenizer=token_folder / "tokenizer.model", origin="machine_translated", progress=False)
    tokenize(source, tmp_path / "mt", settings)
    own = token_folder / "runs/tiny/tokens/texts_ja"
    blend = f'[{{name="own", path="{own}", weight=1}}, {{name="mt", path="{tmp_path / "mt"}", weight=1}}]'
    config = small_config(*SMALL, f"data.blend={blend}")
    token_sets, data, _ = read(config, stop=1)
    sources = blend_account(config, token_sets, data, 1)["sources"]
    assert [source["origin"] for source in sources] == ["original", "machine_translated"]


# ---- refusals


@pytest.fixture
def own_tokens(token_folder, tmp_path) -> Path:
    """A copy of the token sets to spoil."""
    return shutil.copytree(token_folder / "runs/tiny/tokens", tmp_path / "tokens")


def refusal(small_config, *sources: Path, changes: tuple[str, ...] = SMALL) -> str:
    blend = ", ".join(f'{{name="{path.name}", path="{path}", weight=1}}' for path in sources)
    with pytest.raises(CorpusError) as error:
        load_token_sets(small_config(f"data.blend=[{blend}]", *changes))
    return str(error.value)


def test_empty_blend_is_refused(small_config):
    assert "data.blend is empty" in refusal(small_config)


def test_missing_token_set_is_refused_with_the_tool_that_makes_it(small_config, tmp_path):
    message = refusal(small_config, tmp_path / "none")
    assert "'none'" in message and "tools/tokenize_corpus.py" in message


def test_truncated_tokens_are_refused_with_both_sizes(small_config, own_tokens):
    path = own_tokens / "texts_ja/tokens.bin"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-2])
    message = refusal(small_config, own_tokens / "texts_ja")
    assert str(path) in message and str(size) in message and str(size - 2) in message


def test_another_vocabulary_is_refused_with_both_numbers(small_config, own_tokens):
    message = refusal(small_config, own_tokens / "texts_ja", changes=(*SMALL, "model.vocab_size=1999"))
    assert "2000 pieces; model.vocab_size is 1999" in message


def test_two_tokenizers_are_refused(small_config, own_tokens):
    path = own_tokens / "texts_en/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["details"]["tokenizer"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    message = refusal(small_config, own_tokens / "texts_ja", own_tokens / "texts_en")
    assert "made with 2 different tokenizers" in message


def test_token_set_smaller_than_a_sequence_is_refused(small_config, tmp_path, token_folder):
    source = tmp_path / "short.jsonl"
    source.write_text('{"text": "咳と熱。"}\n' * 2, encoding="utf-8")
    tokenize(source, tmp_path / "short", TokenizeSettings(tokenizer=token_folder / "tokenizer.model", progress=False))
    message = refusal(small_config, tmp_path / "short", changes=(*SMALL, "data.valid_ratio=0"))
    assert "less than one sequence of budget.seq_length=32" in message
    assert "2 documents, too few for data.valid_ratio=0.05" in refusal(small_config, tmp_path / "short")


def test_sentences_are_refused(small_config, tmp_path, token_folder):
    source = tmp_path / "source.jsonl"
    source.write_text('{"text": "咳と熱。心臓と肺と肝臓。"}\n' * 100, encoding="utf-8")
    settings = TokenizeSettings(tokenizer=token_folder / "tokenizer.model", split_sentences=True, progress=False)
    tokenize(source, tmp_path / "set", settings)
    message = refusal(small_config, tmp_path / "set")
    assert "'set' holds sentences" in message and "tokenise without --split-sentences" in message


def test_documents_without_marks_are_refused_where_attention_stays_within_them(small_config, tmp_path, token_folder):
    source = tmp_path / "source.jsonl"
    source.write_text('{"text": "咳と熱。心臓と肺と肝臓。"}\n' * 100, encoding="utf-8")
    settings = TokenizeSettings(tokenizer=token_folder / "tokenizer.model", bos=False, eos=False, progress=False)
    tokenize(source, tmp_path / "set", settings)
    message = refusal(small_config, tmp_path / "set", changes=(*SMALL, "data.attention=document"))
    assert "'set' marks neither begin nor end of its documents" in message and "--no-bos --no-eos" in message
    assert load_token_sets(small_config(f'data.blend=[{{name="set", path="{tmp_path / "set"}", weight=1}}]', *SMALL))


def test_everything_wrong_is_named_at_once(small_config, own_tokens, tmp_path):
    (own_tokens / "texts_en/manifest.json").unlink()
    message = refusal(small_config, own_tokens / "texts_ja", own_tokens / "texts_en", tmp_path / "none",
                      changes=(*SMALL, "model.vocab_size=1999"))
    assert "3 problems" in message
    assert all(word in message for word in ("'texts_ja' was tokenised", "texts_en holds no manifest", "none does not exist"))
