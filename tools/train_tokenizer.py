"""Train a small SentencePiece tokenizer of the LLM-jp kind (unigram, byte fallback, the same special ids)."""

import argparse
from pathlib import Path

from megatron_jmed.corpus.tokenizer import train_tokenizer
from megatron_jmed.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="+", help="files or folders of documents")
    parser.add_argument("model", type=Path, help="file to write")
    parser.add_argument("--vocab-size", type=int, required=True, help="pieces, special and byte pieces included")
    parser.add_argument("--text-field", default="text")
    words = parser.parse_args()
    train_tokenizer(words.source, words.model, words.vocab_size, words.text_field)
    print(f"{words.model}: {words.vocab_size} pieces")


if __name__ == "__main__":
    run_tool(main)
