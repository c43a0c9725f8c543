"""Line charts as SVG: a few shapes, no library, and the same bytes for the same figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 760, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 230, 44, 52
# Told apart by people who see no red and green, too; each line has a mark of its own besides.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#888888")
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 2", "6 2 1 2 1 2")


@dataclass(frozen=True)
class Line:
    """A line, and for each of its points the least and the most that was measured."""

    title: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Axis:
    """An axis and its bounds; ``names`` stand for positions where numbers would say nothing."""

    title: str
    logarithmic: bool = False
    names: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    def at(self, value: float) -> float:
        """Where a value lies, in pixels."""
        low, high, value = (math.log10(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers between the bounds."""
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [m * 10.0**d for d in decades for m in ((1, 2, 5) if len(decades) < 4 else (1,))]
        else:
            step = _step((self.high - self.low) / 6)
            found = [step * n for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [tick for tick in found if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9)]


def _step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def _scale(values: Sequence[float], axis: Axis, start: float, end: float) -> _Scale:
    low, high = min(values), max(values)
    if axis.logarithmic:
        if low <= 0:
            raise ValueError(f"{axis.title}: a logarithmic axis has no {low}")
        low, high = low / 1.2, high * 1.2
    else:
        low, high = min(0.0, low), high * 1.05
    return _Scale(low, high if high > low else low + 1, start, end, axis.logarithmic)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """The chart as an SVG document."""
    points = [point for line in lines for point in line.points]
    if not points:
        raise ValueError(f"{title}: nothing to draw")
    if len(lines) > len(_COLOURS):
        raise ValueError(f"{title}: {len(lines)} lines, and marks for {len(_COLOURS)}")
    heights = [p[1] for p in points] + [v for line in lines for pair in line.spread for v in pair]
    across = _scale([p[0] for p in points], x, _LEFT, _WIDTH - _RIGHT)
    up = _scale(heights, y, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    parts += _axes(x, y, across, up)
    for number, line in enumerate(lines):
        parts += _line(line, number, across, up)
    return "\n".join([*parts, "</svg>", ""])


def _axes(x: Axis, y: Axis, across: _Scale, up: _Scale) -> list[str]:
    parts = []
    for tick in up.ticks():
        at = up.at(tick)
        parts.append(f'<path d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}" stroke="#dddddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick, name in x.names or [(tick, _number(tick)) for tick in across.ticks()]:
        at = across.at(tick)
        parts.append(f'<path d="M{at:.1f} {_HEIGHT - _BOTTOM}v5" stroke="#333333"/>')
        parts.append(f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 19}" text-anchor="middle">{escape(name)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<path d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}" fill="none" stroke="#333333"/>')
    parts.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(x.title)}</text>')
    across_y = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text x="16" y="{across_y:.1f}" text-anchor="middle" transform="rotate(-90 16 {across_y:.1f})">'
        f"{escape(y.title)}</text>"
    )
    return parts


def _line(line: Line, number: int, across: _Scale, up: _Scale) -> list[str]:
    colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
    places = [(across.at(x), up.at(y)) for x, y in line.points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    parts = [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>']
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    for (x, _), (low, high) in zip(places, line.spread, strict=False):
        parts.append(f'<path d="M{x:.1f} {up.at(low):.1f}V{up.at(high):.1f}" stroke="{colour}" opacity="0.5"/>')
    legend = _TOP + 8 + 22 * number
    left = _WIDTH - _RIGHT + 14
    parts.append(f'<path d="M{left} {legend}h26" stroke="{colour}" stroke-width="2"{dashed}/>')
    parts.append(f'<text x="{left + 32}" y="{legend + 4}">{escape(line.title)}</text>')
    return parts
