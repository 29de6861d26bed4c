"""What do the cleaning rules catch of dirty text, and what good text do they lose? Prints the tables for clean.md.

    python benchmarks/clean_dirty.py

The texts are tests/corpus/dirty_texts.py: invented and labelled. Per label: how many are removed, and by which rule.
"""

import sys
from collections import Counter
from pathlib import Path

from megatron_jmed.corpus.clean import clean_document
from megatron_jmed.corpus.clean_rules import CleanSettings
from megatron_jmed.corpus.document import Document
from megatron_jmed.corpus.stage import Removed

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/corpus"))
from dirty_texts import Labelled, dirty_texts, good_texts


def outcome(one: Labelled) -> str | None:
    """The rule that removes a text, or None."""
    result = clean_document(Document("", one.text, "", one.lang, {}), CleanSettings())
    return result.reason if isinstance(result, Removed) else None


def main() -> None:
    dirty, good = dirty_texts(), good_texts()
    rules = {one: outcome(one) for one in (*dirty, *good)}
    caught = sum(rules[one] is not None for one in dirty)
    lost = sum(rules[one] is not None for one in good)
    print(f"{len(dirty)} dirty texts, {caught} removed (recall {caught / len(dirty):.3f}); {len(good)} good texts, {lost} removed;")
    print(f"precision {caught / (caught + lost):.3f}\n\n| label | lang | texts | removed | by rule |\n|---|---|--:|--:|---|")
    for label, lang in dict.fromkeys((one.label, one.lang) for one in (*dirty, *good)):
        texts = [one for one in (*dirty, *good) if (one.label, one.lang) == (label, lang)]
        by_rule = Counter(rule for one in texts if (rule := rules[one]))
        by = ", ".join(f"{rule} {times}" for rule, times in by_rule.most_common()) or "none"
        print(f"| {label} | {lang} | {len(texts)} | {by_rule.total()} | {by} |")
    print("\n| rule | dirty | good |\n|---|--:|--:|")
    for rule in dict.fromkeys(filter(None, rules.values())):
        print(f"| {rule} | {sum(rules[one] == rule for one in dirty)} | {sum(rules[one] == rule for one in good)} |")
    print("\nNot removed, or wrongly removed (the first 60 characters):\n")
    for one in (*dirty, *good):
        if (rules[one] is None) == (one in dirty):
            print(f"- {one.label} ({one.lang}), {len(one.text)} characters: `{one.text[:60]!r}` {rules[one] or ''}".rstrip())


if __name__ == "__main__":
    main()
