"""tools/benchmark_kernels.py and benchmark_layer.py: without a GPU they say so; at tiny sizes their numbers are right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).parents[2]


def benchmark(*words, tool="benchmark_kernels"):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, REPO / f"tools/{tool}.py", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("tool", ["benchmark_kernels", "benchmark_layer"])
def test_without_a_gpu_it_says_so(tool):
    done = benchmark(tool=tool)
    assert done.returncode == 2 and "no CUDA GPU" in done.stderr and "Traceback" not in done.stderr


def test_in_the_interpreter_every_number_is_right(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed; pip install 'megatron_jmed[kernels]'")
    done = benchmark("--interpret", "--json", tmp_path / "report.json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert len(rows) == 19 and all(row["error"] <= row["most_error"] for row in rows)
    assert all("ms" not in row for row in rows)


def test_a_layer_and_a_step_in_other_precisions_are_those_of_bf16(tmp_path):
    done = benchmark("--tiny", "--json", tmp_path / "report.json", tool="benchmark_layer")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert {row["case"] for row in rows} == {"one expert, T=64", "MoE layer, T=64", "training step, T=2x64"}
    assert len(rows) == 3 * 7 - 1, "no training step with torch's grouped_mm"
    assert all(row["error"] <= row["most_error"] for row in rows)
    assert {row["form"] for row in rows if not row["error"]} <= {"bf16, Megatron-Core's modules"}


def test_a_form_that_is_not_there_is_named():
    done = benchmark("--tiny", "--only", "fp4", tool="benchmark_layer")
    assert done.returncode == 2 and "--only 'fp4' names no form" in done.stderr and "Traceback" not in done.stderr
