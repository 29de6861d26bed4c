"""How do titles, pictures and tables become one HTML page?

In: plain texts and the pictures of `svg`. Out: HTML text. Invariant: every text that comes from outside is escaped
here, and the page refers to nothing outside of itself; its colours follow the reader's choice of light or dark.
"""

from collections.abc import Sequence
from html import escape

from megatron_jmed.evaluate.svg import colour, key_line


def page(title: str, body: Sequence[str]) -> str:
    """The whole document."""
    return PAGE.format(title=escape(title), style=STYLE, body="\n".join(body))


def section(title: str, parts: Sequence[str], if_empty: str) -> str:
    inside = f'<div class="grid">{"".join(parts)}</div>' if parts else f'<p class="absent">{escape(if_empty)}</p>'
    return f"<section><h2>{escape(title)}</h2>{inside}</section>"


def figure(
    title: str, caption: str, picture: str, legend: Sequence[str] = (), wide: bool = False, of_lines: bool = False
) -> str:
    """A picture with its words; the legend shows colours, or `of_lines` colours and dashes."""
    marks = [key_line(i) if of_lines else f'<i style="background:{colour(i)}"></i>' for i in range(len(legend))]
    items = "".join(f"<li>{mark}{escape(name)}</li>" for mark, name in zip(marks, legend, strict=True))
    key = f'<ul class="legend">{items}</ul>' if legend else ""
    return (
        f"<figure{' class=wide' if wide else ''}><h3>{escape(title)}</h3>{key}{picture}"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], num_texts: int, note: str = "", wide: bool = True
) -> str:
    """A table whose first `num_texts` columns are words and the others numbers."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{'' if i < num_texts else ' class=n'}>{escape(x)}</{tag}>" for i, x in enumerate(row))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    below = f"<p>{escape(note)}</p>" if note else ""
    rest = f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="{"wide " if wide else ""}table">{heading}{rest}{below}</div>'


def details(summary: str, inside: str) -> str:
    return f'<details class="wide"><summary>{escape(summary)}</summary>{inside}</details>'


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
:root { color-scheme: light dark; --page:#f6f7f9; --card:#fff; --ink:#1b1f24; --faint:#626b76; --grid:#e4e7eb;
  --c1:#0b62a8; --c2:#d1591a; --c3:#158463; --c4:#8e44ad; --c5:#b08900; --c6:#c0345f; --c7:#3f8fb5; --c8:#6b7280;
  --hot:#e0631b; --cold:#1f77c9; }
@media (prefers-color-scheme: dark) { :root { --page:#12151a; --card:#1b2027; --ink:#e6e9ed; --faint:#9aa4b0;
  --grid:#303842;
  --c1:#5fb0ee; --c2:#f2935a; --c3:#4fc79d; --c4:#c48be0; --c5:#dfbe45; --c6:#f07fa2; --c7:#86cbe8; --c8:#a7b0bb;
  --hot:#f08a48; --cold:#4ea3f0; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--page); color:var(--ink);
  font:15px/1.5 system-ui, "Hiragino Sans", "Noto Sans CJK JP", sans-serif; }
main { max-width:1240px; margin:0 auto; padding:28px 24px 60px; }
h1 { margin:0; font-size:28px; line-height:1.25; } header p { margin:4px 0 20px; color:var(--faint); }
h2 { margin:36px 0 12px; font-size:20px; } h3 { margin:0 0 6px; font-size:15px; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit, minmax(180px, 1fr)); gap:12px; }
.tile, figure, .table, details { background:var(--card); border:1px solid var(--grid); border-radius:10px;
  padding:14px 16px; }
.tile span { display:block; color:var(--faint); font-size:13px; } .tile b { display:block; font-size:26px;
  line-height:1.3; }
.tile small { color:var(--faint); font-size:12.5px; display:block; line-height:1.4; }
.notes { margin:16px 0 0; padding:12px 16px 12px 34px; border-left:4px solid var(--c2); background:var(--card);
  border-radius:6px; }
.grid { display:grid; grid-template-columns:repeat(auto-fit, minmax(min(100%, 500px), 1fr)); gap:16px;
  align-items:start; }
.stack { display:grid; gap:16px; } .wide { grid-column:1 / -1; } figure { margin:0;
  } figcaption { color:var(--faint); font-size:13px; margin-top:4px; }
svg { width:100%; height:auto; display:block; } svg text { font-size:12px; fill:var(--faint); }
svg text.b { fill:var(--ink); font-weight:600; } svg text.s { font-size:10px; }
.legend { list-style:none; display:flex; flex-wrap:wrap; gap:2px 16px; margin:0 0 4px; padding:0; font-size:13px;
  color:var(--faint); }
.legend i { display:inline-block; width:14px; height:10px; border-radius:3px; margin-right:6px; }
svg.key { display:inline-block; width:26px; height:8px; margin-right:6px; }
.hot { background:var(--hot); } .cold { background:var(--cold); }
.table { overflow-x:auto; } .table p { color:var(--faint); font-size:13px; margin:8px 0 0;
  } table { border-collapse:collapse; font-size:13.5px; font-variant-numeric:tabular-nums; }
th, td { text-align:left; padding:5px 18px 5px 0; border-bottom:1px solid var(--grid); overflow-wrap:break-word; }
th { color:var(--faint); font-weight:600; white-space:nowrap; overflow-wrap:normal; } .n { text-align:right;
  white-space:nowrap; overflow-wrap:normal; }
.stack .n { white-space:normal; } .table:not(.wide) td, .table:not(.wide) th { padding-right:14px; }
  details .table { border:0; padding:0; } summary { cursor:pointer; font-weight:600;
  } pre { overflow-x:auto; font-size:12.5px; }
.absent { color:var(--faint); font-style:italic; margin:0; }
@media print { :root { color-scheme:light; --page:#fff; --card:#fff; --ink:#000; --faint:#444; --grid:#ccc;
  --c1:#0b62a8; --c2:#d1591a; --c3:#158463; --c4:#8e44ad; --c5:#b08900; --c6:#c0345f; --c7:#3f8fb5; --c8:#6b7280;
  --hot:#e0631b; --cold:#1f77c9; }
  main { max-width:none; padding:0; } .grid { grid-template-columns:1fr 1fr; gap:10px; } section { break-inside:auto; }
  figure, .table, .tile, li { break-inside:avoid; }
  h2, h3 { break-after:avoid; } .table { overflow:visible; } th, td { padding-right:10px; } td { font-size:11px; }
  .n, th { white-space:normal; } details:not([open]) { display:none; } * { print-color-adjust:exact; } }
"""
