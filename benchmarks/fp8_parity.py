"""Does fp8 train like bf16? `python benchmarks/fp8_parity.py [STEPS] [--wide]` on one rank; prints the tables of fp8_parity.md.

The tiny MoE with all layers in fp8 reads the bytes of examples/data. Every recipe starts from the same weights and reads the
same bytes as bf16. Measured: the difference of the loss to bf16 in the second quarter of the steps (mean), in the last fifth (mean;
bound 1 %), and the largest of one step after the first tenth (bound 3 %), all as shares of bf16's loss. "disturbed" is bf16 whose
weights begin about 1 in 256 away, up or down at random: what two runs that are equally right may differ by. The controls are fp8
that is wrong on purpose; bounds that they pass would say nothing. With --wide (for a Hopper GPU, whose own fp8 products are then
used; 500 steps if not said) a model of hidden 1024 and experts of 2816, without the controls; the bound of the mean is then a third
of what the two seeds' bf16 runs differ by.
"""

import argparse
import dataclasses
import gzip
import json
import statistics
import sys
from pathlib import Path

import torch

from megatron_jmed.config import load_config
from megatron_jmed.parallel import World, start_groups, stop_groups  # before Megatron-Core

from megatron_jmed.model.linear import Products, forget_fp8_weights  # isort: skip

MEAN_BOUND, STEP_BOUND = 0.01, 0.03
SEEDS = (1, 2)
ALL_FP8 = ("precision.compute=fp8", "precision.bf16_first_layers=0", "precision.bf16_last_layers=0")
RUNS = {
    "bf16": ("precision.compute=bf16",),
    **{f"bf16, disturbed {number}": ("precision.compute=bf16",) for number in (1, 2, 3)},
    "blockwise": ALL_FP8,
    "blockwise, fp8 wgrad": (*ALL_FP8, "precision.fp8_wgrad=true"),
    "tensorwise": (*ALL_FP8, "precision.fp8_recipe=tensorwise"),
    "tensorwise, fp8 wgrad": (*ALL_FP8, "precision.fp8_recipe=tensorwise", "precision.fp8_wgrad=true"),
    "control: E4M3 without scales": ALL_FP8,
    "control: from half-way on, one layer's weight scales are doubled": ALL_FP8,
}
PEAK_LR = 1e-3


@dataclasses.dataclass(frozen=True)
class Size:
    sequences: int = 8
    length: int = 128
    model: tuple[str, ...] = ()


WIDE = Size(32, 512, ("model.hidden_size=1024", "model.num_attention_heads=8", "model.num_query_groups=8", "model.kv_channels=128",
                      "model.ffn_hidden_size=2816"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=int, nargs="?")
    parser.add_argument("--wide", action="store_true")
    words = parser.parse_args()
    size, steps = WIDE if words.wide else Size(), words.steps or (500 if words.wide else 150)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, fp8 emulated"
    print(f"{steps} steps of {size.sequences * size.length} bytes, torch {torch.__version__}, {where}\n\n{HEAD}")
    runs = {name: changes for name, changes in RUNS.items() if not (words.wide and name.startswith("control"))}
    references = {seed: train("bf16", runs["bf16"], seed, steps, size) for seed in SEEDS}
    fifth = -max(1, steps // 5)
    ends = [statistics.fmean(losses[fifth:]) for losses in references.values()]
    mean_bound = abs(ends[0] / ends[1] - 1) / 3 if words.wide else MEAN_BOUND
    wrong = []
    for seed in SEEDS:
        for name, changes in runs.items():
            losses = references[seed] if name == "bf16" else train(name, changes, seed, steps, size)
            line, is_within = row(name, seed, losses, references[seed], mean_bound)
            print(line, flush=True)
            if is_within == name.startswith("control"):
                wrong.append(f"{name}, seed {seed}")
    print(f"\nBound of the mean: {mean_bound:.2%}.", end="")
    print("\nEvery recipe is within the bounds and every control is not." if not wrong else f"\nNOT AS STATED: {wrong}")
    sys.exit(bool(wrong))


HEAD = ("| run | seed | last loss | second quarter | last fifth | largest of a step | within bounds |\n"
        "|---|--:|--:|--:|--:|--:|---|")


def row(name: str, seed: int, losses: list[float], reference: list[float], mean_bound: float) -> tuple[str, bool]:
    """(a line of the table, whether the run is within the bounds)."""
    steps = len(losses)
    fifth, difference = max(1, steps // 5), [(mine - theirs) / theirs for mine, theirs in zip(losses, reference, strict=True)]
    early, late = statistics.fmean(difference[steps // 4:max(1, steps // 2)]), statistics.fmean(difference[-fifth:])
    largest = max(map(abs, difference[steps // 10:]))
    is_within = abs(late) <= mean_bound and largest <= STEP_BOUND
    return (f"| {name} | {seed} | {statistics.fmean(losses[-fifth:]):.4f} | {early:+.2%} | {late:+.2%} | {largest:.2%} | "
            f"{'yes' if is_within else 'no'} |"), is_within


def train(name: str, changes: tuple[str, ...], seed: int, steps: int, size: Size) -> list[float]:
    from megatron_jmed.model.build import build_data_parallel_model
    from megatron_jmed.train.optimizer import build_optimizer
    from megatron_jmed.train.step import Stepper

    config = load_config("tiny", [
        "parallel.ep=1", "data.blend=[]", "model.vocab_size=256", "precision.backend=jmed", f"budget.seq_length={size.length}",
        f"budget.global_batch_size={size.sequences}", "budget.micro_batch_size=8", "optim.warmup_tokens=0",
        f"budget.total_tokens={steps * size.sequences * size.length}", f"optim.peak_lr={PEAK_LR}", *size.model, *changes])
    groups = start_groups(config.parallel, World(0, 1, 0), seed)
    model = build_data_parallel_model(config, groups)
    optimizer = build_optimizer(config, model, groups)
    stepper = Stepper(config, groups, model, optimizer, ("bytes",))
    batches = micro_batches(seed, config.budget.micro_batch_size, size.length)
    if "disturbed" in name:
        disturb(model[0], int(name.split()[-1]))
        optimizer.reload_model_params()
    fp8_layers = {name: module for name, module in model[0].named_modules() if getattr(module, "how", Products()).fp8}
    losses = []
    for step in range(steps):
        if "without scales" in name and step == 0:
            for layer in fp8_layers.values():
                layer.how = Unscaled(**dataclasses.asdict(layer.how))
        if "doubled" in name and step == steps // 2:
            for layer in (layer for where, layer in fp8_layers.items() if "layers.1." in where):
                forget_fp8_weights([layer.weight])
                layer.how = Doubled(**dataclasses.asdict(layer.how))
        lr = PEAK_LR * min(1.0, (step + 1) / 20)
        losses.append(stepper.train(batches, lr, wants_stop=False).loss)
    stop_groups()
    return losses


def micro_batches(seed: int, size: int, length: int):
    from megatron_jmed.data.batch import batch_from_sample
    from megatron_jmed.parallel import device

    content = text_bytes()
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(content) - length, (size, 1), generator=generator)
        ids = content[starts + torch.arange(length + 1)]
        yield batch_from_sample({
            "tokens": ids[:, :-1], "labels": ids[:, 1:], "loss_mask": torch.ones(size, length),
            "dataset_id": torch.zeros(size, dtype=torch.int64), "position_ids": torch.arange(length).expand(size, length),
        }, device(), 0, 1)


def text_bytes() -> torch.Tensor:
    data = Path(__file__).parents[1] / "examples" / "data"
    lines = (data / "texts_ja.jsonl").read_bytes().splitlines() + gzip.decompress(
        (data / "texts_en.jsonl.gz").read_bytes()).splitlines()
    return torch.tensor(list("\n".join(json.loads(line)["text"] for line in lines).encode()), dtype=torch.int64)


def disturb(model: torch.nn.Module, seed: int) -> None:
    """Every bf16 weight up or down by 1 in 256."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            up = torch.randint(2, weight.shape, generator=generator) * 2 - 1
            weight.copy_(weight.float() * (1 + up * 2.0**-8))


class Unscaled(Products):
    """E4M3 as it is: what is below 2**-10 is lost."""

    def tokens(self, x: torch.Tensor):
        return x.float().clamp(-448, 448).to(torch.float8_e4m3fn), torch.ones(())

    def weight(self, weight: torch.Tensor):
        values, scale = self.tokens(weight)
        return (values, scale), (values.t(), scale)


class Doubled(Products):
    """The right numbers with scales that are twice too large for the weight."""

    def weight(self, weight: torch.Tensor):
        return tuple((values, 2 * scales) for values, scales in super().weight(weight))


if __name__ == "__main__":
    main()
