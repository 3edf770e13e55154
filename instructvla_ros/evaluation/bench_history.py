"""Benchmarks over time: one JSON line per run with machine, commit and its main numbers, and a picture of all lines.

Numbers of different machines are never joined by a line. A run that had to share its machine says so by its load.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .runlog import plain

FORMAT = 1
Entry = Mapping[str, Any]
_PANELS = (('ratio', 'times faster', False), ('speed', 'times real time', False), ('time', 'ms', True))
_MOST = 14  # curves in one panel; the rest is in the file


def numbers(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Main numbers of an ``instructvla bench``: name -> ``value``, ``kind`` (time [s], ratio, speed, memory [MB]).

    Parts that were left out or failed have none.
    """
    found: dict[str, dict[str, Any]] = {}

    def put(name: str, value: Any, kind: str) -> None:
        if isinstance(value, (int, float)) and value == value and value > 0.0:
            found[name] = {'value': float(value), 'kind': kind}

    for model in _rows(results.get('model')):
        head = f'model {model["size"]} stage {model["stage"]} {model["dtype"]} {model["device"]}'
        for step in model['steps']:
            put(f'{head}: {step["step"]}', step.get('fast_s'), 'time')
            put(f'{head}: {step["step"]}, against the reference', step.get('ratio'), 'ratio')
    for step in _rows(results.get('train')):
        head = f'train {step["size"]} {step["recipe"]}, batch {step["batch"]}'
        put(head, step.get('fast'), 'time')
        put(f'{head}, against the reference', step.get('ratio'), 'ratio')
    for name, part in _table(results.get('control'), 'parts').items():
        put(f'control: {name}, p50', part.get('p50'), 'time')
        put(f'control: {name}, p99', part.get('p99'), 'time')
    for name, part in _table(results, 'transport').items():
        if isinstance(part, Mapping):
            put(f'transport: {name}, p50', part.get('p50'), 'time')
            put(f'transport: {name}, p99', part.get('p99'), 'time')
    graph = results.get('graph')
    for name, part in _table(graph, 'stages').items():
        head = f'graph {graph["checkpoint"] or graph["policy"]}' if isinstance(graph, Mapping) else 'graph'
        for key in ('p50', 'p95', 'p99'):
            put(f'{head}: {name}, {key}', part.get(key), 'time')
    replay = results.get('replay')
    if isinstance(replay, Mapping) and 'speed' in replay:
        put('replay: direct', replay['speed'].get('times_real_time'), 'speed')
        put('replay: peak memory', replay.get('memory', {}).get('peak_mb'), 'memory')
    return found


def _rows(value: Any) -> Sequence[Mapping[str, Any]]:
    return value if isinstance(value, list) else ()


def _table(value: Any, key: str) -> Mapping[str, Any]:
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) and 'skipped' not in found and 'failed' not in found else {}


def commit(folder: str | Path | None = None) -> str:
    """Short commit of the source this package runs from, with '+' when files differ from it; '' when there is none."""
    place = Path(folder) if folder is not None else Path(__file__).resolve().parents[2]
    if not (place / '.git').exists():
        return ''  # an installed package; a repository further up is somebody else's

    def git(*words: str) -> str:
        done = subprocess.run(['git', '-C', str(place), *words], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        return git('rev-parse', '--short', 'HEAD') + ('+' if git('status', '--porcelain', '-uno') else '')
    except (OSError, subprocess.SubprocessError):
        return ''


def append(results: Mapping[str, Any], file: str | Path, note: str = '') -> dict[str, Any]:
    """Append a run to a history and return its line.

    Args:
        results: of ``instructvla bench``. note: a few words for people.

    Raises:
        DataError: it holds no number.
    """
    found = numbers(results)
    if not found:
        raise DataError('nothing was measured: the history is left as it is')
    entry: dict[str, Any] = plain(
        {
            'format': FORMAT,
            'created': results.get('created', ''),
            'commit': commit(),
            'machine': results.get('machine', {}),
            'versions': results.get('versions', {}),
            'load': [results.get('load_before'), results.get('load_after')],
            'note': note,
            'numbers': found,
        }
    )
    place = Path(file)
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open('a', encoding='utf-8') as out:
        out.write(json.dumps(entry, allow_nan=False) + '\n')
    return entry


def read(file: str | Path) -> list[dict[str, Any]]:
    """Runs of a history, oldest first; a line cut off by a crash is left out.

    Raises:
        DataError: it is not there, or holds no run.
    """
    place = Path(file)
    if not place.is_file():
        raise DataError(f'{place}: there is no history; `instructvla bench --history {place}` begins one')
    out = []
    for line in place.read_text(encoding='utf-8').splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get('format') == FORMAT and isinstance(entry.get('numbers'), dict):
            out.append(entry)
    if not out:
        raise DataError(f'{place} holds no run that this version reads')
    return out


def machine_name(entry: Entry) -> str:
    """Machine of a run in one line."""
    m = entry.get('machine') or {}
    return ', '.join(str(m[k]) for k in ('processor', 'cores', 'memory') if m.get(k)) or 'unknown machine'


def draw(entries: Sequence[Entry], file: str | Path) -> Path:
    """Picture (PNG) of the runs in their order: ratios, speeds, medians; one kind of marker per machine."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    machines = list(dict.fromkeys(machine_name(e) for e in entries))
    panels = [p for p in _PANELS if any(v['kind'] == p[0] for e in entries for v in e['numbers'].values())]
    width = max(9.0, 1.1 * len(entries) + 6.0)
    figure, axes = plt.subplots(
        max(len(panels), 1), 1, figsize=(width, 3.6 * max(len(panels), 1)), layout='constrained', squeeze=False
    )
    for ax, (kind, unit, log) in zip(axes[:, 0], panels, strict=False):
        # Of the times the medians are drawn; tails are in the file.
        names = [
            n
            for n in dict.fromkeys(n for e in entries for n, v in e['numbers'].items() if v['kind'] == kind)
            if not n.endswith(('p95', 'p99'))
        ]
        names = sorted(names, key=lambda n: -sum(n in e['numbers'] for e in entries))[:_MOST]
        for k, name in enumerate(names):
            colour = plt.get_cmap('tab20')(k % 20)
            for m, where in enumerate(machines):
                own = [(x, e) for x, e in enumerate(entries) if machine_name(e) == where and name in e['numbers']]
                values = [e['numbers'][name]['value'] * (1e3 if kind == 'time' else 1.0) for _, e in own]
                if own:
                    known = any(name in e['numbers'] for e in entries if machine_name(e) in machines[:m])
                    style = {'color': colour, 'markersize': 5, 'linewidth': 1.3, 'label': None if known else name}
                    ax.plot([x for x, _ in own], values, 'osD^v'[m % 5] + '-', **style)
        if log:
            ax.set_yscale('log')
        else:
            ax.set_ylim(bottom=0.0)
        ax.set_ylabel(unit)
        ax.grid(alpha=0.3)
        ax.set_xlim(-0.5, len(entries) - 0.5)
        labels = [f'{str(e.get("created", ""))[:10]}\n{e.get("commit") or "?"}' for e in entries]
        ax.set_xticks(range(len(entries)), labels, fontsize=8)
        ax.legend(loc='center left', bbox_to_anchor=(1.01, 0.5), fontsize=7, frameon=False)
    figure.suptitle('\n'.join(f'{"●■◆▲▼"[m % 5]} {name}' for m, name in enumerate(machines)), fontsize=9)
    place = Path(file)
    figure.savefig(place, dpi=110)
    plt.close(figure)
    return place

