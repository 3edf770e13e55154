"""Numbers of a Tabletop-Instruct run from its rows: rates with intervals, what the sentence changes, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .metrics import percentiles
from .scores import wilson

Row = Mapping[str, Any]
SEAMS = ('seams', 'seam_gap', 'seam_jump', 'seam_jerk')
"""Numbers of :class:`~.seams.Seams`; earlier results do not have them."""


def score(rows: Sequence[Row]) -> dict[str, Any]:
    """Success rate with its 95 % Wilson interval, and means over the episodes.

    Returns:
        episodes, successes, rate, interval; progress, steps, collisions, limit_hits, jerk [rad/s^3] and those of
        ``SEAMS`` as means; touches
        and bumped as shares of the episodes with any; success_after percentiles [s]; outcomes by count; said_right:
        share of first sentences that name the target, None when nothing was said.
    """
    wins = [r for r in rows if r['success']]
    low, high = wilson(len(wins), len(rows))
    told = [r['said_right'] for r in rows if r.get('said_right') is not None]
    return {
        'episodes': len(rows),
        'successes': len(wins),
        'rate': len(wins) / len(rows) if rows else None,
        'interval': [low, high],
        **{name: _mean(r[name] for r in rows) for name in ('progress', 'steps', 'collisions', 'limit_hits', 'jerk')},
        **{name: _mean(v for r in rows if (v := r.get(name)) is not None) for name in SEAMS},
        'touches': _mean(r['table_touches'] > 0 for r in rows),
        'bumped': _mean(len(r['bumped']) > 0 for r in rows),
        'success_after': percentiles([float(r['success_after']) for r in wins]),
        'outcomes': dict(Counter(r['outcome'] for r in rows).most_common()),
        'said_right': _mean(told),
    }


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by a key, in the order in which the keys first appear."""
    out: dict[Any, list[Row]] = {}
    for row in rows:
        out.setdefault(key(row), []).append(row)
    return out


def paired(with_sentence: Sequence[Row], without: Sequence[Row]) -> dict[str, Any] | None:
    """What the sentence changes on the same episodes; None when no episode was run both ways.

    Returns:
        episodes, gained (solved only with the sentence), lost (only without), change of the rate, and its 95 % interval
        of paired proportions by Agresti and Min (2005): half an episode is added to each of the four outcomes, so that
        a few episodes that all agree do not look certain.
    """

    def key(r: Row) -> tuple[Any, ...]:
        return r['suite'], r['variant'], r['task'], r['seed'], r['instruction'], r['strategy']

    other = {key(r): bool(r['success']) for r in without}
    pairs = [(bool(r['success']), other[key(r)]) for r in with_sentence if key(r) in other]
    if not pairs:
        return None
    n = len(pairs)
    gained = sum(a and not b for a, b in pairs)
    lost = sum(b and not a for a, b in pairs)
    change = (gained - lost) / n
    middle = (gained - lost) / (n + 2)
    half = 1.96 * float(np.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2))) / (n + 2)
    interval = [max(-1.0, middle - half), min(1.0, middle + half)]
    return {'episodes': n, 'gained': gained, 'lost': lost, 'change': change, 'interval': interval}


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """Scores by suite, variant, strategy and sentence, and what the sentence changes.

    Returns:
        ``table``: one entry per combination with its :func:`score`; ``paired`` per suite; ``kinds`` per suite and kind
        of sentence; ``tasks`` per suite and task. The last two have the episodes with the sentence where there are any.
    """
    table = [
        {
            'suite': suite,
            'variant': variant,
            'strategy': strategy,
            'latency': latency,
            'sentence': sentence,
            **score(own),
        }
        for (suite, variant, strategy, latency, sentence), own in grouped(
            rows, lambda r: (r['suite'], r['variant'], r['strategy'], r['latency'], r['sentence'])
        ).items()
    ]
    pairs, kinds, tasks = {}, {}, {}
    for suite, own in grouped(rows, lambda r: r['suite']).items():
        spoken = [r for r in own if r['sentence']]
        silent = [r for r in own if not r['sentence']]
        pairs[suite] = paired(spoken, silent)
        chosen = spoken or silent
        kinds[suite] = {kind: score(part) for kind, part in sorted(grouped(chosen, lambda r: r['kind']).items())}
        tasks[suite] = {task: score(part) for task, part in grouped(chosen, lambda r: r['task']).items()}
    return {'episodes': len(rows), 'table': table, 'paired': pairs, 'kinds': kinds, 'tasks': tasks}


def _mean(values: Iterable[Any]) -> float | None:
    found = [float(v) for v in values]
    return float(np.mean(found)) if found else None
