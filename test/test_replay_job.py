"""The verb as a user runs it: results on disk, two checkpoints, a learned policy, real data re-encoded as bags."""

from __future__ import annotations

import json
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
import pytest
import replay_doubles as doubles

from instructvla_ros import cli, config, resources
from instructvla_ros.data.episodes import Episode, Frames, Writer
from instructvla_ros.data.rebag import write_bag
from instructvla_ros.errors import ConfigError
from instructvla_ros.evaluation import replay_job, replay_trace
from instructvla_ros.evaluation.replay_bag import BagRecording
from instructvla_ros.evaluation.replay_camera import Calibration, CameraPose, Cameras
from instructvla_ros.evaluation.replay_compare import compare
from instructvla_ros.evaluation.replay_session import Replayer, deployment, open_recording
from instructvla_ros.evaluation.replay_source import DescriptionEvent
from instructvla_ros.settings import Embodiment

HERE = Path(__file__).resolve().parent
BAG = HERE / 'data' / 'sim_put'
DROID = HERE.parents[1] / 'shared' / 'realdata' / 'droid_franka' / 'droid_subset'


def test_the_bag_that_ships_is_small_and_complete() -> None:
    assert sum(f.stat().st_size for f in BAG.rglob('*') if f.is_file()) < 1_500_000
    with BagRecording(BAG, doubles.embodiment()) as bag:
        assert bag.missing == [] and bag.views == ('third_person', 'wrist')


def test_a_job_writes_report_metrics_and_junit(tmp_path: Path, capsys) -> None:
    out = tmp_path / 'out'
    code = cli.main(['replay', str(BAG), '--policy', 'expert', '--out', str(out), '--json'])
    printed = json.loads(capsys.readouterr().out)
    assert code == 0 and printed['passed'] is True
    page = (out / 'report.html').read_text(encoding='utf-8')
    assert 'rotation_convention' in page and 'data:video/mp4' in page
    assert 'src="http' not in page and 'href="http' not in page  # one file, no request to anywhere
    assert '<testsuites' in (out / 'junit.xml').read_text(encoding='utf-8')
    m = json.loads((out / 'metrics.json').read_text(encoding='utf-8'))
    trace = replay_trace.load(out)
    assert m['replays'][0]['metrics']['chunks']['count'] == len(trace.chunks) > 20
    # The predicted path was drawn into both views: the bag holds the description of the robot with its cameras.
    assert trace.meta['video']['drawn'] == ['third_person', 'wrist'] and trace.meta['video']['dropped'] == 0


def test_a_limit_that_is_not_kept_is_exit_code_1(tmp_path: Path, capsys) -> None:
    limits = tmp_path / 'limits.yaml'
    limits.write_text('limits:\n  action.translation_skill_over_hold: {min: 0.99}\n')
    arguments = ['replay', str(BAG), '--policy', 'hold', '--no-video', '--no-safety', '--limits', str(limits)]
    code = cli.main([*arguments, '--out', str(tmp_path / 'out'), '--duration', '3'])
    said = capsys.readouterr()
    assert code == 1 and 'action.translation_skill_over_hold' in said.out and 'FAILED' in said.out


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['nowhere', '--policy', 'hold'], 'nowhere'),
        ([str(BAG)], '--checkpoint'),
        ([str(BAG), '--policy', 'hold', '--limits', 'nothing.yaml'], 'nothing.yaml'),
        ([str(BAG), '--policy', 'hold', '--topic', 'x'], 'NAME=VALUE'),
        ([str(BAG), '--policy', 'hold', '--set', 'chunk_rte=3'], 'chunk_rate'),
        ([str(BAG), '--policy', 'hold', '--episode', 'e1'], 'is a bag'),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, capsys, arguments: list[str], words: str) -> None:
    code = cli.main(['replay', *arguments, '--no-video', '--out', str(tmp_path / 'out')])
    said = capsys.readouterr()
    assert code != 0 and words in said.out + said.err


def test_every_episode_of_a_dataset(tmp_path: Path) -> None:
    with Writer(tmp_path / 'data', doubles.moving_episode(5)[1]) as writer:
        for seed in (0, 1):
            writer.add(doubles.moving_episode(40, seed=seed)[0])
    job = replay_job.Job((str(tmp_path / 'data'),), policy='recorded', episode='all', video=False, judge=False,
                         out=str(tmp_path / 'out'))  # fmt: skip
    results = replay_job.run(job)
    assert [e.name for e in results.entries] == ['data-e000', 'data-e001'] and results.passed
    assert (tmp_path / 'out' / 'data-e001' / 'report.html').is_file()


def test_two_checkpoints_side_by_side(tmp_path: Path) -> None:
    from model_doubles import needs_model, small_bundle

    needs_model()
    from instructvla_ros.model.checkpoint import save

    save(small_bundle(tmp_path), tmp_path / 'old')
    save(small_bundle(tmp_path, horizon=5), tmp_path / 'new')
    job = replay_job.Job(
        (str(BAG),), (str(tmp_path / 'old'), str(tmp_path / 'new')), video=False, judge=False, duration=4.0,
        out=str(tmp_path / 'out'), overrides={'device': 'cpu', 'chunk_rate': 2.0},
    )  # fmt: skip
    results = replay_job.run(job)
    assert [e.label for e in results.entries] == ['old', 'new'] and all(e.outcome for e in results.entries)
    found = results.comparisons[0]
    assert not found['identical'] and found['chunks'] >= 5 and found['drift_end'] > 0
    page = (results.entries[1].folder / 'report.html').read_text(encoding='utf-8')
    assert 'old against new' in page
    # The noise comes from the seed: the same checkpoint gives the same chunks, bit for bit.
    plan = deployment('', str(tmp_path / 'old'), overrides={'device': 'cpu', 'chunk_rate': 2.0})
    again = Replayer(changed(plan, options=changed(plan.options, judge=False, duration=4.0)))
    with open_recording(BAG, plan.embodiment) as recording:
        assert compare(results.entries[0].outcome.trace, again.run(recording).trace)['identical']
    with pytest.raises(ConfigError, match='same'):
        replay_job.run(changed(job, checkpoints=(str(tmp_path / 'old'),) * 2))


def test_asked_about_many_at_once_the_policy_says_and_does_what_it_does_alone(tmp_path: Path) -> None:
    from model_doubles import needs_model, small_bundle

    needs_model()
    from instructvla_ros.model.checkpoint import save

    checkpoint = str(save(small_bundle(tmp_path), tmp_path / 'c'))
    found = []
    for together in (1, 7, 7):
        plan = deployment('', checkpoint, overrides={'device': 'cpu', 'reasoning_period': 0.6})
        plan = changed(plan, options=changed(plan.options, together=together, duration=5.0))
        with open_recording(BAG, plan.embodiment) as recording:
            found.append(Replayer(plan).run(recording))
    alone, together, again = (outcome.trace for outcome in found)
    assert compare(together, again)['identical']
    assert len(alone.chunks) == len(together.chunks) > 20
    assert [s['text'] for s in alone.sentences] == [s['text'] for s in together.sentences]
    for a, b in zip(alone.chunks, together.chunks, strict=True):
        np.testing.assert_allclose(a.chunk.steps, b.chunk.steps, atol=1e-5)
        assert (a.refused, a.sentence, a.chunk.observation_stamp_ns) == (
            b.refused, b.sentence, b.chunk.observation_stamp_ns,
        )  # fmt: skip
    rows = [[(v['rule'], v['action'], v['count']) for v in o.metrics['safety']] for o in found[:2]]
    assert rows[0] == rows[1] and rows[0]
    every, some = (outcome.metrics['latency']['infer'] for outcome in found[:2])
    assert every['count'] == len(alone.chunks) > some['count'] > 5 and some['p50'] > 0


def test_cameras_are_found_in_the_description_or_the_file() -> None:
    robot = doubles.embodiment()
    given = Calibration({'third_person': CameraPose((600.0, 600.0), (320.0, 240.0), (640, 480), '', (1.0, 0.0, 0.5))})
    cameras = Cameras(robot, given)
    np.testing.assert_allclose(cameras.pose('third_person')[:3, 3], [1.0, 0.0, 0.5])
    np.testing.assert_allclose(np.diag(cameras.intrinsics('third_person', 320, 240)), [300.0, 300.0, 1.0])
    assert cameras.pose('wrist') is None and cameras.intrinsics('wrist', 64, 48) is None
    cameras.take(DescriptionEvent(1, resources.robot_description(robot.name)))
    assert cameras.pose('wrist') is not None
    with pytest.raises(ConfigError, match='side'):
        Cameras(robot, Calibration({'side': CameraPose()}))


@pytest.mark.parametrize('number', [1, 2])
def test_a_real_recording_re_encoded_as_a_bag(tmp_path: Path, number: int) -> None:
    """DROID, real Panda: its own motion is the reference, and standing still is told from it."""
    if not DROID.is_dir():
        pytest.skip('the real recordings are not beside this checkout (../shared/realdata)')
    robot = config.load(Embodiment, resources.config_file('panda.yaml'))
    bag = write_bag(droid_episode(number), tmp_path / f'droid_{number}', robot)
    for policy, skill, names in (('recorded', 0.99, set()), ('hold', 0.0, {'stays_at_start'})):
        job = replay_job.Job((str(bag),), policy=policy, embodiment='panda.yaml', video=False, judge=False,
                             out=str(tmp_path / policy))  # fmt: skip
        outcome = replay_job.run(job).entries[0].outcome
        assert outcome is not None
        assert outcome.metrics['action']['translation_skill_over_hold'] == pytest.approx(skill, abs=0.011)
        assert {d.name for d in outcome.diagnoses if d.result == 'fault'} - {'no_better_than_mean'} == names
        assert not outcome.metrics['recording']['trouble'] and outcome.metrics['recording']['duration'] > 5.0


def droid_episode(number: int) -> Episode:
    """Every third control step has a picture (5 Hz); its gripper counts 0 open .. 1 closed."""
    import imageio.v3 as iio

    notes = json.loads((DROID / 'annotation' / 'train' / f'{number}.json').read_text(encoding='utf-8'))
    videos = [DROID / 'videos' / 'train' / str(number) / f'{k}.mp4' for k in (0, 2)]
    pictures = [list(iio.imread(v, plugin='FFMPEG')) for v in videos]
    count = min(len(p) for p in pictures)
    rows = slice(0, 3 * count, 3)
    q = np.array(notes['observation.state.joint_position'], dtype=np.float64)[rows]
    count = min(count, len(q))
    pose = np.array(notes['observation.state.cartesian_position'], dtype=np.float64)[rows][:count]
    measured = 1.0 - np.array(notes['observation.state.gripper_position'], dtype=np.float64)[rows][:count]
    told = 1.0 - np.array(notes['action.gripper_position'], dtype=np.float64)[rows][:count]
    proprio = np.zeros((count, 8))
    proprio[:, :6], proprio[:, 7] = pose, measured
    actions = np.zeros((count, 7))
    actions[:, 6] = told
    names = ('third_person', 'wrist')
    return Episode(
        f'droid{number}', notes['texts'][0] or 'no words', 0.2, doubles.START_NS + np.arange(count) * 200_000_000,
        proprio, q[:count], np.gradient(q[:count], 0.2, axis=0), actions,
        {n: Frames.encode(p[:count]) for n, p in zip(names, pictures, strict=True)}, source='DROID',
    )  # fmt: skip
