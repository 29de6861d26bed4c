"""Does the gate find a bad node, say why, and let good ones through? Measurements as nodes write them, and this machine's own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from launch.check_network import MAX_ROUNDS, rounds
from launch.check_node import hardware_xids, parse_gpus
from launch.cluster import Gate
from launch.gate import judge, judge_network

WANTED = Gate().model_dump() | {"gpus": 2, "gpu_memory_gib": 79.6}
# What nvidia-smi prints for the fields of check_node on an H100, and on a GPU that counts no ECC errors.
SMI = "0, NVIDIA H100 80GB HBM3, 81559, 0, 1755, 41\n1, NVIDIA H100 80GB HBM3, 81559, [N/A], 1740, 43\n"
KERNEL = """[1000.1] NVRM: Xid (PCI:0000:9b:00): 13, pid=711, name=python, Graphics Exception: ESR 0x505730=0x109
[1000.2] NVRM: Xid (PCI:0000:9b:00): 79, GPU has fallen off the bus.
[1000.3] NVRM: Xid (PCI:0000:9b:00): 79, GPU has fallen off the bus.
[1000.4] NVRM: Xid (PCI:0000:1b:00): 48, pid='<unknown>', name=<unknown>, DBE (double bit error) ECC
"""


def node(**changes) -> dict:
    measured = {"host": "", "time": 100.0, "seconds": 5.0, "problems": [], "versions": {"torch": "2.13.0", "driver": "570.1"},
                "gpus": parse_gpus(SMI), "xids": [], "gemm_tflops": [700.0, 690.0], "memory_gb_s": [2600.0, 2610.0],
                "local_mb_s": 900.0, "shared_mb_s": 400.0}
    return measured | changes


def reasons(wanted: dict | None = None, **changes) -> str:
    """Why the second of four nodes, which differs from the others in `changes`, is bad; '' if it is not; no other may be."""
    bad = judge({"a": node(), "b": node(**changes), "c": node(), "d": node()}, WANTED | (wanted or {}), begun=99.0, ended=110.0)
    assert set(bad) <= {"b"}
    return "; ".join(bad.get("b", []))


def gpu(number: int, **changes) -> list[dict]:
    gpus = parse_gpus(SMI)
    gpus[number] |= changes
    return gpus


def test_equal_nodes_are_fit():
    assert reasons() == ""
    assert reasons({"gemm_tflops": 700.0, "memory_gb_s": 2600.0, "local_mb_s": 1000.0, "sm_clock_mhz": 1700}) == ""


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"gpus": parse_gpus(SMI)[:1]}, "1 GPUs, not 2"),
    ({"gpus": gpu(1, memory_mib=40536)}, "GPU 1 has 39.6 GiB, not 79.6"),
    ({"gpus": gpu(0, ecc_errors=3)}, "GPU 0 has 3 uncorrected ECC errors"),
    ({"xids": hardware_xids(KERNEL)}, "Xid (PCI:0000:9b:00): 79, GPU has fallen off the bus."),
    ({"gemm_tflops": [700.0, 350.0]}, "gemm 350 TFLOP/s (GPU 1), the median is 690"),
    ({"memory_gb_s": [1000.0, 2600.0]}, "memory 1000 GB/s (GPU 0), the median is 2600"),
    ({"shared_mb_s": 3.0}, "shared 3 MB/s, the median is 400"),
    ({"versions": {"torch": "2.12.0", "driver": "570.1"}}, "torch is 2.12.0, on most nodes 2.13.0"),
    ({"versions": {"torch": "", "driver": "570.1"}}, "torch is missing"),
    ({"time": 160.0}, "its clock is off by at least 50.0 s"),
    ({"time": 50.0}, "its clock is off by at least 49.0 s"),
    ({"problems": ["/tmp: OSError: [Errno 28] No space left on device"]}, "/tmp: OSError: [Errno 28]"),
])
def test_a_bad_node_is_named_with_its_reason(changes: dict, complaint: str):
    assert complaint in reasons(**changes)


def test_expectations_of_the_cluster_count_before_the_median():
    slow = judge({"a": node()}, WANTED | {"gemm_tflops": 1000.0}, 99.0, 110.0)
    assert slow == {"a": ["gemm 690 TFLOP/s (GPU 1), expected is 1000"]}
    assert "runs at 1740 MHz (43 degrees), not 1900" in str(judge({"a": node()}, WANTED | {"sm_clock_mhz": 1900}, 99.0, 110.0))
    # of two nodes nobody knows which is right
    assert judge({"a": node(), "b": node(gemm_tflops=[300.0, 300.0])}, WANTED, 99.0, 110.0) == {}


def test_a_node_that_says_nothing_is_bad():
    assert judge({"a": node(), "b": None}, WANTED, 99.0, 110.0) == {"b": ["did not answer within 60 s"]}


def test_nvidia_smi_and_the_kernels_log_are_read():
    first, second = parse_gpus(SMI)
    assert first == {"index": "0", "name": "NVIDIA H100 80GB HBM3", "memory_mib": 81559, "ecc_errors": 0, "sm_clock_mhz": 1755,
                     "temperature": 41}
    assert second["ecc_errors"] is None
    with pytest.raises(ValueError, match="Unable to determine the device handle"):
        parse_gpus("Unable to determine the device handle for GPU0000:03:00.0: Unknown Error")
    assert len(hardware_xids(KERNEL)) == 2  # 13 is a program's fault


@pytest.mark.parametrize("size", [2, 3, 4, 7, 16, 64])
def test_in_the_rounds_everybody_meets_everybody_once(size: int):
    met = set()
    for partners in rounds(size):
        for rank, other in enumerate(partners):
            assert other is None or (partners[other] == rank and other != rank)
        pairs = {(rank, other) for rank, other in enumerate(partners) if other is not None}
        assert not pairs & met and partners.count(None) == size % 2
        met |= pairs
    assert len(met) == (size * (size - 1) if size <= MAX_ROUNDS else size * MAX_ROUNDS)


def exchanged(speeds: dict[str, float | None], skew: float = 0.0) -> list[dict]:
    lines: list[dict] = [{"clock_skew_seconds": skew}]
    for other, speed in speeds.items():
        lines.append({"pair": other, "begun": 1.0})
        lines += [{"pair": other, "gb_s": speed}] if speed else []
    return lines


def test_the_node_of_the_slow_pairs_is_named():
    fast, slow = 40.0, 12.0
    network = {
        "a": exchanged({"b": fast, "c": slow, "d": fast}), "b": exchanged({"a": fast, "c": slow, "d": fast}),
        "c": exchanged({"a": slow, "b": slow, "d": slow}), "d": exchanged({"a": fast, "b": fast, "c": slow}),
    }
    bad = judge_network(network, WANTED | {"network_gb_s": 40.0})
    assert list(bad) == ["c"] and "with a 12 GB/s" in bad["c"][0] and "with d 12 GB/s" in bad["c"][0]


def test_one_slow_cable_costs_one_node_and_a_hanging_one_too():
    network = {"a": exchanged({"b": None, "c": 40.0}), "b": exchanged({"a": None, "c": 40.0}),
               "c": exchanged({"a": 40.0, "b": 40.0})}
    assert judge_network(network, WANTED) == {"b": ["slow pair(s): with a nothing came through; expected 40 GB/s"]}


def test_a_clock_and_a_node_that_never_came():
    network = {"a": exchanged({"c": 1.0}), "b": [], "c": exchanged({"a": 1.0}, skew=-7.5)}
    bad = judge_network(network, WANTED)
    assert bad == {"b": ["it did not reach the other nodes"], "c": ["its clock is -7.5 s off the first node's"]}


def test_this_machine_passes_its_own_gate(tmp_path: Path):
    """The CPU part, really measured, twice; then with an expectation that it cannot meet."""
    words = Gate(local_folder=str(tmp_path), tolerance=0.01).model_dump() | {"gpus": 0, "gpu_memory_gib": None}
    (tmp_path / "gate.json").write_text(json.dumps(words))
    (tmp_path / "begun").write_text("0")
    environment = {"PYTHONPATH": str(REPOSITORY), "SLURMD_NODENAME": "this.here", "OMP_NUM_THREADS": "1"}

    def run(*words: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", *map(str, words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    measured = run("launch.check_node", tmp_path, tmp_path / "gate.json")
    assert measured.returncode == 0, measured.stderr
    found = json.loads((tmp_path / "node_this.json").read_text())
    assert found["problems"] == [] and found["local_mb_s"] > 0.1
    assert found["gemm_tflops"][0] > 1e-3 and found["memory_gb_s"][0] > 0.05
    (tmp_path / "begun").write_text(str(found["time"]))
    verdict = ["launch.gate", tmp_path, tmp_path / "gate.json", "--nodes", "this,other", "--wanted", 1]
    judged = run(*verdict)
    assert judged.returncode == 0 and "gate: 1 of 2 node(s) are fit, 1 are needed: " in judged.stdout, judged.stderr
    assert "other is bad: did not answer" in judged.stdout
    assert [(tmp_path / name).read_text() for name in ("fit", "good", "bad")] == ["this\n", "this\n", "other\n"]
    (tmp_path / "gate.json").write_text(json.dumps(words | {"gemm_tflops": 1e9}))
    judged = run(*verdict)
    assert judged.returncode == 1 and "this is bad: gemm" in judged.stdout and "expected is 1e+09" in judged.stdout
