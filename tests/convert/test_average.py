"""The average of checkpoints is the sum of their shares, exact where they agree, streams, and starts runs and exports."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_jmed.config import recipe_config
from megatron_jmed.convert.average import AveragedWeights, average_checkpoints
from megatron_jmed.convert.source import open_weights
from megatron_jmed.convert.torch_dist import CheckpointReader
from megatron_jmed.convert.verify import compare
from megatron_jmed.convert.weights import export_hf, import_hf
from megatron_jmed.errors import CheckpointError
from megatron_jmed.run_folder import STATE_NAME, load_state

TOOL = Path(__file__).parents[2] / "tools/average_checkpoints.py"


@pytest.fixture
def checkpoints(mixtral, tmp_path):
    """checkpoints(number, dtype): that many of the same shape with other weights: (folders, their tensors by HF name)."""

    def make(number: int, dtype: torch.dtype = torch.float32):
        folders, tensors = [], []
        for seed in range(number):
            hf = Path(shutil.copytree(mixtral, tmp_path / f"hf_{seed}"))
            generator = torch.Generator().manual_seed(seed)
            changed = {name: (tensor + 0.1 * torch.randn(tensor.shape, generator=generator)).to(dtype)
                       for name, tensor in load_file(mixtral / "model.safetensors").items()}
            save_file(changed, hf / "model.safetensors", metadata={"format": "pt"})
            import_hf(hf, tmp_path / f"step_{seed}")
            folders.append(tmp_path / f"step_{seed}")
            tensors.append(changed)
        return folders, tensors

    return make


def exported(checkpoint: Path, target: Path) -> dict[str, torch.Tensor]:
    export_hf(checkpoint, target)
    return load_file(target / "model-00001-of-00001.safetensors")


@pytest.mark.parametrize(("weights", "shares"), [(None, (1 / 3, 1 / 3, 1 / 3)), ([1, 2, 1], (0.25, 0.5, 0.25)),
                                                 ([0.2, 0.3, 0.5], (0.2, 0.3, 0.5))])
def test_average_is_that_computed_by_hand(weights, shares, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_jmed.convert.average._ROWS_AT_ONCE", 7)
    folders, tensors = checkpoints(3)
    average_checkpoints(folders, tmp_path / "average", weights)
    found = exported(tmp_path / "average", tmp_path / "hf")
    assert found.keys() == tensors[0].keys()
    for name, ours in found.items():
        exact = sum(share * one[name].double() for share, one in zip(shares, tensors, strict=True))
        assert ours.dtype == torch.float32 and (ours - exact).abs().max() < 1e-6
        assert all((ours - one[name]).abs().max() > 1e-3 for one in tensors)


def test_bf16_is_added_up_in_fp32_and_rounded_once(checkpoints, tmp_path):
    folders, tensors = checkpoints(5, torch.bfloat16)
    average_checkpoints(folders, tmp_path / "average")
    num_rounded_otherwise = total = 0
    for name, ours in exported(tmp_path / "average", tmp_path / "hf").items():
        exact = sum(one[name].double() for one in tensors) / 5
        assert ours.dtype == torch.bfloat16
        assert ((ours.double() - exact).abs() <= exact.abs() * 2**-8 * 1.001 + 1e-6).all()  # half a unit in the last place
        num_rounded_otherwise += int((ours != exact.bfloat16()).sum())
        total += ours.numel()
    assert num_rounded_otherwise < total / 500  # where fp32 falls on the other side of a tie


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [None, [1, 1, 1], [0.7, 0.2, 0.1]])
def test_average_of_equal_checkpoints_is_equal_to_the_bit(weights, dtype, checkpoints, tmp_path):
    (folder,), _ = checkpoints(1, dtype)
    again = Path(shutil.copytree(folder, tmp_path / "again"))
    average_checkpoints([folder, again, folder], tmp_path / "average", weights)
    ours, theirs = open_weights(tmp_path / "average"), open_weights(folder)
    assert compare(ours, theirs).is_equal
    for name in ("checksums.json", "metadata.json"):
        assert (tmp_path / "average" / name).read_bytes() == (folder / name).read_bytes()
    a, b = CheckpointReader(tmp_path / "average"), CheckpointReader(folder)
    assert all(torch.equal(a.read(key).view(torch.uint8), b.read(key).view(torch.uint8)) for key in b.weight_keys())


def test_zeros_keep_their_sign():
    class Source:
        name, dtype, identity, hf_files, model = "a", torch.float32, {}, None, recipe_config("tiny").model

        def get(self, _row, _index):
            return torch.tensor([-0.0, 0.0, 1.5])

    found = AveragedWeights([Source(), Source()], [0.5, 0.5]).get(None, ())
    assert found.view(torch.int32).tolist() == torch.tensor([-0.0, 0.0, 1.5]).view(torch.int32).tolist()


def test_it_is_a_weights_only_checkpoint_that_says_what_it_is_made_of(checkpoints, tmp_path):
    folders, _ = checkpoints(2)
    for number, folder in enumerate(folders):
        words = json.loads((folder / STATE_NAME).read_text())
        (folder / STATE_NAME).write_text(json.dumps(words | {"step": 100 - number, "tokens": 10 * (100 - number)}))
    average_checkpoints(folders, tmp_path / "average", [3, 1])
    state = load_state(tmp_path / "average")
    assert (state.step, state.tokens, state.has_optimizer) == (100, 1000, False)
    assert state.source == f"average: 0.75 x {folders[0]} + 0.25 x {folders[1]}"
    names = {path.name for path in folders[0].iterdir()}
    assert {path.name for path in (tmp_path / "average").iterdir()} == names  # hf_files, checksums.json and all
    assert (tmp_path / "average/checksums.json").read_bytes() != (folders[0] / "checksums.json").read_bytes()


def test_a_run_can_begin_with_it(checkpoints, small_config, groups, tmp_path):
    from megatron_jmed.model.build import build_data_parallel_model
    from megatron_jmed.train.checkpoint import load_weights
    from megatron_jmed.train.optimizer import build_optimizer
    from megatron_jmed.train.preflight import _find_beginning

    folders, tensors = checkpoints(2)
    average_checkpoints(folders, tmp_path / "average")
    config = small_config(f'init="{tmp_path / "average"}"')
    config = config.model_copy(update={"model": load_state(tmp_path / "average").model})
    checkpoint, state = _find_beginning(config)
    assert checkpoint == tmp_path / "average" and not state.has_optimizer
    model = build_data_parallel_model(config, groups)
    load_weights(checkpoint, model, build_optimizer(config, model, groups), groups)
    norm = dict(model[0].named_parameters())["module.decoder.final_layernorm.weight"]
    expected = (tensors[0]["model.norm.weight"] + tensors[1]["model.norm.weight"]) / 2
    torch.testing.assert_close(norm.detach(), expected, rtol=1e-6, atol=1e-6)


def test_interrupted_average_goes_on_with_the_same_checkpoints_only(checkpoints, tmp_path, monkeypatch):
    folders, _ = checkpoints(3)
    left = [10]

    def fails(self, row, index, get=AveragedWeights.get):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return get(self, row, index)

    with monkeypatch.context() as patch:
        patch.setattr(AveragedWeights, "get", fails)
        with pytest.raises(CheckpointError, match="No space left"):
            average_checkpoints(folders[:2], tmp_path / "average", workers=1)
    assert not (tmp_path / "average" / STATE_NAME).exists()
    with pytest.raises(CheckpointError, match="another, unfinished conversion"):
        average_checkpoints(folders, tmp_path / "average", workers=1)
    average_checkpoints(folders[:2], tmp_path / "average", workers=1)
    average_checkpoints(folders[:2], tmp_path / "at_once", workers=2)
    assert compare(open_weights(tmp_path / "average"), open_weights(tmp_path / "at_once")).is_equal


# ---- refusals


def test_every_differing_word_is_named(checkpoints, change_words, tmp_path):
    folders, _ = checkpoints(1)
    import_hf(change_words(rms_norm_eps=1e-6, num_experts_per_tok=1), tmp_path / "other")
    with pytest.raises(CheckpointError) as error:
        average_checkpoints([folders[0], tmp_path / "other"], tmp_path / "average")
    for said in ("model.layernorm_epsilon is 0.0001", "1e-06 in", "model.router_topk is 2", str(tmp_path / "other")):
        assert said in str(error.value)
    assert not (tmp_path / "average").exists()


def test_number_formats_are_not_mixed_and_dense_not_with_experts(mixtral, llama, checkpoints, tmp_path):
    folders, _ = checkpoints(1, torch.bfloat16)
    import_hf(mixtral, tmp_path / "wide")
    with pytest.raises(CheckpointError, match=r"number format is torch.bfloat16 in .* and torch.float32"):
        average_checkpoints([folders[0], tmp_path / "wide"], tmp_path / "average")
    import_hf(llama, tmp_path / "dense")
    with pytest.raises(CheckpointError, match="model.num_experts is 4"):
        average_checkpoints([tmp_path / "wide", tmp_path / "dense"], tmp_path / "average")


@pytest.mark.parametrize(("number", "weights", "said"), [
    (1, None, "needs at least 2"), (2, [1.0], "1 number(s) for 2 checkpoints"), (2, [1.0, 0.0], "each must be above 0"),
    (2, [1.0, float("nan")], "each must be above 0"), (2, [1.0, -0.5], "each must be above 0")])
def test_weights_that_make_no_average_are_refused(number, weights, said, checkpoints, tmp_path):
    folders, _ = checkpoints(number)
    with pytest.raises(CheckpointError) as error:
        average_checkpoints(folders, tmp_path / "average", weights)
    assert said in str(error.value) and not (tmp_path / "average").exists()


def test_a_folder_with_files_is_left_alone(checkpoints, tmp_path):
    folders, _ = checkpoints(2)
    before = (folders[0] / STATE_NAME).read_bytes()
    with pytest.raises(CheckpointError, match="not empty"):
        average_checkpoints(folders, folders[0])
    assert (folders[0] / STATE_NAME).read_bytes() == before


def test_tool_averages_and_refuses(checkpoints, tmp_path):
    folders, _ = checkpoints(2)
    command = [sys.executable, str(TOOL), *map(str, folders), "--target", str(tmp_path / "average")]
    done = subprocess.run([*command, "--weights", "0.5", "0.5"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "the average of 2 checkpoints, 2 layers, 4 experts" in done.stdout, done.stderr
    assert load_state(tmp_path / "average").source.startswith("average: 0.5 x")
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "not empty" in done.stderr and "Traceback" not in done.stderr
