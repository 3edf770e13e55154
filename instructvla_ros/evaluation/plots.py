"""Small inline SVG charts: no library, themed by CSS classes, followed by a cursor that the page's script moves.

A chart with a time axis carries ``data-t0 data-t1 data-x0 data-x1`` (seconds and SVG units) so that the page can turn
the video's time into a position and a click into a time.
"""

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
            parts.append('M' + 'L'.join(f'{a:.1f} {b:.1f}' for a, b in zip(sx, sy)))
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


def line_chart(
    curves: Sequence[Curve],
    *,
    x: tuple[float, float],
    y: tuple[float, float] | None = None,
    width: float = 270,
    height: float = 128,
    y_ticks: int = 4,
    x_label: str = 's',
    title: str = 'chart',
) -> str:
    """Chart over time; every curve shares the axes. The title is read by screen readers."""
    span = y or limits([c.y for c in curves])
    frame = Frame(x, span, 34, 8, width - 8, height - 18)
    body = [_grid(frame, y_ticks, max(3, int(width / 60)), x_label)]
    body += [polyline(frame, c) for c in curves]
    return _svg(frame, width, height, body, title, timed=True)


def histogram(
    groups: Sequence[tuple[str, str, ArrayLike]],
    *,
    unit: str,
    width: float = 560,
    height: float = 180,
    bins: int = 48,
    upper: float | None = None,
    marks: Sequence[tuple[float, str]] = (),
    title: str = 'histogram',
) -> str:
    """Overlaid histograms of (label, css, values); values above ``upper`` are counted in the last bin.

    ``marks`` are (value, text) drawn as vertical lines.
    """
    data = [(css, _finite(values)) for _, css, values in groups]
    flat = np.concatenate([v for _, v in data]) if data else np.empty(0)
    if not len(flat):
        return '<p class="empty">no samples</p>'
    lo = min(0.0, float(flat.min()))
    hi = upper if upper is not None else float(flat.max())
    hi = max(hi * 1.02, lo + 1e-6, *(m * 1.05 for m, _ in marks)) if marks else max(hi * 1.02, lo + 1e-6)
    edges = np.linspace(lo, hi, bins + 1)
    counts = [(css, np.histogram(np.clip(v, lo, hi), edges)[0]) for css, v in data]
    top = max(int(c.max()) for _, c in counts)
    frame = Frame((lo, hi), (0, top * 1.12), 38, 8, width - 8, height - 20)
    body = [_grid(frame, 3, 7, unit)]
    for css, c in counts:
        for k in np.flatnonzero(c):
            a, b = frame.px(edges[k]), frame.px(edges[k + 1])
            y = float(frame.py(c[k]))
            body.append(f'<rect class="bar {css}" x="{a:.1f}" y="{y:.1f}" width="{max(b - a - 0.8, 0.6):.1f}" height="{frame.bottom - y:.1f}"/>')
    for value, text in marks:
        at = float(frame.px(value))
        side = 'end' if at > width * 0.8 else 'start'
        shift = -4 if side == 'end' else 4
        body.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{frame.top}" y2="{frame.bottom}"/>')
        body.append(f'<text class="note" x="{at + shift:.1f}" y="{frame.top + 9}" text-anchor="{side}">{escape(text)}</text>')
    return _svg(frame, width, height, body, title)


def stages_bar(parts: Sequence[tuple[str, str, float]], *, unit: str = 'ms', width: float = 560) -> str:
    """One horizontal bar made of (label, css, value), the values written under it."""
    total = sum(v for *_, v in parts)
    if not total > 0:
        return ''
    height, left = 58.0, 0.0
    body = []
    for label, css, value in parts:
        w = value / total * width
        body.append(f'<rect class="bar solid {css}" x="{left:.1f}" y="4" width="{max(w - 2, 1):.1f}" height="20" rx="3"/>')
        left += w
    step = width / len(parts)
    for k, (label, css, value) in enumerate(parts):
        body.append(f'<rect class="bar solid {css}" x="{k * step:.1f}" y="35" width="9" height="9" rx="2"/>')
        body.append(f'<text class="note" x="{k * step + 14:.1f}" y="43">{escape(label)}</text>')
        body.append(f'<text class="note strong" x="{k * step + 14:.1f}" y="56">{value:.1f} {escape(unit)}</text>')
    return f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="latency per stage">{"".join(body)}</svg>'


def timeline(
    rows: Sequence[tuple[str, Sequence[tuple[str, float, float, str]]]],
    ticks_row: Sequence[tuple[float, str, str]],
    *,
    x: tuple[float, float],
    width: float = 1120,
) -> str:
    """Bands over time. ``rows``: (label, [(css, start, end, tooltip)]); ``ticks_row``: (time, css, tooltip) of events."""
    band, gap, left = 16.0, 6.0, 92.0
    height = (band + gap) * (len(rows) + 1) + 24
    frame = Frame(x, (0, 1), left, 4, width - 8, height - 20)
    body = [
        f'<line class="grid" x1="{p:.1f}" x2="{p:.1f}" y1="0" y2="{frame.bottom}"/>'
        f'<text class="tick" x="{p:.1f}" y="{height - 6:.1f}" text-anchor="middle">{number(v)} s</text>'
        for v in ticks(*x, 12)
        for p in [float(frame.px(v))]
    ]
    y = 4.0
    for label, spans in rows:
        body.append(f'<text class="row" x="{left - 10}" y="{y + 12}" text-anchor="end">{escape(label)}</text>')
        for css, a, b, tip in spans:
            pa, pb = frame.px([a, b])
            body.append(
                f'<rect class="band {css}" x="{pa:.1f}" y="{y}" width="{max(pb - pa - 1, 1):.1f}" height="{band}" rx="3">'
                f'<title>{escape(tip)}</title></rect>'
            )
        y += band + gap
    body.append(f'<text class="row" x="{left - 10}" y="{y + 12}" text-anchor="end">safety</text>')
    body.append(f'<line class="grid" x1="{left}" x2="{frame.right}" y1="{y + band / 2}" y2="{y + band / 2}"/>')
    for at, css, tip in ticks_row:
        p = float(frame.px(at))
        body.append(f'<rect class="event {css}" x="{p - 1:.1f}" y="{y + 2}" width="2" height="{band - 4}"><title>{escape(tip)}</title></rect>')
    return _svg(frame, width, height, body, 'what happened when', timed=True)


def path_view(
    plans: Sequence[Floats],
    commanded: Floats,
    measured: Floats,
    time: Floats,
    shapes: Sequence[dict[str, float | str]],
    *,
    labels: tuple[str, str],
    width: float = 550,
    margin: float = 0.05,
) -> str:
    """Path of the tool in a plane, equal scale on both axes.

    Args:
        plans: (H+1, 2) polylines of planned chunks [m]. commanded, measured: (N, 2) [m]. time: (N,) [s] of ``measured``.
        shapes: things in the scene: x, y, w, h [m], css, label, fill.
        labels: names of the two axes.
    """
    points = [p for p in (*plans, commanded, measured) if len(p)]
    points += [np.array([[float(s['x']) + dx * float(s['w']) / 2, float(s['y']) + dy * float(s['h']) / 2]]) for s in shapes for dx, dy in ((-1, -1), (1, 1))]
    if not points:
        return '<p class="empty">no samples</p>'
    x = limits([p[:, 0] for p in points], 0.0, 0.1)
    y = limits([p[:, 1] for p in points], 0.0, 0.1)
    x, y = (x[0] - margin, x[1] + margin), (y[0] - margin, y[1] + margin)
    inner = width - 46
    height = max(150.0, min(420.0, inner * (y[1] - y[0]) / (x[1] - x[0]) + 28))
    scale = min(inner / (x[1] - x[0]), (height - 28) / (y[1] - y[0]))
    grow_x, grow_y = inner / scale - (x[1] - x[0]), (height - 28) / scale - (y[1] - y[0])
    x, y = (x[0] - grow_x / 2, x[1] + grow_x / 2), (y[0] - grow_y / 2, y[1] + grow_y / 2)
    frame = Frame(x, y, 38, 8, width - 8, height - 20)
    body = [_grid(frame, 5, 7, 'm')]
    for s in shapes:
        w, h = float(s['w']) * scale, float(s['h']) * scale
        cx, cy = float(frame.px(float(s['x']))), float(frame.py(float(s['y'])))
        radius = min(w, h) / 2 if s.get('round') else 2
        body.append(
            f'<rect class="thing {s["css"]}" x="{cx - w / 2:.1f}" y="{cy - h / 2:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{radius:.1f}" '
            f'style="--thing:{escape(str(s["fill"]))}"><title>{escape(str(s["label"]))}</title></rect>'
        )
    body += [polyline(frame, Curve(p[:, 0], p[:, 1], 'plan')) for p in plans]
    body += [polyline(frame, Curve(p[:, 0], p[:, 1], css)) for p, css in ((measured, 'measured'), (commanded, 'commanded')) if len(p)]
    written: list[tuple[float, float]] = []
    for s in shapes:
        if s['css'] == 'after' and s['label']:
            cx, at = float(frame.px(float(s['x']))), float(frame.py(float(s['y']))) - float(s['h']) * scale / 2 - 5
            while any(abs(at - y) < 13 and abs(cx - x) < 80 for x, y in written):
                at -= 13
            written.append((cx, at))
            body.append(f'<text class="note" x="{cx:.1f}" y="{at:.1f}" text-anchor="middle">{escape(str(s["label"]))}</text>')
    body.append(f'<text class="note" x="{frame.right - 4}" y="{frame.bottom - 5}" text-anchor="end">{escape(labels[0])} \N{RIGHTWARDS ARROW}</text>')
    body.append(f'<text class="note" x="{frame.left + 5}" y="{frame.top + 10}">{escape(labels[1])} \N{UPWARDS ARROW}</text>')
    if len(measured):
        every = max(1, len(time) // 400)
        track = ' '.join(f'{t:.2f},{a:.1f},{b:.1f}' for t, a, b in zip(time[::every], frame.px(measured[::every, 0]), frame.py(measured[::every, 1])))
        body.append(f'<circle class="dot" r="5" cx="{float(frame.px(measured[0, 0])):.1f}" cy="{float(frame.py(measured[0, 1])):.1f}" data-track="{track}"/>')
    return _svg(frame, width, height, body, f'path of the tool, {labels[0]} and {labels[1]}')


def _finite(values: ArrayLike) -> Floats:
    v = np.asarray(values, dtype=np.float64).ravel()
    return v[np.isfinite(v)]


def _grid(frame: Frame, y_count: int, x_count: int, x_label: str) -> str:
    out = []
    for v in ticks(*frame.y, y_count):
        p = float(frame.py(v))
        out.append(f'<line class="grid" x1="{frame.left}" x2="{frame.right}" y1="{p:.1f}" y2="{p:.1f}"/>')
        out.append(f'<text class="tick" x="{frame.left - 5}" y="{p + 3:.1f}" text-anchor="end">{number(v)}</text>')
    values = ticks(*frame.x, x_count)
    for k, v in enumerate(values):
        p = float(frame.px(v))
        unit = f' {x_label}' if k == len(values) - 1 else ''
        out.append(f'<text class="tick" x="{p:.1f}" y="{frame.bottom + 13:.1f}" text-anchor="middle">{number(v)}{escape(unit)}</text>')
    return ''.join(out)


def _svg(frame: Frame, width: float, height: float, body: Sequence[str], title: str, timed: bool = False) -> str:
    attributes, cursor = '', ''
    if timed:
        attributes = f' data-t0="{frame.x[0]:.4f}" data-t1="{frame.x[1]:.4f}" data-x0="{frame.left}" data-x1="{frame.right}"'
        cursor = f'<line class="cursor" x1="-9" x2="-9" y1="0" y2="{frame.bottom}"/>'
    css = 'chart timed' if timed else 'chart'
    return (
        f'<svg class="{css}" viewBox="0 0 {width:g} {height:.0f}"{attributes} role="img" aria-label="{escape(title)}">'
        f'{"".join(body)}{cursor}</svg>'
    )
