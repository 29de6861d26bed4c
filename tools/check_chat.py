"""Are these conversations, and what will a model learn of them?

Reads chat JSON lines (messages, alpaca or sharegpt form), renders each conversation with a chat template, names every record that
is none, and shows the first ones with what is learnt in [[ ]]. Exit code 0: all are good; 1: some are none; 2: cannot be read.
"""

import argparse
import sys
from pathlib import Path

from megatron_jmed.corpus.chat import BadConversation, llmjp_template, load_template, read_conversations
from megatron_jmed.errors import CorpusError, run_tool

SHOWN_PROBLEMS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="file, folder or pattern")
    parser.add_argument("--template", type=Path, metavar="HF_FOLDER", help="tokenizer with a chat template; default: LLM-jp's form")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="show the first N conversations")
    arguments = parser.parse_args()
    template = load_template(arguments.template) if arguments.template else llmjp_template()
    good = answers = bad = learnt = read = 0
    for where, turns in read_conversations(arguments.source):
        try:
            problem, pieces = (turns, []) if isinstance(turns, str) else ("", template.pieces(turns))
        except BadConversation as refused:
            problem, pieces = str(refused), []
        if problem:
            bad += 1
            if bad <= SHOWN_PROBLEMS:
                print(f"{where}: {problem}")
            continue
        good += 1
        answers += sum(piece.weight > 0 for piece in pieces)
        learnt += sum(len(piece.text) for piece in pieces if piece.weight)
        read += sum(len(piece.text) for piece in pieces)
        if good <= arguments.show:
            print(f"--- {where}\n" + "".join(f"[[{piece.text}]]" if piece.weight else piece.text for piece in pieces))
    print(f"{good:,} conversations, {answers:,} answers to learn: {learnt:,} of {read:,} characters")
    if not good and not bad:
        raise CorpusError(f"{arguments.source} holds no record; expected a conversation a line")
    print(f"{bad:,} records are none" if bad else "every record is a conversation")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    run_tool(main)
