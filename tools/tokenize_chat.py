"""Turn conversations into what instruction tuning reads: tokens.bin, tokens.idx, a loss weight a token, and manifest.json."""

import argparse
import os
from pathlib import Path

from megatron_jmed.corpus.chat_tokens import POLICIES, ChatSettings, tokenize_chat
from megatron_jmed.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="file, folder or glob of chat JSON lines (messages, alpaca or sharegpt form)")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece .model file, or a Hugging Face tokenizer.json")
    parser.add_argument("--template", default="llmjp", help="llmjp, a Hugging Face folder, or a .jinja file (default: llmjp)")
    max_help = "of the longest conversation; budget.seq_length + 1 is the most that fits"
    parser.add_argument("--max-tokens", type=int, default=0, help=max_help)
    too_long_help = "what becomes of longer ones: all removed; their last turns; their last tokens (default: drop)"
    parser.add_argument("--too-long", choices=POLICIES, default="drop", help=too_long_help)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
    max_bad_help = "bad records that are kept aside before the run stops (default: 0)"
    parser.add_argument("--max-bad", type=int, default=0, help=max_bad_help)
    parser.add_argument("--licence", help="recorded in the manifest (default: what the source's manifest says)")
    parser.add_argument("--overwrite", action="store_true", help="replace a set made from something else")
    words = parser.parse_args()
    manifest = tokenize_chat(words.source, words.target, ChatSettings(
        tokenizer=words.tokenizer, template=words.template, max_tokens=words.max_tokens, too_long=words.too_long,
        max_bad=words.max_bad, licence=words.licence, workers=words.workers, overwrite=words.overwrite))
    counts, numbers = manifest.counts, manifest.details
    dropped = f", dropped {counts.dropped}" if counts.dropped else ""
    shortened = f", {numbers['shortened']:,} of them shortened" if numbers["shortened"] else ""
    print(f"{words.target}: {counts.documents:,} conversations{shortened}, {numbers['answers']:,} answers, "
          f"{counts.tokens:,} tokens, {numbers['learnt_tokens']:,} of them to learn; the longest has "
          f"{numbers['longest_tokens']:,}{dropped}")


if __name__ == "__main__":
    run_tool(main)
