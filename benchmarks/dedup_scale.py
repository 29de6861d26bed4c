"""What does corpus/dedup.py cost as the corpus doubles?

Usage: python benchmarks/dedup_scale.py text SOURCE... | keys. `text` cuts the sources into passages of about 300
characters, adds an edited copy after every fifth, and runs the whole tool; `keys` writes invented keys (no text)
and runs only the search for duplicates, which is the part that sees the whole corpus at once. Each in a process of
its own, whose CPU time and peak resident memory are printed.
"""

import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from megatron_jmed.corpus.dedup import MIB, DedupSettings, dedup
from megatron_jmed.corpus.document import Document, document_line, read_documents
from megatron_jmed.corpus.duplicates import find_duplicates
from megatron_jmed.corpus.minhash import MinHash
from megatron_jmed.corpus.signatures import Signatures, SignedFile, _NewRun

PASSAGE, FILES = 300, 8
TEXT_SIZES, KEY_SIZES = (12_500, 25_000, 50_000), (50_000, 100_000, 200_000)
MEMORY_MIB, RUN_DOCUMENTS, COPY_SHARE = 32, 2**14, 0.2


def passages(sources: list[str], wanted: int) -> list[Document]:
    """Passages from all sources in turn, every sixth an edited copy of an earlier one."""
    draw, found = random.Random(0), []
    for document in (d for source in sources for d in read_documents(source)):
        for start in range(0, len(document.text), PASSAGE):
            if len(found) >= wanted:
                return found
            text = document.text[start : start + PASSAGE]
            found.append(Document(str(len(found)), text or " .", document.source, document.lang, {}))
            if len(found) % 6 == 5:
                copied = draw.choice(found).text
                place = draw.randrange(len(copied))
                found.append(Document(str(len(found)), copied[:place] + "#" + copied[place + 1 :], "copy", document.lang, {}))
    return found


def run_text(size: int, sources: list[str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "write", folder, str(size), *sources]
        subprocess.run(command, check=True)  # elsewhere, so that its memory is not counted here
        source = Path(folder) / "source"
        num_bytes = sum(path.stat().st_size for path in source.iterdir())
        counts = dedup([source], Path(folder) / "target", DedupSettings(memory_mib=MEMORY_MIB, progress=False)).counts
    return f"{num_bytes / 1e6:.0f} MB, dropped {counts.dropped}"


def write_text(folder: Path, size: int, sources: list[str]) -> None:
    documents = passages(sources, size)
    (folder / "source").mkdir()
    for number in range(FILES):
        part = documents[number * len(documents) // FILES : (number + 1) * len(documents) // FILES]
        (folder / "source" / f"{number}.jsonl").write_bytes(b"".join(document_line(d) for d in part))


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
            run._exact, run._signatures = [draw.bytes(16) for _ in run.ids], list(signatures)
            runs.append(run.save(Path(folder), number))
        began = time.process_time()
        signed = SignedFile(key="", runs=runs, num_bad=0)
        found = find_duplicates(Signatures.of([Path(folder)], [signed]), hasher, 0.8, MEMORY_MIB * MIB // 2, Path(folder))
        removed = int((found.kept != np.arange(size)).sum())
        disk = sum(path.stat().st_size for path in Path(folder).iterdir()) / size
        with open("/proc/self/status") as stream:
            own, mapped = (int(line.split()[1]) // 1024 for line in stream if line.startswith(("RssAnon", "RssFile")))
        seconds = time.process_time() - began
        memory = f"then {own} MiB own, {mapped} MiB mapped from files"
        return f"search {seconds:.1f} CPU-s, {memory}, {disk:.0f} bytes a document on disk, {removed:,} removed"


if __name__ == "__main__":
    kind, *words = sys.argv[1:]
    if kind == "write":
        write_text(Path(words[0]), int(words[1]), words[2:])
    elif kind in ("text", "keys"):
        for size in TEXT_SIZES if kind == "text" else KEY_SIZES:
            subprocess.run([sys.executable, __file__, f"one-{kind}", str(size), *words], check=True)
    else:
        began = time.perf_counter()
        said = run_text(int(words[0]), words[1:]) if kind == "one-text" else run_keys(int(words[0]))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
        wall = time.perf_counter() - began
        print(f"{int(words[0]):,} documents: {wall:.1f} s, {cpu:.1f} CPU-s, peak {peak:.0f} MiB, {said}", flush=True)
