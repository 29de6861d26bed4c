"""What is in a corpus, all of it, so that a reader of the paper can judge it without having it?

In: finished token sets made with one tokenizer. Out: TARGET/datasheet.json (every number), datasheet.md and
datasheet.html (the same for people; one file, no network) and manifest.json. Numbers come from the tokens themselves
and from the manifests of the stages behind them. Each set is described by itself (datasheet_set.py), by all
workers, and kept in TARGET/.parts until all are done; with shard (i, n) a run describes every n-th set and leaves it
there. There is no merge: a run without a shard takes the sets that it finds, does the missing ones, and writes the sheet.
Invariant: documents, tokens and bytes equal the manifests, the index and the .bin file, or there is no datasheet; the
same token sets give the same bytes, for any number of workers.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from pydantic import JsonValue

from megatron_jmed.corpus.datasheet_markdown import datasheet_markdown
from megatron_jmed.corpus.datasheet_page import datasheet_html
from megatron_jmed.corpus.datasheet_set import add_up, describe_set
from megatron_jmed.corpus.manifest import (
    MANIFEST_NAME,
    PARTIAL_NAME,
    Counts,
    GroupCounts,
    InputFile,
    Manifest,
    Origin,
    OutputFile,
    code_version,
    input_file,
    joined_origin,
    publish,
    sha256_file,
)
from megatron_jmed.corpus.part_folders import PARTS, clear_about_disk, key_hash, opened, output_file
from megatron_jmed.corpus.profile import ProfileSettings
from megatron_jmed.corpus.progress_bar import progress_bar
from megatron_jmed.corpus.shards import check_shard
from megatron_jmed.corpus.terms import Terms, load_terms
from megatron_jmed.corpus.token_set import TokenSet, load_token_set
from megatron_jmed.errors import CorpusError

STAGE = "describe"
JSON_NAME, MARKDOWN_NAME, HTML_NAME = "datasheet.json", "datasheet.md", "datasheet.html"
OUTPUT_NAMES = (JSON_NAME, MARKDOWN_NAME, HTML_NAME)


@dataclass(frozen=True)
class DescribeSettings:
    """How to describe. `workers`, `overwrite` and `progress` do not change the output; all else does."""

    tokenizer: Path
    terms: Path | None = None
    title: str = "Datasheet of the corpus"
    profile: ProfileSettings = field(default_factory=ProfileSettings)
    workers: int = 1
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise CorpusError(f"--workers {self.workers} is too small; at least 1 is needed")
        for what, path in (("tokenizer", self.tokenizer), ("list of terms", self.terms)):
            if path is not None and not Path(path).is_file():
                raise CorpusError(f"{what} {path} does not exist")


def describe(
    folders: Sequence[str | Path], target: str | Path, settings: DescribeSettings, shard: tuple[int, int] | None = None
) -> Manifest | None:
    """Write the datasheet of token sets into TARGET; a target that is already finished is left as it is.

    With `shard` (i, n) every n-th set is described, for a later run without, and None is returned.
    """
    target, paths = Path(target), [Path(folder) for folder in folders]
    token_sets = _load(paths, sha256_file(settings.tokenizer), settings.tokenizer)
    names = _names(paths)
    terms = load_terms(settings.terms) if settings.terms else Terms()
    inputs = [input_file(path / MANIFEST_NAME, f"{name}/{MANIFEST_NAME}") for name, path in zip(names, paths, strict=True)]
    choices: dict[str, JsonValue] = {
        "title": settings.title,
        "tokenizer_sha256": token_sets[0].tokenizer_sha256,
        "terms_sha256": sha256_file(settings.terms) if settings.terms else None,
        "profile": asdict(settings.profile),
    }
    sets = list(zip(names, paths, token_sets, inputs, strict=True))
    if shard:
        check_shard(target, shard, settings.overwrite)
        with clear_about_disk(target):
            _describe_sets(target, sets[shard[0] - 1 :: shard[1]], terms, choices, settings)
        return None
    with opened(target, STAGE, choices, inputs, OUTPUT_NAMES, settings.overwrite) as finished:
        if finished:
            return finished
        sheets = _describe_sets(target, sets, terms, choices, settings)
        manifest = _write_sheet(target, paths, inputs, token_sets[0], sheets, terms, choices, settings)
        publish(target, manifest, OUTPUT_NAMES)
    return manifest


def _write_sheet(
    target: Path,
    paths: list[Path],
    inputs: list[InputFile],
    token_set: TokenSet,
    sheets: list[dict[str, Any]],
    terms: Terms,
    choices: dict[str, JsonValue],
    settings: DescribeSettings,
) -> Manifest:
    sheet = {
        "format_version": 1,
        "title": settings.title,
        "code_version": code_version(),
        "tokenizer": asdict(token_set.tokenizer),
        "terms": _terms_statement(settings, terms),
        "sampling": asdict(settings.profile),
        "totals": add_up([group for one in sheets for group in one["groups"]]) | {
            "sets": len(sheets),
            "bin_bytes": sum(one["bin_bytes"] for one in sheets),
        },
        "by_language": _by_language(sheets),
        "sets": sheets,
    }
    return Manifest(
        stage=STAGE,
        settings=choices,
        code_version=sheet["code_version"],
        source="; ".join(str(path) for path in paths),
        inputs=inputs,
        files=_write(target / PARTIAL_NAME, sheet),
        counts=_counts(sheets),
        licence="; ".join(sorted({licence for one in sheets for licence in one["licences"]})) or None,
        origin=joined_origin(Origin.model_validate(one["origin"]) for one in sheets),
    )


# ---- what goes in


def _load(paths: Sequence[Path], tokenizer_sha256: str, tokenizer: Path) -> list[TokenSet]:
    """Load the token sets; CorpusError, with all that are wrong, if one was not made with the tokenizer."""
    if not paths:
        raise CorpusError("no token set to describe; give at least one folder of tools/tokenize_corpus.py")
    token_sets = [load_token_set(path) for path in paths]
    if sentences := [str(path) for path, one in zip(paths, token_sets, strict=True) if one.is_sentences]:
        raise CorpusError(f"{len(sentences)} token set(s) hold sentences, and a datasheet is about whole documents: "
                          f"{', '.join(sentences)}; tokenise without --split-sentences to describe them")
    others = [
        f"{path} ({one.tokenizer.file}, {one.tokenizer_sha256[:12]})"
        for path, one in zip(paths, token_sets, strict=True)
        if one.tokenizer_sha256 != tokenizer_sha256
    ]
    if others:
        raise CorpusError(
            f"{len(others)} token set(s) were not made with {tokenizer} ({tokenizer_sha256[:12]}): "
            f"{', '.join(others)}; give their tokenizer, or describe them apart"
        )
    return token_sets


def _names(paths: Sequence[Path]) -> list[str]:
    """The sets' names: their folders', or the whole path where two folders are called the same."""
    short = [path.resolve().name for path in paths]
    names = [str(path) if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)]
    if len({path.resolve() for path in paths}) < len(paths):
        raise CorpusError(f"a token set is given twice: {', '.join(map(str, paths))}")
    return names


def _terms_statement(settings: DescribeSettings, terms: Terms) -> dict[str, Any] | None:
    if settings.terms is None:
        return None
    numbers = {lang: len(listed) for lang, listed in sorted(terms.by_lang.items())}
    return {"file": settings.terms.name, "sha256": sha256_file(settings.terms), "terms": numbers}


# ---- set by set


Set = tuple[str, Path, TokenSet, InputFile]


def _describe_sets(
    target: Path, sets: Sequence[Set], terms: Terms, choices: dict[str, JsonValue], settings: DescribeSettings
) -> list[dict[str, Any]]:
    """Describe the sets that no earlier run of the same choices has described; each is kept as soon as it is done."""
    (target / PARTS).mkdir(parents=True, exist_ok=True)
    total = sum(token_set.num_tokens for _, _, token_set, _ in sets)
    sheets = []
    with progress_bar(total=total, unit=" tokens", unit_scale=True, show=settings.progress) as bar:
        for name, path, token_set, manifest in sets:
            bar.set_postfix_str(name, refresh=False)
            key = key_hash([STAGE, choices, code_version(), name, manifest.sha256])
            kept = target / PARTS / f"{key}.json"
            if kept.exists():
                bar.update(token_set.num_tokens)
            else:
                done = describe_set(
                    name, path, token_set, settings.tokenizer, terms, settings.profile, settings.workers, bar.update
                )
                temporary = kept.with_name(f"{key}.tmp-{os.getpid()}")
                temporary.write_bytes(orjson.dumps(done))
                os.replace(temporary, kept)
            sheets.append(orjson.loads(kept.read_bytes()))
    return sheets


# ---- what comes out


def _write(folder: Path, sheet: dict[str, Any]) -> list[OutputFile]:
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    texts = {
        JSON_NAME: orjson.dumps(sheet, option=options),
        MARKDOWN_NAME: datasheet_markdown(sheet).encode(),
        HTML_NAME: datasheet_html(sheet).encode(),
    }
    for name, data in texts.items():
        (folder / name).write_bytes(data)
    rows = sheet["totals"]["documents"]
    return [output_file(folder / name, name, rows) for name in sorted(texts)]


def _by_language(sheets: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    groups = [group for one in sheets for group in one["groups"]]
    return {lang: add_up([g for g in groups if g["lang"] == lang]) for lang in sorted({g["lang"] for g in groups})}


def _counts(sheets: Sequence[dict[str, Any]]) -> Counts:
    groups = [group for one in sheets for group in one["groups"]]
    whole = _group_counts(groups)
    return Counts(
        documents=whole.documents,
        characters=whole.characters,
        tokens=whole.tokens,
        by_source={name: _group_counts([g for g in groups if g["source"] == name]) for name in _values(groups, "source")},
        by_lang={name: _group_counts([g for g in groups if g["lang"] == name]) for name in _values(groups, "lang")},
    )


def _values(groups: Sequence[dict[str, Any]], key: str) -> list[str]:
    return sorted({group[key] for group in groups})


def _group_counts(groups: Sequence[dict[str, Any]]) -> GroupCounts:
    return GroupCounts(**{name: sum(group[name] for group in groups) for name in ("documents", "characters", "tokens")})
