"""Does the memory plan say what a rank really holds? Real tiny runs on CPU ranks against train/estimate.py.

`python benchmarks/plan_memory.py` runs every case of CASES with torchrun and prints a table for benchmarks/plan.md. Counted
from live objects: weights, gradient buffers and optimizer state by storage; activations as the storages that autograd
keeps after one forward pass of build_forward_model; the peak as the most bytes alive in one whole training step, beyond
the first three. Means over the ranks of a stage, so that unequal routing cancels; the busiest rank's excess is shown apart.
"""

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

SIZES = ("parallel.ep=1", "model.num_layers=4", "model.hidden_size=128", "model.num_attention_heads=8", "model.num_query_groups=4",
         "model.ffn_hidden_size=320", "model.vocab_size=1024", "budget.seq_length=256", "budget.micro_batch_size=2",
         "budget.global_batch_size=16", "data.blend=[]")
BF16 = ("precision.compute=bf16",)
DENSE = ("model.num_experts=0", "model.router_topk=0")
SPLIT = ("parallel.tp=2", "parallel.etp=2", "parallel.sequence_parallel=true")
STATE = ("weights", "gradients", "optimizer")
WIDE = ("model.num_layers=1", "model.hidden_size=2048", "model.num_attention_heads=16", "model.num_query_groups=16",
        "model.kv_channels=128", "model.ffn_hidden_size=7168", "model.num_experts=2", "model.vocab_size=4096",
        "budget.seq_length=512", "budget.micro_batch_size=1", "budget.global_batch_size=1")
FOLDED = ("parallel.tp=2", "parallel.ep=2", "parallel.sequence_parallel=true")
KERNELS = ("precision.backend=jmed", *(f"kernels.{name}=true" for name in
                                       ("rmsnorm", "swiglu", "permute", "cross_entropy", "wgrad_accumulation")))
HEAD = ("model.num_layers=1", "model.vocab_size=99574", "budget.seq_length=2048", "budget.micro_batch_size=1",
        "budget.global_batch_size=1", "model.max_position_embeddings=2048")
OTHER = ("parallel.ep=2", "model.num_layers=6", "model.hidden_size=192", "model.num_query_groups=8", "model.ffn_hidden_size=256",
         "model.num_experts=4", "model.router_topk=3", "budget.seq_length=128", "budget.micro_batch_size=4",
         "budget.recompute=full")
CASES: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    *((f"MoE fp32 {r}", 1, (f"budget.recompute={r}",)) for r in ("none", "selective", "full")),
    *((f"MoE bf16 {r}", 1, (*BF16, f"budget.recompute={r}")) for r in ("none", "selective", "full")),
    *((f"dense bf16 {r}", 1, (*BF16, *DENSE, f"budget.recompute={r}")) for r in ("none", "selective", "full")),
    ("dense bf16 tied none", 1, (*BF16, *DENSE, "model.tied_embeddings=true")),
    *((f"MoE bf16 EP2 {r}", 2, (*BF16, "parallel.ep=2", f"budget.recompute={r}")) for r in ("none", "full")),
    ("MoE bf16 EP2 allgather none", 2, (*BF16, "parallel.ep=2", "parallel.dispatcher=allgather")),
    ("MoE fp32 EP2 none", 2, ("parallel.ep=2",)),
    *((f"MoE bf16 TP2 ETP2 {r}", 2, (*BF16, *SPLIT, f"budget.recompute={r}")) for r in ("none", "full")),
    ("dense bf16 TP2 none", 2, (*BF16, *DENSE, "parallel.tp=2")),
    *((f"MoE bf16 PP2 {r}", 2, (*BF16, "parallel.pp=2", f"budget.recompute={r}")) for r in ("none", "full")),
    ("MoE bf16 DP2 none", 2, BF16),
    *((f"MoE bf16 CP2 {r}", 2, (*BF16, "parallel.cp=2", f"budget.recompute={r}")) for r in ("none", "full")),
    ("MoE bf16 PP2 VPP2 none", 2, (*BF16, "parallel.pp=2", "parallel.vpp=2")),
    *((f"kernels: MoE bf16 {r}", 1, (*BF16, *KERNELS, f"budget.recompute={r}")) for r in ("none", "full")),
    ("kernels: MoE bf16 EP2 none", 2, (*BF16, *KERNELS, "parallel.ep=2")),
    # not looked at while the formulas were written
    ("held out: MoE bf16 TP2 EP2 ETP1 none", 2, (*BF16, *FOLDED)),
    ("held out: MoE bf16 TP2 EP2 ETP1 full", 2, (*BF16, *FOLDED, "budget.recompute=full")),
    ("held out: MoE fp32 EP2, 6 layers, top-3 of 4, other widths, full", 2, OTHER),
    *((f"widths of 8x1.8B, 1 layer, 2 experts, bf16 {r}", 1, (*BF16, *WIDE, f"budget.recompute={r}")) for r in ("none", "full")),
    ("kernels: widths of 8x1.8B, 1 layer, 2 experts, bf16 none", 1, (*BF16, *WIDE, *KERNELS)),
    *((f"kernels: wide vocabulary, {name}", 1, (*BF16, *HEAD, *changes)) for name, changes in (
        ("Megatron-Core's loss", ()), ("ours", KERNELS), ("ours in chunks", (*KERNELS, "kernels.head_chunk_tokens=256")))),
)


def main() -> None:
    if os.environ.get("RANK"):
        os.write(1, (json.dumps(measured(sys.argv[1:])) + "\n").encode())  # at once: ranks share the pipe
        return
    wanted = sys.argv[1:]
    print("| case | stage | weights | gradients | optimizer | kept activations | predicted | error | peak beside state | predicted "
          "| error | largest load |\n|---|---|---|---|---|---|---|---|---|---|---|---|")
    for name, num_ranks, changes in CASES:
        if all(word in name for word in wanted):
            for line in table_lines(name, num_ranks, changes, run_ranks(num_ranks, changes)):
                print(line, flush=True)


def run_ranks(num_ranks: int, changes: tuple[str, ...]) -> list[dict]:
    """What every rank of a torchrun of this file measured."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks),
               str(Path(__file__)), *changes]
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600)
    if answer.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{answer.stderr}")
    return [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("{")]


def table_lines(name: str, num_ranks: int, changes: tuple[str, ...], ranks: list[dict]) -> Iterator[str]:
    from megatron_jmed.config import load_config
    from megatron_jmed.train.activations import kept_head_bytes
    from megatron_jmed.train.estimate import stage_memory
    from megatron_jmed.train.machine import BALANCED

    config = load_config("tiny", [*SIZES, *changes])
    for stage in range(config.parallel.pp):
        held = [rank for rank in ranks if rank["stage"] == stage]
        balanced = stage_memory(config, num_ranks, stage, BALANCED)
        exact = "".join(f" {_difference(_mean(held, part), getattr(balanced, part))} |" for part in STATE)
        saved = " | | |"
        if config.parallel.pp == 1:
            saved = _comparison(_mean(held, "saved"), balanced.activations + kept_head_bytes(config))
        # one layer is rebuilt at a time: the busiest counts; else all layers' activations are there, and their mean counts
        load = "busiest_layer_load" if config.budget.recompute == "full" else "load"
        plans = [stage_memory(config, num_ranks, stage, replace(BALANCED, imbalance=rank[load])) for rank in held]
        peak = _comparison(_mean(held, "peak"), sum(plan.peak for plan in plans) / len(plans))
        loads = max(rank[load] for rank in held)
        yield f"| {name} | {stage} |{exact}{saved}{peak} {loads:.2f} |"


def _mean(held: list[dict], part: str) -> float:
    return sum(rank[part] for rank in held) / len(held)


def _comparison(measured_bytes: float, predicted_bytes: float) -> str:
    return f" {measured_bytes:,.0f} | {predicted_bytes:,.0f} | {predicted_bytes / measured_bytes - 1:+.1%} |"


def _difference(measured_bytes: float, predicted_bytes: float) -> str:
    return f"{measured_bytes:,.0f}, {predicted_bytes - measured_bytes:+,.0f}"


# --- on a rank -----------------------------------------------------------------------------------------------------


def measured(changes: list[str]) -> dict:
    """Bytes on this rank, by part."""
    from megatron_jmed.config import load_config
    from megatron_jmed.model.build import build_data_parallel_model, build_forward_model
    from megatron_jmed.parallel import read_world, start_groups, stop_groups
    from megatron_jmed.train.optimizer import build_optimizer
    from megatron_jmed.train.step import Stepper

    config = load_config("tiny", [*SIZES, *changes])
    groups = start_groups(config.parallel, read_world(), seed=1)
    # a stage of a pipeline cannot run forward alone
    saved = saved_bytes(build_forward_model(config, groups), next(fake_batches(config))) if config.parallel.pp == 1 else None
    model = build_data_parallel_model(config, groups)
    optimizer = build_optimizer(config, model, groups)
    stepper = Stepper(config, groups, model, optimizer, ("a",))
    stepper.train(fake_batches(config), lr=1e-4, wants_stop=False)  # the first step makes the moments
    loads = expert_loads(model, config)
    with PeakBytes() as alive:
        for chunk in model:
            chunk.zero_grad_buffer()
        stepper._forward_backward(data_iterator=stepper._for_each_chunk(fake_batches(config)), forward_only=False)
    weights = storages(parameter for chunk in model for parameter in chunk.parameters())
    gradients = storages(buffer.grad_data for chunk in model for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers))
    state = storages(value for part in optimizer.chained_optimizers for tensors in part.optimizer.state.values()
                     for value in tensors.values() if hasattr(value, "dim") and value.dim())
    masters = storages(master for part in optimizer.chained_optimizers for group in part.shard_fp32_from_float16_groups
                       for master in group)
    # no recompute: one entry a layer; the micro-batch that brings this rank the most tokens makes the peak
    layers = config.model.num_layers // config.parallel.pp
    mean_load = max((sum(loads[i:i + layers]) / layers for i in range(0, len(loads), layers)), default=1.0)
    answer = {"stage": groups.pp.rank(), "weights": total(weights), "gradients": total(gradients),
              "optimizer": total(state) + total({key: s for key, s in masters.items() if key not in weights}), "saved": saved,
              "peak": alive.most, "load": mean_load, "busiest_layer_load": max(loads, default=1.0)}
    stop_groups()
    return answer


def expert_loads(model, config) -> list[float]:
    """A list that gets, at each forward pass of each layer, the tokens of this rank's experts over the balanced number."""
    from megatron.core.transformer.moe.experts import SequentialMLP

    loads, parallel = [], config.parallel
    tokens = config.budget.micro_batch_size * config.budget.seq_length / parallel.cp / parallel.tp
    balanced = tokens * config.model.router_topk * parallel.etp
    for module in (module for chunk in model for module in chunk.modules()):
        if isinstance(module, SequentialMLP):
            module.register_forward_pre_hook(lambda _, inputs: loads.append(inputs[0].shape[0] / balanced))
    return loads


def storages(tensors: Iterable) -> dict:
    return {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}


def total(found: dict) -> int:
    return sum(storage.nbytes() for storage in found.values())


def saved_bytes(model, batch) -> int:
    """Bytes of the storages that autograd keeps after one forward pass; one that was emptied meanwhile counts nothing."""
    import torch

    weights, kept = storages(model.parameters()), {}

    def keep(tensor):
        if tensor.untyped_storage()._cdata not in weights:
            kept.update(storages([tensor]))
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = model(batch.tokens_BS, batch.position_ids_BS, attention_mask=None, labels=batch.labels_BS)
    answer = total(kept)
    del losses
    return answer


def fake_batches(config):
    import torch

    from megatron_jmed.data.batch import Batch

    shape = (config.budget.micro_batch_size, config.budget.seq_length // config.parallel.cp)
    generator = torch.Generator().manual_seed(1)
    while True:
        tokens = torch.randint(0, config.model.vocab_size, shape, generator=generator)
        positions = torch.arange(shape[1]).expand(shape)
        yield Batch(tokens, tokens, torch.ones(shape), positions, torch.zeros(shape[0], dtype=torch.long))


def PeakBytes():
    """A context whose `most` is the most bytes alive at once in storages that were made inside it."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Mode(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.most, self._seen = 0, {}  # id of a storage -> a weak reference to it, and whether it was made in here

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self._see((args, kwargs), is_new=False)  # seen first as an argument: a weight, a buffer, an input
            answer = function(*args, **(kwargs or {}))
            self._see(answer, is_new=True)
            alive = {key: (ref(), is_new) for key, (ref, is_new) in self._seen.items()}  # other threads free storages meanwhile
            self._seen = {key: self._seen[key] for key, (storage, _) in alive.items() if storage is not None}
            self.most = max(self.most, sum(made.nbytes() for made, is_new in alive.values() if made is not None and is_new))
            return answer

        def _see(self, tree, is_new: bool) -> None:
            for leaf in tree_leaves(tree):
                if isinstance(leaf, torch.Tensor):
                    storage = leaf.untyped_storage()
                    ref, _ = self._seen.get(storage._cdata, (None, None))
                    if ref is None or ref() is None:
                        self._seen[storage._cdata] = (weakref.ref(storage), is_new)

    return Mode()


if __name__ == "__main__":
    main()
