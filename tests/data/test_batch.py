"""Which document a token belongs to, and what a context-parallel rank gets of a batch."""

import pytest
import torch

from megatron_jmed.data.batch import DocumentMarks, batch_from_sample, document_numbers, places_in_documents

BOS, EOS = 1, 2
CPU = torch.device("cpu")


@pytest.mark.parametrize(("tokens", "begin", "end", "numbers", "places"), [
    ([1, 5, 2, 1, 6, 7, 2, 1], BOS, EOS, [1, 1, 1, 2, 2, 2, 2, 3], [0, 1, 2, 0, 1, 2, 3, 0]),
    ([5, 2, 1, 6, 7, 8, 9, 2], BOS, EOS, [0, 0, 1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 2, 3, 4, 5]),  # the rest of one comes first
    ([5, 6, 2, 7, 2, 2, 8, 9], None, EOS, [0, 0, 0, 1, 1, 2, 3, 3], [0, 1, 2, 0, 1, 0, 0, 1]),
    ([5, 1, 6, 7, 1, 8, 9, 9], BOS, None, [0, 1, 1, 1, 2, 2, 2, 2], [0, 0, 1, 2, 0, 1, 2, 3]),
    ([5, 2, 6, 1, 7, 2, 1, 8], BOS, EOS, [0, 0, 1, 2, 2, 2, 3, 3], [0, 1, 0, 0, 1, 2, 0, 1]),  # sets of both kinds blended
    ([5, 2, 1, 6, 7, 8, 9, 2], None, None, [0] * 8, [0, 1, 2, 3, 4, 5, 6, 7]),
])
def test_documents_begin_at_a_begin_mark_and_after_an_end_mark(tokens, begin, end, numbers, places):
    other = [9] * 8
    document_BS = document_numbers(torch.tensor([tokens, other]), DocumentMarks(begin, end))
    assert document_BS.tolist() == [numbers, [0] * 8]
    assert places_in_documents(document_BS).tolist() == [places, list(range(8))]


def sample() -> dict[str, torch.Tensor]:
    tokens = torch.tensor([[1, 5, 2, 1, 6, 7, 2, 1], [5, 6, 7, 2, 1, 8, 2, 1]])
    return {"tokens": tokens, "labels": tokens + 100, "loss_mask": torch.ones(2, 8), "position_ids": torch.arange(8).expand(2, 8),
            "dataset_id": torch.tensor([0, 1], dtype=torch.int16)}


def test_without_marks_there_are_no_documents():
    batch = batch_from_sample(sample(), CPU)
    assert batch.document_BS is None and batch.position_ids_BS.tolist() == [list(range(8))] * 2


def test_context_parallel_ranks_share_all_but_the_document_numbers():
    whole = batch_from_sample(sample(), CPU, marks=DocumentMarks(BOS, EOS))
    assert whole.position_ids_BS.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 0, 1, 2, 0]]
    parts = [batch_from_sample(sample(), CPU, rank, 2, DocumentMarks(BOS, EOS)) for rank in range(2)]
    for rank, places in enumerate(([0, 1, 6, 7], [2, 3, 4, 5])):
        for name in ("tokens_BS", "labels_BS", "loss_mask_BS", "position_ids_BS"):
            assert torch.equal(getattr(parts[rank], name), getattr(whole, name)[:, places]), name
        assert torch.equal(parts[rank].document_BS, whole.document_BS) and torch.equal(parts[rank].source_B, whole.source_B)
