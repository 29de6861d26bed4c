"""Are the indices of a run's sequences already there, whole, and if not, how are they built so that a kill does no harm?

In: the folder of index caches, what a cache is made for, and a function that lets Megatron-Core build into a folder.
Out: FOLDER/KEY/ with Megatron-Core's own files (document, sample and shuffle index of every source, split and epoch;
the blend's two) and `index_cache.json`, which lists them with their sizes. KEY is a hash of everything that decides an
index: seed, sequence length, budget, weights, validation share, the token sets' paths and checksums, Megatron-Core's version.

Invariant: FOLDER/KEY exists only whole. Megatron-Core 0.16.1 takes any existing set of files for whole, even one
whose last file a killed process wrote half; so it builds in a folder of another name, everything there is brought to
the disk, and one rename of that folder makes it the cache. A cache whose files have other sizes than listed (a copy
that was cut short) is built anew.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from megatron_jmed.corpus.manifest import sync_folder
from megatron_jmed.errors import CorpusError

LIST_NAME = "index_cache.json"
# A builder that died leaves its folder; one this old is nobody's any more (50 million documents take a minute).
LEFTOVER_SECONDS = 24 * 3600


def whole_cache(folder: Path, made_for: dict[str, Any], build: Callable[[Path], object]) -> Path:
    """The whole cache FOLDER/KEY, built by rank 0 if it is not there. Collective over all ranks.

    `build(into)` is called on rank 0 alone, which also is the only one that looks at the disk before the cache is whole, so
    that no other node remembers (as NFS clients do) that it was not there.
    """
    import torch  # here, so that whoever only looks for a cache does without it

    made_for = {"megatron_core": metadata.version("megatron-core"), **made_for}
    cache = folder / cache_key(made_for)
    is_mine = torch.distributed.get_rank() == 0
    partial = None
    try:
        if is_mine and not is_whole(cache):
            print("no index cache yet: rank 0 builds it while the others wait (tools/build_index_cache.py does it ahead)",
                  file=sys.stderr, flush=True)
            partial = _begin(cache)
        must_build = [partial is not None]
        torch.distributed.broadcast_object_list(must_build, src=0)
        if partial:
            build(partial)
            _publish(partial, cache, made_for)
        if must_build[0]:
            torch.distributed.barrier()
    except Exception as error:
        if partial:
            shutil.rmtree(partial, ignore_errors=True)
        _raise_if_disk(error, cache)
        raise
    return cache


def find_cache(folder: Path, made_for: dict[str, Any]) -> Path | None:
    """The whole cache made for this; None if there is none. Builds nothing.

    That of the installed Megatron-Core, else of any: the machine that asks may have another than the run, or none.
    """
    made_for = json.loads(json.dumps(made_for))
    with contextlib.suppress(metadata.PackageNotFoundError):
        ours = folder / cache_key({"megatron_core": metadata.version("megatron-core"), **made_for})
        if is_whole(ours):
            return ours
    for cache in sorted(path.parent for path in folder.glob(f"*/{LIST_NAME}") if ".partial-" not in path.parent.name):
        if is_whole(cache):
            listed = json.loads((cache / LIST_NAME).read_text(encoding="utf-8")).get("made_for", {})
            if {word: value for word, value in listed.items() if word != "megatron_core"} == made_for:
                return cache
    return None


def cache_key(made_for: dict[str, Any]) -> str:
    """The name of the cache made for this: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(made_for, sort_keys=True).encode()).hexdigest()[:16]


def is_whole(cache: Path) -> bool:
    """Whether every file that the cache lists is there with the size it had when it was built."""
    try:
        sizes = json.loads((cache / LIST_NAME).read_text(encoding="utf-8"))["file_bytes"]
        return all((cache / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def cache_bytes(cache: Path) -> int:
    """The size of a cache's files."""
    return sum(path.stat().st_size for path in cache.iterdir())


def _raise_if_disk(error: Exception, cache: Path) -> None:
    """CorpusError if the disk made the build fail; Megatron-Core hides some of these behind a bare Exception."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError):
        raise CorpusError(f"the index cache cannot be written to {cache.parent} ({cause.strerror or cause}); make room there, or "
                          "name a folder on another disk with data.cache_folder=FOLDER. Nothing half-written is left") from error


def _begin(cache: Path) -> Path:
    """An empty folder beside the cache to build in; dead builders' old folders and a damaged cache are removed."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    if cache.exists():
        print(f"the index cache {cache} is damaged (a file is missing or has another size); it is built anew", file=sys.stderr)
        damaged = _beside(cache)
        cache.rename(damaged)
        shutil.rmtree(damaged)
    for leftover in cache.parent.glob(f"{cache.name}.partial-*"):
        if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
            shutil.rmtree(leftover)
    partial = _beside(cache)
    partial.mkdir()
    return partial


def _beside(cache: Path) -> Path:
    """A name of its own for each builder: two jobs that share a cache may build it at the same time."""
    return cache.with_name(f"{cache.name}.partial-{uuid.uuid4().hex[:8]}")


def _publish(partial: Path, cache: Path, made_for: dict[str, Any]) -> None:
    """Bring everything to the disk, then make it the cache by one rename; a cache that another job made first stays.

    OSError for an array that is cut short: where a disk is full, numpy's `save` may lose the last bytes without a word.
    """
    for path in partial.glob("*.npy"):
        try:
            np.load(path, mmap_mode="r")
        except ValueError:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
    sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
    content = {"made_for": made_for, "file_bytes": sizes}
    (partial / LIST_NAME).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in partial.iterdir():
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
    sync_folder(partial)
    try:
        partial.rename(cache)
    except OSError:
        if not is_whole(cache):
            raise
        shutil.rmtree(partial)
    sync_folder(cache.parent)
