"""Mask patient identifiers: each becomes its kind, such as [NAME]; the manifest counts them."""

import argparse
import os
from pathlib import Path

from megatron_jmed.corpus.privacy import KINDS, mask_corpus
from megatron_jmed.corpus.stage import merge_shards, parse_shard
from megatron_jmed.errors import CorpusError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", help="file, folder or glob (not needed with --merge)")
    parser.add_argument("target", type=Path, help="folder to write; a killed run goes on where it was")
    parser.add_argument("--kinds", nargs="+", default=KINDS, metavar="KIND", help=f"default: all of {', '.join(KINDS)}")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
    parser.add_argument("--shard", type=parse_shard, metavar="i/n", help="do every n-th file only, e.g. 1/8; later --merge")
    parser.add_argument("--merge", action="store_true", help="publish the finished shards in TARGET as one result")
    max_bad_help = "bad records that are kept aside before the run stops (default: 100; with --merge: what the shards had)"
    parser.add_argument("--max-bad", type=int, help=max_bad_help)
    parser.add_argument("--licence", help="recorded in the manifest (default: what the source's manifest says)")
    parser.add_argument("--overwrite", action="store_true", help="replace a result made from something else")
    words = vars(parser.parse_args())
    source, target, merge = words.pop("source"), words.pop("target"), words.pop("merge")
    if merge == (source is not None):
        raise CorpusError("give SOURCE and TARGET, or --merge and TARGET alone")
    if merge:
        manifest = merge_shards(target, words["overwrite"], words["max_bad"])
    else:
        manifest = mask_corpus(source, target, **words | {"max_bad": 100 if words["max_bad"] is None else words["max_bad"]})
    print(f"{target}: {manifest.counts.documents:,} documents; {manifest.details['counts'] or 'nothing to mask'}")


if __name__ == "__main__":
    run_tool(main)
