"""Make a small exam of plain text: `python tools/make_cloze.py SOURCE... TARGET.jsonl --questions N --seed S`.

Each question is the beginning of a document and four sentences, of which one follows. SOURCE is text that no run was trained on,
or, with --valid-ratio R, the very text that was tokenised for runs with data.valid_ratio=R: then its last documents are taken, on
which those runs do not train. Put it with `tools/take_exam.py HF_FOLDER TARGET.jsonl SCORES_JSON --template minimal`.
"""

import argparse
import json
from pathlib import Path

from megatron_jmed.corpus.document import read_documents
from megatron_jmed.errors import CorpusError, run_tool
from megatron_jmed.evaluate.cloze import held_out, make_cloze
from megatron_jmed.evaluate.rows import write_once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="files, folders or globs of documents")
    parser.add_argument("target", type=Path, metavar="TARGET.jsonl")
    parser.add_argument("--questions", type=int, required=True, help="in all; of each language as many as chance gives")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--valid-ratio", type=float, help="only the tail of each SOURCE that runs with this data.valid_ratio keep out"
    )
    parser.add_argument("--context-characters", type=int, default=240, help="length of the beginning (default 240)")
    words = parser.parse_args()
    if words.target.suffix != ".jsonl":
        raise CorpusError(f"{words.target}: an exam of one's own is a JSONL file; give a name such as cloze.jsonl")
    if words.questions < 1 or (words.valid_ratio is not None and not 0 < words.valid_ratio < 1):
        raise CorpusError(f"--questions {words.questions} --valid-ratio {words.valid_ratio}: at least 1, and between 0 and 1")
    if words.context_characters < 1:
        raise CorpusError(f"--context-characters {words.context_characters}: a question shows at least 1")
    documents = []
    for source in words.sources:
        every = list(read_documents(source))
        documents += every if words.valid_ratio is None else held_out(every, words.valid_ratio)
    rows = make_cloze(documents, words.questions, words.seed, words.context_characters)
    write_once(words.target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    langs = {lang: sum(row["lang"] == lang for row in rows) for lang in sorted({row["lang"] for row in rows})}
    print(f"{words.target}: {len(rows)} questions from {len(documents)} documents ({langs}); guessing is right in 25 %")


if __name__ == "__main__":
    run_tool(main)
