# megatron_jmed for H100 and H200 clusters. NVIDIA's PyTorch image brings CUDA, torch, Transformer Engine and apex built for each
# other; none of them is replaced.
#   docker build -t megatron_jmed .                        as a tag; for a run that must be repeated name the base by its digest:
#   docker build --build-arg DIGEST=sha256:... -t megatron_jmed .     (docker buildx imagetools inspect nvcr.io/nvidia/pytorch:TAG)
# enroot import dockerd://megatron_jmed makes the .sqsh for pyxis and enroot; for Apptainer see launch/megatron_jmed.def.
ARG TAG=25.09-py3
ARG DIGEST=
FROM nvcr.io/nvidia/pytorch:${TAG}${DIGEST:+@${DIGEST}}

ARG TAG
ARG DIGEST
ARG CODE_VERSION=unknown
# what a build without a GPU stack (a test on another base) leaves out; a real image has it
ARG NEEDS=cuda,transformer_engine
LABEL org.opencontainers.image.title="megatron_jmed" \
      org.opencontainers.image.description="Training of large Mixture-of-Experts language models for medicine" \
      org.opencontainers.image.version="${CODE_VERSION}" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/pytorch:${TAG}" \
      org.opencontainers.image.base.digest="${DIGEST}"

WORKDIR /opt/megatron_jmed
COPY setup.py pyproject.toml README.md ./
COPY megatron_jmed megatron_jmed
COPY tools tools
COPY launch launch
COPY examples examples

# --no-deps for megatron-core: its requirements are in the image, and torch must stay NVIDIA's build. CODE_VERSION: there is no .git.
# The others are free within setup.py's bounds; the build's log says which came (check_image.py), a digest of the built image holds them.
# hadolint ignore=DL3013
RUN echo "${CODE_VERSION}" > CODE_VERSION \
 && python -m pip install --no-cache-dir --no-deps "megatron-core==0.16.1" \
 && python -m pip install --no-cache-dir pydantic tqdm numpy orjson isal zstandard pyarrow "sentencepiece>=0.2.2" xxhash \
      "pycld2==0.42" "scipy>=1.11" "jinja2>=3.1" psutil safetensors tokenizers tensorboard wandb "transformers>=4.56" \
 && python -m pip install --no-cache-dir --no-deps -e . \
 && python launch/check_image.py --needs "${NEEDS}" \
 && useradd --create-home jmed

# Under Slurm the ranks run as the user who submits; this is for `docker run`.
USER jmed
ENV OMP_NUM_THREADS=1 CUDA_DEVICE_MAX_CONNECTIONS=1
CMD ["python", "-m", "megatron_jmed.train", "--help"]
