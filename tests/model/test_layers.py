"""Our layers compute what they say, against plain mathematics and another implementation; precision is never silently
another than asked for."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm

import megatron_jmed.parallel  # noqa: F401  (the CPU patches come before Megatron-Core)
from megatron_jmed.config import PrecisionConfig, recipe_config
from megatron_jmed.errors import ConfigError
from megatron_jmed.model.fused import RMSNorm
from megatron_jmed.model.layers import CausalAttention
from megatron_jmed.model.precision import missing_for, precision_fields
from megatron_jmed.model.transformer import transformer_config


def norm(hidden_size: int, dtype: torch.dtype, eps: float = 1e-5) -> RMSNorm:
    return RMSNorm(SimpleNamespace(params_dtype=dtype, sequence_parallel=True), hidden_size, eps)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_rms_norm_equals_mixtrals(dtype, tolerance, scale):
    torch.manual_seed(0)
    ours, theirs = norm(48, dtype), MixtralRMSNorm(48, eps=1e-5).to(dtype)
    with torch.no_grad():
        theirs.weight.copy_(1 + 0.1 * torch.randn(48))
        ours.weight.copy_(theirs.weight)
    hidden = (scale * torch.randn(5, 3, 48)).to(dtype)
    assert ours(hidden).dtype == dtype
    torch.testing.assert_close(ours(hidden), theirs(hidden), rtol=tolerance, atol=1e-7)


def test_rms_norm_weight_is_marked_for_sequence_parallelism():
    assert norm(8, torch.float32).weight.sequence_parallel is True


def plain_attention(query_SBND, key_SBGD, value_SBGD):
    """softmax(Q K^T / sqrt(D) with a causal mask) V, one head at a time, in fp64."""
    seq, batch, heads, size = query_SBND.shape
    group = heads // key_SBGD.size(2)
    above = torch.triu(torch.ones(seq, seq, dtype=torch.bool), diagonal=1)
    out = []
    for b in range(batch):
        for n in range(heads):
            q, k, v = query_SBND[:, b, n], key_SBGD[:, b, n // group], value_SBGD[:, b, n // group]
            scores = (q @ k.T / math.sqrt(size)).masked_fill(above, -math.inf)
            out.append(scores.softmax(dim=-1) @ v)
    return torch.stack(out).view(batch, heads, seq, size).permute(2, 0, 1, 3).reshape(seq, batch, heads * size)


@pytest.mark.parametrize("num_groups", [1, 2, 4])
def test_attention_and_its_gradients_equal_plain_softmax_attention(num_groups):
    from megatron.core.transformer.enums import AttnMaskType

    torch.manual_seed(0)
    shapes = [(7, 2, heads, 8) for heads in (4, num_groups, num_groups)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    attention = CausalAttention(None, 1, AttnMaskType.causal, "self")
    expected, found = plain_attention(*inputs), attention(*inputs)
    torch.testing.assert_close(found, expected)
    along = torch.randn_like(expected)
    for ours, theirs in zip(torch.autograd.grad(found, inputs, along), torch.autograd.grad(expected, inputs, along), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("num_groups", [1, 2, 4])
def test_attention_by_document_is_that_of_each_document_alone(num_groups):
    from megatron.core.transformer.enums import AttnMaskType

    torch.manual_seed(0)
    inputs = [torch.randn(9, 2, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (4, num_groups, num_groups)]
    document_BS = torch.tensor([[0] * 4 + [1] * 5, [3] + [4] * 2 + [7] * 6])
    found = CausalAttention(None, 1, AttnMaskType.causal, "self")(*inputs, document_BS)

    def alone(row: int, number: int) -> torch.Tensor:
        return plain_attention(*(tensor[document_BS[row] == number, row : row + 1] for tensor in inputs))

    expected = torch.cat([torch.cat([alone(row, number) for number in numbers])
                          for row, numbers in enumerate(([0, 1], [3, 4, 7]))], dim=1)
    torch.testing.assert_close(found, expected)
    along = torch.randn_like(expected)
    for ours, theirs in zip(torch.autograd.grad(found, inputs, along), torch.autograd.grad(expected, inputs, along), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_attention_that_is_not_causal_is_not_built():
    from megatron.core.transformer.enums import AttnMaskType

    with pytest.raises(AssertionError, match="only causal"):
        CausalAttention(None, 1, AttnMaskType.padding, "self")


# ---- the model that is built


def test_no_position_sees_a_later_token(small_config, groups):
    from megatron_jmed.model.build import build_model

    config = small_config("model.vocab_size=64")
    model = build_model(config, groups).eval()
    tokens = torch.randint(64, (1, 12))
    changed = tokens.clone()
    changed[0, 8:] = (tokens[0, 8:] + 1) % 64
    positions = torch.arange(12)[None]
    with torch.no_grad():
        before, after = model(tokens, positions, None), model(changed, positions, None)
    torch.testing.assert_close(before[0, :8], after[0, :8], rtol=1e-4, atol=1e-5)
    assert ((before[0, 8:] - after[0, 8:]).abs().amax(dim=-1) > 1e-3).all()


DENSE = ("model.num_experts=0", "model.router_topk=0")


@pytest.mark.parametrize("kind", [(), ("model.num_query_groups=4",), DENSE, (*DENSE, "model.tied_embeddings=true")])
def test_logits_of_packed_documents_are_those_of_each_alone(kind, small_config, groups):
    """Also where a document stands far from the front: the rotary embedding goes on counting, and only distances matter."""
    from megatron_jmed.model.build import build_model

    torch.manual_seed(0)
    model = build_model(small_config("model.vocab_size=64", "model.init_method_std=0.2", *kind), groups).eval()
    lengths = [1, 200, 7, 80, 224]
    tokens_BS = torch.randint(64, (2, 512))
    document_BS = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths)).expand(2, 512)

    def logits(tokens_BS, document_BS=None):
        with torch.no_grad():
            return model(tokens_BS, torch.arange(tokens_BS.size(1)).expand_as(tokens_BS), document_BS)

    packed, across = logits(tokens_BS, document_BS), logits(tokens_BS)
    first = 0
    for number, length in enumerate(lengths):
        alone, here = logits(tokens_BS[:, first : first + length]), slice(first, first + length)
        scale = float(alone.abs().max())
        assert (packed[:, here] - alone).abs().max() < 1e-4 * scale
        if number:  # and if it saw the documents before it, that would show
            assert (across[:, here] - alone).abs().max() > 0.05 * scale
        first += length


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_built_model_has_the_weights_of_its_precision_and_counts_of_its_config(compute, small_config, groups):
    from megatron_jmed.model.build import build_data_parallel_model
    from megatron_jmed.train.estimate import count_parameters

    config = small_config(f"precision.compute={compute}")
    (model,) = build_data_parallel_model(config, groups)
    dtypes = {parameter.dtype for parameter in model.parameters()}
    assert dtypes == {torch.float32 if compute == "fp32" else torch.bfloat16}
    assert {p.main_grad.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config.model, config.padded_vocab_size).total


def test_same_seed_builds_the_same_weights(small_config):
    from megatron_jmed.model.build import build_model
    from megatron_jmed.parallel import World, start_groups, stop_groups

    config = small_config("model.num_layers=1", "model.vocab_size=64")
    built = []
    for seed in (1, 1, 2):
        groups = start_groups(config.parallel, World(0, 1, 0), seed)
        built.append(torch.cat([p.detach().flatten() for p in build_model(config, groups).parameters()]))
        stop_groups()
    assert torch.equal(built[0], built[1])
    assert not torch.equal(built[0], built[2])


# ---- precision


def test_local_back_end_misses_nothing_anywhere():
    assert missing_for(PrecisionConfig(compute="bf16", backend="local")) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("compute", ["bf16", "fp8"])
def test_transformer_engine_without_a_gpu_is_refused_with_what_would_work(compute):
    found = " ".join(missing_for(PrecisionConfig(compute=compute, backend="te")))
    assert "needs a CUDA GPU" in found and 'precision.backend="local"' in found


def test_fp8_on_a_gpu_older_than_hopper_is_refused_with_what_would_work(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    (found,) = [p for p in missing_for(PrecisionConfig(compute="fp8", backend="te")) if "Hopper" in p]
    assert "(8, 0)" in found and 'precision.compute="bf16"' in found
    assert not [p for p in missing_for(PrecisionConfig(compute="bf16", backend="te")) if "Hopper" in p]


def test_preflight_lists_missing_hardware_together_with_missing_data():
    from megatron_jmed.train.preflight import check_before_start

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError) as error:
        check_before_start(recipe_config("llmjp_8x13b_fp8"), 64)
    assert all(word in str(error.value) for word in ("needs a CUDA GPU", "tokens/papers_en", "checkpoints/llmjp_8x13b"))


@pytest.mark.parametrize("compute", ["fp32", "bf16", "fp8"])
def test_router_is_fp32_in_every_precision(compute):
    assert precision_fields(PrecisionConfig(compute=compute, backend="te"))["moe_router_dtype"] == "fp32"


# ---- the escape hatch


@pytest.mark.parametrize(("word", "said"), [
    ("moe_router_fusio", "did you mean 'moe_router_fusion'?"),
    ("num_layers", "follows from the other words"),
])
def test_escape_hatch_refuses_unknown_and_owned_fields(word, said, small_config):
    with pytest.raises(ConfigError, match=word) as error:
        transformer_config(small_config(f"model.mcore.{word}=1"))
    assert said in str(error.value)


def test_escape_hatch_reaches_megatron_core(small_config):
    assert transformer_config(small_config("model.mcore.moe_input_jitter_eps=0.5")).moe_input_jitter_eps == 0.5
