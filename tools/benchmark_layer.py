"""How fast is one MoE layer of LLM-jp-3 8x13B, and a training step of a slice of it, in each precision and back end on this GPU?

`python tools/benchmark_layer.py [--tokens 4096 8192 16384] [--json FILE]`, after `tools/benchmark_kernels.py`. Forward and
backward passes of (1) one expert with 2 rows a token, what a rank of EP8 computes, (2) the MoE layer with its 8 experts on one GPU,
router and permutation included, and (3) a training step of one layer at full width and vocabulary. bf16 and fp8, Megatron-Core's
modules, our kernels, and Transformer Engine where it can be imported. Weight gradients end in fp32 main_grad in every form. fp8
weights are kept, as over the micro-batches of a step; what quantising them costs once a step has its own column. TFLOP/s count 6
operations a weight and row. Every form's output and gradients are compared with those of Megatron-Core's bf16 modules from the
same weights. Without a GPU it ends with code 2; `--tiny` then checks the numbers at tiny widths, without times.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megatron_jmed.errors import ConfigError, TrainingError, run_tool

KERNELS = tuple(f"kernels.{name}=true" for name in ("rmsnorm", "swiglu", "permute", "cross_entropy", "wgrad_accumulation"))
FP8 = ("precision.compute=fp8", "precision.bf16_first_layers=0", "precision.bf16_last_layers=0")
JMED, TE = ("precision.backend=jmed", *KERNELS), ("precision.backend=te",)
GROUPED = "grouped"  # no word of a config: the experts' products by torch's grouped_mm
FORMS: dict[str, tuple[str, ...]] = {
    "bf16, Megatron-Core's modules": ("precision.compute=bf16", "precision.backend=local"),
    "bf16, our kernels": ("precision.compute=bf16", *JMED),
    "bf16, our kernels, torch grouped_mm": ("precision.compute=bf16", *JMED, GROUPED),
    "fp8 blockwise, bf16 wgrad": (*FP8, *JMED),
    "fp8 blockwise, fp8 wgrad": (*FP8, *JMED, "precision.fp8_wgrad=true"),
    "fp8 tensorwise, bf16 wgrad": (*FP8, *JMED, "precision.fp8_recipe=tensorwise"),
    "fp8 tensorwise, fp8 wgrad": (*FP8, *JMED, "precision.fp8_recipe=tensorwise", "precision.fp8_wgrad=true"),
    "bf16, Transformer Engine": ("precision.compute=bf16", *TE),
    "fp8 blockwise, Transformer Engine": (*FP8, *TE, "precision.fp8_wgrad=true"),
    "fp8 tensorwise, Transformer Engine": (*FP8, *TE, "precision.fp8_recipe=tensorwise", "precision.fp8_wgrad=true"),
}
MOST_ERROR = {"bf16": 0.02, "fp8": 0.12}  # of the norm; three products in a row from fp8 operands


@dataclass(frozen=True)
class Sizes:
    """The widths that are measured."""

    hidden: int = 5120
    heads: int = 40
    ffn: int = 13824
    vocabulary: int = 99574

    def changes(self, tokens: int, num_layers: int) -> list[str]:
        return ["parallel.ep=1", "data.blend=[]", f"model.num_layers={num_layers}", f"model.hidden_size={self.hidden}",
                f"model.num_attention_heads={self.heads}", f"model.num_query_groups={self.heads}",
                f"model.kv_channels={self.hidden // self.heads}", f"model.ffn_hidden_size={self.ffn}",
                f"model.vocab_size={self.vocabulary}", f"model.max_position_embeddings={tokens}", f"budget.seq_length={tokens}",
                "budget.micro_batch_size=1", "budget.global_batch_size=2", f"budget.total_tokens={1000 * tokens}",
                "optim.warmup_tokens=0"]


def main() -> None:
    words = _arguments()
    import torch

    if not words.tiny and not torch.cuda.is_available():
        raise TrainingError("no CUDA GPU here: nothing to measure; --tiny checks the numbers without one")
    from megatron_jmed.config import ParallelConfig
    from megatron_jmed.parallel import World, start_groups, stop_groups

    sizes, tokens = (Sizes(256, 4, 128, 500), [64]) if words.tiny else (Sizes(), words.tokens)
    forms = {name: changes for name, changes in FORMS.items() if words.only in name and _can_run(changes)}
    if not forms:
        raise ConfigError(f"--only {words.only!r} names no form that can run here; there are: {'; '.join(FORMS)}")
    groups, rows = start_groups(ParallelConfig(), World(0, 1, 0), seed=1), []
    for number in tokens:
        for measure in (_experts, _moe_layer, _training_step):
            rows += measure(forms, sizes, number, groups, timed=not words.tiny)
    stop_groups()
    report = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU", "torch": torch.__version__,
              "sizes": vars(sizes), "rows": rows}
    print("\n".join(table(report)))
    if words.json:
        words.json.write_text(json.dumps(report, indent=1))
    wrong = [f"{row['case']}, {row['form']}: {row['error']:.2g} over {row['most_error']}" for row in rows
             if not row["error"] <= row["most_error"]]
    if wrong:
        sys.exit("wrong numbers: " + "; ".join(wrong))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 16384], help="of a micro-batch on a rank")
    parser.add_argument("--only", default="", metavar="WORDS", help="forms whose name holds these words")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("--tiny", action="store_true", help="tiny widths on any machine, no times")
    return parser.parse_args()


def _can_run(changes: tuple[str, ...]) -> bool:
    import torch

    return TE[0] not in changes or (torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None)


def _config(changes: tuple[str, ...], sizes: Sizes, tokens: int):
    from megatron_jmed.config import load_config

    return load_config("tiny", [*sizes.changes(tokens, 1), *(change for change in changes if change != GROUPED)])


# ---- what is measured


def _experts(forms: dict, sizes: Sizes, tokens: int, groups, timed: bool) -> Iterator[dict]:
    """One expert with 2 rows a token."""
    import torch

    from megatron_jmed.parallel import device

    generator = torch.Generator().manual_seed(tokens)
    rows = torch.randn(2 * tokens, sizes.hidden, generator=generator).bfloat16().to(device())
    probs, counts = torch.rand(2 * tokens, generator=generator).to(device()), torch.tensor([2 * tokens])
    yield from _modules(f"one expert, T={tokens}", forms, sizes, tokens, groups, rows, timed,
                        build=lambda config, spec, mcore: _built(spec.submodules.experts, 1, mcore, pg_collection=groups),
                        call=lambda module, rows: module(rows, counts, probs)[0])


def _moe_layer(forms: dict, sizes: Sizes, tokens: int, groups, timed: bool) -> Iterator[dict]:
    """Router, permutation, 8 experts with a quarter of the rows each on the average, and back."""
    import torch

    from megatron_jmed.parallel import device

    hidden = torch.randn(tokens, 1, sizes.hidden, generator=torch.Generator().manual_seed(tokens)).bfloat16().to(device())

    def build(config, spec, mcore):
        given = {} if (spec.params or {}).get("pg_collection") else {"pg_collection": groups}
        layer = _built(spec, mcore, layer_number=1, **given)
        layer.set_layer_number(1)
        return layer

    yield from _modules(f"MoE layer, T={tokens}", forms, sizes, tokens, groups, hidden, timed,
                        build=build, call=lambda module, hidden: module(hidden)[0])


def _modules(case: str, forms: dict, sizes: Sizes, tokens: int, groups, inputs, timed: bool, build: Callable,
             call: Callable) -> Iterator[dict]:
    """A row for each form of one module: the same weights, input and gradient of the output."""
    import torch

    from megatron_jmed.model.layers import decoder_spec
    from megatron_jmed.model.transformer import transformer_config

    grad = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(2)).bfloat16().to(inputs.device)
    expected = None
    reference = next(iter(FORMS.values()))
    for name, changes in {"": reference, **forms}.items():
        config = _config(changes, sizes, tokens)
        spec = decoder_spec(config, groups, range(1))
        layer = spec.layer_specs[0] if hasattr(spec, "layer_specs") else spec
        module = build(config, layer.submodules.mlp, transformer_config(config)).to(inputs.device)
        _fill(module)
        if GROUPED in changes:
            module = _with_stacked_experts(module)
        x = inputs.detach().requires_grad_()

        passes = partial(_both_passes, module, call, x, grad)
        found = [passes().detach(), x.grad, *_main_grads(module)]
        if expected is None:
            expected = found
            continue
        row = {"case": case, "form": name, "flop": 18 * 2 * tokens * sizes.hidden * sizes.ffn,
               "most_error": MOST_ERROR[name.split(",")[0].split()[0]],
               "error": max(_distance(mine, theirs) for mine, theirs in zip(found, expected, strict=True))}
        if timed:
            row["ms"] = _milliseconds(passes)
            row["first_ms"] = _milliseconds(partial(_forget_and, passes, module))
        yield row
        del module, passes
        if timed:
            torch.cuda.empty_cache()


def _both_passes(module, call: Callable, x, grad):
    """Forward and backward; gradients that are not in main_grad yet are added to it, as Megatron-Core's hooks do."""
    x.grad = None
    output = call(module, x)
    output.backward(grad)
    for weight in module.parameters():
        if not weight.grad_added_to_main_grad and weight.grad is not None:
            weight.main_grad.add_(weight.grad)
        weight.grad, weight.grad_added_to_main_grad = None, False
    return output


def _forget_and(passes: Callable, module) -> None:
    from megatron_jmed.model.linear import forget_fp8_weights

    forget_fp8_weights(module.parameters())
    passes()


def _built(spec, *arguments, **words):
    from megatron.core.transformer.spec_utils import build_module

    return build_module(spec, *arguments, **words)


def _fill(module) -> None:
    """The same numbers in every form, whatever its weights are called: experts and router in their order, and fp32 gradients."""
    import torch

    for number, weight in enumerate(_in_order(module)):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=generator) / weight.size(1) ** 0.5)
        weight.main_grad = torch.zeros_like(weight, dtype=torch.float32)
        weight.grad_added_to_main_grad = False


def _in_order(module) -> list:
    """Weights sorted by kind (router, fc1, fc2), then by expert: SequentialMLP has them by expert, TEGroupedMLP by kind."""
    def place(item: tuple[str, object]) -> tuple[str, int]:
        name = item[0]
        kind = next(kind for kind in ("router", "linear_fc1", "linear_fc2") if kind in name)
        digits = "".join(character for character in name.replace("fc1", "").replace("fc2", "") if character.isdigit())
        return kind, int(digits or 0)

    return [weight for _, weight in sorted(module.named_parameters(), key=place)]


def _main_grads(module) -> list:
    return [grad.clone() for weight in _in_order(module)
            for grad in (weight.main_grad.unbind() if weight.dim() == 3 else [weight.main_grad])]


def _with_stacked_experts(module):
    """The module with one product for all experts (torch.nn.functional.grouped_mm), whose weights then lie in one piece.

    A peer, not a form that trains: Megatron-Core's parameters are one by one, and stacking them copies all of them."""
    import torch
    import torch.nn.functional as F

    from megatron_jmed.kernels.swiglu import swiglu, swiglu_backward

    class SwiGLU(torch.autograd.Function):
        @staticmethod
        def forward(ctx, fc1_R2F, probs_R):
            ctx.save_for_backward(fc1_R2F, probs_R)
            return swiglu(fc1_R2F, probs_R).plain_RK

        @staticmethod
        def backward(ctx, grad_RF):
            grad_rows, grad_probs = swiglu_backward(grad_RF.contiguous(), *ctx.saved_tensors, "plain")
            return grad_rows.plain_RK, grad_probs

    class Stacked(torch.nn.Module):
        def __init__(self, experts):
            super().__init__()
            for name in ("linear_fc1", "linear_fc2"):
                weights = [getattr(expert, name).weight.detach() for expert in experts.local_experts]
                weight = torch.nn.Parameter(torch.stack(weights))
                weight.main_grad, weight.grad_added_to_main_grad = torch.zeros_like(weight, dtype=torch.float32), False
                self.register_parameter(name, weight)

        def forward(self, rows_RH, tokens_per_expert, probs_R):
            ends_E = tokens_per_expert.cumsum(0).to(rows_RH.device, torch.int32)
            fc1_R2F = F.grouped_mm(rows_RH, self.linear_fc1.transpose(1, 2), offs=ends_E)
            return F.grouped_mm(SwiGLU.apply(fc1_R2F, probs_R), self.linear_fc2.transpose(1, 2), offs=ends_E), None

    if not hasattr(module, "experts"):
        return Stacked(module)
    module.experts = Stacked(module.experts)
    return module


def _training_step(forms: dict, sizes: Sizes, tokens: int, groups, timed: bool) -> Iterator[dict]:
    """Two micro-batches through one layer, head and loss, and the optimizer; the loss after a step beside bf16's."""
    import torch
    from megatron.core import tensor_parallel
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    from megatron_jmed.data.batch import batch_from_sample
    from megatron_jmed.model.build import build_data_parallel_model
    from megatron_jmed.parallel import device
    from megatron_jmed.train.estimate import flops_a_token
    from megatron_jmed.train.optimizer import build_optimizer
    from megatron_jmed.train.step import Stepper

    def batches():
        ids = torch.randint(sizes.vocabulary, (1, tokens + 1), generator=torch.Generator().manual_seed(3))
        sample = {"tokens": ids[:, :-1], "labels": ids[:, 1:], "loss_mask": torch.ones(1, tokens),
                  "dataset_id": torch.zeros(1, dtype=torch.int64), "position_ids": torch.arange(tokens)[None]}
        while True:
            yield batch_from_sample(sample, device())

    MoEAuxLossAutoScaler.main_loss_backward_scale = None  # of another shape where no schedule has set it (0.16.1)
    expected = None
    for name, changes in {"": next(iter(FORMS.values())), **forms}.items():
        if GROUPED in changes or (not name and timed):
            continue  # the model trains without it; at full width the reference is the first form itself
        config = _config(changes, sizes, tokens)
        tensor_parallel.model_parallel_cuda_manual_seed(4)  # the same weights in every form
        model = build_data_parallel_model(config, groups)
        optimizer = build_optimizer(config, model, groups)
        step = partial(Stepper(config, groups, model, optimizer, ("ids",)).train, batches(), 1e-3, wants_stop=False)
        losses = [step().loss for _ in range(3)]
        if expected is None:
            expected = losses
        if not name:
            continue
        error = max(abs(mine / theirs - 1) for mine, theirs in zip(losses, expected, strict=True))
        row = {"case": f"training step, T=2x{tokens}", "form": name, "flop": 2 * tokens * flops_a_token(config), "error": error,
               "most_error": MOST_ERROR[name.split(",")[0].split()[0]]}
        if timed:
            row["ms"] = _milliseconds(step, warmup=500, rep=3000)
            row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        yield row
        del model, optimizer, step
        if timed:
            torch.cuda.empty_cache()


def _distance(found, exact) -> float:
    return ((found.double() - exact.double()).norm() / exact.double().norm().clamp(min=1e-30)).item()


def _milliseconds(call: Callable[[], object], warmup: int = 200, rep: int = 1000) -> float:
    """Median over about `rep` ms of calls, from the wall clock: host time counts where a layer is bound by launches."""
    import torch

    taken, spent = [], 0.0
    while spent < warmup + rep or len(taken) < 5:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - begin))
        spent += taken[-1]
    warm = taken[len(taken) * warmup // (warmup + rep):]
    return sorted(warm)[len(warm) // 2]


def table(report: dict) -> list[str]:
    lines = [f"{report['device']}, torch {report['torch']}, {report['sizes']}"]
    if "ms" not in report["rows"][0]:
        return lines + [f"{row['case']:28s} {row['form']:36s} relative error {row['error']:.1e}" for row in report["rows"]]
    lines += ["| case | form | ms | TFLOP/s | against bf16 | first micro-batch, ms | peak GiB | error |", "|---" * 8 + "|"]
    bf16 = {row["case"]: row["ms"] for row in reversed(report["rows"]) if row["form"].startswith("bf16")}
    for row in report["rows"]:
        first, peak = (f"{row[word]:.2f}" if word in row else "" for word in ("first_ms", "peak_gib"))
        lines.append(f"| {row['case']} | {row['form']} | {row['ms']:.2f} | {row['flop'] / row['ms'] / 1e9:.0f} | "
                     f"{bf16.get(row['case'], row['ms']) / row['ms']:.2f} | {first} | {peak} | {row['error']:.1e} |")
    return lines


if __name__ == "__main__":
    run_tool(main)
