"""``report.html`` of a training run: one file, no request to anywhere, made from the files in the folder of the run."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image as PilImage

from ..errors import DataError
from ..evaluation.benchmark_page import write_page
from ..evaluation.report import TEMPLATES, number
from ..evaluation.svg import Curve, Frame, document, grid, limits, polyline
from . import forgetting
from .record import Prediction, read_facts, read_predictions
from .state import LOG, read_log

FILE = 'report.html'
WIDTH, HEIGHT = 420.0, 170.0
SMALL = 300.0
SOURCES = {'general': 'conversations'}
STEPS = ('x', 'y', 'z', 'roll', 'pitch', 'yaw', 'gripper')
LOSSES = {
    'flow': ('flow', 'velocity of the action chunk'),
    'path': ('path', 'where a chunk ends'),
    'ce': ('answers', 'cross entropy of what is said'),
    'general': ('dialogues', 'cross entropy without motion'),
    'pointing': ('pointing', 'where the named object is'),
    'patches': ('patches', 'what lies in each patch'),
    'words': ('image words', 'image tokens resemble words'),
    'naming': ('naming', 'which kind of object is named'),
    'latent': ('latent', 'place of the named object'),
}
SKIP = ('step', 'kind', 'seconds', 'total', 'loss', 'lr', 'samples_per_s', 'memory_gb', 'end_mm', 'mean_mm')
Entries = Sequence[Mapping[str, Any]]


def write_report(folder: str | Path) -> Path:
    """Make ``report.html`` in the folder of a run, finished or not, and return its path.

    Raises:
        DataError: no training run in this folder, or the disk is full.
    """
    place = Path(folder)
    target = place / FILE
    text = render(place)
    try:
        return write_page(target, text)
    except OSError as err:
        raise DataError(f'cannot write {target}: {err.strerror}') from None


def render(folder: Path) -> str:
    """HTML text of the report."""
    facts = read_facts(folder)
    entries = read_log(folder / LOG)
    train = [e for e in entries if e['kind'] == 'train']
    held = [e for e in entries if e['kind'] == 'validation']
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(num=number)
    forgot = forgetting.read(folder)
    return environment.get_template('training.html').render(
        facts=facts,
        options=facts['options'],
        title=title(facts),
        banner=banner(facts, train, held),
        tiles=tiles(facts, train, held, forgot),
        losses=loss_charts(train, held),
        quality=quality_charts(held),
        work=work_charts(train),
        forgot=forgotten(forgot),
        episodes=[episode(p) for p in read_predictions(folder)],
        parts=parts(facts['plan']),
        changed=changed(facts['options']),
        command=' '.join(facts['command']),
    )


def title(facts: Mapping[str, Any]) -> str:
    """Recipe and what it works on."""
    options = facts['options']
    start = Path(options['init']).name if options['init'] else f'a new {Path(options["model"]).stem} model'
    return f'{options["recipe"]} from {start}'


def banner(facts: Mapping[str, Any], train: Entries, held: Entries) -> dict[str, str]:
    """Result in words: css class, mark, headline, sentence."""
    done, asked = last(train, 'step') or 0.0, facts['options']['steps']
    best = best_entry(held)
    if best is not None and 'end_mm' in best and best.get('mean_mm'):
        own, mean = float(best['end_mm']), float(best['mean_mm'])
        good = own < 0.9 * mean
        head = (
            f'Chunks end {number(own, 1)} mm from the recorded ones; the mean chunk: {number(mean, 1)} mm'
            if good
            else f'No better than the mean chunk: {number(own, 1)} mm against {number(mean, 1)} mm'
        )
        text = f'On held-out episodes after {best["step"]} steps, median distance of where a chunk ends.'
        return {'css': 'good' if good else 'bad', 'mark': '\u2714' if good else '\u2718', 'head': head, 'text': text}
    state = 'Trained' if done >= asked else 'Not finished'
    text = f'{int(done)} of {asked} steps.' + ('' if held else ' There were no held-out episodes.')
    return {'css': 'plain', 'mark': '\u2022', 'head': f'{state}: {facts["options"]["recipe"]}', 'text': text}


def best_entry(held: Entries) -> Mapping[str, Any] | None:
    """Validation with the smallest loss."""
    return min(held, key=lambda e: float(e.get('loss', math.inf)), default=None)


def last(entries: Entries, key: str) -> float | None:
    """Newest value of a key."""
    return next((float(e[key]) for e in reversed(entries) if key in e), None)


def tiles(
    facts: Mapping[str, Any], train: Entries, held: Entries, forgot: forgetting.Forgetting | None
) -> list[dict[str, str]]:
    """The handful of numbers at the top."""
    best = best_entry(held)
    speeds = [float(e['samples_per_s']) for e in train if 'samples_per_s' in e]
    out = [
        _tile(number(last(train, 'step'), 0), '', 'steps', f'of {facts["options"]["steps"]}, {_duration(train)}'),
        _tile(number(facts['plan']['trainable'] / 1e6, 2), 'M', 'weights trained',
              f'of {facts["plan"]["parameters"] / 1e6:.2f} M'),
        _tile(number(None if best is None else best.get('loss'), 3), '', 'held-out loss, best',
              'no held-out episodes' if best is None else f'at step {best["step"]}'),
        _tile(number(float(np.median(speeds)) if speeds else None, 1), '/s', 'samples, median',
              f'{facts["options"]["batch"]} in a step'),
        _tile(number(last(train, 'memory_gb'), 2), 'GB', 'most memory', f'planned {facts["plan"]["total_gb"]:.2f} GB'),
    ]  # fmt: skip
    if forgot is not None and forgot.after:
        worst = max(forgot.before, key=lambda s: forgot.change(s))
        change = 100 * forgot.change(worst)
        sign = '+' if change > 0 else ''
        note = f'loss on {SOURCES.get(worst, worst)} it never saw'
        out.append(_tile(f'{sign}{number(change, 1)}', '%', 'forgetting', note))
    return out


def _tile(value: str, unit: str, label: str, note: str) -> dict[str, str]:
    return {'value': value, 'unit': unit, 'label': label, 'note': note}


def _duration(train: Entries) -> str:
    """Time of all parts of a run: the clock of the log starts again when a run goes on."""
    total = before = 0.0
    for entry in train:
        now = float(entry['seconds'])
        total += now - before if now >= before else now
        before = now
    return f'{total / 3600:.1f} h' if total > 5400 else f'{total / 60:.0f} min' if total > 90 else f'{total:.0f} s'


def loss_charts(train: Entries, held: Entries) -> list[dict[str, Any]]:
    """One chart per part of the loss, training and held out."""
    out = []
    for key, (name, note) in LOSSES.items():
        curves = [c for c in (_curve(train, key, 'measured'), _curve(held, key, 'commanded')) if c is not None]
        # A part without weight is written as zeros and says nothing.
        if any(np.any(np.asarray(c.y) != 0.0) for c in curves):
            out.append({'name': name, 'note': note, 'svg': Markup(chart(curves, f'loss {name}', zero=True))})
    return out


def quality_charts(held: Entries) -> list[dict[str, Any]]:
    """What is measured on held-out episodes besides losses."""
    out = []
    ends = [c for c in (_curve(held, 'end_mm', 'measured'), _curve(held, 'mean_mm', 'plan strong')) if c is not None]
    if ends:
        note = 'end of a chunk, blue: the model, grey: the mean chunk (mm)'
        out.append({'name': 'distance', 'note': note, 'svg': Markup(chart(ends, 'end error', zero=True))})
    for key in sorted({k for e in held for k in e} - set(SKIP) - set(LOSSES)):
        curve = _curve(held, key, 'measured')
        if curve is not None:
            note = {
                'gripper': 'share of steps with the right command',
                'named': 'share of frames in which it points at the named object',
            }.get(key, '')
            out.append({'name': key, 'note': note, 'svg': Markup(chart([curve], key))})
    return out


def work_charts(train: Entries) -> list[dict[str, Any]]:
    """Learning rate, speed, memory."""
    named = (
        ('lr', 'learning rate', 'in units of 10\u207b\u2074', 1e4),
        ('samples_per_s', 'speed', 'samples per second, without validation', 1.0),
        ('memory_gb', 'memory', 'most so far (GB)', 1.0),
    )
    out = []
    for key, name, note, scale in named:
        curve = _curve(train, key, 'measured', scale)
        if curve is not None:
            out.append({'name': name, 'note': note, 'svg': Markup(chart([curve], name, zero=True))})
    return out


def _curve(entries: Entries, key: str, css: str, scale: float = 1.0) -> Curve | None:
    points = [(e['step'], scale * float(e[key])) for e in entries if key in e]
    return Curve([p[0] for p in points], [p[1] for p in points], css) if points else None


def chart(curves: Sequence[Curve], label: str, unit: str = '', zero: bool = False, width: float = WIDTH) -> str:
    """SVG of some curves over one axis; a curve of one point is drawn as a dot."""
    xs = np.concatenate([np.asarray(c.x, float) for c in curves])
    ys = np.concatenate([np.asarray(c.y, float) for c in curves])
    size = float(np.abs(ys[np.isfinite(ys)]).max(initial=0.0))
    low, high = limits([ys], least=max(0.1 * size, 1e-6))
    if zero:
        low = min(0.0, low)
    span = (float(xs.min()), float(xs.max()))
    if span[1] - span[0] < 1e-6:  # one entry so far
        span = (span[0] - 1.0, span[1] + 1.0)
    frame = Frame(span, (low, high), 44, 8, width - 14, HEIGHT - 22)
    body = [grid(frame, 4, 5, unit)]
    for curve in curves:
        body.append(polyline(frame, curve))
        if np.size(curve.x) == 1:
            x, y = float(frame.px(curve.x)[0]), float(frame.py(curve.y)[0])
            body.append(f'<circle class="dot {curve.css}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    return document(width, HEIGHT, body, label)


def forgotten(found: forgetting.Forgetting | None) -> list[dict[str, Any]]:
    """Rows of the forgetting table."""
    if found is None:
        return []
    names = {'scenes': 'captions and questions of held-out episodes', 'general': 'held-out conversations'}
    return [
        {
            'name': names.get(source, source),
            'samples': found.samples.get(source, 0),
            'before': before,
            'after': found.after.get(source),
            'change': 100 * found.change(source),
        }
        for source, before in found.before.items()
    ]


def episode(found: Prediction) -> dict[str, Any]:
    """One held-out episode: picture, error, one chart per channel."""
    charts = []
    scales = [1000.0] * 3 + [1000.0] * 3 + [1.0]
    for k, name in enumerate(STEPS):
        curves = [
            Curve(found.times, scales[k] * found.recorded[:, k], 'measured'),
            Curve(found.times, scales[k] * found.predicted[:, k], 'commanded'),
        ]
        unit = 'mm' if k < 3 else 'mrad' if k < 6 else 'openness'
        charts.append({'name': name, 'unit': unit, 'svg': Markup(chart(curves, name, 's', width=SMALL))})
    ends = found.ends[np.isfinite(found.ends)]
    still = found.still[np.isfinite(found.still)]
    blob = io.BytesIO()
    PilImage.fromarray(np.asarray(found.picture, np.uint8)).save(blob, 'JPEG', quality=85)
    return {
        'id': found.episode,
        'instruction': found.instruction,
        'frames': len(found.times),
        'end_mm': 1000 * float(np.median(ends)) if len(ends) else None,
        'still_mm': 1000 * float(np.median(still)) if len(still) else None,
        'charts': charts,
        'picture': 'data:image/jpeg;base64,' + base64.b64encode(blob.getvalue()).decode('ascii'),
    }


def parts(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Trained weights by part of the model, with their share of the largest."""
    most = max(plan['parts'].values(), default=1) or 1
    return [{'name': n, 'millions': c / 1e6, 'share': 100 * c / most} for n, c in plan['parts'].items() if c]


def changed(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Options as rows; groups are flattened."""
    rows = []
    for key, value in options.items():
        if isinstance(value, Mapping):
            rows += [(f'{key}.{k}', str(v)) for k, v in value.items()]
        elif value not in ('', [], ()):
            rows.append((key, ', '.join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows
