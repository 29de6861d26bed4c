"""Every kernel compiled for Hopper (sm_90) as it is launched at the sizes of LLM-jp-3 8x13B, on any machine with Triton; no GPU.

`PYTHONPATH=. python benchmarks/compile_kernels.py [--json FILE]`: registers, stack, loads and stores by width and the time of
compiling, one line a variant. The public functions are called on meta tensors and their launches written down, so
what is compiled is what would run. Ends with code 1 if a kernel spills.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from megatron_jmed.kernels import cross_entropy, permute, quantize_triton, rmsnorm, swiglu
from megatron_jmed.kernels.quantize_triton import OUTPUTS

MODULES = (cross_entropy, permute, quantize_triton, rmsnorm, swiglu)
TOKENS, ROWS, HIDDEN, FFN, TOPK, VOCABULARY = 4096, 8192, 5120, 13824, 2, 99584
POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float8_e4m3fn: "*fp8e4nv",
            torch.int32: "*i32", torch.int64: "*i64"}
COUNTED = ("LDG.E.128", "LDG.E.64", "LDG.E", "STG.E.128", "STG.E.64", "STG.E", "LDL", "STL", "BAR")


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def call_everything() -> Iterator[str]:
    """Call each public function as a training step would; yields the name of the call just made."""
    fp32, int32 = torch.float32, torch.int32
    plan = permute.RowPlan(meta(ROWS, dtype=int32), meta(ROWS, dtype=int32), meta(TOKENS, TOPK, dtype=int32), None)
    rows, tokens, weights = meta(ROWS, HIDDEN), meta(TOKENS, HIDDEN), meta(ROWS, dtype=fp32)
    quantize_triton.quantize_rows(rows)
    yield "quantize"
    for output in OUTPUTS:
        swiglu.swiglu(meta(ROWS, 2 * FFN), weights, output)
        yield f"swiglu {output}"
        swiglu.swiglu_backward(meta(ROWS, FFN), meta(ROWS, 2 * FFN), weights, output)
        yield f"swiglu backward {output}"
        permute.gather_rows(tokens, plan, output)
        yield f"permute {output}"
        rmsnorm.rmsnorm(tokens, meta(HIDDEN), output=output)
        yield f"rmsnorm {output}"
    permute.gather_rows(tokens, plan, "both", weights, rows)
    yield "unpermute backward, weighted, both"
    permute.sum_rows(rows, plan)
    yield "unpermute"
    permute.sum_rows(rows, plan, weights)
    yield "unpermute, weighted"
    rmsnorm.rmsnorm_backward(tokens, tokens, meta(HIDDEN), meta(TOKENS, dtype=fp32))
    yield "rmsnorm backward"
    logits, targets, numbers = meta(TOKENS, VOCABULARY), meta(TOKENS, dtype=torch.int64), meta(TOKENS, dtype=fp32)
    whole = cross_entropy.local_statistics(logits, targets)
    yield "cross-entropy statistics"
    cross_entropy.gradient_in_place_(logits, targets, whole, numbers)
    yield "cross-entropy gradient"


def launches() -> Iterator[tuple[str, tuple]]:
    """(name, (kernel, arguments, options)) of every launch."""
    seen = []

    def record(kernel, num_programs, *arguments, **options):
        seen.append((kernel, arguments, options))

    with ExitStack() as stack:
        for module in MODULES:
            stack.enter_context(mock.patch.object(module, "launch", record))
            stack.enter_context(mock.patch.object(module, "runs_on", lambda device: True))
        for name in call_everything():
            assert len(seen) == 1, f"{name}: {len(seen)} launches"
            yield name, seen.pop()


def compiled(kernel: object, arguments: tuple, options: dict) -> dict:
    """Compile one launch and count what came out."""
    options = dict(options)
    launch_options = {word: options.pop(word) for word in ("num_warps", "num_stages") if word in options}
    signature, aligned = {}, {}
    for index, (word, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        is_tensor = isinstance(value, torch.Tensor)
        signature[word] = POINTERS[value.dtype] if is_tensor else "fp32" if isinstance(value, float) else "i32"
        if is_tensor or (isinstance(value, int) and value % 16 == 0):
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature | dict.fromkeys(options, "constexpr"), constexprs=options, attrs=aligned)
    begin = time.perf_counter()
    result = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch_options)
    seconds = time.perf_counter() - begin
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        usage, sass = (_cuobjdump(word, file.name) for word in ("--dump-resource-usage", "--dump-sass"))
    used = {word: int(number) for word, number in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    instructions = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z][\w.]*)", sass, re.MULTILINE)
    counts = {word: sum(name == word or name.startswith(word + ".") for name in instructions) for word in COUNTED}
    for word in ("LDG.E", "STG.E"):  # those narrower than 8 bytes
        counts[word] -= counts[word + ".128"] + counts[word + ".64"]
    return {"kernel": kernel.__name__, **launch_options, "registers": used["REG"], "stack_bytes": used["STACK"],
            "local_bytes": used["LOCAL"], "shared_bytes": result.metadata.shared, "instructions": len(instructions),
            "seconds": round(seconds, 2), **counts}


def _cuobjdump(word: str, path: str) -> str:
    program = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([program, word, path], capture_output=True, text=True, check=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the table there too")
    words = parser.parse_args()
    table = {name: compiled(*launch) for name, launch in launches()}
    print(f"Triton {triton.__version__}, torch {torch.__version__}, sm_90")
    print("| launch | warps | registers | stack B | shared B | instructions "
          "| loads 16 / 8 / less B | stores 16 / 8 / less B | local load / store |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, row in table.items():
        loads, stores = (" / ".join(str(row[f"{word}.E{width}"]) for width in (".128", ".64", "")) for word in ("LDG", "STG"))
        print(f"| {name} | {row['num_warps']} | {row['registers']} | {row['stack_bytes']} | {row['shared_bytes']} "
              f"| {row['instructions']} | {loads} | {stores} | {row['LDL']} / {row['STL']} |")
    if words.json:
        words.json.write_text(json.dumps({"triton": triton.__version__, "kernels": table}, indent=1))
    return int(any(row["stack_bytes"] or row["LDL"] or row["STL"] for row in table.values()))


if __name__ == "__main__":
    sys.exit(main())
