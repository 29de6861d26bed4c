"""Legacy Megatron folders import to the bit in every layout of experts and ranks, and no file can run code."""

import os
import pickle
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from legacy_folders import AttnBackend, write_legacy
from safetensors.torch import load_file
from transformers import AutoConfig

from megatron_jmed.convert.source import open_weights
from megatron_jmed.convert.verify import compare
from megatron_jmed.convert.weights import import_weights
from megatron_jmed.errors import CheckpointError

FILE = "iter_0000500/mp_rank_00/model_optim_rng.pt"


@pytest.fixture
def write(tmp_path):
    """write(hf folder, layout words): a legacy folder of the same weights."""

    def make(hf: Path, **words) -> Path:
        return write_legacy(tmp_path / "legacy", load_file(hf / "model.safetensors"), AutoConfig.from_pretrained(hf), **words)

    return make


@pytest.mark.parametrize("experts", ["sequential", "te_grouped", "grouped"])
@pytest.mark.parametrize("layout", [{}, {"tp": 2, "pp": 2, "ep": 4}, {"ep": 2}, {"pp": 2}, {"tp": 2}],
                         ids=lambda layout: "".join(f"{word}{size}" for word, size in layout.items()) or "one")
def test_every_layout_gives_the_weights_to_the_bit(mixtral, write, experts, layout):
    legacy = open_weights(write(mixtral, experts=experts, **layout), vocab_size=300)
    comparison = compare(open_weights(mixtral), legacy)
    assert comparison.is_equal, comparison.verdict


@pytest.mark.parametrize("norms", ["te", "local"])
def test_dense_models_and_names_of_the_local_spec(llama, write, norms):
    assert compare(open_weights(llama), open_weights(write(llama, tp=2, pp=2, norms=norms), 300)).is_equal


def test_virtual_pipeline_stages(mixtral, write):
    assert compare(open_weights(mixtral), open_weights(write(mixtral, virtual=2, experts="te_grouped"), 300)).is_equal


def test_imported_checkpoint_equals_the_legacy_folder(mixtral, write, tmp_path):
    legacy = open_weights(write(mixtral, tp=2, ep=2, experts="grouped"), 300)
    import_weights(legacy, tmp_path / "checkpoint")
    assert compare(legacy, open_weights(tmp_path / "checkpoint")).is_equal


def test_classes_of_megatron_in_the_args_are_not_imported(mixtral, write):
    enums = types.ModuleType("megatron.core.transformer.enums")
    enums.AttnBackend = AttnBackend
    before = sys.modules.get(enums.__name__)
    sys.modules[enums.__name__] = enums  # so that pickle writes the class under this name
    try:
        folder = write(mixtral, attention_backend=AttnBackend.auto)
    finally:
        sys.modules.pop(enums.__name__) if before is None else sys.modules.update({enums.__name__: before})
    code = ("import sys; from pathlib import Path; from megatron_jmed.convert.source import open_weights; "
            f"open_weights(Path({str(folder)!r}), 300); "
            "sys.exit(any(name.split('.')[0] == 'megatron' for name in sys.modules))")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ---- refused


class Evil:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_malicious_file_is_refused_and_runs_nothing(mixtral, write, tmp_path):
    folder, mark = write(mixtral), tmp_path / "it_ran"
    content = torch.load(folder / FILE, weights_only=False)
    torch.save(content | {"rerun_state_machine": Evil(mark)}, folder / FILE)
    with pytest.raises(CheckpointError, match="refused: it would load posix.system"):
        open_weights(folder, 300)
    assert not mark.exists()
    torch.load(folder / FILE, weights_only=False)
    assert mark.exists(), "the file must be one that does harm to a careless reader"


@pytest.mark.parametrize("evil", ["builtins.eval", "builtins.getattr", "subprocess.Popen", "torch.hub.load", "numpy_evil.x"])
def test_names_outside_the_list_are_refused(mixtral, write, evil, tmp_path):
    module, name = evil.rsplit(".", 1)
    folder = write(mixtral)
    path = tmp_path / "evil.pt"
    torch.save({"x": 1}, path)
    payload = b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n."
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(folder / FILE, "w") as new:
        for item in old.namelist():
            new.writestr(item, payload if item.endswith("data.pkl") else old.read(item))
    with pytest.raises(CheckpointError, match="refused|safely"):
        open_weights(folder, 300)


@pytest.mark.parametrize("content", [b"", b"no torch file", pickle.dumps({"args": 1})])
def test_files_that_are_no_checkpoint_are_named(mixtral, write, content):
    folder = write(mixtral)
    (folder / FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="model_optim_rng.pt"):
        open_weights(folder, 300)


@pytest.mark.parametrize(("words", "said"), [
    ({"moe_router_pre_softmax": True}, "args.moe_router_pre_softmax=True"),
    ({"add_bias_linear": True}, "args.add_bias_linear=True"),
    ({"rotary_percent": 0.5}, "args.rotary_percent=0.5"), ({"normalization": "LayerNorm"}, "args.normalization='LayerNorm'"),
    ({"num_layers": None}, "args.num_layers is missing"), ({"hidden_size": "wide"}, "args.hidden_size='wide'"),
    ({"num_attention_heads": 0}, "args.num_attention_heads=0"),
    ({"padded_vocab_size": 256}, "300 is more than args.padded_vocab_size=256"),
    ({"hidden_size": 64}, "has shape"),
    ({"num_layers": 3}, "no tensor decoder.layers.0:2"),
    ({"num_layers": 1}, "belongs to no part"),
    ({"expert_tensor_parallel_size": 3}, "neither 1 nor"),
])
def test_args_that_do_not_fit_are_named(mixtral, write, words, said):
    with pytest.raises(CheckpointError, match=said):
        open_weights(write(mixtral, **words), 300)


def test_vocabulary_must_be_said(mixtral, write):
    with pytest.raises(CheckpointError, match="--vocab-size"):
        open_weights(write(mixtral))


def test_missing_rank_is_named(mixtral, write):
    folder = write(mixtral, tp=2, pp=2, ep=2)
    (folder / "iter_0000500/mp_rank_01_001_001/model_optim_rng.pt").unlink()
    with pytest.raises(CheckpointError, match="rank 1, pipeline stage 1, expert-parallel rank 1"):
        open_weights(folder, 300)
