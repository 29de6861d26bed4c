"""How do records with several texts (title, abstract, text) become token sets?

In: a source and the names of its fields, the keys. Out: TARGET/KEY for each, a full token set of the texts in that field,
with its own manifest, removed records and budget for them; with shards, TARGET/KEY/shard-i-of-n until they are merged.
Invariant: TARGET/KEY equals, byte for byte, what `tokenize` makes of that field alone. So the source is read once for each
key, and a record that lacks one counts against that key only.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from megatron_jmed.corpus.manifest import MANIFEST_NAME, Manifest
from megatron_jmed.corpus.reader import SHARD_FOLDER
from megatron_jmed.corpus.token_settings import TokenizeSettings
from megatron_jmed.corpus.token_shards import merge_token_shards
from megatron_jmed.corpus.tokens import tokenize
from megatron_jmed.errors import CorpusError

MAX_NAME_BYTES = 255  # of a folder, on all usual file systems


def tokenize_keys(
    source: str | Path,
    target: str | Path,
    keys: Sequence[str],
    settings: TokenizeSettings,
    shard: tuple[int, int] | None = None,
) -> dict[str, Manifest]:
    """Make TARGET/KEY for each key, one after the other; those already finished are left as they are."""
    return _each(target, keys, lambda key, folder: tokenize(source, folder, replace(settings, text_field=key), shard))


def merge_token_keys(
    target: str | Path, keys: Sequence[str], overwrite: bool = False, max_bad: int | None = None
) -> dict[str, Manifest]:
    """Publish the shards in TARGET/KEY for each key; `max_bad` is the budget of each."""
    return _each(target, keys, lambda _, folder: merge_token_shards(folder, overwrite, max_bad))


def _each(target: str | Path, keys: Sequence[str], make: Callable[[str, Path], Manifest]) -> dict[str, Manifest]:
    target = Path(target)
    _check(target, keys)
    made = {}
    for key in keys:
        try:
            made[key] = make(key, target / key)
        except CorpusError as error:
            done = f" (finished: {', '.join(made)})" if made else ""
            raise CorpusError(f"key {key!r}: {error}{done}") from None
    return made


def _check(target: Path, keys: Sequence[str]) -> None:
    """CorpusError, with all that is wrong, unless each key can be the name of a folder of its own in TARGET."""
    problems = [problem for key in dict.fromkeys(keys) if (problem := _key_problem(key))]
    problems += [f"{key!r} is given twice" for key in dict.fromkeys(keys) if keys.count(key) > 1]
    folded: dict[str, str] = {}
    for key in dict.fromkeys(keys):
        if (other := folded.setdefault(key.casefold(), key)) != key:
            problems.append(f"{other!r} and {key!r} are one folder where capitals do not count")
    if not keys:
        problems.append("name at least one field")
    if problems:
        raise CorpusError(f"--json-keys: {'; '.join(problems)}")
    if (target / MANIFEST_NAME).is_file():
        raise CorpusError(f"{target} holds a finished result itself; choose another folder for the sets of --json-keys")


def _key_problem(key: str) -> str | None:
    """Why a key cannot name a folder; it must not lead out of TARGET, be hidden there, or be taken for something else."""
    if not key.strip() or key != key.strip():
        return f"{key!r} is empty or has white space at its ends"
    if key.startswith("."):
        return f"{key!r} begins with a dot"
    if any(character in "/\\:" or not character.isprintable() for character in key):
        return f"{key!r} holds a path separator, a colon or an invisible character"
    if len(key.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return f"{key[:20]!r}... is longer than {MAX_NAME_BYTES} bytes"
    if key == MANIFEST_NAME or SHARD_FOLDER.fullmatch(key):
        return f"{key!r} is a name of our own"
    return None
