"""Remove exact and near duplicates, within and across sources; of each group the first document stays."""

import argparse
import os
from pathlib import Path

from megatron_jmed.corpus.dedup import DedupSettings, dedup
from megatron_jmed.corpus.minhash import MinHash
from megatron_jmed.corpus.stage import parse_shard
from megatron_jmed.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="+", help="files or folders of documents; copies in later ones go")
    parser.add_argument("target", type=Path, help="folder to write; skipped if it already holds this result")
    parser.add_argument("--ngram", type=int, default=5, help="characters (Japanese, Chinese, Korean, Thai) or words")
    parser.add_argument("--bands", type=int, default=20)
    parser.add_argument("--rows", type=int, default=10, help="hash functions per band")
    parser.add_argument("--threshold", type=float, default=0.8, help="estimated Jaccard similarity of near duplicates")
    parser.add_argument("--seed", type=int, default=0, help="which hash functions are drawn")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--max-bad", type=int, default=100, help="bad records that are kept aside before the run stops")
    parser.add_argument("--licence", help="recorded in the manifest (default: what the sources' manifests say)")
    parser.add_argument("--shard", type=parse_shard, help="i/n: only compute the keys of the i-th of n shares of the files")
    parser.add_argument("--merge", action="store_true", help="after all shards: find the duplicates and write the documents")
    parser.add_argument("--memory-mib", type=int, default=1024, help="for all processes, beside about 100 MiB for each")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
    parser.add_argument("--overwrite", action="store_true", help="replace a result made from something else")
    words = parser.parse_args()
    settings = DedupSettings(
        minhash=MinHash(words.ngram, words.bands, words.rows, words.seed),
        threshold=words.threshold,
        text_field=words.text_field,
        max_bad=words.max_bad,
        licence=words.licence,
        workers=words.workers,
        memory_mib=words.memory_mib,
        overwrite=words.overwrite,
    )
    manifest = dedup(words.source, words.target, settings, words.shard, words.merge)
    if manifest is None:
        index, num_shards = words.shard
        print(f"{words.target}: keys of shard {index} of {num_shards} are done; after all shards run again with --merge")
        return
    counts = manifest.counts
    print(f"{words.target}: {counts.documents:,} documents, {counts.characters:,} characters, dropped {counts.dropped or 'none'}")


if __name__ == "__main__":
    run_tool(main)
