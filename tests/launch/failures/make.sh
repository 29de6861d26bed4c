#!/bin/bash
# Makes the texts of this folder that can be made without a GPU, as root: `PYTHON=python make.sh TARGET`.
# killed.txt needs a memory cgroup: CGROUP=/sys/fs/cgroup/... (memory.max or memory.limit_in_bytes is set to 1 GiB).
target=${1:?usage: make.sh TARGET}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
export OMP_NUM_THREADS=1
run() { "$python" -m torch.distributed.run --standalone --nproc-per-node 2 "$here/../failing_rank.py" "$@" > "$target/$1.txt" 2>&1; }
for how in memory program segfault peer_gone user_error; do run "$how"; done
disk=$(mktemp -d)
mount -t tmpfs -o size=1m tmpfs "$disk"
run full_disk "$disk"
umount "$disk"
[ -n "${CGROUP:-}" ] && run killed "$CGROUP"
# nobody listens there
timeout 100 "$python" -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-conf join_timeout=5,read_timeout=5 \
  --rdzv-endpoint 192.0.2.1:29500 "$here/../failing_rank.py" none > "$target/unreachable.txt" 2>&1
sed -i "s|$python|python|g; s|$(dirname "$("$python" -c 'import torch; print(torch.__path__[0])')")|site-packages|g; s|$here/../||g; s|$HOME||g" "$target"/*.txt
