"""What is document number N of a token set called, and which number has a document of that name?

In: a finished token set, and the documents it was made from, unchanged. A token set keeps no names; they are read again
from the source, in its order, without the records that became no tokens. Out: a folder beside the token set, SET.listing:

    ids.bin         the ids in UTF-8, one after the other           groups.bin      i16, index into details.groups
    ends.bin        i64, the byte of ids.bin at which each ends     characters.bin  i32, of the whole text

and manifest.json, whose only input is the token set's own manifest: the listing of a set that was made anew counts for
nothing. All is memory-mapped: to open one costs nothing, to find an id costs reading ids.bin once.
Invariant: documents of the listing and of the set are as many, and their tokens (by source and language) and characters
add up to what the set's manifest says.
"""

import contextlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_jmed.corpus.document import UNKNOWN, BadRecord, parse_batch
from megatron_jmed.corpus.manifest import (
    MANIFEST_NAME,
    PARTIAL_NAME,
    Counts,
    InputFile,
    Manifest,
    check_files,
    code_version,
    input_file,
    load_manifest,
    open_target,
    publish,
)
from megatron_jmed.corpus.part_folders import clear_about_disk, output_file, sync_files
from megatron_jmed.corpus.pool import each_in_order
from megatron_jmed.corpus.provenance import OTHER, Attribution, check_sums, places, source_problem
from megatron_jmed.corpus.reader import RawBatch, find_source, read_batches
from megatron_jmed.corpus.token_set import TOKENS_STAGE
from megatron_jmed.errors import CorpusError

STAGE = "list"
SUFFIX = ".listing"
IDS, ENDS, GROUPS, CHARACTERS = OUTPUT_NAMES = ("ids.bin", "ends.bin", "groups.bin", "characters.bin")
MAX_GROUPS = 32_000
DOCUMENTS_AT_ONCE = 2**22


def listing_folder(token_set: Path) -> Path:
    return token_set.with_name(token_set.name + SUFFIX)


def list_documents(token_set: str | Path, workers: int = 1) -> Manifest:
    """Write the listing of a token set beside it; one that is there and right is left as it is."""
    token_set = Path(token_set)
    manifest, target = load_manifest(token_set), listing_folder(token_set)
    if manifest.stage != TOKENS_STAGE:
        raise CorpusError(f"{token_set} is the result of stage {manifest.stage!r}, not a token set")
    if problem := source_problem(manifest):
        raise CorpusError(f"{token_set}: its documents cannot be listed, for they are read from what it was made from: {problem}")
    inputs = [_input(token_set)]
    # A listing is nobody's work: that of an older set under the same name is replaced without asking.
    is_stale = (target / MANIFEST_NAME).exists() and load_manifest(target).inputs != inputs
    if finished := open_target(target, STAGE, {}, inputs, OUTPUT_NAMES, overwrite=is_stale):
        return finished
    with clear_about_disk(target):
        groups = _write(target / PARTIAL_NAME, token_set, manifest, workers)
        sync_files(target / PARTIAL_NAME)
        rows = manifest.counts.documents
        listing = Manifest(
            stage=STAGE,
            settings={},
            code_version=code_version(),
            source=str(token_set),
            inputs=inputs,
            files=[output_file(target / PARTIAL_NAME / name, name, rows) for name in OUTPUT_NAMES],
            counts=Counts(documents=rows, characters=manifest.counts.characters, tokens=manifest.counts.tokens),
            details={"groups": [list(group) for group in groups]},
            licence=manifest.licence,
            origin=manifest.origin,
        )
        publish(target, listing, OUTPUT_NAMES)
    return listing


def _input(token_set: Path) -> InputFile:
    return input_file(token_set / MANIFEST_NAME, MANIFEST_NAME)


@dataclass(frozen=True)
class _Named:
    """The documents of one batch."""

    ids: list[bytes]
    names: list[tuple[str, str]]  # (source, language), in order of appearance
    groups: np.ndarray  # i16, into `names`
    characters: np.ndarray  # i32


def _named(batch_and_lines: tuple[RawBatch, set[int]], text_field: str) -> _Named:
    """Read a batch again, without the lines that gave no tokens."""
    batch, without_tokens = batch_and_lines
    ids, groups, characters = [], [], []
    names: dict[tuple[str, str], int] = {}
    for line, record in enumerate(parse_batch(batch, text_field), batch.first_line):
        if isinstance(record, BadRecord) or line in without_tokens:
            continue
        ids.append(record.id.encode("utf-8", "surrogatepass"))
        groups.append(names.setdefault((record.source or UNKNOWN, record.lang or UNKNOWN), len(names)))
        characters.append(len(record.text))
    return _Named(ids, list(names), np.array(groups, "<i2"), np.array(characters, "<i4"))


def _write(folder: Path, token_set: Path, manifest: Manifest, workers: int) -> list[tuple[str, str]]:
    """Write the four files; the groups in the order of their numbers."""
    text_field = str(manifest.settings.get("text_field", "text"))
    without_tokens: dict[str, set[int]] = defaultdict(set)
    for file, line in places(token_set, manifest, "no_tokens"):
        without_tokens[file].add(line)
    numbers: dict[tuple[str, str], int] = {}
    num_documents = num_bytes = num_characters = 0
    batches = read_batches(find_source(manifest.source), text_field, fields=("id", "source", "lang"))
    items = ((batch, without_tokens.get(batch.file, set())) for batch in batches)
    found = each_in_order(workers, lambda: "; use fewer --workers and run again", _named, items, text_field)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(found))
        ids, ends, groups, characters = (stack.enter_context(open(folder / name, "wb")) for name in OUTPUT_NAMES)
        for named in found:
            here = np.array([_number(name, numbers) for name in named.names], "<i2")
            ids.write(b"".join(named.ids))
            ends.write((num_bytes + np.cumsum([len(one) for one in named.ids], dtype="<i8")).astype("<i8").tobytes())
            groups.write((here[named.groups] if len(named.ids) else named.groups).tobytes())
            characters.write(named.characters.tobytes())
            num_bytes += sum(map(len, named.ids))
            num_documents += len(named.ids)
            num_characters += int(named.characters.sum(dtype=np.int64))
    counts = manifest.counts
    if (num_documents, num_characters) != (counts.documents, counts.characters):
        raise CorpusError(f"{manifest.source} holds {num_documents} documents of {num_characters} characters, {token_set} was made "
                          f"from {counts.documents} of {counts.characters}; tokenise again")
    check_sums(token_set, manifest, Attribution(list(numbers), np.memmap(folder / GROUPS, "<i2", "r"), "listed"))
    return list(numbers)


def _number(name: tuple[str, str], numbers: dict[tuple[str, str], int]) -> int:
    """The number of a group; those beyond MAX_GROUPS share the last."""
    if name not in numbers and len(numbers) >= MAX_GROUPS - 1:
        name = (OTHER, OTHER)
    return numbers.setdefault(name, len(numbers))


class Listing:
    """The names of a token set's documents, memory-mapped."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.names = [(str(source), str(lang)) for source, lang in manifest.details["groups"]]
        self.groups = np.memmap(folder / GROUPS, "<i2", "r")
        self.characters = np.memmap(folder / CHARACTERS, "<i4", "r")
        self._ids = np.memmap(folder / IDS, "u1", "r")
        self._ends = np.memmap(folder / ENDS, "<i8", "r")

    def id(self, document: int) -> str:
        """The id of document number `document`."""
        begin = int(self._ends[document - 1]) if document else 0
        return self._ids[begin : int(self._ends[document])].tobytes().decode("utf-8", "surrogatepass")

    def find(self, identity: str) -> list[int]:
        """The numbers of the documents with this id: none, one, or several where a source has an id twice."""
        wanted = np.frombuffer(identity.encode("utf-8", "surrogatepass"), "u1")
        found: list[int] = []
        for start in range(0, len(self._ends), DOCUMENTS_AT_ONCE):
            ends = self._ends[start : start + DOCUMENTS_AT_ONCE]
            begins = np.concatenate([self._ends[start - 1 : start] if start else [0], ends[:-1]])
            left = np.flatnonzero(ends - begins == len(wanted))
            for place in reversed(range(len(wanted))):  # from the end, where ids differ most
                left = left[self._ids[begins[left] + place] == wanted[place]]
            found += (start + left).tolist()
        return found


def load_listing(token_set: str | Path) -> Listing | None:
    """The listing of a token set; None if there is none, or only that of an older set of this name."""
    token_set = Path(token_set)
    folder = listing_folder(token_set)
    if not (folder / MANIFEST_NAME).is_file():
        return None
    manifest = load_manifest(folder)
    if manifest.stage != STAGE or manifest.inputs != [_input(token_set)]:
        return None
    check_files(folder, manifest)
    return Listing(folder, manifest)
