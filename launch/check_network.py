"""How fast do the nodes exchange, two by two and all together? `python -m launch.check_network GATE_FOLDER`, once on each node.

Every node meets others in rounds (the circle method: each round pairs all nodes, after n - 1 rounds everybody has met
everybody; at most MAX_ROUNDS of them), both directions at once; then all reduce one tensor. NCCL between the first GPUs of
the nodes, or gloo. Out: GATE_FOLDER/network_HOST.jsonl. A line is written before an exchange and one after it, so that an
exchange that hangs names its pair. Also how far each clock is from the first node's.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from launch.check_node import host_name

MAX_ROUNDS = 15


def main() -> None:
    import torch
    import torch.distributed as dist

    rank, size = _world()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(0)
    device = torch.device("cuda:0" if on_gpu else "cpu")
    # This stands outside of the trainer and its parallel.py: it must say what is wrong also where Megatron cannot start.
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", init_method="env://", rank=rank, world_size=size, timeout=timedelta(seconds=30)
    )
    hosts: list[str] = [""] * size
    dist.all_gather_object(hosts, host_name())
    with open(Path(sys.argv[1]) / f"network_{host_name()}.jsonl", "w", encoding="utf-8", buffering=1) as stream:

        def write(**words) -> None:
            print(json.dumps(words), file=stream)

        times = [0.0] * size
        dist.barrier()
        dist.all_gather_object(times, time.time())  # all leave the barrier within milliseconds of each other
        write(clock_skew_seconds=times[rank] - times[0])
        content = torch.ones((256 << 20) if on_gpu else (8 << 20), dtype=torch.uint8, device=device)
        received = torch.empty_like(content)
        for others in rounds(size):
            dist.barrier()
            other = others[rank]
            if other is None:
                continue
            write(pair=hosts[other], begun=time.time())
            seconds = min(_exchange(dist, torch, on_gpu, content, received, other) for _ in range(3))
            write(pair=hosts[other], gb_s=content.numel() / seconds / 1e9)
        dist.barrier()
        dist.all_reduce(content)
        _wait(torch, on_gpu)
        begun = time.monotonic()
        dist.all_reduce(content)
        _wait(torch, on_gpu)
        write(all_reduce_gb_s=2 * (size - 1) / size * content.numel() / (time.monotonic() - begun) / 1e9)
    dist.destroy_process_group()


def _world() -> tuple[int, int]:
    for rank, size in (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def rounds(size: int) -> Iterator[list[int | None]]:
    """For each round the partner of every rank; None: it pauses (an odd number of ranks)."""
    seats = size + size % 2
    for number in range(min(seats - 1, MAX_ROUNDS)):
        circle = [0, *(1 + (number + place) % (seats - 1) for place in range(seats - 1))]
        partners: list[int | None] = [None] * seats
        for left, right in zip(circle[: seats // 2], reversed(circle[seats // 2 :]), strict=True):
            partners[left], partners[right] = right, left
        yield [partner if partner is not None and partner < size else None for partner in partners[:size]]


def _exchange(dist, torch, on_gpu: bool, content, received, other: int) -> float:
    begun = time.monotonic()
    operations = [dist.P2POp(dist.isend, content, other), dist.P2POp(dist.irecv, received, other)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    _wait(torch, on_gpu)
    return time.monotonic() - begun


def _wait(torch, on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
