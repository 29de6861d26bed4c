"""Hugging Face folder or legacy Megatron folder -> checkpoint folder that any layout can start from."""

import argparse
from pathlib import Path

from megatron_jmed.convert.source import open_weights
from megatron_jmed.convert.stored import prefer_huge_pages
from megatron_jmed.convert.tokenizer import num_pieces
from megatron_jmed.convert.weights import DTYPES, import_weights
from megatron_jmed.errors import CheckpointError, run_tool


def main() -> None:
    prefer_huge_pages()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="FOLDER",
                        help="Mixtral or Llama in safetensors, or a legacy folder (mp_rank_XX/model_optim_rng.pt)")
    parser.add_argument("target", type=Path, metavar="CHECKPOINT", help="folder to write; use it as `init` of a run")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="for Hugging Face folders of several number formats")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="pieces of the tokenizer, for legacy folders that do not say")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="SentencePiece model, in the place of --vocab-size")
    parser.add_argument("--workers", type=int, metavar="N", help="threads; default: cores, while memory stays below 12 GiB")
    arguments = parser.parse_args()
    if arguments.tokenizer and arguments.vocab_size:
        raise CheckpointError("--vocab-size and --tokenizer say the same; give one of them")
    vocab_size = num_pieces(arguments.tokenizer) if arguments.tokenizer else arguments.vocab_size
    source = open_weights(arguments.source, vocab_size, DTYPES.get(arguments.dtype))
    model = import_weights(source, arguments.target, arguments.workers)
    kind = f"{model.num_experts} experts" if model.num_experts else "dense"
    print(f"{arguments.target}: {model.num_layers} layers, {kind}, vocabulary {model.vocab_size}; "
          f'start a run from it with init="{arguments.target}"')


if __name__ == "__main__":
    run_tool(main)
