"""How fast is tools/tokenize_corpus.py beside the tools that others use, and are the files the same? One run, one file.

    python benchmarks/tokenize_peers.py FILE.jsonl MODEL --megatron FOLDER [--datatrove FOLDER] [--path FOLDER] [--slow-mb 20]

FOLDER of --megatron is a checkout of Megatron-LM; of --datatrove a folder that `pip install --target` filled; --path is put
on PYTHONPATH for Megatron-LM (its needs that are not installed). Slow tools get the first --slow-mb of the file. For each
tool: CPU-seconds (user + system, children included) of the whole process, and of the same on one document: what is left is
the steady cost. Unit: MB (10^6 bytes of JSONL) per CPU-second, which is per core. Also: our tool with 1 and 2 workers, its
peak memory on the file and on a quarter of it, and the bytes of both .bin and .idx compared with Megatron-LM's.
"""

import argparse
import filecmp
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DATATROVE = """
    import sys
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer
    source, target, tokenizer = sys.argv[1:]
    from pathlib import Path
    path = Path(source)
    LocalPipelineExecutor(
        pipeline=[JsonlReader(str(path.parent), glob_pattern=path.name),
                  MegatronDocumentTokenizer(output_folder=target, tokenizer_name_or_path=tokenizer, eos_token="</s>")],
        tasks=1, workers=1, logging_dir=target + "/logs").run()
"""


@dataclass
class Cost:
    wall: float
    cpu: float
    peak_mib: float


def run(command: list[object], **environment: str) -> Cost:
    """Run a command to its end; peak memory is of its largest process."""
    begin, before = time.perf_counter(), os.times()
    process = subprocess.Popen(
        list(map(str, command)), env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    errors = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[:3]} failed:\n{errors[-3000:]}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(time.perf_counter() - begin, cpu, usage.ru_maxrss / 1024)


def head(source: Path, target: Path, megabytes: float) -> Path:
    # In pieces: what this process holds counts as the peak of those that it starts.
    left = int(megabytes * 1e6)
    with open(source, "rb") as stream, open(target, "wb") as out:
        while left > 0 and (line := stream.readline()):
            out.write(line)
            left -= len(line)
    return target


def ours(source: Path, target: Path, model: Path, workers: int = 1, engine: str = "native", bos: bool = False) -> Cost:
    tool = [sys.executable, REPOSITORY / "tools/tokenize_corpus.py", source, target, "--tokenizer", model]
    words = ["--workers", workers, "--engine", engine, "--overwrite", *([] if bos else ["--no-bos"])]
    return run([*tool, *words], PYTHONPATH=str(REPOSITORY))


def megatron(source: Path, target: Path, kind: str, model: Path, checkout: Path, extra: str, workers: int = 1) -> Cost:
    words = ["--input", source, "--output-prefix", target, "--tokenizer-type", kind, "--tokenizer-model", model]
    tool = [sys.executable, checkout / "tools/preprocess_data.py", *words, "--append-eod", "--workers", workers]
    return run(tool, PYTHONPATH=f"{extra}:{checkout}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--megatron", type=Path, required=True)
    parser.add_argument("--datatrove", type=Path)
    parser.add_argument("--path", default="")
    parser.add_argument("--slow-mb", type=float, default=20)
    words = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}; {words.source.stat().st_size / 1e6:.1f} MB of JSONL\n")
    with tempfile.TemporaryDirectory() as name:
        compare(words, Path(name))


def compare(words: argparse.Namespace, work: Path) -> None:
    from megatron_jmed.convert.tokenizer import write_tokenizer

    one, slow = head(words.source, work / "one.jsonl", 0.05), head(words.source, work / "slow.jsonl", words.slow_mb)
    quarter = head(words.source, work / "quarter.jsonl", words.source.stat().st_size / 4e6)
    folder = work / "hf"
    folder.mkdir()
    write_tokenizer(words.model, folder)
    script = work / "datatrove_run.py"
    script.write_text(textwrap.dedent(DATATROVE))

    def sp(source: Path, target: Path) -> Cost:
        return megatron(source, target, "SentencePieceTokenizer", words.model, words.megatron, words.path)

    def hf(source: Path, target: Path) -> Cost:
        return megatron(source, target, "HuggingFaceTokenizer", folder, words.megatron, words.path)

    def trove(source: Path, target: Path) -> Cost:
        command = [sys.executable, script, source, target, folder / "tokenizer.json"]
        return run(command, PYTHONPATH=str(words.datatrove), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

    rows = {
        "this tool": (words.source, lambda s, t: ours(s, t, words.model)),
        "this tool, engine sentencepiece": (words.source, lambda s, t: ours(s, t, words.model, engine="sentencepiece")),
        "Megatron-LM, SentencePiece": (words.source, sp),
        "Megatron-LM, Hugging Face": (slow, hf),
        "this tool, Hugging Face": (slow, lambda s, t: ours(s, t, folder, engine="auto", bos=True)),
    }
    if words.datatrove:
        rows["datatrove"] = (slow, trove)
    print("| tool, one worker | MB | start-up, CPU-s | whole, CPU-s | wall s | MB/cpu-s | steady MB/cpu-s | ours / it, steady |")
    print("|---|---|---|---|---|---|---|---|")
    first = 0.0
    for number, (label, (source, tool)) in enumerate(rows.items()):
        start, whole = tool(one, work / f"start{number}"), tool(source, work / f"out{number}")
        megabytes = source.stat().st_size / 1e6
        steady = megabytes / (whole.cpu - start.cpu)
        first = first or steady
        print(f"| {label} | {megabytes:.0f} | {start.cpu:.2f} | {whole.cpu:.2f} | {whole.wall:.1f} | {megabytes / whole.cpu:.1f} "
              f"| {steady:.1f} | {first / steady:.1f} |", flush=True)
    for kind, mine, theirs in (("SentencePiece", "out0", "out2"), ("Hugging Face", "out4", "out3")):
        same = all(filecmp.cmp(work / mine / f"tokens.{end}", f"{work / theirs}_text_document.{end}", shallow=False)
                   for end in ("bin", "idx"))
        print(f"\n.bin and .idx of this tool and of Megatron-LM ({kind}): {'identical' if same else 'DIFFERENT'}.")
    print()
    print("| this tool | wall s | CPU-s | peak MiB of the largest process |\n|---|---|---|---|")
    scale = {"a quarter, 1 worker": (quarter, 1), "1 worker": (words.source, 1), "2 workers": (words.source, 2)}
    for number, (label, (source, workers)) in enumerate(scale.items()):
        cost = ours(source, work / f"scale{number}", words.model, workers)
        print(f"| {label} | {cost.wall:.2f} | {cost.cpu:.2f} | {cost.peak_mib:.0f} |", flush=True)


if __name__ == "__main__":
    main()
