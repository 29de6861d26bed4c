"""How does a datasheet look as one HTML page with pictures?

In: the dictionary that becomes datasheet.json. Out: text. Invariant: every text from outside is escaped here, and the page
refers to nothing outside of itself.
"""

from collections.abc import Sequence
from html import escape

from megatron_jmed.corpus.datasheet_pictures import SCRIPT_COLOURS, bar_picture, histogram_picture, share_picture
from megatron_jmed.corpus.datasheet_tables import (
    Rows,
    Sheet,
    chain_lines,
    datasheet_tables,
    how_lines,
    labelled_groups,
    num,
    percent,
    short_num,
    shown_text,
    tokenizer_line,
)

MAX_DRAWN = 40
LANG_COLOURS = {"ja": "--c1", "en": "--c2"}


def datasheet_html(sheet: Sheet) -> str:
    """The datasheet as one page."""
    totals = sheet["totals"]
    tables = datasheet_tables(sheet)
    parts = [
        f"<header><h1>{escape(sheet['title'])}</h1><p>{totals['sets']} token set(s), tokenizer "
        f"{escape(sheet['tokenizer']['file'])}. Every number on this page is in datasheet.json.</p></header>",
        f'<div class="tiles">{"".join(_tiles(sheet))}</div>',
        *_pictures(sheet),
        *(_html_table(*table) for table in tables),
        _provenance(sheet),
        _samples(sheet),
        "<h2>How this was measured</h2><ul>" + "".join(f"<li>{escape(line)}</li>" for line in how_lines(sheet)) + "</ul>",
        f'<p class="faint">Tokenizer: {escape(tokenizer_line(sheet))}. Code {escape(sheet["code_version"])}.</p>',
    ]
    return PAGE.format(title=escape(sheet["title"]), style=STYLE, body="\n".join(parts))


def _tiles(sheet: Sheet) -> list[str]:
    totals = sheet["totals"]
    repeated = percent(totals["repeated_documents"], totals["documents"])
    tiles = [
        ("Tokens", short_num(totals["tokens"]), f"{totals['tokens']:,}, of them {totals['special_tokens']:,} special"),
        ("Documents", short_num(totals["documents"]), f"{totals['documents']:,}; {repeated} repeat another"),
        ("Characters", short_num(totals["characters"]), f"{totals['characters']:,}; {short_num(totals['utf8_bytes'])}B of UTF-8"),
    ]
    for lang, sums in sorted(sheet["by_language"].items(), key=lambda item: -item[1]["tokens"])[:3]:
        share = percent(sums["tokens"], totals["tokens"])
        tiles.append((f"Language {lang}", share, f"of the tokens; {num(sums['characters_per_token'])} characters per token"))
    return [f"<div><span>{escape(a)}</span><b>{escape(b)}</b><small>{escape(c)}</small></div>" for a, b, c in tiles]


def _pictures(sheet: Sheet) -> list[str]:
    """Tokens, scripts and lengths of the largest groups."""
    found = sorted(labelled_groups(sheet), key=lambda item: (-item[1]["tokens"], item[0]))
    drawn, total = found[:MAX_DRAWN], sheet["totals"]["tokens"]
    bars = [(label, g["tokens"], LANG_COLOURS.get(g["lang"], "--c8"),
             f"{short_num(g['tokens'])} tokens · {percent(g['tokens'], total)}")
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
        lines = "".join(f"<li>{escape(line)}</li>" for line in chain_lines(one))
        blocks.append(f"<details><summary>{escape(one['name'])}</summary><ul>{lines}</ul></details>")
    return "<h2>Where it comes from</h2>" + "".join(blocks)


def _samples(sheet: Sheet) -> str:
    blocks = []
    for label, group in labelled_groups(sheet):
        lang = escape(group["lang"], quote=True)
        shown = "".join(f'<blockquote lang="{lang}">{escape(shown_text(d))}</blockquote>' for d in group["sample"]["shown"])
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
