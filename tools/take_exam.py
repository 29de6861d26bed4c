"""Let a Hugging Face folder sit an exam: `python tools/take_exam.py HF_FOLDER EXAM_FOLDER SCORES_JSON`.

Options are compared by log-likelihood; several runs of this command on one target go on where the last one stopped.
"""

import argparse
from pathlib import Path

from megatron_jmed.errors import run_tool
from megatron_jmed.evaluate.score import scores_as_text
from megatron_jmed.evaluate.sitting import SittingSettings, take_exam


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("hf_folder", type=Path, help="config.json, *.safetensors and a tokenizer")
    parser.add_argument("exam_folder", type=Path, help="IgakuQA's layout: year folders holding 112-A.jsonl and so on")
    parser.add_argument("target", type=Path, help="scores file to write, such as RUN/scores/igakuqa.json")
    parser.add_argument("--years", type=_years, help="such as 2018,2019; default: all in the folder")
    parser.add_argument("--num-shots", type=int, default=0, help="solved examples before each question (default 0)")
    parser.add_argument("--demos", type=Path, help="where they come from; default: the exam folder's other years")
    parser.add_argument("--seed", type=int, default=42, help="which examples are drawn (default 42)")
    parser.add_argument("--limit", type=int, help="ask only the first N questions, for a quick look")
    args = vars(parser.parse_args())
    scores = take_exam(args.pop("hf_folder"), args.pop("exam_folder"), args.pop("target"), SittingSettings(**args))
    print(scores_as_text(scores))


def _years(text: str) -> tuple[int, ...]:
    return tuple(int(year) for year in text.split(","))


if __name__ == "__main__":
    run_tool(main)
