"""What `instructvla dataset` shows: progress while it works, tables and a contact sheet when asked."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..data.build import Report
from ..data.episodes import Dataset, Episode


@contextmanager
def bar(text: str, total: float, quiet: bool) -> Iterator[Callable[[float], None]]:
    """Progress bar on a terminal, nothing elsewhere; call the value with how much is done."""
    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn('{task.description}'), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.update(task, completed=done)


def show_report(report: Report, most: int = 12) -> str:
    """One bag as text."""
    seconds = f', {report.seconds:.1f} s' if report.seconds else ''
    state = 'already built' if report.cached else 'built'
    odd = f', {report.problems} message(s) left out' if report.problems else ''
    made = f'{len(report.episodes)} episode(s), {report.frames} frames'
    lines = [f'{Path(report.bag).name}: {state}, {made}{seconds}{odd}']
    lines += [f'  {note}' for note in report.notes[:most]]
    if len(report.notes) > most:
        lines.append(f'  ... and {len(report.notes) - most} more; --json lists them all')
    return '\n'.join(lines)


def describe(
    dataset: Dataset, with_episodes: bool = False, progress: Callable[[float], None] = lambda n: None
) -> dict[str, Any]:
    """Everything `inspect` says about a dataset, ready for JSON."""
    meta = dataset.meta
    texts = Counter(e.instruction for e in dataset.index)
    repeated = worst = 0.0
    worst_of = ''
    moved: list[Any] = []
    rows = []
    for number, entry in enumerate(dataset.index):
        episode = dataset.read(entry.id)
        repeated += float(episode.info.get('repeated_pictures', 0))
        for topic, spread in dict(episode.info.get('alignment', {})).items():
            if topic != 'step period' and spread.get('max_ms', 0.0) > worst:
                worst, worst_of = spread['max_ms'], f'{topic} in {entry.id}'
        moved.append(episode.actions[:-1])
        if with_episodes:
            rows.append(_row(episode))
        progress(number + 1)
    actions = np.concatenate(moved) if moved else np.zeros((0, 7))
    size = sum(f.stat().st_size for f in dataset.path.rglob('*') if f.is_file())
    out: dict[str, Any] = {
        'path': str(dataset.path),
        'name': meta.name,
        'embodiment': meta.embodiment,
        'step_period': meta.step_period,
        'views': {k: list(v) for k, v in meta.views.items()},
        'delta_frame': meta.delta_frame,
        'rotation': meta.rotation,
        'episodes': len(dataset),
        'frames': dataset.frames,
        'seconds': round(dataset.frames * meta.step_period, 1),
        'bytes': size,
        'success': dict(Counter({True: 'yes', False: 'no', None: 'unknown'}[e.success] for e in dataset.index)),
        'instructions': dict(texts.most_common()),
        'without_instruction': texts.get('', 0),
        'repeated_pictures': int(repeated),
        'worst_alignment_ms': worst,
        'worst_alignment': worst_of,
        'statistics': (dataset.path / 'dataset_statistics.json').is_file(),
    }
    if len(actions):
        out['action'] = {
            'largest_step_m': round(float(np.linalg.norm(actions[:, :3], axis=1).max()), 4),
            'largest_step_rad': round(float(np.linalg.norm(actions[:, 3:6], axis=1).max()), 4),
            'still': round(float(np.mean(np.linalg.norm(actions[:, :3], axis=1) < 5e-4)), 3),
            'gripper_changes': int(sum(np.sum(np.abs(np.diff(a[:, 6])) > 0.2) for a in moved)),
        }
    if with_episodes:
        out['list'] = rows
    return out


def _row(episode: Episode) -> dict[str, Any]:
    return {
        'id': episode.id,
        'frames': len(episode),
        'instruction': episode.instruction,
        'success': episode.success,
        'source': episode.source,
        'info': dict(episode.info),
    }


def show_description(about: dict[str, Any]) -> str:
    """`inspect` as text."""
    views = ', '.join(f'{k} {w}x{h}' for k, (w, h) in about['views'].items())
    success = ', '.join(f'{k} {n}' for k, n in about['success'].items())
    lines = [
        f'{about["name"]}  ({about["path"]}, {about["bytes"] / 1e6:.1f} MB)',
        f'  robot        {about["embodiment"]}, {about["delta_frame"]} frame, {about["rotation"]}',
        f'  episodes     {about["episodes"]}, {about["frames"]} frames, {about["seconds"] / 60:.1f} min '
        f'at {about["step_period"]} s',
        f'  views        {views}',
        f'  success      {success}',
        f'  statistics   {"yes" if about["statistics"] else "no: run `instructvla dataset stats`"}',
    ]
    if 'action' in about:
        a = about['action']
        lines.append(
            f'  motion       up to {1000 * a["largest_step_m"]:.0f} mm and {a["largest_step_rad"]:.2f} rad per step, '
            f'{100 * a["still"]:.0f} % of the frames still, {a["gripper_changes"]} gripper changes'
        )
    if about['repeated_pictures']:
        share = about['repeated_pictures'] / max(1, about['frames'] * len(about['views']))
        lines.append(f'  pictures     {about["repeated_pictures"]} repeated ({100 * share:.1f} %)')
    if about['worst_alignment']:
        lines.append(f'  alignment    at most {about["worst_alignment_ms"]:.1f} ms ({about["worst_alignment"]})')
    if about['without_instruction']:
        lines.append(f'  WARNING      {about["without_instruction"]} episode(s) have no instruction')
    lines.append('  instructions')
    shown = list(about['instructions'].items())
    lines += [f'  {n:6d}  {text or "(none)"}' for text, n in shown[:15]]
    if len(shown) > 15:
        lines.append(f'          ... and {len(shown) - 15} more')
    for row in about.get('list', ()):
        lines.append(f'  {row["id"]:40s} {row["frames"]:5d} frames  {row["instruction"]}')
    return '\n'.join(lines)


def contact_sheet(dataset: Dataset, file: Path, most: int = 12) -> None:
    """Picture with first, middle and last frame of each view of up to ``most`` episodes, spread over the dataset."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).astype(int))
    ids = [dataset.index[k].id for k in chosen]
    width, line = 160, 22
    heights = {v: max(1, round(width * h / w)) for v, (w, h) in dataset.meta.views.items()}
    row_height = max(heights.values()) + line
    sheet = Pillow.new('RGB', (3 * width * len(heights) + 8, row_height * len(ids) + 8), 'white')
    draw = ImageDraw.Draw(sheet)
    for r, episode_id in enumerate(ids):
        episode = dataset.read(episode_id)
        x, y = 4, 4 + r * row_height
        draw.text((x, y + 3), f'{episode.id}  "{episode.instruction}"  {len(episode)} frames'[:150], fill='black')
        for view, height in heights.items():
            for k in (0, len(episode) // 2, len(episode) - 1):
                small = Pillow.fromarray(episode.views[view][k]).resize((width - 2, height))
                sheet.paste(small, (x, y + line))
                x += width
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)
