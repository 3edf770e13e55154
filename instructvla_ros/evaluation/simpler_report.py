"""Scores of a SimplerEnv run, and its table beside the published rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import machine, runlog
from .benchmark_page import (
    NOT_MEASURED,
    NOT_PUBLISHED,
    Cell,
    Listing,
    Row,
    Table,
    mark_best,
    number,
    published,
    render,
    write_page,
)
from .scores import wilson
from .simpler_tasks import SUITES, Suite, column_rates, plain_mean, read_suite, robot_mean

FORMULAS = {
    'simplerenv': (
        'Mean 11: the plain mean of the eleven columns. Mean robots: 2/3 of the mean of the eight Google columns plus '
        '1/3 of the mean of the three WidowX columns. Both are recomputed here from the columns; the paper prints one '
        'or the other for most rows.'
    ),
    'simplerenv_instruct': 'Each of the 80 tasks counts once in the mean of its group; Mean is that of both groups.',
}


def summarize(suite: Suite, rows: Sequence[Mapping[str, Any]], limit: int = 0) -> dict[str, Any]:
    """Scores of the rows of ``episodes.jsonl``.

    A launch has a rate once every trial of at least one seed is there; then the seeds that are complete count. A column
    has a score when all its launches have a rate.

    Returns:
        per column: score [%], standard deviation over complete seeds, trials done and wanted, Wilson interval of the
        pooled trials [%]; the means of :data:`FORMULAS`; rate and count per launch.
    """
    by: dict[tuple[str, int], dict[str, bool]] = {}
    for r in rows:
        by.setdefault((r['launch'], r['seed']), {})[r['trial']] = bool(r['success'])
    wanted = {x.name: len(x.trials()) for x in suite.launches}
    seeds = sorted({seed for _, seed in by})
    complete = {
        s: {name: float(np.mean(list(got.values()))) for (name, seed), got in by.items()
            if seed == s and len(got) == wanted.get(name, -1)}
        for s in seeds
    }  # fmt: skip
    rates = {name: float(np.mean([complete[s][name] for s in seeds if name in complete[s]]))
             for name in wanted if any(name in complete[s] for s in seeds)}  # fmt: skip
    scores = column_rates(suite, rates)
    per_seed = [column_rates(suite, complete[s]) for s in seeds]
    columns = {}
    for column in suite.columns:
        names = {x.name for x in suite.of(column.name)}
        found = [ok for (name, _), got in by.items() if name in names for ok in got.values()]
        spread = [v for v in (p[column.name] for p in per_seed) if v is not None]
        low, high = wilson(sum(found), len(found))
        columns[column.name] = {
            'title': column.title,
            'score': scores[column.name],
            'deviation': float(np.std(spread, ddof=1)) if len(spread) > 1 else None,
            'successes': sum(found),
            'trials': len(found),
            'wanted': sum(wanted[n] for n in names),
            'interval': [100 * low, 100 * high] if found else None,
        }
    means = {'plain': plain_mean(suite, scores)}
    if suite.name == 'simplerenv':
        means['robots'] = robot_mean(suite, scores)
    launches = {
        name: {
            'successes': sum(sum(got.values()) for (n, _), got in by.items() if n == name),
            'trials': sum(len(got) for (n, _), got in by.items() if n == name),
            'wanted': wanted[name],
            'rate': rates.get(name),
        }
        for name in wanted
        if any(n == name for n, _ in by)
    }
    return {
        'suite': suite.name,
        'seeds': seeds,
        'limit': limit,
        'columns': columns,
        'means': means,
        'launches': launches,
    }


def table(suite: Suite, measured: Sequence[tuple[str, str, Mapping[str, Any] | None]]) -> Table:
    """Published rows of a suite, then measured ones.

    Args:
        measured: name, note and :func:`summarize` of each; None for one that was not measured.
    """
    source = published()[suite.name]
    robots = suite.name == 'simplerenv'
    extra = ['Mean 11', 'Mean robots', 'Mean, as printed'] if robots else ['Mean', 'Mean, as printed']
    columns = [c for c in suite.columns if c.name in source['columns']]
    rest = [c for c in suite.columns if c.name not in source['columns']]
    rows, values = [], []
    for entry in source['rows']:
        scores = dict(zip(source['columns'], entry['values'], strict=True))
        own = [scores[c.name] for c in columns]
        means = [plain_mean(suite, scores), *([robot_mean(suite, scores)] if robots else [])]
        spread = dict(zip(source['columns'], entry.get('spread') or [None] * len(own), strict=True))
        cells = [
            Cell(number(v), '\N{PLUS-MINUS SIGN} ' + number(spread[c.name]) if spread[c.name] is not None else '')
            for c, v in zip(columns, own, strict=True)
        ]
        cells += [Cell(NOT_PUBLISHED) for _ in rest]
        cells += [Cell(number(m)) for m in means] + [Cell(number(entry['printed_mean']))]
        rows.append(Row(entry['name'], cells, main=bool(entry.get('main'))))
        values.append([*own, *(None for _ in rest), *means, None])
    rows = mark_best(rows, values)
    for name, note, summary in measured:
        rows.append(Row(name, _measured(suite, columns + rest, summary, robots), 'measured', note))
    heads = [c.title for c in columns] + [c.title for c in rest] + extra
    split = [len(columns) + len(rest)]
    if robots:
        split += [8]
    trials = (
        f'success rate in %; {suite.trials} trials, {len(suite.launches)} launches; published: {source["source"]}. '
    )
    return Table(suite.title, trials + FORMULAS[suite.name], heads, rows, split)


def _measured(suite: Suite, columns: Sequence[Any], summary: Mapping[str, Any] | None, robots: bool) -> list[Cell]:
    missing = Cell(NOT_MEASURED, '', 'missing')
    keys = ['plain', 'robots'] if robots else ['plain']
    if summary is None:
        return [missing] * (len(columns) + len(keys)) + [Cell('')]
    cells = []
    for column in columns:
        got = summary['columns'][column.name]
        if got['score'] is not None:
            low, high = got['interval']
            note = f'{number(low)}\N{NO-BREAK SPACE}\N{EN DASH}\N{NO-BREAK SPACE}{number(high)}'
            if got['deviation'] is not None:
                note = f'\N{PLUS-MINUS SIGN} {number(got["deviation"])}\n{note}'
            cells.append(Cell(number(got['score']), note))
        elif got['trials']:
            cells.append(Cell(NOT_MEASURED, f'{got["successes"]}/{got["trials"]} of {got["wanted"]} trials', 'missing'))
        else:
            cells.append(missing)
    for key in keys:
        mean = summary['means'][key]
        cells.append(Cell(number(mean)) if mean is not None else missing)
    return [*cells, Cell('')]


def write(
    folder: Path,
    summaries: Mapping[str, Mapping[str, Any]],
    *,
    name: str,
    note: str = '',
    facts: Mapping[str, Any] | None = None,
    command: str = '',
    unavailable: Mapping[str, str] | None = None,
    suites: Mapping[str, Suite] | None = None,
) -> Path:
    """Write ``summary.json`` and ``simpler.html`` and return the page.

    Args:
        summaries: :func:`summarize` by suite; a suite without one is shown as not measured.
        name, note: of the measured row. unavailable: launches whose environment could not be built, with the reason.
        suites: when other files than those of this package were run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lists = {s: (suites or {}).get(s) or read_suite(s) for s in SUITES}
    tables = [table(lists[s], [(name, note, summaries.get(s))]) for s in SUITES]
    listings = []
    for s, summary in summaries.items():
        rows = [
            [
                k,
                f'{v["successes"]}/{v["trials"]}',
                str(v['wanted']),
                '' if v['rate'] is None else f'{100 * v["rate"]:.1f} %',
            ]
            for k, v in summary['launches'].items()
        ]
        heads = ['launch', 'solved', 'trials of a pass', 'success rate']
        listings.append(Listing(f'{lists[s].title}: every launch that was run', '', heads, rows))
    if unavailable:
        listings.append(Listing('Not available', 'environments this installation lacks', ['launch', 'reason'],
                                [[k, v] for k, v in unavailable.items()], fold=False))  # fmt: skip
    assumed = [[x.name, ', '.join(x.assumed)] for x in lists['simplerenv_instruct'].launches if x.assumed]
    if assumed:
        note_ = 'not published: taken from the SimplerEnv task of the same kind; compare with your installation'
        listings.append(Listing('Assumed parts of the protocol', note_, ['launch', 'assumed'], assumed))
    data = {'name': name, 'suites': dict(summaries), 'unavailable': dict(unavailable or {}), 'facts': dict(facts or {}),
            'machine': machine.facts(), 'versions': machine.versions()}  # fmt: skip
    runlog.write_json(folder / 'summary.json', data)
    lead = (
        'Measured rows are blue. A column is measured when every trial of it was run; the small print gives the 95 % '
        'Wilson interval of its trials, under the standard deviation over seeds. Published rows are copied from the '
        'paper, not reproduced here; bold names are the systems its claims are about, bold numbers the best published '
        'ones.'
    )
    page = render(
        'SimplerEnv and SimplerEnv-Instruct',
        'benchmark',
        lead,
        tables,
        listings,
        {**(facts or {}), **machine.facts()},
        command,
    )
    return write_page(folder / 'simpler.html', page)
