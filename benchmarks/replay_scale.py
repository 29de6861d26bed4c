"""How long does tools/replay_data.py take for a run of millions of sequences?

    python benchmarks/replay_scale.py FOLDER [--sequences 10_000_000]

FOLDER gets two token sets of drawn document lengths (a real .idx and listing, and a .bin that is one hole: no question asks
for tokens), then the real index cache, built by Megatron-Core. Each question is a process of its own, timed from its start
to its end, with the most memory that it held.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from megatron_jmed.corpus import listing
from megatron_jmed.corpus.indexed import write_index
from megatron_jmed.corpus.manifest import Counts, GroupCounts, Manifest, OutputFile
from megatron_jmed.corpus.part_folders import output_file

TOOLS = Path(__file__).parents[1] / "tools"
SEQ_LENGTH, BATCH, VOCABULARY = 4096, 1024, 99_574
SETS = {"web": (0.75, "ja"), "papers": (0.25, "en")}  # share, and language


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sequences", type=int, default=10_000_000)
    arguments = parser.parse_args()
    folder, steps = arguments.folder.resolve(), arguments.sequences // BATCH
    tokens = steps * BATCH * SEQ_LENGTH
    blend, numbers = [], {}
    for name, (share, lang) in SETS.items():
        # the papers are read 1.6 times, the web 0.8 times
        size = tokens * share / (1.6 if name == "papers" else 0.8)
        numbers[name] = make_token_set(folder / name, int(size / 1000), lang, name)
        blend.append(f'{{name="{name}", path="{folder / name}", weight={share}}}')
    run = ["llmjp_8x13b", f'run_folder="{folder / "run"}"', f"budget.total_tokens={tokens}", f"budget.seq_length={SEQ_LENGTH}",
           f"budget.global_batch_size={BATCH}", "data.blend=[" + ", ".join(blend) + "]", "optim.warmup_tokens=0",
           f"data.skip_steps=[[{steps // 2}, {steps // 2 + 3}]]"]
    print(f"{steps * BATCH:,} sequences, {sum(numbers.values()):,} documents, {os.cpu_count()} cores")
    report("build_index_cache", "build_index_cache.py", run)
    for what in (["--steps", "1"], ["--steps", str(steps)], ["--steps", "40", "49"], ["--document", "papers-0000012345"],
                 ["--document-number", "web", "777777"], ["--read-until", str(steps // 2)], ["--read-until", "end"]):
        report(" ".join(what), "replay_data.py", [*run, *what])


def make_token_set(folder: Path, num_documents: int, lang: str, name: str) -> int:
    """Write the token set and its listing, if they are not there; the number of documents."""
    if (listing.listing_folder(folder) / "manifest.json").exists():
        return num_documents
    rng = np.random.default_rng(len(name))
    folder.mkdir(parents=True)
    lengths = np.clip(rng.lognormal(6.4, 1.0, num_documents), 3, 2**20).astype("<i4")  # 1,000 tokens on average
    index = write_index(folder / "tokens.idx", [lengths], np.dtype("<i4"))
    total = int(lengths.sum(dtype=np.int64))
    with open(folder / "tokens.bin", "wb") as stream:
        stream.truncate(4 * total)
    group = GroupCounts(documents=num_documents, characters=total, tokens=total)
    counts = Counts(documents=num_documents, characters=total, tokens=total, by_source={name: group}, by_lang={lang: group})
    tokenizer = {"file": "x", "sha256": "0" * 64, "vocab_size": VOCABULARY, "bos_id": 1, "eos_id": 2, "engine": "native",
                 "engine_version": "1"}
    tokens = OutputFile(path="tokens.bin", rows=num_documents, bytes=4 * total, sha256=name)
    Manifest(stage="tokenize", settings={}, code_version="", source="", inputs=[], files=[tokens, index], counts=counts,
             details={"dtype": "int32", "tokenizer": tokenizer}).save(folder)
    write_listing(folder, num_documents, lang, name, counts)
    return num_documents


def write_listing(folder: Path, num_documents: int, lang: str, name: str, counts: Counts) -> None:
    target = listing.listing_folder(folder)
    target.mkdir()
    with open(target / listing.IDS, "wb") as stream:
        for start in range(0, num_documents, 10**6):
            stream.write(b"".join(b"%s-%010d" % (name.encode(), n) for n in range(start, min(start + 10**6, num_documents))))
    (np.arange(1, num_documents + 1, dtype="<i8") * (len(name) + 11)).tofile(target / listing.ENDS)
    np.zeros(num_documents, "<i2").tofile(target / listing.GROUPS)
    np.full(num_documents, 2000, "<i4").tofile(target / listing.CHARACTERS)
    files = [output_file(target / one, one, num_documents) for one in listing.OUTPUT_NAMES]
    Manifest(stage=listing.STAGE, settings={}, code_version="", source=str(folder), inputs=[listing._input(folder)], files=files,
             counts=counts, details={"groups": [[name, lang]]}).save(target)


def report(what: str, tool: str, arguments: list[str]) -> None:
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(TOOLS / tool), *arguments], stdout=subprocess.PIPE, text=True)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{what}: failed")
    print(json.dumps({"question": what, "seconds": round(seconds, 2), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
                      "peak_gib": round(usage.ru_maxrss / 2**20, 2), "lines": out.count("\n")}), flush=True)
    if what.startswith("--read-until"):
        print(out, end="")


if __name__ == "__main__":
    main()
