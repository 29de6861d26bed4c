"""A run's latest checkpoint (or any checkpoint folder) -> Hugging Face folder that transformers and vLLM load."""

import argparse
from pathlib import Path

from megatron_jmed.convert.weights import export_hf
from megatron_jmed.errors import run_tool
from megatron_jmed.run_folder import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT", help="run folder, its step_N, or an imported checkpoint")
    parser.add_argument("target", type=Path, metavar="HF_FOLDER")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="SentencePiece model to put beside the weights")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="default: as in the checkpoint")
    arguments = parser.parse_args()
    checkpoint = RunFolder(arguments.source).latest_checkpoint() or arguments.source
    model = export_hf(checkpoint, arguments.target, arguments.tokenizer, arguments.dtype)
    print(f"{checkpoint} -> {arguments.target}: MixtralForCausalLM, {model.num_layers} layers, vocabulary {model.vocab_size}")


if __name__ == "__main__":
    run_tool(main)
