"""`instructvla dataset`: from bags and real recordings to statistics and parts, and what it says when it cannot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bag_doubles import FRONT, T0, WRIST, write

from instructvla_ros import config, resources
from instructvla_ros.cli import main
from instructvla_ros.data.bags import open_bag
from instructvla_ros.data.collect import LEDGER, fingerprint
from instructvla_ros.data.episodes import Dataset, Episode, Frames, Meta, Writer
from instructvla_ros.data.merge import merge, split_ids
from instructvla_ros.data.rebag import write_bag
from instructvla_ros.data.statistics import FLOOR, compute
from instructvla_ros.errors import DataError
from instructvla_ros.settings import Embodiment, View

DROID = Path(__file__).resolve().parents[2] / 'shared' / 'realdata' / 'droid_franka'
FRANKA = config.load(Embodiment, resources.config_file('franka.yaml'))


def episode(name: str, frames: int = 30, seed: int = 0, **changes: Any) -> Episode:
    """A demonstration inside the workspace of the arm, with real kinematics left out."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (frames, 24, 32, 3), dtype=np.uint8)
    q = np.array(FRANKA.home) + 0.1 * np.sin(np.arange(frames) / 10.0)[:, None]
    actions = rng.normal(0.0, 0.01, (frames, 7))
    actions[:, 5] = 1e-6 * rng.normal(size=frames)  # a turn that is nothing but noise
    actions[:, 4] = 0.0
    actions[:, 6] = np.arange(frames) < frames // 2
    actions[-1, :6] = 0.0
    proprio = np.tile([0.4, 0.0, 0.3, 3.0, 0.0, 0.1, 0.0, 1.0], (frames, 1)) + 0.01 * np.arange(frames)[:, None]
    proprio[:, 6] = 0.0
    proprio[:, 7] = actions[:, 6]
    return replace(
        Episode(
            id=name, instruction=f'do {name}', step_period=0.1, stamps_ns=T0 + np.arange(frames) * 10**8, q=q,
            proprio=proprio, dq=np.zeros_like(q), actions=actions,
            views={view: Frames.encode(pictures, 0) for view in FRANKA.views},
        ),
        **changes,
    )  # fmt: skip


def dataset(path: Path, names: list[str], **changes: Any) -> Dataset:
    meta = Meta(path.name, 'fr3', 0.1, {view: (32, 24) for view in FRANKA.views}, frame_id='fr3_link0')
    with Writer(path, replace(meta, **changes)) as writer:
        for k, name in enumerate(names):
            writer.add(episode(name, seed=k))
    return Dataset.open(path)


def embodiment_file(tmp_path: Path) -> str:
    """Franka with the topics of the recorded double, as a file."""
    fields = config.to_dict(FRANKA)
    fields['views'] = {'front': {'topic': FRONT}, 'wrist': {'topic': WRIST}}
    file = tmp_path / 'robot.yaml'
    file.write_text(yaml.safe_dump(json.loads(json.dumps(fields))))
    return str(file)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(['dataset', *words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_rebag_gives_the_same_episode_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Episode -> bag -> episode: pictures, joints, gripper and words survive; poses follow the real kinematics."""
    made = episode('one', success=True)
    for storage, compression in (('mcap', 'chunk'), ('sqlite3', '')):
        bag = write_bag(made, tmp_path / f'bag_{storage}', FRANKA, storage=storage, compression=compression)
        out = tmp_path / f'data_{storage}'
        code, text, err = run(capsys, 'build', str(bag), '--out', str(out), '--quality', '0', '--json')
        assert code == 0, err
        assert json.loads(text)['frames'] == 30
        back = Dataset.open(out).read(0)
        assert np.array_equal(back.stamps_ns, made.stamps_ns) and np.allclose(back.q, made.q)
        assert (back.instruction, back.success) == ('do one', True)
        assert np.allclose(back.proprio[:, 7], made.proprio[:, 7])
        assert np.array_equal(back.actions[:, 6], made.actions[:, 6])
        for view in FRANKA.views:
            assert all(np.array_equal(back.views[view][k], made.views[view][k]) for k in range(30))


def test_encoded_pictures_pass_through_a_bag_untouched(tmp_path: Path) -> None:
    views = {name: View(topic=f'{view.topic}/compressed') for name, view in FRANKA.views.items()}
    robot_ = replace(FRANKA, views=views)
    made = episode('one', frames=5)
    path = write_bag(made, tmp_path / 'bag', robot_, joint_rate=50.0, marks=False,
                     cameras={'wrist': np.diag([300.0, 300.0, 1.0])})  # fmt: skip
    with open_bag(path) as bag:
        assert bag.topics[FRANKA.topics.joint_states].count == 21
        found = [r.value.encoded() for r in bag.messages([views['wrist'].topic])]
    assert found == [made.views['wrist'].encoded(k) for k in range(5)]


def test_a_bag_is_built_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path / 'bags' / 'monday', after=_name_joints), tmp_path / 'data'
    robot_file = embodiment_file(tmp_path)
    words = ('build', str(tmp_path / 'bags'), '--out', str(out), '--embodiment', robot_file, '--instruction', 'go')
    code, text, err = run(capsys, *words)
    assert code == 0 and 'monday: built, 1 episode(s)' in text, text + err
    before = (out / 'index.jsonl').read_text()
    code, text, _ = run(capsys, *words)
    assert code == 0 and 'already built' in text and (out / 'index.jsonl').read_text() == before
    code, text, _ = run(capsys, *words, '--json')
    assert json.loads(text)['sources'][0]['cached']
    code, _, err = run(capsys, *words, '--max-gap', '0.2')
    assert code == 2 and 'other settings' in err and str(path) in err
    (out / LEDGER).write_text('{"key": "cut')  # killed while it wrote: built again, episodes kept
    code, text, _ = run(capsys, *words)
    assert code == 0 and (out / 'index.jsonl').read_text() == before
    assert fingerprint(path) == fingerprint(path)


def _name_joints(bag: Any) -> None:
    """The double's joints have other names; say them as the Franka does, in messages of their own."""
    names = (*FRANKA.arm_joints, *FRANKA.gripper.joints)
    for k in range(-3, 205):
        stamp = T0 + k * 10**7
        bag.joints('/joint_states', stamp + 1, names, [*FRANKA.home, 0.02, 0.02], recorded_ns=stamp + 1)


def test_the_robot_recorded_in_the_bag_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path(embodiment_file(tmp_path)).read_text()

    def before(bag: Any) -> None:
        bag.text('/instructvla/embodiment', T0 - 5 * 10**8, text)

    path = write(tmp_path / 'bag', before=before, after=_name_joints)
    code, _, err = run(capsys, 'build', str(path), '--out', str(tmp_path / 'data'))
    assert code == 0, err
    assert set(Dataset.open(tmp_path / 'data').meta.views) == {'front', 'wrist'}


def test_build_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / 'bag', seconds=0.5)
    data = str(tmp_path / 'data')
    for words, expected in (
        ((str(path),), 'has no topic /camera/color/image_raw'),
        ((str(path), '--topic', f'/camera/color/image_raw={FRONT}', '--topic', 'x'), 'expected NAME=VALUE'),
        ((str(path), '--step-period', '-1'), 'step_period'),
        ((str(tmp_path / 'nothing'),), 'there is no bag'),
        ((str(tmp_path),), 'has no topic'),
        (('--from', 'droid', str(tmp_path)), 'holds no DROID episodes'),
    ):
        code, _, err = run(capsys, 'build', *words, '--out', data)
        assert code == 2 and expected in err, (words, err)
        assert 'Traceback' not in err


def test_statistics_have_the_released_form_and_a_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = dataset(tmp_path / 'shelf', ['a', 'b', 'c'])
    code, text, _ = run(capsys, 'stats', str(found.path))
    assert code == 0 and '3 episodes, 87 transitions' in text
    content = json.loads((found.path / 'dataset_statistics.json').read_text())
    assert set(content) == {'shelf'}
    entry = content['shelf']
    assert entry['num_transitions'] == 87 and entry['num_trajectories'] == 3
    assert entry['action']['mask'] == [True] * 6 + [False]
    for group, width in (('action', 7), ('proprio', 8)):
        assert all(len(entry[group][k]) == width for k in ('mean', 'std', 'max', 'min', 'q01', 'q99'))
    span = np.array(entry['action']['q99']) - np.array(entry['action']['q01'])
    assert span[5] == pytest.approx(FLOOR[5]) and span[4] == 0.0 and span[0] > 0.03
    assert entry['proprio']['q01'][6] == entry['proprio']['q99'][6] == 0.0


def test_noise_of_a_still_channel_stays_small_after_scaling(tmp_path: Path) -> None:
    from instructvla_ros.model.statistics import read_statistics

    content = compute([dataset(tmp_path / 'shelf', ['a', 'b'])])
    scale = read_statistics(content, proprio=True)
    action = np.array([[0.0, 0.0, 0.0, 0.0, 0.0, 2e-6, 1.0]])
    normalized = scale.normalize(action)
    assert abs(normalized[0, 5]) < 0.01 and normalized[0, 4] == 0.0
    assert np.allclose(scale.unnormalize(normalized), action, atol=1e-9)


def test_statistics_refuse_what_they_cannot_mean(tmp_path: Path) -> None:
    a = dataset(tmp_path / 'a', ['x'])
    b = dataset(tmp_path / 'b', ['x'], rotation='rotvec')
    with pytest.raises(DataError, match='has rotation rotvec, .* rpy'):
        compute([a, b])
    (a.path / 'episodes' / 'x.npz').write_bytes(b'broken')
    with pytest.raises(DataError, match='episode x is damaged'):
        compute([a])


def test_merge_keeps_every_episode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset(tmp_path / 'a', ['x', 'y'])
    dataset(tmp_path / 'b', ['x'])
    words = ('merge', str(tmp_path / 'a'), str(tmp_path / 'b'), '--out', str(tmp_path / 'all'))
    code, text, _ = run(capsys, *words)
    assert code == 0 and '3 episodes' in text
    assert [e.id for e in Dataset.open(tmp_path / 'all').index] == ['x', 'y', 'b.1.x']
    assert run(capsys, *words)[0] == 0 and len(Dataset.open(tmp_path / 'all')) == 3  # may be repeated
    dataset(tmp_path / 'c', ['z'], frame_id='elsewhere')
    with pytest.raises(DataError, match='frame_id elsewhere'):
        merge([Dataset.open(tmp_path / 'a'), Dataset.open(tmp_path / 'c')], tmp_path / 'no')
    with pytest.raises(DataError, match='both source and target'):
        merge([Dataset.open(tmp_path / 'a')], tmp_path / 'a')


def test_split_is_repeatable_and_keeps_pieces_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f'bag-{k:03d}' for k in range(8)] + ['bag-100-0', 'bag-100-1']
    found = dataset(tmp_path / 'all', names)
    seen = set()
    for seed in range(12):
        stay, held = split_ids(found, 0.3, seed)
        assert sorted(stay + held) == sorted(names) and held
        assert ('bag-100-0' in held) == ('bag-100-1' in held)
        assert split_ids(found, 0.3, seed) == (stay, held)
        seen.add(tuple(held))
    assert len(seen) > 3
    train, test = str(tmp_path / 'train'), str(tmp_path / 'test')
    code, text, _ = run(capsys, 'split', str(found.path), '--train', train, '--test', test, '--share', '0.3')
    assert code == 0 and len(Dataset.open(train)) + len(Dataset.open(test)) == 10
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(DataError, match='share'):
            split_ids(found, share, 0)


def test_split_of_what_was_demonstrated_more_than_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {'a': 'fold', 'b': 'fold', 'c': 'fold', 'd': 'pick', 'e': 'pick', 'f': 'once', 'g': 'failed', 'h': 'failed'}
    told |= {'i-000-0': 'pieces', 'i-000-1': 'pieces', 'j': '', 'k': ''}
    with Writer(tmp_path / 'all', replace(dataset(tmp_path / 'one', ['x']).meta, name='all')) as writer:
        for k, (name, words) in enumerate(told.items()):
            writer.add(replace(episode(name, seed=k), instruction=words, success=name != 'h'))
    found = Dataset.open(tmp_path / 'all')
    for seed in range(6):
        stay, held = split_ids(found, 0.3, seed, repeated=True)
        assert sorted(stay + held) == sorted(told) and len(held) == 2
        assert [told[i] for i in held] == ['fold', 'pick'], 'one of each that was shown twice, pieces of one are once'
    parts = ('--train', str(tmp_path / 'train'), '--test', str(tmp_path / 'test'), '--repeated')
    assert run(capsys, 'split', str(found.path), *parts)[0] == 0 and len(Dataset.open(tmp_path / 'test')) == 2
    with pytest.raises(DataError, match='at least twice'):
        split_ids(Dataset.open(tmp_path / 'one'), 0.3, 0, repeated=True)


def test_inspect_says_what_is_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = dataset(tmp_path / 'shelf', ['a', 'b'])
    sheet = tmp_path / 'sheet.png'
    code, text, _ = run(capsys, 'inspect', str(found.path), '--sheet', str(sheet), '--episodes')
    assert code == 0 and 'do a' in text and 'third_person 32x24' in text and sheet.stat().st_size > 1000
    code, text, _ = run(capsys, 'inspect', str(found.path), '--json')
    about = json.loads(text)
    assert (about['episodes'], about['frames'], about['success']) == (2, 60, {'unknown': 2})
    assert about['action']['gripper_changes'] == 2
    code, _, err = run(capsys, 'inspect', str(tmp_path))
    assert code == 2 and 'is not a dataset' in err


@pytest.mark.skipif(not DROID.is_dir(), reason=f'the DROID recordings are not in {DROID.parent.name}/{DROID.name}')
@pytest.mark.parametrize('period', [0.2, 1.0 / 15.0])
def test_real_franka_recordings_are_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str], period: float) -> None:
    """Two real episodes; forward kinematics has to agree with the pose the robot logged (its flange)."""
    source = [str(DROID / 'droid_subset' / 'annotation' / 'train' / '6.json'),
              str(DROID / 'droid_new_setup' / 'annotation' / 'val' / '0006.json')]  # fmt: skip
    code, text, err = run(
        capsys, 'build', '--from', 'droid', *source, '--out', str(tmp_path / 'droid'), '--embodiment', 'panda.yaml',
        '--step-period', str(period), '--json',
    )  # fmt: skip
    assert code == 0, err
    found = Dataset.open(tmp_path / 'droid')
    assert len(found) == 2 and found.meta.embodiment == 'panda' and set(found.meta.views) == {'third_person', 'wrist'}
    for made in found:
        assert made.views['wrist'][0].shape == (192, 320, 3)
        assert np.allclose(np.diff(made.stamps_ns), period * 1e9, atol=2)
        assert made.info['forward_minus_logged_m'] == pytest.approx(0.1034, abs=0.001)  # flange to hand tcp
        assert 0.0 < np.linalg.norm(made.actions[:, :3], axis=1).max() < 0.2
        assert np.isin(made.proprio[:, 6], 0.0).all() and (made.proprio[:, 2] > -0.1).all()
    assert found.read(1).instruction == 'move the towel from left to right'
    bag = write_bag(found.read(1), tmp_path / 'bag', config.load(Embodiment, resources.config_file('panda.yaml')))
    with open_bag(bag) as opened:
        assert opened.topics['/camera/color/image_raw'].count == len(found.read(1))


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        ({'joints': None}, "has no 'joints'"),
        ({'joints': [[0.0] * 8] * 3 + [[float('nan')] * 8]}, 'not finite in row 3'),
        ({'joints': 'x'}, 'not a table of numbers'),
        ({'states': [[0.0] * 7] * 9}, '9 poses'),
    ],
)
@pytest.mark.skipif(not DROID.is_dir(), reason='the DROID recordings are not there')
def test_broken_annotations_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], expected: str
) -> None:
    root = DROID / 'droid_new_setup'
    content = json.loads((root / 'annotation' / 'val' / '0006.json').read_text())
    content = {k: v for k, v in {**content, **change}.items() if v is not None}
    (tmp_path / 'in' / 'annotation' / 'val').mkdir(parents=True)
    (tmp_path / 'in' / 'annotation' / 'val' / '0006.json').write_text(json.dumps(content))
    (tmp_path / 'in' / 'videos').symlink_to(root / 'videos')
    code, text, err = run(
        capsys, 'build', '--from', 'droid', str(tmp_path / 'in'), '--out', str(tmp_path / 'out'),
        '--embodiment', 'panda.yaml',
    )  # fmt: skip
    assert code == 1 and expected in text and '0006.json' in text, text + err
