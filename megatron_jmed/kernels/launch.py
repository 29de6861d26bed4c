"""Where a kernel can run, and the one place that starts it. Importing this room works without Triton; its references then run.

The kernels are written for Triton 3.6 to 3.8. Under TRITON_INTERPRET=1, set before this file is first imported, they run on the
CPU; Triton up to 3.9 rounds wrongly to fp8 there (issue 8322), see tests/kernels/interpreter.py.
"""

import os
from collections.abc import Callable
from types import SimpleNamespace

import torch

try:
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError:
    triton = None
    tl = SimpleNamespace(constexpr=None)  # what the decorated functions name in their annotations

    def jit(function: Callable) -> None:
        """No Triton, no kernel: `runs_on` keeps the references in its place."""


def runs_on(device: torch.device) -> bool:
    """Whether a tensor on `device` meets the kernel (True) or the torch reference (False)."""
    return triton is not None and (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")


def launch(kernel: Callable, num_programs: int, *arguments: object, **options: object) -> None:
    """Start `num_programs` programs of a kernel; none for an empty tensor, which CUDA would refuse."""
    if num_programs:
        kernel[(num_programs,)](*arguments, **options)


def ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)
