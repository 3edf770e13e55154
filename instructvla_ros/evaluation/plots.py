"""The charts of the report as inline SVG, followed by a cursor that the page's script moves.

A chart with a time axis carries ``data-t0 data-t1 data-x0 data-x1`` (seconds and SVG units) so that the page can turn
the video's time into a position and a click into a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .svg import Curve, Floats, Frame, document, grid, limits, number, polyline, rect, segment, text, ticks

NOTHING = '<p class="empty">no samples</p>'


@dataclass(frozen=True)
class Thing:
    """An object of the scene in a plane: centre and size [m], CSS class, colour, words."""

    x: float
    y: float
    width: float
    height: float
    css: str
    fill: str
    label: str = ''
    round: bool = False


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
    body = [grid(frame, y_ticks, max(3, int(width / 60)), x_label), *(polyline(frame, c) for c in curves)]
    return document(width, height, body, title, frame)


def histogram(
    groups: Sequence[tuple[str, ArrayLike]],
    *,
    unit: str,
    width: float = 560,
    height: float = 180,
    bins: int = 48,
    lower: float | None = None,
    upper: float | None = None,
    marks: Sequence[tuple[float, str]] = (),
    title: str = 'histogram',
) -> str:
    """Overlaid histograms of (css, values); values outside ``lower`` .. ``upper`` are in the outermost bins.

    ``marks`` are (value, text) drawn as vertical lines.
    """
    data = [(css, _finite(values)) for css, values in groups]
    flat = np.concatenate([v for _, v in data]) if data else np.empty(0)
    if not len(flat):
        return NOTHING
    lo = lower if lower is not None else min(0.0, float(flat.min()))
    hi = max((upper if upper is not None else float(flat.max())) * 1.02, lo + 1e-6, *(m * 1.05 for m, _ in marks), lo)
    edges = np.linspace(lo, hi, bins + 1)
    counts = [(css, np.histogram(np.clip(v, lo, hi), edges)[0]) for css, v in data]
    frame = Frame((lo, hi), (0, max(int(c.max()) for _, c in counts) * 1.12), 38, 8, width - 8, height - 20)
    body = [grid(frame, 3, 7, unit)]
    for css, count in counts:
        for k in np.flatnonzero(count):
            a, b, top = float(frame.px(edges[k])), float(frame.px(edges[k + 1])), float(frame.py(count[k]))
            body.append(rect(f'bar {css}', a, top, max(b - a - 0.8, 0.6), frame.bottom - top))
    for value, words in marks:
        at = float(frame.px(value))
        late = at > width * 0.8
        body.append(segment('mark', at, frame.top, at, frame.bottom))
        body.append(text('note', at + (-4 if late else 4), frame.top + 9, words, 'end' if late else 'start'))
    return document(width, height, body, title)


def stages_bar(parts: Sequence[tuple[str, str, float]], *, unit: str = 'ms', width: float = 560) -> str:
    """One horizontal bar made of (label, css, value), the values written under it."""
    total = sum(value for *_, value in parts)
    if not total > 0:
        return ''
    body, left, step = [], 0.0, width / len(parts)
    for k, (label, css, value) in enumerate(parts):
        share = value / total * width
        body.append(rect(f'bar solid {css}', left, 4, max(share - 2, 1), 20, radius=3))
        body.append(rect(f'bar solid {css}', k * step, 35, 9, 9, radius=2))
        body.append(text('note', k * step + 14, 43, label))
        body.append(text('note strong', k * step + 14, 57, f'{value:.1f} {unit}'))
        left += share
    return document(width, 60, body, 'latency per stage')


def timeline(
    rows: Sequence[tuple[str, Sequence[tuple[str, float, float, str]]]],
    events: Sequence[tuple[float, str, str]],
    *,
    x: tuple[float, float],
    width: float = 1120,
) -> str:
    """Bands over time.

    Args:
        rows: (label, [(css, start, end, tooltip)]). events: (time, css, tooltip), drawn in a last row.
    """
    band, gap, left = 16.0, 6.0, 92.0
    height = (band + gap) * (len(rows) + 1) + 24
    frame = Frame(x, (0, 1), left, 4, width - 8, height - 20)
    body = []
    for v in ticks(*x, 12):
        at = float(frame.px(v))
        body.append(segment('grid', at, 0, at, frame.bottom))
        body.append(text('tick', at, height - 6, f'{number(v)} s', 'middle'))
    top = 4.0
    for label, spans in rows:
        body.append(text('row', left - 10, top + 12, label, 'end'))
        for css, start, end, tip in spans:
            a, b = (float(p) for p in frame.px([start, end]))
            body.append(rect(f'band {css}', a, top, max(b - a - 1, 1), band, radius=3, tip=tip))
        top += band + gap
    body.append(text('row', left - 10, top + 12, 'safety', 'end'))
    body.append(segment('grid', left, top + band / 2, frame.right, top + band / 2))
    for at, css, tip in events:
        body.append(rect(f'event {css}', float(frame.px(at)) - 1, top + 2, 2, band - 4, tip=tip))
    return document(width, height, body, 'what happened when', frame)


def path_view(
    plans: Sequence[Floats],
    commanded: Floats,
    measured: Floats,
    time: Floats,
    things: Sequence[Thing],
    *,
    labels: tuple[str, str],
    width: float = 550,
) -> str:
    """Path of the tool in a plane, equal scale on both axes.

    Args:
        plans: (H + 1, 2) of each planned chunk [m]. commanded, measured: (N, 2) [m]. time: (N,) of ``measured`` [s].
        things: objects of the scene, drawn in this order. labels: names of the two axes.
    """
    corners = [
        np.array([[t.x - t.width / 2, t.y - t.height / 2], [t.x + t.width / 2, t.y + t.height / 2]]) for t in things
    ]
    points = [p for p in (*plans, commanded, measured, *corners) if len(p)]
    if not points:
        return NOTHING
    frame, height, scale = _equal_axes(points, width)
    body = [grid(frame, 5, 7, 'm')]
    for t in things:
        w, h = t.width * scale, t.height * scale
        left, top = float(frame.px(t.x)) - w / 2, float(frame.py(t.y)) - h / 2
        radius = min(w, h) / 2 if t.round else 2.0
        body.append(rect(f'thing {t.css}', left, top, w, h, radius=radius, tip=t.label, style=f'--thing:{t.fill}'))
    body += [polyline(frame, Curve(p[:, 0], p[:, 1], 'plan')) for p in plans]
    both = ((measured, 'measured'), (commanded, 'commanded'))
    body += [polyline(frame, Curve(p[:, 0], p[:, 1], css)) for p, css in both if len(p)]
    body += _labels(frame, things, scale)
    body.append(text('note', frame.right - 4, frame.bottom - 5, f'{labels[0]} \N{RIGHTWARDS ARROW}', 'end'))
    body.append(text('note', frame.left + 5, frame.top + 10, f'{labels[1]} \N{UPWARDS ARROW}'))
    if len(measured):
        body.append(_dot(frame, measured, time))
    return document(width, height, body, f'path of the tool, {labels[0]} and {labels[1]}')


def _equal_axes(points: Sequence[Floats], width: float, margin: float = 0.05) -> tuple[Frame, float, float]:
    x0, x1 = limits([p[:, 0] for p in points], 0.0, 0.1)
    y0, y1 = limits([p[:, 1] for p in points], 0.0, 0.1)
    span_x, span_y = x1 - x0 + 2 * margin, y1 - y0 + 2 * margin
    inner = width - 46
    height = max(150.0, min(420.0, inner * span_y / span_x + 28))
    scale = min(inner / span_x, (height - 28) / span_y)
    half_x, half_y = inner / scale / 2, (height - 28) / scale / 2
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return Frame((x - half_x, x + half_x), (y - half_y, y + half_y), 38, 8, width - 8, height - 20), height, scale


def _labels(frame: Frame, things: Sequence[Thing], scale: float) -> list[str]:
    out: list[str] = []
    written: list[tuple[float, float]] = []
    for t in things:
        if not t.label:
            continue
        x, y = float(frame.px(t.x)), float(frame.py(t.y)) - t.height * scale / 2 - 5
        while any(abs(y - other) < 13 and abs(x - beside) < 80 for beside, other in written):
            y -= 13
        written.append((x, y))
        out.append(text('note', x, y, t.label, 'middle'))
    return out


def _dot(frame: Frame, path: Floats, time: Floats) -> str:
    every = max(1, len(time) // 400)
    x, y = frame.px(path[::every, 0]), frame.py(path[::every, 1])
    track = ' '.join(f'{t:.2f},{a:.1f},{b:.1f}' for t, a, b in zip(time[::every], x, y, strict=True))
    return f'<circle class="dot" r="5" cx="{x[0]:.1f}" cy="{y[0]:.1f}" data-track="{track}"/>'


def _finite(values: ArrayLike) -> Floats:
    v = np.asarray(values, dtype=np.float64).ravel()
    return v[np.isfinite(v)]
