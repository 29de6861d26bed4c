"""Our model computes the logits of transformers, whatever its kind; and a wrong word would show."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from megatron_jmed.config import ModelConfig
from megatron_jmed.convert.names import rows
from megatron_jmed.convert.torch_dist import write_checkpoint
from megatron_jmed.convert.weights import import_hf
from megatron_jmed.run_folder import CheckpointState
from megatron_jmed.train.logits import checkpoint_logits

VOCABULARY, PADDED = 300, 384
WORDS = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
             max_position_embeddings=256, rms_norm_eps=1e-4, initializer_range=0.2,
             rope_parameters={"rope_type": "default", "rope_theta": 500.0})
EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2)
KINDS = {f"{name}_{'gqa' if groups == 2 else 'mha'}{'_tied' * tied}": (name, groups, tied)
         for name in ("mixtral", "llama") for groups, tied in ((2, False), (4, False), (2, True))}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """reference(kind): (HF folder, checkpoint folder, tokens [B, S], transformers' fp32 logits)."""
    made = {}

    def make(kind: str):
        if kind not in made:
            made[kind] = _reference(tmp_path_factory.mktemp(kind), *KINDS[kind])
        return made[kind]

    return make


def _reference(folder: Path, name: str, num_query_groups: int, tied: bool):
    torch.manual_seed(0)
    words = {**WORDS, "num_key_value_heads": num_query_groups, "tie_word_embeddings": tied}
    model = (LlamaForCausalLM(LlamaConfig(**words)) if name == "llama" else MixtralForCausalLM(MixtralConfig(**words, **EXPERTS)))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder / "hf")
    _write_checkpoint(folder, _model_config(words, num_experts=4 if name == "mixtral" else 0))
    tokens_BS = torch.randint(VOCABULARY, (3, 50))
    with torch.no_grad():
        return folder / "hf", folder / "checkpoint", tokens_BS, model.eval()(tokens_BS).logits.float()


def _model_config(words: dict, num_experts: int) -> ModelConfig:
    return ModelConfig(
        num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=words["num_key_value_heads"], kv_channels=8,
        ffn_hidden_size=48, num_experts=num_experts, router_topk=2 if num_experts else 0, vocab_size=VOCABULARY,
        max_position_embeddings=256, tied_embeddings=words["tie_word_embeddings"], rotary_base=500.0, layernorm_epsilon=1e-4)


def _write_checkpoint(folder: Path, model: ModelConfig) -> None:
    """By the table, a slice at a time."""
    hf, tensors = load_file(folder / "hf/model.safetensors"), {}
    for row in rows(model):
        stack = tensors[row.key] = torch.zeros(row.shape(model, PADDED))
        for index, names in row.slices(model):
            part = row.join(tuple(hf[name] for name in names), model)
            (stack[:VOCABULARY] if row.has_vocabulary else stack[index]).copy_(part)
    write_checkpoint(folder / "checkpoint", tensors, CheckpointState(step=0, tokens=0, model=model, has_optimizer=False))


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape and ours.dtype == torch.float32
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind, reference):
    _, checkpoint, tokens_BS, theirs = reference(kind)
    assert relative_difference(checkpoint_logits(checkpoint, tokens_BS, "fp32"), theirs) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_logits_are_near(kind, reference):
    """The median token: a rounding may send a token to another expert, and its logits then differ as a whole."""
    _, checkpoint, tokens_BS, theirs = reference(kind)
    ours = checkpoint_logits(checkpoint, tokens_BS, "bf16")
    by_token_BS = (ours - theirs).abs().amax(dim=-1) / theirs.abs().max()
    assert 1e-4 < float(by_token_BS.median()) < 0.02


def test_imported_folder_has_the_same_logits(reference, tmp_path):
    hf, _, tokens_BS, theirs = reference("mixtral_gqa")
    import_hf(hf, tmp_path / "checkpoint")
    assert relative_difference(checkpoint_logits(tmp_path / "checkpoint", tokens_BS, "fp32"), theirs) < 1e-5


def test_wrong_router_shows(reference):
    _, checkpoint, tokens_BS, theirs = reference("mixtral_gqa")
    assert relative_difference(checkpoint_logits(checkpoint, tokens_BS, "fp32", {"moe_router_pre_softmax": True}), theirs) > 0.01
