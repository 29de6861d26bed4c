"""Remove or flag the documents that hold an exam's question; say which in contamination.json."""

import argparse
import os
from pathlib import Path

from megatron_jmed.corpus.decontaminate import REPORT_NAME, decontaminate, merge_decontaminated
from megatron_jmed.corpus.stage import parse_shard
from megatron_jmed.errors import CorpusError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", help="file, folder or glob (not needed with --merge)")
    parser.add_argument("target", type=Path, help="folder to write; a killed run goes on where it was")
    parser.add_argument("--exams", type=Path, nargs="+", required=True, help="folders with exams, translations included")
    parser.add_argument("--action", choices=("remove", "flag"), default="remove", help="flag: keep, with meta field")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
    parser.add_argument("--shard", type=parse_shard, metavar="i/n", help="do every n-th file only, e.g. 1/8; later --merge")
    parser.add_argument("--merge", action="store_true", help="publish the finished shards in TARGET; needs the same --exams")
    max_bad_help = "bad records that are kept aside before the run stops (default: 100; with --merge: what the shards had)"
    parser.add_argument("--max-bad", type=int, help=max_bad_help)
    parser.add_argument("--licence", help="recorded in the manifest (default: what the source's manifest says)")
    parser.add_argument("--overwrite", action="store_true", help="replace a result made from something else")
    words = parser.parse_args()
    if words.merge == (words.source is not None):
        raise CorpusError("give SOURCE and TARGET, or --merge and TARGET alone")
    if words.merge:
        manifest = merge_decontaminated(words.target, words.exams, words.overwrite, words.max_bad)
    else:
        manifest = decontaminate(
            words.source,
            words.target,
            words.exams,
            words.action,
            words.overwrite,
            words.shard,
            workers=words.workers,
            text_field=words.text_field,
            max_bad=100 if words.max_bad is None else words.max_bad,
            licence=words.licence,
        )
    dropped = f", dropped {manifest.counts.dropped}" if manifest.counts.dropped else ""
    report = "the report comes with --merge" if words.shard else f"see {words.target / REPORT_NAME}"
    print(f"{words.target}: {manifest.counts.documents:,} documents{dropped}; {report}")


if __name__ == "__main__":
    run_tool(main)
