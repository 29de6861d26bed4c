"""The tiny recipe on a GPU: the same losses as the arithmetic on a CPU, within the rounding of each precision."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

# widths that cuBLASLt's blockwise fp8 takes
WIDE = ["model.hidden_size=256", "model.ffn_hidden_size=256", "model.kv_channels=64", "model.num_query_groups=4",
        "model.num_experts=4"]
KERNELS = [f"kernels.{name}=true" for name in ("rmsnorm", "swiglu", "permute", "cross_entropy", "wgrad_accumulation")]
RUN = ["tiny", *WIDE, "parallel.ep=1", "budget.total_tokens=40960", "budget.eval_every_tokens=0", "init=runs/start"]
PRECISIONS = {
    "fp32_local": (["precision.compute=fp32"], 1e-3),
    "bf16_local": (["precision.compute=bf16"], 1e-2),
    "bf16_te": (["precision.compute=bf16", "precision.backend=te"], 1e-2),
    "fp8_te": (["precision.compute=fp8", "precision.backend=te", "precision.fp8_wgrad=true"], 1e-1),
    "bf16_kernels": (["precision.compute=bf16", "precision.backend=jmed", *KERNELS], 1e-2),
    "fp8_jmed": (["precision.compute=fp8", "precision.backend=jmed"], 1e-1),
    "fp8_kernels": (["precision.compute=fp8", "precision.backend=jmed", *KERNELS], 1e-1),
    "fp8_kernels_wgrad": (["precision.compute=fp8", "precision.backend=jmed", "precision.fp8_wgrad=true", *KERNELS], 1e-1),
    "fp8_tensorwise": (["precision.compute=fp8", "precision.backend=jmed", "precision.fp8_recipe=tensorwise", *KERNELS], 1e-1),
}


def losses(folder, name, *changes, gpu=True):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})
    command = [sys.executable, "-m", "megatron_jmed.train", *RUN, f"run_folder=runs/{name}", *changes]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line)["loss"] for line in (folder / f"runs/{name}/metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def on_cpu(token_folder):
    """The reference: the same weights trained in fp32 on the CPU."""
    first = losses(token_folder, "seed", "init=random", "budget.total_tokens=2048", "optim.warmup_tokens=0", gpu=False)
    assert len(first) == 1
    (token_folder / "runs/start").symlink_to(token_folder / "runs/seed/checkpoints/step_0000001")
    return losses(token_folder, "cpu", gpu=False)


@pytest.mark.parametrize("name", PRECISIONS)
def test_losses_are_those_of_the_cpu(on_cpu, token_folder, name):
    changes, tolerance = PRECISIONS[name]
    if "te" in name and find_spec("transformer_engine") is None:
        pytest.skip("Transformer Engine is not installed")
    found = losses(token_folder, name, *changes)
    assert len(found) == len(on_cpu) == 20
    assert found == pytest.approx(on_cpu, abs=tolerance)
