"""Which conversations share a row, in which order are the rows read, and what stands in one? Numpy alone.

A row has room for S tokens. A conversation of n tokens takes n - 1 places: its inputs are all tokens but the last, its labels all
but the first, so no label crosses into another conversation, and none is cut. Best fit decreasing: the longest conversations
first, each into the fullest row that has room, else into a new one (at most 11/9 of the rows that the best packing needs, and 4:
Johnson et al. 1974, doi 10.1137/0203025; measured fill in benchmarks/sft.md). Which *lengths* share a row is the same in every
epoch, so that every epoch has the same number of rows and the order of a run does not depend on its horizon; which conversations
of these lengths, and in which order the rows come, is drawn anew for each epoch from seed + epoch.

Legend: S sequence length; n tokens of a conversation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_jmed.data.index_arrays import EpochOrder


@dataclass(frozen=True)
class Packing:
    """`row_of_slot[i]`: the row of the i-th longest conversation (those of one length in any order)."""

    row_of_slot: np.ndarray
    num_rows: int


def packing(num_tokens: np.ndarray, seq_length: int, several_a_row: bool = True) -> Packing:
    """Best fit decreasing of conversations with these numbers of tokens, none of which may be longer than S + 1; or one a row."""
    if not several_a_row:
        return Packing(np.arange(len(num_tokens), dtype=np.int32), len(num_tokens))
    sizes = np.sort(num_tokens)[::-1] - 1
    assert sizes[0] <= seq_length, "load_token_sets refuses longer ones"
    rows_with_room: list[list[int]] = [[] for _ in range(seq_length + 1)]
    rooms = 0  # bit r is set where a row has room for r more
    row_of_slot, num_rows = np.empty(len(sizes), dtype=np.int32), 0
    for slot, size in enumerate(sizes.tolist()):
        if large_enough := rooms >> size:
            room = size + (large_enough & -large_enough).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms ^= 1 << room
        else:
            row, room = num_rows, seq_length
            num_rows += 1
        row_of_slot[slot] = row
        if left := room - size:
            rows_with_room[left].append(row)
            rooms |= 1 << left
    return Packing(row_of_slot, num_rows)


def epoch_order(packing: Packing, num_tokens: np.ndarray, first: int, seed: int) -> EpochOrder:
    """The order of one epoch of the conversations `first`, `first` + 1, ...: which are in each row, row after row."""
    random = np.random.RandomState(seed % 2**32)  # whose numbers stay the same in all versions of numpy
    shuffled = random.permutation(len(num_tokens))
    by_length = shuffled[np.argsort(-num_tokens[shuffled], kind="stable")]
    place_of_row = random.permutation(packing.num_rows)
    row_of_slot = place_of_row[packing.row_of_slot]
    begins = np.concatenate([[0], np.cumsum(np.bincount(row_of_slot, minlength=packing.num_rows))])
    return EpochOrder(
        document_index=(first + by_length[np.argsort(row_of_slot, kind="stable")]).astype(np.int32),
        sample_index=np.stack([begins, np.zeros_like(begins)], axis=1),
        shuffle_index=np.arange(packing.num_rows, dtype=np.int32),
        is_whole=True,
    )


def filled_row(ids: Sequence[np.ndarray], weights: Sequence[np.ndarray], seq_length: int, pad: int) -> dict[str, np.ndarray]:
    """The row [S] of some conversations: tokens, labels, loss_mask (the label's weight), places in the conversation, and
    document, its number in the row. What is left over is a document of its own, filled with `pad`, that nothing is learnt of."""
    row = {"tokens": np.full(seq_length, pad, dtype=np.int64), "labels": np.full(seq_length, pad, dtype=np.int64),
           "loss_mask": np.zeros(seq_length, dtype=np.float32), "position_ids": np.empty(seq_length, dtype=np.int64),
           "document": np.empty(seq_length, dtype=np.int64)}
    at = 0
    for number, (ids_n, weights_n) in enumerate(zip(ids, weights, strict=True)):
        place = slice(at, at + len(ids_n) - 1)
        row["tokens"][place], row["labels"][place], row["loss_mask"][place] = ids_n[:-1], ids_n[1:], weights_n[1:]
        row["position_ids"][place], row["document"][place] = np.arange(len(ids_n) - 1), number
        at += len(ids_n) - 1
    row["position_ids"][at:], row["document"][at:] = np.arange(seq_length - at), len(ids)
    return row
