# megatron_jmed for H100 clusters. NVIDIA's PyTorch image brings CUDA, torch, Transformer Engine and apex built for each
# other; none of them is replaced. Build: docker build -t megatron_jmed .   For Slurm with enroot: enroot import dockerd://...
ARG BASE=nvcr.io/nvidia/pytorch:25.09-py3
FROM ${BASE}

WORKDIR /opt/megatron_jmed
COPY setup.py pyproject.toml README.md ./
COPY megatron_jmed megatron_jmed
COPY tools tools
COPY launch launch
COPY examples examples

# --no-deps for megatron-core: its requirements are in the image, and torch must stay NVIDIA's build.
RUN python -m pip install --no-cache-dir --no-deps "megatron-core==0.16.1" \
 && python -m pip install --no-cache-dir pydantic tqdm orjson isal zstandard pyarrow "sentencepiece>=0.2.2" psutil \
      safetensors tokenizers tensorboard wandb "transformers>=4.56" \
 && python -m pip install --no-cache-dir --no-deps -e . \
 && python -c "import torch; assert torch.version.cuda, 'the image lost its CUDA build of torch'"

ENV OMP_NUM_THREADS=1 CUDA_DEVICE_MAX_CONNECTIONS=1
CMD ["python", "-m", "megatron_jmed.train", "--help"]
