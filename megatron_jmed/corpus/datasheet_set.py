"""What is in one token set, by source and language, and where does it come from?

In: a finished token set, its tokenizer, a list of terms. Out: the dictionary that becomes one of `sets` in datasheet.json:
the profile of each group (profile.py), what documents declare, and the stages behind the set (provenance.py).
Invariant: files have the checksums of their manifest, and the groups add up to the manifest and the .bin file, or it is refused.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_jmed.corpus.manifest import Manifest, sha256_file
from megatron_jmed.corpus.measures import ratio
from megatron_jmed.corpus.piece_table import SCRIPTS
from megatron_jmed.corpus.profile import ProfileSettings, profile_token_set
from megatron_jmed.corpus.provenance import Attribution, Facts, attribute, follow_chain
from megatron_jmed.corpus.terms import Terms
from megatron_jmed.corpus.token_set import NAME, TokenSet
from megatron_jmed.errors import CorpusError

SUMS = ("documents", "tokens", "special_tokens", "byte_tokens", "characters", "utf8_bytes", "repeated_documents")


def describe_set(
    name: str, path: Path, token_set: TokenSet, tokenizer: Path, terms: Terms, settings: ProfileSettings, workers: int, advance: Any
) -> dict[str, Any]:
    """What the datasheet says of one token set; `advance` is called with the number of tokens done."""
    manifest = token_set.manifest
    _check_sums(path, manifest)
    attribution = attribute(path, manifest, workers)
    langs = [lang for _, lang in attribution.names]
    bin_path = path / f"{NAME}.bin"
    profiles = profile_token_set(
        bin_path, tokenizer, attribution.groups, langs, terms, settings, workers, advance
    )
    groups = [_group(attribution, number, profile) for number, profile in enumerate(profiles)]
    groups.sort(key=lambda group: (-group["tokens"], group["source"], group["lang"]))
    totals = add_up(groups)
    _check_totals(path, manifest, totals, bin_path.stat().st_size, np.dtype(token_set.dtype).itemsize)
    chain = follow_chain(path)
    return {
        "name": name,
        "created": manifest.created,
        "code_version": manifest.code_version,
        "dtype": token_set.dtype,
        "bin_bytes": bin_path.stat().st_size,
        "files": [file.model_dump() for file in manifest.files],
        "licences": chain.licences(),
        "origin": manifest.origin.model_dump(),
        "attribution": attribution.how,
        "totals": totals,
        "manifest_characters": manifest.counts.characters,
        "removed": chain.removed(),
        "looked_for": {head: chain.ran(head) for head in ("duplicates", "contaminated", "masked")},
        "chain": chain.steps,
        "chain_ends": chain.ends,
        "groups": groups,
    }


def _check_sums(folder: Path, manifest: Manifest) -> None:
    for file in manifest.files:
        found = sha256_file(folder / file.path)
        if found != file.sha256:
            raise CorpusError(
                f"{folder / file.path} has SHA-256 {found[:16]}..., its manifest says {file.sha256[:16]}...: "
                f"changed since it was written; tokenise again"
            )


def _group(attribution: Attribution, number: int, profile: dict[str, Any]) -> dict[str, Any]:
    source, lang = attribution.names[number]
    declared = _declared(attribution.facts[number], profile["documents"])
    return {"source": source, "lang": lang, **profile, "declared": declared}


def _declared(facts: Facts, num_documents: int) -> dict[str, Any]:
    """What documents say about time and translation; a share is of those that say anything."""
    said = facts.translated + facts.not_translated
    return {
        "dated_documents": facts.dated,
        "first_year": facts.first_year,
        "last_year": facts.last_year,
        "translation_declared_documents": said,
        "translation_undeclared_documents": num_documents - said,
        "machine_translated_documents": facts.translated,
        "machine_translated_tokens": facts.translated_tokens,
        "machine_translated_share": round(facts.translated / said, 6) if said else None,
    }


def _check_totals(folder: Path, manifest: Manifest, totals: dict[str, Any], size: int, itemsize: int) -> None:
    """The groups must add up to what the manifest and the .bin file say."""
    claims = {
        "documents": (totals["documents"], manifest.counts.documents),
        "tokens": (totals["tokens"], manifest.counts.tokens),
        "bytes of the .bin file": (totals["tokens"] * itemsize, size),
        "characters by script": (sum(totals["scripts"].values()), totals["characters"]),
    }
    for what, (found, claimed) in claims.items():
        if found != claimed:
            raise CorpusError(f"{folder}: {what}: {found} counted, {claimed} claimed; the set is damaged, tokenise again")


def add_up(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sums over groups, and what follows from sums alone."""
    sums: dict[str, Any] = {name: sum(group[name] for group in groups) for name in SUMS}
    text_tokens = sums["tokens"] - sums["special_tokens"]
    sums["characters_per_token"] = ratio(sums["characters"], text_tokens)
    sums["bytes_per_token"] = ratio(sums["utf8_bytes"], text_tokens)
    sums["scripts"] = {script: sum(group["scripts"][script] for group in groups) for script in SCRIPTS}
    return sums
