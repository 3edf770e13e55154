"""Success rates of many episodes: counts, confidence intervals, what failed and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .metrics import percentiles

Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a success rate (E. B. Wilson, 1927); (0, 1) without trials.

    Raises:
        ValueError: more successes than trials, or a negative count.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f'{successes} successes in {trials} trials')
    if trials == 0:
        return 0.0, 1.0
    p, n = successes / trials, float(trials)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the interval touches 0 or 1 exactly; rounding must not move it off.
    return (0.0 if successes == 0 else max(0.0, centre - half)), (
        1.0 if successes == trials else min(1.0, centre + half)
    )


def score(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Score of episodes given as the rows of ``episodes.jsonl``.

    Returns:
        episodes, successes, rate, interval (95 %), success_after and duration percentiles [s], outcomes and verdicts by
        count, failures (seed, instruction, outcome, reason), latency and jitter over the episodes' percentiles [s].
    """
    successes = [r for r in rows if r['success']]
    low, high = wilson(len(successes), len(rows))
    verdicts: dict[str, int] = {}
    outcomes: dict[str, int] = {}
    for r in rows:
        outcomes[r.get('outcome', '')] = outcomes.get(r.get('outcome', ''), 0) + 1
        for name, count in (r.get('verdicts') or {}).items():
            verdicts[name] = verdicts.get(name, 0) + count
    return {
        'episodes': len(rows),
        'successes': len(successes),
        'rate': len(successes) / len(rows) if rows else None,
        'interval': [low, high],
        'success_after': percentiles([_or_nan(r.get('success_after')) for r in successes]),
        'duration': percentiles([_or_nan(r.get('duration')) for r in rows]),
        'outcomes': dict(sorted(outcomes.items(), key=lambda item: -item[1])),
        'verdicts': dict(sorted(verdicts.items(), key=lambda item: -item[1])),
        'latency': {name: _over_episodes(rows, 'latency', name) for name in ('without_policy', 'policy')},
        'jitter': _over_episodes(rows, 'jitter'),
        'failures': [
            {k: r.get(k) for k in ('seed', 'instruction', 'outcome', 'reason', 'progress')}
            for r in rows
            if not r['success']
        ],
    }


def by_task(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """:func:`score` for every task, in the order in which the tasks first appear."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row['task'], []).append(row)
    return {task: score(group) for task, group in groups.items()}


def _or_nan(value: Any) -> float:
    return float('nan') if value is None else float(value)


def _over_episodes(rows: Sequence[dict[str, Any]], *path: str) -> dict[str, Any]:
    found = []
    for row in rows:
        entry: Any = row
        for key in path:
            entry = (entry or {}).get(key)
        if entry and entry.get('p50') is not None:
            found.append(entry)
    if not found:
        return {'p50': None, 'p99_median': None, 'p99_worst': None}
    p99 = [e['p99'] for e in found]
    return {
        'p50': float(np.median([e['p50'] for e in found])),
        'p99_median': float(np.median(p99)),
        'p99_worst': float(max(p99)),
    }
