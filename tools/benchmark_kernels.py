"""How fast the kernels are on this GPU: the ceilings first, then each kernel against its floor and its peers; one table, one JSON.

`python tools/benchmark_kernels.py [--tokens 4096] [--json FILE]` at the widths of LLM-jp-3 8x13B with one expert a rank (2 rows a
token). The floor is the time in which a plain copy (or a bf16 GEMM) moves the bytes (does the products) that the kernel cannot
avoid; the share of the floor is floor over time. Peers: eager torch and torch.compile in bf16; Liger and Transformer Engine where
they can be imported. Every result is compared with fp64 on the spot. Without a GPU it ends with code 2; `--interpret` then checks
the numbers at tiny sizes, without times.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megatron_jmed.errors import TrainingError, UserError, run_tool

MOST_ERROR = {"plain": 5e-3, "fp8": 0.03}


@dataclass
class Case:
    """One kernel and who else does the same; `check` gives the relative error of what `ours` returned."""

    name: str
    ours: Callable[[], object]
    check: Callable[[object], float]
    num_bytes: int = 0
    flop: int = 0
    kind: str = "plain"
    peers: dict[str, Callable[[], object]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    tokens: int
    hidden: int = 5120
    ffn: int = 13824
    vocabulary: int = 99584
    copy_bytes: int = 1 << 31
    gemm: int = 8192


def main() -> None:
    words = _arguments()
    if words.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if not words.interpret and not torch.cuda.is_available():
        raise TrainingError("no CUDA GPU here: nothing to measure; --interpret checks the numbers without one")
    device = torch.device("cpu" if words.interpret else "cuda")
    sizes = Sizes(24, 256, 128, 1000, 1 << 16, 64) if words.interpret else Sizes(words.tokens)
    rows = measure(sizes, device)
    report = {"device": "interpreter" if words.interpret else torch.cuda.get_device_name(), "torch": torch.__version__,
              "sizes": vars(sizes), "rows": rows}
    print("\n".join(table(report)))
    if words.json:
        words.json.write_text(json.dumps(report, indent=1))
    wrong = [f"{row['case']}: relative error {row['error']:.2g} over {row['most_error']}" for row in rows
             if not row["error"] <= row["most_error"]]
    if wrong:
        sys.exit("wrong numbers: " + "; ".join(wrong))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a micro-batch on a rank (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("--interpret", action="store_true", help="tiny sizes in Triton's interpreter, no times")
    words = parser.parse_args()
    if words.tokens < 16:
        raise UserError(f"--tokens {words.tokens} is too few to measure; take 16 or more")
    return words


def measure(sizes: Sizes, device) -> list[dict]:
    """The rows of the table, ceilings first."""
    import torch

    timed, ceilings, rows = device.type == "cuda", {}, []
    for case in _ceilings(sizes, device):
        rows.append(_row(case, timed, {}))
        if timed:
            ceilings["flop" if case.flop else "bytes"] = (case.flop or case.num_bytes) / rows[-1]["ms"]
    for group in (_swiglu, _permute, _rmsnorm, _cross_entropy, _accumulate):
        for case in group(sizes, device):
            rows.append(_row(case, timed, ceilings))
        if timed:
            torch.cuda.empty_cache()
    return rows


def _row(case: Case, timed: bool, ceilings: dict[str, float]) -> dict:
    # The interpreter of Triton up to 3.9 rounds to fp8 wrongly (issue 8322), by up to twice the step.
    most_error = MOST_ERROR[case.kind] * (1 if timed or case.kind == "plain" else 3)
    error = case.check(case.ours())
    row = {"case": case.name, "error": error, "most_error": most_error, "bytes": case.num_bytes, "flop": case.flop}
    if not timed:
        return row
    row["ms"] = _milliseconds(case.ours)
    floors = [amount / ceilings[word] for word, amount in (("bytes", case.num_bytes), ("flop", case.flop)) if ceilings and amount]
    row["floor_ms"] = max(floors, default=row["ms"])
    row["peers"] = {}
    for name, peer in case.peers.items():
        try:
            row["peers"][name] = _milliseconds(peer)
        except Exception as error:  # a peer that fails is a line in the table, not the end of the measurement
            row["peers"][name] = f"{type(error).__name__}: {str(error).splitlines()[0][:60] if str(error) else ''}"
    return row


def _milliseconds(call: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return do_bench(call, warmup=50, rep=200, return_mode="median")  # empties the L2 cache before each call


def table(report: dict) -> list[str]:
    lines = [f"{report['device']}, torch {report['torch']}, {report['sizes']}"]
    if "ms" not in report["rows"][0]:
        return lines + [f"{row['case']:44s} relative error {row['error']:.1e}" for row in report["rows"]]
    names = list(dict.fromkeys(name for row in report["rows"] for name in row["peers"]))
    lines += ["| kernel | ms | GB/s | TFLOP/s | share of the floor | error | " + " | ".join(f"{name}, ms" for name in names) + " |",
              "|---" * (6 + len(names)) + "|"]
    for row in report["rows"]:
        peers = (row["peers"].get(name, "") for name in names)
        rates = (f"{row[word] / row['ms'] / scale:.0f}" if row[word] else "" for word, scale in (("bytes", 1e6), ("flop", 1e9)))
        lines.append(f"| {row['case']} | {row['ms']:.3f} | " + " | ".join(rates)
                     + f" | {row['floor_ms'] / row['ms']:.0%} | {row['error']:.1e} | "
                     + " | ".join(f"{ms:.3f}" if isinstance(ms, float) else ms for ms in peers) + " |")
    return lines


def _distance(found, exact) -> float:
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()


def _bf16(device, *shape: int):
    import torch

    return torch.randn(*shape, device=device, dtype=torch.bfloat16)


def _with_compiled(function: Callable, *arguments) -> dict[str, Callable[[], object]]:
    """Eager and compiled forms of a torch function, as peers."""
    import torch

    compiled = torch.compile(function)
    return {"eager": lambda: function(*arguments), "compile": lambda: compiled(*arguments)}


def _gradients(function: Callable, arguments: list, grad) -> dict[str, Callable[[], object]]:
    """Eager and compiled backward passes of a torch function, the forward pass left out of the time."""
    import torch
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False  # the graph is walked many times
    inputs = [argument.detach().requires_grad_() for argument in arguments]

    def walk(form: Callable) -> Callable[[], object]:
        outputs = []

        def backward():
            if not outputs:
                outputs.append(form(*inputs))
            return torch.autograd.grad(outputs[0], inputs, grad, retain_graph=True)

        return backward

    return {"eager": walk(function), "compile": walk(torch.compile(function))}


def _optional(module: str, name: str, call: Callable, *arguments) -> dict[str, Callable[[], object]]:
    """A peer of another library, or none where it cannot be imported."""
    import importlib

    try:
        found = importlib.import_module(module)
    except Exception:  # Transformer Engine raises more than ImportError where its parts do not fit
        return {}
    return {name: lambda: call(found, *arguments)}


def _ceilings(sizes: Sizes, device) -> Iterator[Case]:
    import torch

    source = torch.zeros(sizes.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    yield Case("copy", lambda: target.copy_(source), lambda found: 0.0, num_bytes=2 * sizes.copy_bytes)
    left, right = _bf16(device, sizes.gemm, sizes.gemm), _bf16(device, sizes.gemm, sizes.gemm)
    exact = left[:64].double() @ right.double()
    yield Case("bf16 GEMM", lambda: left @ right, lambda found: _distance(found[:64], exact), flop=2 * sizes.gemm**3)


def _rows_error(exact, kind: str) -> Callable[[object], float]:
    """The error of the first rows of a kernel's result, of the form that is named."""
    def check(found) -> float:
        rows = found[0] if isinstance(found, tuple) and not hasattr(found, "plain_RK") else found
        return _distance((rows.plain_RK if kind == "plain" else rows.dequantize())[: len(exact)], exact)

    return check


def _swiglu(sizes: Sizes, device) -> Iterator[Case]:
    import torch

    from megatron_jmed.kernels.swiglu import swiglu, swiglu_backward, swiglu_backward_reference, swiglu_reference

    num_rows, width = 2 * sizes.tokens, sizes.ffn
    fc1, probs, grad = _bf16(device, num_rows, 2 * width), torch.rand(num_rows, device=device), _bf16(device, num_rows, width)
    exact = swiglu_reference(fc1[:256].double(), probs[:256].double())
    exact_grad, _ = swiglu_backward_reference(grad[:256].double(), fc1[:256].double(), probs[:256].double())

    def eager(fc1, probs):
        gate, up = fc1.chunk(2, dim=1)
        return torch.nn.functional.silu(gate) * up * probs[:, None].to(fc1.dtype)

    liger = _optional("liger_kernel.transformers.functional", "Liger (no probability)",
                      lambda found: found.liger_swiglu(fc1[:, :width], fc1[:, width:]))
    for output, size in (("plain", 2), ("fp8", 1), ("both", 3)):
        peers = _with_compiled(eager, fc1, probs) | liger if output == "plain" else {}
        yield Case(f"SwiGLU, {output}", lambda output=output: swiglu(fc1, probs, output),
                   _rows_error(exact, "plain" if output == "plain" else "fp8"), num_rows * width * (4 + size),
                   kind="plain" if output == "plain" else "fp8", peers=peers)
    for output, size in (("plain", 2), ("fp8", 1), ("both", 3)):
        yield Case(f"SwiGLU backward, {output}", lambda output=output: swiglu_backward(grad, fc1, probs, output),
                   _rows_error(exact_grad, "plain" if output == "plain" else "fp8"), num_rows * width * (6 + 2 * size),
                   kind="plain" if output == "plain" else "fp8",
                   peers=_gradients(eager, [fc1, probs], grad) if output == "plain" else {})


def _permute(sizes: Sizes, device) -> Iterator[Case]:
    import torch

    from megatron_jmed.kernels.permute import gather_rows, gather_rows_reference, plan_rows, sum_rows, sum_rows_reference

    scores = torch.rand(sizes.tokens, 8, device=device)
    routing_map = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(2).indices, True)
    plan = plan_rows(routing_map, 2)
    num_rows, width = len(plan.source_R), sizes.hidden
    tokens, rows, weights = _bf16(device, sizes.tokens, width), _bf16(device, num_rows, width), torch.rand(num_rows, device=device)
    source, inverse = plan.source_R.clamp(min=0).long(), plan.rows_TK.long()
    exact = gather_rows_reference(tokens.double(), plan.source_R[:256])
    engine = _optional("transformer_engine.pytorch", "TE (no padding)",
                       lambda found: found.moe_permute(tokens, routing_map.int(), num_out_tokens=2 * sizes.tokens, map_type="mask"))
    for output, size in (("plain", 2), ("fp8", 1), ("both", 3)):
        peers = _with_compiled(lambda tokens: tokens[source], tokens) | engine if output == "plain" else {}
        # The tokens are read once: their second reading can come from the L2 cache.
        yield Case(f"permute, {output}", lambda output=output: gather_rows(tokens, plan, output),
                   _rows_error(exact, "plain" if output == "plain" else "fp8"), 2 * sizes.tokens * width + num_rows * width * size,
                   kind="plain" if output == "plain" else "fp8", peers=peers)
    exact_sum = sum_rows_reference(rows.double(), plan.rows_TK[:256])
    yield Case("unpermute", lambda: sum_rows(rows, plan), lambda found: _distance(found[:256], exact_sum),
               2 * width * (num_rows + sizes.tokens), peers=_with_compiled(lambda rows: rows[inverse].sum(1), rows))
    weighted = exact * weights[:256, None].double()
    yield Case("unpermute backward, weighted, both", lambda: gather_rows(tokens, plan, "both", weights, rows),
               _rows_error(weighted, "fp8"), 2 * sizes.tokens * width + num_rows * width * 5, kind="fp8")


def _rmsnorm(sizes: Sizes, device) -> Iterator[Case]:
    import torch

    from megatron_jmed.kernels.rmsnorm import rmsnorm, rmsnorm_backward, rmsnorm_backward_reference, rmsnorm_reference

    x, grad, weight = (_bf16(device, sizes.tokens, sizes.hidden), _bf16(device, sizes.tokens, sizes.hidden),
                       _bf16(device, sizes.hidden))
    exact, exact_inverse = rmsnorm_reference(x.double(), weight.double(), 1e-5)
    inverse = rmsnorm(x, weight)[1]
    exact_grad, exact_weight = rmsnorm_backward_reference(grad.double(), x.double(), weight.double(), exact_inverse)
    numbers = sizes.tokens * sizes.hidden

    def eager(x, weight):
        return torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-5)

    liger = _optional("liger_kernel.transformers.functional", "Liger", lambda found: found.liger_rms_norm(x, weight, 1e-5))
    for output, size in (("plain", 2), ("fp8", 1)):
        yield Case(f"RMSNorm, {output}", lambda output=output: rmsnorm(x, weight, output=output), _rows_error(exact, output),
                   numbers * (2 + size), kind=output, peers=_with_compiled(eager, x, weight) | liger if output == "plain" else {})
    yield Case("RMSNorm backward", lambda: rmsnorm_backward(grad, x, weight, inverse),
               lambda found: max(_distance(found[0], exact_grad), _distance(found[1], exact_weight)), 6 * numbers,
               peers=_gradients(eager, [x, weight], grad))


def _cross_entropy(sizes: Sizes, device) -> Iterator[Case]:
    import torch

    from megatron_jmed.kernels.cross_entropy import (
        gradient_in_place_,
        gradient_reference,
        local_statistics,
        local_statistics_reference,
    )

    logits = _bf16(device, sizes.tokens, sizes.vocabulary)
    targets = torch.randint(0, sizes.vocabulary, (sizes.tokens,), device=device)
    weights = torch.full((sizes.tokens,), 1 / sizes.tokens, device=device)
    first = slice(0, 64)
    exact = local_statistics_reference(logits[first].double(), targets[first])
    exact_grad = gradient_reference(logits[first].double(), targets[first], exact, weights[first].double())
    original = logits[first].clone()

    def ours():
        whole = local_statistics(logits, targets)
        gradient_in_place_(logits, targets, whole, weights)
        return whole

    def check(whole):
        error = max(_distance(whole.loss()[first], exact.loss()), _distance(logits[first], exact_grad))
        logits[first] = original
        return error

    def eager(logits):
        return torch.nn.functional.cross_entropy(logits.float(), targets)

    def both_passes(form):
        inputs = logits.detach().requires_grad_()
        return lambda: torch.autograd.grad(form(inputs), inputs)

    def liger(found):
        inputs = logits.detach().clone().requires_grad_()  # it writes the gradient over the logits; the copy is in its time
        return found.liger_cross_entropy(inputs, targets)

    # Timed over and over, the logits are the gradient of the last call: other numbers, the same work.
    yield Case("cross-entropy, loss and gradient", ours, check, 6 * sizes.tokens * sizes.vocabulary,
               peers={"eager": both_passes(eager), "compile": both_passes(torch.compile(eager))}
               | _optional("liger_kernel.transformers.functional", "Liger", liger))


def _accumulate(sizes: Sizes, device) -> Iterator[Case]:
    import torch

    from megatron_jmed.kernels.accumulate import accumulate_, accumulate_reference

    for name, outputs, inputs in (("fc1", 2 * sizes.ffn, sizes.hidden), ("fc2", sizes.hidden, sizes.ffn)):
        grad, x = _bf16(device, 2 * sizes.tokens, outputs), _bf16(device, 2 * sizes.tokens, inputs)
        main_grad = torch.randn(outputs, inputs, device=device)
        exact = accumulate_reference(main_grad[:256].double(), grad[:, :256], x)
        yield Case(f"weight gradient into main_grad, {name}", lambda m=main_grad, g=grad, x=x: accumulate_(m, g, x),
                   lambda found, exact=exact: _distance(found[:256], exact), 8 * outputs * inputs,
                   4 * sizes.tokens * outputs * inputs,
                   peers={"eager": lambda m=main_grad, g=grad, x=x: m.add_(g.t() @ x)})


if __name__ == "__main__":
    run_tool(main)
