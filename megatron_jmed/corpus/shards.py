"""How is one run spread over several machines, and made whole again?

A run with shard (i, n) takes every n-th file and leaves a finished folder TARGET/shard-i-of-n; `merge_shards` publishes
all of them in TARGET. Invariant: the merged folder equals, byte for byte, that of one unsharded run; nothing is
published unless all n shards are there, finished, and of one run.
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import JsonValue

from megatron_jmed.corpus.counts import sum_counts, sum_numbers
from megatron_jmed.corpus.manifest import (
    MANIFEST_NAME,
    PARTIAL_NAME,
    InputFile,
    Manifest,
    OutputFile,
    check_files,
    load_manifest,
    open_target,
    publish,
)
from megatron_jmed.corpus.part_folders import REMOVED, clear_about_disk, join_removed, link_or_copy
from megatron_jmed.corpus.parts import DOCUMENTS
from megatron_jmed.corpus.reader import SHARD_FOLDER
from megatron_jmed.errors import CorpusError

OUTPUT_NAMES = (DOCUMENTS, REMOVED)


def parse_shard(text: str) -> tuple[int, int]:
    """'2/8' is the second of eight shards; CorpusError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match:
        raise CorpusError(f"--shard {text!r} is not of the form i/n, for example 1/8 for the first of eight")
    return int(match[1]), int(match[2])


def merge_shards(target: Path, overwrite: bool = False) -> Manifest:
    """Publish what the shards in TARGET made, as one unsharded run would have; CorpusError if one is missing or differs."""
    target = Path(target)
    shards = sorted(path for path in target.glob("*") if SHARD_FOLDER.fullmatch(path.name))
    if not shards:
        if (target / MANIFEST_NAME).exists():
            return load_manifest(target)
        raise CorpusError(f"{target} holds no shard-i-of-n folder; run the stage with --shard 1/n to n/n first")
    manifests = _load_shards(target, shards)
    first = manifests[0]
    settings = {name: value for name, value in first.settings.items() if name != "shard"}
    unique = {file.path: file for manifest in manifests for file in manifest.inputs}
    inputs = sorted(unique.values(), key=lambda file: Path(file.path))
    (target / PARTIAL_NAME).mkdir(exist_ok=True)
    names = [path.name for path in shards]
    if not (finished := open_target(target, first.stage, settings, inputs, (*OUTPUT_NAMES, *names), overwrite)):
        with clear_about_disk(target):
            finished = _publish_shards(target, manifests, settings, inputs)
    for path in shards:
        shutil.rmtree(path)
    return finished


def _load_shards(target: Path, shards: list[Path]) -> list[Manifest]:
    """The manifests of shards 1 to n; CorpusError unless all are there, finished, and of one run."""
    totals = {int(path.name.split("-")[-1]) for path in shards}
    if len(totals) > 1:
        raise CorpusError(f"{target} holds shards of {sorted(totals)} runs; delete those that do not belong together")
    num_shards = totals.pop()
    wanted = [target / f"shard-{index}-of-{num_shards}" for index in range(1, num_shards + 1)]
    if missing := [path.name for path in wanted if not (path / MANIFEST_NAME).exists()]:
        raise CorpusError(f"{target}: {len(missing)} of {num_shards} shards are not finished: {', '.join(missing[:10])}")
    manifests = [load_manifest(path) for path in wanted]
    for path, manifest in zip(wanted, manifests, strict=True):
        check_files(path, manifest)
        for what, there, first in (
            ("stage", manifest.stage, manifests[0].stage),
            ("code version", manifest.code_version, manifests[0].code_version),
            ("settings", manifest.settings | {"shard": ""}, manifests[0].settings | {"shard": ""}),
            ("source files", manifest.details["source_files_sha256"], manifests[0].details["source_files_sha256"]),
        ):
            if there != first:
                raise CorpusError(f"{path}: {what} {there!r} differ from {first!r} of shard 1; run that shard again")
    if (there := sum(len(manifest.files) for manifest in manifests)) != manifests[0].details["num_source_files"]:
        raise CorpusError(f"{target}: the shards hold {there} files of {manifests[0].details['num_source_files']}")
    return manifests


def _publish_shards(
    target: Path, manifests: list[Manifest], settings: dict[str, JsonValue], inputs: list[InputFile]
) -> Manifest:
    num_shards = len(manifests)
    folders = [target / f"shard-{index}-of-{num_shards}" for index in range(1, num_shards + 1)]
    for folder, manifest in zip(folders, manifests, strict=True):
        for file in manifest.files:
            link_or_copy(folder / file.path, target / PARTIAL_NAME / file.path)
    first = manifests[0]
    merged = first.model_copy(
        update={
            "settings": settings,
            "inputs": inputs,
            "files": sorted((file for manifest in manifests for file in manifest.files), key=lambda file: file.path),
            "removed_files": join_removed(_removed_by_file(folders, manifests), target),
            "counts": sum_counts([manifest.counts for manifest in manifests]),
            "details": {
                "num_source_files": first.details["num_source_files"],
                "counts": sum_numbers(manifest.details["counts"] for manifest in manifests),
            },
        }
    )
    publish(target, merged, OUTPUT_NAMES)
    return merged


def link_removed(parts: Iterable[tuple[Path, list[OutputFile]]], target: Path) -> list[OutputFile]:
    """A shard's removed records stay apart by input file, so that the merge can put all in the order of the source."""
    linked = []
    for folder, files in parts:
        for file in files:
            name = f"{REMOVED}/{folder.name}/{Path(file.path).name}"
            link_or_copy(folder / file.path, target / PARTIAL_NAME / name)
            linked.append(file.model_copy(update={"path": name}))
    return linked


def _removed_by_file(shards: list[Path], manifests: list[Manifest]) -> Iterator[tuple[Path, list[OutputFile]]]:
    """What `link_removed` kept apart in all shards, in the order of the input files."""
    found = [(file, shard) for shard, manifest in zip(shards, manifests, strict=True) for file in manifest.removed_files]
    for file, shard in sorted(found, key=lambda pair: pair[0].path):
        folder, name = Path(file.path).parent, Path(file.path).name
        yield shard / folder, [file.model_copy(update={"path": name})]
