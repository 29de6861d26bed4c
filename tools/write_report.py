"""Turn a run folder into one page that needs no network: `python tools/write_report.py RUN` writes RUN/report.html.

`--card HF_FOLDER` also writes the model card HF_FOLDER/README.md; several runs with `--compare PAGE.html` become one page.
"""

import argparse
from pathlib import Path

from megatron_jmed.errors import ExamError, run_tool
from megatron_jmed.evaluate.compare_runs import write_comparison
from megatron_jmed.evaluate.model_card import CardWords, write_card
from megatron_jmed.evaluate.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="+", help="run folder: config.json, metrics.jsonl, scores/ and so on")
    parser.add_argument("--compare", type=Path, metavar="PAGE.html", help="write one page that compares all runs instead")
    parser.add_argument("--card", type=Path, metavar="HF_FOLDER", help="write the model card of the (one) run there as well")
    parser.add_argument("--licence", default="other", help="for the card: the model's licence, by its name on the hub")
    parser.add_argument("--base-model", help="for the card: the hub's id of the model that training began from")
    args = parser.parse_args()
    if args.card and (args.compare or len(args.run) > 1):
        raise ExamError(f"--card {args.card}: a card is of one run; give one, without --compare")
    if args.compare:
        print(write_comparison(args.run, args.compare))
        return
    for run in args.run:
        print(write_report(run))
    if args.card:
        print(write_card(args.run[0], args.card, CardWords(args.licence, args.base_model)))


if __name__ == "__main__":
    run_tool(main)
