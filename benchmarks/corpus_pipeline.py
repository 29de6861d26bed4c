"""What do all corpus stages do to real text, one after the other, and do kills and full disks change it?

    python benchmarks/corpus_pipeline.py run DATA WORK [--times 1] [--workers 2]    # stages, times, memory, counts, planted exams
    python benchmarks/corpus_pipeline.py kill DATA WORK [--kills 10]                # kill -9 at random moments, same hashes
    python benchmarks/corpus_pipeline.py disk DATA WORK                             # each stage on a small tmpfs (needs root)

DATA holds corpora/, exams/ and tokenizer/. WORK/raw becomes a link to each corpus and planted.jsonl: every IgakuQA
question once, in one of FORMS, as original or as translation, within some hundred characters of a document of the corpora.
With --times N the corpora come N times, in each copy every document with another three quarters of its lines or
sentences (so that most are no near duplicates): for the speed and memory of more text. Prints Markdown tables.
"""

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parent))
from decontamination import FORMS

from megatron_jmed.corpus.document import Document, document_line, read_documents
from megatron_jmed.corpus.exam_texts import exam_texts
from megatron_jmed.corpus.manifest import load_manifest

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = "llm-jp-tokenizer-100k.ver3.0b1.model"
PLANTED = ("exact", "choices shuffled", "spaces changed", "width changed", "choices explained")
SEED = 20261125
PIECES = re.compile(r"[^\n。]*[\n。]|[^\n。]+$")


@dataclass
class Stage:
    name: str
    command: list[object]
    target: Path


def stages(data: Path, work: Path, workers: int) -> list[Stage]:
    model, raw = data / "tokenizer" / MODEL, work / "raw"
    shared = ["--workers", workers]
    terms = REPOSITORY / "examples/data/medical_terms.txt"

    def tool(name: str, source: Path, target: str, *words: object) -> Stage:
        path = REPOSITORY / "tools" / f"{name}_corpus.py"
        return Stage(name, [sys.executable, path, source, work / target, *words, *shared], work / target)

    return [
        tool("clean", raw, "clean"),
        tool("mask", work / "clean", "masked"),
        tool("dedup", work / "masked", "unique"),
        tool("decontaminate", work / "unique", "fit", "--exams", data / "exams/igakuqa", data / "exams/jmmlu"),
        tool("tokenize", work / "fit", "tokens", "--tokenizer", model),
        tool("describe", work / "tokens", "datasheet", "--tokenizer", model, "--terms", terms),
    ]


# ---- input


def prepare(data: Path, raw: Path, times: int) -> None:
    """Fill WORK/raw, unless it is there."""
    if raw.exists():
        return
    building = raw.with_name("raw.building")
    building.mkdir(parents=True, exist_ok=True)
    for path in sorted((data / "corpora").iterdir()):
        if times == 1:
            (building / path.name).symlink_to(path.resolve())
        else:
            write_copies(path, building / f"{path.name.split('.')[0]}.jsonl.zst", times)
    rng = random.Random(SEED)
    with open(building / "planted.jsonl", "wb") as stream:
        stream.writelines(document_line(document) for document in planted(data, rng))
    building.rename(raw)


def write_copies(source: Path, target: Path, times: int) -> None:
    with open(target, "wb") as out, zstandard.ZstdCompressor(level=3).stream_writer(out) as stream:
        for copy in range(times):
            rng = random.Random(copy)
            for document in read_documents(source):
                pieces = PIECES.findall(document.text)
                text = "".join(piece for piece in pieces if copy == 0 or rng.random() < 0.75)
                text = text if text.strip() else document.text
                stream.write(document_line(Document(f"{document.id}/{copy}", text, document.source, document.lang, {})))


def planted(data: Path, rng: random.Random) -> Iterator[Document]:
    hosts = [document.text for document in read_documents(data / "corpora") if len(document.text) > 1500]
    by_id: dict[str, list] = {}
    for text in exam_texts(data / "exams/igakuqa"):
        by_id.setdefault(text.question_id, []).append(text)
    for number, (question, texts) in enumerate(sorted(by_id.items())):
        form, text = PLANTED[number % len(PLANTED)], texts[number % len(texts)]
        host = rng.choice(hosts)
        begin = rng.randrange(len(host) - 1200)
        before, after = host[begin : begin + 600], host[begin + 600 : begin + 1200]
        question_text = FORMS[form](text, rng, host)
        meta = {"question": question, "planted": f"{form}, {text.form}"}
        yield Document(f"planted/{question}", f"{before}\n{question_text}\n{after}", "planted", "unknown", meta)


# ---- one run


def run_stages(data: Path, work: Path, workers: int) -> None:
    print("| stage | wall s | CPU-s | peak MiB of the largest process | documents | characters | tokens | removed or changed |")
    print("|---|---|---|---|---|---|---|---|")
    for stage in stages(data, work, workers):
        begin, before = time.perf_counter(), os.times()
        command = list(map(str, stage.command))
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        errors = process.stderr.read().decode(errors="replace")
        _, status, usage = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status):
            sys.exit(errors)
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        wall, counts = time.perf_counter() - begin, load_manifest(stage.target).counts
        print(f"| {stage.name} | {wall:.1f} | {cpu:.1f} | {usage.ru_maxrss / 1024:.0f} | {counts.documents:,} "
              f"| {counts.characters:,} | {counts.tokens:,} | {changes(stage)} |", flush=True)
    tell_planted(work)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def changes(stage: Stage) -> str:
    manifest = load_manifest(stage.target)
    found = dict(manifest.counts.dropped)
    details = manifest.details.get("counts")
    if stage.name in ("clean", "mask") and isinstance(details, dict):
        found |= {name: count for name, count in details.items() if isinstance(count, int)}
    return ", ".join(f"{name} {count:,}" for name, count in sorted(found.items(), key=lambda item: -item[1])) or "none"


def tell_planted(work: Path) -> None:
    """What became of the planted documents, and which others were removed as contaminated."""
    fates: Counter[tuple[str, str]] = Counter()
    for stage in ("clean", "masked", "unique", "fit"):
        for path in sorted((work / stage / "removed").glob("*.jsonl.zst")):
            frames = zstandard.ZstdDecompressor().stream_reader(path.read_bytes(), read_across_frames=True)
            for line in frames.read().splitlines():
                row = orjson.loads(line)
                kind = row["meta"]["planted"] if row["source"] == "planted" else "(not planted)"
                if kind != "(not planted)" or stage == "fit":
                    fates[kind, f"removed by {path.parents[1].name}: {path.name.split('.')[0]}"] += 1
    for document in read_documents(work / "fit"):
        if document.source == "planted":
            fates[document.meta["planted"], "still there"] += 1
    print("\n| planted | what became of it | documents |\n|---|---|---|")
    for (kind, fate), count in sorted(fates.items()):
        print(f"| {kind} | {fate} | {count:,} |")
    report = json.loads((work / "fit" / "contamination.json").read_bytes())
    print(f"\ncontamination.json: {len(report['questions']):,} questions of {report['num_questions']:,} found, "
          f"{len(report['not_testable'])} not testable")


# ---- kills and full disks


def hashes(work: Path) -> dict[str, str]:
    """SHA-256 of all results, less what a run has of its own: times, places, and the checksums of files that name them."""
    found = {}
    for path in sorted(work.rglob("*")):
        relative = path.relative_to(work).as_posix()
        if not path.is_file() or relative.startswith("raw/"):
            continue
        data = path.read_bytes()
        if path.name == "manifest.json":
            manifest = json.loads(data)
            own = ("created", "source", "inputs")
            if manifest["stage"] == "describe":
                own += ("files",)
            data = json.dumps({name: value for name, value in manifest.items() if name not in own}, sort_keys=True).encode()
        if path.name.startswith("datasheet."):
            data = re.sub(rb"20\d\d-\d\d-\d\dT[0-9:.+]*|[0-9a-f]{12,64}", b"", data)
        found[relative] = hashlib.sha256(data).hexdigest()
    return found


def begin_at(place: Path) -> None:
    place.mkdir()
    (place / "raw").symlink_to("../raw")


def kill_stages(data: Path, work: Path, workers: int, kills: int) -> None:
    # Both runs at one place: manifests name it.
    place, whole = work / "place", work / "undisturbed"
    prepare(data, work / "raw", 1)
    begin_at(place)
    begin = time.monotonic()
    for stage in stages(data, place, workers):
        subprocess.run(list(map(str, stage.command)), env=environment(), check=True, capture_output=True)
    seconds = time.monotonic() - begin
    place.rename(whole)
    begin_at(place)
    rng, done = random.Random(SEED), 0
    moments = sorted(rng.uniform(0, seconds) for _ in range(kills))
    print(f"an undisturbed run takes {seconds:.1f} s\n\n| kill | stage | seconds into it |\n|---|---|---|")
    spent = 0.0
    for stage in stages(data, place, workers):
        while True:
            begin = time.monotonic()
            process = subprocess.Popen(list(map(str, stage.command)), env=environment(), stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
            try:
                code = process.wait(timeout=max(0.05, moments[done] - spent) if done < kills else None)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)  # the workers must end by themselves
                process.wait()
                done += 1
                spent += time.monotonic() - begin
                print(f"| {done} | {stage.name} | {time.monotonic() - begin:.2f} |", flush=True)
                time.sleep(0.5)
                continue
            spent += time.monotonic() - begin
            if code:
                sys.exit(f"{stage.name} ended with {code} after a kill")
            break
    mine, theirs = hashes(place), hashes(whole)
    differing = [name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)]
    print(f"\n{len(theirs)} files of {done} times killed and undisturbed runs: {differing or 'all equal'}")


def fill_disks(data: Path, work: Path, workers: int) -> None:
    whole, small = work / "undisturbed", work / "small"
    small.mkdir(exist_ok=True)
    print("| stage | on a disk of | it ended with | in the target, no manifest | with room again |\n|---|---|---|---|---|")
    for stage in stages(data, whole, workers)[:5]:
        size = sum(path.stat().st_size for path in stage.target.rglob("*") if path.is_file()) // 2
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", small], check=True)
        try:
            target = small / "target"
            command = [str(target) if word == stage.target else str(word) for word in stage.command]
            failed = subprocess.run(command, env=environment(), capture_output=True, text=True)
            message = failed.stderr.strip().splitlines()[-1].replace(str(target), "TARGET")
            unfinished = not (target / "manifest.json").exists()
            subprocess.run(["mount", "-o", "remount,size=2g", small], check=True)
            again = subprocess.run(command, env=environment(), capture_output=True, text=True)
            wanted, found = (  # the manifests name other folders
                {path: value for path, value in hashes(folder).items() if "manifest" not in path}
                for folder in (stage.target, target)
            )
            print(f"| {stage.name} | {size / 1e6:.1f} MB | {failed.returncode}: {message} | {unfinished} "
                  f"| {again.returncode}: {'same files' if found == wanted else 'OTHER FILES'} |", flush=True)
        finally:
            subprocess.run(["umount", "--lazy", small], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "prepare", "kill", "disk"))
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=10)
    words = parser.parse_args()
    data, work = words.data.resolve(), words.work.resolve()
    if words.what != "prepare":
        print(f"{words.what}, load {os.getloadavg()[0]:.1f}\n")
    if words.what == "run":
        # In a process of its own: what this one holds would count as the peak of those that it starts.
        command = [sys.executable, __file__, "prepare", str(data), str(work), "--times", str(words.times)]
        subprocess.run(command, check=True, env=environment())
        run_stages(data, work, words.workers)
    elif words.what == "prepare":
        prepare(data, work / "raw", words.times)
    elif words.what == "kill":
        kill_stages(data, work, words.workers, words.kills)
    else:
        fill_disks(data, work, words.workers)


if __name__ == "__main__":
    main()
