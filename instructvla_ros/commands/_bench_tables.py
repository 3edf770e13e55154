"""The tables of `instructvla bench`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import _bench_more


def show(results: dict[str, Any], console: Console | None = None) -> None:
    """Print what was measured, and on what."""
    # A file has room for every column; a terminal has its own width.
    out = console or Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    for title, key in (('machine', 'machine'), ('versions', 'versions')):
        out.print(f'[bold]{title}[/]  ' + ', '.join(f'{k} {v}' for k, v in results[key].items()), soft_wrap=True)
    before, after = results['load_before'][0], results['load_after'][0]
    out.print(f'[bold]load average[/]  {before} before, {after} after; others at work make every number worse')
    tables: dict[str, Callable[[Any], Table]] = {
        'model': _model,
        'control': _control,
        'transport': _transport,
        'train': _train,
        'graph': _bench_more.graph_table,
        'replay': _bench_more.replay_table,
    }
    for part, table in tables.items():
        found = results.get(part)
        if isinstance(found, dict) and 'skipped' in found:
            out.print(f'[yellow]{part} was left out:[/] {escape(found["skipped"])}', soft_wrap=True)
        elif isinstance(found, dict) and 'failed' in found:
            out.print(f'[red]{part} failed:[/] {escape(found["failed"])}', soft_wrap=True)
        elif found is not None:
            out.print(table(found))


def _model(found: list[dict[str, Any]]) -> Table:
    table = Table(title="model: the reference's order of work against the fast path (medians, ms)")
    table.add_column('step')
    names = ['reference', 'fast', 'ratio', 'differs']
    rounded = any(step['bfloat16_s'] is not None for model in found for step in model['steps'])
    for name in [*names, *(['bfloat16', 'ratio'] if rounded else [])]:
        table.add_column(name, justify='right', no_wrap=True)
    for model in found:
        table.add_section()
        head = f'{model["size"]}, stage {model["stage"]}, {model["dtype"]}, {model["device"]}'
        cores = f' x {model["threads"]}' if model['device'] == 'cpu' else ''
        table.add_row(f'[bold]{head}{cores}[/]')
        for step in model['steps']:
            cells = [
                f'{step["plain_s"] * 1e3:.1f}',
                f'{step["fast_s"] * 1e3:.1f}',
                f'{step["ratio"]:.2f}',
                f'{step["difference"]:.1e}',
            ]
            if step['bfloat16_s'] is not None:
                cells += [f'{step["bfloat16_s"] * 1e3:.1f}', f'{step["bfloat16_ratio"]:.2f}']
            table.add_row(step['step'], *cells)
    table.caption = '\n'.join(f'{m["size"]}, stage {m["stage"]}: {_memory(m["memory"])}' for m in found)
    table.caption_justify = 'left'
    return table


def _memory(found: dict[str, Any]) -> str:
    need = found['computed']
    parts = ', '.join(f'{name} {need[name] / 1e9:.3f}' for name in ('weights', 'caches', 'activations'))
    text = f'serving on a GPU in {found["dtype"]} takes {need["total"] / 1e9:.3f} GB: {parts}'
    if 'gpu_peak' in found:
        text += f'; both paths here {found["gpu_peak"] / 1e9:.3f}'
    return f'{text}; this process at most {found["process_peak"] / 1e9:.2f} GB'


def _train(found: list[dict[str, Any]]) -> Table:
    table = Table(title="train: one optimiser step in the reference's order of work against ours (medians)")
    table.add_column('model')
    for name in ('batch', 'reference [ms]', 'ours [ms]', 'ratio', 'loss differs by', 'gradients [M]'):
        table.add_column(escape(name), justify='right')  # [ms] is no markup
    for step in found:
        table.add_row(
            f'{step["size"]}, {step["recipe"]}',
            str(step['batch']),
            f'{step["plain"] * 1e3:.1f}',
            f'{step["fast"] * 1e3:.1f}',
            f'{step["ratio"]:.2f}',
            f'{step["difference"]:.1e}',
            f'{step["trained_plain"] / 1e6:.2f}, {step["trained_fast"] / 1e6:.2f}',
        )
    return table


def _control(found: dict[str, Any]) -> Table:
    table = Table(title=f'control: periods of {found["period"] * 1e3:g} ms')
    table.add_column('part')
    for name in ('count', 'median [ms]', '99 % [ms]', 'largest [ms]', 'of a period'):
        table.add_column(escape(name), justify='right')  # [ms] is no markup
    for name, s in found['parts'].items():
        table.add_row(
            name,
            str(s['count']),
            *(f'{s[key] * 1e3:.3f}' for key in ('p50', 'p99', 'max')),
            f'{100 * s["p50"] / found["period"]:.0f} %',
        )
    return table


def _transport(found: dict[str, Any]) -> Table:
    table = Table(title='transport: between two processes over DDS')
    table.add_column('message')
    for name in ('rate [Hz]', 'received', 'median [ms]', '99 % [ms]', 'largest [ms]'):
        table.add_column(escape(name), justify='right')  # [ms] is no markup
    for name, s in found.items():
        size = f' of {s["bytes"] / 1e6:.2f} MB' if 'bytes' in s else ''
        times = (f'{s[key] * 1e3:.2f}' if key in s else '-' for key in ('p50', 'p99', 'max'))
        table.add_row(f'{name}{size}', f'{s["rate"]:g}', f'{s["received"]}/{s["sent"]}', *times)
    return table
