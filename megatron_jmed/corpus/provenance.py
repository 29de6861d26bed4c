"""Through which stages did a token set come, what did each remove or change, and which document is from which source?

In: a finished token set. Out: its chain of stages as far back as their folders exist unchanged, with the place and
reason where it ends; and, where the documents it was made from still exist, the source, language and declared facts of
each document. Invariant: nothing is believed that a checksum contradicts, and documents are only told apart if their
numbers of tokens add up to the manifest's, source by source.
"""

import contextlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zstandard

from megatron_jmed.corpus.document import UNKNOWN, BadRecord, parse_batch
from megatron_jmed.corpus.indexed import read_whole_documents
from megatron_jmed.corpus.manifest import MANIFEST_NAME, Manifest, load_manifest, sha256_file
from megatron_jmed.corpus.pool import each_in_order
from megatron_jmed.corpus.reader import RawBatch, find_source, read_batches
from megatron_jmed.corpus.token_set import NAME
from megatron_jmed.errors import CorpusError

MAX_GROUPS = 32
OTHER = "(other)"
MIXED = "(mixed)"
TIME_FIELDS = ("date", "year", "published", "publication_date", "created", "time")
TRANSLATED_FIELDS = ("machine_translated", "is_machine_translated", "translated")
YEARS = range(1000, 2101)
# What a stage removed or changed is summed under these heads, by the beginning of the stage's name.
HEADS = {"dedup": "duplicates", "decontaminate": "contaminated", "mask": "masked", "privacy": "masked"}
UNREADABLE = {"blank_line", "broken_json", "invalid_utf8", "lone_surrogate", "missing_text", "not_an_object"}


# ---- the chain of stages


@dataclass(frozen=True)
class Chain:
    """The stages behind a token set, latest first, and where and why nothing earlier is known."""

    steps: list[dict[str, Any]]
    ends: list[str]

    def licences(self) -> list[str]:
        return sorted({step["licence"] for step in self.steps if step["licence"]})

    def removed(self) -> dict[str, dict[str, int]]:
        """Removed documents and changes by head (duplicates, contaminated, masked, other) and `stage: reason`."""
        found: dict[str, dict[str, int]] = {}
        for step in self.steps:
            head = next((name for start, name in HEADS.items() if step["stage"].startswith(start)), "other")
            counted = step["details"] if head == "masked" else {}
            for reason, count in [*step["dropped"].items(), *counted.items()]:
                sums = found.setdefault("other" if reason in UNREADABLE else head, {})
                name = f"{step['stage']}: {reason}"
                sums[name] = sums.get(name, 0) + count
        return {head: dict(sorted(sums.items())) for head, sums in sorted(found.items())}

    def ran(self, head: str) -> bool:
        """Whether a stage of this head is in the chain: without it, nothing removed does not mean nothing there."""
        return any(step["stage"].startswith(start) for step in self.steps for start, h in HEADS.items() if h == head)


def follow_chain(folder: Path) -> Chain:
    """Follow the manifests' `source` back from a finished folder."""
    chain, waiting, seen = Chain([], []), [Path(folder)], set()
    while waiting:
        here = waiting.pop(0)
        if here.resolve() in seen:
            continue
        seen.add(here.resolve())
        manifest = load_manifest(here)
        chain.steps.append(_step(here, manifest))
        before, reason = _before(manifest)
        waiting += before
        if reason:
            chain.ends.append(f"{manifest.stage} read {manifest.source}: {reason}")
    return chain


def _step(folder: Path, manifest: Manifest) -> dict[str, Any]:
    counts = manifest.counts
    return {
        "stage": manifest.stage,
        "folder": folder.name,
        "created": manifest.created,
        "code_version": manifest.code_version,
        "settings": manifest.settings,
        "inputs": [file.model_dump() for file in manifest.inputs],
        "documents": counts.documents,
        "characters": counts.characters,
        "dropped": counts.dropped,
        "details": _whole_numbers(manifest.details.get("counts")),
        "licence": manifest.licence,
        "origin": manifest.origin.model_dump(),
    }


def _whole_numbers(counts: Any, before: str = "") -> dict[str, int]:
    """The numbers of a manifest's `details.counts`; those in nested tables get joined names."""
    found: dict[str, int] = {}
    for name, value in counts.items() if isinstance(counts, dict) else ():
        if isinstance(value, dict):
            found |= _whole_numbers(value, f"{before}{name}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            found[before + name] = value
    return found


def _before(manifest: Manifest) -> tuple[list[Path], str]:
    """The finished folders that a stage read, and what is not known about the rest of its source."""
    source = Path(manifest.source)
    if not source.exists():
        return [], "no longer there"
    listed = {file.path: file for file in manifest.inputs}
    stages = [path for path in listed if Path(path).name == MANIFEST_NAME]
    if not stages:
        return [], f"{len(listed)} file(s) that no stage made (checksums in its manifest)"
    sound = [path for path in stages if (source / path).is_file() and sha256_file(source / path) == listed[path].sha256]
    lost = len(stages) - len(sound)
    plain = len(listed) - len(stages)
    reasons = [f"{lost} of {len(stages)} manifests gone or changed since"] if lost else []
    reasons += [f"{plain} file(s) that no stage made (checksums in its manifest)"] if plain else []
    return [(source / path).parent for path in sound], "; ".join(reasons)


# ---- which document is from where


@dataclass
class Facts:
    """What the documents of one group declare about themselves."""

    first_year: int | None = None
    last_year: int | None = None
    dated: int = 0
    translated: int = 0
    translated_tokens: int = 0
    not_translated: int = 0

    def add(self, years: np.ndarray, translated: np.ndarray, lengths: np.ndarray) -> None:
        """What some documents say: year (0: nothing), translated (1, 0; -1: nothing), and their numbers of tokens."""
        years = years[years > 0]
        if len(years):
            self.dated += len(years)
            self.first_year = min(int(years.min()), self.first_year or 9999)
            self.last_year = max(int(years.max()), self.last_year or 0)
        self.translated += int((translated == 1).sum())
        self.translated_tokens += int(lengths[translated == 1].sum(dtype=np.int64))
        self.not_translated += int((translated == 0).sum())


@dataclass
class Attribution:
    """The group of each document; `how` says where that is from."""

    names: list[tuple[str, str]]  # (source, language) of each group
    groups: np.ndarray  # i16
    how: str
    facts: list[Facts] = field(default_factory=list)


def declared_year(meta: dict[str, Any]) -> int | None:
    """The year in the first of TIME_FIELDS that begins with one (2021, "2021-03-05"); None if there is none."""
    for name in TIME_FIELDS:
        text = str(meta.get(name, ""))[:4]
        if text.isascii() and text.isdecimal() and int(text) in YEARS:
            return int(text)
    return None


def attribute(folder: Path, manifest: Manifest, workers: int = 1) -> Attribution:
    """Tell the documents of a token set apart by reading their records again; if those are gone, as one group."""
    num_documents = manifest.counts.documents
    missing = source_problem(manifest)
    if missing:
        only = [next(iter(c)) if len(c) == 1 else MIXED for c in (manifest.counts.by_source, manifest.counts.by_lang)]
        one = np.zeros(num_documents, dtype=np.int16)
        how = f"one group, because the documents it was made from are not at hand: {missing}"
        return Attribution([(only[0], only[1])], one, how, [Facts()])
    found = _read_again(folder, manifest, workers)
    check_sums(folder, manifest, found)
    return found


def source_problem(manifest: Manifest) -> str:
    """Why the documents cannot be read again, or nothing."""
    try:
        source = find_source(manifest.source)
    except CorpusError as error:
        return str(error)
    return "" if source.inputs() == manifest.inputs else f"{manifest.source} has changed since"


def _read_again(folder: Path, manifest: Manifest, workers: int) -> Attribution:
    lengths = read_whole_documents(folder / f"{NAME}.idx").lengths
    text_field = str(manifest.settings.get("text_field", "text"))
    without_tokens: dict[str, set[int]] = defaultdict(set)
    for file, line in places(folder, manifest, "no_tokens"):
        without_tokens[file].add(line)
    numbers: dict[tuple[str, str], int] = {}
    groups, facts = np.zeros(len(lengths), dtype=np.int16), list[Facts]()
    position = 0
    batches = ((batch, without_tokens.get(batch.file, set())) for batch in read_batches(find_source(manifest.source), text_field))
    said_by_batch = each_in_order(workers, lambda: "; use fewer --workers and run again", _said, batches, text_field)
    with contextlib.closing(said_by_batch):
        for said in said_by_batch:
            end = position + len(said.groups)
            if end > len(lengths):
                raise CorpusError(f"{manifest.source} holds more documents than the {len(lengths)} of {folder}; tokenise again")
            global_numbers = np.array([_group_number(name, numbers) for name in said.names], dtype=np.int16)
            facts += [Facts() for _ in range(len(numbers) - len(facts))]
            here = groups[position:end] = global_numbers[said.groups] if end > position else said.groups
            for group in np.unique(here):
                mine = here == group
                facts[group].add(said.years[mine], said.translated[mine], lengths[position:end][mine])
            position = end
    if position != len(lengths):
        raise CorpusError(f"{manifest.source} holds {position} documents, {folder} has {len(lengths)}; tokenise again")
    return Attribution(list(numbers), groups, "the records it was made from, read again", facts)


@dataclass(frozen=True)
class _Said:
    """What the documents of one batch say about themselves."""

    names: list[tuple[str, str]]  # (source, language), in order of appearance
    groups: np.ndarray  # i32, into `names`
    years: np.ndarray  # i16; 0: nothing
    translated: np.ndarray  # i8; 1 or 0, or -1: nothing


def _said(batch_and_lines: tuple[RawBatch, set[int]], text_field: str) -> _Said:
    """Read a batch again, without the lines that gave no tokens."""
    batch, without_tokens = batch_and_lines
    names: dict[tuple[str, str], int] = {}
    groups, years, translated = [], [], []
    for line, record in enumerate(parse_batch(batch, text_field), batch.first_line):
        if isinstance(record, BadRecord) or line in without_tokens:
            continue
        groups.append(names.setdefault((record.source or UNKNOWN, record.lang or UNKNOWN), len(names)))
        years.append(declared_year(record.meta) or 0)
        declared = next((record.meta[name] for name in TRANSLATED_FIELDS if isinstance(record.meta.get(name), bool)), -1)
        translated.append(int(declared))
    return _Said(list(names), np.array(groups, np.int32), np.array(years, np.int16), np.array(translated, np.int8))


def _group_number(name: tuple[str, str], numbers: dict[tuple[str, str], int]) -> int:
    """The number of a group; those beyond MAX_GROUPS share the last."""
    if name not in numbers and len(numbers) >= MAX_GROUPS - 1:
        name = (OTHER, OTHER)
    return numbers.setdefault(name, len(numbers))


def places(folder: Path, manifest: Manifest, reason: str) -> set[tuple[str, int]]:
    """File and line of the records removed for a reason."""
    places = set()
    for file in manifest.removed_files:
        if Path(file.path).name.split(".")[0] == reason:
            data = (folder / file.path).read_bytes()
            if file.path.endswith(".zst"):
                data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
            places |= {(kept["file"], kept["line"]) for kept in map(orjson.loads, data.splitlines())}
    return places


def check_sums(folder: Path, manifest: Manifest, found: Attribution) -> None:
    """Compare tokens by source and by language with the manifest: a shift by one document would show."""
    lengths = read_whole_documents(folder / f"{NAME}.idx").lengths
    tokens = np.bincount(found.groups, lengths, len(found.names)).astype(np.int64)
    for place, counts in enumerate((manifest.counts.by_source, manifest.counts.by_lang)):
        sums: Counter[str] = Counter()
        for name, number in zip(found.names, tokens.tolist(), strict=True):
            sums[name[place]] += number
        wrong = [name for name in sums if name != OTHER and name in counts and counts[name].tokens < sums[name]]
        exact = OTHER in sums or OTHER in counts
        wrong += [] if exact else [name for name in counts if counts[name].tokens != sums[name]]
        if wrong:
            raise CorpusError(
                f"{folder}: the documents of {manifest.source} do not line up with its tokens: {wrong[0]!r} has "
                f"{sums[wrong[0]]} tokens by document, {counts[wrong[0]].tokens} by the manifest; tokenise again"
            )
