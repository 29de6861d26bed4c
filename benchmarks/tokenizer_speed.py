"""How fast is the native core against sentencepiece, and do both give the same ids?

    python benchmarks/tokenizer_speed.py CORPORA MODEL [--repeat 3] [--limit-mb 40]

Prints Markdown tables. Unit: megabytes (10^6) of UTF-8 text per CPU-second (user + system), best of --repeat. With another
sentencepiece on the path (0.2.1), its family of ids is compared instead. The whole tool: tokenize_peers.py.
"""

import argparse
import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentencepiece

from megatron_jmed.native import VERSION, _core, sums_in_double


def cpu_seconds(work: Callable[[], object], repeat: int = 1) -> float:
    def used() -> float:
        each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in each)

    best = float("inf")
    for _ in range(repeat):
        begin = used()
        work()
        best = min(best, used() - begin)
    return best


def load_texts(corpora: Path) -> list[tuple[str, str]]:
    """(language, text) of every document; needs the package's corpus extra."""
    from megatron_jmed.corpus.document import read_documents

    return [(document.lang, document.text) for document in read_documents(corpora)]


def some(texts: list[tuple[str, str]], lang: str, limit_bytes: float) -> list[str]:
    """Every n-th document of a language, so that about `limit_bytes` are left."""
    chosen = [text for language, text in texts if lang in (language, "all")]
    step = max(1, round(sum(len(text.encode()) for text in chosen) / limit_bytes))
    return chosen[::step]


def count_differing(unigram: _core.Unigram, processor: sentencepiece.SentencePieceProcessor, texts: list[str]) -> int:
    double, differing = sums_in_double(sentencepiece.__version__), 0
    for start in range(0, len(texts), 500):
        chunk = texts[start : start + 500]
        ids, lengths, _ = unigram.encode(chunk, double_sums=double)
        expected = processor.encode(chunk, num_threads=1)
        ours = np.split(ids, np.cumsum(lengths)[:-1])
        differing += sum(not np.array_equal(a, b) for a, b in zip(ours, expected, strict=True))
    return differing


def encoders_alone(texts: list[tuple[str, str]], model: Path, repeat: int, limit_bytes: float) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    build = cpu_seconds(lambda: _core.Unigram(model.read_bytes()), repeat)
    unigram = _core.Unigram(model.read_bytes())
    double = sums_in_double(sentencepiece.__version__)
    newest = {} if double else {"out_type": "numpy"}
    every = [text for _, text in texts]
    print(f"\n{model.name} ({unigram.num_pieces:,} pieces, {unigram.num_states:,} states built in {build:.2f} CPU-s): "
          f"{count_differing(unigram, processor, every):,} of {len(every):,} documents differ\n")
    print("| text | MB | native, MB/cpu-s | Mtoken/cpu-s | sentencepiece, MB/cpu-s | ratio |\n|---|---|---|---|---|---|")
    for lang in ("ja", "en", "all"):
        chosen = some(texts, lang, limit_bytes)
        megabytes = sum(len(text.encode()) for text in chosen) / 1e6
        ours = cpu_seconds(lambda chosen=chosen: unigram.encode(chosen, double_sums=double), repeat)
        theirs = cpu_seconds(lambda chosen=chosen: processor.encode(chosen, num_threads=1, **newest), max(1, repeat - 1))
        num_ids = len(unigram.encode(chosen)[0])
        print(f"| {lang} | {megabytes:.1f} | {megabytes / ours:.1f} | {num_ids / ours / 1e6:.1f} | {megabytes / theirs:.1f} "
              f"| {theirs / ours:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit-mb", type=float, default=40, help="text per language that is timed; ids are compared on all")
    words = parser.parse_args()
    texts = load_texts(words.corpora)
    print(f"core {VERSION}, sentencepiece {sentencepiece.__version__}, load {os.getloadavg()[0]:.1f}")
    for model in words.models:
        encoders_alone(texts, model, words.repeat, words.limit_mb * 1e6)


if __name__ == "__main__":
    main()
