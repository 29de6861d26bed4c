"""Emulated fp8 at every layout: the losses and gradients of one rank, within the rounding of bf16.

With all kernels switched on as without. The matrices are so wide that every layout cuts them in multiples of 128: the scales are
then the same, and what is left is the order in which bf16 sums are rounded. A missing or doubled sum over ranks would change the
gradient norm by far more.
"""

import pytest

RUN = ["tiny", "precision.compute=fp8", "precision.backend=jmed", "budget.total_tokens=1024", "budget.eval_every_tokens=0",
       "optim.warmup_tokens=0", "optim.peak_lr=1e-3", "model.hidden_size=256", "model.ffn_hidden_size=256", "model.kv_channels=64",
       "model.num_query_groups=4", "model.num_experts=4", "budget.global_batch_size=4", "budget.micro_batch_size=2",
       "budget.save_every_tokens=1024"]
DENSE = ["model.num_experts=0", "model.router_topk=0"]
SEQUENCE = ["parallel.tp=2", "parallel.sequence_parallel=true"]
KERNELS = [f"kernels.{name}=true" for name in ("rmsnorm", "swiglu", "permute", "cross_entropy", "wgrad_accumulation")]
# name: (the run of one rank that it must equal, changes)
LAYOUTS = {
    "tp2": ("one", ["parallel.ep=1", "parallel.etp=2", *SEQUENCE]),
    "tp2_ep2": ("one", ["parallel.ep=2", *SEQUENCE]),
    "ep2": ("one", ["parallel.ep=2"]),
    "pp2": ("one", ["parallel.ep=1", "parallel.pp=2"]),
    "wgrad_tp2": ("wgrad", ["parallel.ep=1", "parallel.etp=2", *SEQUENCE]),
    "dense_tp2": ("dense", ["parallel.tp=2"]),
    "dense_tp2_sequence": ("dense", SEQUENCE),
    "kernels_tp2_ep2": ("one", ["parallel.ep=2", *SEQUENCE, *KERNELS]),
    "kernels_ep2_gathered": ("one", ["parallel.ep=2", "parallel.dispatcher=allgather", *KERNELS]),
    "kernels_dense_tp2": ("dense", ["parallel.tp=2", "kernels.rmsnorm=true", "kernels.cross_entropy=true",
                                    "kernels.head_chunk_tokens=50", "kernels.wgrad_accumulation=true"]),
}
KINDS = {"one": [], "wgrad": ["precision.fp8_wgrad=true"], "dense": DENSE}


def run(name, kind, *changes, init="random"):
    return [*RUN, "parallel.ep=1", f"run_folder=runs/fp8_{name}", f"init={init}", *KINDS[kind], *changes]


@pytest.fixture(scope="module")
def trained(train_runs):
    begun = {kind: f"runs/fp8_begin_{kind}/checkpoints/step_0000002" for kind in KINDS}
    train_runs(1, [run(f"begin_{kind}", kind) for kind in KINDS] + [run(kind, kind, init=begun[kind]) for kind in KINDS])
    train_runs(2, [run(name, kind, *changes, init=begun[kind]) for name, (kind, changes) in LAYOUTS.items()])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_computes_what_one_rank_does(trained, step_records, layout):
    ours, reference = step_records(f"fp8_{layout}"), step_records(f"fp8_{LAYOUTS[layout][0]}")
    assert ours.keys() == reference.keys() and len(ours) == 2
    for step in ours:
        assert ours[step]["loss"] == pytest.approx(reference[step]["loss"], rel=2e-4)
        assert ours[step]["grad_norm"] == pytest.approx(reference[step]["grad_norm"], rel=5e-3)
