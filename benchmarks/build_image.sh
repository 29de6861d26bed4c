#!/bin/bash
# Builds the Dockerfile without a registry and without a GPU, and trains in it: a root file system of Debian packages with the CPU
# build of torch takes the name of NVIDIA's image. Needs root, mmdebstrap, buildah, podman; some GB in TARGET. See launch.md.
# PIP_MOUNTS: options for `buildah bud`, such as `-v /etc/pip.conf:/etc/pip.conf:ro`, where pip needs the host's settings.
set -euo pipefail
target=${1:?usage: build_image.sh TARGET [ROOTFS.tar]}
repo=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$target/run"
rootfs=${2:-$target/rootfs.tar}
printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/graph"\nrunroot = "%s/runroot"\n' "$target" "$target" > "$target/storage.conf"
export CONTAINERS_STORAGE_CONF=$target/storage.conf XDG_RUNTIME_DIR=$target/run
[ -e "$rootfs" ] || mmdebstrap --variant=minbase --include=python3,python3-venv,python3-pip,python3-dev,g++,ca-certificates bookworm "$rootfs"
podman import "$rootfs" debian-python
tag=$(sed -n 's/^ARG TAG=//p' "$repo/Dockerfile")
read -ra mounts <<< "${PIP_MOUNTS:-}"
build() { buildah bud --isolation chroot --network host --pull-never "${mounts[@]}" "$@"; }
SECONDS=0
build -t "nvcr.io/nvidia/pytorch:$tag" - <<'BASE'
FROM debian-python
ENV PIP_BREAK_SYSTEM_PACKAGES=1
RUN ln -s python3 /usr/bin/python && python -m pip install --no-cache-dir torch==2.13.0 numpy packaging
BASE
echo "base: $SECONDS s"
SECONDS=0
build --build-arg NEEDS= --build-arg CODE_VERSION="$(git -C "$repo" describe --always)" -t megatron_jmed "$repo"
echo "image: $SECONDS s"
SECONDS=0
container=$(buildah from --pull-never megatron_jmed)
# chroot isolation gives the container a name that nothing resolves, and torchrun meets under its host's name
# shellcheck disable=SC2016
buildah run --isolation chroot --user root "$container" -- bash -c 'echo "127.0.0.1 $(hostname)" >> /etc/hosts
  exec su - jmed -s /bin/bash -c "bash /opt/megatron_jmed/examples/00_tiny.sh"'
echo "demo in the image: $SECONDS s"
