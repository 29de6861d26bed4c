"""Which documents of one or several sources remain when copies and near copies go?

In: sources, in the order in which they are to win. Out: TARGET/documents/<one .jsonl.zst per input file>,
TARGET/removed/exact.jsonl.zst and near.jsonl.zst (under `detail`: the id of the kept document that stands for it), and
manifest.json last. Two passes over the text: `signatures.py` notes every document's keys, file by file (the part that
shards spread over nodes); `duplicates.py` groups them all; then each file is written without its copies.
While it runs, TARGET/.parts holds what is finished, file by file; a rerun, also with another threshold, continues.
Invariant: of each group exactly the first document is kept (order: sources as given, files, lines); the output is the
same, byte for byte, for any number of workers or shards, any memory setting, and however often the run was killed.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import JsonValue

from megatron_jmed.corpus import stage
from megatron_jmed.corpus.document import Document
from megatron_jmed.corpus.duplicates import Duplicates, find_duplicates
from megatron_jmed.corpus.manifest import (
    MANIFEST_NAME,
    PARTIAL_NAME,
    InputFile,
    Manifest,
    code_version,
    joined_origin,
    publish,
)
from megatron_jmed.corpus.minhash import MinHash
from megatron_jmed.corpus.part_folders import opened
from megatron_jmed.corpus.pool import fewer_workers, worker_pool
from megatron_jmed.corpus.progress_bar import progress_bar
from megatron_jmed.corpus.reader import Source, find_source
from megatron_jmed.corpus.signatures import Run, Signatures, SignedFile, SignTask, bytes_per_document, sign_file, signed_file
from megatron_jmed.corpus.stage import Kept, Removed
from megatron_jmed.errors import CorpusError

STAGE = "dedup"
MIB = 2**20
MAX_RUN_DOCUMENTS = 2**16
Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class DedupSettings:
    """What counts as a copy. `workers`, `memory_mib`, `overwrite` and `progress` do not change the output."""

    minhash: MinHash = field(default_factory=MinHash)
    threshold: float = 0.8
    text_field: str = "text"
    max_bad: int = 100
    licence: str | None = None  # None: what the sources' manifests say
    workers: int = 1
    memory_mib: int = 1024  # for the work of all processes together, beside their programs (about 100 MiB each)
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        words = {"ngram": self.minhash.ngram, "bands": self.minhash.bands, "rows": self.minhash.rows, "workers": self.workers}
        problems = [f"--{name} {value} is too small; at least 1 is needed" for name, value in words.items() if value < 1]
        if self.minhash.seed < 0:
            problems.append(f"--seed {self.minhash.seed} is negative; 0 or more is needed")
        if not 0 < self.threshold <= 1:
            problems.append(f"--threshold {self.threshold} is no similarity; it must be above 0 and at most 1")
        if self.memory_mib < 16 * self.workers:
            problems.append(f"--memory-mib {self.memory_mib} is too small; {16 * self.workers} for {self.workers} worker(s)")
        if self.max_bad < 0:
            problems.append(f"--max-bad {self.max_bad} is negative; 0 allows no bad record")
        if problems:
            raise CorpusError("; ".join(problems))


@dataclass(frozen=True)
class _File:
    """One input file, with its place in the order of all."""

    number: int
    source: Source
    path: Path
    sha256: str

    @property
    def name(self) -> str:
        return self.source.name(self.path)


def dedup(
    sources: list[Path], target: Path, settings: DedupSettings, shard: tuple[int, int] | None = None, merge: bool = False
) -> Manifest | None:
    """Remove copies from the sources into TARGET; a target that is already finished is left as it is.

    With `shard` (i, n) only the keys of every n-th file are computed, and None is returned; with `merge` they must all
    be there. CorpusError for a damaged file, too many bad records, missing shards, or a target of another run.
    """
    if shard and (merge or not 1 <= shard[0] <= shard[1]):
        raise CorpusError(f"--shard {shard[0]}/{shard[1]} does not exist or is combined with --merge; shards are 1/n to n/n")
    target, found = Path(target), _sources(sources)
    if shard:
        return _sign_shard(found, target, settings, shard)
    inputs = [file for source in found for file in source.inputs()]
    files = _numbered(found, inputs)
    licence = settings.licence or "; ".join(sorted({known for source in found if (known := source.licence())})) or None
    choices = _choices(found, settings) | {"threshold": settings.threshold, "max_bad": settings.max_bad, "licence": licence}
    with opened(target, STAGE, choices, inputs, stage.OUTPUT_NAMES, settings.overwrite) as finished:
        if finished:
            return finished
        work = _find_and_write(found, files, inputs, target, choices, settings, merge)
        manifest = work.model_copy(update={"source": ", ".join(str(path) for path in sources)})
        publish(target, manifest, stage.OUTPUT_NAMES)
    return manifest


def _sources(paths: list[Path]) -> list[Source]:
    """The sources in their order; several are named with their folder, so that files of one name stay apart."""
    found = [find_source(path) for path in paths]
    if len(found) == 1:
        return found
    names = [source.root.resolve().name for source in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CorpusError(f"several sources are called {', '.join(twice)}; rename or link them so that each has its own name")
    roots = [Path(path).resolve() for path in paths]
    return [
        Source(
            root.parent,
            [root if source.root.is_file() else root / path.relative_to(source.root) for path in source.files],
            [root / path.relative_to(source.root) for path in source.manifests],
            [f"{root.name}/{name}" for name in source.ignored],
        )
        for root, source in zip(roots, found, strict=True)
    ]


def _choices(found: list[Source], settings: DedupSettings) -> dict[str, JsonValue]:
    """The settings that decide a document's keys, and the order of the sources."""
    minhash = settings.minhash
    order = [source.name(source.files[0]).split("/")[0] for source in found] if len(found) > 1 else []
    words = {"ngram": minhash.ngram, "bands": minhash.bands, "rows": minhash.rows, "seed": minhash.seed}
    return words | {"sources": order, "text_field": settings.text_field}


def _numbered(found: list[Source], inputs: list[InputFile], only: set[int] | None = None) -> list[_File]:
    """All files in order, with their hashes."""
    hashes = [stage.file_hashes(source, inputs) for source in found]
    pairs = [(index, path) for index, source in enumerate(found) for path in source.files]
    return [
        _File(number, found[index], path, hashes[index][found[index].name(path)])
        for number, (index, path) in enumerate(pairs)
        if only is None or number in only
    ]


# ---- first pass: keys


def _sign_shard(found: list[Source], target: Path, settings: DedupSettings, shard: tuple[int, int]) -> None:
    """Compute the keys of every n-th file, in TARGET/.parts beside those of the other shards."""
    if (target / MANIFEST_NAME).exists() and not settings.overwrite:
        raise CorpusError(f"{target} holds a finished result already; choose another target, or use --overwrite")
    if target.exists() and not (target / stage.PARTS).exists() and (foreign := sorted(path.name for path in target.iterdir())):
        raise CorpusError(f"{target} holds {len(foreign)} file(s) of another kind, first {foreign[0]}; choose an empty folder")
    pairs = [(source, path) for source in found for path in source.files]
    numbers = set(range(len(pairs))[shard[0] - 1 :: shard[1]])
    # Only this shard's files are hashed: n shards that each hash everything would read the corpus n times.
    mine = [
        Source(source.root, [path for number, (owner, path) in enumerate(pairs) if owner is source and number in numbers],
               source.manifests, source.ignored)
        for source in found
    ]  # fmt: skip
    inputs = [file for source in mine for file in source.inputs()]
    tasks = _sign_tasks(_numbered(found, inputs, numbers), target, _choices(found, settings), settings)
    (target / stage.PARTS).mkdir(parents=True, exist_ok=True)
    with stage.clear_about_disk(target):
        _sign_all(tasks, settings)


def _sign_tasks(files: list[_File], target: Path, choices: dict[str, JsonValue], settings: DedupSettings) -> list[SignTask]:
    decisive = {name: choices[name] for name in ("ngram", "bands", "rows", "seed", "text_field")}
    memory = settings.memory_mib * MIB // (2 * settings.workers)
    return [
        SignTask(
            root=file.source.root,
            path=file.path,
            text_field=settings.text_field,
            max_bad=settings.max_bad,
            folder=target / stage.PARTS / f"{file.number:06d}-keys",
            key=stage.key_hash([STAGE, decisive, code_version(), file.name, file.sha256]),
            minhash=settings.minhash,
            run_documents=max(1, min(memory // bytes_per_document(settings.minhash), MAX_RUN_DOCUMENTS)),
        )
        for file in files
    ]


def _sign_all(tasks: list[SignTask], settings: DedupSettings) -> list[SignedFile]:
    done = {task.folder: signed for task in tasks if (signed := signed_file(task))}
    todo = [task for task in tasks if task.folder not in done]
    for task, signed in zip(todo, _results("keys", sign_file, todo, settings), strict=True):
        done[task.folder] = signed
        num_bad = sum(one.num_bad for one in done.values())
        if num_bad > settings.max_bad:
            raise CorpusError(
                f"{num_bad} bad record(s) up to {task.path}, more than {settings.max_bad}; "
                f"mend the sources or allow more with --max-bad"
            )
    return [done[task.folder] for task in tasks]


# ---- groups, and the second pass


def _find_and_write(
    found: list[Source],
    files: list[_File],
    inputs: list[InputFile],
    target: Path,
    choices: dict[str, JsonValue],
    settings: DedupSettings,
    merge: bool,
) -> Manifest:
    parts = target / stage.PARTS
    tasks = _sign_tasks(files, target, choices, settings)
    missing = [task.path.name for task in tasks if not signed_file(task)]
    if merge and missing:
        raise CorpusError(
            f"{target}: {len(missing)} of {len(tasks)} files have no keys of these settings and this code, first "
            f"{missing[0]}; run the missing --shard i/n again before --merge"
        )
    signed = _sign_all(tasks, settings)
    signatures = Signatures.of([task.folder for task in tasks], signed)
    if not signatures.num_documents:
        raise CorpusError(
            f"{', '.join(file.name for file in files[:3])}: no usable document ({sum(one.num_bad for one in signed)} bad records); "
            f"expected an object a line with its text under {settings.text_field!r}; another name is given with --text-field"
        )
    groups = find_duplicates(signatures, settings.minhash, settings.threshold, settings.memory_mib * MIB // 2, parts)
    key = stage.key_hash([choices, [task.key for task in tasks]])
    write = functools.partial(_write_file, signatures=signatures, folder=parts)
    write_tasks = [
        stage.Task(
            root=file.source.root,
            path=file.path,
            text_field=settings.text_field,
            max_bad=settings.max_bad,
            folder=parts / f"{file.number:06d}",
            output=stage.output_name(file.number, file.name),
            key=key,
        )
        for file in files
    ]
    written = list(_results("documents", write, write_tasks, settings))
    folders = [task.folder for task in write_tasks]
    for folder, part in zip(folders, written, strict=True):
        stage.link_or_copy(folder / f"{stage.DOCUMENTS}.jsonl.zst", target / PARTIAL_NAME / part.documents.path)
    return Manifest(
        stage=STAGE,
        settings=choices,
        code_version=code_version(),
        source="",  # the caller knows it as it was given
        inputs=inputs,
        ignored_inputs=[name for source in found for name in source.ignored],
        files=[part.documents for part in written],
        removed_files=stage.join_removed(zip(folders, [part.removed for part in written], strict=True), target),
        counts=stage.sum_counts([part.counts for part in written]),
        details=_details(groups, settings),
        licence=choices["licence"],
        origin=joined_origin(source.origin() for source in found),
    )


def _details(groups: Duplicates, settings: DedupSettings) -> dict[str, JsonValue]:
    shares = {f"{jaccard:g}": round(settings.minhash.found_share(jaccard), 4) for jaccard in (0.5, 0.6, 0.7, 0.8, 0.9)}
    return {
        "num_groups": groups.num_groups,
        "largest_group_documents": groups.largest_group,
        "near_duplicates_by_similarity_to_kept": dict(groups.near_similarity),
        "share_of_pairs_found_by_similarity": dict(shares),
    }


def _write_file(task: stage.Task, signatures: Signatures, folder: Path) -> stage.Part:
    """Write one file without its copies, unless an earlier run has."""
    if part := stage.whole_part(task):
        return part
    name = int(task.folder.name)
    runs = [run for run in signatures.runs if run.file == name]
    verdicts = _verdicts(runs, folder)

    def transform(document: Document) -> Kept | Removed:
        number, first, exact = next(verdicts)
        if first == number:
            return Kept(document)
        return Removed(document, "exact" if exact else "near", signatures.document_id(first))

    part = stage.make_part(task, transform)
    assert next(verdicts, None) is None, f"{task.path} changed between the two passes"
    return part


def _verdicts(runs: list[Run], folder: Path) -> Iterator[tuple[int, int, bool]]:
    """Of each document of some runs: its number, that of the document kept for it, and whether it equals that one exactly."""
    kept = np.load(folder / "kept.npy", mmap_mode="r")
    exact = np.load(folder / "exact.npy", mmap_mode="r")
    for run in runs:
        # Run by run as Python's numbers: to ask the mapped arrays for one at a time costs more.
        numbers = range(run.first, run.first + run.size)
        here = slice(run.first, run.first + run.size)
        yield from zip(numbers, kept[here].tolist(), exact[here].tolist(), strict=True)


def _results(what: str, work: Callable[[Task], Result], tasks: list[Task], settings: DedupSettings) -> Iterator[Result]:
    """Do each task, here (one worker) or in several processes; results in the order of the tasks."""
    bar = functools.partial(progress_bar, total=len(tasks), desc=what, unit="file", show=settings.progress)
    if settings.workers == 1 or len(tasks) < 2:
        yield from bar(map(work, tasks))
        return
    with worker_pool(min(settings.workers, len(tasks)), fewer_workers(settings.workers)) as pool:
        yield from bar(pool.map(work, tasks))
