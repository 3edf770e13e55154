"""Replay in virtual time: what is asked when, what is measured, what happens with recordings that lack something."""

from __future__ import annotations

from dataclasses import replace as changed
from pathlib import Path

import numpy as np
import pytest
import replay_doubles as doubles

from instructvla_ros.data.rebag import BagWriter, write_bag
from instructvla_ros.errors import ConfigError, DataError, SetupError
from instructvla_ros.evaluation import replay_trace
from instructvla_ros.evaluation.replay import ReplayOptions, replay
from instructvla_ros.evaluation.replay_bag import BagRecording
from instructvla_ros.evaluation.replay_compare import compare, interval, reproduces
from instructvla_ros.evaluation.replay_judge import JudgeProcess, RemoteJudge
from instructvla_ros.evaluation.replay_limits import Limit, Limits, check, junit, load_limits, numbers
from instructvla_ros.evaluation.replay_metrics import match_events, summarize, switch_events, word_f1
from instructvla_ros.evaluation.replay_policies import RecordedPolicy
from instructvla_ros.evaluation.replay_session import judge
from instructvla_ros.evaluation.replay_source import (
    EpisodeRecording,
    FrameEvent,
    StateEvent,
    WordsEvent,
    due_ns,
    in_order,
)
from instructvla_ros.evaluation.runlog import plain
from instructvla_ros.policy import HoldPolicy
from instructvla_ros.resources import config_file

FRAMES = 60


def episode_recording(frames: int = FRAMES) -> EpisodeRecording:
    episode, meta = doubles.moving_episode(frames)
    return EpisodeRecording(episode, meta, doubles.embodiment())


def run(source, policy=None, options: ReplayOptions | None = None, judging: JudgeProcess | None = None, **settings):
    chosen = doubles.settings(**settings)
    policy = policy or RecordedPolicy(source, chosen, kinematics=doubles.kinematics())
    return replay(
        source, policy, chosen, doubles.control(), options, kinematics=doubles.kinematics(), judging=judging
    )


@pytest.fixture(scope='module')
def bag(tmp_path_factory) -> Path:
    episode, _ = doubles.moving_episode(FRAMES)
    return write_bag(episode, tmp_path_factory.mktemp('bags') / 'run', doubles.embodiment(), joint_rate=100.0)


def test_recorded_motion_is_the_reference_of_every_number() -> None:
    m = summarize(run(episode_recording()))
    assert m['action']['translation_rmse'] < 1e-6 and m['action']['rotation_rmse'] < 1e-6
    assert m['action']['translation_skill_over_hold'] > 0.999
    assert m['path']['open_loop_end'] < 1e-6 and m['path']['rebased_end']['max'] < 1e-6
    assert m['gripper']['precision'] == m['gripper']['recall'] == 1.0
    assert m['start']['leaves'] is True
    assert m['language']['exact'] == 1.0
    assert m['seams']['jerk_ratio'] == pytest.approx(1.0, abs=0.05)


def test_holding_still_has_the_error_of_its_baseline() -> None:
    m = summarize(run(episode_recording(), HoldPolicy(0.1, 8)))
    assert m['action']['translation_skill_over_hold'] == pytest.approx(0.0, abs=1e-9)
    assert m['action']['translation_rmse'] == pytest.approx(m['action']['hold_translation_rmse'])
    assert m['start']['leaves'] is False
    assert m['path']['predicted_length'] == 0.0
    np.testing.assert_allclose(m['path']['rebased_horizon'], m['path']['hold_horizon'], atol=1e-12)


def test_a_bag_gives_what_its_episode_gives(bag: Path) -> None:
    from_episode = run(episode_recording())
    with BagRecording(bag, doubles.embodiment()) as source:
        from_bag = run(source)
    ours = {c.chunk.observation_stamp_ns: c.chunk for c in from_episode.chunks}
    both = [(ours[c.chunk.observation_stamp_ns], c.chunk) for c in from_bag.chunks]
    assert len(both) == len(from_episode.chunks)
    inside = [(x, y) for x, y in both if x.observation_stamp_ns < both[-1][0].observation_stamp_ns - 10**9]
    for x, y in inside:
        # The bag has joints, the episode poses: between frames the two are interpolated differently.
        np.testing.assert_allclose(x.steps[:, :6], y.steps[:, :6], atol=1e-6)
        np.testing.assert_allclose(x.reference_pose, y.reference_pose, atol=1e-6)
    assert from_bag.missing == () and not from_bag.trouble


def test_two_replays_are_equal_bit_for_bit(bag: Path) -> None:
    traces = []
    for _ in range(2):
        with BagRecording(bag, doubles.embodiment()) as source:
            policy = RecordedPolicy(source, doubles.settings(), (0.01, 0.02, 0.1), doubles.kinematics())
            traces.append(run(source, policy))
    a, b = traces
    assert [c.chunk.id for c in a.chunks] == [c.chunk.id for c in b.chunks]
    for x, y in zip(a.chunks, b.chunks, strict=True):
        assert x.chunk.steps.tobytes() == y.chunk.steps.tobytes()
        assert (x.refused, x.chunk.observation_stamp_ns) == (y.refused, y.chunk.observation_stamp_ns)
    assert a.verdicts == b.verdicts and [s['text'] for s in a.sentences] == [s['text'] for s in b.sentences]
    assert compare(a, b)['identical'] is True


def test_the_policy_is_asked_at_its_rate_on_the_clock_of_the_recording() -> None:
    stamps = [c.chunk.observation_stamp_ns for c in run(episode_recording(), chunk_rate=2.0).chunks]
    assert np.median(np.diff(stamps)) == pytest.approx(0.5e9, rel=0.01)
    thoughts = run(episode_recording(), reasoning_period=1.0).sentences
    assert np.median(np.diff([s['stamp_ns'] for s in thoughts])) == pytest.approx(1e9, rel=0.11)
    assert run(episode_recording(), reasoning='off').sentences == ()


def test_part_of_a_recording() -> None:
    trace = run(episode_recording(), options=ReplayOptions(start=2.0, duration=1.5))
    seconds = [(c.chunk.observation_stamp_ns - doubles.START_NS) * 1e-9 for c in trace.chunks]
    assert 1.9 <= min(seconds) and max(seconds) <= 3.5


def test_a_step_beyond_the_bounds_is_named_by_the_safety_ladder() -> None:
    def wild(chunk):
        steps = chunk.steps.copy()
        steps[0, 0] = 0.5
        return changed(chunk, steps=steps)

    source = episode_recording()
    policy = RecordedPolicy(source, doubles.settings(), kinematics=doubles.kinematics())
    found = {v['rule'] for v in summarize(run(source, doubles.Planted(policy, wild)))['safety']}
    assert 'step_translation' in found


def test_a_chunk_that_is_not_finite_is_refused_and_left_out_of_the_errors() -> None:
    def broken(chunk):
        steps = chunk.steps.copy()
        steps[3, 1] = np.nan
        return changed(chunk, steps=steps)

    source = episode_recording()
    policy = RecordedPolicy(source, doubles.settings(), kinematics=doubles.kinematics())
    trace = run(source, doubles.Planted(policy, broken))
    assert {c.refused for c in trace.chunks} == {'finite'}
    m = judge(trace).metrics
    assert m['chunks']['refused'] == len(trace.chunks)
    assert m['action']['translation_rmse'] < 1e-6


def test_a_late_chunk_is_refused_by_its_age() -> None:
    trace = run(episode_recording(), options=ReplayOptions(latency=1.2))
    assert 'observation_age' in {c.refused for c in trace.chunks}


def test_the_instruction_has_to_be_known(tmp_path: Path) -> None:
    episode, _ = doubles.moving_episode(30)
    with BagWriter(tmp_path / 'silent') as bag:
        robot = doubles.embodiment()
        for k, stamp in enumerate(episode.stamps_ns):
            names = (*robot.arm_joints, *robot.gripper.joints)
            bag.joints('/joint_states', int(stamp), names, [*episode.q[k], 0.04, 0.04])
            for name, view in robot.views.items():
                bag.image(view.topic, int(stamp), episode.views[name][k], view.frame_id)
    with BagRecording(tmp_path / 'silent', doubles.embodiment()) as source:
        policy = RecordedPolicy(source, doubles.settings(), kinematics=doubles.kinematics())
        with pytest.raises(ConfigError, match='--instruction'):
            run(source, policy)
        trace = run(source, policy, ReplayOptions(instruction='close the drawer'))
        assert {c.chunk.instruction for c in trace.chunks} == {'close the drawer'}
        assert any('gripper commands' in text for text in trace.missing)


def test_a_recording_without_the_robots_joints_is_refused_by_name(tmp_path: Path) -> None:
    with BagWriter(tmp_path / 'other') as bag:
        bag.joints('/arm/joints', doubles.START_NS, ('a', 'b'), [0.0, 1.0])
    with pytest.raises(DataError, match='/arm/joints'):
        BagRecording(tmp_path / 'other', doubles.embodiment())


def test_broken_pictures_are_passed_over_and_named(tmp_path: Path, bag: Path) -> None:
    episode, _ = doubles.moving_episode(30)
    robot = doubles.embodiment()
    view = robot.views['third_person']
    compressed = changed(robot, views={'third_person': changed(view, topic=view.topic + '/compressed')})
    with BagWriter(tmp_path / 'hurt') as out:
        out.text('/instructvla/instruction', doubles.START_NS - 1, 'put the red cube in the bowl')
        for k, stamp in enumerate(episode.stamps_ns):
            names = (*robot.arm_joints, *robot.gripper.joints)
            out.joints('/joint_states', int(stamp), names, [*episode.q[k], 0.04, 0.04])
            data = episode.views['third_person'].encoded(k)
            out.compressed(view.topic + '/compressed', int(stamp), data[:90] if k % 4 == 0 else data)
    with BagRecording(tmp_path / 'hurt', compressed) as source:
        trace = run(source)
    asked = [(c.chunk.observation_stamp_ns - doubles.START_NS) // 10**8 for c in trace.chunks]
    assert asked and all(k % 4 for k in asked)
    assert any('third_person' in text and 'decoded' in text for text in trace.trouble)


def test_recorded_chunks_can_be_asked_for_again(tmp_path: Path) -> None:
    source = episode_recording()
    first = run(source, chunk_rate=3.0)
    episode, _ = doubles.moving_episode(FRAMES)
    write_bag(episode, tmp_path / 'run', doubles.embodiment(), joint_rate=100.0)
    with BagWriter(tmp_path / 'with_chunks') as out:
        _copy(tmp_path / 'run', out)
        for row in first.chunks:
            out.chunk(row.chunk)
    with BagRecording(tmp_path / 'with_chunks', doubles.embodiment()) as bag:
        again = run(bag, options=ReplayOptions(at='recorded'))
        assert {c.chunk.observation_stamp_ns for c in again.chunks} == {
            c.chunk.observation_stamp_ns for c in first.chunks
        }
        assert reproduces(again)['chunks'] == len(first.chunks)
    with BagRecording(tmp_path / 'run', doubles.embodiment()) as bag, pytest.raises(ConfigError, match='no recorded'):
        run(bag, options=ReplayOptions(at='recorded'))


def _copy(path: Path, out: BagWriter) -> None:
    from instructvla_ros.data.bags import open_bag

    with open_bag(path) as bag:
        for record in bag.messages():
            out.write(record.topic, record.type, record.recorded_ns, record.message)


def test_events_come_in_the_order_of_their_arrival() -> None:
    picture = FrameEvent(1_000_000_000, 'a', lambda: np.zeros((1, 1, 3), np.uint8))
    states = [StateEvent(1_000_000_000 + k * 10_000_000, None) for k in range(8)]  # type: ignore[arg-type]
    shuffled = [states[3], picture, states[1], states[0], *states[4:], states[2], WordsEvent(900_000_000, 'go')]
    order = list(in_order(shuffled))
    assert [due_ns(e) for e in order] == sorted(due_ns(e) for e in order)
    assert order.index(picture) > order.index(states[2])


def test_a_clock_that_leaps_does_not_hold_events_back() -> None:
    late = [WordsEvent(10**9 * k, str(k)) for k in (100, 101, 1, 2, 3)]
    assert [e.instruction for e in in_order(late)] == ['100', '101', '1', '2', '3']


def test_a_trace_survives_the_disk(tmp_path: Path) -> None:
    trace = run(episode_recording())
    again = replay_trace.load(replay_trace.save(trace, tmp_path))
    assert plain(summarize(again)) == plain(summarize(trace))
    assert compare(trace, again)['identical']
    assert again.chunks[3].chunk.steps.tobytes() == trace.chunks[3].chunk.steps.tobytes()
    assert again.notes == trace.notes
    (tmp_path / 'replay.npz').write_bytes(b'PK\x03\x04 broken')
    with pytest.raises(DataError, match='run `instructvla replay` again'):
        replay_trace.load(tmp_path)


def test_gripper_events_and_their_matching() -> None:
    t = np.arange(8) * 10**9
    g = np.array([1.0, 0.55, 0.3, 0.5, 0.3, 0.7, 0.9, 0.1])
    assert [k for _, k in switch_events(t, g)] == [-1, 1, -1]
    assert match_events([(0, 1), (10**9, -1)], [(3 * 10**8, 1), (14 * 10**8, -1)]) == [(0, 0), (1, 1)]
    assert match_events([(0, 1)], [(10**8, -1), (6 * 10**8, 1)]) == []


def test_words_in_common() -> None:
    assert word_f1(['move', 'to', 'the', 'cube'], ['move', 'to', 'the', 'cube']) == 1.0
    assert word_f1(['a', 'b'], ['b', 'c']) == 0.5
    assert word_f1([], ['b']) == 0.0


def test_the_interval_of_a_comparison() -> None:
    rng = np.random.default_rng(0)
    low, high = interval(rng.normal(-1.0, 1.0, 400))
    assert low < -0.8 and high < 0.0 and high - low < 0.5
    low, high = interval(rng.normal(0.0, 1.0, 400))
    assert low < 0.0 < high


def test_a_comparison_names_the_nearer_one() -> None:
    source = episode_recording(120)
    near = run(source, RecordedPolicy(source, doubles.settings(), (0.001, 0.0, 0.0), doubles.kinematics()))
    far = run(source, HoldPolicy(0.1, 8))
    found = compare(far, near, ('far', 'near'))
    assert found['better'] == 'near' and found['end_error_change'] < 0 and found['interval'][1] < 0
    assert 'stays_at_start' in found['faults_gone'] and not found['identical']
    assert 'near is nearer' in found['text']


def test_limits_pass_fail_and_skip() -> None:
    outcome = judge(run(episode_recording()), load_limits(config_file('replay.yaml')))
    assert outcome.passed and {c.result for c in outcome.checks} <= {'passed', 'skipped'}
    m = outcome.metrics
    strict = Limits({'path.rebased_end.p50': Limit(min=0.5), 'gripper.recall': Limit(min=0.5)}, ('action_delay',))
    results = {c.name: c.result for c in check(strict, m, outcome.diagnoses)}
    assert results == {'path.rebased_end.p50': 'failed', 'gripper.recall': 'passed', 'action_delay': 'passed'}
    with pytest.raises(ConfigError, match='Did you mean'):
        check(Limits({'gripper.recal': Limit()}), m, ())
    assert 'action.translation_rmse' in numbers(m)


def test_junit_counts_and_survives_odd_names() -> None:
    from xml.etree import ElementTree

    from instructvla_ros.evaluation.replay_limits import Check

    text = junit({'bag \x01<&>': [Check('a', 'passed', ''), Check('b', 'failed', '1 > 0'), Check('c', 'skipped', 'x')]})
    root = ElementTree.fromstring(text.split('\n', 1)[1])
    assert (root.get('tests'), root.get('failures'), root.get('skipped')) == ('3', '1', '1')
    assert root.find('.//failure').get('message') == '1 > 0'


def test_the_controller_may_judge_in_a_process_of_its_own(bag: Path) -> None:
    """Everything is as before, verdicts and refusals too."""
    traces = []
    process = JudgeProcess()
    for judging in (None, process, process):
        with BagRecording(bag, doubles.embodiment()) as source:
            good = RecordedPolicy(source, doubles.settings(), kinematics=doubles.kinematics())
            policy = doubles.Planted(good, _too_fast)
            traces.append(run(source, policy, judging=judging))
    here = traces[0]
    assert here.verdicts
    for there in traces[1:]:  # the process is used again
        assert here.verdicts == there.verdicts
        assert [c.refused for c in here.chunks] == [c.refused for c in there.chunks]
        assert [c.chunk.steps.tobytes() for c in here.chunks] == [c.chunk.steps.tobytes() for c in there.chunks]
    process.close()
    assert not process.usable and process.process.returncode is not None


def _too_fast(chunk):
    steps = chunk.steps.copy()
    steps[:, 0] += 0.2
    return changed(chunk, steps=steps)


def test_a_judge_that_dies_is_named_and_nothing_hangs() -> None:
    process = JudgeProcess()
    judge = RemoteJudge(doubles.embodiment(), doubles.control(), process)
    process.process.kill()
    for k in range(2000):
        judge.advance(k * 10_000_000)
    with pytest.raises(SetupError, match='judges the chunks'):
        judge.finish()
    assert not process.usable
    process = JudgeProcess()
    broken = RemoteJudge(doubles.embodiment(), doubles.control(), process)
    broken.state('not a state')  # type: ignore[arg-type]
    broken.advance(0)
    with pytest.raises(SetupError, match='Traceback'):
        broken.finish()
    assert not process.usable


def test_a_process_in_the_middle_of_a_recording_is_not_used_again() -> None:
    process = JudgeProcess()
    judge = RemoteJudge(doubles.embodiment(), doubles.control(), process)
    judge.advance(0)
    judge.close()
    assert not process.usable
