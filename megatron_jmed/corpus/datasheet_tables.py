"""What does a datasheet say to people, in which tables and lines?

In: the dictionary that becomes datasheet.json. Out: plain text, nothing escaped: tables as (title, head, rows, note), and lines on
where the sets come from and how all was measured. Markdown and the HTML page say the same since both are made of these.
Invariant: no number is worked out here but shares of two numbers of the sheet.
"""

import math
from typing import Any

from megatron_jmed.corpus.piece_table import SCRIPTS

NOT_LOOKED_FOR = "not looked for"
Sheet = dict[str, Any]
Rows = list[list[str]]

HOW = (
    "Counts, lengths, scripts and pieces are exact, over every token; characters and bytes are those of the decoded text.",
    "Characters and bytes per token leave the special tokens (such as <s> and </s>) out; tokens counts them.",
    "Repeated documents have exactly the ids of an earlier document of the same set; near duplicates are not counted here.",
    "Sampled measures (sentences, lexical diversity, compression, terms) look at up to {sample_documents:,} documents and "
    "{sample_tokens:,} tokens of each source and language, chosen by a hash with seed {seed}; of a longer document, its "
    "first {document_tokens:,} tokens.",
    "Lexical diversity is of tokenizer pieces that hold a letter, lower-cased: TTR of the first {lexical_pieces:,}, MATTR "
    "over windows of {mattr_window}, MTLD at 0.72. Compare Japanese with Japanese and English with English. A dash: fewer "
    "pieces than one window.",
    "Sentences: Japanese end after 。！？ and closing brackets and at line ends; English after . ! ? before white space and "
    "at blank lines (an abbreviation ends one too), so lists without full stops are long sentences.",
    "Compression: bytes of the sample over its bytes after zstd; high means repetitive.",
    "Terms: of the list for the group's language (for other languages: all). English as whole words, also with s; Japanese "
    "as any stretch of text, so a term within another counts twice.",
)


# ---- numbers and names


def num(value: float | None, digits: int = 2) -> str:
    """A number for a table; a dash for what is not known."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def percent(part: float | None, whole: float = 1.0) -> str:
    """A share for a table; a dash for what is not known."""
    return "–" if part is None or not whole else f"{100 * part / whole:.1f}%"


def short_num(value: float) -> str:
    """A number with three digits and k, M, B or T."""
    for factor, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= factor * 0.9995:
            scaled = value / factor
            return f"{scaled:.{max(0, 2 - int(math.log10(scaled)))}f}{unit}"
    return f"{value:g}"


def labelled_groups(sheet: Sheet) -> list[tuple[str, Sheet]]:
    """Each group with a name: its source, or set and source where sources repeat."""
    groups = [(one, group) for one in sheet["sets"] for group in one["groups"]]
    keys = [(group["source"], group["lang"]) for _, group in groups]
    return [
        (f"{g['source']} ({g['lang']})" if keys.count(key) == 1 else f"{one['name']}: {g['source']} ({g['lang']})", g)
        for (one, g), key in zip(groups, keys, strict=True)
    ]


# ---- tables

SIZE_HEAD = ["source (language)", "documents", "characters", "tokens", "share", "characters / token", "bytes / token",
             "repeated documents", "byte-piece tokens"]
LENGTH_HEAD = ["source (language)", "tokens: 5%", "median", "95%", "99%", "longest", "mean", "characters: 5%", "median",
               "95%", "longest", "mean"]
SCRIPT_HEAD = ["source (language)", *SCRIPTS]
LANGUAGE_HEAD = ["source (language)", "sentences", "median characters", "95%", "median words", "pieces", "TTR", "MATTR", "MTLD",
                 "distinct pieces (all)", "entropy, bits", "compression"]
TERM_HEAD = ["source (language)", "terms found", "of the list", "documents with a term", "per 1,000 characters", "most frequent"]
DECLARED_HEAD = ["source (language)", "dated documents", "from", "to", "translation declared", "machine-translated",
                 "share of these"]
SET_HEAD = ["token set", "licence", "origin", "documents", "tokens", "bytes of .bin", "characters per manifest − decoded"]
REMOVED_HEAD = ["token set", "duplicates", "contaminated", "masked", "other removals"]


def _size_row(label: str, group: Sheet, all_tokens: int) -> list[str]:
    return [label, num(group["documents"]), num(group["characters"]), num(group["tokens"]), percent(group["tokens"], all_tokens),
            num(group["characters_per_token"]), num(group["bytes_per_token"]),
            percent(group["repeated_documents"], group["documents"]), percent(group["byte_tokens"], group["tokens"])]


def _size_rows(sheet: Sheet) -> Rows:
    total = sheet["totals"]["tokens"]
    rows = [_size_row(label, g, total) for label, g in labelled_groups(sheet)]
    rows += [_size_row(f"all {lang}", sums, total) for lang, sums in sheet["by_language"].items()]
    return [*rows, _size_row("all", sheet["totals"], total)]


def _length_row(label: str, group: Sheet) -> list[str]:
    tokens, characters = group["tokens_of_documents"], group["characters_of_documents"]
    return [label, *(num(tokens.get(q), 1) for q in ("p5", "median", "p95", "p99", "max", "mean")),
            *(num(characters.get(q), 1) for q in ("p5", "median", "p95", "max", "mean"))]


def _script_row(label: str, group: Sheet) -> list[str]:
    return [label, *(percent(group["scripts"][script], group["characters"]) for script in SCRIPTS)]


def _language_row(label: str, group: Sheet) -> list[str]:
    sample = group["sample"]
    found, lexical = sample["sentences"], sample["lexical"]
    return [label, num(found["sentences"]), num(found["characters"].get("median")), num(found["characters"].get("p95")),
            num(found["words"].get("median")), num(lexical["pieces"]), num(lexical["ttr"], 3), num(lexical["mattr"], 3),
            num(lexical["mtld"], 1), num(group["distinct_pieces"]), num(group["piece_entropy_bits"]),
            num(sample["compression_ratio"], 1)]


def _term_row(label: str, group: Sheet) -> list[str]:
    terms = group["sample"]["terms"]
    common = ", ".join(f"{term} {count:,}" for term, count in terms["most_common"][:6])
    return [label, f"{terms['found']} of {terms['listed']}", percent(terms["found_share"]), percent(terms["documents_share"]),
            num(terms["per_1000_characters"]), common or "–"]


def _declared_row(label: str, group: Sheet) -> list[str]:
    said = group["declared"]
    years = [str(said[name]) if said[name] else "–" for name in ("first_year", "last_year")]
    return [label, num(said["dated_documents"]), *years, num(said["translation_declared_documents"]),
            num(said["machine_translated_documents"]), percent(said["machine_translated_share"])]


def _set_row(one: Sheet) -> list[str]:
    totals = one["totals"]
    return [one["name"], "; ".join(one["licences"]) or "not stated", _origin(one), num(totals["documents"]), num(totals["tokens"]),
            num(one["bin_bytes"]), num(one["manifest_characters"] - totals["characters"])]


def _origin(one: Sheet) -> str:
    """"original", or "machine-translated" with what is known of how."""
    origin = one["origin"]
    steps = [f"{step['from_lang']} to {step['to_lang']} by {step['model']}" for step in origin["translations"]]
    return "; ".join([origin["kind"].replace("_", "-"), *steps])


def _removed_row(one: Sheet) -> list[str]:
    def said(head: str) -> str:
        sums = one["removed"].get(head, {})
        if not sums and head != "other":
            return "0" if one["looked_for"][head] else NOT_LOOKED_FOR
        return ", ".join(f"{name} {count:,}" for name, count in sums.items()) or "0"

    return [one["name"], *(said(head) for head in ("duplicates", "contaminated", "masked", "other"))]


def datasheet_tables(sheet: Sheet) -> list[tuple[str, list[str], Rows, str]]:
    """(title, head, rows, note) of every table."""
    groups = labelled_groups(sheet)

    def rows(make: Any) -> Rows:
        return [make(label, group) for label, group in groups]

    tables = [
        ("Sizes", SIZE_HEAD, _size_rows(sheet), ""),
        ("Length of documents", LENGTH_HEAD, rows(_length_row), ""),
        ("Scripts, share of characters", SCRIPT_HEAD, rows(_script_row), ""),
        ("Sentences and lexical diversity (sample)", LANGUAGE_HEAD, rows(_language_row), ""),
    ]
    if sheet["terms"]:
        note = "List: " + sheet["terms"]["file"] + ", " + ", ".join(f"{n} {lang}" for lang, n in sheet["terms"]["terms"].items())
        tables.append(("Medical terms (sample)", TERM_HEAD, rows(_term_row), note))
    note = "A field that no document has says nothing: undeclared is neither translated nor original."
    tables.append(("Time span and machine translation, as documents declare them", DECLARED_HEAD, rows(_declared_row), note))
    note = "The sums over sources and languages equal each set's manifest and the size of its .bin file; this was checked."
    tables.append(("Token sets", SET_HEAD, [_set_row(one) for one in sheet["sets"]], note))
    note = f"“{NOT_LOOKED_FOR}”: no such stage is in the chain, so there may be some."
    tables.append(("What earlier stages removed or masked", REMOVED_HEAD, [_removed_row(one) for one in sheet["sets"]], note))
    return tables


def chain_lines(one: Sheet) -> list[str]:
    """Where a token set comes from: its stages, its files, and the first inputs."""
    lines = []
    for step in one["chain"]:
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in step["dropped"].items()) or "nothing"
        made = f"{step['created']}, code {step['code_version']}"
        lines.append(f"{step['stage']} → {step['folder']}: {step['documents']:,} documents kept, dropped: {dropped} ({made})")
    lines += [f"the chain ends here: {end}" for end in one["chain_ends"]]
    lines.append(f"sources and languages are told apart by {one['attribution']}")
    lines += [f"{file['path']}: {file['bytes']:,} bytes, SHA-256 {file['sha256']}" for file in one["files"]]
    first = one["chain"][-1]["inputs"]
    lines += [f"input {file['path']}: {file['bytes']:,} bytes, SHA-256 {file['sha256']}" for file in first[:20]]
    return lines + ([f"and {len(first) - 20} more input files (in datasheet.json)"] if len(first) > 20 else [])


def tokenizer_line(sheet: Sheet) -> str:
    """Which tokenizer made the sets."""
    t = sheet["tokenizer"]
    return f"{t['file']}, {t['vocab_size']:,} pieces, {t['engine']} {t['engine_version']}, SHA-256 {t['sha256']}"


def how_lines(sheet: Sheet) -> list[str]:
    """How all was measured."""
    return [line.format(**sheet["sampling"]) for line in HOW]


def shown_text(document: Sheet) -> str:
    """A sample document, with a sign where it is cut."""
    return document["text"] + ("…" if document["cut"] else "")
