"""Import of DROID-style episodes: annotation JSON and one mp4 per camera (Khazatsky et al. 2024, DROID).

    <root>/**/annotation/<split>/<episode>.json    <root>/**/videos/<split>/<episode>/{0,1,2}.mp4

Two kinds exist: with states and actions at 15 Hz beside video at a third of it, and with states at the rate of the
video. Poses come from the joints by forward kinematics, as on the robot that will run the model; how far that is from
the logged pose is written into ``Episode.info``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import pairing
from ..datatypes import STEP_DIM, Image
from ..errors import DataError
from ..geometry import Array, delta_between
from ..settings import Embodiment
from .build import Forward
from .episodes import Episode, Frames
from .gripper import derived
from .segments import clean

CONTROL_RATE = 15.0
"""States and actions per second where they are given at the raw rate [Hz]."""
EPOCH_NS = 1_600_000_000_000_000_000
"""Stamp of the first frame: the files say nothing about the time of recording [ns]."""
DEFAULT_CAMERAS = {'third_person': 0, 'wrist': 2}
_MAX_JSON = 256 * 2**20
_MAX_PIXELS = 2**25
_TRIES = 3


@dataclass(frozen=True)
class DroidOptions:
    """Step period [s] and cameras (view -> number of the video) of the import, and the JPEG quality (0: PNG)."""

    step_period: float = 0.2
    cameras: Mapping[str, int] | None = None
    instruction: str = ''
    quality: int = 95


def find_annotations(root: str | Path) -> list[Path]:
    """Annotation files below a folder.

    Raises:
        DataError: there are none.
    """
    folder = Path(root)
    found = sorted(f for f in folder.rglob('annotation/*/*.json') if f.is_file()) if folder.is_dir() else []
    if folder.is_file() and folder.suffix == '.json':
        found = [folder]
    if not found:
        raise DataError(f'{folder} holds no DROID episodes: no file annotation/<split>/<episode>.json below it')
    return found


def read_episodes(
    files: list[Path], embodiment: Embodiment, forward: Forward, options: DroidOptions, notes: list[str]
) -> Iterator[Episode]:
    """Episodes of annotation files; ``notes`` gains a sentence for each that is odd or left out."""
    for file in files:
        try:
            episode = read_episode(file, embodiment, forward, options)
        except DataError as err:
            notes.append(f'left out: {err}')
            continue
        if not episode.instruction:
            notes.append(f'{episode.id} has no instruction; give one with --instruction')
        yield episode


def read_episode(file: Path, embodiment: Embodiment, forward: Forward, options: DroidOptions) -> Episode:
    """One episode resampled to the step period.

    Raises:
        DataError: something in the annotation is missing, of a wrong shape or not finite, or a video is missing.
    """
    content = _load(file)
    cameras = dict(options.cameras or DEFAULT_CAMERAS)
    if set(cameras) != set(embodiment.views):
        raise DataError(
            f'cameras are given for {", ".join(cameras)}, the embodiment has the views {", ".join(embodiment.views)}'
        )
    videos = {view: _video(file, number) for view, number in cameras.items()}
    raw = 'observation.state.joint_position' in content
    if raw:
        q, logged = _array(content, 'observation.state.joint_position', 7, file), _array(
            content, 'observation.state.cartesian_position', 6, file)  # fmt: skip
        closed = _array(content, 'observation.state.gripper_position', 0, file)
    else:
        joints, logged = _array(content, 'joints', 8, file), _array(content, 'states', 7, file)[:, :6]
        q, closed = joints[:, :7], joints[:, 7]
    if len(q) < 2 or len({len(q), len(logged), len(closed)}) != 1:
        raise DataError(f'{file}: {len(q)} joint positions, {len(logged)} poses, {len(closed)} gripper positions')
    pictures = {view: list(_decode(path)) for view, path in videos.items()}
    first = next(iter(pictures))
    rate = _rate(videos[first])
    state_rate = CONTROL_RATE if raw else rate
    shortest = min(map(len, pictures.values()))
    end = min((len(q) - 1) / state_rate, (shortest - 1) / rate)
    times: Array = np.arange(int(end / options.step_period + 1e-6) + 1, dtype=np.float64) * options.step_period
    if len(times) < 2:
        raise DataError(f'{file}: {end:.2f} s are too short for frames every {options.step_period} s')

    clock: Array = np.arange(len(q), dtype=np.float64) / state_rate
    dq = np.gradient(q, 1.0 / state_rate, axis=0)
    openness = np.clip(1.0 - closed, 0.0, 1.0)
    at = {name: _at(times, clock, values) for name, values in (('q', q), ('dq', dq), ('open', openness[:, None]))}
    poses = [forward(row) for row in at['q']]
    actions = np.zeros((len(times), STEP_DIM))
    for k in range(len(times) - 1):
        actions[k, :6] = delta_between(poses[k], poses[k + 1], embodiment.delta_frame, embodiment.rotation)  # type: ignore[arg-type]
    clock_ns = np.round(clock * 1e9).astype(np.int64)
    ends = np.round((times + options.step_period) * 1e9).astype(np.int64)
    # The logged commands are positions of a trigger that rests half-way; what the fingers did says open or close.
    actions[:, 6] = derived(clock_ns, openness, ends)
    index = np.round(times * rate).astype(int)
    chosen = {view: np.minimum(index, len(frames) - 1) for view, frames in pictures.items()}
    reached = np.array([forward(row)[:3, 3] for row in q])
    return Episode(
        id=episode_id(file),
        instruction=clean(' '.join(str(t) for t in content.get('texts') or [])) or clean(options.instruction),
        step_period=options.step_period,
        stamps_ns=EPOCH_NS + np.round(times * 1e9).astype(np.int64),  # type: ignore[arg-type]
        proprio=np.array([pairing.proprio(p, float(o)) for p, o in zip(poses, at['open'][:, 0], strict=True)]),
        q=at['q'],
        dq=at['dq'],
        actions=actions,
        views={view: Frames.encode([pictures[view][k] for k in chosen[view]], options.quality) for view in cameras},
        success=bool(content['success']) if 'success' in content else None,
        source=str(file.name),
        info={
            'origin': 'DROID (Khazatsky et al. 2024), annotation and video files',
            'cameras': {view: path.name for view, path in videos.items()},
            'video_rate': rate,
            'state_rate': state_rate,
            'gripper': 'derived from the measured openness',
            'repeated_pictures': int(np.sum(np.diff(chosen[first]) == 0)),
            'forward_minus_logged_m': round(float(np.median(np.linalg.norm(reached - logged[:, :3], axis=1))), 4),
        },
    )


def _at(times: Array, clock: Array, values: Array) -> Array:
    return np.stack([np.interp(times, clock, column) for column in values.T], axis=1)


def _load(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MAX_JSON:
            raise DataError(f'{file} is larger than {_MAX_JSON} bytes')
        content = json.loads(file.read_text(encoding='utf-8'))
    except OSError as err:
        raise DataError(f'cannot read {file}: {err.strerror}') from None
    except (ValueError, RecursionError) as err:
        raise DataError(f'{file} is not JSON: {err}') from None
    if not isinstance(content, dict):
        raise DataError(f'{file} is not an annotation: expected keys and values')
    return content


def _array(content: Mapping[str, Any], key: str, width: int, file: Path) -> Array:
    """(N, width), or (N,) for width 0."""
    if key not in content:
        raise DataError(f'{file} has no {key!r}')
    try:
        out = np.asarray(content[key], np.float64)
    except (TypeError, ValueError):
        raise DataError(f'{file}: {key} is not a table of numbers') from None
    if out.ndim != (2 if width else 1) or (width and out.shape[1] != width):
        raise DataError(f'{file}: {key} has the shape {out.shape}, expected (N, {width or "-"})')
    bad = ~np.isfinite(out.reshape(len(out), -1)).all(axis=1)
    if bad.any():
        raise DataError(f'{file}: {key} is not finite in row {int(bad.argmax())}')
    return out


def _video(file: Path, number: int) -> Path:
    path = file.parents[2] / 'videos' / file.parent.name / file.stem / f'{number}.mp4'
    if not path.is_file():
        raise DataError(f'{file}: there is no video {path}')
    return path


def _rate(path: Path) -> float:
    about, reader = _reader(path)
    reader.close()
    rate = float(about['fps'])
    if not 0.5 <= rate <= 240.0:
        raise DataError(f'{path} says it has {rate} frames per second')
    return rate


def _decode(path: Path) -> Iterator[Image]:
    about, reader = _reader(path)
    try:
        width, height = about['size']
        if width * height > _MAX_PIXELS:
            raise DataError(f'{path} has {width} x {height} pixels')
        count = 0
        for data in reader:
            count += 1
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
        if not count:
            raise DataError(f'{path} has no pictures')
    finally:
        reader.close()


def _reader(path: Path) -> tuple[dict[str, Any], Any]:
    """What ffmpeg says about a video, and the iterator of its pictures."""
    import imageio_ffmpeg

    for left in reversed(range(_TRIES)):
        # One picture per stored frame: without it ffmpeg would repeat frames to keep the nominal rate.
        reader = _Guard(imageio_ffmpeg.read_frames(str(path), output_params=['-fps_mode', 'passthrough']), path)
        try:
            return next(reader), reader
        except DataError:
            reader.close()
            if not left:  # on a busy machine ffmpeg may need longer than the library waits
                raise
    raise DataError(f'{path} cannot be read as video')


class _Guard:
    """Reader whose failures name the file."""

    def __init__(self, reader: Any, path: Path) -> None:
        self._reader, self._path = reader, path

    def __iter__(self) -> _Guard:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._reader)
        except (OSError, RuntimeError, ValueError, KeyError) as err:
            reason = (str(err).splitlines() or [''])[0][:200]
            raise DataError(f'{self._path} cannot be read as video: {reason}') from None

    def close(self) -> None:
        self._reader.close()


def episode_id(file: Path) -> str:
    """Id of the episode of an annotation file: its last folders and its number."""
    parts = [p for p in file.parts[-5:] if p not in ('annotation', file.anchor)]
    return re.sub(r'[^A-Za-z0-9._-]+', '_', '-'.join([*parts[-3:-1], file.stem])).strip('._-')
