"""The synchroniser: pairing by stamp, staleness by name, restarts, no copies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructvla_ros.datatypes import Observation, RobotState, SceneState
from instructvla_ros.errors import ConfigError
from instructvla_ros.geometry import pose
from instructvla_ros.observing import Pacer, Stale, Synchronizer
from instructvla_ros.settings import PolicySettings

T0 = 1_700_000_000_000_000_000
MS = 1_000_000
SETTINGS = PolicySettings(sync_slop=0.05, max_view_age=0.3, max_state_age=0.2)


def forward(q: np.ndarray) -> np.ndarray:
    return pose(q[:3])


def synchronizer(views: tuple[str, ...] = ('front', 'wrist'), **kwargs: object) -> Synchronizer:
    return Synchronizer(views, forward, 'base', SETTINGS, **kwargs)  # type: ignore[arg-type]


def image(value: int = 7) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


def state(ms: float, x: float = 0.0, gripper: float = 0.5) -> RobotState:
    q = np.zeros(7)
    q[0] = x
    return RobotState(T0 + int(ms * MS), q, np.zeros(7), gripper)


def scene(ms: float) -> SceneState:
    return SceneState(T0 + int(ms * MS), {}, np.eye(4), 1.0, instruction=f'{ms:g}')


def fill(sync: Synchronizer, ms: float) -> None:
    for view in ('front', 'wrist'):
        assert sync.feed(view, T0 + int(ms * MS), image()) == ''
    assert sync.feed_state(state(ms)) == ''


def test_pairs_views_and_passes_images_without_copy() -> None:
    sync = synchronizer()
    front, wrist = image(1), image(2)
    sync.feed('front', T0, front)
    sync.feed('wrist', T0 + 20 * MS, wrist)
    sync.feed_state(state(0, x=0.4, gripper=1.7))
    seen = sync.latest(T0 + 30 * MS, 'go')
    assert isinstance(seen, Observation)
    assert seen.views['front'] is front and seen.views['wrist'] is wrist
    assert seen.stamp_ns == T0 and seen.view_stamps_ns == {'front': T0, 'wrist': T0 + 20 * MS}
    assert seen.proprio[:3].tolist() == [0.4, 0.0, 0.0] and seen.proprio[7] == 1.0 and seen.proprio[6] == 0.0
    assert seen.instruction == 'go' and seen.frame_id == 'base' and seen.privileged is None


def test_waits_for_the_partner_and_keeps_the_old_pair_until_then() -> None:
    sync = synchronizer()
    fill(sync, 0)
    sync.feed('front', T0 + 66 * MS, image())
    first = sync.latest(T0 + 70 * MS)
    assert isinstance(first, Observation) and first.stamp_ns == T0
    sync.feed('wrist', T0 + 70 * MS, image())
    second = sync.latest(T0 + 75 * MS)
    assert isinstance(second, Observation) and second.stamp_ns == T0 + 66 * MS


def test_views_further_apart_than_the_slop_are_named() -> None:
    sync = synchronizer()
    sync.feed_state(state(100))
    for k in range(3):
        sync.feed('front', T0 + k * 200 * MS, image())
        sync.feed('wrist', T0 + (k * 200 + 90) * MS, image())
    sync.feed_state(state(490))
    seen = sync.latest(T0 + 500 * MS)
    assert isinstance(seen, Stale) and seen.input == 'front'
    assert seen.age == pytest.approx(0.09) and '0.050 s' in seen.reason and 'sync_slop' in seen.reason


@pytest.mark.parametrize('silent', ['front', 'wrist', 'joint_states'])
def test_an_input_that_never_came_is_named(silent: str) -> None:
    sync = synchronizer()
    for view in ('front', 'wrist'):
        if view != silent:
            sync.feed(view, T0, image())
    if silent != 'joint_states':
        sync.feed_state(state(0))
    seen = sync.latest(T0)
    assert isinstance(seen, Stale) and seen.input == silent and seen.age == float('inf')


@pytest.mark.parametrize('silent', ['front', 'wrist', 'joint_states', 'sim_state'])
def test_an_input_that_went_silent_is_named_and_never_replaced(silent: str) -> None:
    sync = synchronizer(privileged=True)
    for k in range(40):
        ms = 20.0 * k
        alive = ms <= 200.0
        for view in ('front', 'wrist'):
            if alive or view != silent:
                sync.feed(view, T0 + int(ms * MS), image(k))
        if alive or silent != 'joint_states':
            sync.feed_state(state(ms))
        if alive or silent != 'sim_state':
            sync.feed_privileged(scene(ms))
        seen = sync.latest(T0 + int(ms * MS))
        if isinstance(seen, Observation):
            limit = 0.2 if silent == 'joint_states' else 0.3
            assert ms <= 200.0 + limit * 1e3
            for view, pixels in seen.views.items():
                assert int(pixels[0, 0, 0]) == (seen.view_stamps_ns[view] - T0) // (20 * MS)
    assert isinstance(seen, Stale) and seen.input == silent and 'silent' in seen.reason
    assert seen.age == pytest.approx((780 - 200) / 1e3)


def test_joint_state_is_interpolated_at_the_image() -> None:
    sync = synchronizer()
    for ms in range(0, 60, 10):
        sync.feed_state(state(ms, x=ms / 100, gripper=ms / 100))
    sync.feed('front', T0 + 33 * MS, image())
    sync.feed('wrist', T0 + 33 * MS, image())
    seen = sync.latest(T0 + 55 * MS)
    assert isinstance(seen, Observation)
    assert seen.q[0] == pytest.approx(0.33) and seen.proprio[7] == pytest.approx(0.33)


def test_no_interpolation_over_a_gap_and_no_far_state() -> None:
    sync = synchronizer()
    sync.feed_state(state(0, x=1.0))
    sync.feed_state(state(250, x=2.0))
    for view in ('front', 'wrist'):
        sync.feed(view, T0 + 60 * MS, image())
    near = sync.latest(T0 + 260 * MS)
    assert isinstance(near, Observation) and near.q[0] == 1.0
    late = synchronizer()
    late.feed_state(state(300))
    for view in ('front', 'wrist'):
        late.feed(view, T0 + 60 * MS, image())
    seen = late.latest(T0 + 310 * MS)
    assert isinstance(seen, Stale) and seen.input == 'joint_states' and 'away from the image' in seen.reason


def test_duplicates_disorder_and_missing_stamps_are_dropped_by_name() -> None:
    sync = synchronizer()
    fill(sync, 100)
    assert 'duplicate' in sync.feed('front', T0 + 100 * MS, image())
    assert 'out of order by 0.050 s' in sync.feed('front', T0 + 50 * MS, image())
    assert 'without a header stamp' in sync.feed('wrist', 0, image())
    assert "view 'side' is not one of front, wrist" in sync.feed('side', T0, image())
    assert 'out of order' in sync.feed_state(state(90))
    assert 'finite' in sync.feed_state(state(110, x=float('nan')))
    assert isinstance(sync.latest(T0 + 100 * MS), Observation)


def test_a_restarted_source_clears_everything_before_it() -> None:
    sync = synchronizer()
    fill(sync, 60_000)
    assert isinstance(sync.latest(T0 + 60_000 * MS), Observation)
    sync.feed('front', T0, image())
    assert sync.jumps == 1
    seen = sync.latest(T0)
    assert isinstance(seen, Stale) and seen.input == 'wrist' and seen.age == float('inf')
    sync.feed('wrist', T0, image())
    sync.feed_state(state(0))
    assert isinstance(sync.latest(T0), Observation) and sync.jumps == 1


def test_stamps_ahead_of_the_clock_are_reported_with_the_remedy() -> None:
    sync = synchronizer()
    fill(sync, 5_000)
    seen = sync.latest(T0)
    assert isinstance(seen, Stale) and seen.age == pytest.approx(-5.0) and 'use_sim_time' in seen.reason


def test_privileged_state_nearest_to_the_image() -> None:
    sync = synchronizer(privileged=True)
    for ms in (0, 50, 100):
        sync.feed_privileged(scene(ms))
    for view in ('front', 'wrist'):
        sync.feed(view, T0 + 60 * MS, image())
    sync.feed_state(state(60))
    seen = sync.latest(T0 + 110 * MS)
    assert isinstance(seen, Observation) and seen.privileged is not None and seen.privileged.instruction == '50'
    assert sync.ages(T0 + 110 * MS)['sim_state'] == pytest.approx(0.01)


def test_no_views_is_refused() -> None:
    with pytest.raises(ConfigError, match='at least one view'):
        synchronizer(())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(['front', 'wrist', 'joint_states']), st.integers(-3000, 3000)),
        min_size=1,
        max_size=60,
    )
)
def test_any_order_of_stamps_keeps_every_observation_within_its_limits(events: list[tuple[str, int]]) -> None:
    sync = synchronizer()
    for name, ms in events:
        if name == 'joint_states':
            sync.feed_state(state(ms))
        else:
            sync.feed(name, T0 + ms * MS, image())
        for now in (T0 + ms * MS, T0):
            seen = sync.latest(now)
            if isinstance(seen, Observation):
                stamps = seen.view_stamps_ns.values()
                assert max(stamps) - min(stamps) <= 50 * MS
                assert now - seen.stamp_ns <= 300 * MS and max(stamps) - now <= 100 * MS
            else:
                assert seen.reason and seen.input in ('front', 'wrist', 'joint_states')


@pytest.mark.parametrize(
    ('camera', 'rate', 'expected'),
    [(15.0, 5.0, 5.0), (30.0, 8.0, 8.0), (10.0, 20.0, 10.0), (100.0, 5.0, 5.0), (5.5, 5.0, 5.0), (5.0, 5.0, 5.0)],
)
def test_pacer_follows_the_camera_and_keeps_the_rate(camera: float, rate: float, expected: float) -> None:
    pacer = Pacer(rate)
    rng = np.random.default_rng(0)
    starts = []
    for k in range(int(camera * 40)):
        now = k / camera + rng.uniform(-0.002, 0.002)
        if pacer.take(now):
            starts.append(now)
    assert (len(starts) - 1) / (starts[-1] - starts[0]) == pytest.approx(expected, rel=0.03)
    assert np.diff(starts).min() >= 1.0 / rate - 1.0 / camera - 0.01
    pacer.reset()
    assert pacer.take(starts[-1])


def test_pacer_starts_over_after_a_pause_without_a_burst() -> None:
    pacer = Pacer(5.0)
    times = [*np.arange(0.0, 1.0, 1 / 15), *np.arange(3.0, 4.0, 1 / 15)]
    starts = [t for t in times if pacer.take(t)]
    assert np.diff(starts).min() > 0.16


def test_an_old_pair_is_not_offered_because_newer_images_do_not_fit() -> None:
    sync = synchronizer()
    fill(sync, 0)
    sync.feed('front', T0 + 100 * MS, image())
    sync.feed('wrist', T0 + 190 * MS, image())
    sync.feed_state(state(200))
    assert isinstance(sync.latest(T0 + 290 * MS), Observation)
    sync.feed_state(state(340))
    seen = sync.latest(T0 + 350 * MS)
    assert isinstance(seen, Stale) and seen.input in ('front', 'wrist') and '0.350 s' in seen.reason


def test_a_single_view_ahead_of_the_clock_is_named() -> None:
    sync = synchronizer()
    sync.feed_state(state(0))
    sync.feed('front', T0, image())
    sync.feed('wrist', T0 + 150 * MS, image())
    seen = sync.latest(T0)
    assert isinstance(seen, Stale) and seen.input == 'wrist' and 'ahead' in seen.reason
