"""What is in a stage's folder, how was it made, from what, and may a stage write there?

In: what a stage knows about its run. Out: TARGET/manifest.json, and a yes or a clear no before any work begins.
A stage writes into TARGET/.partial, then `publish` renames everything into place and writes the manifest.
Invariant: a folder with a manifest is complete; a manifest is written last, atomically, and never edited.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from megatron_jmed.errors import CorpusError

MANIFEST_NAME = "manifest.json"
PARTIAL_NAME = ".partial"
CACHE_NAME = ".cache"  # what a stage keeps in its target from run to run, also with --overwrite
FORMAT_VERSION = 1
HASH_BLOCK_BYTES = 2**20


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputFile(_Record):
    """One file that went in; the manifest of an earlier stage stands for all the files it lists."""

    path: str  # relative to the source folder
    bytes: int
    sha256: str


class OutputFile(_Record):
    """One file that came out; rows are documents (or removed records)."""

    path: str  # relative to the target folder
    rows: int
    bytes: int
    sha256: str


class GroupCounts(_Record):
    """How much of the output belongs to one source or one language."""

    documents: int = 0
    characters: int = 0
    tokens: int = 0


class Counts(_Record):
    """Totals of the output; `dropped` holds removed records by reason."""

    documents: int = 0
    characters: int = 0
    tokens: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    by_source: dict[str, GroupCounts] = Field(default_factory=dict)
    by_lang: dict[str, GroupCounts] = Field(default_factory=dict)


class Translation(_Record):
    """One step of machine translation."""

    from_lang: str
    to_lang: str
    model: str


class Origin(_Record):
    """Whether people wrote the text in its language or a machine translated it; "mixed" is both in one folder."""

    kind: Literal["original", "machine_translated", "mixed"] = "original"
    translations: list[Translation] = Field(default_factory=list)  # those known, in no order


def joined_origin(origins: Iterable[Origin]) -> Origin:
    """The origin of all of them together."""
    origins = list(origins)
    kinds = {origin.kind for origin in origins} or {"original"}
    unique = {step.model_dump_json(): step for origin in origins for step in origin.translations}
    translations = [unique[key] for key in sorted(unique)]
    return Origin(kind=kinds.pop() if len(kinds) == 1 else "mixed", translations=translations)


class Manifest(_Record):
    """The record of one finished stage; `settings` are the choices that change the output, `details` what follows."""

    format_version: Literal[1] = FORMAT_VERSION
    stage: str
    settings: dict[str, JsonValue]
    code_version: str
    source: str
    inputs: list[InputFile]
    ignored_inputs: list[str] = Field(default_factory=list)
    files: list[OutputFile]
    removed_files: list[OutputFile] = Field(default_factory=list)
    counts: Counts
    details: dict[str, JsonValue] = Field(default_factory=dict)
    licence: str | None = None
    origin: Origin = Field(default_factory=Origin)
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def save(self, folder: Path) -> None:
        """Write FOLDER/manifest.json so that a reader sees all of it or nothing."""
        temporary = folder / f"{MANIFEST_NAME}.tmp"
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.write(self.model_dump_json(indent=2) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, folder / MANIFEST_NAME)
        sync_folder(folder)


def load_manifest(folder: str | Path) -> Manifest:
    """Read FOLDER/manifest.json; CorpusError if it is missing, broken, or of another format version."""
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise CorpusError(f"{folder} holds no {MANIFEST_NAME}: no stage has finished there")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CorpusError(
            f"{path} is not a manifest of format version {FORMAT_VERSION}: {where}: {first['msg']} "
            f"({error.error_count()} problem(s) in all); run the stage again"
        ) from None


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare the listed files' sizes (not their checksums) with the manifest; CorpusError if one differs."""
    for file in [*manifest.files, *manifest.removed_files]:
        path = folder / file.path
        if not path.is_file():
            raise CorpusError(f"{path} is missing although {folder / MANIFEST_NAME} lists it ({file.bytes} bytes)")
        if path.stat().st_size != file.bytes:
            size = path.stat().st_size
            raise CorpusError(f"{path} has {size} bytes, its manifest says {file.bytes}: truncated or changed")


def open_target(
    target: Path,
    stage: str,
    settings: dict[str, JsonValue],
    inputs: list[InputFile],
    output_names: Iterable[str],
    overwrite: bool = False,
) -> Manifest | None:
    """Return the manifest of a target that is already finished, else clear TARGET/.partial for writing and return None.

    Refused with CorpusError: a target made from something else (unless `overwrite`), or one with files that no stage
    run of this kind wrote. Files of an interrupted run (beside a .partial folder) are replaced.
    """
    if target.exists() and not target.is_dir():
        raise CorpusError(f"{target} is a file; the target must be a folder")
    partial = target / PARTIAL_NAME
    outputs = set(output_names := tuple(output_names))
    if (target / MANIFEST_NAME).exists():
        finished = load_manifest(target)
        differences = _differences(finished, stage, settings, inputs)
        if not differences and not overwrite:
            check_files(target, finished)
            return finished
        if not overwrite:
            raise CorpusError(
                f"{target} holds the result of another run ({'; '.join(differences)}); "
                f"choose another target, or replace it with --overwrite"
            )
    elif not partial.exists() and not overwrite:
        outputs = set()
    known = outputs | {PARTIAL_NAME, CACHE_NAME, MANIFEST_NAME, f"{MANIFEST_NAME}.tmp"}
    foreign = sorted(path.name for path in target.iterdir() if path.name not in known) if target.exists() else []
    if foreign:
        hint = "; --overwrite replaces them" if set(foreign) <= set(output_names) else ""
        raise CorpusError(
            f"{target} holds {len(foreign)} file(s) that are not from a run of stage {stage!r}: "
            f"{', '.join(foreign[:5])}; move them away or choose an empty folder{hint}"
        )
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return None


def publish(target: Path, manifest: Manifest, output_names: Iterable[str]) -> None:
    """Rename everything from TARGET/.partial into TARGET, over an older run's outputs, and write the manifest last."""
    partial = target / PARTIAL_NAME
    # The old manifest goes first: from here until the new one stands, the folder must not look finished.
    (target / MANIFEST_NAME).unlink(missing_ok=True)
    for old in [target / name for name in output_names]:
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    for new in sorted(partial.iterdir()):
        os.replace(new, target / new.name)
    sync_folder(target)
    manifest.save(target)
    partial.rmdir()


def _differences(
    finished: Manifest, stage: str, settings: dict[str, JsonValue], inputs: list[InputFile]
) -> list[str]:
    """Name what keeps a finished manifest from being the answer to this call."""
    if finished.stage != stage:
        return [f"stage {finished.stage!r} there, {stage!r} now"]
    found = [
        f"{name} = {finished.settings.get(name)!r} there, {settings.get(name)!r} now"
        for name in sorted({*settings, *finished.settings})
        if finished.settings.get(name) != settings.get(name)
    ]
    there, now = {file.path: file for file in finished.inputs}, {file.path: file for file in inputs}
    changed = [path for path in sorted({*there, *now}) if there.get(path) != now.get(path)]
    if changed:
        found.append(f"{len(changed)} input file(s) differ, first {changed[0]}")
    return found


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def input_file(path: Path, name: str) -> InputFile:
    """A file that a stage read, under the name that its manifest gives it."""
    return InputFile(path=name, bytes=path.stat().st_size, sha256=sha256_file(path))


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def code_version() -> str:
    """Version of this package, with `git describe` where it runs from a checkout: '0.1.0' or '0.1.0+3f2a1bc-dirty'.

    A snapshot of the code that launch/submit.py took holds it in the file CODE_VERSION.
    """
    root = Path(__file__).resolve().parents[2]
    if (root / "CODE_VERSION").exists():
        return (root / "CODE_VERSION").read_text(encoding="utf-8").strip()
    try:
        version = metadata.version("megatron_jmed")
    except metadata.PackageNotFoundError:
        version = "unknown"
    if not (root / ".git").exists():
        return version
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--tags"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+{answer}"
