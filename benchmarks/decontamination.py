"""How many planted exam questions does the index find, in which form, and what does it flag that nobody planted?

    python benchmarks/decontamination.py DATA [--sweep]

DATA holds corpora/ and exams/ (igakuqa, jmmlu). Each IgakuQA question is put, in each form, into one document of the
corpora, at a random position (seeded); a question counts as found if `find` names it in the language it was planted in.
Then all corpora as they are: every hit is printed, by document id and question id. No exam text is printed.
"""

import argparse
import random
import resource
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

from megatron_jmed.corpus.document import Document, read_documents
from megatron_jmed.corpus.exam_index import ExamIndex
from megatron_jmed.corpus.exam_question import Rule
from megatron_jmed.corpus.exam_texts import ExamText, exam_texts
from megatron_jmed.corpus.reader import find_source
from megatron_jmed.corpus.symbols import is_japanese

SEED = 20261122
Form = Callable[[ExamText, random.Random, str], str]


def exact(text: ExamText, rng: random.Random, host: str) -> str:
    return "\n".join([text.stem, *(f"{'abcdefghij'[i]} {choice}" for i, choice in enumerate(text.choices))])


def shuffled(text: ExamText, rng: random.Random, host: str) -> str:
    choices = rng.sample(text.choices, len(text.choices))
    return text.stem + " " + " ".join(f"({i}) {choice}" for i, choice in enumerate(choices, start=1))


def spaced(text: ExamText, rng: random.Random, host: str) -> str:
    """Spaces and line breaks: anywhere in Japanese, only where spaces are in English."""
    if not is_japanese(text.stem):
        return "".join(c if c != " " else rng.choice([" ", "  ", "\n", "\u3000"]) for c in exact(text, rng, host))
    return "".join(c + rng.choice([" ", "\u3000", "\n"]) * (rng.random() < 0.15) for c in exact(text, rng, host))


def other_width(text: ExamText, rng: random.Random, host: str) -> str:
    """Full width becomes half width and the reverse."""
    return "".join(_other_width(c) for c in exact(text, rng, host))


def _other_width(c: str) -> str:
    if "!" <= c <= "~":
        return chr(ord(c) + 0xFEE0)
    return unicodedata.normalize("NFKC", c) if c > "\uff00" else c


def other_punctuation(text: ExamText, rng: random.Random, host: str) -> str:
    table = str.maketrans(
        {"、": "，", "。": "．", ",": "", ".": "", "「": "『", "」": "』", "(": "[", ")": "]", "（": "", "）": ""}
    )
    return exact(text, rng, host).translate(table)


def explained(text: ExamText, rng: random.Random, host: str) -> str:
    """Each choice followed by 30 characters of the host, as in a book of answers."""
    begins = [rng.randrange(max(1, len(host) - 30)) for _ in text.choices]
    return "\n".join([text.stem, *(f"{c}: {host[b : b + 30]}" for c, b in zip(text.choices, begins, strict=True))])


def stem_only(text: ExamText, rng: random.Random, host: str) -> str:
    return text.stem


def edited(rate: float) -> Form:
    """A share of the letters (words in English) replaced by others of the same question."""

    def edit(text: ExamText, rng: random.Random, host: str) -> str:
        whole = exact(text, rng, host)
        joint = "" if is_japanese(text.stem) else " "
        parts = whole.split(" ") if joint else list(whole)
        return joint.join(rng.choice(parts) if rng.random() < rate else part for part in parts)

    return edit


FORMS: dict[str, Form] = {
    "exact": exact,
    "choices shuffled": shuffled,
    "spaces changed": spaced,
    "width changed": other_width,
    "punctuation changed": other_punctuation,
    "choices explained": explained,
    "2 % edited": edited(0.02),
    "5 % edited": edited(0.05),
    "stem without choices": stem_only,
}


def planted(host: str, text: str, rng: random.Random) -> str:
    position = rng.randrange(len(host) + 1)
    return f"{host[:position]}\n{text}\n{host[position:]}"


def detection(index: ExamIndex, texts: list[ExamText], hosts: list[Document]) -> None:
    print(f"{'form':24}" + "".join(f"{language:>32}" for language in ("Japanese", "translation into English")))
    for name, form in FORMS.items():
        rng, cells = random.Random(f"{SEED} {name}"), []
        for language in ("original", "translation"):
            questions = [text for text in texts if text.form == language]
            found = others = 0
            for text in questions:
                host = rng.choice(hosts).text
                hits = index.find(planted(host, form(text, rng, host), rng))
                found += any((hit.question_id, hit.form) == (text.question_id, text.form) for hit in hits)
                others += len({hit.question_id for hit in hits} - {text.question_id})
            cells.append(f"{found}/{len(questions)} {100 * found / len(questions):.2f} % (+{others})")
        print(f"{name:24}" + "".join(f"{cell:>32}" for cell in cells), flush=True)


def false_alarms(index: ExamIndex, corpora: dict[str, list[Document]], quiet: bool) -> None:
    for name, documents in corpora.items():
        begin, flagged = time.process_time(), 0
        for document in documents:
            hits = index.find(document.text)
            flagged += bool(hits)
            for hit in hits if not quiet else ():
                print(f"    {name} {document.id}: {hit.question_id} {hit.form} {hit.kind} {hit.overlap}")
        seconds = time.process_time() - begin
        megabytes = sum(len(document.text.encode()) for document in documents) / 1e6
        print(f"{name:32} {len(documents):7} documents {megabytes:6.1f} MB {megabytes / seconds:6.1f} MB/cpu-s, flagged {flagged}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sweep", action="store_true", help="several n and overlaps instead of the defaults")
    words = parser.parse_args()
    texts = exam_texts(words.data / "exams")
    igakuqa = exam_texts(words.data / "exams" / "igakuqa")
    before = _peak_mb()
    begin = time.process_time()
    index = ExamIndex(texts)
    print(f"index of {len(texts)} texts: {time.process_time() - begin:.1f} CPU-s, peak memory {before:.0f} -> {_peak_mb():.0f} MB")
    corpora = {path.name: list(read_documents(path)) for path in find_source(words.data / "corpora").files}
    hosts = [document for documents in corpora.values() for document in documents]
    rules = [(n, m, c) for n, m in ((5, 3), (6, 4), (8, 5), (13, 8)) for c in (0.5, 0.6, 0.7)] if words.sweep else [None]
    for rule in rules:
        if rule:
            n, m, c = rule
            print(f"\n# n = {n} characters, {m} words; coverage {c}")
            index = ExamIndex(texts, {"characters": Rule(n, c, 40, 20), "words": Rule(m, c, 20, 10)})
        detection(index, igakuqa[:: 8 if rule else 1], hosts)
        false_alarms(index, corpora, quiet=bool(rule))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
