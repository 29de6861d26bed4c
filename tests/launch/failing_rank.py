"""A rank that fails in a way that a user meets: how the texts in `failures/` were made (failures/make.sh).

`torchrun --nproc-per-node 2 failing_rank.py HOW [WHERE]`: two ranks reduce over gloo; rank 1 fails after the first step.
"""

import os
import resource
import signal
import sys

import torch
import torch.distributed as dist

how, where = sys.argv[1], (sys.argv[2:] or [""])[0]
dist.init_process_group("gloo")
rank = dist.get_rank()
weights = torch.nn.Linear(8, 8)


def step() -> None:
    weights(torch.ones(4, 8)).sum().backward()
    dist.all_reduce(weights.weight.grad)


step()
if rank == 1:
    if how == "memory":  # what one process may map; what a container or ulimit sets
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        torch.ones(1 << 40)
    if how == "killed":  # WHERE: a memory cgroup; the kernel kills what grows beyond its limit
        with open(f"{where}/cgroup.procs", "w") as stream:
            stream.write(str(os.getpid()))
        kept = []
        while True:
            kept.append(bytearray(os.urandom(1 << 20)) * 16)
    if how == "full_disk":
        torch.save(torch.ones(1 << 24), f"{where}/checkpoint.pt")
    if how == "program":
        raise KeyError("layers.3.mlp")
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "peer_gone":
        os._exit(0)  # as if its host had vanished: nothing is said
    if how == "user_error":
        print("error: tiny: parallel.ep=3 does not divide model.num_experts=8; choose from [1, 2, 4, 8]", file=sys.stderr)
        sys.exit(2)
step()
dist.destroy_process_group()
