#!/usr/bin/env bash
# What does a bare Hopper machine without a network need beside this checkout?
#   bash benchmarks/hopper_bundle.sh FOLDER [TRANSFORMER_ENGINE.tar.xz]     here, where PyPI is reached
#   bash benchmarks/hopper.sh FOLDER RESULTS                                there
# FOLDER gets wheels (about 15 MiB) for a machine that has torch 2.11 or later, Triton, pytest and transformers; PYTHON_VERSION
# (3.12) is that machine's. Transformer Engine is optional: an archive with transformer_engine/ at its top, built for that torch.
set -euo pipefail
folder=${1:?usage: bash benchmarks/hopper_bundle.sh FOLDER [TRANSFORMER_ENGINE.tar.xz]}
most_mib=64
mkdir -p "$folder/wheels"
platforms=()
for version in 2_28 2_27 2_24 2_17 2_12 2_5; do platforms+=(--platform "manylinux_${version}_x86_64"); done
pydantic_core=$(python3 -m pip download -q --no-deps --no-binary=:none: -d "$folder/wheels" pydantic &&
  unzip -p "$folder"/wheels/pydantic-*.whl '*/METADATA' | sed -n 's/^Requires-Dist: pydantic-core *\(==[0-9.]*\).*/\1/p')
python3 -m pip download -q --no-deps --only-binary=:all: --implementation cp --python-version "${PYTHON_VERSION:-3.12}" \
  "${platforms[@]}" --platform manylinux2014_x86_64 -d "$folder/wheels" \
  megatron-core==0.16.1 "pydantic-core$pydantic_core" annotated-types typing-inspection orjson isal zstandard 'sentencepiece>=0.2.2' \
  pytest-timeout
if [ -n "${2:-}" ]; then cp "$2" "$folder/transformer_engine.tar.xz"; fi
mib=$(du -sm "$folder" | cut -f1)
[ "$mib" -lt "$most_mib" ] || { echo "error: $folder holds $mib MiB; at most $most_mib" >&2; exit 2; }
echo "$folder: $mib MiB; copy it and this checkout to the GPU machine, then: bash benchmarks/hopper.sh $folder RESULTS"
