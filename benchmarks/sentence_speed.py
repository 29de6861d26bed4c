"""How fast are texts split into sentences? `python benchmarks/sentence_speed.py CORPORA [MODEL]` prints the tables of sentences.md.

Megabytes (10^6 bytes of UTF-8) of text per CPU-second of one process: our rules, and nltk's punkt where it can be used.
With a SentencePiece model also the whole tool, one worker, unsplit and split by our rules, in megabytes of text per CPU-second.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from megatron_jmed.corpus.document import Document, read_documents
from megatron_jmed.corpus.sentences import SENTENCE_ENGINES, SentenceSplitter, load_splitter
from megatron_jmed.errors import CorpusError

SPLIT = ["--split-sentences", "--sentence-engine", "rules"]
TOOL = Path(__file__).parents[1] / "tools/tokenize_corpus.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", type=Path, help="folder of corpora; the end of a file's name says its language: NAME_ja.jsonl")
    parser.add_argument("model", type=Path, nargs="?")
    words = parser.parse_args()
    files = sorted(path for path in words.corpora.iterdir() if not path.name.startswith("."))
    splitters = [splitter for engine in SENTENCE_ENGINES[1:] if (splitter := _found(engine))]
    for splitter in splitters:
        print(splitter.record, file=sys.stderr)
    names = [splitter.engine for splitter in splitters]
    print("| corpus | documents | MB |" + "".join(f" sentences, {name} | MB/cpu-s, {name} |" for name in names))
    print("|---|--:|--:|" + "--:|--:|" * len(names))
    megabytes = {}
    for path in files:
        documents = list(read_documents(path))
        megabytes[path] = sum(len(document.text.encode()) for document in documents) / 1e6
        lang = path.name.split(".")[0].rpartition("_")[2]
        cells = []
        for splitter in splitters:
            num, seconds = _measured(splitter, documents, lang)
            cells += [f"{num:,}", f"{megabytes[path] / seconds:.0f}"]
        print(f"| {path.name} | {len(documents):,} | {megabytes[path]:.1f} | {' | '.join(cells)} |", flush=True)
    if words.model:
        print("\n| corpus | whole tool, MB/cpu-s | with --split-sentences |\n|---|--:|--:|")
        for path in files:
            speeds = [megabytes[path] / _tool_seconds(path, words.model, more) for more in ([], SPLIT)]
            print(f"| {path.name} | {speeds[0]:.1f} | {speeds[1]:.1f} |", flush=True)


def _found(engine: str) -> SentenceSplitter | None:
    try:
        return load_splitter(engine)
    except CorpusError as error:
        print(error, file=sys.stderr)
        return None


def _measured(splitter: SentenceSplitter, documents: list[Document], lang: str) -> tuple[int, float]:
    """Sentences, and the least CPU-seconds of three runs."""
    times = []
    for _ in range(3):
        begin = time.process_time()
        num = sum(len(splitter.split(document.text, lang)) for document in documents)
        times.append(time.process_time() - begin)
    return num, min(times)


def _tool_seconds(path: Path, model: Path, more: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, TOOL, path, f"{folder}/set", "--tokenizer", model, "--workers", 1, *more]
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime


if __name__ == "__main__":
    main()
