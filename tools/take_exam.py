"""Let a model sit an exam: `python tools/take_exam.py HF_FOLDER EXAM SCORES_JSON`; a server: its address instead of the folder.

Options are compared by log-likelihood, or the model writes its answers (`--way generate`). The same command on one target goes on
where it stopped, and where it had finished scores the answers anew (`--base`, `--contamination`).
"""

import argparse
from pathlib import Path

from megatron_jmed.errors import run_tool
from megatron_jmed.evaluate.answer import METHODS
from megatron_jmed.evaluate.prompt import TEMPLATES
from megatron_jmed.evaluate.score_table import scores_as_text
from megatron_jmed.evaluate.sitting import SittingSettings, take_exam, years_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", metavar="HF_FOLDER", help="config.json, *.safetensors and a tokenizer; or a server's address")
    parser.add_argument("exam", type=Path, help="year folders (IgakuQA), a file, or a folder of files")
    parser.add_argument("target", type=Path, help="scores file to write, such as RUN/scores/igakuqa.json")
    parser.add_argument("--years", type=years_of, help="such as 2018,2019; default: all in the folder")
    parser.add_argument("--template", choices=tuple(TEMPLATES), default="standard", help="words around it (default standard)")
    parser.add_argument("--way", choices=tuple(METHODS), default="likelihood", help="compare options, or read what is written")
    parser.add_argument("--compare", choices=("choice", "letter"), default="choice", help="the choices' words (default) or letters")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument("--num-shots", type=int, default=0, help="solved examples before each question (default 0)")
    parser.add_argument("--demos", type=Path, help="where they come from; default: the train files, else the exam's other years")
    parser.add_argument("--seed", type=int, default=42, help="which examples are drawn (default 42)")
    parser.add_argument("--limit", type=int, help="ask only the first N questions, for a quick look")
    parser.add_argument("--batch-size", type=int, default=1, help="questions that share a batch (default 1)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="length of a written answer (default 64)")
    parser.add_argument("--contamination", type=Path, nargs="+", default=(), metavar="F", help="the corpora's contamination.json")
    parser.add_argument("--base", type=Path, metavar="SCORES_JSON", help="compare with these scores of another model")
    parser.add_argument("--engine", choices=("transformers", "vllm"), help="what runs the folder (default transformers)")
    parser.add_argument("--model", help="which of a server's models")
    parser.add_argument("--step", type=int, help="training step of this checkpoint, for the report")
    parser.add_argument("--tokens", type=int, help="tokens that it was trained on, for the report")
    args = vars(parser.parse_args())
    address, exam, target = args.pop("address"), args.pop("exam"), args.pop("target")
    settings = SittingSettings(target=args.pop("compare"), contamination=tuple(args.pop("contamination")), **args)
    print(scores_as_text(take_exam(address, exam, target, settings)))


if __name__ == "__main__":
    run_tool(main)
