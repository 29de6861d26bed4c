"""Conversions stream, resume, carry the small files along, and never leave a folder that looks whole and is not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from megatron_jmed.convert import stored
from megatron_jmed.convert.parts import Part, write_parts
from megatron_jmed.convert.source import open_weights
from megatron_jmed.convert.torch_dist import CheckpointReader
from megatron_jmed.convert.upcycle import Upcycled, UpcycleSettings
from megatron_jmed.convert.verify import compare
from megatron_jmed.convert.weights import (
    default_workers,
    export_hf,
    export_weights,
    import_hf,
    import_weights,
    memory_bound_bytes,
)
from megatron_jmed.errors import CheckpointError
from megatron_jmed.recipes import RECIPES
from megatron_jmed.run_folder import STATE_NAME

TOOLS = Path(__file__).parents[2] / "tools"
WORDS = dict(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, head_dim=8,
             max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 500.0})


class Counted:
    """Weights that count what is asked of them, and fail when a number of slices has been given out."""

    def __init__(self, inner, fails_after: int = 10**9):
        self._inner, self._left, self.asked = inner, fails_after, 0
        self.name, self.model, self.dtype = inner.name, inner.model, inner.dtype
        self.identity, self.hf_files = inner.identity, inner.hf_files

    def get(self, row, index):
        if self.asked >= self._left:
            raise OSError(28, "No space left on device")
        self.asked += 1
        return self._inner.get(row, index)


# ---- every kind of model


@pytest.mark.parametrize("style", ["4", "5"])
@pytest.mark.parametrize(("experts", "groups", "tied"), [(0, 2, False), (0, 4, True), (3, 1, False), (8, 4, True)])
def test_round_trip_of_every_kind_is_equal_to_the_bit(experts, groups, tied, style, tmp_path):
    torch.manual_seed(3)
    words = {**WORDS, "num_key_value_heads": groups, "tie_word_embeddings": tied}
    model = (MixtralForCausalLM(MixtralConfig(**words, num_local_experts=experts, num_experts_per_tok=2)) if experts
             else LlamaForCausalLM(LlamaConfig(**words))).to(torch.bfloat16).eval()
    model.save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "again", style=style)
    assert compare(open_weights(tmp_path / "hf"), open_weights(tmp_path / "again")).is_equal
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.bfloat16, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = again.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in model.state_dict().items())


def test_style_5_stacks_experts(mixtral, tmp_path):
    export_weights(open_weights(mixtral), tmp_path / "five", style="5")
    (path,) = (tmp_path / "five").glob("*.safetensors")
    tensors, theirs = load_file(path), load_file(mixtral / "model.safetensors")
    stack = tensors["model.layers.1.mlp.experts.gate_up_proj"]
    expert = "model.layers.1.block_sparse_moe.experts.2."
    assert torch.equal(stack[2], torch.cat([theirs[expert + "w1.weight"], theirs[expert + "w3.weight"]]))
    assert "model.layers.0.mlp.gate.weight" in tensors


def test_tensors_of_several_number_formats_need_a_word(change_tensors):
    def change(tensors):
        return tensors | {"model.norm.weight": tensors["model.norm.weight"].half()}
    folder = change_tensors(change)
    with pytest.raises(CheckpointError, match="1 in torch.float16.*model.norm.weight.*--dtype"):
        open_weights(folder)
    assert open_weights(folder, dtype=torch.float32).dtype == torch.float32


# ---- the small files


def test_small_files_travel_through_a_checkpoint_and_back(copy, tmp_path):
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    (copy / "tokenizer_config.json").write_text('{"a": 1}')
    (copy / "generation_config.json").write_text('{"temperature": 0.7}')
    words = json.loads((copy / "config.json").read_text()) | {"bos_token_id": 1, "eos_token_id": 9, "our_word": "kept"}
    (copy / "config.json").write_text(json.dumps(words))
    import_hf(copy, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "hf")
    for name in ("chat_template.jinja", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (copy / name).read_bytes()
    ours = json.loads((tmp_path / "hf/config.json").read_text())
    assert (ours["eos_token_id"], ours["our_word"], ours["rope_theta"]) == (9, "kept", 500.0)


def test_a_runs_checkpoint_exports_the_files_of_the_checkpoint_it_began_from(copy, tmp_path):
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    import_hf(copy, tmp_path / "init")
    step = tmp_path / "run/checkpoints/step_0000001"
    shutil.copytree(tmp_path / "init", step)
    shutil.rmtree(step / "hf_files")
    (tmp_path / "run/config.json").write_text(json.dumps({"init": str(tmp_path / "init")}))
    export_hf(tmp_path / "run", tmp_path / "hf")
    assert (tmp_path / "hf/chat_template.jinja").read_text() == "{{ messages }}"


def test_checksums_of_both_folders_are_those_of_the_tensors(mixtral, tmp_path):
    import_hf(mixtral, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "hf")
    of_checkpoint, of_hf = (json.loads((tmp_path / name / "checksums.json").read_text()) for name in ("checkpoint", "hf"))
    assert of_checkpoint == of_hf and len(of_hf) == 41


# ---- interrupted


def test_a_full_disk_that_torchs_writer_hides_is_named(tmp_path):
    def write(file, advance):
        with open("/dev/full", "wb", buffering=0) as full:
            torch.save(torch.ones(1 << 16), full)

    with pytest.raises(CheckpointError, match=r"one.partial: No space left on device; what is finished stays"):
        write_parts(tmp_path, [Part("one", 1, write)], 1, "checkpoint")


@pytest.mark.parametrize("slices", [0, 1, 9, 20, 26])
def test_failed_import_is_not_taken_for_whole_and_goes_on_where_it_was(mixtral, slices, tmp_path):
    source, target = open_weights(mixtral), tmp_path / "checkpoint"
    with pytest.raises(CheckpointError, match="No space left on device"):
        import_weights(Counted(source, slices), target, workers=1)
    with pytest.raises(CheckpointError):
        open_weights(target)
    rest = Counted(source)
    import_weights(rest, target, workers=1)
    total = Counted(source)
    import_weights(total, tmp_path / "at_once", workers=1)
    assert rest.asked <= total.asked and (slices < 20 or rest.asked < total.asked / 2 + 10)
    assert compare(open_weights(target), source).is_equal
    assert sorted(path.name for path in target.iterdir()) == sorted(path.name for path in (tmp_path / "at_once").iterdir())


def test_failed_export_leaves_no_folder_and_goes_on_where_it_was(mixtral, tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_jmed.convert.hf.MAX_SHARD_BYTES", 30_000)
    source = open_weights(mixtral)
    with pytest.raises(CheckpointError, match="No space left"):
        export_weights(Counted(source, 20), tmp_path / "hf", workers=1)
    assert not (tmp_path / "hf").exists()
    rest = Counted(source)
    export_weights(rest, tmp_path / "hf", workers=1)
    assert 0 < rest.asked < 30
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert compare(open_weights(tmp_path / "hf"), source).is_equal


def test_another_conversion_does_not_go_on_in_an_unfinished_folder(mixtral, llama, tmp_path):
    with pytest.raises(CheckpointError):
        import_weights(Counted(open_weights(mixtral), 9), tmp_path / "checkpoint", workers=1)
    with pytest.raises(CheckpointError, match="another, unfinished conversion"):
        import_hf(llama, tmp_path / "checkpoint")


def test_truncated_part_is_written_again(mixtral, tmp_path):
    source, target = open_weights(mixtral), tmp_path / "checkpoint"
    with pytest.raises(CheckpointError):
        import_weights(Counted(source, 20), target, workers=1)
    first = target / "__1_0.distcp"
    first.write_bytes(first.read_bytes()[:-100])
    import_weights(source, target, workers=1)
    assert compare(open_weights(target), source).is_equal


def test_killed_at_random_moments_and_run_again_it_ends_equal(tmp_path):
    """A real process, killed five times while it upcycles a model of some 60 MB."""
    torch.manual_seed(0)
    words = {**WORDS, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12, "num_key_value_heads": 4}
    LlamaForCausalLM(LlamaConfig(**words)).save_pretrained(tmp_path / "dense")
    command = [sys.executable, str(TOOLS / "upcycle_dense.py"), str(tmp_path / "dense"), str(tmp_path / "moe"), "--workers", "2"]
    rng, kills = random.Random(0), 0
    for _ in range(5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not list(tmp_path.glob("moe/parts")):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        if not (tmp_path / "moe" / STATE_NAME).exists():
            with pytest.raises(CheckpointError):
                open_weights(tmp_path / "moe")
    assert kills, "at least one kill must have hit the work"
    if not (tmp_path / "moe" / STATE_NAME).exists():
        subprocess.run(command, check=True, timeout=200)
    expected = Upcycled(open_weights(tmp_path / "dense"), UpcycleSettings())
    assert compare(open_weights(tmp_path / "moe"), expected, workers=2).is_equal


# ---- memory


def test_bound_for_8x13b_is_below_12_gib_with_two_workers():
    model = RECIPES["llmjp_8x13b"]().model
    assert memory_bound_bytes(model, torch.bfloat16, 2) < 12 * 2**30
    assert 1 <= default_workers(model, torch.bfloat16) <= 3


def test_a_slice_is_read_without_the_rest_of_its_stack(mixtral, tmp_path, monkeypatch):
    import_hf(mixtral, tmp_path / "checkpoint")
    reader = CheckpointReader(tmp_path / "checkpoint")
    lengths = []
    monkeypatch.setattr(stored, "read_into", lambda path, offset, buffer, read=stored.read_into:
                        lengths.append(len(buffer)) or read(path, offset, buffer))
    part = reader.read("decoder.layers.mlp.experts.experts.linear_fc1.weight", (1, 2))
    assert part.shape == (96, 32) and lengths == [96 * 32 * 4]
