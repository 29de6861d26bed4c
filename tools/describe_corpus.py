"""Describe token sets: datasheet.json (every number), datasheet.md and one self-contained datasheet.html."""

import argparse
import os
from pathlib import Path

from megatron_jmed.corpus.datasheet import HTML_NAME, DescribeSettings, describe
from megatron_jmed.corpus.profile import ProfileSettings
from megatron_jmed.corpus.shards import parse_shard
from megatron_jmed.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("token_sets", type=Path, nargs="+", metavar="TOKEN_SET", help="folder of tools/tokenize_corpus.py")
    parser.add_argument("target", type=Path, help="folder to write; skipped if it already holds this result")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the SentencePiece .model file of all the sets")
    parser.add_argument("--terms", type=Path, help="list of medical terms, lines of `language TAB term`")
    parser.add_argument("--title", default="Datasheet of the corpus")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
    parser.add_argument("--shard", type=parse_shard, metavar="i/n", help="describe every n-th set; then run without --shard")
    parser.add_argument("--seed", type=int, default=1, help="which documents are sampled")
    parser.add_argument("--sample-documents", type=int, default=2000, help="of each source and language")
    parser.add_argument("--shown-documents", type=int, default=3, help="samples to print, of each source and language")
    parser.add_argument("--overwrite", action="store_true", help="replace a datasheet made from something else")
    words = parser.parse_args()
    settings = DescribeSettings(
        tokenizer=words.tokenizer,
        terms=words.terms,
        title=words.title,
        profile=ProfileSettings(
            seed=words.seed, sample_documents=words.sample_documents, shown_documents=words.shown_documents
        ),
        workers=words.workers,
        overwrite=words.overwrite,
    )
    manifest = describe(words.token_sets, words.target, settings, words.shard)
    if manifest is None:
        index, num_shards = words.shard
        print(f"{words.target}: shard {index} of {num_shards} is described; after all of them run again without --shard")
        return
    counts = manifest.counts
    totals = f"{counts.documents:,} documents, {counts.characters:,} characters, {counts.tokens:,} tokens"
    print(f"{words.target / HTML_NAME}: {totals}")


if __name__ == "__main__":
    run_tool(main)
