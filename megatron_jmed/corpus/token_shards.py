"""How do the shards of one token set become the set that one run would have written?

In: TARGET/shard-i-of-n, each a range of the source's files (`tokenize` with a shard). Out: TARGET/tokens.bin, tokens.idx,
removed/REASON.jsonl and manifest.json, and the shards gone. The ranges follow each other in the order of the source, so
the tokens are those of shard 1, then 2, and so on; the index is written anew from the shards' lengths and documents.
Invariant: all files equal, byte for byte, those of an unsharded run; no byte of a shard is taken that its manifest's
checksum does not cover; memory does not grow with tokens or documents. The disk holds both, shards and set, until the end.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from megatron_jmed.corpus.counts import sum_counts
from megatron_jmed.corpus.indexed import COPY_BYTES, TokenIndex, read_index, write_index
from megatron_jmed.corpus.manifest import PARTIAL_NAME, InputFile, Manifest, OutputFile, sha256_file
from megatron_jmed.corpus.part_folders import join_removed
from megatron_jmed.corpus.shards import merge, shard_folder
from megatron_jmed.corpus.token_set import NAME, TOKENS_STAGE
from megatron_jmed.corpus.tokens import OUTPUT_NAMES
from megatron_jmed.errors import CorpusError

OF_THE_SHARD = ("num_source_files", "source_files_sha256", "max_bad", "num_files")
AGAIN = "run that shard again with --overwrite"


def merge_token_shards(target: Path, overwrite: bool = False, max_bad: int | None = None) -> Manifest:
    """Publish the shards in TARGET as one token set; CorpusError if one is missing, damaged or of another run."""
    return merge(target, overwrite, max_bad, OUTPUT_NAMES, _join)


def _join(target: Path, manifests: list[Manifest], settings: dict[str, JsonValue], inputs: list[InputFile]) -> Manifest:
    first, num_shards = manifests[0], len(manifests)
    folders = [shard_folder(target, (index, num_shards)) for index in range(1, num_shards + 1)]
    if first.stage != TOKENS_STAGE:
        raise CorpusError(f"{target} holds shards of stage {first.stage!r}, not of tokens; merge them with its own tool")
    for folder, manifest in zip(folders, manifests, strict=True):
        for what in ("dtype", "tokenizer"):
            if manifest.details[what] != first.details[what]:
                there, wanted = manifest.details[what], first.details[what]
                raise CorpusError(f"{folder}: {what} {there} differs from {wanted} of shard 1; {AGAIN}")
    if (there := sum(int(manifest.details["num_files"]) for manifest in manifests)) != first.details["num_source_files"]:
        raise CorpusError(f"{target}: the shards hold {there} files of {first.details['num_source_files']}")
    counts = sum_counts(manifest.counts for manifest in manifests)
    if not counts.documents:
        raise CorpusError(f"{target}: the shards hold no document (dropped: {counts.dropped or 'none, the source is empty'})")
    partial = target / PARTIAL_NAME
    found = [_checked_index(folder, manifest) for folder, manifest in zip(folders, manifests, strict=True)]
    indices = [index for index in found if index]
    lengths, ends = [index.lengths for index in indices], None
    summed = {}
    if "num_sequences" in first.details:
        ends = [index.entries[1:] for index in indices]
        summed = {"num_sequences": sum(map(len, lengths))}
    tokens = [(folder / f"{NAME}.bin", _listed(manifest, ".bin")) for folder, manifest in zip(folders, manifests, strict=True)]
    files = [
        _join_tokens(tokens, partial / f"{NAME}.bin"),
        write_index(partial / f"{NAME}.idx", lengths, np.dtype(str(first.details["dtype"])), ends),
    ]
    return first.model_copy(
        update={
            "settings": settings,
            "inputs": inputs,
            "files": files,
            "removed_files": join_removed(zip(folders, [one.removed_files for one in manifests], strict=True), target),
            "counts": counts,
            "details": {name: value for name, value in first.details.items() if name not in OF_THE_SHARD} | summed,
        }
    )


def _listed(manifest: Manifest, suffix: str) -> OutputFile:
    return next(file for file in manifest.files if file.path == f"{NAME}{suffix}")


def _checked_index(folder: Path, manifest: Manifest) -> TokenIndex | None:
    """A shard's index, found to be what the manifest says; None if the shard has no document."""
    path = folder / f"{NAME}.idx"
    _check_sum(path, sha256_file(path), _listed(manifest, ".idx"))
    if not manifest.counts.documents:
        return None
    index = read_index(path)
    for what, there, claimed in (
        ("documents", index.num_documents, manifest.counts.documents),
        ("sequences", len(index.lengths), manifest.details.get("num_sequences", manifest.counts.documents)),
        ("tokens", index.num_tokens, manifest.counts.tokens),
        ("bytes of tokens", index.num_tokens_bytes, _listed(manifest, ".bin").bytes),
    ):
        if there != claimed:
            raise CorpusError(f"{path}: {there} {what}, {claimed} according to the manifest; {AGAIN}")
    return index


def _join_tokens(pieces: list[tuple[Path, OutputFile]], path: Path) -> OutputFile:
    """Copy the shards' tokens into one file; each byte is read once, for its shard's checksum and for that of the whole."""
    whole = hashlib.sha256()
    with open(path, "wb") as out:
        for piece, listed in pieces:
            digest = hashlib.sha256()
            with open(piece, "rb") as stream:
                while block := stream.read(COPY_BYTES):
                    digest.update(block)
                    whole.update(block)
                    out.write(block)
            _check_sum(piece, digest.hexdigest(), listed)
        num_bytes = out.tell()
        out.flush()
        os.fsync(out.fileno())
    rows = sum(listed.rows for _, listed in pieces)
    return OutputFile(path=path.name, rows=rows, bytes=num_bytes, sha256=whole.hexdigest())


def _check_sum(path: Path, found: str, listed: OutputFile) -> None:
    if found != listed.sha256:
        raise CorpusError(f"{path} has SHA-256 {found[:16]}..., its manifest says {listed.sha256[:16]}...: damaged; {AGAIN}")
