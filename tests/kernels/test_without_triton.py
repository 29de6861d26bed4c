"""Without Triton the room can be imported and its references run."""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
PROGRAM = """
import sys
sys.modules["triton"] = None  # what an import of a missing package finds
import torch
from megatron_jmed.kernels import accumulate, cross_entropy, permute, quantize_triton, rmsnorm, swiglu
assert not swiglu.runs_on(torch.device("cuda"))
rows = swiglu.swiglu(torch.ones(3, 256), torch.ones(3), "both")
assert rows.values_RK.shape == (3, 128) and not rows.dequantize().isnan().any()
"""


def test_the_room_works_without_triton():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
