"""How does a stage that looks at one document at a time run over many files, and survive being killed?

In: a source, and a function that makes the stage's transform (Document -> Kept or Removed). Out:
TARGET/documents/<one .jsonl.zst per input file>, TARGET/removed/REASON.jsonl.zst for removed documents,
TARGET/removed/REASON.jsonl for records that are no documents, and manifest.json last.
Many files are shared out among the workers; one that is larger than its share is done by all of them, batch by batch.
While it runs, TARGET/.parts/NUMBER holds what became of one input file (parts.py). A rerun keeps a part whose record
names the same input hash, settings and code, and does the others. With shard (i, n) the run takes every n-th file and
writes TARGET/shard-i-of-n (shards.py).
Invariant: documents keep the order of the source, every record is kept or filed under a reason, and the published
files are the same, byte for byte, for any number of workers or shards and however often the run was killed.
"""

import contextlib
import functools
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from pydantic import JsonValue

from megatron_jmed.corpus.counts import sum_counts, sum_numbers
from megatron_jmed.corpus.manifest import (
    PARTIAL_NAME,
    InputFile,
    Manifest,
    Origin,
    Translation,
    code_version,
    publish,
)
from megatron_jmed.corpus.part_folders import (
    PARTS,
    RECORD,
    REMOVED,
    clear_about_disk,
    file_hashes,
    join_removed,
    key_hash,
    link_or_copy,
    opened,
)
from megatron_jmed.corpus.parts import (
    DOCUMENTS,
    DoneBatch,
    Kept,
    Part,
    Removed,
    Task,
    Transform,
    do_batch,
    make_part,
    output_name,
    whole_part,
    write_part,
)
from megatron_jmed.corpus.pool import fewer_workers, in_order, worker_pool
from megatron_jmed.corpus.progress_bar import progress_bar
from megatron_jmed.corpus.reader import RawBatch, Source, find_source
from megatron_jmed.corpus.shards import (
    OUTPUT_NAMES,
    check_shard,
    link_removed,
    merge_shards,
    of_shard,
    parse_shard,
    shard_folder,
)
from megatron_jmed.errors import CorpusError

# What a stage needs, under one roof.
__all__ = [
    "DOCUMENTS", "OUTPUT_NAMES", "PARTS", "RECORD", "REMOVED", "Kept", "Part", "Removed", "Task", "Transform",
    "clear_about_disk", "file_hashes", "join_removed", "key_hash", "link_or_copy", "make_part", "merge_shards",
    "output_name", "parse_shard", "run_stage", "sum_counts", "whole_part",
]  # fmt: skip


def run_stage(
    stage: str,
    source: Path,
    target: Path,
    settings: dict[str, JsonValue],
    make_transform: Callable[[], Transform],
    *,
    workers: int = 1,
    text_field: str = "text",
    max_bad: int = 100,
    shard: tuple[int, int] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    licence: str | None = None,
    translation: Translation | None = None,
) -> Manifest:
    """Send every document of a source through a transform; a finished target is left as it is.

    `make_transform` must be picklable; it is called once in each worker; a stage that translates says so.
    Raises CorpusError for what the user can mend: a damaged file, more than `max_bad` bad records, a target of another
    run, a dead worker, a full disk.
    """
    _check_words(workers, max_bad)
    found, target = find_source(source), Path(target)
    licence = licence or found.licence()
    choices = {**settings, "text_field": text_field, "max_bad": max_bad, "licence": licence}
    details: dict[str, JsonValue] = {"num_source_files": len(found.files)}
    numbered = list(enumerate(found.files))
    if shard:
        check_shard(target, shard, overwrite)
        numbered, target = numbered[shard[0] - 1 :: shard[1]], shard_folder(target, shard)
        choices, details = of_shard(choices, details, shard, found)
    mine = Source(found.root, [path for _, path in numbered], found.manifests, found.ignored)
    inputs = mine.inputs()
    with opened(target, stage, choices, inputs, OUTPUT_NAMES, overwrite) as finished:
        if finished:
            return finished
        if found.ignored:
            first = ", ".join(found.ignored[:5])
            print(f"ignored {len(found.ignored)} file(s) of other kinds in {source}: {first}", file=sys.stderr)
        tasks = _tasks(mine, numbered, inputs, target, stage, choices, max_bad)
        parts = _all_parts(tasks, make_transform, workers, max_bad, progress)
        counts = sum_counts([part.counts for part in parts])
        if not shard and not counts.documents and not counts.dropped:
            raise CorpusError(f"{source} holds no record: its {len(found.files)} file(s) are empty")
        if not shard and not counts.documents and sum(part.num_bad for part in parts) == sum(counts.dropped.values()):
            raise CorpusError(f"no record of {source} is a document ({counts.dropped}); expected an object a line with "
                              f"its text under {text_field!r}; another name is given with --text-field")
        details["counts"] = sum_numbers(part.details for part in parts)
        folders = [task.folder for task in tasks]
        keep_removed = link_removed if shard else join_removed
        for folder, part in zip(folders, parts, strict=True):
            link_or_copy(folder / f"{DOCUMENTS}.jsonl.zst", target / PARTIAL_NAME / part.documents.path)
        manifest = Manifest(
            stage=stage,
            settings=choices,
            code_version=code_version(),
            source=str(source),
            inputs=inputs,
            ignored_inputs=found.ignored,
            files=[part.documents for part in parts],
            removed_files=keep_removed(zip(folders, [part.removed for part in parts], strict=True), target),
            counts=counts,
            details=details,
            licence=licence,
            origin=_origin(found, translation),
        )
        publish(target, manifest, OUTPUT_NAMES)
    return manifest


def _origin(source: Source, translation: Translation | None) -> Origin:
    before = source.origin()
    if translation is None:
        return before
    return Origin(kind="machine_translated", translations=[*before.translations, translation])


def _tasks(
    source: Source,
    numbered: list[tuple[int, Path]],
    inputs: list[InputFile],
    target: Path,
    stage: str,
    choices: dict[str, JsonValue],
    max_bad: int,
) -> list[Task]:
    # What does not change the output of one file (the budget, the shard) is left out, so that its part is reused.
    same = {name: value for name, value in choices.items() if name not in ("max_bad", "licence", "shard")}
    hashes = file_hashes(source, inputs)
    seed = [stage, same, code_version()]
    return [
        Task(
            root=source.root,
            path=path,
            text_field=str(choices["text_field"]),
            max_bad=max_bad,
            folder=target / PARTS / f"{number:06d}",
            output=output_name(number, source.name(path)),
            key=key_hash([*seed, number, source.name(path), hashes[source.name(path)]]),
        )
        for number, path in numbered
    ]


def _check_words(workers: int, max_bad: int) -> None:
    problems = []
    if workers < 1:
        problems.append(f"--workers {workers} is too small; at least 1 is needed")
    if max_bad < 0:
        problems.append(f"--max-bad {max_bad} is negative; 0 allows no bad record")
    if problems:
        raise CorpusError("; ".join(problems))


# ---- the input files


def _all_parts(
    tasks: list[Task], make_transform: Callable[[], Transform], workers: int, max_bad: int, progress: bool
) -> list[Part]:
    """Do the files that have no whole part yet; the parts in the order of the tasks."""
    for folder in {task.folder.parent for task in tasks}:
        for leftover in folder.glob("*.tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    parts = {task: part for task in tasks if (part := whole_part(task))}
    todo = [task for task in tasks if task not in parts]
    if parts:
        print(f"{len(parts)} of {len(tasks)} file(s) were finished by an earlier run", file=sys.stderr)
    total = sum(_size(task) for task in tasks)
    with progress_bar(total=total, unit="B", unit_scale=True, show=progress) as bar:
        bar.update(sum(_size(task) for task in parts))
        with contextlib.closing(_made_parts(todo, make_transform, workers, bar.update)) as made:
            for task, part in made:
                parts[task] = part
                _check_budget(parts, max_bad)
        _check_budget(parts, max_bad)
    return [parts[task] for task in tasks]


def _check_budget(parts: dict[Task, Part], max_bad: int) -> None:
    """RemovedRecords watches the budget within a file; this watches their sum."""
    num_bad = sum(part.num_bad for part in parts.values())
    if num_bad > max_bad:
        worst = max(parts, key=lambda task: parts[task].num_bad)
        raise CorpusError(
            f"{num_bad} bad record(s) in {len(parts)} file(s), more than {max_bad}; {worst.path} has most of them "
            f"({parts[worst].num_bad}), kept in {worst.folder / REMOVED}; mend the source or allow more with --max-bad"
        )


def _made_parts(
    tasks: list[Task], make_transform: Callable[[], Transform], workers: int, advance: Callable[[int], object]
) -> Iterator[tuple[Task, Part]]:
    """Do each file, here (one worker) or in several processes; in the order in which they are finished."""
    if not tasks:
        return
    if workers == 1:
        transform = make_transform()
        for task in tasks:
            do_here = functools.partial(_batches_here, task.text_field, transform)
            yield task, write_part(task, do_here, advance)
        return
    pickled = pickle.dumps(make_transform)
    large, small = large_and_small(tasks, workers)
    with worker_pool(workers, fewer_workers(workers)) as pool:
        futures = {pool.submit(_make_part_in_worker, task, pickled): task for task in small}
        for future in as_completed(futures):
            part = future.result()
            advance(_size(futures[future]))
            yield futures[future], part
        # Last, because a kill within a large file costs the most: what is finished by then is kept.
        for task in reversed(large):
            do = functools.partial(_batches_in_workers, pool, workers, task.text_field, pickled)
            yield task, write_part(task, do, advance)


def large_and_small(tasks: list[Task], workers: int) -> tuple[list[Task], list[Task]]:
    """Which files are to be shared by all workers, batch by batch, and which are one worker's each; the largest first.

    Files of their own are less work for the parent, but nobody should be alone with one at the end: where fewer files
    than workers are left, or one is more than one and a half fair shares of what is left, it is shared.
    """
    small = sorted(tasks, key=lambda task: -_size(task))
    large = []
    while small and (len(small) < workers or 2 * _size(small[0]) * workers > 3 * sum(map(_size, small))):
        large.append(small.pop(0))
    return large, small


def _size(task: Task) -> int:
    return task.path.stat().st_size


def _batches_here(text_field: str, transform: Transform, batches: Iterator[RawBatch]) -> Iterator[DoneBatch]:
    return (do_batch(batch, text_field, transform) for batch in batches)


def _batches_in_workers(
    pool: ProcessPoolExecutor, workers: int, text_field: str, pickled: bytes, batches: Iterator[RawBatch]
) -> Iterator[DoneBatch]:
    return in_order(pool, workers, _do_batch_in_worker, batches, text_field, pickled)


def _do_batch_in_worker(batch: RawBatch, text_field: str, pickled: bytes) -> DoneBatch:
    return do_batch(batch, text_field, _transform_of_worker(pickled))


def _make_part_in_worker(task: Task, pickled: bytes) -> Part:
    return make_part(task, _transform_of_worker(pickled))


@functools.cache
def _transform_of_worker(pickled: bytes) -> Transform:
    """One transform per worker process."""
    return pickle.loads(pickled)()
