"""LeRobot datasets: files of the documented form, an export comes back, those of others go as far as they can."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from instructvla_ros.data import lerobot as form
from instructvla_ros.data.episodes import Dataset, Episode, Frames, Meta, Writer
from instructvla_ros.data.lerobot_columns import Columns, guess
from instructvla_ros.data.lerobot_export import ExportOptions, export_dataset, rate
from instructvla_ros.data.lerobot_import import ImportOptions, import_dataset
from instructvla_ros.errors import DataError, SetupError
from instructvla_ros.geometry import delta_between, pose_from_xyz_rpy

pa = pytest.importorskip('pyarrow', reason='the extra lerobot is not installed')
pq = pytest.importorskip('pyarrow.parquet', reason='the extra lerobot is not installed')
av = pytest.importorskip('av', reason='the extra lerobot is not installed')

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


@pytest.fixture(scope='module')
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp('lerobot') / 'set'
    with Writer(path, Meta('kitchen', 'franka.yaml', 0.1, {'base': SIZE, 'wrist': SIZE}, frame_id='fr3_link0')) as out:
        for number in range(3):
            out.add(episode(number))
    return Dataset.open(path)


@pytest.fixture(scope='module')
def exported(dataset: Dataset) -> Path:
    path = dataset.path.parent / 'exported'
    done = export_dataset(dataset, path)
    assert (done.episodes, done.frames, done.tasks, done.notes) == (3, sum(LENGTHS), 2, ())
    assert not list(path.parent.glob('.*'))
    return path


def rows(file: Path) -> Any:
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


# -- the files -------------------------------------------------------------------------------------------------------


def test_info(exported: Path) -> None:
    info = json.loads((exported / 'meta/info.json').read_text())
    assert info['codebase_version'] == 'v3.0' and info['fps'] == 10 and isinstance(info['fps'], int)
    assert (info['total_episodes'], info['total_frames'], info['total_tasks']) == (3, 41, 2)
    assert info['splits'] == {'train': '0:3'} and info['robot_type'] == 'franka.yaml'
    assert info['data_path'] == 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
    assert info['video_path'] == 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4'
    features = info['features']
    assert features['observation.state']['shape'] == [8] and len(features['observation.state']['names']) == 8
    assert features['action']['dtype'] == 'float32' and features['observation.joint_position']['shape'] == [7]
    camera = features['observation.images.wrist']
    assert camera['dtype'] == 'video' and camera['shape'] == [48, 64, 3] and camera['names'][0] == 'height'
    assert camera['info']['video.codec'] == 'h264' and camera['info']['video.pix_fmt'] == 'yuv420p'
    for key, dtype in (('timestamp', 'float32'), ('frame_index', 'int64'), ('episode_index', 'int64'),
                       ('index', 'int64'), ('task_index', 'int64')):  # fmt: skip
        assert features[key] == {'dtype': dtype, 'shape': [1], 'names': None}


def test_rows(exported: Path) -> None:
    file = pq.ParquetFile(exported / 'data/chunk-000/file-000.parquet')
    assert file.metadata.num_row_groups == 3, 'a row group per episode'
    table = file.read()
    info = json.loads((exported / 'meta/info.json').read_text())
    stored = {k: f for k, f in info['features'].items() if f['dtype'] != 'video'}
    assert set(table.column_names) == set(stored)
    for key, feature in stored.items():
        kind, width = table.schema.field(key).type, feature['shape'][0]
        if width > 1:
            assert pa.types.is_fixed_size_list(kind) and kind.list_size == width, key
            kind = kind.value_type
        assert str(kind) == {'float32': 'float', 'bool': 'bool', 'int64': 'int64'}[feature['dtype']], key
    assert table['index'].to_pylist() == list(range(41))
    assert table['episode_index'].to_pylist() == [e for e, t in enumerate(LENGTHS) for _ in range(t)]
    assert table['frame_index'].to_pylist() == [k for t in LENGTHS for k in range(t)]
    np.testing.assert_allclose(table['timestamp'].to_numpy(), np.array(table['frame_index']) / 10, atol=1e-6)
    assert table['task_index'].to_pylist() == [0] * 13 + [1] * 7 + [0] * 21


def test_tasks_have_the_sentences_as_pandas_index(exported: Path) -> None:
    table = rows(exported / 'meta/tasks.parquet')
    assert table.to_pydict() == {'task_index': [0, 1], 'task': list(TASKS[:2])}
    assert json.loads(table.schema.metadata[b'pandas'])['index_columns'] == ['task']
    pandas = pytest.importorskip('pandas', reason='not needed by the export')
    frame = pandas.read_parquet(exported / 'meta/tasks.parquet')
    assert frame.iloc[1].name == TASKS[1] and frame.loc[TASKS[0]].task_index == 0


def test_episode_table(exported: Path) -> None:
    table = rows(exported / 'meta/episodes/chunk-000/file-000.parquet')
    found = table.to_pylist()
    assert [r['length'] for r in found] == list(LENGTHS) and [r['tasks'] for r in found] == [[t] for t in TASKS]
    assert [(r['dataset_from_index'], r['dataset_to_index']) for r in found] == [(0, 13), (13, 20), (20, 41)]
    for key in ('observation.images.base', 'observation.images.wrist'):
        ends = [(r[f'videos/{key}/from_timestamp'], r[f'videos/{key}/to_timestamp']) for r in found]
        np.testing.assert_allclose(ends, [(0, 1.3), (1.3, 2.0), (2.0, 4.1)], atol=1e-9)
        assert all(r[f'videos/{key}/chunk_index'] == r[f'videos/{key}/file_index'] == 0 for r in found)
    for r in found:
        assert r['data/chunk_index'] == r['data/file_index'] == r['meta/episodes/chunk_index'] == 0
        assert r['meta/episodes/file_index'] == 0
        assert r['stats/action/count'] == [r['length']] and len(r['stats/action/q01']) == 7
        assert np.shape(r['stats/observation.images.base/mean']) == (3, 1, 1)
    assert table.schema.field('stats/action/count').type == pa.list_(pa.int64())


def test_statistics(exported: Path) -> None:
    stats = json.loads((exported / 'meta/stats.json').read_text())
    state = np.concatenate([motion(t, n) for n, t in enumerate(LENGTHS)])
    for name, value in (('mean', state.mean(0)), ('std', state.std(0)), ('min', state.min(0)), ('max', state.max(0))):
        np.testing.assert_allclose(stats['observation.state'][name], value, atol=1e-5)
    assert stats['observation.state']['count'] == [41]
    assert set(stats['action']) == {'min', 'max', 'mean', 'std', 'count', 'q01', 'q10', 'q50', 'q90', 'q99'}
    camera = stats['observation.images.wrist']
    assert np.shape(camera['mean']) == (3, 1, 1) and np.shape(camera['q99']) == (3, 1, 1)
    assert abs(camera['mean'][2][0][0] - 180 / 255) < 0.01 and camera['max'][0][0][0] <= 1.0


def test_video_times_are_exact_and_key_frames_near(exported: Path) -> None:
    with av.open(str(exported / 'videos/observation.images.base/chunk-000/file-000.mp4')) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert (stream.width, stream.height) == SIZE and stream.average_rate == 10
    # LeRobot refuses frames further than 1e-4 s from the time in the table
    np.testing.assert_allclose([float(f.pts * f.time_base) for f in frames], np.arange(41) / 10, atol=1e-5)
    keys = [k for k, f in enumerate(frames) if f.key_frame]
    assert max(np.diff(keys)) <= 2


# -- and back --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('codec', ['h264', 'av1'])
@pytest.mark.parametrize('small_files', [False, True])
def test_round_trip(dataset: Dataset, tmp_path: Path, codec: str, small_files: bool) -> None:
    limits = {'data_mb': 0.0, 'video_mb': 0.0} if small_files else {}
    path = tmp_path / 'there'
    export_dataset(dataset, path, ExportOptions(codec=codec, **limits))
    files = [len(list(path.glob(p))) for p in ('data/*/*.parquet', 'videos/*.base/*/*.mp4', 'videos/*.wrist/*/*.mp4')]
    assert files == ([3, 3, 3] if small_files else [1, 1, 1])
    done = import_dataset(path, tmp_path / 'back')
    assert (done.episodes, done.frames, done.failed, done.notes) == (3, 41, {}, ())
    assert done.dataset.meta == dataset.meta
    for number, (before, after) in enumerate(zip(dataset, done.dataset, strict=True)):
        for name in ('id', 'instruction', 'step_period', 'annotations', 'success', 'source', 'info'):
            assert getattr(after, name) == getattr(before, name), name
        np.testing.assert_array_equal(after.stamps_ns, before.stamps_ns)
        for name in ('proprio', 'q', 'dq', 'actions'):
            np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=1e-6)
        assert after.extras.keys() == before.extras.keys()
        np.testing.assert_allclose(after.extras['force'], before.extras['force'], atol=1e-6)
        assert after.extras['touch'].dtype == bool
        np.testing.assert_array_equal(after.extras['touch'], before.extras['touch'])
        same_pictures(after.views['base'], number, 0)
        same_pictures(after.views['wrist'], number, 1)


def test_an_interrupted_import_goes_on(exported: Path, tmp_path: Path) -> None:
    first = import_dataset(exported, tmp_path / 'back', ImportOptions(episodes=(1,)))
    assert [e.id for e in first.dataset.index] == ['bag-1.a']
    second = import_dataset(exported, tmp_path / 'back')
    assert second.episodes == 2 and {e.id for e in second.dataset.index} == {'bag-0.a', 'bag-1.a', 'bag-2.a'}


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


def test_export_refuses(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / 'taken').mkdir()
    (tmp_path / 'taken' / 'file').write_text('x')
    with pytest.raises(DataError, match='is there already'):
        export_dataset(dataset, tmp_path / 'taken')
    with pytest.raises(DataError, match='no episodes'):
        export_dataset(Dataset(dataset.path, dataset.meta, []), tmp_path / 'a')
    with pytest.raises(DataError, match='h264, av1'):
        export_dataset(dataset, tmp_path / 'a', ExportOptions(codec='gif'))
    with Writer(tmp_path / 'mixed', dataset.meta) as out:
        out.add(episode(0))
        out.add(dataclasses.replace(episode(1), q=np.zeros((7, 6)), dq=np.zeros((7, 6))))
    with pytest.raises(DataError, match='bag-1.a.*joint_position'):
        export_dataset(Dataset.open(tmp_path / 'mixed'), tmp_path / 'a')
    assert not (tmp_path / 'a').exists() and not list(tmp_path.glob('.*')), 'nothing half-done is left'


def test_odd_sizes_keep_every_pixel(tmp_path: Path) -> None:
    image = np.zeros((31, 45, 3), np.uint8)
    image[:, 40:] = (200, 30, 30)
    with Writer(tmp_path / 'set', Meta('odd', 'franka.yaml', 0.3, {'base': (45, 31)})) as out:
        zeros = np.zeros((4, 7))
        out.add(Episode('a', 'go', 0.3, np.arange(4), motion(4, 0), zeros, zeros, zeros,
                        {'base': Frames.encode([image] * 4)}))  # fmt: skip
    found = Dataset.open(tmp_path / 'set')
    export_dataset(found, tmp_path / 'there')
    info = json.loads((tmp_path / 'there/meta/info.json').read_text())
    assert info['fps'] == pytest.approx(10 / 3) and info['features']['observation.images.base']['shape'] == [31, 45, 3]
    back = import_dataset(tmp_path / 'there', tmp_path / 'back').dataset.read('a')
    assert np.abs(back.views['base'][3].astype(int) - image).mean() < 3
    with pytest.raises(DataError, match='even sizes'):
        export_dataset(found, tmp_path / 'av1', ExportOptions(codec='av1'))


def test_rates() -> None:
    assert (
        rate(1 / 15) == 15 and rate(0.0667) == 15 and rate(0.2) == 5 and rate(0.3) == Fraction(10, 3) and rate(2) == 0.5
    )
    assert math.isclose(float(rate(1 / 29.97)), 29.97, rel_tol=2e-3)


def test_missing_libraries_are_named(exported: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch,
                                     tmp_path: Path) -> None:  # fmt: skip
    for name in ('pyarrow', 'av'):
        with monkeypatch.context() as patch:
            patch.setitem(__import__('sys').modules, name, None)
            with pytest.raises(SetupError, match=rf'{name}.*instructvla_ros\[lerobot\]'):
                import_dataset(exported, tmp_path / 'back')
            with pytest.raises(SetupError, match=rf'{name}.*instructvla_ros\[lerobot\]'):
                export_dataset(dataset, tmp_path / 'there')


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
