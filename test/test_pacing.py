"""Deadlines on a clock that only moves when told to."""

from __future__ import annotations

import pytest

from instructvla_ros.nodes import pacing


class FakeTime:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0.0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(pacing, 'time', fake)
    return fake


def test_deadlines_do_not_drift_with_the_work_between_them(clock):
    pacer = pacing.Pacer(0.01)
    for k in range(1000):
        assert pacer.wait() == 0.0
        assert clock.now == pytest.approx(100.0 + 0.01 * (k + 1))
        clock.now += 0.004


def test_a_short_delay_is_caught_up(clock):
    pacer = pacing.Pacer(0.01, catch_up=0.1)
    pacer.wait()
    clock.now += 0.05
    assert sum(pacer.wait() for _ in range(10)) == 0.0
    assert clock.now == pytest.approx(100.11)


def test_a_long_delay_is_skipped_in_whole_periods(clock):
    pacer = pacing.Pacer(0.01, catch_up=0.1)
    pacer.wait()
    clock.now += 0.5
    skipped = pacer.wait()
    assert 0.46 < skipped < 0.491 and skipped / 0.01 == pytest.approx(round(skipped / 0.01))
    before = clock.now
    pacer.wait()
    assert clock.now - before <= 0.0101


def test_without_catch_up_no_two_deadlines_come_close(clock):
    pacer = pacing.Pacer(0.01, catch_up=0.01)
    pacer.wait()
    clock.now += 0.037
    times = []
    for _ in range(4):
        pacer.wait()
        times.append(clock.now)
    assert all(b - a <= 0.0101 for a, b in zip(times, times[1:], strict=False))


def test_a_period_has_to_be_positive():
    with pytest.raises(ValueError, match='positive'):
        pacing.Pacer(0.0)


def test_seconds_of_a_slow_simulator(clock):
    usual, slow = pacing.seconds(), pacing.seconds(0.25)
    before = usual(), slow()
    clock.now += 8.0
    assert usual() - before[0] == pytest.approx(8.0) and slow() - before[1] == pytest.approx(2.0)
