"""Crop, flip and turn: the same pixels and the same calibration wherever a picture reaches the policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bag_doubles import FRONT, NAMES, WRIST, forward, robot, write

from instructvla_ros import camera_view, config, resources
from instructvla_ros.annotate import project
from instructvla_ros.control.frames import LinkFrames
from instructvla_ros.data.align import BuildOptions
from instructvla_ros.data.bag_values import IMAGE, JOINT_STATE
from instructvla_ros.data.bags import open_bag
from instructvla_ros.data.build import Report, build_episodes
from instructvla_ros.data.collect import Job, collect
from instructvla_ros.data.episodes import Dataset
from instructvla_ros.data.rebag import write_bag
from instructvla_ros.datatypes import Observation, RobotState
from instructvla_ros.errors import ConfigError, DataError, ObservationError, SetupError
from instructvla_ros.evaluation.replay_bag import BagRecording
from instructvla_ros.evaluation.replay_camera import Cameras
from instructvla_ros.evaluation.replay_live import LiveTrace
from instructvla_ros.evaluation.replay_source import CameraEvent, EpisodeRecording, FrameEvent
from instructvla_ros.geometry import pose_from_xyz_rpy
from instructvla_ros.observing import Synchronizer
from instructvla_ros.settings import Embodiment, Mount, PolicySettings, View

WIDTH, HEIGHT = 64, 48
K = np.array([[55.0, 0.0, 31.0], [0.0, 57.0, 22.0], [0.0, 0.0, 1.0]])
CROP = (10, 4, 40, 30)
EVERY = [
    View(crop=crop, flip=flip, rotate=rotate)
    for crop in ((), CROP)
    for flip in ('none', 'horizontal', 'vertical', 'both')
    for rotate in (0, 90, 180, 270)
]


@pytest.mark.parametrize('view', EVERY, ids=lambda v: f'{"crop" if v.crop else "all"}-{v.flip}-{v.rotate}')
def test_a_point_is_found_where_its_pixel_went(view: View) -> None:
    camera = pose_from_xyz_rpy([0.1, -0.2, 0.4, 0.1, 0.2, -0.1])
    for pixel in ((12, 9), (48, 33), (30, 20)):
        point = camera[:3, :3] @ (np.linalg.inv(K) @ [*pixel, 1.0] * 0.7) + camera[:3, 3]
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        image[pixel[1], pixel[0]] = 255
        seen = camera_view.prepare(view, image)
        assert (seen.shape[1], seen.shape[0]) == camera_view.size(view, WIDTH, HEIGHT)
        there = np.argwhere(seen[..., 0] == 255)
        assert there.shape == (1, 2)
        drawn = project(point[None], camera_view.intrinsics(view, K, WIDTH, HEIGHT), camera)[0]
        np.testing.assert_allclose(drawn, there[0][::-1], atol=1e-9)


def test_each_step_by_hand() -> None:
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1).repeat(3, axis=2)

    def seen(**changes: object) -> list[list[int]]:
        return camera_view.prepare(View(**changes), image)[..., 0].tolist()  # type: ignore[arg-type]

    assert seen() == [[0, 1, 2], [3, 4, 5]]
    assert seen(crop=(1, 0, 2, 2)) == [[1, 2], [4, 5]]
    assert seen(flip='horizontal') == [[2, 1, 0], [5, 4, 3]]
    assert seen(flip='vertical') == [[3, 4, 5], [0, 1, 2]]
    assert seen(rotate=90) == [[3, 0], [4, 1], [5, 2]], 'clockwise: the left column becomes the top row, bottom first'
    assert seen(rotate=270) == [[2, 5], [1, 4], [0, 3]]
    assert seen(crop=(1, 0, 2, 2), flip='horizontal', rotate=90) == [[5, 2], [4, 1]], 'crop, flip, then turn'


def test_a_crop_shifts_the_centre_a_flip_mirrors_it_and_a_turn_swaps_the_axes() -> None:
    k = camera_view.intrinsics(View(crop=CROP), K, WIDTH, HEIGHT)
    np.testing.assert_allclose(k, [[55.0, 0.0, 21.0], [0.0, 57.0, 18.0], [0.0, 0.0, 1.0]])
    k = camera_view.intrinsics(View(flip='horizontal'), K, WIDTH, HEIGHT)
    np.testing.assert_allclose(k, [[-55.0, 0.0, 32.0], [0.0, 57.0, 22.0], [0.0, 0.0, 1.0]])
    k = camera_view.intrinsics(View(rotate=90), K, WIDTH, HEIGHT)
    np.testing.assert_allclose(k, [[0.0, -57.0, 25.0], [55.0, 0.0, 31.0], [0.0, 0.0, 1.0]])


def test_a_plain_view_copies_nothing_and_others_leave_the_picture_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    before = image.copy()
    assert camera_view.prepare(View(), image) is image
    out = camera_view.prepare(View(crop=CROP, flip='both', rotate=90), image)
    out[:] = 0
    assert out.flags.c_contiguous and np.array_equal(image, before)


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ({'crop': [1, 2, 3]}, r'views.wrist: crop has to be empty or \[x, y, width, height\]'),
        ({'crop': [0, 0, 0, 5]}, 'at least one pixel'),
        ({'crop': [-1, 0, 4, 5]}, 'below the smallest allowed value 0 px'),
        ({'crop': 'middle'}, 'expected a list'),
        ({'flip': 'left'}, "'left' is not allowed"),
        ({'rotate': 45}, 'rotate: 45 is not allowed; allowed are 0, 90, 180, 270'),
        ({'mount': {'link': 'hand', 'rpy': [0.0, 0.0, 90.0]}}, 'above the largest allowed value 6.3 rad'),
    ],
)
def test_what_is_not_allowed_is_said(given: dict[str, object], said: str) -> None:
    data = config.to_dict(config.load(Embodiment, resources.config_file('franka.yaml')))
    data['views']['wrist'].update(given)
    with pytest.raises(ConfigError, match=said):
        config.from_dict(Embodiment, data)


def test_a_crop_outside_the_picture_is_said_with_numbers() -> None:
    with pytest.raises(ObservationError, match=r'reaches to \(50, 34\), the picture has 49 x 34 pixels'):
        camera_view.prepare(View(topic='/c', crop=CROP), np.zeros((34, 49, 3), np.uint8))


def test_where_a_camera_is_may_come_from_the_configuration() -> None:
    described = config.load(Embodiment, resources.config_file('franka.yaml'))
    urdf = resources.robot_description(described.name)
    plain = LinkFrames(urdf, described.base_frame)
    mount = Mount('fr3_hand', (0.05, 0.0, 0.03), (0.1, 0.2, 1.5))
    name = described.views['wrist'].frame_id
    views = {'a': View(frame_id='side_optical', mount=replace(mount, link='fr3_link0')),
             'wrist': replace(described.views['wrist'], mount=mount)}  # fmt: skip
    frames = LinkFrames(urdf, described.base_frame, camera_view.mounts(views))
    joints = dict(zip(described.arm_joints, np.array(described.home) + 0.2, strict=True))
    plain.set_joints(joints)
    frames.set_joints(joints)
    expected = plain.pose('fr3_hand') @ pose_from_xyz_rpy([0.05, 0.0, 0.03, 0.1, 0.2, 1.5])
    np.testing.assert_allclose(frames.pose(name), expected, atol=1e-12)
    np.testing.assert_allclose(frames.poses()[name], expected, atol=1e-12)
    assert np.abs(plain.pose(name) - expected).max() > 0.01, 'the description says something else'
    assert frames.is_fixed('side_optical') and not frames.is_fixed(name)
    assert set(frames.links) == {*plain.links, 'side_optical'}
    with pytest.raises(SetupError, match='no link .fr3_hnd.'):
        LinkFrames(urdf, described.base_frame, {'c': ('fr3_hnd', np.eye(4))})
    with pytest.raises(ConfigError, match='views.b.frame_id is used by another view'):
        camera_view.mounts({'a': views['a'], 'b': views['a']})
    with pytest.raises(ConfigError, match='views.b.frame_id is empty'):
        camera_view.mounts({'b': View(mount=mount)})


# -- one picture, every way ------------------------------------------------------------------------------------------

SEEN = {
    'front': View(topic=FRONT, crop=(3, 2, 20, 16), flip='horizontal', rotate=90),
    'wrist': View(topic=WRIST, crop=(0, 5, 32, 12), flip='vertical', rotate=270),
}


def as_live(bag: Path, embodiment: Embodiment) -> dict[int, Observation]:
    """Observations of the live synchroniser fed with what is in the bag, by stamp."""
    sync = Synchronizer(list(embodiment.views), forward, 'base', PolicySettings())
    by_topic = {view.topic: (name, view) for name, view in embodiment.views.items()}
    out: dict[int, Observation] = {}
    with open_bag(bag) as source:
        for record in source.messages():
            if source.topics[record.topic].type == IMAGE:
                name, view = by_topic[record.topic]
                sync.feed(name, record.stamp_ns, camera_view.prepare(view, record.value.rgb()))
            elif source.topics[record.topic].type == JOINT_STATE:
                values = dict(zip(record.value.names, record.value.position, strict=True))
                q = np.array([values[n] for n in NAMES])
                openness = (values['f1'] + values['f2']) / 0.08
                sync.feed_state(RobotState(record.stamp_ns, q, np.full(7, 0.1), openness))
            seen = sync.latest(record.stamp_ns)
            if isinstance(seen, Observation):
                out[seen.stamp_ns] = seen
    return out


def test_the_live_way_the_dataset_and_the_replay_give_the_same_observations(tmp_path: Path) -> None:
    embodiment = robot(views=SEEN)
    bag = write(tmp_path / 'bag')
    live = as_live(bag, embodiment)
    options = BuildOptions(quality=0, min_frames=3)
    with open_bag(bag) as source:
        built = list(build_episodes(source, embodiment, forward, options, prefix='e', report=Report('x'),
                                    instruction='go'))  # fmt: skip
    (episode, meta), = built
    assert meta.views == {'front': (16, 20), 'wrist': (12, 32)}
    found = 0
    for k, stamp in enumerate(episode.stamps_ns.tolist()):
        if stamp not in live:
            continue
        found += 1
        for name in SEEN:
            np.testing.assert_array_equal(episode.views[name][k], live[stamp].views[name])
        np.testing.assert_allclose(episode.proprio[k], live[stamp].proprio, atol=1e-9)
    assert found >= len(episode) - 2
    with BagRecording(bag, embodiment) as recording:
        pictures = {(e.view, e.stamp_ns): e for e in recording.events() if isinstance(e, FrameEvent)}
        for observation in live.values():
            for name, stamp in observation.view_stamps_ns.items():
                event = pictures[name, stamp]
                np.testing.assert_array_equal(event.seen(), observation.views[name])
                assert event.decode().shape == (24, 32, 3), 'what is played into a graph is the picture of the camera'
        assert LiveTrace(recording, forward)
    replayed = EpisodeRecording(episode, meta, embodiment)
    frames = [e for e in replayed.events() if isinstance(e, FrameEvent) and e.view == 'front']
    np.testing.assert_array_equal(frames[3].seen(), episode.views['front'][3])
    with pytest.raises(ConfigError, match='nodes would change front, wrist again'):
        LiveTrace(replayed, forward)
    with pytest.raises(DataError, match='front, wrist would be cropped'):
        write_bag(episode, tmp_path / 'again', embodiment)


def test_recorded_jpegs_are_stored_as_they_are_seen(tmp_path: Path) -> None:
    bag = write(tmp_path / 'bag', jpeg=True, seconds=1.0)
    built = []
    for views in (SEEN, {n: View(topic=v.topic) for n, v in SEEN.items()}):
        with open_bag(bag) as source:
            built += build_episodes(source, robot(views=views), forward, BuildOptions(quality=0, min_frames=3),
                                    prefix='e', report=Report('x'), instruction='go')  # fmt: skip
    (seen, _), (plain, _) = built
    for name, view in SEEN.items():
        expected = camera_view.prepare(view, plain.views[name][2])
        np.testing.assert_array_equal(seen.views[name][2], expected)
    assert plain.views['front'].encoded(2)[:2] == b'\xff\xd8', 'untouched pictures keep their bytes'


def test_one_dataset_is_seen_one_way(tmp_path: Path) -> None:
    bags = [write(tmp_path / name, seconds=1.0) for name in ('a', 'b', 'c')]

    def job(views: dict[str, View]) -> Job:
        return Job(BuildOptions(min_frames=3), robot(views=views), robot(), lambda _: forward, instruction='go')

    other = {**SEEN, 'front': replace(SEEN['front'], crop=(4, 2, 20, 16))}  # the same size: nobody would notice
    collect(bags[:1], tmp_path / 'out', job(SEEN))
    with pytest.raises(DataError, match=r"b is seen as \{'front': \{'crop': \[4, 2, 20, 16\].*crop': \[3, 2, 20, 16\]"):
        collect(bags[1:2], tmp_path / 'out', job(other))
    collect(bags[1:], tmp_path / 'out', job(SEEN))
    assert len(Dataset.open(tmp_path / 'out').index) == 3


def test_a_picture_too_small_for_its_crop_is_dropped_by_the_reader_with_numbers(tmp_path: Path) -> None:
    bag = write(tmp_path / 'bag', seconds=1.0)
    views = {**SEEN, 'front': View(topic=FRONT, crop=(0, 0, 40, 10))}
    with open_bag(bag) as source, pytest.raises(DataError, match='no message of front can be used'):
        list(build_episodes(source, robot(views=views), forward, BuildOptions(), prefix='e', report=Report('x')))


def test_the_calibration_of_a_replay_is_that_of_what_is_seen() -> None:
    embodiment = config.load(Embodiment, resources.config_file('franka.yaml'))
    view = View(crop=CROP, flip='horizontal', rotate=90, mount=Mount('fr3_link0', (0.5, 0.1, 0.9), (3.0, 0.0, 0.0)))
    cameras = Cameras(replace(embodiment, views={'a': view}))
    cameras.take(CameraEvent(1, 'a', K, (WIDTH, HEIGHT)))
    expected = camera_view.intrinsics(view, K, WIDTH, HEIGHT)
    np.testing.assert_allclose(cameras.intrinsics('a', 30, 40), expected)
    np.testing.assert_allclose(cameras.intrinsics('a', 60, 80), np.diag([2.0, 2.0, 1.0]) @ expected)
    np.testing.assert_allclose(cameras.pose('a'), pose_from_xyz_rpy([0.5, 0.1, 0.9, 3.0, 0.0, 0.0]))
