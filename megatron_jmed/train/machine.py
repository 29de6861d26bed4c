"""What the arithmetic of a plan takes as given: one GPU, its network, and what no arithmetic knows. Change it with `replace`.

Every number is stated with its source; those marked "our assumption" were not measured by this project.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """One GPU of a cluster and its share of the network; the defaults are an H100 SXM node with 8 InfiniBand NDR ports."""

    gpu_gib: float = 79.6  # what CUDA shows of an 80 GB H100
    gpus_per_node: int = 8
    bf16_flops: float = 989e12  # dense peak (NVIDIA's data sheet; twice that is the sparse peak, which nothing here reaches)
    fp8_speedup: float = 1.33  # of matrix products; so that whole Mixtral 8x22B steps gain the published 1.20
    matmul_efficiency: float = 0.70  # share of the peak in large products: set by two published speeds (benchmarks/plan.md)
    attention_efficiency: float = 0.45  # share of the peak in the attention core, causal: our assumption
    memory_bandwidth: float = 3.35e12 * 0.7  # bytes a second, HBM3, at 70 %: norms, permutations, the optimizer
    node_bandwidth: float = 450e9 * 0.75  # bytes a second and direction between GPUs of a node, NVLink 4, at 75 %
    network_bandwidth: float = 50e9 * 0.75  # bytes a second and direction between nodes, one 400 Gb/s port a GPU, at 75 %
    layer_overhead_seconds: float = 0.15e-3  # of one pass of one layer: kernel launches, host synchronisation; our assumption
    latency_seconds: float = 20e-6  # of one exchange, whatever its size: our assumption
    imbalance: float = 1.1  # tokens of the busiest rank's experts over the mean; our assumption, the monitor logs the real one
    reserve_gib: float = 3.0  # CUDA context, NCCL's and cuBLAS's buffers; our assumption
    fragmentation: float = 0.05  # of all that is allocated anew each step; our assumption, with expandable segments
    segment_overhead_seconds: float = 1800.0  # of each queue segment: start, loading, the save near its end; our assumption


H100 = Machine()
BALANCED = Machine(imbalance=1.0, reserve_gib=0.0, fragmentation=0.0)  # only what can be counted, for comparisons

# Dense bf16 peaks of NVIDIA's data sheets, without sparsity: what utilisation (MFU) is measured against.
_PEAK_FLOPS = {"H100": H100.bf16_flops, "H200": H100.bf16_flops, "A100": 312e12}


def peak_tflops(gpu_name: str) -> float | None:
    """The dense bf16 peak of a GPU in TFLOP/s, by the name it gives itself; None where it is not known."""
    return next((peak / 1e12 for model, peak in _PEAK_FLOPS.items() if model in gpu_name), None)
