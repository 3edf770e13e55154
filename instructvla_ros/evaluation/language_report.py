"""Language scores beside the published rows, and the forgetting figure, as JSON and one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import machine, runlog
from .benchmark_page import NOT_MEASURED, Cell, Listing, Row, Table, mark_best, number, published, render, write_page
from .language import plain_figures
from .language_metrics import Figure

TITLES = {
    'caption': 'Captions',
    'qa': 'Questions',
    'response': 'Instruction responses',
    'general': 'General conversations',
}
EN = '\N{EN DASH}'
MISSING = Cell(NOT_MEASURED, '', 'missing')


def kind_table(kind: str, scores: Mapping[str, Figure] | None, name: str, note: str) -> Table:
    """Published rows of one kind of question, then the measured one."""
    source = published()['language']
    columns = source['columns']
    digits = {c: 2 if c == 'CIDEr' else 1 for c in columns}
    rows = [
        Row(e['name'], [Cell(number(v, digits[c])) for c, v in zip(columns, e['values'], strict=True)],
            main=bool(e.get('main'))) for e in source[kind]
    ]  # fmt: skip
    rows = mark_best(rows, [e['values'] for e in source[kind]])
    cells = [figure_cell(scores[c], digits[c]) if scores and c in scores else MISSING for c in columns]
    rows.append(Row(name, cells, 'measured', note))
    count = next(iter(scores.values())).samples if scores else 0
    text = f'{count} samples here' if count else 'not measured here'
    return Table(TITLES[kind], f'{text}; published: {source["source"]}, 1000 Bridge annotations', columns, rows)


def figure_cell(figure: Figure, digits: int = 1) -> Cell:
    """Number with its interval under it."""
    return Cell(number(figure.value, digits), f'{number(figure.low, digits)} {EN} {number(figure.high, digits)}')


def change_table(changes: Mapping[str, Mapping[str, Any]] | None, base: str) -> Table:
    """The forgetting figure."""
    columns = ['base', 'this checkpoint', 'relative change', 'samples']
    rows = []
    for name, c in (changes or {}).items():
        digits = 3 if name == 'cross entropy' else 2
        change = c['change']
        moved = MISSING if change is None else Cell(
            _percent(change.value), f'{_percent(change.low)} {EN} {_percent(change.high)}'
        )  # fmt: skip
        values = [Cell(number(c[k], digits)) for k in ('base', 'now')]
        rows.append(Row(name, [*values, moved, Cell(str(c['samples']))], 'measured'))
    if not rows:
        rows = [Row('cross entropy and scores', [MISSING] * 4, 'measured')]
    note = f'against {base}; ' if base else ''
    return Table(
        'Forgetting',
        f'{note}held-out general conversations. Forgetting raises cross entropy (nat per token) and lowers scores. '
        'Interval: 95 %, bootstrap over the same samples of both checkpoints.',
        columns,
        rows,
    )


def multimodal_table(name: str) -> Table:
    """The published multimodal benchmarks; they are run with VLMEvalKit, not here."""
    source = published()['multimodal']
    rows = [
        Row(e['name'], [Cell(number(v, 0 if isinstance(v, int) and v > 100 else 1)) for v in e['values']],
            main=bool(e.get('main'))) for e in source['rows']
    ]  # fmt: skip
    rows = mark_best(rows, [e['values'] for e in source['rows']])
    rows.append(Row(name, [MISSING] * len(source['columns']), 'measured'))
    text = f'published: {source["source"]}. They need VLMEvalKit and its data sets; this package does not run them.'
    return Table('General multimodal benchmarks', text, source['columns'], rows)


def write(
    folder: Path,
    scores: Mapping[str, Mapping[str, Figure]],
    *,
    name: str,
    note: str = '',
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    base: str = '',
    rows: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
    command: str = '',
) -> Path:
    """Write ``summary.json`` and ``language.html`` and return the page; ``rows``: answers, the first 60 are shown."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = [kind_table(k, scores.get(k), name, note) for k in ('caption', 'qa', 'response')]
    tables += [change_table(changes, base), multimodal_table(name)]
    shown = [[TITLES[r['kind']], r['prompt'], r['reference'], r['answer']] for r in rows[:60]]
    heads = ['kind', 'asked', 'reference', 'answer']
    listings = [Listing('What it said', f'the first {len(shown)} answers', heads, shown)] if shown else []
    data = {
        'name': name,
        'scores': plain_figures(scores),
        'forgetting': plain_figures(changes or {}),
        'base': base,
        'facts': dict(facts or {}),
        'machine': machine.facts(),
        'versions': machine.versions(),
    }
    runlog.write_json(folder / 'summary.json', data)
    lead = (
        'Measured rows are blue, with 95 % bootstrap intervals over samples. All metrics see lower-case words without '
        'punctuation. BLEU: corpus, unsmoothed (sacrebleu). METEOR: nltk. CIDEr: CIDEr-D. The paper does not say how '
        'it cut words, so its rows may differ by that. Published rows are copied from the paper; bold numbers are the '
        'best of them. Rows are only comparable when they were measured on the same annotations. BLEU-4 is 0 where '
        'answers are shorter than four words.'
    )
    page = render('Language', 'benchmark', lead, tables, listings, {**(facts or {}), **machine.facts()}, command)
    return write_page(folder / 'language.html', page)


def _percent(value: float) -> str:
    return f'{100 * value:+.1f} %'.replace('-', '\N{MINUS SIGN}')
