"""Write a folder of large files in parallel so that a killed conversion goes on where it was.

Each file is a part. A part is written as NAME.partial, reaches the disk, gets its name, and then a record
(`parts/NAME.json`: whatever the part says about itself). A part with a record is not written again. The folder says in
`conversion.json` of what it is the conversion; another conversion does not go on in it. Whether the whole folder is
finished is for the caller to say, last.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from megatron_jmed.errors import CheckpointError
from megatron_jmed.run_folder import write_json

_IDENTITY, _RECORDS = "conversion.json", "parts"


@dataclass(frozen=True)
class Part:
    """One file: its name, about how many bytes it will hold, and what writes it and answers with its record."""

    name: str
    num_bytes: int
    write: Callable[[BinaryIO, Callable[[int], Any]], dict[str, Any]]


def begin_parts(folder: Path, identity: dict[str, Any]) -> None:
    """Make `folder`, or check that what lies there is the same conversion, unfinished."""
    if not folder.exists() or not any(folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _IDENTITY, identity)
        return
    path = folder / _IDENTITY
    if not path.exists():
        raise CheckpointError(f"{folder}: not empty; remove it or name another folder")
    if (found := json.loads(path.read_text(encoding="utf-8"))) != identity:
        words = [f"{word}: {found.get(word)!r} there, {value!r} now" for word, value in identity.items()
                 if found.get(word) != value]
        raise CheckpointError(f"{folder}: holds another, unfinished conversion ({'; '.join(words)}); remove it to begin anew")


def write_parts(folder: Path, parts: list[Part], workers: int, what: str) -> list[dict[str, Any]]:
    """Write every part that has no record yet, `workers` at a time; the records of all, in the order of `parts`.

    The first failure ends the conversion; what was finished stays for the next try.
    """
    (folder / _RECORDS).mkdir(exist_ok=True)
    with tqdm(total=sum(part.num_bytes for part in parts), desc=what, unit="B", unit_scale=True, disable=None) as bar, \
            ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(_write_part, folder, part, bar.update) for part in parts]
        try:
            return [job.result() for job in jobs]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def end_parts(folder: Path) -> None:
    """Remove the records; the folder's owner has gathered what it needs."""
    shutil.rmtree(folder / _RECORDS)
    (folder / _IDENTITY).unlink()


def _write_part(folder: Path, part: Part, advance: Callable[[int], Any]) -> dict[str, Any]:
    record_path, final = folder / _RECORDS / f"{part.name}.json", folder / part.name
    if record_path.exists() and final.exists():
        record = json.loads(record_path.read_text(encoding="utf-8"))
        if final.stat().st_size == record["num_bytes"]:
            advance(part.num_bytes)
            return record
    partial = final.with_name(final.name + ".partial")
    try:
        with open(partial, "wb") as file:
            record = part.write(file, advance)
            file.flush()
            os.fsync(file.fileno())
            record["num_bytes"] = file.tell()
    except (OSError, RuntimeError) as error:
        refusal = _disk_refusal(error)
        if refusal is None:
            raise
        raise CheckpointError(f"{partial}: {refusal.strerror}; what is finished stays: run the same command again") from error
    partial.replace(final)
    write_json(record_path, record)
    return record


def _disk_refusal(error: BaseException | None) -> OSError | None:
    """What the disk said; torch's writer (2.13) hides it behind a RuntimeError about positions in the file."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def in_groups(sizes: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Neighbours in `sizes` gathered into groups of at most `most` (or one that is larger alone): (begin, end) of each."""
    begin, total = 0, 0
    for number, size in enumerate(sizes):
        if number > begin and total + size > most:
            yield begin, number
            begin, total = number, 0
        total += size
    if begin < len(sizes):
        yield begin, len(sizes)
