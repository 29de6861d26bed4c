"""How fast is one large file with several workers, and how much memory does a merge of token shards take?

    python benchmarks/corpus_shards.py clean FOLDER [WORKERS ...]      # cleans one file of 127 MB with 1, 2 ... workers
    python benchmarks/corpus_shards.py merge FOLDER [DOCUMENTS ...]    # merges two shards of that many documents each
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import zstandard

from megatron_jmed.corpus.clean import clean, make_clean
from megatron_jmed.corpus.clean_rules import CleanSettings
from megatron_jmed.corpus.indexed import TokenWriter
from megatron_jmed.corpus.manifest import Counts, GroupCounts, Manifest
from megatron_jmed.corpus.parts import do_batch
from megatron_jmed.corpus.reader import find_source, read_batches
from megatron_jmed.corpus.token_shards import merge_token_shards

DATA = Path(__file__).resolve().parents[1] / "examples" / "data" / "texts_ja.jsonl"


def time_cleaning(folder: Path, workers: list[int]) -> None:
    source, lines, shuffle = folder / "large.jsonl.zst", DATA.read_bytes().splitlines(), random.Random(1)
    with zstandard.open(source, "wb") as stream:
        for _ in range(900):
            shuffle.shuffle(lines)
            stream.write(b"\n".join(lines) + b"\n")
    begin = time.perf_counter()
    batches = list(read_batches(find_source(source)))
    print(f"{sum(len(batch.payload) for batch in batches) / 1e6:.0f} MB; reading alone {time.perf_counter() - begin:.2f} s")
    begin, transform = time.perf_counter(), make_clean(CleanSettings())
    for batch in batches[:20]:
        do_batch(batch, "text", transform)
    seconds = (time.perf_counter() - begin) * len(batches) / 20
    print(f"cleaning alone, without reading and writing: {seconds:.1f} s (from 20 batches)")
    for number in workers:
        shutil.rmtree(folder / "cleaned", ignore_errors=True)
        begin, cpu = time.perf_counter(), sum(os.times()[:4])
        clean(source, folder / "cleaned", CleanSettings(), workers=number, progress=False)
        wall, cpu = time.perf_counter() - begin, sum(os.times()[:4]) - cpu
        print(f"{number} worker(s): {wall:.1f} s, {cpu:.1f} s of CPU, load average {os.getloadavg()[0]:.1f}")


def measure_merge(folder: Path, num_documents: int) -> None:
    """Make two shards as tokenising leaves them, with 8 ids a document, and merge them in a process of its own."""
    target = folder / f"merge_{num_documents}"
    for index in (1, 2):
        shard = target / f"shard-{index}-of-2"
        shard.mkdir(parents=True)
        writer = TokenWriter(shard, "tokens", np.dtype("<u2"))
        for start in range(0, num_documents, 2**20):
            num = min(2**20, num_documents - start)
            writer.add(np.full(8 * num, index, "<u2"), np.full(num, 8, "<i4"))
        files = writer.finish()
        group = GroupCounts(documents=num_documents, characters=num_documents, tokens=writer.num_tokens)
        counts = Counts(**group.model_dump(), by_source={"s": group}, by_lang={"ja": group})
        details = {"dtype": "uint16", "tokenizer": {}, "num_files": 1}
        details |= {"num_source_files": 2, "source_files_sha256": "", "max_bad": 0}
        Manifest(stage="tokenize", settings={"shard": f"{index}/2"}, code_version="", source="", inputs=[], files=files,
                 counts=counts, details=details).save(shard)  # fmt: skip
    subprocess.run([sys.executable, __file__, "one-merge", target], check=True)
    shutil.rmtree(target)


def one_merge(target: Path) -> None:
    before, begin = anonymous_mib(), time.perf_counter()
    counts = merge_token_shards(target).counts
    words = {"documents": counts.documents, "MB of tokens": 2 * counts.tokens // 10**6}
    words |= {"seconds": round(time.perf_counter() - begin, 1), "anonymous MiB before": before, "after": anonymous_mib()}
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps(words | {"peak MiB with mapped file pages": int(peak.split()[1]) // 1024}))


def anonymous_mib() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    what, folder, numbers = sys.argv[1], Path(sys.argv[2]), [int(word) for word in sys.argv[3:]]
    folder.mkdir(parents=True, exist_ok=True)
    if what == "clean":
        time_cleaning(folder, numbers or [1, 2])
    elif what == "merge":
        for num in numbers or [2**21, 10 * 2**21]:
            measure_merge(folder, num)
    else:
        one_merge(folder)
