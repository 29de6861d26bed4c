"""Kernels run on the GPU where there is one, else in Triton's interpreter; outputs begin as NaN; inputs are new every time."""

import os

import interpreter
import pytest
import torch


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    pytest.importorskip("triton", reason="Triton is not installed; pip install 'megatron_jmed[kernels]'")
    if torch.cuda.is_available():
        return torch.device("cuda")
    interpreter.install(monkeypatch)
    return torch.device("cpu")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` gives NaN, so that a place which a kernel leaves out is seen."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.float8_e4m3fn:
            tensor.view(torch.uint8).fill_(0x7F)  # its NaN
        return tensor.fill_(torch.nan) if tensor.is_floating_point() and tensor.dtype.itemsize > 1 else tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))


@pytest.fixture(autouse=True)
def seed() -> int:
    """A new seed each time; SEED=... repeats one that failed (pytest shows what a failing test printed)."""
    number = int(os.environ.get("SEED") or int.from_bytes(os.urandom(4), "big"))
    print(f"SEED={number}")
    torch.manual_seed(number)
    return number
