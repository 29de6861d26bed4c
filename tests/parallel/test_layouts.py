"""One checkpoint, every layout: the same losses within fp32 rounding; and resuming equals never having stopped.

All runs train 6 steps and save after 3. Three groups of processes (1, 2 and 4 ranks) do everything, because each start
of Megatron costs seconds.
"""

import shutil

import pytest
import torch

from megatron_jmed.convert.torch_dist import CheckpointReader

STEPS = [4, 5, 6]
RUN = ["tiny", "budget.total_tokens=12288", "budget.save_every_tokens=6144", "budget.eval_every_tokens=0",
       "optim.warmup_tokens=2048", "model.aux_loss_coeff=0.5"]  # a heavy auxiliary loss: an error in it must show
ONE_RANK = ["parallel.ep=1"]
# (tp, pp, ep): with tp and no ep, experts are split over tp too (etp)
LAYOUTS = {
    "tp2": ["parallel.ep=1", "parallel.tp=2", "parallel.etp=2", "parallel.sequence_parallel=true"],
    "pp2": ["parallel.ep=1", "parallel.pp=2"],
    "ep2": ["parallel.ep=2"],
    "tp2_ep2": ["parallel.ep=2", "parallel.tp=2", "parallel.sequence_parallel=true"],
    "dp2": ["parallel.ep=1", "data.num_workers=1"],
    "ep2_allgather": ["parallel.ep=2", "parallel.dispatcher=allgather"],
    "ep2_overlap": ["parallel.ep=2", "parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"],
    "ep2_recompute": ["parallel.ep=2", "budget.recompute=full"],
}
# two data-parallel ranks that hold each other's weights, with a validation between the steps
OVERLAP = ["parallel.ep=1", "parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true",
           "budget.eval_every_tokens=8192", "budget.eval_steps=1"]


def run(name, changes):
    return [*RUN, f"run_folder=runs/{name}", *changes]


def checkpoint(name, step=3):
    return f"runs/{name}/checkpoints/step_{step:07d}"


@pytest.fixture(scope="module")
def trained(train_runs, token_folder):
    """Every run of this file, trained."""
    bf16 = [*ONE_RANK, "precision.compute=bf16"]
    train_runs(1, [
        run("one", ONE_RANK),
        ["copy", checkpoint("one"), checkpoint("one_again")],
        run("one_again", ONE_RANK),
        run("bf16", bf16),
        ["copy", checkpoint("bf16"), checkpoint("bf16_again")],
        run("bf16_again", bf16),
    ])
    for name in LAYOUTS:
        shutil.copytree(token_folder / checkpoint("one"), token_folder / checkpoint(name))
    train_runs(2, [
        *(run(name, changes) for name, changes in LAYOUTS.items()),
        run("from_ep2", ["parallel.ep=2"]),
        run("overlap", OVERLAP),
        ["copy", checkpoint("overlap"), checkpoint("overlap_again")],
        run("overlap_again", OVERLAP),
    ])
    shutil.copytree(token_folder / checkpoint("from_ep2"), token_folder / checkpoint("tp2_pp2"))
    train_runs(4, [run("tp2_pp2", [*LAYOUTS["tp2"], "parallel.pp=2"])])


def numbers(records, *names):
    return [[records[step][name] for name in names] for step in STEPS]


@pytest.mark.parametrize("first", ["one", "bf16", "overlap"])
def test_resume_equals_uninterrupted_to_the_bit(trained, step_records, first):
    exact = ("loss", "aux_loss", "grad_norm", "lr", "expert_load", "loss_by_source")
    resumed, whole = step_records(f"{first}_again"), step_records(first)
    assert set(resumed) == set(STEPS)
    assert numbers(resumed, *exact) == numbers(whole, *exact)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_resumes_the_same_run(trained, step_records, layout):
    """Weights and moments of one rank's checkpoint, continued at another layout: losses and gradient norms agree."""
    ours, reference = step_records(layout), step_records("one")
    assert set(ours) == set(STEPS), "it must have resumed at step 3, not begun anew"
    for step in STEPS:
        assert ours[step]["loss"] == pytest.approx(reference[step]["loss"], rel=1e-6)
        assert ours[step]["aux_loss"] == pytest.approx(reference[step]["aux_loss"], rel=1e-5)
        assert ours[step]["grad_norm"] == pytest.approx(reference[step]["grad_norm"], rel=1e-4)


def test_trained_at_ep2_resumes_at_tp2_pp2_with_its_moments(trained, step_records):
    ours, reference = step_records("tp2_pp2"), step_records("from_ep2")
    assert set(ours) == set(STEPS)
    for step in STEPS:
        assert ours[step]["loss"] == pytest.approx(reference[step]["loss"], rel=1e-6)
        assert ours[step]["grad_norm"] == pytest.approx(reference[step]["grad_norm"], rel=1e-4)


def test_expert_load_counts_every_token_once_at_every_layout(trained, step_records):
    for layout in ("one", *LAYOUTS):
        for layer in step_records(layout)[6]["expert_load"]:
            assert sum(layer) == pytest.approx(1.0)
    for layout in LAYOUTS:
        flat = [share for layer in step_records(layout)[4]["expert_load"] for share in layer]
        assert flat == pytest.approx([share for layer in step_records("one")[4]["expert_load"] for share in layer], abs=2e-3)


@pytest.mark.parametrize(("name", "step"), [("one", 6), ("overlap", 3), ("ep2_overlap", 6), ("tp2_pp2", 6), ("bf16", 6)])
def test_saved_weights_are_the_masters_of_the_same_step(trained, token_folder, name, step):
    """A rank that had not yet gathered the others' new weights would save old ones, which only an export would show."""
    reader = CheckpointReader(token_folder / checkpoint(name, step))
    for key in sorted(reader.weight_keys()):
        weight, master = reader.read(key), reader.read(f"optimizer.state.param.{key}")
        assert torch.equal(weight, master.to(weight.dtype)), key
