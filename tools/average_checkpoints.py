"""Average the weights of several checkpoints of one model into a new one: weights only, for `init`, export or exams."""

import argparse
from pathlib import Path

from megatron_jmed.convert.average import average_checkpoints
from megatron_jmed.convert.stored import prefer_huge_pages
from megatron_jmed.errors import run_tool


def main() -> None:
    prefer_huge_pages()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="step_N folders, or runs for their latest")
    parser.add_argument("--target", type=Path, required=True, metavar="FOLDER", help="the checkpoint to write")
    parser.add_argument("--weights", type=float, nargs="+", metavar="W", help="relative, one for each; default: all alike")
    parser.add_argument("--workers", type=int, metavar="N", help="threads; default: cores, while memory stays below 12 GiB")
    arguments = parser.parse_args()
    model = average_checkpoints(arguments.checkpoints, arguments.target, arguments.weights, arguments.workers)
    print(f"{arguments.target}: the average of {len(arguments.checkpoints)} checkpoints, {model.num_layers} layers, "
          f"{model.num_experts or 'no'} experts")


if __name__ == "__main__":
    run_tool(main)
