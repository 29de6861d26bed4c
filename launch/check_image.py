"""Has this image (or venv) what the trainer needs, in the versions that it was tested with? Ends an image's build if not.

`python launch/check_image.py [--needs cuda,transformer_engine]`: the pins of setup.py, and that torch is a CUDA build and
Transformer Engine is there, where asked. Prints the versions, which stand in the build's log. Needs no GPU.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path

SETUP = Path(__file__).resolve().parents[1] / "setup.py"
SHOWN = ("megatron_jmed", "torch", "megatron-core", "transformer-engine", "triton", "numpy", "sentencepiece", "safetensors",
         "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(prog="launch/check_image.py")
    parser.add_argument("--needs", default="", help="of cuda, transformer_engine; separated by commas")
    needs = [word for word in parser.parse_args().needs.split(",") if word]
    for name in SHOWN:
        print(f"{name:20} {version(name) or '-'}")
    found = [*pin_problems(SETUP.read_text(encoding="utf-8")), *stack_problems(needs)]
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(2 if found else 0)


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def pin_problems(setup: str) -> list[str]:
    """Where an installed version is not the one that setup.py pins with ==; Triton comes with torch."""
    found = []
    for name, pinned in sorted(set(re.findall(r'"([\w-]+)==([\w.]+)"', setup))):
        if version(name) != pinned and name != "triton":
            found.append(f"{name} is {version(name) or 'missing'}, setup.py says {pinned}")
    return found


def stack_problems(needs: list[str]) -> list[str]:
    """What is missing of torch's CUDA build and Transformer Engine."""
    import torch

    found = []
    if "cuda" in needs and not torch.version.cuda:
        found.append(f"torch {torch.__version__} is no CUDA build: the base image's torch was replaced")
    if "transformer_engine" in needs and importlib.util.find_spec("transformer_engine") is None:
        found.append("Transformer Engine is missing")
    for name in ("megatron.core", "megatron_jmed.config"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            found.append(f"{name} cannot be imported: {error}")
    return found


if __name__ == "__main__":
    main()
