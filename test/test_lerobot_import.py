"""LeRobot datasets of others: columns by name or told, and what is missing or damaged is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot_world import (
    LENGTHS,
    SIZE,
    TASKS,
    as_of_others,
    episode,
    make_dataset,
    make_export,
    motion,
    picture,
    rows,
    same_pictures,
)
from scipy.spatial.transform import Rotation

from instructvla_ros.data import lerobot as form
from instructvla_ros.data.episodes import Dataset, Frames
from instructvla_ros.data.lerobot_columns import Columns, guess
from instructvla_ros.data.lerobot_export import ExportOptions, export_dataset
from instructvla_ros.data.lerobot_import import ImportOptions, import_dataset
from instructvla_ros.errors import DataError
from instructvla_ros.geometry import delta_between, pose_from_xyz_rpy

pa = pytest.importorskip('pyarrow', reason='the extra lerobot is not installed')
pq = pytest.importorskip('pyarrow.parquet', reason='the extra lerobot is not installed')
pytest.importorskip('av', reason='the extra lerobot is not installed')


@pytest.fixture(scope='module')
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp('lerobot') / 'set')


@pytest.fixture(scope='module')
def exported(dataset: Dataset) -> Path:
    return make_export(dataset)


def test_as_a_dataset_of_others(exported: Path, dataset: Dataset, tmp_path: Path) -> None:
    """Without our file everything comes from names: the same motion, actions made anew from the poses."""
    done = import_dataset(as_of_others(exported, tmp_path / 'theirs'), tmp_path / 'back')
    c = done.columns
    assert c is not None and c.position == 'observation.state[0:3]' and c.rotation == 'observation.state[3:6]'
    assert (c.rotation_kind, c.gripper, c.command) == ('rpy', 'observation.state[7]', 'action[6]')
    assert (c.joints, c.velocities) == ('observation.joint_position[0:7]', 'observation.joint_velocity')
    assert c.views == {'observation.images.base': 'base', 'observation.images.wrist': 'wrist'}
    assert done.dataset.meta.views == dataset.meta.views and done.dataset.meta.step_period == pytest.approx(0.1)
    for number, (before, after) in enumerate(zip(dataset, done.dataset, strict=True)):
        assert after.id == f'theirs-{number:06d}' and after.instruction == TASKS[number] and after.success is None
        np.testing.assert_allclose(after.proprio, before.proprio, atol=1e-5)
        np.testing.assert_allclose(after.actions, before.actions, atol=1e-5)
        np.testing.assert_allclose(after.q, before.q, atol=1e-5)
        np.testing.assert_allclose(after.stamps_ns, np.arange(len(after)) * 1e8, atol=100)
        same_pictures(after.views['wrist'], number, 1)


def test_every_third_frame(exported: Path, dataset: Dataset, tmp_path: Path) -> None:
    theirs = as_of_others(exported, tmp_path / 'theirs')
    done = import_dataset(theirs, tmp_path / 'back', ImportOptions(stride=3, rotation='rotvec', delta_frame='tool'))
    assert [e.frames for e in done.dataset.index] == [5, 3, 7]
    assert done.dataset.meta.step_period == pytest.approx(0.3)
    after, before = done.dataset.read(2), dataset.read(2)
    np.testing.assert_allclose(after.proprio, before.proprio[::3], atol=1e-5)
    same_pictures(after.views['base'], 2, 0, step=3)
    a, b = (pose_from_xyz_rpy(before.proprio[k, :6]) for k in (3, 6))
    np.testing.assert_allclose(after.actions[1, :6], delta_between(a, b, 'tool', 'rotvec'), atol=1e-5)
    assert not after.actions[-1, :6].any()


def test_only_joints(exported: Path, tmp_path: Path) -> None:
    """Many datasets have joints and no pose: the pose comes from a kinematic model, or the message says so."""

    def change(info: dict[str, Any]) -> None:
        info['features']['observation.state']['names'] = [f'motor_{k}' for k in range(8)]

    theirs = as_of_others(exported, tmp_path / 'theirs', change)
    with pytest.raises(DataError, match=r'embodiment[\s\S]*observation\.joint_position \(float32, 7\)'):
        import_dataset(theirs, tmp_path / 'back')

    def forward(q: np.ndarray) -> np.ndarray:
        return pose_from_xyz_rpy([*q[:3], *(0.1 * q[3:6])])

    done = import_dataset(theirs, tmp_path / 'back', ImportOptions(forward=forward, embodiment='arm.yaml'))
    found = done.dataset.read(1)
    np.testing.assert_allclose(found.proprio[:, :3], found.q[:, :3], atol=1e-9)
    # the openness comes from the action, as nothing else has that name now
    np.testing.assert_allclose(found.proprio[:, 7], episode(1).actions[:, 6], atol=1e-6)
    text = ' / '.join(done.notes)
    assert 'computed from the joints' in text and 'no measured gripper' in text
    assert done.dataset.meta.embodiment == 'arm.yaml'


def test_pose_from_joints_on_request(exported: Path, tmp_path: Path) -> None:
    def forward(q: np.ndarray) -> np.ndarray:
        return pose_from_xyz_rpy([*q[:3], 0.1, 0.2, 0.3])

    options = ImportOptions(forward=forward, pose_from_joints=True)
    found = import_dataset(as_of_others(exported, tmp_path / 'theirs'), tmp_path / 'back', options).dataset.read(0)
    np.testing.assert_allclose(found.proprio[:, :3], found.q[:, :3], atol=1e-9)
    np.testing.assert_allclose(found.proprio[:, 7], motion(13, 0)[:, 7], atol=1e-6)


def test_without_pose_and_joints(exported: Path, tmp_path: Path) -> None:
    def change(info: dict[str, Any]) -> None:
        for key in ('observation.joint_position', 'observation.joint_velocity', 'observation.state'):
            info['features'][key]['names'] = None
        info['features']['observation.q'] = info['features'].pop('observation.joint_position')

    theirs = as_of_others(exported, tmp_path / 'theirs', change)
    with pytest.raises(DataError, match=r'position[\s\S]*observation\.state \(float32, 8\)'):
        import_dataset(theirs, tmp_path / 'back', ImportOptions(forward=lambda q: np.eye(4)))
    told = Columns(position='observation.state[0:3]', rotation='observation.state[3:6]', gripper='observation.state[7]',
                   views={'observation.images.wrist': 'hand'})  # fmt: skip
    done = import_dataset(theirs, tmp_path / 'back', ImportOptions(columns=told))
    found = done.dataset.read(0)
    assert found.q.shape == (13, 0) and list(found.views) == ['hand']
    assert any('no joint positions' in note for note in done.notes)
    np.testing.assert_allclose(found.proprio, motion(13, 0), atol=1e-5)


def test_gripper_in_other_units(exported: Path, tmp_path: Path) -> None:
    theirs = as_of_others(exported, tmp_path / 'theirs')
    closed_is_one = ImportOptions(columns=Columns(closed=1.0, opened=0.0))
    found = import_dataset(theirs, tmp_path / 'a', closed_is_one).dataset.read(0)
    np.testing.assert_allclose(found.proprio[:, 7], np.linspace(0, 1, 13), atol=1e-6)
    with pytest.raises(DataError, match='runs from 0 to 1, not between closed 0 and open 0.08'):
        import_dataset(theirs, tmp_path / 'b', ImportOptions(columns=Columns(opened=0.08)))


@pytest.mark.parametrize(
    ('names', 'expected'),
    [
        (['x', 'y', 'z', 'rx', 'ry', 'rz', 'rw', 'gripper'], ('s[0:3]', 's[3:7]', 'quat', 's[7]', '')),
        (['ee.x', 'ee.y', 'ee.z', 'ee.wx', 'ee.wy', 'ee.wz', 'ee.gripper_pos'],
         ('s[0:3]', 's[3:6]', 'rotvec', 's[6]', '')),
        (['ee_x.pos', 'ee_y.pos', 'ee_z.pos', 'ee_rx.pos', 'ee_ry.pos', 'ee_rz.pos', 'gripper.pos'],
         ('s[0:3]', 's[3:6]', 'rotvec', 's[6]', '')),
        ([*(f'joint_{k}.pos' for k in range(1, 8)), 'gripper_state_norm', *(f'ee_pose.{a}' for a in ('x', 'y', 'z')),
          *(f'ee_pose.{a}' for a in ('qx', 'qy', 'qz', 'qw'))], ('s[8:11]', 's[11:15]', 'quat', 's[7]', 's[0:7]')),
        (['ee_position_x', 'ee_position_y', 'ee_position_z', 'roll', 'pitch', 'yaw'],
         ('s[0:3]', 's[3:6]', 'rpy', '', '')),
        ([*(f'panda_joint{k}' for k in range(1, 8)), 'panda_finger_joint1', 'panda_finger_joint2'],
         ('', '', 'rpy', '', 's[0:7]')),
        ([f'joint_{k}.torque' for k in range(1, 8)], ('', '', 'rpy', '', '')),
        (['delta_ee_pose.x', 'delta_ee_pose.y', 'delta_ee_pose.z', 'roll', 'pitch', 'yaw'], ('', '', 'rpy', '', '')),
        (['cube_x', 'cube_y', 'cube_z', 'roll', 'pitch', 'yaw'], ('', '', 'rpy', '', '')),
        (['shoulder_pan.pos', 'shoulder_lift.pos', 'elbow_flex.pos', 'wrist_flex.pos', 'wrist_roll.pos', 'gripper.pos'],
         ('', '', 'rpy', 's[5]', '')),
    ],
)  # fmt: skip
def test_names_seen_in_public_datasets(names: list[str], expected: tuple[str, ...]) -> None:
    key = 'observation.state'
    features = {key: {'dtype': 'float32', 'shape': [len(names)], 'names': {'axes': names}}}
    c, _ = guess(form.Source(Path('x'), 'v3.0', 10.0, '', features, ()))
    long = tuple(v.replace('s[', f'{key}[') for v in expected)
    assert (c.position, c.rotation, c.rotation_kind, c.gripper, c.joints) == long


def test_the_form_of_droid() -> None:
    def numbers(n: int) -> dict[str, Any]:
        return {'dtype': 'float32', 'shape': [n], 'names': None}

    size = {'shape': [180, 320, 3], 'names': ['height', 'width', 'channels']}
    features = {
        'is_episode_successful': {'dtype': 'bool', 'shape': [1], 'names': None},
        'observation.state.cartesian_position': numbers(6), 'observation.state.joint_position': numbers(7),
        'observation.state.gripper_position': numbers(1), 'action.gripper_position': numbers(1),
        'observation.images.wrist_left': {'dtype': 'video', **size},
        'observation.images.depth': {'dtype': 'video', **size, 'info': {'is_depth_map': True}},
    }  # fmt: skip
    source = form.Source(Path('x'), 'v3.0', 15.0, 'Franka', features, ())
    c, notes = guess(source)
    assert c.position == 'observation.state.cartesian_position[0:3]' and c.rotation_kind == 'rpy'
    assert c.joints == 'observation.state.joint_position[0:7]' and c.gripper == 'observation.state.gripper_position'
    assert c.command == 'action.gripper_position' and c.success == 'is_episode_successful'
    assert c.views == {'observation.images.wrist_left': 'wrist_left'}
    assert any('0 closed .. 1 open' in n for n in notes)


def test_version_2_1(exported: Path, tmp_path: Path) -> None:
    """One file per episode, JSON lines in meta/, pictures inside the table."""
    old = tmp_path / 'old'
    (old / 'meta').mkdir(parents=True)
    info = json.loads((exported / form.INFO).read_text())
    features = {k: f for k, f in info['features'].items() if f['dtype'] != 'video'}
    features['observation.images.base'] = {
        'dtype': 'image',
        'shape': [3, 48, 64],
        'names': ['channels', 'height', 'width'],
    }
    info |= {'codebase_version': 'v2.1', 'features': features, 'video_path': None,
             'data_path': 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet'}  # fmt: skip
    (old / form.INFO).write_text(json.dumps(info))
    lines = [{'episode_index': e, 'tasks': [TASKS[e]], 'length': t} for e, t in enumerate(LENGTHS)]
    (old / 'meta/episodes.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    table = rows(exported / 'data/chunk-000/file-000.parquet')
    for e, t in enumerate(LENGTHS):
        part = table.slice(sum(LENGTHS[:e]), t)
        blobs = Frames.encode([picture(e, k) for k in range(t)], quality=0)
        cells = [{'bytes': blobs.encoded(k), 'path': f'{k}.png'} for k in range(t)]
        part = part.append_column('observation.images.base', pa.array(cells))
        file = old / f'data/chunk-000/episode_{e:06d}.parquet'
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(part, file)
    done = import_dataset(old, tmp_path / 'back')
    assert done.episodes == 3 and done.dataset.meta.views == {'base': SIZE}
    np.testing.assert_array_equal(done.dataset.read(2).views['base'][5], picture(2, 5))
    np.testing.assert_allclose(done.dataset.read(2).proprio, motion(21, 2), atol=1e-5)


# -- bad input -------------------------------------------------------------------------------------------------------


def test_one_damaged_episode_does_not_stop_the_others(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / 'there'
    export_dataset(dataset, path, ExportOptions(video_mb=0, data_mb=0))
    (path / 'videos/observation.images.wrist/chunk-000/file-001.mp4').write_bytes(b'no video')
    (path / 'data/chunk-000/file-002.parquet').unlink()
    done = import_dataset(path, tmp_path / 'back')
    assert [e.id for e in done.dataset.index] == ['bag-0.a'] and set(done.failed) == {1, 2}
    assert 'file-001.mp4' in done.failed[1] and 'file-002.parquet is missing' in done.failed[2]
    (path / 'data/chunk-000/file-000.parquet').write_bytes(b'PAR1')
    with pytest.raises(DataError, match='no episode of .* can be read; the first: .*file-000.parquet'):
        import_dataset(path, tmp_path / 'none')


def test_a_video_that_ends_early_is_named(exported: Path, tmp_path: Path) -> None:
    theirs = as_of_others(exported, tmp_path / 'theirs')
    file = theirs / 'meta/episodes/chunk-000/file-000.parquet'
    table = rows(file).to_pylist()
    table[2]['videos/observation.images.base/from_timestamp'] = 3.0
    pq.write_table(pa.Table.from_pylist(table), file)
    done = import_dataset(theirs, tmp_path / 'back')
    assert set(done.failed) == {2} and 'no frame at' in done.failed[2]


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'codebase_version': 'v1.6'}, 'v1.6'),
        ({'fps': 0}, 'fps'),
        ({'fps': 'fast'}, 'damaged'),
        ({'features': {'a': {}}}, "'a'"),
        ({'data_path': '../../{chunk_index}{file_index}'}, 'leaves the dataset'),
        ({'video_path': '/etc/{video_key}'}, 'leaves the dataset'),
        ({'data_path': '{nothing}'}, 'nothing'),
    ],
)
def test_bad_info_is_named(exported: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    theirs = as_of_others(exported, tmp_path / 'theirs', lambda info: info.update(change))
    with pytest.raises(DataError, match=words):
        import_dataset(theirs, tmp_path / 'back')


def test_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='not a LeRobot dataset'):
        import_dataset(tmp_path, tmp_path / 'back')


def test_wrong_selectors_are_named(exported: Path, tmp_path: Path) -> None:
    theirs = as_of_others(exported, tmp_path / 'theirs')
    for told, words in (
        ({'position': 'observation.stat[0:3]'}, "Did you mean 'observation.state'"),
        ({'position': 'observation.state[0:12]'}, 'has 8 numbers'),
        ({'position': 'observation.state[0:2]'}, '2 numbers, 3 are needed'),
        ({'position': 'observation.state[a]'}, r'name\[0:3\]'),
        ({'views': {'observation.images.bas': 'b'}}, 'no camera'),
        ({'views': {'observation.images.base': 'b', 'observation.images.wrist': 'b'}}, 'same view'),
    ):
        with pytest.raises(DataError, match=words):
            import_dataset(theirs, tmp_path / 'back', ImportOptions(columns=Columns(**told)))


def test_rotation_vectors_and_quaternions(exported: Path, tmp_path: Path) -> None:
    """The same motion told three ways gives the same proprioception."""
    table = rows(exported / 'data/chunk-000/file-000.parquet')
    state = np.array(table['observation.state'].to_pylist())
    turn = Rotation.from_euler('xyz', state[:, 3:6])
    for kind, values in (('rotvec', turn.as_rotvec()), ('quat', turn.as_quat())):
        width = values.shape[1]

        def change(info: dict[str, Any], width: int = width) -> None:
            info['features']['observation.turn'] = {'dtype': 'float64', 'shape': [width], 'names': None}

        theirs = as_of_others(exported, tmp_path / kind, change)
        pq.write_table(table.append_column('observation.turn', pa.array(values.tolist())),
                       theirs / 'data/chunk-000/file-000.parquet')  # fmt: skip
        told = Columns(position='observation.state[0:3]', rotation='observation.turn', rotation_kind=kind)
        found = import_dataset(theirs, tmp_path / f'{kind}-back', ImportOptions(columns=told)).dataset.read(1)
        np.testing.assert_allclose(found.proprio, motion(7, 1), atol=1e-5)
