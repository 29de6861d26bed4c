"""How much of a stage's output is from which source and in which language, and how are such counts added up?

In: documents, or the counts of parts. Out: `Counts`. Invariant: documents and characters are the sums of the languages,
and of the sources; names beyond the first MAX_GROUPS share one line.
"""

from collections import Counter
from collections.abc import Iterable

from megatron_jmed.corpus.document import Document
from megatron_jmed.corpus.manifest import Counts, GroupCounts

# A corpus that puts, say, the page's address into `source` must not fill the manifest with a million lines.
MAX_GROUPS = 1000
OTHER = "(other)"


class Counting:
    """Counts kept documents by source and language; names beyond the first MAX_GROUPS share one line."""

    def __init__(self) -> None:
        self.documents = 0
        self.dropped: Counter[str] = Counter()
        self._by_source: dict[str, list[int]] = {}
        self._by_lang: dict[str, list[int]] = {}

    def keep(self, document: Document) -> None:
        self.documents += 1
        for groups, name in ((self._by_source, document.source), (self._by_lang, document.lang)):
            name = name if name in groups or len(groups) < MAX_GROUPS else OTHER
            group = groups.setdefault(name, [0, 0])
            group[0] += 1
            group[1] += len(document.text)

    def result(self, bad: Counter[str]) -> Counts:
        by_source, by_lang = (
            {name: GroupCounts(documents=documents, characters=characters) for name, (documents, characters) in groups}
            for groups in (self._by_source.items(), self._by_lang.items())
        )
        return sum_counts([Counts(dropped=dict(self.dropped + bad), by_source=by_source, by_lang=by_lang)])


def sum_counts(all_counts: Iterable[Counts]) -> Counts:
    """Add up; the totals are those of the languages, so that they cannot disagree."""
    all_counts = list(all_counts)
    by_source = _sum_groups([counts.by_source for counts in all_counts])
    by_lang = _sum_groups([counts.by_lang for counts in all_counts])
    documents, characters = (
        sum(getattr(group, name) for group in by_lang.values()) for name in ("documents", "characters")
    )
    assert documents == sum(group.documents for group in by_source.values())
    dropped = dict(sorted(sum_numbers([counts.dropped for counts in all_counts]).items()))
    return Counts(documents=documents, characters=characters, dropped=dropped, by_source=by_source, by_lang=by_lang)


def sum_numbers(tables: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for table in tables:
        total.update(table)
    return total


def _sum_groups(tables: Iterable[dict[str, GroupCounts]]) -> dict[str, GroupCounts]:
    total: dict[str, GroupCounts] = {}
    for table in tables:
        for name, group in table.items():
            name = name if name in total or len(total) < MAX_GROUPS else OTHER
            old = total.get(name, GroupCounts())
            total[name] = GroupCounts(
                documents=old.documents + group.documents, characters=old.characters + group.characters
            )
    return dict(sorted(total.items()))
