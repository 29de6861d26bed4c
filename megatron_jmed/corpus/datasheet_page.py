"""How does a datasheet look to people: as Markdown, and as one HTML page with pictures?

In: the dictionary that becomes datasheet.json. Out: text. Both say the same; the page adds pictures (inline SVG whose
colours follow light and dark). Invariant: every text from outside is escaped here, and the page refers to nothing
outside of itself.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from megatron_jmed.corpus.piece_table import SCRIPTS

MAX_DRAWN = 40
SCRIPT_COLOURS = dict(zip(SCRIPTS, ("--c1", "--c3", "--c7", "--c2", "--c5", "--c8", "--c9", "--c6"), strict=True))
LANG_COLOURS = {"ja": "--c1", "en": "--c2"}
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


# ---- numbers and words


def _n(value: float | None, digits: int = 2) -> str:
    """A number for a table; a dash for what is not known."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def _share(part: float | None, whole: float = 1.0) -> str:
    return "–" if part is None or not whole else f"{100 * part / whole:.1f}%"


def _short(value: float) -> str:
    for factor, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= factor * 0.9995:
            scaled = value / factor
            return f"{scaled:.{max(0, 2 - int(math.log10(scaled)))}f}{unit}"
    return f"{value:g}"


def _all_groups(sheet: Sheet) -> list[tuple[Sheet, Sheet]]:
    return [(one, group) for one in sheet["sets"] for group in one["groups"]]


def _labels(sheet: Sheet) -> list[str]:
    """A name for each group: its source, or set and source where sources repeat."""
    groups = _all_groups(sheet)
    short = [(group["source"], group["lang"]) for _, group in groups]
    return [
        f"{g['source']} ({g['lang']})" if short.count(key) == 1 else f"{one['name']}: {g['source']} ({g['lang']})"
        for (one, g), key in zip(groups, short, strict=True)
    ]


# ---- tables, shared by both forms

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
    return [label, _n(group["documents"]), _n(group["characters"]), _n(group["tokens"]), _share(group["tokens"], all_tokens),
            _n(group["characters_per_token"]), _n(group["bytes_per_token"]),
            _share(group["repeated_documents"], group["documents"]), _share(group["byte_tokens"], group["tokens"])]


def _size_rows(sheet: Sheet) -> Rows:
    total = sheet["totals"]["tokens"]
    rows = [_size_row(label, g, total) for label, (_, g) in zip(_labels(sheet), _all_groups(sheet), strict=True)]
    rows += [_size_row(f"all {lang}", sums, total) for lang, sums in sheet["by_language"].items()]
    return [*rows, _size_row("all", sheet["totals"], total)]


def _length_row(label: str, group: Sheet) -> list[str]:
    tokens, characters = group["tokens_of_documents"], group["characters_of_documents"]
    return [label, *(_n(tokens.get(q), 1) for q in ("p5", "median", "p95", "p99", "max", "mean")),
            *(_n(characters.get(q), 1) for q in ("p5", "median", "p95", "max", "mean"))]


def _script_row(label: str, group: Sheet) -> list[str]:
    return [label, *(_share(group["scripts"][script], group["characters"]) for script in SCRIPTS)]


def _language_row(label: str, group: Sheet) -> list[str]:
    sample = group["sample"]
    found, lexical = sample["sentences"], sample["lexical"]
    return [label, _n(found["sentences"]), _n(found["characters"].get("median")), _n(found["characters"].get("p95")),
            _n(found["words"].get("median")), _n(lexical["pieces"]), _n(lexical["ttr"], 3), _n(lexical["mattr"], 3),
            _n(lexical["mtld"], 1), _n(group["distinct_pieces"]), _n(group["piece_entropy_bits"]),
            _n(sample["compression_ratio"], 1)]


def _term_row(label: str, group: Sheet) -> list[str]:
    terms = group["sample"]["terms"]
    common = ", ".join(f"{term} {count:,}" for term, count in terms["most_common"][:6])
    return [label, f"{terms['found']} of {terms['listed']}", _share(terms["found_share"]), _share(terms["documents_share"]),
            _n(terms["per_1000_characters"]), common or "–"]


def _declared_row(label: str, group: Sheet) -> list[str]:
    said = group["declared"]
    years = [str(said[name]) if said[name] else "–" for name in ("first_year", "last_year")]
    return [label, _n(said["dated_documents"]), *years, _n(said["translation_declared_documents"]),
            _n(said["machine_translated_documents"]), _share(said["machine_translated_share"])]


def _set_row(one: Sheet) -> list[str]:
    totals = one["totals"]
    return [one["name"], "; ".join(one["licences"]) or "not stated", _origin(one), _n(totals["documents"]), _n(totals["tokens"]),
            _n(one["bin_bytes"]), _n(one["manifest_characters"] - totals["characters"])]


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


def _tables(sheet: Sheet) -> list[tuple[str, list[str], Rows, str]]:
    """(title, head, rows, note) of every table."""
    groups = list(zip(_labels(sheet), (group for _, group in _all_groups(sheet)), strict=True))

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


def _chain_lines(one: Sheet) -> list[str]:
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


def _tokenizer_line(sheet: Sheet) -> str:
    t = sheet["tokenizer"]
    return f"{t['file']}, {t['vocab_size']:,} pieces, {t['engine']} {t['engine_version']}, SHA-256 {t['sha256']}"


def _how(sheet: Sheet) -> list[str]:
    return [line.format(**sheet["sampling"]) for line in HOW]


# ---- Markdown


def datasheet_markdown(sheet: Sheet) -> str:
    """The datasheet for a repository or a model card."""
    totals = sheet["totals"]
    parts = [
        f"# {sheet['title']}",
        f"{totals['documents']:,} documents, {totals['characters']:,} characters, {totals['tokens']:,} tokens in "
        f"{totals['sets']} token set(s). Tokenizer: {_tokenizer_line(sheet)}.",
    ]
    for title, head, rows, note in _tables(sheet):
        parts.append(f"## {title}\n\n{_markdown_table(head, rows)}" + (f"\n\n{note}" if note else ""))
    parts.append("## Where it comes from")
    for one in sheet["sets"]:
        parts.append(f"### {_md(one['name'])}\n\n" + "\n".join(f"- {_md(line)}" for line in _chain_lines(one)))
    parts.append("## Sample documents")
    for label, (_, group) in zip(_labels(sheet), _all_groups(sheet), strict=True):
        shown = "\n".join(f"- {_md(' '.join(_shown(d).split()))}" for d in group["sample"]["shown"])
        parts.append(f"### {_md(label)}\n\n{shown}")
    parts.append("## How this was measured\n\n" + "\n".join(f"- {_md(line)}" for line in _how(sheet)))
    return "\n\n".join(parts) + "\n"


def _shown(document: Sheet) -> str:
    return document["text"] + ("…" if document["cut"] else "")


def _md(text: str) -> str:
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, "\\" + sign)
    return text


def _markdown_table(head: Sequence[str], rows: Rows) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([_md(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- pictures


def _svg(alt: str, width: int, height: float, body: Sequence[str]) -> str:
    return f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {width} {height:.0f}">{"".join(body)}</svg>'


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, tint: str, tip: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}"'
    return f'<rect {place} fill="var({tint})"><title>{escape(tip)}</title></rect>'


def _cut(label: str, room: int = 34) -> str:
    return label if len(label) <= room else label[: room - 1] + "…"


def bar_picture(alt: str, rows: Sequence[tuple[str, float, str, str]], width: int = 1140) -> str:
    """One bar for each (label, value, colour, text)."""
    left, right, step = 250, 190, 27
    most = max((value for _, value, _, _ in rows), default=0) or 1
    body = []
    for number, (label, value, tint, text) in enumerate(rows):
        y, length = 4 + number * step, (width - left - right) * value / most
        body += [_text(left - 10, y + 15, _cut(label), "end", "b"), _rect(left, y, max(1.5, length), 19, tint, f"{label}: {text}"),
                 _text(left + max(1.5, length) + 8, y + 15, text)]
    return _svg(alt, width, 8 + step * len(rows), body)


def share_picture(alt: str, rows: Sequence[tuple[str, dict[str, int]]], width: int = 1140) -> str:
    """One bar of whole width for each (label, characters by script)."""
    left, right, step = 250, 10, 27
    body = []
    for number, (label, counts) in enumerate(rows):
        y, x, whole = 4 + number * step, float(left), sum(counts.values()) or 1
        body.append(_text(left - 10, y + 15, _cut(label), "end", "b"))
        for script in SCRIPTS:
            length = (width - left - right) * counts[script] / whole
            body.append(_rect(x, y, length - (1 if length > 2 else 0), 19, SCRIPT_COLOURS[script],
                              f"{label}: {script} {_share(counts[script], whole)}"))
            if length > 38:
                body.append(_text(x + length / 2, y + 14, f"{100 * counts[script] / whole:.0f}%", "middle", "on"))
            x += length
    return _svg(alt, width, 8 + step * len(rows), body)


def histogram_picture(label: str, counts: Sequence[int], tint: str, median: int, bins: range, width: int = 360) -> str:
    """Documents by length over half powers of two; `bins` is the shared range of the x axis."""
    left, top, height = 8, 26, 96
    step, most = (width - 2 * left) / max(1, len(bins)), max(counts, default=0) or 1
    body = [_text(left, 15, _cut(label, 30), kind="b")]
    for k, count in enumerate(counts):
        size = height * count / most
        low, high = math.ceil(2 ** (k / 2)), math.ceil(2 ** ((k + 1) / 2)) - 1
        if count and k in bins:
            body.append(_rect(left + (k - bins.start) * step, top + height - size, step - 1, max(1.0, size), tint,
                              f"{low:,} to {high:,} tokens: {count:,} documents"))
    body.append(f'<line x1="{left}" x2="{width - left}" y1="{top + height}" y2="{top + height}" class="axis"/>')
    every = max(2, 2 * math.ceil(len(bins) / 12))
    for k in range(bins.start + bins.start % 2, bins.stop, every):
        body.append(_text(left + (k - bins.start) * step, top + height + 15, _power(k // 2), "middle"))
    x = left + (2 * math.log2(max(1, median)) - bins.start) * step
    body += [f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 2}" y2="{top + height}" class="mark"/>',
             _text(width - left, 15, f"median {median:,}", "end")]
    return _svg(f"Length of the documents of {label}: median {median} tokens", width, top + height + 22, body)


def _power(exponent: int) -> str:
    return f"{2**exponent}" if exponent < 10 else f"{2 ** (exponent - 10)}k" if exponent < 20 else f"{2 ** (exponent - 20)}M"


# ---- HTML


def datasheet_html(sheet: Sheet) -> str:
    """The datasheet as one page."""
    totals = sheet["totals"]
    tables = _tables(sheet)
    parts = [
        f"<header><h1>{escape(sheet['title'])}</h1><p>{totals['sets']} token set(s), tokenizer "
        f"{escape(sheet['tokenizer']['file'])}. Every number on this page is in datasheet.json.</p></header>",
        f'<div class="tiles">{"".join(_tiles(sheet))}</div>',
        *_pictures(sheet),
        *(_html_table(*table) for table in tables),
        _provenance(sheet),
        _samples(sheet),
        "<h2>How this was measured</h2><ul>" + "".join(f"<li>{escape(line)}</li>" for line in _how(sheet)) + "</ul>",
        f'<p class="faint">Tokenizer: {escape(_tokenizer_line(sheet))}. Code {escape(sheet["code_version"])}.</p>',
    ]
    return PAGE.format(title=escape(sheet["title"]), style=STYLE, body="\n".join(parts))


def _tiles(sheet: Sheet) -> list[str]:
    totals = sheet["totals"]
    repeated = _share(totals["repeated_documents"], totals["documents"])
    tiles = [
        ("Tokens", _short(totals["tokens"]), f"{totals['tokens']:,}, of them {totals['special_tokens']:,} special"),
        ("Documents", _short(totals["documents"]), f"{totals['documents']:,}; {repeated} repeat another"),
        ("Characters", _short(totals["characters"]), f"{totals['characters']:,}; {_short(totals['utf8_bytes'])}B of UTF-8"),
    ]
    for lang, sums in sorted(sheet["by_language"].items(), key=lambda item: -item[1]["tokens"])[:3]:
        share = _share(sums["tokens"], totals["tokens"])
        tiles.append((f"Language {lang}", share, f"of the tokens; {_n(sums['characters_per_token'])} characters per token"))
    return [f"<div><span>{escape(a)}</span><b>{escape(b)}</b><small>{escape(c)}</small></div>" for a, b, c in tiles]


def _pictures(sheet: Sheet) -> list[str]:
    """Tokens, scripts and lengths of the largest groups."""
    found = list(zip(_labels(sheet), (group for _, group in _all_groups(sheet)), strict=True))
    found.sort(key=lambda item: (-item[1]["tokens"], item[0]))
    drawn, total = found[:MAX_DRAWN], sheet["totals"]["tokens"]
    bars = [(label, g["tokens"], LANG_COLOURS.get(g["lang"], "--c8"),
             f"{_short(g['tokens'])} tokens · {_share(g['tokens'], total)}")
            for label, g in drawn]
    left_out = len(found) - len(drawn)
    rest = f" The {left_out} smallest are in the tables only." if left_out else ""
    langs = sorted({g["lang"] for _, g in drawn})
    keys = {lang: LANG_COLOURS.get(lang, "--c8") for lang in langs}
    lengths = [g["histogram_tokens"] for _, g in drawn]
    bins = range(min(next((k for k, n in enumerate(h) if n), 0) for h in lengths) // 2 * 2, max(map(len, lengths)) + 1)
    small = "".join(
        f"<div>{histogram_picture(label, g['histogram_tokens'], keys[g['lang']], g['tokens_of_documents']['median'], bins)}</div>"
        for label, g in drawn if g["documents"]
    )
    return [
        _figure("Tokens by source and language", "Special tokens included." + rest, bar_picture("Tokens by source", bars), keys),
        _figure("Scripts", "Share of characters. Point at a bar for the exact number.",
                share_picture("Scripts by source", [(label, g["scripts"]) for label, g in drawn]), SCRIPT_COLOURS),
        _figure("Length of documents in tokens", "Number of documents by length; each step is a factor of √2, the axis is the "
                "same in all pictures, the height is relative to the fullest step.", f'<div class="small">{small}</div>', keys),
    ]


def _figure(title: str, caption: str, picture: str, keys: dict[str, str]) -> str:
    legend = "".join(f'<li><i style="background:var({tint})"></i>{escape(name)}</li>' for name, tint in keys.items())
    return (f'<h2>{escape(title)}</h2><figure><ul class="legend">{legend}</ul>{picture}'
            f"<figcaption>{escape(caption)}</figcaption></figure>")


def _html_table(title: str, head: Sequence[str], rows: Rows, note: str) -> str:
    def line(tag: str, row: Sequence[str]) -> str:
        kinds = ["" if k == 0 or _is_words(row[k]) else " class=n" for k in range(len(row))]
        cells = "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(row, kinds, strict=True))
        return f"<tr{' class=sum' if tag == 'td' and row[0].startswith('all') else ''}>{cells}</tr>"

    def first(row: Sequence[str]) -> str:
        numeric = [all(not _is_words(r[k]) for r in rows) for k in range(len(row))]
        return "".join(f"<th{' class=n' if numeric[k] and k else ''}>{escape(cell)}</th>" for k, cell in enumerate(row))

    below = f'<p class="faint">{escape(note)}</p>' if note else ""
    body = "".join(line("td", row) for row in rows)
    return (f'<h2>{escape(title)}</h2><div class="table"><table><thead><tr>{first(head)}</tr></thead><tbody>{body}</tbody></table>'
            f"{below}</div>")


def _is_words(cell: str) -> bool:
    return any(character.isalpha() for character in cell) and " of " not in cell


def _provenance(sheet: Sheet) -> str:
    blocks = []
    for one in sheet["sets"]:
        lines = "".join(f"<li>{escape(line)}</li>" for line in _chain_lines(one))
        blocks.append(f"<details><summary>{escape(one['name'])}</summary><ul>{lines}</ul></details>")
    return "<h2>Where it comes from</h2>" + "".join(blocks)


def _samples(sheet: Sheet) -> str:
    blocks = []
    for label, (_, group) in zip(_labels(sheet), _all_groups(sheet), strict=True):
        lang = escape(group["lang"], quote=True)
        shown = "".join(f'<blockquote lang="{lang}">{escape(_shown(d))}</blockquote>' for d in group["sample"]["shown"])
        blocks.append(f"<details open><summary>{escape(label)}</summary>{shown}</details>")
    return f'<h2>Sample documents</h2><div class="samples">{"".join(blocks)}</div>'


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

STYLE = """
:root { color-scheme:light dark; --page:#f6f7f9; --card:#fff; --ink:#1b1f24; --faint:#626b76; --grid:#e4e7eb;
  --c1:#0b62a8; --c2:#d1591a; --c3:#158463; --c5:#b08900; --c6:#c0345f; --c7:#8e44ad; --c8:#6b7280; --c9:#b9c0c8; --on:#fff; }
@media (prefers-color-scheme:dark) { :root { --page:#12151a; --card:#1b2027; --ink:#e6e9ed; --faint:#9aa4b0; --grid:#303842;
  --c1:#5fb0ee; --c2:#f2935a; --c3:#4fc79d; --c5:#dfbe45; --c6:#f07fa2; --c7:#c48be0; --c8:#8b949f; --c9:#4c5561; --on:#12151a; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--page); color:var(--ink);
  font:15px/1.5 system-ui, "Hiragino Sans", "Noto Sans CJK JP", sans-serif; }
main { max-width:1240px; margin:0 auto; padding:28px 24px 60px; }
h1 { margin:0; font-size:28px; line-height:1.25; } h2 { margin:34px 0 10px; font-size:19px; }
header p, .faint, figcaption { color:var(--faint); font-size:13px; } header p { margin:4px 0 18px; font-size:15px; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit, minmax(200px, 1fr)); gap:12px; }
.tiles div, figure, .table, details { background:var(--card); border:1px solid var(--grid); border-radius:10px; padding:14px 16px; }
.tiles span { display:block; color:var(--faint); font-size:13px; } .tiles b { display:block; font-size:27px; line-height:1.3; }
.tiles small { color:var(--faint); font-size:12.5px; line-height:1.4; display:block; }
figure { margin:0; } figcaption { margin-top:6px; } svg { width:100%; height:auto; display:block; }
svg text { font-size:12.5px; fill:var(--faint); } svg text.b { fill:var(--ink); font-weight:600; }
svg text.on { fill:var(--on); font-size:11.5px; } .axis { stroke:var(--faint); } .mark { stroke:var(--ink); stroke-dasharray:3 3; }
.small { display:grid; grid-template-columns:repeat(auto-fill, minmax(300px, 1fr)); gap:14px 18px; }
.legend { list-style:none; display:flex; flex-wrap:wrap; gap:2px 16px; margin:0 0 8px; padding:0; font-size:13px;
  color:var(--faint); }
.legend i { display:inline-block; width:14px; height:10px; border-radius:3px; margin-right:6px; }
.table { overflow-x:auto; } table { border-collapse:collapse; width:100%; font-size:13px; font-variant-numeric:tabular-nums; }
th, td { text-align:left; vertical-align:bottom; padding:5px 10px 5px 0; border-bottom:1px solid var(--grid); }
td { vertical-align:top; } th { color:var(--faint); font-weight:600; line-height:1.3; } td:first-child { white-space:nowrap; }
th.n, td.n { text-align:right; padding:5px 4px 5px 10px; } td.n { white-space:nowrap; } .sum td { font-weight:600; }
details { margin:0 0 8px; } summary { cursor:pointer; font-weight:600; } li { overflow-wrap:anywhere; }
.samples { display:grid; grid-template-columns:repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap:12px; align-items:start; }
blockquote { margin:10px 0 0; padding:0 0 0 12px; border-left:3px solid var(--grid); font-size:13px; white-space:pre-line;
  overflow-wrap:anywhere; }
@media print { body { background:#fff; } figure, .table { break-inside:avoid; } }
"""
