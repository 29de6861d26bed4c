"""Which pictures show mixtures of two, three or more groups of text, and how they scored?

In: plain numbers. Out: inline SVG text (see svg.py, whose colours and parts these use). Invariant: colour never says anything
alone: scores run from dark blue to yellow (cividis; Nunez, Anderton, Renslow 2018), which every kind of colour vision can order,
and each mark carries its numbers as a tooltip.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from megatron_jmed.evaluate.svg import (
    LEFT,
    RIGHT,
    axis_numbers,
    axis_scale,
    drawing,
    grid_lines,
    nice_ticks,
    short_number,
    stroke,
    words_at,
)

CIVIDIS = ((0, 34, 78), (46, 64, 107), (90, 93, 110), (129, 124, 120), (171, 157, 116), (215, 194, 95), (254, 232, 56))
WIDTH = 560
ROOT3 = math.sqrt(3)


@dataclass(frozen=True)
class Mixture:
    """A run's shares in the order of the groups and its score; a proposal has a predicted one."""

    name: str
    shares: Sequence[float]
    value: float
    kind: str = "run"  # run, base, proposal


@dataclass(frozen=True)
class Ramp:
    """From score to colour: the best is yellow."""

    low: float
    high: float
    lower_is_better: bool

    def place(self, value: float) -> float:
        """0 for the worst, 1 for the best."""
        place = (value - self.low) / ((self.high - self.low) or 1.0)
        return min(1.0, max(0.0, 1 - place if self.lower_is_better else place))

    def colour(self, value: float) -> str:
        place = self.place(value) * (len(CIVIDIS) - 1)
        at = min(int(place), len(CIVIDIS) - 2)
        mixed = (round(a + (place - at) * (b - a)) for a, b in zip(CIVIDIS[at], CIVIDIS[at + 1], strict=True))
        return "#" + "".join(f"{part:02x}" for part in mixed)


def ramp_of(values: Sequence[float], lower_is_better: bool) -> Ramp:
    return Ramp(min(values), max(values), lower_is_better)


def simplex_plot(groups: Sequence[str], mixtures: Sequence[Mixture], ramp: Ramp, target: str) -> str:
    """Two groups: score over the share; three: the triangle; more: a line a mixture over parallel axes."""
    alt = f"{target} of {len(mixtures)} mixtures of {', '.join(groups)}"
    if len(groups) == 2:
        return _share_line(alt, groups, mixtures, ramp, target)
    return _ternary(alt, groups, mixtures, ramp) if len(groups) == 3 else _parallel(alt, groups, mixtures, ramp)


def _mark(x: float, y: float, mixture: Mixture, groups: Sequence[str], ramp: Ramp) -> str:
    """A circle; the base a square, a proposal a ringed diamond."""
    parts = ", ".join(f"{group} {share:.0%}" for group, share in zip(groups, mixture.shares, strict=True))
    tip = f"<title>{escape(mixture.name)}: {parts}; {short_number(mixture.value, 4)}</title>"
    paint = f'fill="{ramp.colour(mixture.value)}" stroke="var(--ink)" stroke-width="1.2"'
    if mixture.kind == "base":
        return f'<rect x="{x - 6:.1f}" y="{y - 6:.1f}" width="12" height="12" {paint}>{tip}</rect>'
    if mixture.kind == "proposal":
        edge = f"{x:.1f},{y - 10:.1f} {x + 10:.1f},{y:.1f} {x:.1f},{y + 10:.1f} {x - 10:.1f},{y:.1f}"
        return f'<polygon points="{edge}" {paint.replace("1.2", "2.4")}>{tip}</polygon>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6.5" {paint}>{tip}</circle>'


def colour_bar(ramp: Ramp, x: float, y: float, width: float) -> list[str]:
    num = 28
    values = [ramp.low + (ramp.high - ramp.low) * (i + 0.5) / num for i in range(num)]
    values = values[::-1] if ramp.lower_is_better else values
    parts = [
        f'<rect x="{x + i * width / num:.1f}" y="{y}" width="{width / num + 0.4:.1f}" height="11" fill="{ramp.colour(value)}"/>'
        for i, value in enumerate(values)
    ]
    ends = (ramp.high, ramp.low) if ramp.lower_is_better else (ramp.low, ramp.high)
    return [
        *parts,
        words_at(x, y + 25, f"{short_number(ends[0], 4)} worst"),
        words_at(x + width, y + 25, f"best {short_number(ends[1], 4)}", "end"),
    ]


def _ternary(alt: str, groups: Sequence[str], mixtures: Sequence[Mixture], ramp: Ramp) -> str:
    side, left, top = 380.0, 90.0, 34.0
    height = side * ROOT3 / 2

    def place(shares: Sequence[float]) -> tuple[float, float]:
        """The first group's pure mixture lies left, the second's right, the third's on top."""
        return left + side * (shares[1] + shares[2] / 2), top + height * (1 - shares[2])

    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, ((1, 0, 0), (0, 1, 0), (0, 0, 1))))
    body = [f'<polygon points="{corners}" fill="none" stroke="var(--faint)" stroke-width="1.5"/>']
    for share in (0.2, 0.4, 0.6, 0.8):
        rest = 1 - share
        for a, b in (
            ((share, rest, 0), (share, 0, rest)),
            ((rest, share, 0), (0, share, rest)),
            ((rest, 0, share), (0, rest, share)),
        ):
            body.append(stroke(*place(a), *place(b), "var(--grid)", 1))
        (x1, y1), (x2, y2), (x3, y3) = place((share, rest, 0)), place((0, share, rest)), place((rest, 0, share))
        number = f"{share:.0%}"  # the axis of each group's own share
        body += [
            words_at(x1, y1 + 15, number, "middle", small=True),
            words_at(x2 + 7, y2 + 3, number, small=True),
            words_at(x3 - 7, y3 + 3, number, "end", small=True),
        ]
    (xa, ya), (xb, yb), (xc, yc) = map(place, ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    body += [
        words_at(xa, ya + 32, f"all {groups[0]}", "middle", bold=True),
        words_at(xb, yb + 32, f"all {groups[1]}", "middle", bold=True),
        words_at(xc, yc - 12, f"all {groups[2]}", "middle", bold=True),
    ]
    body += [_mark(*place(m.shares), m, groups, ramp) for m in _last_on_top(mixtures)]
    bottom = top + height + 56
    return drawing(alt, WIDTH, bottom + 32, [*body, *colour_bar(ramp, left, bottom, side)])


def _last_on_top(mixtures: Sequence[Mixture]) -> list[Mixture]:
    return sorted(mixtures, key=lambda m: ("run", "base", "proposal").index(m.kind))


def _share_line(alt: str, groups: Sequence[str], mixtures: Sequence[Mixture], ramp: Ramp, target: str) -> str:
    top, bottom = 28.0, 268.0
    values = [m.value for m in mixtures]
    margin = (max(values) - min(values)) * 0.08 or abs(values[0]) * 0.05 or 1.0
    to_x, ticks = axis_scale(0, 1, LEFT, WIDTH - RIGHT, 5)
    to_y, _ = axis_scale(min(values) - margin, max(values) + margin, bottom, top, 4)
    body = [
        *grid_lines(ticks, to_x, top, bottom, percent=True),
        *y_axis(to_y, min(values) - margin, max(values) + margin, WIDTH),
        words_at(LEFT, top - 10, target, bold=True),
        words_at(WIDTH - RIGHT, bottom + 34, f"share of {groups[0]} (the rest: {groups[1]})", "end"),
    ]
    body += [_mark(to_x(m.shares[0]), to_y(m.value), m, groups, ramp) for m in _last_on_top(mixtures)]
    return drawing(alt, WIDTH, bottom + 84, [*body, *colour_bar(ramp, LEFT, bottom + 50, WIDTH - LEFT - RIGHT)])


def _parallel(alt: str, groups: Sequence[str], mixtures: Sequence[Mixture], ramp: Ramp) -> str:
    top, bottom = 34.0, 284.0
    gap = (WIDTH - LEFT - 40) / (len(groups) - 1)
    highest = max(share for m in mixtures for share in m.shares) or 1.0
    to_y, _ = axis_scale(0, highest, bottom, top, 5)
    body = []
    for tick in nice_ticks(0, highest, 5):
        body += [
            stroke(LEFT, to_y(tick), LEFT + gap * (len(groups) - 1), to_y(tick), "var(--grid)", 1),
            words_at(LEFT - 9, to_y(tick) + 4, f"{100 * tick:g}%", "end"),
        ]
    for number, group in enumerate(groups):
        x = LEFT + number * gap
        body += [stroke(x, top, x, bottom, "var(--faint)", 1.2), words_at(x, top - 12, group, "middle", bold=True)]
    for m in sorted(_last_on_top(mixtures), key=lambda m: (m.kind == "proposal", ramp.place(m.value))):
        points = [(LEFT + number * gap, to_y(share)) for number, share in enumerate(m.shares)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        body.append(f'<polyline points="{path}" fill="none" stroke="var(--ink)" stroke-width="3.4" stroke-opacity="0.35"/>')
        body.append(f'<polyline points="{path}" fill="none" stroke="{ramp.colour(m.value)}" stroke-width="2.4"/>')
        body += [_mark(x, y, m, groups, ramp) for x, y in points]
    return drawing(alt, WIDTH, bottom + 62, [*body, *colour_bar(ramp, LEFT, bottom + 28, WIDTH - LEFT - 40)])


def y_axis(to_y, low: float, high: float, right: float) -> list[str]:
    ticks = nice_ticks(low, high, 5)
    return [
        part
        for tick, number in zip(ticks, axis_numbers(ticks), strict=True)
        for part in (
            stroke(LEFT, to_y(tick), right - RIGHT, to_y(tick), "var(--grid)", 1),
            words_at(LEFT - 7, to_y(tick) + 4, number, "end"),
        )
    ]
