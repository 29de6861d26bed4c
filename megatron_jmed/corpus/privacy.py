"""Which pieces of a Japanese or English text identify a patient, and what does the text look like without them?

In: a text and its language. Out: the identifiers, with kind and place, or the text with each replaced by a mask such as
[NAME]; over a folder, a stage that files counts by kind in its manifest. `lang` "en" skips the Japanese finders; any
other language, "unknown" too, runs both, because Japanese notes are full of English.

Masks are the kind in capitals in square brackets: [NAME] [PHONE] [POSTCODE] [ADDRESS] [EMAIL] [URL] [BIRTHDATE]
[NATIONAL_ID] [INSURANCE] [RECORD]. The honorific, label and punctuation around an identifier stay ([NAME]さん).
national_id is My Number, US social security and NHS number. The rules stand in privacy_names and privacy_numbers.

Invariant: masking a masked text changes nothing, and all that is not an identifier comes out character by character.
Not found: names without honorific or label (these need a trained recogniser), places too large to be an address, ages,
and dates other than of birth. This is a filter for public text, not a proof of anonymity.
"""

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from megatron_jmed.corpus import privacy_names, privacy_numbers
from megatron_jmed.corpus.document import Document
from megatron_jmed.corpus.manifest import Manifest
from megatron_jmed.corpus.privacy_names import english_names, japanese_names
from megatron_jmed.corpus.privacy_numbers import find_numbers
from megatron_jmed.corpus.privacy_scan import Anchors, Scanned
from megatron_jmed.corpus.scan import folder
from megatron_jmed.corpus.stage import Kept, Transform, run_stage
from megatron_jmed.errors import CorpusError

KINDS = ("name", "phone", "postcode", "address", "email", "url", "birthdate", "national_id", "insurance", "record")
RULES_VERSION = 2  # goes into the manifest: another number where the rules change what is masked

HYPHENS = "－‐‑‒–—―−﹣"
WIDE = "".join(map(chr, range(0xFF01, 0xFF5F))).replace("～", "").replace("－", "")
FOLD = str.maketrans(WIDE + HYPHENS + "ｰ\u3000", "".join(chr(ord(c) - 0xFEE0) for c in WIDE) + "-" * len(HYPHENS) + "ー ")
FOLDED = folder(FOLD)
LONG_MARK = re.compile(r"ー(?<=[0-9]ー)(?=[0-9])")  # begins with the mark, so that it is looked for first
ANCHORS = Anchors({**privacy_numbers.ANCHORS, **privacy_names.ANCHORS})


class Identifier(NamedTuple):
    """A piece of text that identifies a person: text[start:end], in code points."""

    kind: str
    start: int
    end: int


def find_identifiers(text: str, lang: str) -> list[Identifier]:
    """Find the identifiers of a text, in order and without overlap; of two that overlap the more trusted kind stays."""
    seen = Scanned(_folded(text), ANCHORS)
    if seen.is_empty():
        return []
    japanese = lang != "en"
    found = [Identifier(*item) for item in find_numbers(seen, japanese)]
    names = [*(japanese_names(seen) if japanese else ()), *english_names(seen)]
    found += [Identifier("name", start, end) for start, end in sorted(names, key=lambda span: (span[0], -span[1]))]
    taken: list[Identifier] = []
    covered = bytearray(len(text) if found else 0)
    for item in found:
        if covered.find(1, item.start, item.end) < 0:
            taken.append(item)
            covered[item.start : item.end] = b"\1" * (item.end - item.start)
    return sorted(taken, key=lambda item: item.start)


def mask(text: str, lang: str, kinds: Collection[str] = KINDS) -> tuple[str, dict[str, int]]:
    """Replace each identifier of `kinds` by its mask, and count them by kind; what a mask uncovers is masked too."""
    counts: Counter[str] = Counter()
    while identifiers := [item for item in find_identifiers(text, lang) if item.kind in kinds]:
        counts.update(item.kind for item in identifiers)
        text = _replaced(text, identifiers)
    return text, dict(counts)


def mask_corpus(
    source: str | Path,
    target: str | Path,
    *,
    kinds: Collection[str] = KINDS,
    text_field: str = "text",
    workers: int = 1,
    max_bad: int = 100,
    shard: tuple[int, int] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    licence: str | None = None,
) -> Manifest:
    """Mask every document of a source; the counts by kind stand in the manifest. No document is removed."""
    if strangers := sorted(set(kinds) - set(KINDS)):
        raise CorpusError(f"kinds {strangers} are not known; choose from {list(KINDS)}")
    chosen = tuple(kind for kind in KINDS if kind in kinds)
    return run_stage(
        "mask",
        Path(source),
        Path(target),
        {"rules_version": RULES_VERSION, "kinds": list(chosen)},
        partial(build_masker, chosen),
        workers=workers,
        text_field=text_field,
        max_bad=max_bad,
        shard=shard,
        overwrite=overwrite,
        progress=progress,
        licence=licence,
    )


def build_masker(kinds: Collection[str] = KINDS) -> Transform:
    """The transform that the stage runner calls in each worker."""
    return partial(_masked_document, kinds=kinds)


def _masked_document(document: Document, kinds: Collection[str]) -> Kept:
    text, counts = mask(document.text, document.lang, kinds)
    masked = replace(document, text=text) if counts else document
    return Kept(masked, {f"masked_{kind}": count for kind, count in counts.items()})


def _folded(text: str) -> str:
    """Fold wide ASCII and hyphens, one character for one, so that places stay what they are."""
    if text.isascii():
        return text
    text = FOLDED(text)
    return LONG_MARK.sub("-", text) if "ー" in text else text


def _replaced(text: str, identifiers: list[Identifier]) -> str:
    pieces, done = [], 0
    for item in identifiers:
        pieces += [text[done : item.start], f"[{item.kind.upper()}]"]
        done = item.end
    return "".join([*pieces, text[done:]])
