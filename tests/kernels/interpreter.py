"""Triton's CPU interpreter with the roundings of the hardware, for tests alone.

Triton 3.6 to 3.9 converts fp32 to fp8 wrongly in the interpreter (issue 8322; PRs 9808 and 11897 are open): ties go away from
zero, a carry is or-ed into the exponent (126.24 becomes 64), subnormals are cut off, infinities of E5M2 are read as numbers. And
it cuts fp32 off to bf16 where a GPU rounds. Here torch's conversions take their place, clamped first for fp8: PTX's
cvt.rn.satfinite rounds to nearest even and saturates.
`tests/kernels/test_interpreter.py` compares every bf16 number; when it finds the unpatched interpreter right, remove this file.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch


def bits_to_float(bits: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Bit patterns of `dtype` as fp32 numbers of the same shape."""
    container = {1: np.uint8, 2: np.int16, 4: np.int32}[dtype.itemsize]
    flat = np.frombuffer(bits.tobytes(), dtype=container).copy()
    return torch.from_numpy(flat).view(dtype).float().numpy().reshape(bits.shape)


def float_to_bits(numbers: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """fp32 numbers as bit patterns of `dtype`, nearest even; fp8 saturates, NaN stays NaN."""
    tensor = torch.from_numpy(np.ascontiguousarray(numbers)).clone()
    if dtype.itemsize == 1:
        most = torch.finfo(dtype).max
        tensor = tensor.clamp(-most, most)  # torch.clamp keeps NaN
    view, unsigned = {1: (torch.uint8, np.uint8), 2: (torch.int16, np.uint16), 4: (torch.int32, np.uint32)}[dtype.itemsize]
    return tensor.to(dtype).view(view).numpy().view(unsigned).reshape(numbers.shape)


def corrected(original: Callable) -> Callable:
    """`triton.runtime.interpreter._convert_float` with every conversion that touches fp8 or ends in bf16 done by torch."""
    import triton.language as tl

    eight = {tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}
    known = {**eight, tl.bfloat16: torch.bfloat16, tl.float16: torch.float16, tl.float32: torch.float32}

    def convert(bits, source, target, rounding_mode):
        if source in known and target in known and (source in eight or target in eight or target == tl.bfloat16):
            return float_to_bits(bits_to_float(bits, known[source]), known[target])
        return original(bits, source, target, rounding_mode)

    return convert


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one test, every Triton function runs in the corrected interpreter, whenever and however it was imported.

    Triton decides when a function is decorated, so TRITON_INTERPRET would have to stand in the environment of the whole
    test run, and of every training that it starts.
    """
    import triton.runtime.interpreter as interpreter
    from triton.runtime.jit import JITFunction

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(interpreter, "_convert_float", corrected(interpreter._convert_float))
    monkeypatch.setattr(JITFunction, "__getitem__", lambda self, grid: interpreter.InterpretedFunction(self.fn)[grid])
    monkeypatch.setattr(JITFunction, "__call__", lambda self, *a, **k: interpreter.InterpretedFunction(self.fn)(*a, **k))
