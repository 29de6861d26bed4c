"""Turn documents into a token set that the trainer reads: tokens.bin, tokens.idx and manifest.json."""

import argparse
import os
from pathlib import Path

from megatron_jmed.corpus.tokenizer import ENGINES, FAMILIES
from megatron_jmed.corpus.tokens import TokenizeSettings, tokenize
from megatron_jmed.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help=".jsonl, .jsonl.gz, .jsonl.zst or .parquet file, or a folder of them")
    parser.add_argument("target", type=Path, help="folder to write; skipped if it already holds this result")
    parser.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece .model file")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
    parser.add_argument("--no-bos", action="store_true", help="do not put <s> before each document")
    parser.add_argument("--no-eos", action="store_true", help="do not put </s> after each document")
    engine_help = "native: the C++ core, same ids; default: native where it is compiled and knows the model"
    parser.add_argument("--engine", choices=ENGINES, default="auto", help=engine_help)
    family_help = f"whose ids: {', '.join(f'{name} = {versions}' for name, versions in FAMILIES.items())}"
    parser.add_argument("--family", choices=FAMILIES, default="float", help=family_help)
    parser.add_argument("--max-bad", type=int, default=100, help="bad records that are kept aside before the run stops")
    parser.add_argument("--licence", help="recorded in the manifest (default: what the source's manifest says)")
    parser.add_argument("--overwrite", action="store_true", help="replace a token set made from something else")
    words = parser.parse_args()
    settings = TokenizeSettings(
        tokenizer=words.tokenizer,
        text_field=words.text_field,
        bos=not words.no_bos,
        eos=not words.no_eos,
        max_bad=words.max_bad,
        licence=words.licence,
        family=words.family,
        engine=words.engine,
        workers=words.workers,
        overwrite=words.overwrite,
    )
    counts = tokenize(words.source, words.target, settings).counts
    dropped = f", dropped {counts.dropped}" if counts.dropped else ""
    totals = f"{counts.documents:,} documents, {counts.characters:,} characters, {counts.tokens:,} tokens"
    print(f"{words.target}: {totals}{dropped}")


if __name__ == "__main__":
    run_tool(main)
