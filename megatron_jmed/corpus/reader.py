"""Which files does a source hold, and how do their records stream out of them?

In: a file, a folder or a glob of .jsonl, .jsonl.gz, .jsonl.zst, .parquet and .txt (one document a file; in a folder
that holds other kinds too, .txt files are taken for notes and ignored). Out: batches of raw records, cheap to hand to
another process; what the records mean is document.py's question, so that one process can read while many parse.
Invariant: every record of the source is in exactly one batch, in the order of the source, and memory is bounded by
the batch (and by the longest record), never by the file. A truncated or damaged file is an error, never an end.
"""

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import zstandard
from isal import igzip, isal_zlib

from megatron_jmed.corpus.manifest import (
    MANIFEST_NAME,
    PARTIAL_NAME,
    InputFile,
    Origin,
    check_files,
    input_file,
    joined_origin,
    load_manifest,
)
from megatron_jmed.errors import CorpusError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")  # of files with one record a line or row
TEXT_SUFFIXES = (".txt", ".txt.gz", ".txt.zst")  # of files that are one document
READABLE = (*SUFFIXES, *TEXT_SUFFIXES)
SHARD_FOLDER = re.compile(r"shard-\d+-of-\d+")
BATCH_BYTES = 2**20
CHUNK_BYTES = 2**17
MAX_RECORD_BYTES = 2**28
PARQUET_BATCH_ROWS = 256
# Small, because what one piece of input decompresses to is held in memory at once.
ZSTD_INPUT_BYTES = 2**14
# Frames made with `zstd --long=31` need this much; the decoder allocates only what a frame asks for.
ZSTD_MAX_WINDOW_BYTES = 2**31
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Consecutive unparsed records of one file: whole JSON lines, an Arrow stream of Parquet rows, or a whole text file."""

    file: str
    first_line: int
    kind: Literal["jsonl", "arrow", "text"]
    payload: bytes
    input_bytes: int  # how much of the (compressed) file was consumed since the batch before


@dataclass(frozen=True)
class Source:
    """The readable files below a path, in reading order."""

    root: Path
    files: list[Path]
    manifests: list[Path] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def name(self, path: Path) -> str:
        """The name a file has in messages and manifests: relative to the source folder."""
        return path.name if self.root.is_file() else path.relative_to(self.root).as_posix()

    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def inputs(self) -> list[InputFile]:
        """Hash the files; those of an earlier stage are covered by the hash of its manifest."""
        covered = {manifest.parent for manifest in self.manifests}
        plain = [path for path in self.files if not covered.intersection(path.parents)]
        return [input_file(path, self.name(path)) for path in sorted([*plain, *self.manifests])]

    def licence(self) -> str | None:
        """The licences that the earlier stages recorded, joined; None if none did."""
        licences = {load_manifest(manifest.parent).licence for manifest in self.manifests} - {None}
        return "; ".join(sorted(str(licence) for licence in licences)) or None

    def origin(self) -> Origin:
        """What the earlier stages recorded of the files, also of those named one by one or by a glob; else original."""
        folders = {manifest.parent for manifest in self.manifests}
        alone = {path.parent for path in self.files if not folders.intersection(path.parents)}
        # A stage's files lie in its folder or one below.
        made = {place: next((up for up in (place, place.parent) if (up / MANIFEST_NAME).is_file()), None) for place in alone}
        known = folders | {folder for folder in made.values() if folder}
        plain = [Origin()] if None in made.values() else []
        return joined_origin([load_manifest(folder).origin for folder in sorted(known)] + plain)


def find_source(path: str | Path) -> Source:
    """List the readable files of a file, folder or glob; CorpusError if there is none or an earlier stage did not finish."""
    root = Path(path)
    if not root.exists() and glob.has_magic(str(root)):
        return _find_glob(root)
    if root.is_file():
        if not root.name.endswith(READABLE):
            raise CorpusError(f"{root} is none of {', '.join(READABLE)}")
        return Source(root, [root])
    if not root.is_dir():
        raise CorpusError(f"{root} does not exist")
    source = Source(root, [])
    _walk(root, source)
    _ignore_notes(source)
    if not source.files:
        others = f"; it holds {len(source.ignored)} other file(s), first {source.ignored[0]}" if source.ignored else ""
        raise CorpusError(f"{root} holds no {', '.join(READABLE)} file{others}")
    return source


def _find_glob(pattern: Path) -> Source:
    """The files and folders that a pattern such as texts/**/*.jsonl.gz names."""
    fixed = 0
    while not glob.has_magic(pattern.parts[fixed]):
        fixed += 1
    source = Source(Path(*pattern.parts[:fixed]), [])
    for path in sorted(map(Path, glob.glob(str(pattern), recursive=True))):
        # With ** a folder comes with everything in it; alone it stands for its files.
        if path.is_dir() and "**" not in pattern.parts:
            _walk(path, source)
        elif path.name.endswith(READABLE):
            source.files.append(path)
        elif path.is_file():
            source.ignored.append(source.name(path))
    if not source.files:
        raise CorpusError(f"{pattern} matches no {', '.join(READABLE)} file")
    return source


def _ignore_notes(source: Source) -> None:
    """Ignore .txt files beside files of other kinds: a README.txt in a corpus is no document."""
    notes = [path for path in source.files if path.name.endswith(TEXT_SUFFIXES)]
    if len(notes) < len(source.files):
        source.files[:] = [path for path in source.files if not path.name.endswith(TEXT_SUFFIXES)]
        source.ignored.extend(source.name(path) for path in notes)


def _walk(folder: Path, source: Source) -> None:
    """Add a folder's files to the source: those its manifest lists, or all with a known suffix."""
    if (folder / MANIFEST_NAME).exists():
        manifest = load_manifest(folder)
        check_files(folder, manifest)
        strangers = [file.path for file in manifest.files if not file.path.endswith(READABLE)]
        if strangers:
            raise CorpusError(f"{folder} is the result of stage {manifest.stage!r}: no documents ({strangers[0]})")
        source.manifests.append(folder / MANIFEST_NAME)
        source.files.extend(sorted(folder / file.path for file in manifest.files))
        return
    if (folder / PARTIAL_NAME).exists():
        raise CorpusError(f"{folder} holds {PARTIAL_NAME}: its stage did not finish; run that stage again")
    if any(SHARD_FOLDER.fullmatch(path.name) for path in folder.iterdir()):
        raise CorpusError(f"{folder} holds shards that are not merged; run their stage with --merge first")
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            _walk(path, source)
        elif path.name.endswith(READABLE):
            source.files.append(path)
        else:
            source.ignored.append(source.name(path))


def read_batches(source: Source, text_field: str = "text", fields: tuple[str, ...] | None = None) -> Iterator[RawBatch]:
    """Stream the records of a source; `fields` limits the Parquet columns that are read beside the text."""
    for path in source.files:
        if path.name.endswith(".parquet"):
            yield from _read_parquet(path, source.name(path), text_field, fields)
        elif path.name.endswith(TEXT_SUFFIXES):
            yield _read_text(path, source.name(path))
        else:
            yield from _read_jsonl(path, source.name(path))


# ---- JSON lines and plain text


def _read_jsonl(path: Path, name: str) -> Iterator[RawBatch]:
    consumed = 0
    with open(path, "rb") as stream:
        for line, payload in _whole_lines(_decompressed(stream, path), name):
            if line == 1:
                payload = payload.removeprefix(BYTE_ORDER_MARK)
            position = stream.tell()
            yield RawBatch(name, line, "jsonl", payload, position - consumed)
            consumed = position


def _read_text(path: Path, name: str) -> RawBatch:
    pieces, num_bytes = [], 0
    with open(path, "rb") as stream:
        for piece in _decompressed(stream, path):
            pieces.append(piece)
            num_bytes += len(piece)
            if num_bytes > MAX_RECORD_BYTES:
                raise CorpusError(f"{path} is one document of more than {MAX_RECORD_BYTES} bytes; cut it into several files")
    return RawBatch(name, 1, "text", b"".join(pieces).removeprefix(BYTE_ORDER_MARK), path.stat().st_size)


def _decompressed(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yield a file's content in pieces; CorpusError for a truncated or damaged gz or zst file."""
    if path.name.endswith(".gz"):
        yield from _gzip_chunks(stream, path)
    elif path.name.endswith(".zst"):
        yield from _zstd_chunks(stream, path)
    else:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _gzip_chunks(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    if path.stat().st_size == 0:
        raise CorpusError(f"{path} is truncated: a gzip file has at least 20 bytes, this one has 0")
    try:
        with igzip.IGzipFile(fileobj=stream, mode="rb") as unzipped:
            while chunk := unzipped.read(CHUNK_BYTES):
                yield chunk
    except EOFError:
        size = path.stat().st_size
        raise CorpusError(f"{path} is truncated: the gzip stream does not end within its {size} bytes") from None
    except (igzip.BadGzipFile, isal_zlib.error) as error:
        raise CorpusError(f"{path} is not a sound gzip file: {error}") from None


def _zstd_chunks(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    # stream_reader() takes a truncated frame for the end of the file; decompressobj() says whether the frame ended.
    decoder, data, ended = None, b"", False
    try:
        while data or (data := stream.read(ZSTD_INPUT_BYTES)):
            decoder = decoder or zstandard.ZstdDecompressor(max_window_size=ZSTD_MAX_WINDOW_BYTES).decompressobj()
            text = decoder.decompress(data)
            for start in range(0, len(text), CHUNK_BYTES):
                yield text[start : start + CHUNK_BYTES]
            ended, data = decoder.eof, decoder.unused_data if decoder.eof else b""
            decoder = None if ended else decoder
    except zstandard.ZstdError as error:
        raise CorpusError(f"{path} is not a sound zstd file: {error}") from None
    if not ended:
        raise CorpusError(f"{path} is truncated: the zstd frame does not end within its {path.stat().st_size} bytes")


def _whole_lines(chunks: Iterator[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """Regroup pieces into blocks of about BATCH_BYTES that end at a line's end; each with the number of its first line."""
    pending: list[bytes] = []
    num_bytes, line = 0, 1
    for chunk in chunks:
        cut = chunk.rfind(b"\n") + 1
        if cut and num_bytes + cut >= BATCH_BYTES:
            block = b"".join([*pending, chunk[:cut]])
            yield line, block
            line += block.count(b"\n")
            pending, num_bytes = [], 0
            chunk = chunk[cut:]
        pending.append(chunk)
        num_bytes += len(chunk)
        if num_bytes > MAX_RECORD_BYTES:
            raise CorpusError(
                f"{name}:{line}: a record is longer than {MAX_RECORD_BYTES} bytes; is this one JSON object per line?"
            )
    if rest := b"".join(pending):
        yield line, rest


# ---- Parquet


def _read_parquet(path: Path, name: str, text_field: str, fields: tuple[str, ...] | None) -> Iterator[RawBatch]:
    # Imported here: pyarrow takes longer to load than a whole small JSONL corpus takes to read.
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = _parquet_columns(file.schema_arrow, path, text_field, fields)
            num_rows, done, consumed = file.metadata.num_rows, 0, 0
            for rows in file.iter_batches(PARQUET_BATCH_ROWS, columns=columns):
                done += rows.num_rows
                position = path.stat().st_size * done // num_rows
                yield RawBatch(name, done - rows.num_rows + 1, "arrow", _arrow_stream(rows), position - consumed)
                consumed = position
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise CorpusError(f"{path} is not a sound Parquet file: {error}") from None


def _parquet_columns(schema: Any, path: Path, text_field: str, fields: tuple[str, ...] | None) -> list[str]:
    """Choose the columns to read; CorpusError if the text column is missing or not made of strings."""
    import pyarrow

    if text_field not in schema.names:
        names = ", ".join(schema.names)
        raise CorpusError(f"{path} has no column {text_field!r}; its columns are {names} (see --text-field)")
    kind = schema.field(text_field).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise CorpusError(f"{path}: column {text_field!r} holds {kind}, not strings")
    return [column for column in schema.names if fields is None or column in (text_field, *fields)]


def _arrow_stream(rows: Any) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return sink.getvalue().to_pybytes()
