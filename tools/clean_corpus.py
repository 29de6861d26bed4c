"""Clean documents: one spelling, no boilerplate lines, the language found, bad texts filed by rule."""

import argparse
import os
from pathlib import Path

from megatron_jmed.corpus.clean import clean, clean_settings
from megatron_jmed.corpus.clean_rules import RULES
from megatron_jmed.corpus.stage import merge_shards, parse_shard
from megatron_jmed.errors import CorpusError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", help="file, folder or glob (not needed with --merge)")
    parser.add_argument("target", type=Path, help="folder to write; a killed run goes on where it was")
    parser.add_argument("--rules", nargs="+", default=[], metavar="RULE", help=f"default: all of {', '.join(RULES)}")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="thresholds, e.g. min_letters=30")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
    parser.add_argument("--shard", metavar="i/n", help="do every n-th file only, e.g. 1/8; later --merge")
    parser.add_argument("--merge", action="store_true", help="publish the finished shards in TARGET as one result")
    max_bad_help = "bad records that are kept aside before the run stops (default: 100; with --merge: what the shards had)"
    parser.add_argument("--max-bad", type=int, help=max_bad_help)
    parser.add_argument("--licence", help="recorded in the manifest (default: what the source's manifest says)")
    parser.add_argument("--overwrite", action="store_true", help="replace a result made from something else")
    words = parser.parse_args()
    if words.merge == (words.source is not None):
        raise CorpusError("give SOURCE and TARGET, or --merge and TARGET alone")
    if words.merge:
        manifest = merge_shards(words.target, words.overwrite, words.max_bad)
    else:
        manifest = clean(
            words.source,
            words.target,
            clean_settings(words.rules, words.set),
            workers=words.workers,
            text_field=words.text_field,
            max_bad=100 if words.max_bad is None else words.max_bad,
            shard=parse_shard(words.shard) if words.shard else None,
            overwrite=words.overwrite,
            licence=words.licence,
        )
    counts = manifest.counts
    print(f"{words.target}: {counts.documents:,} documents, {counts.characters:,} characters; removed {counts.dropped}")
    print(f"{words.target}: changed {manifest.details['counts']}")


if __name__ == "__main__":
    run_tool(main)
