"""``report.html`` of a replay: one file, no request to anywhere, with the look of the report of a run."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from . import plots
from .metrics import spans
from .replay_diagnosis import FAULT
from .replay_limits import FAILED, PASSED
from .replay_metrics import DIMENSIONS, WINDOW, chunk_poses, executed, open_loop
from .replay_session import Outcome
from .replay_trace import Aligned, Trace, align
from .report import EMBED_LIMIT, TEMPLATES, number
from .svg import Curve, limits

MOST_PLANS, MOST_EVENTS, MOST_SENTENCES = 150, 400, 200
UNITS = ('m', 'm', 'm', 'rad', 'rad', 'rad', '')
STAGES = (('picture decoded', 'decode'), ('sentence', 'think'), ('chunk', 'infer'))


def write_report(
    folder: str | Path,
    outcome: Outcome,
    against: Outcome | None = None,
    comparison: Mapping[str, Any] | None = None,
    labels: tuple[str, str] = ('A', 'B'),
) -> Path:
    """Make ``report.html`` in a folder and return its path; a video named in the trace is put into the page.

    Args:
        against: replay of the same recording with another checkpoint, drawn beside it with ``comparison``.
    """
    place = Path(folder)
    target, partial = place / 'report.html', place / '.report.html.part'
    partial.write_text(render(outcome, _video(place, outcome.trace), against, comparison, labels), encoding='utf-8')
    os.replace(partial, target)
    return target


def render(
    outcome: Outcome,
    video: Mapping[str, str] | None = None,
    against: Outcome | None = None,
    comparison: Mapping[str, Any] | None = None,
    labels: tuple[str, str] = ('A', 'B'),
) -> str:
    """HTML text of the report."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(num=number, ms=lambda v, d=1: number(v, d, 1e3), mm=lambda v, d=0: number(v, d, 1e3))
    trace, a = outcome.trace, align(outcome.trace)
    other = align(against.trace) if against is not None else None
    extent = 0.0, max(1.0, float(trace.seconds(trace.track.stamps_ns[-1:])[0]) if len(trace.track.stamps_ns) else 1.0)
    start = trace.meta.get('video', {}).get('start_ns')
    return environment.get_template('replay.html').render(
        meta=trace.meta,
        m=outcome.metrics,
        trace=trace,
        banner=_banner(outcome),
        tiles=_tiles(outcome),
        checks=outcome.checks,
        diagnoses=sorted(outcome.diagnoses, key=lambda d: d.result != FAULT),
        video=dict(video or {}),
        video_offset=float(trace.seconds(start)) if start else 0.0,
        views=[str(v).replace('_', ' ') for v in trace.meta.get('video', {}).get('views', ())],
        sentences=_sentences(trace),
        timeline=Markup(_timeline(trace, a, extent)),
        paths=[Markup(svg) for svg in _paths(trace, a)],
        dimensions=_dimensions(trace, a, other, extent),
        horizon=_horizon(outcome, against),
        lag=_lag(outcome),
        drift=Markup(_drift(trace, a, extent)),
        seams=Markup(_seams(outcome, a)),
        comparison=dict(comparison) if comparison is not None else None,
        change=Markup(_change(comparison, extent)) if comparison is not None else '',
        labels=labels,
        names=DIMENSIONS,
        units=UNITS,
        window=WINDOW,
        stages=STAGES,
        pages=_pages(trace),
    )


def _video(folder: Path, trace: Trace) -> dict[str, str]:
    info = trace.meta.get('video') or {}
    name = str(info.get('file', ''))
    file = folder / name
    if info.get('error'):
        return {'error': str(info['error'])}
    if not name or not file.is_file():
        return {}
    if file.stat().st_size > EMBED_LIMIT:
        return {'link': name, 'megabytes': f'{file.stat().st_size / 1e6:.0f}'}
    return {'src': 'data:video/mp4;base64,' + base64.b64encode(file.read_bytes()).decode('ascii')}


def _banner(outcome: Outcome) -> dict[str, str]:
    faults = [d for d in outcome.diagnoses if d.result == FAULT]
    failed = [c for c in outcome.checks if c.result == FAILED]
    text = '; '.join([*(f'{d.name.replace("_", " ")}: {d.text}' for d in faults[:2])])
    if not text:
        text = '; '.join(f'{c.name}: {c.text}' for c in failed[:3]) or 'no fault was found'
    text = text[:1].upper() + text[1:] + '.'
    if failed:
        head = f'{len(failed)} of {len(outcome.checks)} checks failed'
        return {'css': 'bad', 'mark': '\N{HEAVY BALLOT X}', 'head': head, 'text': text}
    if not outcome.checks:
        return {'css': 'plain', 'mark': '\N{BULLET}', 'head': 'Replayed, no limits given', 'text': text}
    passed = sum(c.result == PASSED for c in outcome.checks)
    head = f'{passed} of {len(outcome.checks)} checks passed'
    if passed < len(outcome.checks):
        head += f', {len(outcome.checks) - passed} cannot be told from this recording'
    return {'css': 'good', 'mark': '\N{HEAVY CHECK MARK}', 'head': head, 'text': text}


def _tiles(outcome: Outcome) -> list[dict[str, str]]:
    m = outcome.metrics
    action, path, grip = m['action'], m['path'], m['gripper']
    refused = m['chunks']['refused']
    events = f'{grip["matched"]} of {grip["recorded_events"]} recorded events'
    verdicts = sum(v['count'] for v in m['safety'])
    end, infer = path['rebased_end'], m['latency']['infer']['p50']
    rows = (
        (number(action['translation_skill_over_hold'], 2), '', 'skill, translation', 'share of the motion explained'),
        (
            number(action['rotation_skill_over_hold'], 2),
            '',
            'skill, rotation',
            '1 is perfect, 0 as good as holding still',
        ),
        (number(end['p50'], 0, 1e3), 'mm', 'off at the end of a chunk', f'median; p95 {number(end["p95"], 0, 1e3)} mm'),
        (number(grip['recall'], 2), '', 'gripper recall', f'{events}, precision {number(grip["precision"], 2)}'),
        (str(refused), '', 'chunks refused', f'of {m["chunks"]["count"]}; {verdicts} verdicts in all'),
        (
            number(infer, 0, 1e3),
            'ms',
            'per chunk, median',
            f'replayed {number(m["speed"]["times_real_time"], 1)} times as fast as recorded',
        ),
    )
    return [dict(zip(('value', 'unit', 'label', 'note'), row, strict=True)) for row in rows]


def _sentences(trace: Trace) -> list[dict[str, Any]]:
    """What was said, with the note that was recorded then; a sentence said again in a row is one entry."""
    out: list[dict[str, Any]] = []
    notes = sorted(trace.notes, key=lambda n: n['stamp_ns'])
    for k, said in enumerate(trace.sentences):
        chunks = sum(1 for c in trace.chunks if c.sentence == k)
        if out and out[-1]['text'] == said['text']:
            out[-1]['chunks'] += chunks
            out[-1]['times'] += 1
            continue
        begin = max(0.0, float(trace.seconds(said['stamp_ns'])))
        note = next((n['text'] for n in reversed(notes) if n['stamp_ns'] <= said['stamp_ns']), '')
        out.append({**said, 'begin': begin, 'chunks': chunks, 'times': 1, 'note': note})
    return out[:MOST_SENTENCES]


def _timeline(trace: Trace, a: Aligned, extent: tuple[float, float]) -> str:
    rows: list[tuple[str, list[tuple[str, float, float, str]]]] = []
    said = _sentences(trace)
    if said:
        ends = [*(s['begin'] for s in said[1:]), extent[1]]
        bands = [(f'say{k % 2}', s['begin'], e, s['text']) for k, (s, e) in enumerate(zip(said, ends, strict=True))]
        rows.append(('says', bands))
    notes = sorted(trace.notes, key=lambda n: n['stamp_ns'])
    if notes:
        begins = [max(0.0, float(trace.seconds(n['stamp_ns']))) for n in notes]
        marks = zip(notes, begins, [*begins[1:], extent[1]], strict=True)
        rows.append(('recorded', [(f'say{k % 2}', b, e, n['text']) for k, (n, b, e) in enumerate(marks)]))
    times, index = executed(a)
    seconds = trace.seconds(times)
    for label, values in (('gripper', a.predicted), ('recorded', a.recorded)):
        g = values[index[:, 0], index[:, 1], 6]
        good = np.isfinite(g)
        grip = [('open' if v else 'closed', s, e) for v, s, e in spans(seconds[good], g[good] > 0.5)]
        rows.append((label, [(css, s, e, f'{label}: {css}') for css, s, e in grip]))
    events = [
        (float(trace.seconds(t)), v['action'].lower(), f'{v["rule"]}: {v["text"]}')
        for v in trace.verdicts
        for t in np.linspace(v['stamp_ns'], v['until_ns'], v['count'])
    ]
    if len(events) > MOST_EVENTS:
        events = events[:: len(events) // MOST_EVENTS + 1]
    return plots.timeline(rows, events, x=extent)


def _paths(trace: Trace, a: Aligned) -> list[str]:
    chains = chunk_poses(a)[:: max(1, len(a.predicted) // MOST_PLANS), :, :3, 3]
    _, path, _ = open_loop(a)
    xyz = trace.track.xyz
    seconds = trace.seconds(trace.track.stamps_ns)
    out = []
    for axes, labels in (((0, 1), ('x forward', 'y left')), ((0, 2), ('x forward', 'z up'))):
        pick = list(axes)
        plans = [c[np.isfinite(c).all(axis=1)][:, pick] for c in chains]
        mine = path[:, :3, 3][:, pick] if len(path) else np.zeros((0, 2))
        out.append(plots.path_view([p for p in plans if len(p) > 1], mine, xyz[:, pick], seconds, [], labels=labels))
    return out


def _dimensions(trace: Trace, a: Aligned, other: Aligned | None, extent: tuple[float, float]) -> list[dict[str, Any]]:
    """Chart per dimension: the steps that would be played against the recorded ones."""
    times, index = executed(a)
    x = trace.seconds(times)
    out = []
    for k, name in enumerate(DIMENSIONS):
        curves = [
            Curve(x, a.recorded[index[:, 0], index[:, 1], k], 'measured', 'recorded'),
            Curve(x, a.predicted[index[:, 0], index[:, 1], k], 'commanded', 'predicted'),
        ]
        if other is not None:
            t, rows = executed(other)
            curves.append(Curve(trace.seconds(t), other.predicted[rows[:, 0], rows[:, 1], k], 'joint j2', 'other'))
        span = (-0.08, 1.08) if k == 6 else limits([c.y for c in curves], least=0.004)
        error = a.predicted[..., k] - a.recorded[..., k]
        rmse = float(np.sqrt(np.nanmean(error**2))) if np.isfinite(error).any() else None
        unit = {'m': 'mm', 'rad': 'mrad', '': ''}[UNITS[k]]
        note = f'rmse {number(rmse, 2 if k == 6 else 1, 1.0 if k == 6 else 1e3)} {unit}'
        out.append({'title': name, 'note': note, 'svg': Markup(plots.line_chart(curves, x=extent, y=span, title=name))})
    return out


def _horizon(outcome: Outcome, against: Outcome | None) -> dict[str, Any]:
    """Errors by horizon with the two baselines."""
    action, path = outcome.metrics['action'], outcome.metrics['path']
    period = outcome.metrics['chunks']['step_period']
    out = {}
    for key in ('translation', 'rotation'):
        mine = _milli(action[f'{key}_rmse_horizon'])
        x = (np.arange(len(mine)) + 1) * period
        curves = [
            Curve(x, _milli(action[f'hold_{key}_rmse_horizon']), 'joint j6'),
            Curve(x, _milli(action[f'mean_{key}_rmse_horizon']), 'joint j3'),
            Curve(x, mine, 'commanded'),
        ]
        if against is not None:
            curves.append(_beside(x, against.metrics['action'][f'{key}_rmse_horizon']))
        out[key] = _by_horizon(curves, x, f'{key} error by horizon')
    mine = _milli(path['rebased_horizon'])
    x = (np.arange(len(mine)) + 1) * period
    curves = [Curve(x, _milli(path['hold_horizon']), 'joint j6'), Curve(x, mine, 'commanded')]
    if against is not None:
        curves.append(_beside(x, against.metrics['path']['rebased_horizon']))
    out['path'] = _by_horizon(curves, x, 'distance by horizon')
    return out


def _by_horizon(curves: list[Curve], x: Any, title: str) -> Markup:
    top = limits([[0.0], *(c.y for c in curves)], least=0.1)
    svg = plots.line_chart(curves, x=(0.0, float(x[-1])), y=(0.0, top[1]), width=360, height=170, title=title)
    return Markup(svg.replace('class="chart timed"', 'class="chart"'))


def _lag(outcome: Outcome) -> Markup:
    found = next((d for d in outcome.diagnoses if d.name == 'action_delay'), None)
    if found is None or 'grid' not in found.numbers:
        return Markup(plots.NOTHING)
    x, y = np.asarray(found.numbers['grid'], dtype=float), np.asarray(found.numbers['cost'], dtype=float)
    curve = [Curve(x, y, 'commanded')]
    size: dict[str, Any] = {'width': 360, 'height': 170}
    svg = plots.line_chart(curve, x=(-3.0, 3.0), y=(0.0, 1.05), x_label='steps late', title='lag', **size)
    return Markup(svg.replace('class="chart timed"', 'class="chart"'))


def _drift(trace: Trace, a: Aligned, extent: tuple[float, float]) -> str:
    stamps, path, truth = open_loop(a)
    off = np.linalg.norm(path[:, :3, 3] - truth[:, :3, 3], axis=1) * 1e3 if len(path) else np.zeros(0)
    chains = chunk_poses(a)
    end = np.linalg.norm(chains[:, 1:, :3, 3] - a.poses[:, 1:, :3, 3], axis=-1) * 1e3
    last = np.array([row[np.isfinite(row)][-1] if np.isfinite(row).any() else np.nan for row in end])
    curves = [Curve(trace.seconds(stamps), off, 'joint j6'), Curve(trace.seconds(a.stamps_ns), last, 'commanded')]
    top = limits([[0.0], off, last], least=1.0)
    return plots.line_chart(curves, x=extent, y=(0.0, top[1]), width=1130, height=160, title='distance from the path')


def _seams(outcome: Outcome, a: Aligned) -> str:
    velocity = a.predicted[..., :3] / a.period
    jumps = []
    for c in range(len(a.stamps_ns) - 1):
        k = int(round((a.stamps_ns[c + 1] - a.stamps_ns[c]) / (a.period * 1e9)))
        if 1 <= k < a.predicted.shape[1]:
            jumps.append(float(np.linalg.norm(velocity[c + 1, 0] - velocity[c, k])))
    p50 = outcome.metrics['seams']['speed_jump']['p50']
    marks = [(p50 * 1e3, f'p50 {p50 * 1e3:.0f}')] if p50 is not None else []
    data = [('c2', np.array(jumps) * 1e3)]
    return plots.histogram(data, unit='mm/s', marks=marks, width=360, height=170, title='speed jumps at seams')


def _change(comparison: Mapping[str, Any], extent: tuple[float, float]) -> str:
    values = np.array([np.nan if v is None else v for v in comparison['change']], dtype=np.float64) * 1e3
    curve = [Curve(np.asarray(comparison['times']), values, 'joint j2')]
    span = limits([[0.0], values], least=1.0)
    return plots.line_chart(curve, x=extent, y=span, width=1130, height=150, title='change of the error')


def _milli(values: Any) -> Any:
    return np.array([np.nan if v is None else float(v) for v in values]) * 1e3


def _beside(x: Any, values: Any) -> Curve:
    count = min(len(x), len(values))
    return Curve(x[:count], _milli(values)[:count], 'joint j2')


def _pages(trace: Trace) -> list[tuple[str, list[tuple[str, str]]]]:
    m = trace.meta
    names = ('recording', 'policy', 'checkpoint', 'revision', 'seed', 'mode', 'at', 'chunk_rate', 'latency', 'limits')
    return [
        ('Replay', [(k, str(m[k])) for k in names if m.get(k) not in (None, '')]),
        ('Machine', [(str(k).replace('_', ' '), str(v)) for k, v in dict(m.get('machine', {})).items()]),
        ('Versions', [(str(k), str(v)) for k, v in dict(m.get('versions', {})).items()]),
    ]
