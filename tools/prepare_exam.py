"""Make an exam a sheet that a run can answer while it trains: `python tools/prepare_exam.py EXAM SHEET.jsonl --tokenizer FILE`.

Then train with exams.sheets=["SHEET.jsonl"] exams.every_tokens=N; the answers lie in RUN/exams/, and
`python tools/score_exams.py RUN` makes them RUN/scores/NAME_step_N.json, which the report draws over tokens. EXAM is what
tools/take_exam.py takes; options are compared by likelihood.
"""

import argparse
from pathlib import Path

from megatron_jmed.errors import ConfigError, run_tool
from megatron_jmed.evaluate.prompt import TEMPLATES
from megatron_jmed.evaluate.sheet import write_sheet
from megatron_jmed.evaluate.sitting import SittingSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exam", type=Path)
    parser.add_argument("sheet", type=Path, metavar="SHEET.jsonl", help="its name is the exam's")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="FILE", help="SentencePiece model of the run's data")
    parser.add_argument("--max-tokens", type=int, default=4096, metavar="N",
                        help="budget.seq_length of the run (default: %(default)s)")
    parser.add_argument("--years", type=int, nargs="+")
    parser.add_argument("--template", choices=tuple(TEMPLATES), default="standard", help="words around the question")
    parser.add_argument("--target", choices=("choice", "letter"), default="choice",
                        help="what is scored: an option's text or letter")
    parser.add_argument("--chat", action="store_true", help="put the prompt into LLM-jp's chat template")
    parser.add_argument("--num-shots", type=int, default=0, help="solved examples before each question")
    parser.add_argument("--limit", type=int, help="ask only the first N questions")
    words = parser.parse_args()
    if words.sheet.suffix != ".jsonl":
        raise ConfigError(f"{words.sheet}: a sheet is a .jsonl file; call it {words.sheet.with_suffix('.jsonl')}")
    settings = SittingSettings(years=tuple(words.years) if words.years else None, template=words.template, target=words.target,
                               chat=words.chat, num_shots=words.num_shots, limit=words.limit)
    number = write_sheet(words.exam, words.tokenizer, words.sheet, settings, words.max_tokens)
    print(f"{words.sheet}: {number} questions")


if __name__ == "__main__":
    run_tool(main)
