"""Where one chunk takes over from another: gap, change of speed, jerk behind it."""

from __future__ import annotations

import numpy as np
import pytest

from instructvla_ros.datatypes import ActionChunk
from instructvla_ros.evaluation.seams import Seams

RATE = 100.0


def chunk(name: str, start: float, at_ns: int = 0, speed: float = 0.1, count: int = 8) -> ActionChunk:
    steps = np.zeros((count, 7))
    steps[:, 0] = speed * 0.1
    pose = np.eye(4)
    pose[0, 3] = start
    return ActionChunk(name, at_ns, at_ns, 0.1, steps, 'base', pose)


def test_two_chunks_that_agree_have_no_gap():
    seams = Seams()
    seams.period(0, 'a', np.zeros(7), chunk('a', 0.3))
    seams.period(200_000_000, 'b', np.zeros(7), chunk('b', 0.32, 200_000_000))
    found = seams.result(RATE)
    assert found['seams'] == 1 and found['seam_gap'] == pytest.approx(0.0, abs=1e-9) == found['seam_jump']
    assert found['seam_jerk'] is None, 'two periods have no jerk'


def test_the_gap_and_the_jump_are_at_the_time_of_the_take_over():
    seams = Seams()
    seams.period(0, 'a', None, chunk('a', 0.3))
    seams.period(250_000_000, 'a', None, chunk('b', 0.34, 200_000_000, speed=0.16))
    seams.period(350_000_000, 'b', None)
    found = seams.result(RATE)
    # a: 0.3 + 0.035, b: 0.34 + 0.15 s * 0.16 m/s
    assert found['seam_gap'] == pytest.approx(0.364 - 0.335)
    assert found['seam_jump'] == pytest.approx(0.06)


def test_no_seam_where_nothing_played_before_and_no_gap_after_the_end():
    seams = Seams()
    seams.period(0, '', None, chunk('a', 0.3))
    seams.period(10_000_000, 'a', None)
    assert seams.result(RATE) == {'seams': 0, 'seam_gap': None, 'seam_jump': None, 'seam_jerk': None}
    seams.period(5_000_000_000, 'b', None, chunk('b', 0.3, 4_900_000_000))
    assert seams.result(RATE)['seams'] == 1 and seams.result(RATE)['seam_gap'] is None


def test_only_the_jerk_behind_a_seam_counts():
    """A constant jerk of 100 rad/s^3 for the first 0.2 s, smooth later: a take-over early is rough, one late is not."""
    found = {}
    for take_over in (5, 60):
        seams = Seams()
        seams.period(0, 'a', None, chunk('a', 0.3))
        for k in range(100):
            t = k / RATE
            dq = np.full(7, 50.0 * min(t, 0.2) ** 2 + 20.0 * max(t - 0.2, 0.0))
            seams.period(k * 10_000_000, 'a' if k < take_over else 'b', dq, chunk('b', 0.3) if k == 1 else None)
        found[take_over] = seams.result(RATE)['seam_jerk']
    assert found[5] == pytest.approx(100.0, rel=0.02) and found[60] == pytest.approx(0.0, abs=1e-6)
