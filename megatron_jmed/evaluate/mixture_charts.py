"""Which charts show how little, or how much, a few runs can tell?

In: plain numbers. Out: inline SVG text (see svg.py). Invariant: what is not significant is grey and thin, what is says its number
in bold, and each mark carries its numbers as a tooltip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from megatron_jmed.evaluate.mixture_pictures import WIDTH, Ramp, colour_bar, y_axis
from megatron_jmed.evaluate.svg import LEFT, RIGHT, axis_scale, drawing, grid_lines, label_at, short_number, stroke, words_at

MOST_WIDTH, MOST_CHARACTERS = 1130, 40  # of a correlation map in pixels; of the name of a column


@dataclass(frozen=True)
class Cell:
    """One correlation; `value` is None where there is none (a constant)."""

    value: float | None
    is_significant: bool
    tip: str


@dataclass(frozen=True)
class Effect:
    label: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Dot:
    name: str
    x: float
    y: float
    kind: str = "run"


def correlation_map(alt: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Cell]]) -> str:
    """Cells coloured by sign and size of a correlation; what is not significant is grey."""
    names = [_cut_to(name, MOST_CHARACTERS) for name in columns]
    reach = max(map(_text_width, names)) * 0.71  # of a name at 45 degrees
    left, row_height = 210, 24
    cell = min(72.0, (MOST_WIDTH - left - reach) / len(columns))
    width, top = round(left + cell * len(columns) + reach), 20 + reach
    body = []
    for number, name in enumerate(names):
        x = left + (number + 0.5) * cell
        body.append(f'<g transform="translate({x:.1f},{top - 8:.1f}) rotate(-45)">{words_at(0, 0, name)}</g>')
    for row, name in enumerate(rows):
        y = top + row * row_height
        body.append(label_at(left - 10, y + 16, name, 30))
        body += [_correlation(left + column * cell, y, cell, row_height, one) for column, one in enumerate(cells[row])]
    drawn = drawing(alt, width, top + row_height * len(rows) + 6, body)
    return drawn.replace("<svg ", f'<svg style="max-width:{width}px" ', 1)


def _correlation(x: float, y: float, width: float, height: float, one: Cell) -> str:
    if one.value is None:
        return ""
    tint = "var(--faint)" if not one.is_significant else "var(--hot)" if one.value > 0 else "var(--cold)"
    strength = 0.10 if not one.is_significant else 0.2 + 0.7 * min(1.0, abs(one.value))
    rect = (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width - 1.5:.1f}" height="{height - 1.5}" rx="2" fill="{tint}" '
        f'fill-opacity="{strength:.2f}"><title>{escape(one.tip)}</title></rect>'
    )
    number = f"{one.value:+.2f}" if width >= 40 else f"{one.value:+.1f}"
    return rect + words_at(x + width / 2 - 0.75, y + height / 2 + 3.5, number, "middle", bold=one.is_significant, small=width < 44)


def _text_width(text: str) -> float:
    """Pixels, about."""
    return sum(6.2 if ord(character) < 0x2E80 else 12 for character in text)


def _cut_to(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def effect_chart(alt: str, rows: Sequence[Effect], axis_label: str, width: int = WIDTH, unit: float = 1.0) -> str:
    """A dot and its interval a row, on an axis through zero; hollow and grey where the interval holds zero."""
    label_width, text_width, row_height = 130, 190, 26
    low, high = min(0.0, *(row.low for row in rows)), max(0.0, *(row.high for row in rows))
    to_x, ticks = axis_scale(low * unit, high * unit, label_width, width - text_width, 5)
    bottom = 10 + row_height * len(rows)
    body = [*grid_lines(ticks, to_x, 6, bottom), stroke(to_x(0), 6, to_x(0), bottom, "var(--faint)", 1.6)]
    for number, row in enumerate(rows):
        y = 10 + (number + 0.5) * row_height
        tells = row.low > 0 or row.high < 0
        tint = "var(--c1)" if tells else "var(--faint)"
        text = f"{row.value * unit:+.3g} ({row.low * unit:+.2g} to {row.high * unit:+.2g})"
        body += [
            label_at(label_width - 10, y + 4, row.label, 19, bold=tells),
            stroke(to_x(row.low * unit), y, to_x(row.high * unit), y, tint, 2.5),
            f'<circle cx="{to_x(row.value * unit):.1f}" cy="{y}" r="5" stroke="{tint}" stroke-width="2" '
            f'fill="{tint if tells else "var(--card)"}"><title>{escape(row.label)}: {text}</title></circle>',
            words_at(width - text_width + 10, y + 4, text, bold=tells),
        ]
    body.append(words_at(width - text_width, bottom + 34, axis_label, "end"))
    return drawing(alt, width, bottom + 42, body)


def dot_chart(alt: str, dots: Sequence[Dot], x_label: str, y_label: str, diagonal: bool = False, zero: bool = False) -> str:
    """One dot a run, the base runs square; with the line where both numbers are equal, or the lines through zero."""
    top, bottom = 28.0, 320.0
    xs, ys = [dot.x for dot in dots], [dot.y for dot in dots]
    if diagonal:
        xs = ys = xs + ys
    if zero:
        xs, ys = [*xs, 0.0], [*ys, 0.0]
    (x_low, x_high), (y_low, y_high) = _padded(xs), _padded(ys)
    to_x, ticks = axis_scale(x_low, x_high, LEFT, WIDTH - RIGHT, 6)
    to_y, _ = axis_scale(y_low, y_high, bottom, top, 5)
    body = [*grid_lines(ticks, to_x, top, bottom), *y_axis(to_y, y_low, y_high, WIDTH)]
    if diagonal:
        body.append(stroke(to_x(x_low), to_y(x_low), to_x(x_high), to_y(x_high), "var(--faint)", 1.5, "5 4"))
    if zero:
        body += [
            stroke(to_x(0), top, to_x(0), bottom, "var(--faint)", 1.5),
            stroke(LEFT, to_y(0), WIDTH - RIGHT, to_y(0), "var(--faint)", 1.5),
        ]
    for dot in dots:
        tip = f"<title>{escape(dot.name)}: {short_number(dot.x, 4)}, {short_number(dot.y, 4)}</title>"
        x, y, paint = to_x(dot.x), to_y(dot.y), 'fill="var(--c1)" fill-opacity="0.85" stroke="var(--card)"'
        body.append(
            f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" {paint}>{tip}</rect>'
            if dot.kind == "base"
            else f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" {paint}>{tip}</circle>'
        )
    body += [words_at(LEFT, top - 10, y_label, bold=True), words_at(WIDTH - RIGHT, bottom + 34, x_label, "end")]
    return drawing(alt, WIDTH, bottom + 40, body)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    margin = (max(values) - min(values)) * 0.06 or abs(values[0]) * 0.05 or 1.0
    return min(values) - margin, max(values) + margin


def run_lines(
    alt: str, lines: Sequence[tuple[str, Sequence[tuple[float, float]], float]], ramp: Ramp, y_label: str, x_label: str
) -> str:
    """A line a run (name, points, score), coloured by its score."""
    top, bottom = 28.0, 250.0
    points = [point for _, its, _ in lines for point in its]
    (x_low, x_high), (y_low, y_high) = (min(x for x, _ in points), max(x for x, _ in points)), _padded([y for _, y in points])
    to_x, ticks = axis_scale(x_low, x_high, LEFT, WIDTH - RIGHT, 6)
    to_y, _ = axis_scale(y_low, y_high, bottom, top, 5)
    body = [*grid_lines(ticks, to_x, top, bottom), *y_axis(to_y, y_low, y_high, WIDTH)]
    body.append(words_at(LEFT, top - 10, y_label, bold=True))
    for name, its, value in sorted(lines, key=lambda line: ramp.place(line[2])):
        path = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in its)
        tip = f"<title>{escape(name)}: {short_number(its[-1][1], 4)} at the end</title>"
        body.append(f'<polyline points="{path}" fill="none" stroke="var(--ink)" stroke-width="3" stroke-opacity="0.3"/>')
        body.append(f'<polyline points="{path}" fill="none" stroke="{ramp.colour(value)}" stroke-width="2">{tip}</polyline>')
        body += [f'<circle cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="2.8" fill="{ramp.colour(value)}"/>' for x, y in its]
    body.append(words_at(WIDTH - RIGHT, bottom + 34, x_label, "end"))
    return drawing(alt, WIDTH, bottom + 84, [*body, *colour_bar(ramp, LEFT, bottom + 50, WIDTH - LEFT - RIGHT)])
