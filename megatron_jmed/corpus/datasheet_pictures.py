"""How do the numbers of a datasheet become pictures?

In: labels and numbers. Out: inline SVG whose colours are the page's variables, so that they follow light and dark.
Invariant: every text is escaped, and every picture has an alternative text.
"""

import math
from collections.abc import Sequence
from html import escape

from megatron_jmed.corpus.datasheet_tables import percent
from megatron_jmed.corpus.piece_table import SCRIPTS

SCRIPT_COLOURS = dict(zip(SCRIPTS, ("--c1", "--c3", "--c7", "--c2", "--c5", "--c8", "--c9", "--c6"), strict=True))


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
                              f"{label}: {script} {percent(counts[script], whole)}"))
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
