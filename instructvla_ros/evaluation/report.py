"""``report.html`` of a recorded run: one file, no request to anywhere, readable in light and dark."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .. import geometry
from . import metrics, plots
from .plots import Thing
from .runlog import RunLog, load
from .svg import Curve, limits

EMBED_LIMIT = 20_000_000  # bytes of video that are put into the page
TEMPLATES = Path(__file__).resolve().parent / 'templates'
FILLS = {
    'red': '#d9483b',
    'green': '#3aa65a',
    'blue': '#3b78d8',
    'yellow': '#e0b321',
    'orange': '#e5832b',
    'purple': '#8a55c8',
    'white': '#e9e9e4',
    'black': '#3a3a3e',
    'pink': '#e27fae',
    'brown': '#8a5a3c',
    'cyan': '#39b3bd',
}
POLICIES = {
    'expert': (
        'a script that reads the simulator\u2019s ground truth; it proves the path from sentence to motion '
        'and never looks at an image'
    ),
    'hold': 'stays where it is',
    'instructvla': 'the learned model: images and words in, words and motion out',
}


def write_report(folder: str | Path, log: RunLog | None = None) -> Path:
    """Make ``report.html`` in the folder of a run and return its path.

    Args:
        folder: run directory with ``recording.npz`` and ``run.json``; a video named there is put into the page.
        log: the run when it is already open.

    Raises:
        RunLogError: the folder holds no usable recording.
    """
    place = Path(folder)
    run = log if log is not None else load(place)
    page = render(run, video_source(place, run))
    target = place / 'report.html'
    partial = place / '.report.html.part'
    partial.write_text(page, encoding='utf-8')
    os.replace(partial, target)
    return target


def video_source(folder: Path, log: RunLog) -> dict[str, str]:
    """``{'src': data URI}``, ``{'link': file name}`` for a video too big to embed, or ``{}`` without video."""
    name = log.video.get('file', '')
    file = folder / name
    if not name or not file.is_file():
        return {}
    if file.stat().st_size > EMBED_LIMIT:
        return {'link': name, 'megabytes': f'{file.stat().st_size / 1e6:.0f}'}
    return {'src': 'data:video/mp4;base64,' + base64.b64encode(file.read_bytes()).decode('ascii')}


def render(log: RunLog, video: Mapping[str, str] | None = None) -> str:
    """HTML text of the report."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(num=number, ms=lambda v, d=1: number(v, d, 1e3), unit=_unit)
    summary = metrics.summarize(log)
    time = log.seconds(log.controller.stamp_ns)
    extent = _extent(log, time)
    return environment.get_template('report.html').render(
        meta=log.meta,
        summary=summary,
        banner=banner(log),
        policy_note=_note(log),
        tiles=tiles(log, summary),
        video=dict(video or {}),
        video_offset=float(log.seconds(log.video['start_ns'])) if log.video.get('start_ns') else 0.0,
        views=[name.replace('_', ' ') for name in log.video.get('views', ())],
        dropped=log.video.get('dropped', 0),
        extent=extent,
        sentences=sentences(log),
        timeline=Markup(timeline(log, extent)),
        paths=[Markup(svg) for svg in path_views(log, time)],
        errors=Markup(error_chart(log, time, extent)),
        joints=joint_charts(log, summary, time, extent),
        latency=latency_charts(log, summary),
        jitter=Markup(jitter_chart(log, summary)),
        pages=_pages(log),
    )


def number(value: Any, digits: int = 2, scale: float = 1.0) -> str:
    """Number with a fixed count of decimals; an en dash for what was not measured."""
    if value is None or not np.isfinite(float(value)):
        return '\N{EN DASH}'
    return f'{float(value) * scale:.{digits}f}'.replace('-', '\N{MINUS SIGN}')


def _note(log: RunLog) -> str:
    """Who acted, and whose seconds these are."""
    who, speed = POLICIES.get(str(log.meta.get('policy', '')), ''), log.meta.get('speed')
    if speed in (None, 1.0):
        return who
    slow = f'Simulated at {speed:g} of real time; every time here is in simulated seconds'
    return f'{who}. {slow}' if who else slow


def banner(log: RunLog) -> dict[str, str]:
    """Result in words: css class, headline and the sentence under it."""
    m = log.meta
    if m.get('success'):
        when = m.get('success_after')
        head = f'Task solved in {number(when, 1)} s' if when is not None else 'Task solved'
        return {'css': 'good', 'mark': '\N{HEAVY CHECK MARK}', 'head': head, 'text': _sentence(m.get('reason', ''))}
    if m.get('success') is None:
        return {
            'css': 'plain',
            'mark': '\N{BULLET}',
            'head': 'Recorded, not judged',
            'text': _sentence(m.get('reason', '')),
        }
    head = f'Task not solved \N{EM DASH} {m.get("outcome", "no result")}'
    return {'css': 'bad', 'mark': '\N{HEAVY BALLOT X}', 'head': head, 'text': _sentence(m.get('reason', ''))}


def _unit(text: str) -> str:
    return text.replace('^2', '\u00b2').replace('^3', '\u00b3')


def _sentence(text: Any) -> str:
    words = str(text).strip()
    return words[:1].upper() + words[1:] + ('' if not words or words[-1] in '.!?' else '.')


def tiles(log: RunLog, summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The handful of numbers at the top of the page."""
    latency, control = summary['latency'], summary['controller']
    verdicts = sum(v['count'] for v in summary['verdicts'])
    rms = max(summary['tracking']['rms'], default=None)
    return [
        {
            'value': number(latency['without_policy']['p50'], 1, 1e3),
            'unit': 'ms',
            'label': 'camera to command, median',
            'note': f'p99 {number(latency["without_policy"]["p99"], 1, 1e3)} ms, without policy time',
        },
        {
            'value': number(latency['policy']['p50'], 1, 1e3),
            'unit': 'ms',
            'label': 'policy, median',
            'note': f'{summary["chunks"]["count"]} chunks, {summary["chunks"]["played"]} played',
        },
        {
            'value': number(control['jitter']['p99'], 2, 1e3),
            'unit': 'ms',
            'label': 'period jitter, p99',
            'note': f'controller at {number(log.meta.get("control_rate"), 0)} Hz',
        },
        {
            'value': number(rms, 1, 1e3),
            'unit': 'mrad',
            'label': 'tracking error, worst joint',
            'note': f'rms; largest {number(max(summary["tracking"]["max"], default=None), 1, 1e3)} mrad',
        },
        {
            'value': number(summary['path']['measured'], 2),
            'unit': 'm',
            'label': 'path of the tool',
            'note': f'in {number(summary["duration"], 1)} s',
        },
        {
            'value': str(verdicts),
            'unit': '',
            'label': 'safety interventions',
            'note': ', '.join(v['rule'] for v in summary['verdicts'][:2]) or 'nothing to correct',
        },
    ]


def sentences(log: RunLog) -> list[dict[str, Any]]:
    """What the model said: text, begin and end [s], latency, how many chunks it conditioned, how often it was said.

    A sentence said again before another one is one entry.
    """
    out: list[dict[str, Any]] = []
    for r in sorted(log.reasoning, key=lambda r: r['stamp_ns']):
        count = sum(1 for reasoning_id in log.chunk_reasoning if reasoning_id == r['id'])
        if out and out[-1]['text'] == r['text']:
            out[-1]['chunks'] += count
            out[-1]['times'] += 1
            continue
        begin = max(0.0, float(log.seconds(r['stamp_ns'])))
        if out:
            out[-1]['end'] = begin
        out.append({**r, 'begin': begin, 'end': 1e6, 'chunks': count, 'times': 1})
    return out


def timeline(log: RunLog, extent: tuple[float, float]) -> str:
    """Bands under the video: controller mode, gripper, sentence, progress of the task, safety events."""
    rows: list[tuple[str, list[tuple[str, float, float, str]]]] = []
    said = [(f'say{k % 2}', s['begin'], min(s['end'], extent[1]), s['text']) for k, s in enumerate(sentences(log))]
    if said:
        rows.append(('says', said))
    rows.append(
        (
            'controller',
            [(m.lower(), a, b, f'{m.lower()} {a:.1f}\N{EN DASH}{b:.1f} s') for m, a, b in metrics.mode_spans(log)],
        )
    )
    time = log.seconds(log.controller.stamp_ns)
    grip = metrics.spans(time, log.controller.gripper > 0.5)
    rows.append(
        ('gripper', [('open' if v else 'closed', a, b, f'told to be {"open" if v else "closed"}') for v, a, b in grip])
    )
    solved = metrics.spans(log.seconds(log.task.stamp_ns), log.task.success > 0)
    if solved:
        rows.append(
            ('task', [('solved' if v else 'unsolved', a, b, 'solved' if v else 'not solved yet') for v, a, b in solved])
        )
    events = [
        (float(log.seconds(v['stamp_ns'])), v['action'].lower(), f'{v["rule"]}: {v["text"]}')
        for v in log.verdicts
        if v['action'] != 'PASSED'
    ]
    if len(events) > 400:
        events = events[:: len(events) // 400 + 1]
    return plots.timeline(rows, events, x=extent)


def path_views(log: RunLog, time: Any) -> list[str]:
    """Top and side view of the tool's path with the objects before and after, planned chunks behind."""
    c = log.controller
    good = np.all(np.isfinite(c.measured_xyz), axis=1) if len(c.measured_xyz) else np.zeros(0, dtype=bool)
    measured, commanded = (
        c.measured_xyz[good],
        c.commanded_xyz[np.all(np.isfinite(c.commanded_xyz), axis=1)] if len(good) else c.commanded_xyz,
    )
    plans = [p for row in range(len(log.chunks.created_ns)) if len(p := planned_path(log, row))]
    out = []
    for axes, labels in (((0, 1), ('x forward', 'y left')), ((0, 2), ('x forward', 'z up'))):
        pick = list(axes)
        out.append(
            plots.path_view(
                [p[:, pick] for p in plans],
                commanded[:, pick] if len(commanded) else np.empty((0, 2)),
                measured[:, pick] if len(measured) else np.empty((0, 2)),
                time[good],
                _things(log, axes),
                labels=labels,
            )
        )
    return out


def planned_path(log: RunLog, row: int) -> Any:
    """Tool positions (H + 1, 3) [m] that a chunk asks for, from the pose it was planned at; empty when not finite."""
    start, steps, c = log.chunks.reference_pose[row], log.chunk_steps(row), log.chunks
    if not (np.all(np.isfinite(start)) and np.all(np.isfinite(steps))):
        return np.empty((0, 3))
    poses = geometry.integrate(
        start, steps, 'tool' if c.tool_frame[row] else 'base', 'rotvec' if c.rotvec[row] else 'rpy'
    )
    return np.vstack([start[:3, 3], poses[:, :3, 3]])


def _things(log: RunLog, axes: tuple[int, int]) -> list[Thing]:
    named = {log.objects.get('target'), log.objects.get('destination')}
    end = {o['name']: o for o in log.objects.get('end', ())}
    out = []
    for before in log.objects.get('start', ()):
        after = end.get(before['name'], before)
        moved = np.linalg.norm(np.subtract(after['xyz'], before['xyz'])) > 0.01
        turning = before['category'] in ('bowl', 'plate', 'cylinder') and axes == (0, 1)
        for css, thing in (('before', before), ('after', after)):
            if css == 'before' and not moved:
                continue
            (x, y), (width, height) = ((thing[key][axes[0]], thing[key][axes[1]]) for key in ('xyz', 'extent'))
            label = thing['name'].replace('_', ' ') if thing['name'] in named and css == 'after' else ''
            fill = FILLS.get(thing['color'], '#9a9a9a')
            out.append(Thing(x, y, width, height, css, fill, label, turning or thing['category'] == 'ball'))
    return sorted(out, key=lambda t: -t.width * t.height)


def joint_charts(
    log: RunLog, summary: Mapping[str, Any], time: Any, extent: tuple[float, float]
) -> list[dict[str, Any]]:
    """One small chart per joint and one for the gripper: commanded against measured."""
    out = []
    rms, worst = summary['tracking']['rms'], summary['tracking']['max']
    for k, name in enumerate(log.joint_names):
        curves = [
            Curve(time, log.controller.measured_q[:, k], 'measured'),
            Curve(time, log.controller.commanded_q[:, k], 'commanded'),
        ]
        note = f'rms {number(rms[k], 1, 1e3)} \N{MIDDLE DOT} max {number(worst[k], 1, 1e3)} mrad' if rms else ''
        span = limits([c.y for c in curves], least=0.05)
        out.append(
            {
                'title': name,
                'note': note,
                'svg': Markup(plots.line_chart(curves, x=extent, y=span, title=f'{name} [rad]')),
            }
        )
    curves = [
        Curve(log.seconds(log.joints.stamp_ns), log.joints.gripper, 'measured'),
        Curve(time, log.controller.gripper, 'commanded'),
    ]
    svg = plots.line_chart(curves, x=extent, y=(-0.08, 1.08), title='gripper openness')
    changes = summary['controller']['gripper_changes']
    out.append({'title': 'gripper', 'note': f'openness \N{MIDDLE DOT} {changes} changes', 'svg': Markup(svg)})
    return out


def error_chart(log: RunLog, time: Any, extent: tuple[float, float]) -> str:
    """Commanded minus measured of every joint over time [mrad]."""
    error = (log.controller.commanded_q - log.controller.measured_q) * 1e3
    curves = [Curve(time, error[:, k], f'joint j{k % 7}', name) for k, name in enumerate(log.joint_names)]
    return plots.line_chart(curves, x=extent, width=1130, height=150, title='tracking error of every joint [mrad]')


def latency_charts(log: RunLog, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Median of each stage as one bar, and the distribution with and without the policy's time."""
    values = metrics.chunk_latency(log)
    p50 = [float(summary['latency'][name]['p50'] or 0.0) * 1e3 for name in metrics.STAGES]
    parts = list(zip(('camera to policy', 'policy', 'policy to command'), ('c1', 'c2', 'c3'), p50, strict=True))
    groups = [('c2', values['total'] * 1e3), ('c1', values['without_policy'] * 1e3)]
    marks = [(v * 1e3, f'p50 {v * 1e3:.1f}') for v in [summary['latency']['without_policy']['p50']] if v is not None]
    upper = (summary['latency']['total']['p99'] or 0.0) * 1e3 * 1.25
    svg = plots.histogram(groups, unit='ms', marks=marks, upper=upper or None, title='latency from camera to command')
    return {'bar': Markup(plots.stages_bar(parts)), 'histogram': Markup(svg)}


def jitter_chart(log: RunLog, summary: Mapping[str, Any]) -> str:
    """Distribution of the controller's period."""
    period = log.controller.loop_period
    p = summary['controller']['period']
    marks = [(p['p50'] * 1e3, f'median {p["p50"] * 1e3:.2f}')] if p['p50'] else []
    middle = (p['p50'] or 0.0) * 1e3
    reach = max(1.0, 1.5e3 * float(summary['controller']['jitter']['p99'] or 0.0))
    return plots.histogram(
        [('c1', period[period > 0] * 1e3)],
        unit='ms',
        marks=marks,
        bins=61,
        lower=max(0.0, middle - reach),
        upper=middle + reach,
        title='controller period',
    )


def _extent(log: RunLog, time: Any) -> tuple[float, float]:
    ends = [
        float(log.seconds(t.stamp_ns[-1]))
        for t in (log.controller, log.joints, log.task, log.frames)
        if len(t.stamp_ns)
    ]
    return 0.0, max([1.0, *ends])


def _pages(log: RunLog) -> list[tuple[str, Sequence[tuple[str, str]]]]:
    """Tables of facts at the foot of the page."""
    m = log.meta
    run = [
        (k, str(m[k]))
        for k in ('task', 'seed', 'policy', 'robot', 'created', 'domain_id', 'checkpoint', 'speed')
        if m.get(k) not in (None, '')
    ]
    return [
        ('Run', run),
        ('Machine', [(str(k).replace('_', ' '), str(v)) for k, v in dict(m.get('machine', {})).items()]),
        ('Versions', [(str(k), str(v)) for k, v in dict(m.get('versions', {})).items()]),
    ]
