"""What ptxas makes of every kernel for Hopper: nothing spilled, memory touched 16 bytes at a time. Needs no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict[str, dict]:
    """The rows of benchmarks/compile_kernels.py, compiled anew."""
    triton = pytest.importorskip("triton", reason="Triton is not installed; pip install 'megatron_jmed[kernels]'")
    if not (Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump").exists():
        pytest.skip("this Triton brings no cuobjdump")
    folder = tmp_path_factory.mktemp("compile")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "cache"),
                   "PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, REPO / "benchmarks/compile_kernels.py", "--json", folder / "report.json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "report.json").read_text())["kernels"]


def test_every_kernel_was_compiled(report):
    jitted = set()
    for path in (REPO / "megatron_jmed/kernels").glob("*.py"):
        for part in path.read_text().split("\n@jit\n")[1:]:
            jitted.add(part.removeprefix("def ").split("(")[0])
    assert {row["kernel"] for row in report.values()} == {name for name in jitted if name.startswith("_")}


def test_nothing_is_spilled_and_every_block_fits_a_multiprocessor(report):
    for name, row in report.items():
        assert (row["stack_bytes"], row["local_bytes"], row["LDL"], row["STL"]) == (0, 0, 0, 0), name
        assert row["registers"] * 32 * row["num_warps"] <= 65536, name


def test_rows_are_read_and_written_16_bytes_at_a_time(report):
    for name, row in report.items():
        assert row["LDG.E.128"] >= 2, name
        assert row["STG.E.128"] >= (0 if name == "cross-entropy statistics" else 1), name
        # What is narrower are a few numbers a row (sources, weights, scales, sums), not the rows.
        assert row["STG.E.64"] == 0 and row["STG.E"] <= 3, name
