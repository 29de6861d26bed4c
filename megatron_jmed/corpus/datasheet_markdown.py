"""How does a datasheet look as Markdown, for a repository or a model card?

In: the dictionary that becomes datasheet.json. Out: text. Invariant: every text from outside is escaped here.
"""

from collections.abc import Sequence

from megatron_jmed.corpus.datasheet_tables import (
    Rows,
    Sheet,
    chain_lines,
    datasheet_tables,
    how_lines,
    labelled_groups,
    shown_text,
    tokenizer_line,
)


def datasheet_markdown(sheet: Sheet) -> str:
    """The datasheet for a repository or a model card."""
    totals = sheet["totals"]
    parts = [
        f"# {sheet['title']}",
        f"{totals['documents']:,} documents, {totals['characters']:,} characters, {totals['tokens']:,} tokens in "
        f"{totals['sets']} token set(s). Tokenizer: {tokenizer_line(sheet)}.",
    ]
    for title, head, rows, note in datasheet_tables(sheet):
        parts.append(f"## {title}\n\n{_markdown_table(head, rows)}" + (f"\n\n{note}" if note else ""))
    parts.append("## Where it comes from")
    for one in sheet["sets"]:
        parts.append(f"### {_md(one['name'])}\n\n" + "\n".join(f"- {_md(line)}" for line in chain_lines(one)))
    parts.append("## Sample documents")
    for label, group in labelled_groups(sheet):
        shown = "\n".join(f"- {_md(' '.join(shown_text(d).split()))}" for d in group["sample"]["shown"])
        parts.append(f"### {_md(label)}\n\n{shown}")
    parts.append("## How this was measured\n\n" + "\n".join(f"- {_md(line)}" for line in how_lines(sheet)))
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, "\\" + sign)
    return text


def _markdown_table(head: Sequence[str], rows: Rows) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([_md(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
