"""The table only moves rows: joining and splitting undo each other to the bit, and every tensor has one place."""

import pytest
import torch

from megatron_jmed.config import recipe_config
from megatron_jmed.convert.names import hf_names, rows

GROUPED = recipe_config("tiny").model.model_copy(update={
    "num_layers": 2, "hidden_size": 24, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 6,
    "ffn_hidden_size": 10, "num_experts": 3, "vocab_size": 50,
})
MODELS = {"grouped": GROUPED, "one key a query": GROUPED.model_copy(update={"num_query_groups": 4}),
          "one key for all": GROUPED.model_copy(update={"num_query_groups": 1})}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


@pytest.mark.parametrize("row", rows(GROUPED), ids=lambda row: row.key)
def test_splitting_undoes_joining_and_the_other_way_round(row, model):
    torch.manual_seed(0)
    part = torch.randn(row.slice_shape(model, model.vocab_size))
    tensors = row.split(part, model)
    assert len(tensors) == len(row.hf_names)
    assert torch.equal(row.join(tensors, model), part)
    for again, tensor in zip(row.split(row.join(tensors, model), model), tensors, strict=True):
        assert torch.equal(again, tensor)
    assert sum(tensor.numel() for tensor in tensors) == part.numel()


def test_query_key_value_rows_lie_by_group():
    """Rows are numbered 100 x (1 q, 2 k, 3 v) + head; each group holds its queries, then its key, then its value."""
    (row,) = [row for row in rows(GROUPED) if row.key.endswith("linear_qkv.weight")]
    model = GROUPED.model_copy(update={"kv_channels": 1})
    q, k, v = (torch.tensor(rows)[:, None].expand(-1, 24).contiguous() for rows in ([100, 101, 102, 103], [200, 201], [300, 301]))
    assert row.join((q, k, v), model)[:, 0].tolist() == [100, 101, 200, 300, 102, 103, 201, 301]


def test_gate_rows_lie_above_up_rows():
    (row,) = [row for row in rows(GROUPED) if row.key.endswith("linear_fc1.weight")]
    gate, up = torch.zeros(10, 24), torch.ones(10, 24)
    assert row.hf_names[0].endswith("w1.weight") and row.hf_names[1].endswith("w3.weight")
    assert row.join((gate, up), GROUPED)[:, 0].tolist() == [0.0] * 10 + [1.0] * 10


def test_every_slice_of_every_stack_is_filled_once(model):
    for row in rows(model):
        stack = torch.zeros(row.shape(model, model.vocab_size))
        for index, names in row.slices(model):
            assert stack[index].shape == row.slice_shape(model, model.vocab_size)
            assert len(names) == len(row.hf_names)
            stack[index] += 1
        assert stack.eq(1).all()


def test_names_and_sizes_are_those_of_transformers(mixtral):
    from safetensors import safe_open

    from megatron_jmed.convert.hf_config import model_from_hf_config

    model = model_from_hf_config(mixtral)
    with safe_open(mixtral / "model.safetensors", framework="pt") as file:
        theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dictionary)
    ours = {name: tuple(tensor.shape) for row in rows(model) for _, names in row.slices(model) for name, tensor in
            zip(names, row.split(torch.empty(row.slice_shape(model, model.vocab_size), device="meta"), model), strict=True)}
    assert ours == theirs
    assert hf_names(model) == set(theirs)


def test_number_of_values_is_the_models(model):
    from megatron_jmed.train.estimate import count_parameters

    values = sum(torch.empty(row.shape(model, model.vocab_size), device="meta").numel() for row in rows(model))
    assert values == count_parameters(model).total
