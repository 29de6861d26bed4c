"""How often do the terms of a list occur in texts?

In: a file of terms by language, texts. Out: how many of the terms occur, how often, in how many of the texts.
Invariant: letter case does not count.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_jmed.corpus.measures import ratio
from megatron_jmed.errors import CorpusError

EN_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Terms:
    """A word list: terms by language."""

    by_lang: dict[str, list[str]] = field(default_factory=dict)

    def of(self, lang: str) -> list[str]:
        """The terms to look for in a language; for an unknown one, all."""
        return self.by_lang[lang] if lang in self.by_lang else [t for terms in self.by_lang.values() for t in terms]


def load_terms(path: str | Path) -> Terms:
    """Read lines of `language TAB term` (# begins a comment); CorpusError for any other line or a repeated term."""
    found: dict[str, list[str]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"list of terms {path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        lang, _, term = (part.strip() for part in line.partition("\t"))
        if not lang or not term:
            raise CorpusError(f"{path}:{number}: {line!r} is not `language TAB term`, such as 'en\tfever'")
        if term.lower() in found.setdefault(lang, []):
            raise CorpusError(f"{path}:{number}: {term!r} stands twice in the list of {lang}")
        found[lang].append(term.lower())
    if not found:
        raise CorpusError(f"{path} holds no term; write lines of `language TAB term`")
    return Terms(found)


def term_coverage(texts: Sequence[str], terms: Sequence[str], is_ja: bool) -> dict[str, Any]:
    """How many terms occur, how often, and in how many documents.

    English terms are whole words, also with s; Japanese ones any stretch of text, so that one within another counts twice.
    """
    counts: Counter[str] = Counter()
    with_term = 0
    for text in texts:
        low = text.lower()
        spaced = low if is_ja else f" {'  '.join(EN_WORD.findall(low))} "
        here = {term: n for term in terms if (n := _occurrences(spaced, low, term, is_ja))}
        counts.update(here)
        with_term += bool(here)
    num_characters = sum(map(len, texts))
    return {
        "listed": len(terms),
        "found": len(counts),
        "found_share": ratio(len(counts), len(terms)),
        "documents_share": ratio(with_term, len(texts)),
        "occurrences": counts.total(),
        "per_1000_characters": ratio(1000 * counts.total(), num_characters),
        "most_common": [[term, count] for term, count in sorted(counts.items(), key=lambda c: (-c[1], c[0]))[:12]],
    }


def _occurrences(spaced: str, low: str, term: str, is_ja: bool) -> int:
    if is_ja or not term.isascii():
        return low.count(term)
    words = "  ".join(EN_WORD.findall(term))  # two spaces, so that neighbours do not share one
    return spaced.count(f" {words} ") + spaced.count(f" {words}s ")
