"""How much of what has a run read up to a step? Tokens, epochs and unique documents, by source and by language.

In: a Replay (replay.py) and a step. Out: plain numbers. Invariant: the tokens by source are those of RUN/blend.json, and
they are the sums of what was read of each document. (Of conversations the tokens themselves are counted here, and in blend.json the
rows that they fill, with what is left over.)
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from megatron_jmed.corpus.provenance import MIXED
from megatron_jmed.data.index_arrays import EpochOrder
from megatron_jmed.data.replay import Replay
from megatron_jmed.errors import ConfigError

POSITIONS_AT_ONCE = 2**22


def read_account(replay: Replay, step: int) -> dict[str, Any]:
    """Tokens, epochs and unique documents that were read up to a step, by source and by language.

    An epoch is every token of the training part. Languages are those of the documents where a token set has a
    listing, else the one language of the set, else what the blend calls it.
    """
    if not 0 <= step <= replay.config.num_steps:
        raise ConfigError(f"step {step}: the run has the steps 1 to {replay.config.num_steps:,}")
    is_read = _is_read(replay, step)
    groups = [group for source in range(len(replay.orders)) for group in _groups(replay, source, is_read)]
    sources = [{"name": name, **_summed([g for g in groups if g["name"] == name])} for name in replay.source_names]
    names = sorted({group["lang"] for group in groups})
    langs = [{"lang": lang, **_summed([g for g in groups if g["lang"] == lang])} for lang in names]
    return {"step": step, "skipped_steps": replay.config.data.num_skipped(step), "sources": sources, "langs": langs,
            "groups": groups, "all": _summed(groups)}


def _is_read(replay: Replay, step: int) -> np.ndarray:
    """For each of the first `step` steps' sequences whether its step was not skipped."""
    batch = replay.config.budget.global_batch_size
    is_read = np.ones(step * batch, bool)
    for first, last in replay.config.data.skipped_ranges(step):
        is_read[(first - 1) * batch : last * batch] = False
    return is_read


def _groups(replay: Replay, source: int, is_read: np.ndarray) -> list[dict[str, Any]]:
    """What was read of a source, by source and language of its documents."""
    lengths = np.array(replay.indices[source].lengths)
    mine = np.flatnonzero(is_read & (replay.dataset_index[: len(is_read)] == source))
    names, groups = _names_and_groups(replay, source)
    num_train = replay.num_train_documents(source)
    tokens, is_seen = np.zeros(len(names), np.int64), np.zeros(len(lengths), bool)
    for epoch, inside in replay.by_epoch(source, mine):
        order = replay.orders[source][epoch]
        is_sample_read = np.zeros(len(order.shuffle_index), bool)
        is_sample_read[order.shuffle_index[inside.drawings]] = True
        for documents, num_tokens in _tokens_read(order, lengths, is_sample_read, replay.config.budget.seq_length):
            tokens += np.bincount(groups[documents], num_tokens, len(names)).astype(np.int64)
            is_seen[documents[num_tokens > 0]] = True
    in_train = groups[:num_train]
    epoch = np.bincount(in_train, lengths[:num_train], len(names)).astype(np.int64)
    seen, there = (np.bincount(which, minlength=len(names)) for which in (groups[is_seen], in_train))
    return [{"name": replay.source_names[source], "source_of_documents": one, "lang": lang, "tokens": int(tokens[number]),
             "tokens_an_epoch": int(epoch[number]), "unique_documents": int(seen[number]), "documents": int(there[number])}
            for number, (one, lang) in enumerate(names) if there[number]]


def _names_and_groups(replay: Replay, source: int) -> tuple[list[tuple[str, str]], np.ndarray]:
    """(source, language) of the documents of a token set, and the number of each one's."""
    listing, token_set = replay.listings[source], replay.token_sets[source]
    if listing:
        return listing.names, np.array(listing.groups)
    only = [next(iter(share)) if len(share) == 1 else MIXED for share in (token_set.source_share, token_set.lang_share)]
    lang = only[1] if only[1] not in (MIXED, "unknown") else replay.config.data.blend[source].lang or only[1]
    return [(only[0], lang)], np.zeros(token_set.num_documents, np.int16)


def _tokens_read(order: EpochOrder, lengths: np.ndarray, is_read: np.ndarray, seq_length: int
                 ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each position of the stream, a few million at a time: its document, and how many of its tokens were read.

    Sample s is the stream's tokens s*S to (s+1)*S, so the tokens read before any place of the stream follow from the
    samples read before it.
    """
    if order.is_whole:
        is_read = np.repeat(is_read, np.diff(order.sample_index[:, 0]))
        yield order.document_index, lengths[order.document_index] * is_read
        return
    read_before = np.concatenate([[0], np.cumsum(is_read, dtype=np.int64)])
    is_read = np.append(is_read, False)  # what no sample holds: the stream's rest
    place = 0
    for start in range(0, len(order.document_index), POSITIONS_AT_ONCE):
        documents = order.document_index[start : start + POSITIONS_AT_ONCE]
        places = np.concatenate([[place], place + np.cumsum(lengths[documents], dtype=np.int64)])
        samples = np.minimum(places // seq_length, len(is_read) - 1)
        read = seq_length * read_before[samples] + is_read[samples] * (places - samples * seq_length)
        yield documents, np.diff(read)
        place = int(places[-1])


def _summed(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The sums of some groups, and epochs."""
    sums = {word: sum(group[word] for group in groups) for word in ("tokens", "tokens_an_epoch", "unique_documents", "documents")}
    return sums | {"epochs": sums["tokens"] / sums["tokens_an_epoch"] if sums["tokens_an_epoch"] else 0.0}
