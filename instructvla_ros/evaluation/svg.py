"""Elements of an SVG chart: axes, lines, ticks, text. Colours come from the CSS classes of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
TOLERANCE = 0.3  # SVG units: points that would move a line by less are left out


@dataclass(frozen=True)
class Curve:
    """One line of a chart. ``css`` is the class that colours it: measured, commanded, plan, third."""

    x: ArrayLike
    y: ArrayLike
    css: str = 'measured'
    label: str = ''


@dataclass(frozen=True)
class Frame:
    """Where a chart's axes lie inside the SVG, and what they show."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float
    top: float
    right: float
    bottom: float

    def px(self, x: ArrayLike) -> Floats:
        """SVG x of data x."""
        lo, hi = self.x
        return self.left + (np.asarray(x, dtype=np.float64) - lo) / (hi - lo) * (self.right - self.left)

    def py(self, y: ArrayLike) -> Floats:
        """SVG y of data y (upwards)."""
        lo, hi = self.y
        return self.bottom - (np.asarray(y, dtype=np.float64) - lo) / (hi - lo) * (self.bottom - self.top)


def simplify(x: Floats, y: Floats, tolerance: float = TOLERANCE) -> tuple[Floats, Floats]:
    """Fewer points of a line so that no left-out point is further than ``tolerance`` from it (Douglas-Peucker)."""
    n = len(x)
    keep = np.zeros(n, dtype=bool)
    if n:
        keep[[0, -1]] = True
    stack = [(0, n - 1)]
    while stack:
        a, b = stack.pop()
        if b - a < 2:
            continue
        dx, dy = x[b] - x[a], y[b] - y[a]
        length = math.hypot(dx, dy)
        px, py = x[a + 1 : b] - x[a], y[a + 1 : b] - y[a]
        distance = np.abs(px * dy - py * dx) / length if length > 1e-9 else np.hypot(px, py)
        k = int(np.argmax(distance))
        if distance[k] > tolerance:
            keep[a + 1 + k] = True
            stack += [(a, a + 1 + k), (a + 1 + k, b)]
    return x[keep], y[keep]


def polyline(frame: Frame, curve: Curve) -> str:
    """SVG of one curve; non-finite values interrupt it."""
    x, y = frame.px(curve.x), frame.py(curve.y)
    good = np.isfinite(x) & np.isfinite(y)
    parts = []
    for piece in np.split(np.arange(len(x)), np.flatnonzero(~good)):
        piece = piece[good[piece]]
        if len(piece) > 1:
            sx, sy = simplify(x[piece], y[piece])
            parts.append('M' + 'L'.join(f'{a:.1f} {b:.1f}' for a, b in zip(sx, sy, strict=True)))
    return f'<path class="line {curve.css}" d="{"".join(parts)}"/>' if parts else ''


def ticks(lo: float, hi: float, about: int) -> list[float]:
    """Round numbers between ``lo`` and ``hi``, roughly ``about`` of them."""
    span = hi - lo
    if not (math.isfinite(span) and span > 0):
        return [lo]
    step = 10.0 ** math.floor(math.log10(span / about))
    for factor in (1, 2, 5, 10):
        if span / (step * factor) <= about:
            step *= factor
            break
    first = math.ceil(lo / step - 1e-9)
    return [round(k * step, 10) for k in range(first, int(math.floor(hi / step + 1e-9)) + 1)]


def limits(values: Sequence[ArrayLike], pad: float = 0.06, least: float = 1e-3) -> tuple[float, float]:
    """Range of all finite values with a margin, at least ``least`` wide; (0, 1) when there is none."""
    flat = np.concatenate([np.asarray(v, dtype=np.float64).ravel() for v in values]) if values else np.empty(0)
    flat = flat[np.isfinite(flat)]
    if not len(flat):
        return 0.0, 1.0
    lo, hi = float(flat.min()), float(flat.max())
    grow = max((hi - lo) * pad, (least - (hi - lo)) / 2)
    return lo - grow, hi + grow


def number(v: float) -> str:
    """Short text of a tick."""
    return f'{v:g}'.replace('-', '\N{MINUS SIGN}')


def rect(
    css: str, x: float, y: float, width: float, height: float, *, radius: float = 0.0, tip: str = '', style: str = ''
) -> str:
    """Rectangle with an optional tooltip."""
    more = (f' rx="{radius:.1f}"' if radius else '') + (f' style="{escape(style)}"' if style else '')
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    inside = f'><title>{escape(tip)}</title></rect>' if tip else '/>'
    return f'<rect class="{css}" {place}{more}{inside}'


def text(css: str, x: float, y: float, words: str, anchor: str = 'start') -> str:
    """Words at a place; ``anchor`` is start, middle or end."""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def segment(css: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """Straight line."""
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def grid(frame: Frame, y_count: int, x_count: int, x_label: str) -> str:
    """Horizontal lines with their numbers, numbers below, and the unit at the last of them."""
    out = []
    for v in ticks(*frame.y, y_count):
        p = float(frame.py(v))
        out.append(segment('grid', frame.left, p, frame.right, p))
        out.append(text('tick', frame.left - 5, p + 3, number(v), 'end'))
    values = ticks(*frame.x, x_count)
    for k, v in enumerate(values):
        unit = f' {x_label}' if k == len(values) - 1 else ''
        out.append(text('tick', float(frame.px(v)), frame.bottom + 13, number(v) + unit, 'middle'))
    return ''.join(out)


def document(width: float, height: float, body: Sequence[str], title: str, frame: Frame | None = None) -> str:
    """The whole SVG. With ``frame`` its x axis is the time of the run: it gets a cursor and what the script needs."""
    css, attributes, cursor = 'chart', '', ''
    if frame is not None:
        css = 'chart timed'
        span, place = frame.x, (frame.left, frame.right)
        attributes = f' data-t0="{span[0]:.4f}" data-t1="{span[1]:.4f}" data-x0="{place[0]:g}" data-x1="{place[1]:g}"'
        cursor = segment('cursor', -9, 0, -9, frame.bottom)
    opening = (
        f'<svg class="{css}" viewBox="0 0 {width:g} {height:.0f}"{attributes} role="img" aria-label="{escape(title)}">'
    )
    return f'{opening}{"".join(body)}{cursor}</svg>'
