"""Score what a run answered while it trained: `python tools/score_exams.py RUN` writes RUN/scores/NAME_step_N.json for each file of
RUN/exams/."""

import argparse
from pathlib import Path

from megatron_jmed.errors import ExamError, run_tool
from megatron_jmed.evaluate.sheet import score_answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sheet", type=Path, help="where the sheet lies now, if it was moved")
    parser.add_argument("--contamination", type=Path, nargs="*", default=[],
                        help="contamination.json of tools/decontaminate_corpus.py")
    words = parser.parse_args()
    answers = sorted(words.run.glob("exams/*_step_*.json"))
    if not answers:
        raise ExamError(f"{words.run}/exams holds no answers; train with exams.sheets and exams.every_tokens, see "
                        "tools/prepare_exam.py")
    (words.run / "scores").mkdir(exist_ok=True)
    for path in answers:
        scores = score_answers(path, words.run / "scores" / path.name, words.contamination, words.sheet)
        accuracy = scores["accuracy"][scores["methods"][0]]
        print(f"{words.run / 'scores' / path.name}: {accuracy['num_correct']}/{accuracy['num_scored']}, "
              f"{scores['tokens']:,} tokens")


if __name__ == "__main__":
    run_tool(main)
