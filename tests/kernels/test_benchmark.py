"""tools/benchmark_kernels.py: without a GPU it says so; in the interpreter its numbers are right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).parents[2]


def benchmark(*words):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, REPO / "tools/benchmark_kernels.py", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = benchmark()
    assert done.returncode == 2 and "no CUDA GPU" in done.stderr and "Traceback" not in done.stderr


def test_in_the_interpreter_every_number_is_right(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed; pip install 'megatron_jmed[kernels]'")
    done = benchmark("--interpret", "--json", tmp_path / "report.json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert len(rows) == 19 and all(row["error"] <= row["most_error"] for row in rows)
    assert all("ms" not in row for row in rows)
