"""Training in emulated fp8: as good as bf16, repeatable, and the process's own affair: a checkpoint does not know of it."""

from pathlib import Path

import pytest
import torch
from tiny_runs import losses, tiny_run

from megatron_jmed.data.batch import Batch
from megatron_jmed.model.linear import Products
from megatron_jmed.run_folder import RunFolder

SMALL = ("model.vocab_size=128", "model.num_layers=2", "budget.global_batch_size=4", "budget.micro_batch_size=2",
         "budget.seq_length=32", "precision.backend=jmed")
FP8 = ("precision.compute=fp8", "precision.bf16_first_layers=0", "precision.bf16_last_layers=0")
BF16 = ("precision.compute=bf16",)
RECIPES = {
    "blockwise": FP8,
    "tensorwise_wgrad": (*FP8, "precision.fp8_recipe=tensorwise", "precision.fp8_wgrad=true"),
}
MEAN_BOUND = 0.01  # benchmarks/fp8_parity.md measures 150 steps; here 20 are compared


def micro_batches():
    """Sequences in which every number follows from the one before, but for one in ten."""
    generator = torch.Generator().manual_seed(0)
    follows = torch.randperm(128, generator=generator)
    while True:
        ids = torch.randint(128, (2, 33), generator=generator)
        for place in range(1, 33):
            ids[:, place] = torch.where(torch.rand(2, generator=generator) < 0.9, follows[ids[:, place - 1]], ids[:, place])
        yield Batch(tokens_BS=ids[:, :-1], labels_BS=ids[:, 1:], loss_mask_BS=torch.ones(2, 32),
                    position_ids_BS=torch.arange(32).expand(2, 32), source_B=torch.zeros(2, dtype=torch.int64))


@pytest.fixture
def losses_of(small_config, groups):
    """losses_of(steps, break_, change, ...): from the same weights on the same batches; `break_` may spoil the model first."""
    from megatron.core import tensor_parallel

    from megatron_jmed.model.build import build_data_parallel_model
    from megatron_jmed.train.optimizer import build_optimizer
    from megatron_jmed.train.step import Stepper

    def trained(steps: int, break_, *changes: str) -> list[float]:
        tensor_parallel.model_parallel_cuda_manual_seed(7)
        config = small_config(*SMALL, *changes)
        (model,) = build_data_parallel_model(config, groups)
        stepper = Stepper(config, groups, [model], build_optimizer(config, [model], groups), ("only",))
        if break_:
            break_(model)
        batches = micro_batches()
        return [stepper.train(batches, lr=0.003, wants_stop=False).loss for _ in range(steps)]

    return trained


def mean_difference(losses: list[float], reference: list[float]) -> float:
    """Over the last ten steps, as a share of the reference."""
    return abs(sum(losses[-10:]) / sum(reference[-10:]) - 1)


def lose_the_scales(model) -> None:
    """E4M3 as it is, in every layer: nearly all gradients are below its smallest number."""
    for module in model.modules():
        if getattr(module, "how", None):
            module.how = Unscaled(fp8="tensorwise", is_wgrad_fp8=True)


class Unscaled(Products):
    def tokens(self, x):
        return x.float().clamp(-448, 448).to(torch.float8_e4m3fn), torch.ones(())

    def weight(self, weight):
        values, scale = self.tokens(weight)
        return (values, scale), (values.t(), scale)


def test_fp8_learns_like_bf16_and_without_scales_it_does_not(losses_of):
    reference = losses_of(20, None, *BF16)
    assert reference[-1] < 0.8 * reference[0]  # else there would be nothing to compare
    for name, changes in RECIPES.items():
        losses = losses_of(20, None, *changes)
        assert losses != reference, f"{name} is bf16"
        assert mean_difference(losses, reference) < MEAN_BOUND, name
    assert mean_difference(losses_of(20, lose_the_scales, *FP8), reference) > 3 * MEAN_BOUND


def test_recomputing_activations_changes_no_number(losses_of):
    assert losses_of(3, None, *FP8, "budget.recompute=full") == losses_of(3, None, *FP8)


def test_back_end_without_fp8_is_the_local_one_to_the_bit(losses_of):
    assert losses_of(3, None, *BF16, "precision.backend=local") == losses_of(3, None, *BF16)


# ---- a switch of precision at a resume


def run(folder: Path, steps: int, *changes: str) -> RunFolder:
    return tiny_run(folder, steps, "precision.backend=jmed", "precision.bf16_last_layers=0", "budget.save_every_tokens=6144",
                    *changes)


def first_line(said: str) -> str:
    """The first line of the run, before which there may be one about its index cache."""
    return next(line for line in said.splitlines() if line.startswith("tiny: "))


def keys(checkpoint: Path) -> dict[str, tuple]:
    from torch.distributed.checkpoint import FileSystemReader

    stored = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    return {key: (tuple(entry.size), entry.properties.dtype) for key, entry in stored.items() if hasattr(entry, "size")}


def test_a_run_goes_on_in_another_precision_by_one_word(token_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(token_folder)
    bf16, fp8 = "precision.compute=bf16", "precision.compute=fp8"
    whole = losses(run(tmp_path / "bf16", 9, bf16))
    folder = run(tmp_path / "run", 3, bf16)
    capsys.readouterr()
    run(folder.path, 6, fp8)
    said = capsys.readouterr().out
    assert first_line(said).endswith("fp8 emulated on the CPU")
    assert "resume contract: step 3" in said and "changed    precision.compute: bf16 -> fp8" in said
    run(folder.path, 9, bf16)
    said = capsys.readouterr().out
    assert "emulated" not in first_line(said) and "changed    precision.compute: fp8 -> bf16" in said
    mixed = losses(folder)
    assert len(mixed) == 9 and mixed[:3] == whole[:3] and mixed[3:] != whole[3:]
    assert mixed == pytest.approx(whole, rel=2e-3)
    assert keys(folder.checkpoint(6)) == keys(folder.checkpoint(3)) == keys(folder.checkpoint(9))
    sizes = [sum(path.stat().st_size for path in folder.checkpoint(step).glob("*.distcp")) for step in (3, 6)]
    assert sizes[0] == sizes[1] or abs(sizes[0] - sizes[1]) < 1000  # the same tensors; only the pickled heads may differ


def test_a_stopped_fp8_run_goes_on_to_the_bit(token_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(token_folder)
    whole = run(tmp_path / "whole", 6, "precision.compute=fp8")
    run(tmp_path / "run", 3, "precision.compute=fp8")
    assert losses(run(tmp_path / "run", 6, "precision.compute=fp8")) == losses(whole)
