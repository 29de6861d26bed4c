"""One checkpoint, every layout: the same losses within fp32 rounding; and resuming equals never having stopped.

All runs train 6 steps and save after 3. Three groups of processes (1, 2 and 4 ranks) do everything, because each start
of Megatron costs seconds.
"""

import json
import shutil

import pytest
import torch

from megatron_jmed.convert.names import rows
from megatron_jmed.convert.torch_dist import CheckpointReader
from megatron_jmed.run_folder import load_state

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
    "cp2": ["parallel.ep=1", "parallel.cp=2", "budget.eval_every_tokens=2048"],
    "cp2_ep2_recompute": ["parallel.ep=2", "parallel.cp=2", "budget.recompute=selective"],
    "pp2_vpp2": ["parallel.ep=1", "parallel.pp=2", "parallel.vpp=2", "budget.eval_every_tokens=2048"],
}
FOUR_RANKS_LAYOUTS = {
    "cp4_ep2": ["parallel.ep=2", "parallel.cp=4", "budget.recompute=full"],
    "cp2_tp2": [*LAYOUTS["tp2"], "parallel.cp=2"],
    "cp2_pp2_vpp2": ["parallel.ep=1", "parallel.cp=2", "parallel.pp=2", "parallel.vpp=2"],
    "cp2_dp2": ["parallel.ep=2", "parallel.cp=2", "parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"],
}
DENSE = ["model.num_experts=0", "model.router_topk=0", "parallel.ep=1"]
TIED = ["model.tied_embeddings=true"]
WITHIN = ["data.attention=document"]
KINDS = {"dense": DENSE, "tied": [*ONE_RANK, *TIED], "dense_tied": [*DENSE, *TIED], "within": [*ONE_RANK, *WITHIN]}
# a run of a kind above, resumed at another layout: (kind, changes)
LAYOUTS_OF_KINDS = {
    "dense_tp2": ("dense", ["parallel.tp=2"]),
    "dense_tp2_sequence": ("dense", ["parallel.tp=2", "parallel.sequence_parallel=true"]),
    "dense_pp2": ("dense", ["parallel.pp=2"]),
    "tied_ep2": ("tied", ["parallel.ep=2"]),
    "tied_pp2": ("tied", ["parallel.pp=2"]),
    "tied_pp2_vpp2": ("tied", ["parallel.pp=2", "parallel.vpp=2"]),
    "dense_tied_tp2": ("dense_tied", ["parallel.tp=2"]),
    "within_tp2": ("within", [*LAYOUTS["tp2"], "budget.recompute=selective"]),
    "within_pp2_vpp2_recompute": ("within", [*LAYOUTS["pp2_vpp2"], "budget.recompute=full"]),
    "within_cp2": ("within", ["parallel.cp=2"]),
}
FOUR_RANKS_OF_KINDS = {
    "dense_pp2_vpp2_dp2_overlap": ("dense", ["parallel.pp=2", "parallel.vpp=2", "parallel.overlap_grad_reduce=true",
                                             "parallel.overlap_param_gather=true", "budget.recompute=full"]),
    "tied_pp2_dp2": ("tied", ["parallel.pp=2"]),
    "dense_cp2_tp2_sequence": ("dense", ["parallel.cp=2", "parallel.tp=2", "parallel.sequence_parallel=true"]),
    "within_cp4_recompute": ("within", FOUR_RANKS_LAYOUTS["cp4_ep2"]),
    "dense_tied_tp2_pp2": ("dense_tied", ["parallel.tp=2", "parallel.pp=2"]),
}
# vocabularies of 2000 and, at tp2, 2080 rows
PADDED = ["parallel.ep=1", "model.vocab_divisor=80"]
# checkpoints written at one layout and loaded and saved again at another: name: (from, changes)
RESAVED = {
    "one_at_ep2": ("one", LAYOUTS["ep2"]),
    "one_at_tp2": ("one", LAYOUTS["tp2"]),
    "one_at_tp2_ep2": ("one", LAYOUTS["tp2_ep2"]),
    "one_at_pp2": ("one", LAYOUTS["pp2"]),
    "one_at_pp2_vpp2": ("one", LAYOUTS["pp2_vpp2"]),
    "one_at_pp2_vpp2_at_pp1": ("one_at_pp2_vpp2", ONE_RANK),
    "one_at_cp2": ("one", LAYOUTS["cp2"]),
    "one_at_dp2": ("one", ONE_RANK),
    "bf16_at_ep2": ("bf16", ["parallel.ep=2", "precision.compute=bf16"]),
    "from_ep2_at_ep1": ("from_ep2", ONE_RANK),
    "one_at_tp2_at_tp1": ("one_at_tp2", ONE_RANK),
    "one_at_pp2_at_pp1": ("one_at_pp2", ONE_RANK),
    "dense_at_tp2": ("dense", [*DENSE, "parallel.tp=2"]),
    "tied_at_pp2": ("tied", [*ONE_RANK, *TIED, "parallel.pp=2"]),
    "tied_at_pp2_at_pp1": ("tied_at_pp2", [*ONE_RANK, *TIED]),
    "padded_at_tp2": ("padded", [*LAYOUTS["tp2"], *PADDED]),
    "padded_at_tp2_at_tp1": ("padded_at_tp2", PADDED),
}
FOUR_RANKS_RESAVED = {
    "one_at_tp2_pp2": ("one", [*LAYOUTS["tp2"], "parallel.pp=2"]),
    "from_ep2_at_dp4": ("from_ep2", ONE_RANK),
    "from_ep2_at_ep4": ("from_ep2", ["parallel.ep=4"]),
    "one_at_tp2_pp2_at_ep2_etp2": ("one_at_tp2_pp2", ["parallel.ep=2", "parallel.tp=2", "parallel.etp=2",
                                                     "parallel.sequence_parallel=true"]),
}
# layouts at which one step is done on batches of which unequal parts count in the loss
PROBES = {1: {"one": ONE_RANK}, 2: {"cp2": LAYOUTS["cp2"], "cp2_ep2": LAYOUTS["cp2_ep2_recompute"], "dp2": ONE_RANK},
          4: {"cp4": FOUR_RANKS_LAYOUTS["cp4_ep2"], "cp2_pp2_vpp2": FOUR_RANKS_LAYOUTS["cp2_pp2_vpp2"]}}
# two data-parallel ranks that hold each other's weights, with a validation between the steps
OVERLAP = ["parallel.ep=1", "parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true",
           "budget.eval_every_tokens=8192", "budget.eval_steps=1"]


STATE_PREFIXES = ("", "optimizer.state.param.", "optimizer.state.exp_avg.", "optimizer.state.exp_avg_sq.")


def run(name, changes):
    return [*RUN, f"run_folder=runs/{name}", *changes]


def runs_of_kinds(layouts):
    return [run(name, [*KINDS[kind], *changes]) for name, (kind, changes) in layouts.items()]


def resaves(resaved):
    return [["resave", checkpoint(source), checkpoint(name), *run(name, changes)] for name, (source, changes) in resaved.items()]


def probes(num_ranks):
    return [["probe", checkpoint("one"), f"runs/probe_{name}.json", *run("probe", changes)]
            for name, changes in PROBES[num_ranks].items()]


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
        *(run(kind, changes) for kind, changes in KINDS.items()),
        ["copy", checkpoint("dense"), checkpoint("dense_again")],
        run("dense_again", DENSE),
        run("padded", PADDED),
        *probes(1),
    ])
    for name in [*LAYOUTS, *FOUR_RANKS_LAYOUTS]:
        shutil.copytree(token_folder / checkpoint("one"), token_folder / checkpoint(name))
    for name, (kind, _) in {**LAYOUTS_OF_KINDS, **FOUR_RANKS_OF_KINDS}.items():
        shutil.copytree(token_folder / checkpoint(kind), token_folder / checkpoint(name))
    train_runs(2, [
        *(run(name, changes) for name, changes in LAYOUTS.items()),
        run("from_ep2", ["parallel.ep=2"]),
        run("overlap", OVERLAP),
        ["copy", checkpoint("overlap"), checkpoint("overlap_again")],
        run("overlap_again", OVERLAP),
        *runs_of_kinds(LAYOUTS_OF_KINDS),
        *resaves(RESAVED),
        *probes(2),
    ])
    shutil.copytree(token_folder / checkpoint("from_ep2"), token_folder / checkpoint("tp2_pp2"))
    train_runs(4, [
        run("tp2_pp2", [*LAYOUTS["tp2"], "parallel.pp=2"]),
        *(run(name, changes) for name, changes in FOUR_RANKS_LAYOUTS.items()),
        *runs_of_kinds(FOUR_RANKS_OF_KINDS),
        *resaves(FOUR_RANKS_RESAVED),
        *probes(4),
    ])


def numbers(records, *names):
    return [[records[step][name] for name in names] for step in STEPS]


@pytest.mark.parametrize("first", ["one", "bf16", "overlap", "dense"])
def test_resume_equals_uninterrupted_to_the_bit(trained, step_records, first):
    exact = ("loss", "aux_loss", "grad_norm", "lr", "expert_load", "loss_by_source")
    resumed, whole = step_records(f"{first}_again"), step_records(first)
    assert set(resumed) == set(STEPS)
    assert numbers(resumed, *exact) == numbers(whole, *exact)


@pytest.mark.parametrize("layout", [*LAYOUTS, *FOUR_RANKS_LAYOUTS])
def test_every_layout_resumes_the_same_run(trained, step_records, layout):
    """Weights and moments of one rank's checkpoint, continued at another layout: losses and gradient norms agree."""
    ours, reference = step_records(layout), step_records("one")
    assert set(ours) == set(STEPS), "it must have resumed at step 3, not begun anew"
    for step in STEPS:
        assert ours[step]["loss"] == pytest.approx(reference[step]["loss"], rel=1e-6)
        assert ours[step]["aux_loss"] == pytest.approx(reference[step]["aux_loss"], rel=1e-5)
        assert ours[step]["grad_norm"] == pytest.approx(reference[step]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("layout", ["ep2", "tp2", "pp2_vpp2", *(name for name in [*LAYOUTS, *FOUR_RANKS_LAYOUTS] if "cp" in name)])
def test_every_layout_learns_the_same_weights(trained, token_folder, layout):
    """What three steps moved agrees; Adam divides by small numbers, so that roundings grow."""
    ours, reference, begun = (CheckpointReader(token_folder / checkpoint(name, step))
                              for name, step in ((layout, 6), ("one", 6), ("one", 3)))
    for key in reference.weight_keys():
        moved = reference.read(key) - begun.read(key)
        assert (ours.read(key) - reference.read(key)).norm() < 1e-4 * moved.norm(), key


@pytest.mark.parametrize("layout", [*PROBES[2], *PROBES[4]])
def test_loss_of_unequal_parts_is_the_mean_over_the_tokens_that_count(trained, token_folder, layout):
    ours, reference = (json.loads((token_folder / f"runs/probe_{name}.json").read_text()) for name in (layout, "one"))
    assert ours["loss"] == pytest.approx(reference["loss"], rel=1e-6)
    assert ours["loss_by_source"] == pytest.approx(reference["loss_by_source"], rel=1e-6)
    assert ours["aux_loss"] == pytest.approx(reference["aux_loss"], rel=1e-5)
    assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-4)


def test_trained_at_ep2_resumes_at_tp2_pp2_with_its_moments(trained, step_records):
    ours, reference = step_records("tp2_pp2"), step_records("from_ep2")
    assert set(ours) == set(STEPS)
    for step in STEPS:
        assert ours[step]["loss"] == pytest.approx(reference[step]["loss"], rel=1e-6)
        assert ours[step]["grad_norm"] == pytest.approx(reference[step]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(("name", "kind"), [
    (name, kind) for name, (kind, _) in {**LAYOUTS_OF_KINDS, **FOUR_RANKS_OF_KINDS}.items()])
def test_every_kind_resumes_at_every_layout(trained, step_records, name, kind):
    ours, reference = step_records(name), step_records(kind)
    assert set(ours) == set(STEPS)
    for step in STEPS:
        assert ours[step]["loss"] == pytest.approx(reference[step]["loss"], rel=1e-6)
        assert ours[step]["grad_norm"] == pytest.approx(reference[step]["grad_norm"], rel=1e-4)


def test_attention_within_documents_is_another_run(trained, step_records):
    """So that the layouts of "within" are compared with it to more than they could agree by ignoring the documents."""
    within, across = step_records("within"), step_records("one")
    assert all(within[step]["loss"] != pytest.approx(across[step]["loss"], rel=1e-5) for step in (1, *STEPS))


@pytest.mark.parametrize("name", ["one", "tp2_pp2", *KINDS, *LAYOUTS_OF_KINDS, *FOUR_RANKS_OF_KINDS])
def test_saved_keys_are_those_of_the_table(trained, token_folder, name):
    folder = token_folder / checkpoint(name, 6)
    assert CheckpointReader(folder).weight_keys() == {row.key for row in rows(load_state(folder).model)}


@pytest.mark.parametrize(("name", "source"), [
    (name, source) for name, (source, _) in {**RESAVED, **FOUR_RANKS_RESAVED}.items()])
def test_weights_masters_and_moments_are_the_same_bits_at_another_layout(trained, token_folder, name, source):
    ours, theirs = (CheckpointReader(token_folder / checkpoint(which)) for which in (name, source))
    assert ours.weight_keys() == theirs.weight_keys() != set()
    for key in (f"{prefix}{key}" for key in sorted(theirs.weight_keys()) for prefix in STATE_PREFIXES):
        our, their = ours.read(key), theirs.read(key)
        pieces = 2000 if key.endswith(("word_embeddings.weight", "output_layer.weight")) else their.size(0)
        assert our.dtype == their.dtype and torch.equal(our[:pieces], their[:pieces]), key
        assert their[:pieces].any(), f"{key} is all zeros: nothing is compared"
        both = min(our.size(0), their.size(0))
        assert torch.equal(our[:both], their[:both]) and not our[both:].any(), f"{key}: padding"


def test_padding_of_the_vocabulary_follows_the_layout(trained, token_folder):
    sizes = [CheckpointReader(token_folder / checkpoint(name)).shape("output_layer.weight")[0]
             for name in ("padded", "padded_at_tp2", "padded_at_tp2_at_tp1")]
    assert sizes == [2000, 2080, 2000]


def test_expert_load_counts_every_token_once_at_every_layout(trained, step_records):
    for layout in ("one", *LAYOUTS, *FOUR_RANKS_LAYOUTS):
        for layer in step_records(layout)[6]["expert_load"]:
            assert sum(layer) == pytest.approx(1.0)
    for layout in [*LAYOUTS, *FOUR_RANKS_LAYOUTS]:
        flat = [share for layer in step_records(layout)[4]["expert_load"] for share in layer]
        assert flat == pytest.approx([share for layer in step_records("one")[4]["expert_load"] for share in layer], abs=2e-3)
        assert step_records(layout)[4]["router_z"] == pytest.approx(step_records("one")[4]["router_z"], rel=1e-5)


@pytest.mark.parametrize(("name", "step"), [("one", 6), ("overlap", 3), ("ep2_overlap", 6), ("tp2_pp2", 6), ("bf16", 6)])
def test_saved_weights_are_the_masters_of_the_same_step(trained, token_folder, name, step):
    """A rank that had not yet gathered the others' new weights would save old ones, which only an export would show."""
    reader = CheckpointReader(token_folder / checkpoint(name, step))
    for key in sorted(reader.weight_keys()):
        weight, master = reader.read(key), reader.read(f"optimizer.state.param.{key}")
        assert torch.equal(weight, master.to(weight.dtype)), key
