"""Shared by the conversion tests: a random Mixtral folder in the files of transformers, and ways to change it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from megatron_jmed.run_folder import CheckpointState, begin_checkpoint, finish_checkpoint

VOCABULARY = 300  # no multiple of 128


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, four experts, grouped queries, words unlike every default; do not change it."""
    folder = tmp_path_factory.mktemp("mixtral") / "hf"
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256,
        rms_norm_eps=1e-4, initializer_range=0.2, router_aux_loss_coef=0.03,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, tie_word_embeddings=False,
    )
    model = MixtralForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(mixtral: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to spoil."""
    return Path(shutil.copytree(mixtral, tmp_path / "copy"))


@pytest.fixture
def change_tensors(copy: Path) -> Callable[..., Path]:
    """change_tensors(function): rewrite the copy's tensors as what `function` makes of the dictionary."""

    def change(function: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
        path = copy / "model.safetensors"
        tensors = {name: tensor.clone() for name, tensor in function(load_file(path)).items()}
        save_file(tensors, path, metadata={"format": "pt"})
        return copy

    return change


@pytest.fixture
def change_words(copy: Path) -> Callable[..., Path]:
    """change_words(word=value): change the copy's config.json; a value of ... removes the word."""

    def change(**words: object) -> Path:
        path = copy / "config.json"
        changed = json.loads(path.read_text()) | words
        path.write_text(json.dumps({word: value for word, value in changed.items() if value is not ...}))
        return copy

    return change


@pytest.fixture(scope="session")
def write_stacks() -> Callable[[Path, dict[str, torch.Tensor], CheckpointState], None]:
    """write_stacks(folder, {key: whole stack}, state): a checkpoint by torch's own writer, right or wrong."""

    def write(folder: Path, tensors: dict[str, torch.Tensor], state: CheckpointState) -> None:
        begin_checkpoint(folder)
        dcp.save(tensors, checkpoint_id=folder, no_dist=True)
        finish_checkpoint(folder, state)

    return write


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model of Llama's shape, two layers, grouped queries; do not change it."""
    folder = tmp_path_factory.mktemp("llama") / "hf"
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, rms_norm_eps=1e-4, initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
