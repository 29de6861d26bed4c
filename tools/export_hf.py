"""A run's latest checkpoint (or any checkpoint folder) -> Hugging Face folder that transformers and vLLM load."""

import argparse
from pathlib import Path

from megatron_jmed.convert.source import open_weights
from megatron_jmed.convert.stored import prefer_huge_pages
from megatron_jmed.convert.weights import DTYPES, export_weights
from megatron_jmed.corpus.chat import find_template
from megatron_jmed.errors import run_tool


def main() -> None:
    prefer_huge_pages()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT", help="run folder, its step_N, or an imported checkpoint")
    parser.add_argument("target", type=Path, metavar="HF_FOLDER")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="SentencePiece model to put beside the weights")
    chat_help = "put a chat template beside the weights: llmjp, a Hugging Face folder, or a .jinja file; give that of the tuning"
    parser.add_argument("--chat-template", metavar="TEMPLATE", help=chat_help)
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default: as in the checkpoint")
    parser.add_argument("--style", choices=("4", "5"), default="4", help="key names of transformers 4 (read by all) or 5")
    parser.add_argument("--workers", type=int, metavar="N", help="threads; default: cores, while memory stays below 12 GiB")
    arguments = parser.parse_args()
    source = open_weights(arguments.source)
    template = find_template(arguments.chat_template) if arguments.chat_template else None
    model = export_weights(source, arguments.target, arguments.tokenizer, arguments.dtype, arguments.workers, arguments.style,
                           template)
    kind = "MixtralForCausalLM" if model.num_experts else "LlamaForCausalLM"
    print(f"{source.name} -> {arguments.target}: {kind}, {model.num_layers} layers, vocabulary {model.vocab_size}")


if __name__ == "__main__":
    run_tool(main)
