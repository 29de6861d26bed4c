"""Remove or flag the documents that hold an exam's question; say which in contamination.json."""

import argparse
import os
from pathlib import Path

from megatron_jmed.corpus.decontaminate import REPORT_NAME, decontaminate
from megatron_jmed.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help=".jsonl, .jsonl.gz, .jsonl.zst or .parquet file, or a folder of them")
    parser.add_argument("target", type=Path, help="folder to write; skipped if it already holds this result")
    parser.add_argument("--exams", type=Path, nargs="+", required=True, help="folders with exams, translations included")
    parser.add_argument("--action", choices=("remove", "flag"), default="remove", help="flag: keep, with meta field")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
    parser.add_argument("--max-bad", type=int, default=100, help="bad records that are kept aside before the run stops")
    parser.add_argument("--licence", help="recorded in the manifest (default: what the source's manifest says)")
    parser.add_argument("--overwrite", action="store_true", help="replace a result made from something else")
    words = parser.parse_args()
    manifest = decontaminate(
        words.source,
        words.target,
        words.exams,
        words.action,
        words.overwrite,
        workers=words.workers,
        text_field=words.text_field,
        max_bad=words.max_bad,
        licence=words.licence,
    )
    dropped = f", dropped {manifest.counts.dropped}" if manifest.counts.dropped else ""
    print(f"{words.target}: {manifest.counts.documents:,} documents{dropped}; see {words.target / REPORT_NAME}")


if __name__ == "__main__":
    run_tool(main)
