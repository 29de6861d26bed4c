"""How many of the labelled identifiers are found? `python benchmarks/privacy_table.py` prints the table for privacy.md.

The sentences are tests/corpus/privacy_LANG.jsonl; odd lines were used to develop the rules, even lines only to report.
A hit has the labelled kind, start and end; `covered` counts labelled spans of which no character stays readable.
With folders or files behind it: counts by kind and megabytes per CPU-second there.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from megatron_jmed.corpus.document import read_documents
from megatron_jmed.corpus.privacy import KINDS, find_identifiers

SENTENCES = Path(__file__).parents[1] / "tests/corpus"
Triple = tuple[str, int, int]


@dataclass
class Score:
    """Counts of one kind in one language."""

    labelled: int = 0
    found: int = 0
    hits: int = 0
    covered: int = 0

    @property
    def precision(self) -> float:
        return self.hits / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        return self.hits / self.labelled if self.labelled else 1.0


@dataclass
class Result:
    scores: dict[str, Score] = field(default_factory=lambda: {kind: Score() for kind in KINDS})
    errors: list[str] = field(default_factory=list)
    sentences: int = 0
    traps: int = 0


def sentences(lang: str, half: str) -> list[tuple[str, set[Triple]]]:
    """The labelled sentences of a half: "develop" (lines 1, 3, ...) or "report" (lines 2, 4, ...)."""
    lines = (SENTENCES / f"privacy_{lang}.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = [json.loads(line) for line in lines[0 if half == "develop" else 1 :: 2]]
    return [(record["text"], {tuple(span) for span in record["spans"]}) for record in chosen]


def evaluate(lang: str, half: str) -> Result:
    """Compare what is found with the labels."""
    result = Result()
    for text, labelled in sentences(lang, half):
        found = {tuple(item) for item in find_identifiers(text, lang)}
        masked = {place for _, start, end in found for place in range(start, end)}
        result.sentences += 1
        result.traps += not labelled
        for kind in KINDS:
            of_kind = {item for item in labelled if item[0] == kind}
            score = result.scores[kind]
            score.labelled += len(of_kind)
            score.found += sum(item[0] == kind for item in found)
            score.hits += len(of_kind & found)
            score.covered += sum(masked.issuperset(range(start, end)) for _, start, end in of_kind)
        for what, wrong in (("missed", labelled - found), ("false alarm", found - labelled)):
            for kind, start, end in sorted(wrong):
                result.errors.append(f"{lang} {what}, {kind}: `{text[:start]}⟦{text[start:end]}⟧{text[end:]}`")
    return result


def table(half: str) -> str:
    """The Markdown table of both languages and the errors below it."""
    rows = ["| kind | lang | labelled | found | precision | recall | covered |", "|---|---|--:|--:|--:|--:|--:|"]
    errors, notes = [], []
    for lang in ("ja", "en"):
        result = evaluate(lang, half)
        for kind, score in result.scores.items():
            ratios = f"{score.precision:.3f} | {score.recall:.3f}"
            rows.append(f"| {kind} | {lang} | {score.labelled} | {score.found} | {ratios} | {score.covered} |")
        notes.append(f"{lang}: {result.sentences} sentences, {result.traps} of them without an identifier")
        errors += [f"- {error}" for error in result.errors]
    return "\n".join([f"### Half: {half} ({'; '.join(notes)})", "", *rows, "", *(errors or ["No misses, no false alarms."])])


def corpus_row(path: Path) -> str:
    """Counts by kind of a corpus, and the speed of the search alone."""
    counts: Counter[str] = Counter()
    num_bytes = num_documents = 0
    seconds = 0.0
    for document in read_documents(path):
        begin = time.process_time()
        found = find_identifiers(document.text, document.lang)
        seconds += time.process_time() - begin
        counts.update(item.kind for item in found)
        num_bytes += len(document.text.encode())
        num_documents += 1
    kinds = ", ".join(f"{kind} {counts[kind]:,}" for kind in KINDS if counts[kind]) or "none"
    return f"| {path.name} | {num_documents:,} | {num_bytes / 1e6:.1f} | {num_bytes / 1e6 / seconds:.1f} | {kinds} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path, nargs="*", help="files or folders of documents to count in")
    paths = parser.parse_args().corpora
    print(table("report"), table("develop"), sep="\n\n")
    if paths:
        print("\n| corpus | documents | MB | MB per CPU-second | found |\n|---|--:|--:|--:|---|")
    for path in paths:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            print(corpus_row(file), flush=True)


if __name__ == "__main__":
    main()
