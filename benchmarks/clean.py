"""How fast are cleaning and masking, by corpus, beside an earlier state of the code and beside peers, in one run?

    python benchmarks/clean.py CORPORA [--old FOLDER] [--peers PYTHON] [--every N]

FOLDER holds another state of this repository (`git archive COMMIT | tar x -C FOLDER`); each result of both is compared,
counts and details included. PYTHON has hojichar, datatrove, spacy and scrubadub installed, or some of them. Unit: megabytes (10^6
bytes of UTF-8) of text per CPU-second of one process; reading the corpora is not counted. Prints Markdown tables.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

Work = Callable[[dict], object]
REPOSITORY = Path(__file__).resolve().parents[1]


# ---- what is timed: each gives (a name, the work on one record)


def ours() -> list[tuple[str, Work]]:
    from megatron_jmed.corpus.clean import clean_settings, make_clean  # where an earlier state has them too
    from megatron_jmed.corpus.document import Document
    from megatron_jmed.corpus.privacy import build_masker

    def on_documents(transform: Callable) -> Work:
        return lambda record: transform(Document(record["id"], record["text"], "", record["lang"], {}))

    return [("clean", on_documents(make_clean(clean_settings()))), ("mask", on_documents(build_masker()))]


def hojichar() -> list[tuple[str, Work]]:
    """Spelling, length, repetition, ellipses, page furniture and language, as our rules have them."""
    from hojichar import Compose
    from hojichar import document_filters as filters

    cleaning = [
        filters.DocumentNormalizer(), filters.DocumentLengthFilter(min_doc_len=10, max_doc_len=5_000_000),
        filters.HeaderFooterTagsRemover(), filters.SingleCharacterRepetitionFilter(), filters.CharRepetitionRatioFilter(),
        filters.DiscardTooManyEndingEllipsis(), filters.AcceptJapanese(),
    ]  # fmt: skip
    clean, mask = Compose(cleaning), Compose([filters.MaskPersonalInformation()])
    return [("clean", lambda record: clean(record["text"])), ("mask", lambda record: mask(record["text"]))]


def datatrove() -> list[tuple[str, Work]]:
    """Gopher's quality and repetition rules and C4's, all of them on each text; and its e-mail and IP formatter."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.formatters import PIIFormatter

    masker = PIIFormatter()
    rules = [GopherQualityFilter(language="eng"), GopherRepetitionFilter(language="eng"), C4QualityFilter(language="eng")]

    def clean(record: dict) -> list:
        return [rule.filter(Document(text=record["text"], id="")) for rule in rules]

    return [("clean (English only)", clean), ("mask", lambda record: masker.format(record["text"]))]


def scrubadub() -> list[tuple[str, Work]]:
    import scrubadub

    scrubber = scrubadub.Scrubber()
    return [("mask", lambda record: scrubber.clean(record["text"]))]


WAYS = {"now": ours, "old": ours, "hojichar": hojichar, "datatrove": datatrove, "scrubadub": scrubadub}


# ---- one way, in a process of its own


def time_one(way: str, records: Path) -> None:
    """Print, for each kind of work, its CPU-seconds and a digest of what came out."""
    with records.open(encoding="utf-8") as lines:
        loaded = [json.loads(line) for line in lines]
    for name, work in WAYS[way]():
        chosen = loaded
        if "English" in name:
            chosen = [record for record in loaded if record["lang"] == "en"]
        for record in chosen[:20]:
            work(record)
        begin = time.process_time()
        results = [work(record) for record in chosen]
        seconds = time.process_time() - begin
        digest = hashlib.sha256("".join(map(repr, results)).encode()).hexdigest() if way in ("now", "old") else ""
        print(json.dumps({"name": name, "seconds": seconds, "digest": digest, "documents": len(chosen)}), flush=True)


def run(way: str, python: str, code: Path, records: Path) -> list[dict]:
    command = [python, str(Path(__file__).resolve()), str(records), "--one", way]
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=records.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{way} could not be run: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
        return []
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--old", type=Path, help="another state of this repository, its core compiled if it had one")
    parser.add_argument("--peers", help="the python that has the peers")
    parser.add_argument("--every", type=int, default=1, help="every N-th document only, for the peers (they are slow)")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return time_one(given.one, given.corpora)

    from megatron_jmed.corpus.document import read_documents

    ways = [("now", sys.executable, REPOSITORY)]
    ways += [("old", sys.executable, given.old.resolve())] if given.old else []
    peers = [(way, given.peers, REPOSITORY) for way in ("hojichar", "datatrove", "scrubadub")] if given.peers else []
    print("| corpus | documents | MB | way | work | MB per CPU-second | same results |\n|---|--:|--:|---|---|--:|---|")
    total: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for file in sorted(given.corpora.iterdir()):
            documents = list(read_documents(file))
            digests: dict[str, str] = {}
            for way, python, code in ways + peers:
                chosen = documents[:: given.every if (way, python, code) in peers else 1]
                records = Path(folder) / f"{file.name}.jsonl"
                with records.open("w", encoding="utf-8") as out:
                    for one in chosen:
                        out.write(json.dumps({"id": one.id, "text": one.text, "lang": one.lang}) + "\n")
                num_bytes = sum(len(one.text.encode()) for one in chosen)
                for result in run(way, python, code, records):
                    if not result["documents"]:
                        continue
                    name, seconds = result["name"], result["seconds"]
                    digests.setdefault(name, result["digest"])
                    same = ("yes" if digests[name] == result["digest"] else "NO") if way == "old" else ""
                    size = f"{len(chosen):,} | {num_bytes / 1e6:.1f}"
                    print(f"| {file.name} | {size} | {way} | {name} | {num_bytes / 1e6 / seconds:.1f} | {same} |", flush=True)
                    sums = total.setdefault((way, name), [0.0, 0.0])
                    sums[0] += num_bytes
                    sums[1] += seconds
    for (way, name), (num_bytes, seconds) in total.items():
        print(f"| all | | {num_bytes / 1e6:.1f} | {way} | {name} | {num_bytes / 1e6 / seconds:.1f} | |")


if __name__ == "__main__":
    main()
