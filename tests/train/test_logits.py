"""Our model computes the logits of transformers, whatever its kind; and a wrong word would show."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from megatron_jmed.convert.weights import import_hf
from megatron_jmed.train.logits import checkpoint_logits

VOCABULARY = 300
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
    import_hf(folder / "hf", folder / "checkpoint")
    tokens_BS = torch.randint(VOCABULARY, (3, 50))
    with torch.no_grad():
        return folder / "hf", folder / "checkpoint", tokens_BS, model.eval()(tokens_BS).logits.float()


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
