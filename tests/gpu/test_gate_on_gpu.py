"""The gate's GPU part on a real GPU: what nvidia-smi says is read, the measured speeds are those of a GPU, and it passes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))


def test_a_gpu_passes_the_gate(tmp_path: Path):
    from launch.cluster import Gate
    from launch.gate import judge

    wanted = Gate(local_folder=str(tmp_path)).model_dump() | {"gpus": torch.cuda.device_count(), "gpu_memory_gib": None}
    (tmp_path / "gate.json").write_text(json.dumps(wanted))
    command = [sys.executable, "-m", "launch.check_node", str(tmp_path), str(tmp_path / "gate.json")]
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ | {"SLURMD_NODENAME": "here"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "node_here.json").read_text())
    print(json.dumps(found, indent=1))
    assert found["seconds"] < 60 and found["versions"]["driver"] and found["gpus"][0]["memory_mib"] > 1000
    assert min(found["gemm_tflops"]) > 5 and min(found["memory_gb_s"]) > 100 and found["gpus"][0]["sm_clock_mhz"] > 300
    assert judge({"here": found}, wanted, begun=found["time"], ended=found["time"]) == {}
