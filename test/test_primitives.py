"""Move primitives: worked examples of each rule, and the same answers as a frame-by-frame reading of the rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from instructvla_ros.data.episodes import Episode, Frames
from instructvla_ros.data.primitives import annotate, primitives, span_for, state_from_proprio
from instructvla_ros.errors import DataError


def state(rows: list[tuple[float, ...]]) -> np.ndarray:
    """(T, 8) from x, y, z, roll, pitch, yaw, closedness."""
    r = np.asarray(rows, dtype=float)
    return np.concatenate([r[:, :3], Rotation.from_euler('xyz', r[:, 3:6]).as_quat(), r[:, 6:]], axis=1)


def one(dx: float = 0, dy: float = 0, dz: float = 0, roll: float = 0, pitch: float = 0, yaw: float = 0, grip: float = 0,
        tilted: float = 0.3) -> str:  # fmt: skip
    """Label of a window whose ends differ by this much; the tool is turned by ``tilted`` in yaw beforehand."""
    base = Rotation.from_euler('xyz', (math.pi, 0, tilted))
    rows = np.zeros((3, 8))
    for k in range(3):
        s = k / 2
        turn = Rotation.from_euler('xyz', (s * roll, s * pitch, s * yaw)) * base
        rows[k] = [0.4 + s * dx, 0.1 + s * dy, 0.2 + s * dz, *turn.as_quat(), 0.5 + s * grip]
    return primitives(rows)[0]


@pytest.mark.parametrize(
    ('motion', 'text'),
    [
        ({'dx': 0.03}, 'move forward'),
        ({'dx': -0.03}, 'move backward'),
        ({'dy': 0.03}, 'move left'),
        ({'dy': -0.03}, 'move right'),
        ({'dz': 0.03}, 'move up'),
        ({'dz': -0.03}, 'move down'),
        ({'dx': 0.021, 'dy': -0.021}, 'move forward right'),
        ({'dx': 0.019}, 'stop'),
        # 0.18 in all is scaled to 0.06: 0.02 each is not above the threshold
        ({'dx': 0.06, 'dy': 0.06, 'dz': 0.0599}, 'move forward left'),
        # a large motion along x hides a small one along z: 0.03 * 0.06 / 0.23 < 0.02
        ({'dx': 0.2, 'dz': 0.03}, 'move forward'),
        ({'pitch': -0.07}, 'tilt up'),
        ({'pitch': 0.07}, 'tilt down'),
        ({'pitch': -0.059}, 'stop'),
        ({'yaw': 0.11}, 'rotate counterclockwise'),
        ({'yaw': -0.11}, 'rotate clockwise'),
        ({'yaw': 0.09}, 'stop'),
        ({'roll': 0.5}, 'stop'),
        ({'grip': 0.3}, 'close gripper'),
        ({'grip': -0.3}, 'open gripper'),
        ({'dz': 0.05, 'yaw': -0.2, 'grip': 0.5}, 'move up, rotate clockwise, close gripper'),
        ({'dx': -0.03, 'dy': 0.025, 'pitch': -0.2}, 'move backward left, tilt up'),
    ],
)
def test_worked_examples(motion: dict[str, float], text: str) -> None:
    assert one(**motion) == text


def test_base_frame_not_tool_frame() -> None:
    assert one(dx=0.03, tilted=2.0) == one(dx=0.03, tilted=-1.0) == 'move forward'
    assert one(yaw=0.2, tilted=2.5) == 'rotate counterclockwise'


def test_one_label_per_frame_and_the_end_stops() -> None:
    rows = state([(0.03 * k, 0, 0, 0, 0, 0, 0) for k in range(6)])
    assert primitives(rows) == ['move forward'] * 4 + ['stop', 'stop']
    assert primitives(rows, span=4) == ['move forward'] * 2 + ['stop'] * 4
    assert primitives(rows[:2]) == ['stop', 'stop']
    assert primitives(rows[:0]) == []


def test_equals_reading_the_rules_frame_by_frame() -> None:
    rng = np.random.default_rng(3)
    rows = state(list(np.cumsum(rng.normal(0, [0.02, 0.02, 0.02, 0.05, 0.05, 0.1, 0.05], (300, 7)), axis=0)))
    expected = []
    for t in range(298):
        a, b = rows[t], rows[t + 2]
        step = b[:3] - a[:3]
        if abs(step).sum() > 0.06:
            step = step * 0.06 / abs(step).sum()
        _, pitch, yaw = (Rotation.from_quat(b[3:7]) * Rotation.from_quat(a[3:7]).inv()).as_euler('xyz')
        words = []
        for value, pair in zip(step, (('forward', 'backward'), ('left', 'right'), ('up', 'down')), strict=True):
            if abs(value) > 0.02:
                words.append(pair[0] if value > 0 else pair[1])
        parts = ['move ' + ' '.join(words)] if words else []
        for value, pair in ((-pitch / 3, ('tilt up', 'tilt down')),
                            (yaw / 5, ('rotate counterclockwise', 'rotate clockwise')),
                            (b[7] - a[7], ('close gripper', 'open gripper'))):  # fmt: skip
            if abs(value) > 0.02:
                parts.append(pair[0] if value > 0 else pair[1])
        expected.append(', '.join(parts) or 'stop')
    assert primitives(rows) == [*expected, 'stop', 'stop']
    assert len(set(expected)) > 20


def test_window_keeps_its_time() -> None:
    assert [span_for(p) for p in (1 / 3, 0.2, 0.1, 1 / 15, 1.0, 5.0)] == [2, 3, 7, 10, 1, 1]
    with pytest.raises(DataError):
        span_for(0.0)


def test_proprio() -> None:
    proprio = np.array([[0.3, 0.0, 0.2, 3.1, 0.1, 0.2, 0.0, 1.0], [0.3, 0.0, 0.2, 3.1, 0.1, 0.2, 0.0, 0.0]])
    s = state_from_proprio(proprio)
    assert s.shape == (2, 8) and s[:, 7].tolist() == [0.0, 1.0]
    np.testing.assert_allclose(Rotation.from_quat(s[0, 3:7]).as_euler('xyz'), [3.1, 0.1, 0.2], atol=1e-9)
    with pytest.raises(DataError, match='proprio'):
        state_from_proprio(proprio[:, :7])
    proprio[1, 2] = np.nan
    with pytest.raises(DataError, match='frame 1'):
        state_from_proprio(proprio)


def test_annotates_an_episode_and_keeps_the_rest() -> None:
    t = 20
    proprio = np.zeros((t, 8))
    proprio[:, 2] = 0.4 - 0.01 * np.arange(t)  # 1 cm per frame at 10 Hz: 7 cm per window
    proprio[:, 7] = 1.0
    picture = Frames.encode([np.zeros((8, 8, 3), np.uint8)] * t)
    episode = Episode(
        'e1', 'go down', 0.1, np.arange(t, dtype=np.int64), proprio, np.zeros((t, 7)), np.zeros((t, 7)),
        np.zeros((t, 7)), {'base': picture},
        annotations={'features': {'other': 1}, 'alt_instruction': {'Caption': 'A table.'}},
    )  # fmt: skip
    labelled = annotate(episode)
    assert labelled.annotations['features']['move_primitive'] == ['move down'] * 13 + ['stop'] * 7
    assert labelled.annotations['features']['other'] == 1
    assert labelled.annotations['alt_instruction'] == {'Caption': 'A table.'}
    assert 'move_primitive' not in episode.annotations['features'], 'the given episode stays as it is'


def test_bad_states_are_named() -> None:
    with pytest.raises(DataError, match='T, 8'):
        primitives(np.zeros((4, 7)))
    rows = state([(0, 0, 0, 0, 0, 0, 0)] * 4)
    rows[2, 3:7] = 0
    with pytest.raises(DataError, match='frame 2'):
        primitives(rows)
    with pytest.raises(DataError, match='span'):
        primitives(rows, span=0)
