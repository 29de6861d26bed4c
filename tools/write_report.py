"""Turn a run folder into one page that needs no network: `python tools/write_report.py RUN` writes RUN/report.html."""

import argparse
from pathlib import Path

from megatron_jmed.errors import run_tool
from megatron_jmed.evaluate.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder: config.json, metrics.jsonl, scores/ and so on")
    print(write_report(parser.parse_args().run))


if __name__ == "__main__":
    run_tool(main)
