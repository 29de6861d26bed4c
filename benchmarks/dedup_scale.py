"""What does corpus/dedup.py cost as the corpus doubles?

Usage: python benchmarks/dedup_scale.py text SOURCE... | keys. `text` cuts the sources into passages of about 300
characters, adds an edited copy after every fifth, and runs the whole tool; `keys` writes invented keys (no text)
and runs only the search for duplicates, which is the part that sees the whole corpus at once. Each in a process of
its own, whose CPU time and peak memory are printed: its own, and with the pages of files that it maps.
"""

import itertools
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megatron_jmed.corpus.dedup import MIB, DedupSettings, dedup
from megatron_jmed.corpus.document import Document, document_line, read_documents
from megatron_jmed.corpus.duplicates import find_duplicates
from megatron_jmed.corpus.minhash import MinHash
from megatron_jmed.corpus.signatures import Signatures, SignedFile, _NewRun

PASSAGE, FILES = 300, 8
SHIFT, EDITED, KEPT = 37, 1 / 8, 50_000
TEXT_SIZES, KEY_SIZES = (100_000, 200_000, 400_000, 800_000), (100_000, 200_000, 400_000, 800_000)
MEMORY_MIB, RUN_DOCUMENTS, COPY_SHARE = 32, 2**14, 0.2


def passages(sources: list[str], wanted: int) -> Iterator[Document]:
    """Passages from all sources in turn, every sixth an edited copy of an earlier one; once the texts are used up, they
    come again, cut at other places and with one character in eight replaced by another of the same passage."""
    draw, kept, number = random.Random(0), [], 0
    for turn in itertools.count():
        for document in (d for source in sources for d in read_documents(source)):
            for start in range(turn * SHIFT, len(document.text), PASSAGE):
                text = document.text[start : start + PASSAGE]
                text = "".join(draw.choice(text) if turn and draw.random() < EDITED else c for c in text).strip() or " ."
                found = [Document(str(number), text, document.source, document.lang, {})]
                if number % 6 == 4:
                    copied = draw.choice(kept)
                    place = draw.randrange(len(copied.text))
                    edited = copied.text[:place] + "#" + copied.text[place + 1 :]
                    found.append(Document(str(number + 1), edited, "copy", copied.lang, {}))
                for one in found:
                    if number >= wanted:
                        return
                    yield one
                    number += 1
                if len(kept) < KEPT:
                    kept.append(found[0])
                else:
                    kept[draw.randrange(KEPT)] = found[0]


def run_text(size: int, sources: list[str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "write", folder, str(size), *sources]
        subprocess.run(command, check=True)  # elsewhere, so that its memory is not counted here
        source = Path(folder) / "source"
        num_bytes = sum(path.stat().st_size for path in source.iterdir())
        counts = dedup([source], Path(folder) / "target", DedupSettings(memory_mib=MEMORY_MIB, progress=False)).counts
    return f"{num_bytes / 1e6:.0f} MB, dropped {counts.dropped}"


def write_text(folder: Path, size: int, sources: list[str]) -> None:
    (folder / "source").mkdir()
    documents = passages(sources, size)
    for number in range(FILES):
        with open(folder / "source" / f"{number}.jsonl", "wb") as stream:
            share = (number + 1) * size // FILES - number * size // FILES
            stream.writelines(map(document_line, itertools.islice(documents, share)))


def run_keys(size: int) -> str:
    """Random signatures; one document in five takes over nine tenths of an earlier one's values."""
    draw, hasher, runs, first = np.random.default_rng(0), MinHash(), [], None
    with tempfile.TemporaryDirectory() as folder:
        for number, start in enumerate(range(0, size, RUN_DOCUMENTS)):
            signatures = draw.integers(0, 2**32, (min(RUN_DOCUMENTS, size - start), hasher.num_hashes), np.uint32)
            first = signatures if first is None else first
            copies = np.flatnonzero(draw.random(len(signatures)) < COPY_SHARE)
            taken = draw.random((len(copies), hasher.num_hashes)) < 0.9
            signatures[copies] = np.where(taken, first[draw.integers(0, len(first), len(copies))], signatures[copies])
            run = _NewRun(hasher)
            run.ids = [b"%d" % i for i in range(start, start + len(signatures))]
            run._exact, run._signatures = [draw.bytes(16) for _ in run.ids], [signatures]
            runs.append(run.save(Path(folder), number))
        began = time.process_time()
        signed = SignedFile(key="", runs=runs, num_bad=0)
        found = find_duplicates(Signatures.of([Path(folder)], [signed]), hasher, 0.8, MEMORY_MIB * MIB // 2, Path(folder))
        removed = int((found.kept != np.arange(size)).sum())
        disk = sum(path.stat().st_size for path in Path(folder).iterdir()) / size
        seconds = time.process_time() - began
        return f"search {seconds:.1f} CPU-s, {disk:.0f} bytes a document on disk, {removed:,} removed"


class OwnMemory(threading.Thread):
    """Looks twenty times a second how much memory is the process's own; mapped files, which can be dropped, left out."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mib = 0.0

    def run(self) -> None:
        while True:
            with open("/proc/self/status") as stream:
                self.peak_mib = max([self.peak_mib, *(int(s.split()[1]) / 1024 for s in stream if s.startswith("RssAnon"))])
            time.sleep(0.05)


if __name__ == "__main__":
    kind, *words = sys.argv[1:]
    if kind == "write":
        write_text(Path(words[0]), int(words[1]), words[2:])
    elif kind in ("text", "keys"):
        for size in TEXT_SIZES if kind == "text" else KEY_SIZES:
            subprocess.run([sys.executable, __file__, f"one-{kind}", str(size), *words], check=True)
    else:
        began, own = time.perf_counter(), OwnMemory()
        own.start()
        said = run_text(int(words[0]), words[1:]) if kind == "one-text" else run_keys(int(words[0]))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
        wall = time.perf_counter() - began
        memory = f"peak {own.peak_mib:.0f} MiB own, {peak:.0f} with files"
        print(f"{int(words[0]):,} documents: {wall:.1f} s, {cpu:.1f} CPU-s, {memory}, {said}", flush=True)
