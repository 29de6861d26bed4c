"""How much of a stage's output is from which source and in which language, and how are such counts added up?

In: documents, or the counts of parts. Out: `Counts`. Invariant: documents and characters are the sums of the languages,
and of the sources; counts of parts may be added in any order and grouping. That is why, of more than MAX_GROUPS names,
those first in the alphabet keep lines of their own: which came first would depend on how the work was cut.
"""

from collections import Counter
from collections.abc import Iterable

from megatron_jmed.corpus.document import Document
from megatron_jmed.corpus.manifest import Counts, GroupCounts

# A corpus that puts, say, the page's address into `source` must not fill the manifest with a million lines.
MAX_GROUPS = 1000
OTHER = "(other)"


class Groups:
    """Sums [documents, characters, tokens] by name."""

    def __init__(self) -> None:
        self._sums: dict[str, list[int]] = {}

    def add(self, name: str, documents: int, characters: int, tokens: int = 0) -> None:
        sums = self._sums.get(name)
        if sums is None:
            if len(self._sums) > 2 * MAX_GROUPS:
                self._limit()
            sums = self._sums.setdefault(name, [0, 0, 0])
        sums[0] += documents
        sums[1] += characters
        sums[2] += tokens

    def add_counts(self, table: dict[str, GroupCounts]) -> None:
        for name, group in table.items():
            self.add(name, group.documents, group.characters, group.tokens)

    def counts(self) -> dict[str, GroupCounts]:
        """By name, in its order."""
        self._limit()
        return {
            name: GroupCounts(documents=documents, characters=characters, tokens=tokens)
            for name, (documents, characters, tokens) in sorted(self._sums.items())
        }

    def _limit(self) -> None:
        """Give up the last names of the alphabet; one that returns later is given up again, so nothing is counted twice."""
        for name in sorted(self._sums.keys() - {OTHER})[MAX_GROUPS:]:
            self.add(OTHER, *self._sums.pop(name))


class Counting:
    """Counts kept documents by source and language, and removed ones by reason."""

    def __init__(self) -> None:
        self.documents = 0
        self.dropped: Counter[str] = Counter()
        self._by_source, self._by_lang = Groups(), Groups()

    def keep(self, document: Document) -> None:
        self.keep_many(document.source, document.lang, GroupCounts(documents=1, characters=len(document.text)))

    def keep_many(self, source: str, lang: str, group: GroupCounts) -> None:
        self.documents += group.documents
        self._by_source.add_counts({source: group})
        self._by_lang.add_counts({lang: group})

    def add(self, counts: Counts) -> None:
        self.documents += counts.documents
        self.dropped.update(counts.dropped)
        self._by_source.add_counts(counts.by_source)
        self._by_lang.add_counts(counts.by_lang)

    def result(self) -> Counts:
        """The counts; totals are those of the languages, so that they cannot disagree."""
        by_source, by_lang = self._by_source.counts(), self._by_lang.counts()
        documents, characters, tokens = (
            sum(getattr(group, name) for group in by_lang.values()) for name in ("documents", "characters", "tokens")
        )
        assert documents == self.documents == sum(group.documents for group in by_source.values())
        return Counts(
            documents=documents,
            characters=characters,
            tokens=tokens,
            dropped=dict(sorted(self.dropped.items())),
            by_source=by_source,
            by_lang=by_lang,
        )


def sum_counts(all_counts: Iterable[Counts]) -> Counts:
    """Add up the counts of parts."""
    total = Counting()
    for counts in all_counts:
        total.add(counts)
    return total.result()


def sum_numbers(tables: Iterable[dict[str, int]]) -> dict[str, int]:
    """Add up numbers by name; in the order of the names."""
    total: Counter[str] = Counter()
    for table in tables:
        total.update(table)
    return dict(sorted(total.items()))
