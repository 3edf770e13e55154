"""``report.html`` and ``summary.json`` of a Tabletop-Instruct run: rates with intervals first, then why it failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from . import machine, runlog
from .benchmark_page import write_page
from .report import TEMPLATES, number
from .sentences_file import SUITE
from .suite_scores import Row, summarize
from .suites import NAMES, Suite, held_out, read_suite
from .svg import Frame, document, rect, segment, text, ticks

COLORS = {'not_reached': 'c2', 'not_grasped': 'c3', 'wrong_object': 'bad', 'dropped': 'c4', 'not_placed': 'c5'}
"""Class of a failure kind in the bars; others are grey."""
WORDS = {
    'solved': 'solved',
    'not_reached': 'not reached',
    'not_grasped': 'not grasped',
    'wrong_object': 'wrong object',
    'dropped': 'dropped',
    'not_placed': 'not placed',
    'timeout': 'out of time',
    'stopped': 'stopped',
    'refused': 'chunks refused',
    'physics': 'physics',
    'not_moved_enough': 'not moved enough',
}
OWN = 'Your sentences'
RIGHT = 130
"""Room for the numbers beside a chart."""
LISTED = 200
"""Failures that are listed one by one."""


def write_results(
    folder: Path, rows: Sequence[Row], facts: Mapping[str, Any], suites: Sequence[Suite] = (), command: str = ''
) -> dict[str, Any]:
    """Write ``summary.json`` and ``report.html`` and return the summary.

    Args:
        facts: what was evaluated: policy, checkpoint, revision. suites: to list what was held out.
    """
    summary = {
        **facts,
        **summarize(rows),
        'machine': machine.facts(),
        'versions': machine.versions(),
        'command': command,
    }
    runlog.write_json(folder / 'summary.json', summary)
    write_page(folder / 'report.html', render(runlog.plain(summary), rows, suites))
    return summary


def render(summary: Mapping[str, Any], rows: Sequence[Row], suites: Sequence[Suite] = ()) -> str:
    """HTML text of the report; no request to anywhere."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(num=number, percent=percent, words=lambda kind: WORDS.get(kind, str(kind)))
    names = {s.name: s for s in suites}
    table = summary['table']
    plain = [e for e in table if not e['variant'] and not e['strategy']]
    hard = [e for e in table if e['variant']]
    strategies = [e for e in table if e['strategy']]
    failures = [r for r in rows if not r['success']]
    return environment.get_template('suites.html').render(
        summary=summary,
        titles={SUITE: OWN, **{name: s.title or name for name, s in names.items()}},
        notes={name: s.note for name, s in names.items()},
        plain=plain,
        plain_chart=Markup(rates_chart([(_label(e, names), e) for e in plain])),
        hard=hard,
        hard_chart=Markup(rates_chart([(e['variant'] + ('' if e['sentence'] else ', silent'), e) for e in hard])),
        strategies=strategies,
        strategy_chart=Markup(strategy_chart([(_label(e, names), e) for e in strategies])),
        kinds={s: k for s, k in summary['kinds'].items() if len(k) > 1},
        own=[r for r in rows if r['suite'] == SUITE][:LISTED],
        failures=failures[:LISTED],
        more=max(0, len(failures) - LISTED),
        failure_chart=Markup(failure_chart([(_label(e, names), e) for e in plain or table])),
        held_out={s.title or s.name: found for s in suites if (found := held_out(s))},
    )


def percent(value: Any, digits: int = 0) -> str:
    """Share as a percentage; an en dash for what was not measured."""
    return number(value, digits, 100.0)


def _label(entry: Mapping[str, Any], suites: Mapping[str, Suite]) -> str:
    suite = suites.get(entry['suite'])
    title = suite.title if suite is not None else OWN if entry['suite'] == SUITE else ''
    parts = [title or entry['suite'], entry['variant'], entry['strategy']]
    return ', '.join(p for p in (*parts, '' if entry['sentence'] else 'no sentence') if p)


def rates_chart(entries: Sequence[tuple[str, Mapping[str, Any]]], width: float = 1120) -> str:
    """One line per entry: the rate as a bar, its 95 % interval as a whisker."""
    if not entries:
        return ''
    line, left = 26.0, 250.0
    height = line * len(entries) + 26
    frame = Frame((0.0, 100.0), (0.0, 1.0), left, 4, width - RIGHT, height - 20)
    body = []
    for v in ticks(0, 100, 5):
        at = float(frame.px(v))
        body.append(segment('grid', at, frame.top, at, frame.bottom))
        body.append(text('tick', at, frame.bottom + 14, f'{v:g} %', 'middle'))
    for k, (label, e) in enumerate(entries):
        y = frame.top + k * line
        low, high = (float(frame.px(100 * v)) for v in e['interval'])
        end = float(frame.px(100 * (e['rate'] or 0.0)))
        tip = f'{label}: {e["successes"]} of {e["episodes"]}'
        body.append(text('row', left - 10, y + 17, label, 'end'))
        body.append(
            rect(f'bar solid {"c1" if e["sentence"] else "grey"}', left, y + 5, end - left, 16, radius=3, tip=tip)
        )
        body.append(segment('whisker', low, y + 13, high, y + 13))
        body += [segment('whisker', x, y + 9, x, y + 17) for x in (low, high)]
        words = f'{percent(e["rate"])} %  ({e["successes"]}/{e["episodes"]})'
        body.append(text('note strong', frame.right + 10, y + 17, words))
    return document(width, height, body, 'success rates with 95 % intervals')


def strategy_chart(entries: Sequence[tuple[str, Mapping[str, Any]]], width: float = 1120) -> str:
    """One line per entry; side by side its success with interval, its jerk behind seams, and the gap at seams."""
    if not entries:
        return ''
    line, left, gap = 26.0, 220.0, 70.0
    height = line * len(entries) + 30
    wide = (width - left - 3 * gap) / 3
    panels = (
        ('solved', 'rate', 100.0, '%', 'c1'),
        ('jerk behind seams', 'seam_jerk', 1.0, 'rad/s³', 'c3'),
        ('gap at seams', 'seam_gap', 1000.0, 'mm', 'c4'),
    )
    body = [text('row', left - 10, 24 + k * line + 17, label, 'end') for k, (label, _) in enumerate(entries)]
    for p, (title, name, scale, unit, css) in enumerate(panels):
        x = left + p * (wide + gap)
        known = [scale * e[name] for _, e in entries if e.get(name) is not None]
        most = 100.0 if name == 'rate' else max(known, default=0.0) or 1.0
        body.append(text('note strong', x, 14, f'{title} ({unit})'))
        for k, (label, e) in enumerate(entries):
            y, value = 24 + k * line, e.get(name)
            if value is None:
                body.append(text('note', x, y + 17, '–'))
                continue
            end = wide * scale * value / most
            tip = f'{label}: {number(value, 1, scale)} {unit}'
            body.append(rect(f'bar solid {css}', x, y + 5, max(end, 1.0), 16, radius=3, tip=tip))
            beside = end
            if name == 'rate':
                low, high = (x + wide * v for v in e['interval'])
                body.append(segment('whisker', low, y + 13, high, y + 13))
                body += [segment('whisker', at, y + 9, at, y + 17) for at in (low, high)]
                beside = max(end, high - x)
            body.append(text('note', x + beside + 8, y + 17, number(value, 0 if name == 'rate' else 1, scale)))
    return document(width, height, body, 'chunk strategies: success, jerk behind seams, gap at seams')


def failure_chart(entries: Sequence[tuple[str, Mapping[str, Any]]], width: float = 1120) -> str:
    """One line per entry: its failures by kind, as shares of all its episodes."""
    entries = [(label, e) for label, e in entries if e['successes'] < e['episodes']]
    if not entries:
        return ''
    line, left = 26.0, 250.0
    most = max(1 - e['rate'] for _, e in entries)
    body = []
    for k, (label, e) in enumerate(entries):
        y, x = 4 + k * line, left
        body.append(text('row', left - 10, y + 17, label, 'end'))
        for kind, count in e['outcomes'].items():
            if kind == 'solved':
                continue
            span = count / e['episodes'] / most * (width - RIGHT - left)
            tip = f'{WORDS.get(kind, kind)}: {count}'
            body.append(
                rect(f'bar solid {COLORS.get(kind, "grey")}', x, y + 5, max(span - 1, 1), 16, radius=2, tip=tip)
            )
            if span > 7 * len(tip):
                body.append(text('inside', x + span / 2, y + 17, tip, 'middle'))
            x += span
        body.append(text('note', x + 8, y + 17, f'{e["episodes"] - e["successes"]} of {e["episodes"]}'))
    return document(width, line * len(entries) + 8, body, 'failures by kind')


def suites_of(names: Sequence[str]) -> list[Suite]:
    """Suites that are defined in the package, of the names that rows carry."""
    return [read_suite(name) for name in names if name in NAMES]
