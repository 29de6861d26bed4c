"""Hugging Face folder (Mixtral shape, safetensors) -> checkpoint folder that any layout can start from."""

import argparse
from pathlib import Path

from megatron_jmed.convert.weights import import_hf
from megatron_jmed.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="HF_FOLDER")
    parser.add_argument("target", type=Path, metavar="CHECKPOINT", help="folder to write; use it as `init` of a run")
    arguments = parser.parse_args()
    model = import_hf(arguments.source, arguments.target)
    print(f"{arguments.target}: {model.num_layers} layers, {model.num_experts} experts, vocabulary {model.vocab_size}; "
          f'start a run from it with init="{arguments.target}"')


if __name__ == "__main__":
    run_tool(main)
