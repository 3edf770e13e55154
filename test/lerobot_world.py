"""A small dataset of episodes whose pictures and motion are known, and LeRobot folders made from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from instructvla_ros.data import lerobot as form
from instructvla_ros.data.episodes import Dataset, Episode, Frames, Meta, Writer
from instructvla_ros.data.lerobot_export import export_dataset
from instructvla_ros.geometry import delta_between, pose_from_xyz_rpy

SIZE = (64, 48)
TASKS = ('lift the red cube', 'open the drawer', 'lift the red cube')
LENGTHS = (13, 7, 21)


def picture(episode: int, frame: int, view: int = 0) -> np.ndarray:
    """A smooth picture whose brightness tells episode and frame."""
    x, y = np.meshgrid(np.linspace(0, 1, SIZE[0]), np.linspace(0, 1, SIZE[1]))
    out = np.empty((SIZE[1], SIZE[0], 3))
    out[..., 0] = 40 + 60 * episode + 30 * x
    out[..., 1] = 20 + 9 * frame + 20 * y
    out[..., 2] = 60 + 120 * view
    return out.astype(np.uint8)


def motion(t: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    proprio = np.zeros((t, 8))
    proprio[:, :3] = [0.5, 0.0, 0.3] + np.cumsum(rng.normal(0, 0.01, (t, 3)), axis=0)
    proprio[:, 3:6] = [3.0, 0.1, -0.4] + np.cumsum(rng.normal(0, 0.02, (t, 3)), axis=0)
    proprio[:, 7] = np.linspace(1, 0, t)
    return proprio


def episode(number: int) -> Episode:
    t = LENGTHS[number]
    rng = np.random.default_rng(100 + number)
    proprio = motion(t, number)
    actions = np.zeros((t, 7))
    for k in range(t - 1):
        actions[k, :6] = delta_between(pose_from_xyz_rpy(proprio[k, :6]), pose_from_xyz_rpy(proprio[k + 1, :6]))
    actions[:, 6] = np.append(proprio[1:, 7], proprio[-1, 7])
    stamps = 1_700_000_000_000_000_000 + np.arange(t) * 100_000_000 + rng.integers(0, 1000, t)
    return Episode(
        f'bag-{number}.a', TASKS[number], 0.1, stamps, proprio, rng.normal(size=(t, 7)), rng.normal(size=(t, 7)),
        actions,
        {'base': Frames.encode([picture(number, k) for k in range(t)]),
         'wrist': Frames.encode([picture(number, k, 1) for k in range(t)])},
        annotations={'features': {'move_primitive': ['stop'] * t}} if number == 1 else {},
        success=(True, None, False)[number], source=f'bag {number}', info={'seed': number},
        extras={'force': rng.normal(size=(t, 3)), 'touch': np.arange(t) % 2 == 0},
    )  # fmt: skip


def rows(file: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(file).read()


def as_of_others(exported: Path, out: Path, change: Callable[[dict[str, Any]], None] = lambda info: None) -> Path:
    """A copy without our own file, as if another program had written it."""
    for file in exported.rglob('*'):
        if file.is_file() and file.name != Path(form.OWN).name:
            (out / file.relative_to(exported)).parent.mkdir(parents=True, exist_ok=True)
            (out / file.relative_to(exported)).write_bytes(file.read_bytes())
    info = json.loads((out / form.INFO).read_text())
    change(info)
    (out / form.INFO).write_text(json.dumps(info))
    return out


def same_pictures(found: Frames, number: int, view: int, step: int = 1) -> None:
    for k in range(len(found)):
        difference = np.abs(found[k].astype(int) - picture(number, k * step, view))
        # the next frame differs by 9 in green: a picture of another frame cannot pass
        assert difference.mean() < 2.5, (number, k, difference.mean())


def make_dataset(path: Path) -> Dataset:
    with Writer(path, Meta('kitchen', 'franka.yaml', 0.1, {'base': SIZE, 'wrist': SIZE}, frame_id='fr3_link0')) as out:
        for number in range(3):
            out.add(episode(number))
    return Dataset.open(path)


def make_export(dataset: Dataset) -> Path:
    path = dataset.path.parent / 'exported'
    done = export_dataset(dataset, path)
    assert (done.episodes, done.frames, done.tasks, done.notes) == (3, sum(LENGTHS), 2, ())
    assert not list(path.parent.glob('.*'))
    return path
