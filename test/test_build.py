"""Bags to episodes: the observations of the live node, exact motions, gaps and faults by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_doubles import FRONT, JOINTS, MS, T0, WRIST, forward, joint_angles, messages, robot, write

from instructvla_ros.data.align import BuildOptions
from instructvla_ros.data.bag_values import Picture
from instructvla_ros.data.bags import open_bag
from instructvla_ros.data.build import Report, build_episodes
from instructvla_ros.data.episodes import Episode
from instructvla_ros.data.gripper import commanded, derived
from instructvla_ros.data.segments import find_segments
from instructvla_ros.datatypes import Observation
from instructvla_ros.decoding import JointReader
from instructvla_ros.errors import DataError
from instructvla_ros.geometry import apply_delta
from instructvla_ros.observing import Synchronizer
from instructvla_ros.settings import PolicySettings, Topics

EXACT = BuildOptions(quality=0)


def build(path: Path, options: BuildOptions = EXACT, **kwargs: Any) -> tuple[list[Episode], Report]:
    report = Report(path.name)
    embodiment = kwargs.pop('embodiment', robot())
    with open_bag(path) as bag:
        made = build_episodes(bag, embodiment, forward, options, prefix='t', report=report, **kwargs)
        return [episode for episode, _ in made], report


def live(path: Path, options: BuildOptions) -> dict[int, Observation]:
    """What the live node observes when the same messages arrive: newest observation after each joint state."""
    embodiment = robot()
    settings = PolicySettings(sync_slop=options.sync_slop, max_state_age=options.max_state_age, max_view_age=0.3)
    sync = Synchronizer(tuple(embodiment.views), forward, embodiment.base_frame, settings)
    names = {view.topic: name for name, view in embodiment.views.items()}
    joints = JointReader(embodiment)
    seen: dict[int, Observation] = {}
    with open_bag(path) as bag:
        for record in bag.messages([*names, JOINTS]):
            if isinstance(record.value, Picture):
                sync.feed(names[record.topic], record.stamp_ns, record.value.rgb())
                continue
            state = joints.read(record.message)
            assert state is not None
            sync.feed_state(state)
            found = sync.latest(record.recorded_ns)
            if isinstance(found, Observation):
                seen[found.stamp_ns] = found
    return seen


@pytest.mark.parametrize(('camera', 'period'), [(15.0, 0.1), (30.0, 0.1), (10.0, 0.1), (15.0, 0.2)])
def test_observations_equal_those_of_the_live_node(tmp_path: Path, camera: float, period: float) -> None:
    path = write(tmp_path / 'bag', camera=camera, edit=lambda topic, k, t: t if topic != WRIST or k % 7 else t - 3 * MS)
    options = BuildOptions(step_period=period, quality=0)
    (episode,), _ = build(path, options)
    seen = live(path, options)
    assert len(episode) > 8
    for k, stamp in enumerate(episode.stamps_ns.tolist()):
        observed = seen[stamp]
        assert np.array_equal(observed.proprio, episode.proprio[k])
        assert np.array_equal(observed.q, episode.q[k]) and np.array_equal(observed.dq, episode.dq[k])
        for view, image in observed.views.items():
            assert np.array_equal(image, episode.views[view][k]), (view, k)


def test_jpeg_stays_as_it_was_recorded(tmp_path: Path) -> None:
    path = write(tmp_path / 'bag', jpeg=True)
    (episode,), _ = build(path)
    seen = live(path, EXACT)
    for k, stamp in enumerate(episode.stamps_ns.tolist()):
        assert np.array_equal(seen[stamp].views['front'], episode.views['front'][k])
        assert episode.views['front'].encoded(k).startswith(b'\xff\xd8')


def test_actions_are_the_motion_of_one_step_whatever_the_camera_does(tmp_path: Path) -> None:
    """A camera of 15 Hz gives frames 67 and 133 ms apart; a step of 0.1 s has to be 0.1 s of motion all the same."""
    (episode,), report = build(write(tmp_path / 'bag'))
    assert episode.info['alignment']['step period']['max_ms'] > 30.0
    for k, stamp in enumerate(episode.stamps_ns[:-1].tolist()):
        t = (stamp - T0) * 1e-9
        expected = forward(joint_angles(t + 0.1))
        reached = apply_delta(forward(joint_angles(t)), episode.actions[k, :6])
        assert np.allclose(reached, expected, atol=2e-4)
    assert np.allclose(episode.actions[-1, :6], 0.0)
    assert np.isclose(np.median(np.diff(episode.stamps_ns)), 1e8, rtol=0.4)
    assert abs(np.diff(episode.stamps_ns).mean() - 1e8) < 3e6
    assert report.episodes[0]['frames'] == len(episode)


def test_residuals_are_reported_per_topic(tmp_path: Path) -> None:
    (episode,), _ = build(write(tmp_path / 'bag'))
    residuals = episode.info['alignment']
    assert residuals[WRIST] == {'median_ms': 8.0, 'max_ms': 8.0}
    assert residuals[FRONT]['max_ms'] == 0.0
    assert 0.0 < residuals[JOINTS]['max_ms'] <= 5.0


def test_gripper_command_is_derived_from_the_fingers_or_read(tmp_path: Path) -> None:
    (episode,), _ = build(write(tmp_path / 'a'))
    closing = (episode.stamps_ns + 10**8 - T0) * 1e-9 > 1.0
    assert np.array_equal(episode.actions[:, 6], np.where(closing, 0.0, 1.0))
    assert 'derived' in episode.info['gripper']
    path = write(tmp_path / 'b', after=lambda bag: bag.gripper('/gripper/command', T0 + 500 * MS, 0.02))
    (episode,), _ = build(path)
    closing = (episode.stamps_ns + 10**8 - T0) * 1e-9 > 0.5
    assert np.allclose(episode.actions[:, 6], np.where(closing, 0.25, 1.0))
    assert episode.info['gripper'] == 'commands'


def test_an_object_between_the_fingers_does_not_open_them() -> None:
    stamps = np.arange(100) * 10**7
    held = np.full(40, 0.5)
    openness = np.concatenate([np.full(20, 1.0), np.linspace(1.0, 0.5, 10), held, np.linspace(0.5, 1.0, 30)])
    command = derived(stamps, openness, stamps)
    assert command[:20].all() and not command[21:70].any() and command[72:].all()
    assert commanded([(50, 0.3)], np.array([10, 51]), 0.9).tolist() == [1.0, 0.3]


def test_an_episode_per_pair_of_marks(tmp_path: Path) -> None:
    def marks(bag: Any) -> None:
        for at, mark in ((100, 'start'), (700, 'stop'), (710, 'success'), (750, 'start'), (1000, 'discard')):
            bag.mark(T0 + at * MS, mark, f'task {at}')
        bag.mark(T0 + 1050 * MS, 'start', 'the last')

    path = write(tmp_path / 'bag', after=marks)
    options = BuildOptions(step_period=1 / 15, quality=0, min_frames=4)
    episodes, report = build(path, options)
    assert [(e.instruction, e.success) for e in episodes] == [('task 700', True), ('the last', None)]
    assert all(T0 + 100 * MS <= s <= T0 + 700 * MS for s in episodes[0].stamps_ns)
    assert any('discarded' in n for n in report.notes) and any('ends with the bag' in n for n in report.notes)
    episodes, _ = build(path, options, instruction='other words')
    assert {e.instruction for e in episodes} == {'other words'}


def test_marks_are_placed_by_the_clock_of_the_stamps(tmp_path: Path) -> None:
    """Simulated time: messages are recorded hours after their stamps, marks have the time of recording only."""
    lag = 10_000 * 10**9

    def marks(bag: Any) -> None:
        bag.mark(T0 + 500 * MS + lag, 'start', 'go')
        bag.mark(T0 + 1500 * MS + lag, 'stop')

    (episode,), _ = build(write(tmp_path / 'bag', lag=lag, after=marks))
    assert T0 + 495 * MS <= episode.stamps_ns[0] and episode.stamps_ns[-1] <= T0 + 1505 * MS
    assert len(episode) >= 9


def test_instructions_that_change_are_episodes(tmp_path: Path) -> None:
    def says(bag: Any) -> None:
        for at, text in ((300, 'first\ntask'), (900, 'first task'), (1200, 'second')):
            bag.text('/instructvla/instruction', T0 + at * MS, text)

    path = write(tmp_path / 'bag', after=says)
    episodes, report = build(path, BuildOptions(quality=0, min_frames=4))
    assert [e.instruction for e in episodes] == ['first task', 'second']
    assert any('before the first instruction' in n for n in report.notes)


def test_one_instruction_names_the_whole_bag() -> None:
    found = find_segments([], [(5, 'pick it'), (9, 'pick it')], 0, 20).found
    assert [(s.start_ns, s.end_ns, s.instruction) for s in found] == [(0, 20, 'pick it')]


@pytest.mark.parametrize('bad', ['', '[]', '{"mark": 3}', '{"mark": "explode"}', '{"mark": "start", "instruction": 3}'])
def test_bad_marks_are_named_and_skipped(bad: str) -> None:
    found = find_segments([(1, bad), (2, '{"mark": "start"}'), (9, '{"mark": "stop"}')], [], 0, 20)
    assert [(s.start_ns, s.end_ns) for s in found.found] == [(2, 9)]
    assert any('not a mark' in note for note in found.notes)


def silent(topic: str, first: int, last: int) -> Any:
    return lambda t, k, s: None if t == topic and T0 + first * MS <= s < T0 + last * MS else s


def test_a_short_gap_is_bridged_and_counted(tmp_path: Path) -> None:
    options = BuildOptions(step_period=1 / 15, quality=0)
    (episode,), _ = build(write(tmp_path / 'bag', edit=silent(FRONT, 600, 790)), options)
    assert episode.info['repeated_pictures'] >= 2
    assert np.allclose(np.diff(episode.stamps_ns), 1e9 / 15, rtol=0.02)
    k = int(np.searchsorted(episode.stamps_ns, T0 + 700 * MS))
    assert episode.views['front'].encoded(k) == episode.views['front'].encoded(k - 1)
    assert np.allclose(episode.q[k], joint_angles((episode.stamps_ns[k] - T0) * 1e-9), atol=1e-3)


@pytest.mark.parametrize(('topic', 'what'), [(FRONT, 'pictures'), (JOINTS, 'joint states')])
def test_a_long_gap_splits_or_refuses_by_name(tmp_path: Path, topic: str, what: str) -> None:
    path = write(tmp_path / 'bag', seconds=3.0, edit=silent(topic, 1000, 1900))
    episodes, report = build(path, BuildOptions(quality=0, min_frames=4))
    assert len(episodes) == 2
    assert all(np.diff(e.stamps_ns).max() < 2e8 for e in episodes)
    assert any(what in note and 'split' in note for note in report.notes), report.notes
    with pytest.raises(DataError, match=f'no {what}'):
        build(path, BuildOptions(quality=0, on_gap='refuse'))


def test_a_clock_that_jumps_back_splits(tmp_path: Path) -> None:
    def edit(topic: str, k: int, stamp: int) -> int:
        return stamp if stamp < T0 + 1500 * MS else stamp - 60_000 * MS

    path = write(tmp_path / 'bag', seconds=3.0, edit=edit)
    episodes, report = build(path)
    assert len(episodes) == 2
    assert episodes[0].stamps_ns[-1] > T0 > episodes[1].stamps_ns[-1]
    assert any('clock jump' in note for note in report.notes)
    with pytest.raises(DataError, match='clock jump'):
        build(path, BuildOptions(quality=0, on_gap='refuse'))


def test_nan_joints_are_named_and_left_out(tmp_path: Path) -> None:
    def position(k: int, q: np.ndarray) -> np.ndarray:
        return np.where(np.arange(7) == 2, np.nan, q) if 60 <= k < 64 else q

    path = write(tmp_path / 'bag', position=position)
    report = Report('bag')
    with open_bag(path) as bag:
        ((episode, _),) = build_episodes(bag, robot(), forward, EXACT, prefix='t', report=report)
        found = [p for p in bag.problems if p.topic == JOINTS]
    assert len(found) == 4 and 'j3 is nan' in found[0].text and found[0].recorded_ns > T0
    assert any('4 x joint_states' in note for note in report.notes)
    assert np.isfinite(episode.q).all()


def test_a_changed_camera_size_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / 'bag', size=lambda topic, k: (16, 12) if topic == WRIST and k > 10 else (32, 24))
    with pytest.raises(DataError, match=r"'wrist' \(/wrist/image\) changes from 32 x 24 to 16 x 12 pixels at t = 17"):
        build(path)


def test_a_missing_topic_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / 'bag', skip=(WRIST,))
    with pytest.raises(DataError, match='has no topic /wrist/image.*Allowed: .*/front/image'):
        build(path)
    with pytest.raises(DataError, match='/joint_states is sensor_msgs/msg/JointState, needed is sensor_msgs/msg/Image'):
        build(path, embodiment=robot(views={'front': robot().views['front'].__class__(topic=JOINTS)}))
    with pytest.raises(DataError, match='no topic /other'):
        build(path, embodiment=robot(views={'front': robot().views['front']}, topics=Topics(joint_states='/other')))


def test_a_camera_that_is_too_slow_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / 'bag', seconds=4.0, camera=5.0)
    with pytest.raises(DataError, match=r'needs 10\.0 .*longer --step-period'):
        build(path)
    (episode,), _ = build(path, BuildOptions(step_period=0.2, quality=0))
    assert episode.info['repeated_pictures'] == 0


def test_messages_without_stamps_are_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / 'bag', edit=lambda topic, k, t: 0 if topic == FRONT else t)
    with pytest.raises(DataError, match='no message of front can be used .*without a header stamp'):
        build(path)


def test_depth_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / 'bag', skip=(FRONT,), after=lambda bag: bag.write(
        FRONT, 'sensor_msgs/msg/Image', T0, bag.make(
            'sensor_msgs/msg/Image', header=bag.header(T0), height=2, width=2, step=4, encoding='16UC1',
            data=np.zeros(8, np.uint8))))  # fmt: skip
    with pytest.raises(DataError, match='16UC1.*depth'):
        build(path)


def test_too_short_is_said(tmp_path: Path) -> None:
    episodes, report = build(write(tmp_path / 'bag', seconds=0.4))
    assert episodes == [] and any('needed are 8' in note for note in report.notes)


def test_messages_of_the_double_arrive_in_order() -> None:
    stamps = [t for t, _, _ in messages()]
    assert stamps == sorted(stamps) and len(stamps) > 250
