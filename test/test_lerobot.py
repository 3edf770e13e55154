"""Export to LeRobot: files of the documented form, and an export comes back as it was."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction
from pathlib import Path

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
    rows,
    same_pictures,
)

from instructvla_ros.cli import main
from instructvla_ros.data import lerobot as form
from instructvla_ros.data.episodes import Dataset, Episode, Frames, Meta, Writer
from instructvla_ros.data.lerobot_export import ExportOptions, export_dataset, rate
from instructvla_ros.data.lerobot_import import ImportOptions, import_dataset
from instructvla_ros.errors import DataError, SetupError

pa = pytest.importorskip('pyarrow', reason='the extra lerobot is not installed')
pq = pytest.importorskip('pyarrow.parquet', reason='the extra lerobot is not installed')
av = pytest.importorskip('av', reason='the extra lerobot is not installed')


@pytest.fixture(scope='module')
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp('lerobot') / 'set')


@pytest.fixture(scope='module')
def exported(dataset: Dataset) -> Path:
    return make_export(dataset)


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


# -- the command line ------------------------------------------------------------------------------------------------


def test_there_and_back_on_the_command_line(dataset: Dataset, tmp_path: Path,
                                            capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    there, back = str(tmp_path / 'there'), str(tmp_path / 'back')
    assert main(['dataset', 'export', str(dataset.path), there, '--to', 'lerobot', '--json']) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts['episodes'], facts['frames'], facts['tasks']) == (3, 41, 2)
    (tmp_path / 'there' / form.OWN).unlink()
    told = ['--view', 'observation.images.base=third', '--gripper-range', '1', '0', '--episodes', '1:3']
    assert main(['dataset', 'import', there, back, '--from', 'lerobot', '--stride', '2', *told]) == 0
    text = capsys.readouterr().out
    assert '2 episodes, 15 frames taken, 0 left out' in text and 'position: observation.state[0:3]' in text
    found = Dataset.open(back)
    assert list(found.meta.views) == ['third'] and found.read(0).proprio[0, 7] == 0.0
    for words in (['--view', 'base'], ['--episodes', 'few'], ['--pose-from-joints']):
        assert main(['dataset', 'import', there, str(tmp_path / 'none'), '--from', 'lerobot', *words]) == 2
        assert words[0] in capsys.readouterr().err


def test_pose_by_the_robot_of_the_configuration(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip('pinocchio', reason='kinematics need pinocchio')
    theirs = as_of_others(exported, tmp_path / 'theirs')
    words = [str(theirs), str(tmp_path / 'back'), '--from', 'lerobot', '--embodiment', 'franka.yaml']
    assert main(['dataset', 'import', *words, '--pose-from-joints']) == 0
    found = Dataset.open(tmp_path / 'back')
    assert found.meta.frame_id == 'fr3_link0' and found.meta.embodiment == 'franka.yaml'
    assert np.linalg.norm(found.read(0).proprio[:, :3], axis=1).max() < 1.6, 'inside the reach of the arm'


def test_annotations_on_the_command_line(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {'alt_instruction': {'Caption': 'A red cube.', 'QA': [], 'CR': [], 'CC': []}}
    (tmp_path / 'notes.json').write_text(json.dumps({'kitchen': {'bag-0.a': entry, 'bag-1.a': entry, 'other': entry}}))
    out = str(tmp_path / 'with')
    words = [str(dataset.path), out, '--file', str(tmp_path / 'notes.json'), '--json']
    assert main(['dataset', 'annotate', *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts['episodes'], facts['texts'], facts['primitives'], facts['unused']) == (3, 2, 2, 1)
    found = Dataset.open(out)
    for number, length in enumerate(LENGTHS):
        assert len(found.read(number).annotations['features']['move_primitive']) == length
    assert found.read(1).annotations['features']['move_primitive'] == ['stop'] * 7, 'its own labels are kept'
    assert found.read(0).annotations['alt_instruction'] == entry['alt_instruction']
    assert 'alt_instruction' not in found.read(2).annotations
    file = tmp_path / 'out.json'
    assert main(['dataset', 'export', out, str(file), '--to', 'vla-it']) == 0
    assert set(json.loads(file.read_text())['kitchen']) == {'bag-0.a', 'bag-1.a', 'bag-2.a'}
