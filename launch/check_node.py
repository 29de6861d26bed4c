"""Is this node fit to train: its GPUs, their speed, its disks, its libraries? `python -m launch.check_node GATE_FOLDER GATE.json`

Runs once on each node before the ranks start, in the ranks' own environment. Out: GATE_FOLDER/node_HOST.json, measurements
only; launch/gate.py compares them with the cluster's expectations and with the other nodes. Invariant: it never fails and
never waits for another node: what cannot be measured is written down as a problem, or as null where it need not be there.
"""

import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "megatron-core", "transformer-engine", "triton", "numpy")
_QUERY = ("index", "name", "memory.total", "ecc.errors.uncorrected.volatile.total", "clocks.sm", "temperature.gpu")
# Of NVIDIA's list of Xids those that mean hardware: ECC, page retirement, NVLink, bus, row remapping, GSP, SRAM.
HARDWARE_XIDS = {46, 48, 61, 62, 63, 64, 74, 79, 92, 94, 95, 110, 119, 120, 121, 136, 140, 143, 155, 156}
_DISK_BYTES, _SECONDS = 64 << 20, 0.3


def host_name() -> str:
    return (os.environ.get("SLURMD_NODENAME") or socket.gethostname()).split(".")[0]


def main() -> None:
    folder, wanted = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    begun = time.time()
    found: dict[str, Any] = {"host": host_name(), "time": begun, "problems": [], "versions": versions()}
    found["shared_mb_s"] = _attempt(found, "the run folder", lambda: disk_mb_s(folder))
    found["local_mb_s"] = _attempt(found, wanted["local_folder"], lambda: disk_mb_s(Path(wanted["local_folder"])))
    if wanted["gpus"]:
        found["xids"] = hardware_xids(_answer("dmesg"))
    found |= _attempt(found, "computing", lambda: speeds(wanted["gpus"])) or {}
    found["seconds"] = time.time() - begun
    partial = folder / f".{found['host']}"
    partial.write_text(json.dumps(found, indent=1), encoding="utf-8")
    partial.replace(folder / f"node_{found['host']}.json")


def _attempt(found: dict[str, Any], what: str, measure) -> Any:
    try:
        return measure()
    except Exception as error:  # whatever it is, it is this node's and must not hide the rest
        found["problems"].append(f"{what}: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
        return None


def versions() -> dict[str, str]:
    """Of everything that must be the same on all nodes; a library that is not there is ''."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    found["driver"] = _answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
    return found


def disk_mb_s(folder: Path) -> float:
    """MB/s of writing a file there, until it is on the disk; the file is read back and removed."""
    path = folder / f"write_{host_name()}_{os.getpid()}"
    content = os.urandom(1 << 20) * (_DISK_BYTES >> 20)
    try:
        begun = time.monotonic()
        with open(path, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        seconds = time.monotonic() - begun
        if path.read_bytes() != content:
            raise OSError("what was written is not what is read")
    finally:
        path.unlink(missing_ok=True)
    return _DISK_BYTES / seconds / 1e6


def speeds(gpus: int) -> dict[str, Any]:
    """TFLOP/s and GB/s of each GPU, with nvidia-smi's words about it under load; without GPUs of this node's cores."""
    import torch

    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if gpus else ["cpu"]
    gemm = [gemm_tflops(torch, device) for device in devices]
    memory = [memory_gb_s(torch, device) for device in devices]
    return {"gemm_tflops": gemm, "memory_gb_s": memory, "gpus": _gpus_under_load(torch, devices) if gpus else []}


def gemm_tflops(torch: Any, device: str) -> float:
    """TFLOP/s of square matrix products: bf16 on a GPU, fp32 on a CPU. The best of several, so that a disturbance counts little."""
    size, dtype = (8192, torch.bfloat16) if device != "cpu" else (768, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _best_seconds(torch, device, lambda: torch.matmul(a, b)) / 1e12


def memory_gb_s(torch: Any, device: str) -> float:
    """GB/s of copying in memory, reading and writing counted."""
    size = (1 << 30) if device != "cpu" else (64 << 20)
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / _best_seconds(torch, device, lambda: target.copy_(source)) / 1e9


def _best_seconds(torch: Any, device: str, work) -> float:
    wait = torch.cuda.synchronize if device != "cpu" else lambda _device: None
    work()
    best, end = float("inf"), time.monotonic() + _SECONDS
    while time.monotonic() < end:
        wait(device)
        begun = time.monotonic()
        work()
        wait(device)
        best = min(best, time.monotonic() - begun)
    return best


def _gpus_under_load(torch: Any, devices: list[str]) -> list[dict[str, Any]]:
    for device in devices:
        a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
        for _ in range(2000):  # about three seconds of work, longer than nvidia-smi takes; the calls return at once
            torch.matmul(a, a)
    gpus = parse_gpus(_answer("nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"))
    for device in devices:
        torch.cuda.synchronize(device)
    return gpus


def parse_gpus(text: str) -> list[dict[str, Any]]:
    """nvidia-smi's csv as one dict a GPU; what a GPU does not say ([N/A], [Not Supported]) is None."""
    gpus = []
    for line in text.strip().splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) != len(_QUERY):
            raise ValueError(f"nvidia-smi says {line!r}, not {len(_QUERY)} values")
        index, name, *numbers = words
        memory, ecc, clock, temperature = (int(float(word)) if re.fullmatch(r"[\d.]+", word) else None for word in numbers)
        gpus.append(
            {
                "index": index,
                "name": name,
                "memory_mib": memory,
                "ecc_errors": ecc,
                "sm_clock_mhz": clock,
                "temperature": temperature,
            }
        )
    return gpus


def hardware_xids(kernel_log: str) -> list[str]:
    """Kernel messages of GPU errors that mean hardware, each once; empty also where the kernel's log may not be read."""
    found = {}
    for match in re.finditer(r"NVRM: Xid \((?P<gpu>[^)]*)\): (?P<number>\d+)[^\n]*", kernel_log):
        if int(match["number"]) in HARDWARE_XIDS:
            found[(match["gpu"], match["number"])] = match[0].removeprefix("NVRM: ")
    return list(found.values())


def _answer(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


if __name__ == "__main__":
    main()
