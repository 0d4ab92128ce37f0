"""Charts as SVG, written by hand: axes, curves, a legend, and nothing that needs a library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.results import Picture, quantity

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 76, 180, 44, 56
COLOURS = ("#0b6e99", "#c0392b", "#6b8e23", "#8e44ad", "#d68910", "#5d6d7e", "#148f77", "#922b21", "#2e4053")


def ticks(most: float) -> list[float]:
    """Round values from 0 to at least ``most``, five or so."""
    if most <= 0:
        return [0.0, 1.0]
    step = 10.0 ** math.floor(math.log10(most / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if most / (step * factor) <= 5)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


def svg(picture: Picture) -> str:
    """The picture as a document.

    Raises:
        ValueError: there is no point to draw.
    """
    points = [point for curve in picture.curves for point in curve.points]
    if not points:
        raise ValueError(f"{picture.file} has no points")
    xs = sorted({x for x, _ in points})
    y_ticks = ticks(max(y for _, y in points))
    place_x = _placer([_scaled(x, picture.x_log) for x in xs], LEFT, WIDTH - RIGHT)
    place_y = _placer([0.0, y_ticks[-1]], HEIGHT - BOTTOM, TOP)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'font-family="sans-serif" font-size="12" aria-label="{escape(picture.title)}">'
        ),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        _text(LEFT, 24, picture.title, "start", 15),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, picture.x_label),
        f'<g transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)">{_text(0, 0, picture.y_label)}</g>',
    ]
    for value in y_ticks:
        y = place_y(value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 8, y + 4, quantity(value), "end"))
    for value in xs:
        x = place_x(_scaled(value, picture.x_log))
        parts.append(f'<path d="M{x:.1f} {HEIGHT - BOTTOM}v5" stroke="#888"/>')
        parts.append(_text(x, HEIGHT - BOTTOM + 19, quantity(value)))
    for number, curve in enumerate(picture.curves):
        colour = COLOURS[number % len(COLOURS)]
        places = [(place_x(_scaled(x, picture.x_log)), place_y(y)) for x, y in sorted(curve.points)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        legend = TOP + 10 + number * 20
        parts.append(f'<path d="M{WIDTH - RIGHT + 14} {legend - 4}h18" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(WIDTH - RIGHT + 38, legend, curve.name, "start"))
    return "\n".join([*parts, "</svg>", ""])


def _scaled(x: float, logarithmic: bool) -> float:
    return math.log10(x) if logarithmic else x


def _placer(values: Sequence[float], start: float, end: float) -> _Placer:
    return _Placer(min(values), max(values), start, end)


class _Placer:
    """Maps a range of values to a range of pixels; a range without width to its middle."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._high, self._start, self._end = low, high, start, end

    def __call__(self, value: float) -> float:
        if self._high == self._low:
            return (self._start + self._end) / 2
        return self._start + (value - self._low) / (self._high - self._low) * (self._end - self._start)


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#222">{escape(text)}</text>'
