"""How is one run spread over several machines, and made whole again?

A run with shard (i, n) takes its share of the files and leaves a finished folder TARGET/shard-i-of-n; `merge_shards`
publishes all of them in TARGET (token_shards.py does that for tokens). Invariant: the merged folder equals, byte for
byte, that of one unsharded run; nothing is published unless all n shards are there, finished, of one run, and together
within the budget of bad records.
"""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import orjson
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
from megatron_jmed.corpus.part_folders import REMOVED, clear_about_disk, join_removed, key_hash, link_or_copy
from megatron_jmed.corpus.parts import DOCUMENTS
from megatron_jmed.corpus.reader import SHARD_FOLDER, Source
from megatron_jmed.errors import CorpusError

OUTPUT_NAMES = (DOCUMENTS, REMOVED)
MERGED = ".merged"  # all shards are published and about to be deleted
BAD_RECORDS = ".jsonl"  # what files of records that are no documents end in; those of removed documents are compressed


def parse_shard(text: str) -> tuple[int, int]:
    """'2/8' is the second of eight shards; CorpusError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match:
        raise CorpusError(f"--shard {text!r} is not of the form i/n, for example 1/8 for the first of eight")
    return int(match[1]), int(match[2])


def check_shard(target: Path, shard: tuple[int, int], overwrite: bool) -> None:
    """CorpusError if there is no such shard, or if TARGET holds a finished result."""
    if not 1 <= shard[0] <= shard[1]:
        raise CorpusError(f"--shard {shard[0]}/{shard[1]} does not exist; shards of n are 1/n to n/n")
    if (target / MANIFEST_NAME).exists() and not overwrite:
        raise CorpusError(f"{target} holds a finished result already; choose another target, or use --overwrite")
    (target / MERGED).unlink(missing_ok=True)


def shard_folder(target: Path, shard: tuple[int, int]) -> Path:
    return target / f"shard-{shard[0]}-of-{shard[1]}"


def file_range(files: list[Path], shard: tuple[int, int]) -> list[Path]:
    """The i-th of n ranges of consecutive files, with about equal numbers of bytes; perhaps none."""
    sizes = [path.stat().st_size + 1 for path in files]  # so that empty files have a place too
    total, begin, mine = sum(sizes), 0, []
    for path, size in zip(files, sizes, strict=True):
        # A file belongs where its middle lies: twice the middle over twice the total, in n-ths.
        if (2 * begin + size) * shard[1] // (2 * total) == shard[0] - 1:
            mine.append(path)
        begin += size
    return mine


def of_shard(
    settings: dict[str, JsonValue], details: dict[str, JsonValue], shard: tuple[int, int], source: Source
) -> tuple[dict[str, JsonValue], dict[str, JsonValue]]:
    """Settings and details of a shard: with what all shards must agree on, the names and sizes of the whole source.

    The budget of bad records is no setting of a shard, so that others may be run again with a larger one.
    """
    listed = [[source.name(path), path.stat().st_size] for path in source.files]
    agreed = {"num_source_files": len(listed), "source_files_sha256": key_hash(listed), "max_bad": settings["max_bad"]}
    rest = {name: value for name, value in settings.items() if name != "max_bad"}
    return rest | {"shard": f"{shard[0]}/{shard[1]}"}, details | agreed


Publish = Callable[[Path, list[Manifest], dict[str, JsonValue], list[InputFile]], Manifest]


def merge_shards(
    target: Path, overwrite: bool = False, max_bad: int | None = None, other_outputs: tuple[str, ...] = ()
) -> Manifest:
    """Publish what the shards in TARGET made, as one unsharded run would have; CorpusError if one is missing or differs.

    `max_bad` is the budget of bad records for all of them together; if None, the largest that a shard was given;
    `other_outputs` are files that the stage writes by itself afterwards, so that old ones go.
    """
    return merge(target, overwrite, max_bad, (*OUTPUT_NAMES, *other_outputs), _publish_shards)


def merge(
    target: Path, overwrite: bool, max_bad: int | None, output_names: tuple[str, ...], publish_shards: Publish
) -> Manifest:
    """Check the shards, let `publish_shards` join them, and delete them; a merge that was killed is done again."""
    target = Path(target)
    shards = sorted(path for path in target.glob("*") if SHARD_FOLDER.fullmatch(path.name))
    if not shards or (target / MERGED).exists():
        if (target / MANIFEST_NAME).exists():
            return _without_shards(target, shards)
        raise CorpusError(f"{target} holds no shard-i-of-n folder; run the stage with --shard 1/n to n/n first")
    manifests = _load_shards(target, shards)
    first = manifests[0]
    settings = {name: value for name, value in first.settings.items() if name != "shard"}
    settings["max_bad"] = max(one.details["max_bad"] for one in manifests) if max_bad is None else max_bad
    _check_budget(target, manifests, settings["max_bad"])
    unique = {file.path: file for manifest in manifests for file in manifest.inputs}
    inputs = sorted(unique.values(), key=lambda file: Path(file.path))
    (target / PARTIAL_NAME).mkdir(exist_ok=True)
    names = [path.name for path in shards]
    if not open_target(target, first.stage, settings, inputs, (*output_names, *names, MERGED), overwrite):
        with clear_about_disk(target):
            publish(target, publish_shards(target, manifests, settings, inputs), output_names)
    # From here the shards are no longer needed; without the mark, a kill would leave a result beside half of them.
    (target / MERGED).touch()
    return _without_shards(target, shards)


def _without_shards(target: Path, shards: list[Path]) -> Manifest:
    for path in shards:
        shutil.rmtree(path)
    (target / MERGED).unlink(missing_ok=True)
    return load_manifest(target)


def _check_budget(target: Path, manifests: list[Manifest], max_bad: int) -> None:
    """Each shard kept to the budget alone; this holds it against their sum."""
    bad = [
        (shard_folder(target, (index, len(manifests))) / file.path, file.rows)
        for index, manifest in enumerate(manifests, 1)
        for file in manifest.removed_files
        if file.path.endswith(BAD_RECORDS)
    ]
    num_bad = sum(rows for _, rows in bad)
    if num_bad <= max_bad:
        return
    by_file: Counter[str] = Counter()
    kept_in: dict[str, Path] = {}
    for path, _ in bad:
        with open(path, "rb") as stream:
            for line in stream:
                name = orjson.loads(line)["file"]
                by_file[name] += 1
                kept_in[name] = path.parent
    worst, most = by_file.most_common(1)[0]
    raise CorpusError(
        f"{target}: {num_bad} bad record(s) in {len(by_file)} file(s) of all shards together, more than {max_bad}; {worst} has "
        f"most of them ({most}), kept in {kept_in[worst]}; mend the source, or merge with a larger --max-bad"
    )


def _load_shards(target: Path, shards: list[Path]) -> list[Manifest]:
    """The manifests of shards 1 to n; CorpusError unless all are there, finished, and of one run."""
    totals = {int(path.name.split("-")[-1]) for path in shards}
    if len(totals) > 1:
        raise CorpusError(f"{target} holds shards of {sorted(totals)} runs; delete those that do not belong together")
    num_shards = totals.pop()
    wanted = [shard_folder(target, (index, num_shards)) for index in range(1, num_shards + 1)]
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
    return manifests


def _publish_shards(
    target: Path, manifests: list[Manifest], settings: dict[str, JsonValue], inputs: list[InputFile]
) -> Manifest:
    num_shards, first = len(manifests), manifests[0]
    if "counts" not in first.details:
        raise CorpusError(f"{target} holds shards of stage {first.stage!r}; merge them with its own tool")
    if (there := sum(len(manifest.files) for manifest in manifests)) != first.details["num_source_files"]:
        raise CorpusError(f"{target}: the shards hold {there} files of {first.details['num_source_files']}")
    folders = [shard_folder(target, (index, num_shards)) for index in range(1, num_shards + 1)]
    for folder, manifest in zip(folders, manifests, strict=True):
        for file in manifest.files:
            link_or_copy(folder / file.path, target / PARTIAL_NAME / file.path)
    return first.model_copy(
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
