"""How do numbers become pictures that need no library and no network?

In: plain lists of numbers. Out: inline SVG text for an HTML page. Titles and legends are left to the page, where text
wraps; colours are the page's CSS variables (`--ink --faint --grid --c1..--c8 --hot --cold`), so that a picture
follows light and dark. Invariant: every picture carries an alternative text, and no number is drawn that is not
finite.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

NUM_COLOURS = 8
NUM_BINS = 240
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LEFT, RIGHT = 64, 16  # margins of a chart in pixels: numbers of the y axis; half of the last number of the x axis


@dataclass(frozen=True)
class Line:
    """One curve. With `banded`, a long curve is drawn as means of bins with a band from smallest to largest value.

    `ends`, where given, are (low, high) of every point, drawn as upright strokes.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    banded: bool = False
    dots: bool = False
    ends: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Panel:
    """One y axis over the shared x axis."""

    label: str
    lines: Sequence[Line]
    from_zero: bool = False
    may_be_log: bool = False
    marks: Sequence[tuple[float, str]] = field(default=())  # horizontal reference lines


@dataclass(frozen=True)
class Interval:
    """A measured share with its interval, and the share that luck would reach."""

    label: str
    value: float
    low: float
    high: float
    chance: float
    text: str
    is_heading: bool = False

    @property
    def tells(self) -> bool:
        return not self.low <= self.chance <= self.high


@dataclass(frozen=True)
class Bar:
    """A named row of one or more bars; `text` stands at the right end."""

    label: str
    values: Sequence[float]
    text: str


# --- numbers -------------------------------------------------------------------------------------------------------


def colour(index: int) -> str:
    return f"var(--c{index % NUM_COLOURS + 1})"


def dashes(index: int) -> str:
    """Lines differ in their dashes as well as in colour, for readers and printers who see none."""
    return ("", "7 3", "2 3", "9 3 2 3", "4 2 1 2 1 2", "12 4", "1 2", "6 2 2 2")[index % NUM_COLOURS]


def key_line(index: int) -> str:
    """A sample of a line, for a legend."""
    return f'<svg class="key" viewBox="0 0 26 8" aria-hidden="true">{stroke(0, 4, 26, 4, colour(index), 2.5, dashes(index))}</svg>'


def short_number(value: float, digits: int = 3) -> str:
    """A number for people: 79.6 B, 4.19 M, 0.0213, 3×10⁻⁵."""
    if value == 0:
        return "0"
    size = abs(value)
    for factor, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e4, " k")):
        if size >= factor * 0.9995:
            scale = 1e3 if unit == " k" else factor
            return f"{_significant(value / scale, digits)}{unit}"
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 1e-3:
        return _significant(value, digits)
    exponent = math.floor(math.log10(size))
    mantissa = _significant(value / 10**exponent, digits)
    return f"{mantissa}×10{str(exponent).translate(SUPERSCRIPT)}"


def _significant(value: float, digits: int) -> str:
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def axis_numbers(ticks: Sequence[float]) -> list[str]:
    """The numbers of one axis, with equally many decimals."""
    texts = [short_number(tick) for tick in ticks]
    if not all(text.replace(".", "", 1).lstrip("-").isdigit() for text in texts):
        return texts
    decimals = max(len(text.partition(".")[2]) for text in texts)
    return [f"{tick:.{decimals}f}" for tick in ticks]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that lie within [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    steps = (1, 2, 5) if high / low < 200 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in steps if low <= m * 10.0**p <= high]


def bin_means(
    xs: Sequence[float], ys: Sequence[float], num_bins: int = NUM_BINS
) -> list[tuple[float, float, float, float]]:
    """(x, mean, smallest, largest) of at most `num_bins` runs of neighbouring points."""
    size = math.ceil(len(xs) / num_bins)
    bins = [(xs[i : i + size], ys[i : i + size]) for i in range(0, len(xs), size)]
    return [(sum(x) / len(x), sum(y) / len(y), min(y), max(y)) for x, y in bins]


# --- pictures ------------------------------------------------------------------------------------------------------


def line_chart(alt: str, panels: Sequence[Panel], x_label: str, width: int = 560, panel_height: int = 150) -> str:
    """Panels above each other that share the x axis."""
    xs = [x for panel in panels for line in panel.lines for x in line.xs]
    to_x, x_ticks = axis_scale(min(xs), max(xs), LEFT, width - RIGHT, 6)
    body, top = [], 24
    for panel in panels:
        bottom = top + panel_height
        body += grid_lines(x_ticks, to_x, top, bottom, with_numbers=panel is panels[-1])
        body += _panel(panel, to_x, top, bottom, width)
        top = bottom + 40
    body.append(words_at(width - RIGHT, top + 1, x_label, "end"))
    return drawing(alt, width, top + 6, body)


def heat_map(
    alt: str,
    ratios: Sequence[Sequence[float]],
    row_label: str,
    column_label: str,
    width: int = 1130,
    cell_height: int = 26,
) -> str:
    """Cells coloured by how far a ratio is from 1, equally for half and double; rows and columns are counted from 0."""
    num_rows, num_columns = len(ratios), len(ratios[0])
    cell = min(72.0, (width - LEFT - RIGHT) / num_columns)
    body = [words_at(LEFT, 14, f"{column_label} →"), words_at(LEFT - 8, 30, row_label, "end")]
    every = math.ceil(26 / cell)
    for column in range(0, num_columns, every):
        body.append(words_at(LEFT + (column + 0.5) * cell, 30, str(column), "middle"))
    for row, values in enumerate(ratios):
        y = 38 + row * cell_height
        body.append(words_at(LEFT - 8, y + cell_height / 2 + 4, str(row), "end"))
        for column, value in enumerate(values):
            name = f"{column_label} {column}, {row_label} {row}"
            body.append(_cell(LEFT + column * cell, y, cell, cell_height, value, name))
    return drawing(alt, width, 42 + num_rows * cell_height, body)


def heat_strength(ratio: float) -> float:
    """0 at a ratio of 1, 1 from the double or the half on."""
    return min(1.0, abs(math.log2(max(ratio, 1e-9))))


def bar_chart(alt: str, bars: Sequence[Bar], axis_label: str, width: int = 560, as_share: bool = True) -> str:
    """Horizontal bars from zero; the k-th value of every row has the k-th colour."""
    num_values = max(len(bar.values) for bar in bars)
    thickness, label_width, text_width = (14 if num_values == 1 else 10), 150, 150
    highest = max((v for bar in bars for v in bar.values), default=0) or 1
    to_x, ticks = axis_scale(0, highest, label_width, width - text_width, 4)
    row_height = thickness * num_values + 14
    bottom = 8 + row_height * len(bars)
    body = grid_lines(ticks, to_x, 6, bottom, percent=as_share)
    for row, bar in enumerate(bars):
        top = 8 + row * row_height + 7
        middle = top + thickness * num_values / 2 + 4
        body.append(label_at(label_width - 10, middle, bar.label, 20))
        for k, value in enumerate(bar.values):
            size = max(0.0, to_x(value) - label_width)
            place = f'x="{label_width}" y="{top + k * thickness}" width="{size:.1f}" height="{thickness - 1}"'
            body.append(f'<rect {place} rx="2" fill="{colour(k)}"/>')
        body.append(words_at(width - text_width + 12, middle, bar.text))
    body.append(words_at(width - text_width, bottom + 34, axis_label, "end"))
    return drawing(alt, width, bottom + 40, body)


def interval_chart(alt: str, rows: Sequence[Interval], axis_label: str, width: int = 560) -> str:
    """A dot and interval for each row on an axis from 0 to 100%, a stroke where chance is; hollow: may be luck."""
    label_width, text_width, row_height = 150, 138, 24
    to_x, ticks = axis_scale(0, 1, label_width, width - text_width, 5)
    bottom = 8 + row_height * len(rows)
    body = grid_lines(ticks, to_x, 6, bottom, percent=True)
    for number, row in enumerate(rows):
        y = 8 + (number + 0.5) * row_height
        tint = colour(0)
        body += [
            label_at(label_width - 10, y + 4, row.label, 20, bold=row.is_heading),
            stroke(to_x(row.low), y, to_x(row.high), y, tint, 2.5),
            stroke(to_x(row.chance), y - 8, to_x(row.chance), y + 8, "var(--c2)", 2.5),
            f'<circle cx="{to_x(row.value):.1f}" cy="{y}" r="4.5" stroke="{tint}" stroke-width="2" '
            f'fill="{tint if row.tells else "var(--card)"}">'
            f"<title>{escape(row.label)}: {escape(row.text)}</title></circle>",
            words_at(width - text_width + 12, y + 4, row.text, bold=row.is_heading),
        ]
    body.append(words_at(width - text_width, bottom + 34, axis_label, "end"))
    return drawing(alt, width, bottom + 40, body)


# --- parts ---------------------------------------------------------------------------------------------------------

Scale = Callable[[float], float]


def drawing(alt: str, width: int, height: float, body: Sequence[str]) -> str:
    inside = "\n".join(body)
    return f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {width} {height:.0f}">\n{inside}\n</svg>'


def axis_scale(low: float, high: float, start: float, end: float, count: int) -> tuple[Scale, list[float]]:
    """value -> pixel, linear, and the round values to write down."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start), nice_ticks(low, high, count)


def grid_lines(
    ticks: Sequence[float], to_x: Scale, top: float, bottom: float, with_numbers: bool = True, percent: bool = False
) -> list[str]:
    """Vertical grid lines with their numbers below."""
    parts = [stroke(to_x(t), top, to_x(t), bottom, "var(--grid)", 1) for t in ticks]
    if with_numbers:
        names = [f"{100 * t:g}%" for t in ticks] if percent else axis_numbers(ticks)
        parts += [words_at(to_x(t), bottom + 16, name, "middle") for t, name in zip(ticks, names, strict=True)]
    return parts


def _panel(panel: Panel, to_x: Scale, top: float, bottom: float, width: int) -> list[str]:
    values = [y for line in panel.lines for y in line.ys if y is not None and math.isfinite(y)]
    values += [value for value, _ in panel.marks] + [end for line in panel.lines for pair in line.ends for end in pair]
    if not values:
        return [words_at(LEFT, top - 8, f"{panel.label}: no finite value", bold=True)]
    low, high, is_log = _range(values, panel)
    place = math.log10 if is_log else float
    ticks = _log_ticks(low, high) if is_log else nice_ticks(low, high, max(3, round((bottom - top) / 40)))
    to_y, _ = axis_scale(place(low), place(high), bottom, top, 4)
    label = panel.label + (" (log scale)" if is_log else "")
    parts = [words_at(LEFT, top - 8, label, bold=True)]
    numbers = [short_number(tick) for tick in ticks] if is_log else axis_numbers(ticks)
    for tick, number in zip(ticks, numbers, strict=True):
        y = to_y(place(tick))
        parts += [stroke(LEFT, y, width - RIGHT, y, "var(--grid)", 1), words_at(LEFT - 7, y + 4, number, "end")]
    for value, name in panel.marks:
        y = to_y(place(value))
        parts.append(stroke(LEFT, y, width - RIGHT, y, "var(--faint)", 1.5, "5 4"))
        parts.append(words_at(width - RIGHT - 4, y - 5, name, "end"))
    for index, line in enumerate(panel.lines):
        parts += _curve(line, index, to_x, lambda value: to_y(place(value)))
    return parts


def _range(values: Sequence[float], panel: Panel) -> tuple[float, float, bool]:
    low, high = min(values), max(values)
    if panel.may_be_log and low > 0 and high / low > 30:
        return low * 0.9, high * 1.1, True
    low = min(low, 0.0) if panel.from_zero else low
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return (low if panel.from_zero and low == 0 else low - margin), high + margin, False


def _curve(line: Line, index: int, to_x: Scale, to_y: Scale) -> list[str]:
    tint = colour(index)
    points = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if y is not None and math.isfinite(y)]
    if not points:
        return []
    xs, ys = zip(*points, strict=True)
    bins = bin_means(xs, ys) if line.banded else [(x, y, y, y) for x, y in points]
    parts = []
    if line.banded and len(points) > NUM_BINS:
        edge = [(x, high) for x, _, _, high in bins] + [(x, low) for x, _, low, _ in reversed(bins)]
        parts.append(f'<polygon points="{_points(edge, to_x, to_y)}" fill="{tint}" opacity="0.22"/>')
    for x, (low, high) in zip(line.xs, line.ends, strict=bool(line.ends)):
        parts.append(stroke(to_x(x), to_y(low), to_x(x), to_y(high), tint, 1.2))
    curve = _points([(x, mean) for x, mean, _, _ in bins], to_x, to_y)
    dash = f' stroke-dasharray="{dashes(index)}"' if dashes(index) else ""
    parts.append(f'<polyline points="{curve}" fill="none" stroke="{tint}" stroke-width="1.8" stroke-linejoin="round"{dash}/>')
    if line.dots or len(points) == 1:
        parts += [
            f'<circle cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="3" fill="{tint}">'
            f"<title>{escape(line.name)}: {short_number(y, 4)} at {short_number(x)}</title></circle>"
            for x, y in points
        ]
    return parts


def _points(points: Sequence[tuple[float, float]], to_x: Scale, to_y: Scale) -> str:
    return " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in points)


def _cell(x: float, y: float, width: float, height: float, ratio: float, name: str) -> str:
    tint = "var(--hot)" if ratio > 1 else "var(--cold)"
    rect = (
        f'<rect x="{x:.1f}" y="{y}" width="{width - 1.5:.1f}" height="{height - 1.5}" rx="2" fill="{tint}" '
        f'fill-opacity="{0.06 + 0.8 * heat_strength(ratio):.2f}"><title>{escape(name)}: {ratio:.2f}</title></rect>'
    )
    inside = f"{ratio:.2f}" if width >= 36 else f"{ratio:.1f}"
    return rect + words_at(x + width / 2 - 0.75, y + height / 2 + 3.5, inside, "middle", small=width < 36)


def stroke(x1: float, y1: float, x2: float, y2: float, tint: str, width: float, dashes: str = "") -> str:
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{tint}" stroke-width="{width}"{dash}/>'
    )


def words_at(x: float, y: float, text: str, anchor: str = "start", bold: bool = False, small: bool = False) -> str:
    classes = " ".join(name for name, wanted in (("b", bold), ("s", small)) if wanted)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{classes}">{escape(text)}</text>'


def label_at(x: float, y: float, text: str, room: int, bold: bool = False) -> str:
    """A right-aligned row name, cut to `room` narrow characters; the whole name is its tooltip."""
    kept, used = "", 0
    for character in text:
        used += 1 if ord(character) < 0x2E80 else 2
        if used > room:
            kept = kept[:-1] + "…"
            break
        kept += character
    shown = words_at(x, y, kept, "end", bold)
    return shown.replace("</text>", f"<title>{escape(text)}</title></text>") if kept != text else shown
