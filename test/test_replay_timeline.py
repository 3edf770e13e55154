"""Recorded against predicted motion over time: what is told, what is drawn, what a late browser gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from instructvla_ros.datatypes import ActionChunk, Reasoning, ReasoningKind, RobotState, Verdict, VerdictAction
from instructvla_ros.errors import DataError, ObservationError
from instructvla_ros.evaluation import replay_marks
from instructvla_ros.evaluation.replay_source import Event, SaidEvent, StateEvent, Trouble, WordsEvent
from instructvla_ros.evaluation.replay_timeline import Motion, Timeline, read_motion
from instructvla_ros.operator_page.timeline import Timeline as Page
from instructvla_ros.visual import Kind

START = 1_700_000_000_000_000_000
SPEED = 0.1  # m/s along x


class Straight:
    """A recording of 4 s in which the tcp goes along x."""

    name, forward, missing = 'straight', None, []
    embodiment: Any = None
    views = ()
    trouble = Trouble()

    def __init__(self, seconds: float = 4.0) -> None:
        self.seconds = seconds

    def events(self, pictures: bool = True) -> Iterator[Event]:
        assert not pictures, 'the motion is read without decoding a picture'
        yield WordsEvent(START, ' go along ')
        yield SaidEvent(START + 500_000_000, 'I move along.')
        for k in range(int(self.seconds * 100)):
            stamp = START + k * 10_000_000
            pose = np.eye(4)
            pose[0, 3] = 0.3 + SPEED * k / 100.0
            yield StateEvent(stamp, RobotState(stamp, np.zeros(7), np.zeros(7), 1.0), pose)


def chunk(at: float, error: float = 0.0, name: str = 'c', count: int = 4) -> ActionChunk:
    steps = np.zeros((count, 7))
    steps[:, 0], steps[:, 6] = SPEED * 0.1 + error, 1.0
    reference = np.eye(4)
    reference[0, 3] = 0.3 + SPEED * at
    stamp = START + round(at * 1e9)
    return ActionChunk(name, stamp, stamp, 0.1, steps, 'base', reference, reasoning_id='say-1')


def motion(seconds: float = 4.0) -> Motion:
    return read_motion(Straight(seconds), lambda q: np.eye(4))


def timeline(*chunks: ActionChunk) -> Timeline:
    made = Timeline()
    made.motion = motion()
    for one in chunks:
        made.chunk(one)
    return made


def test_the_motion_is_told_in_metres_degrees_and_seconds():
    told = motion().plain()
    assert told['t'][0] == 0.0 and told['t'][-1] == pytest.approx(3.98, abs=0.02) == told['duration']
    assert told['rows'][0] == pytest.approx([0.3, 0, 0, 0, 0, 0, 1.0])
    assert told['rows'][-1][0] == pytest.approx(0.3 + SPEED * told['duration'], abs=1e-3)
    assert told['instructions'] == [[0.0, 'go along']] and told['notes'] == [[0.5, 'I move along.']]
    json.dumps(told, allow_nan=False)


def test_a_part_and_other_words_can_be_asked_for_and_nothing_is_refused():
    part = read_motion(Straight(), lambda q: np.eye(4), duration=1.0, instruction='other')
    assert part.duration == pytest.approx(1.0, abs=0.03) and part.instructions == ((0.0, 'other'),)
    with pytest.raises(DataError, match='joint states'):
        motion(0.01)


def test_a_chunk_is_put_beside_the_motion_of_its_time():
    line = timeline(chunk(1.0, name='good'), chunk(2.0, 0.005, 'bad'))
    news = line.news(START + 2_500_000_000)
    assert news['now'] == 2.5
    good, bad = news['chunks']
    assert good['t'] == 1.0 and good['dt'] == 0.1 and len(good['rows']) == 5
    assert good['error'] == pytest.approx([0.0] * 5, abs=0.2)
    assert bad['error'] == pytest.approx([0, 5, 10, 15, 20], abs=0.3)
    assert bad['rows'][-1][0] == pytest.approx(0.5 + 4 * 0.015, abs=1e-3)
    assert line.news(START + 2_600_000_000)['chunks'] == [], 'told once'


def test_what_was_not_recorded_is_null_and_the_words_stay_valid_json():
    news = timeline(chunk(3.8, name='end')).news(START + 3_900_000_000)
    error = news['chunks'][0]['error']
    assert error[0] is not None and error[-1] is None
    json.dumps(news, allow_nan=False)


def test_nothing_is_told_before_the_motion_is_known_and_nothing_is_lost():
    line = Timeline()
    line.chunk(chunk(1.0))
    assert line.news(START) is None and replay_marks.shapes(line, 0.0) == []
    line.motion = motion()
    assert [c['id'] for c in line.news(START)['chunks']] == ['c']


def test_equal_verdicts_in_a_row_are_one_with_a_count():
    line = timeline()
    held = Verdict('joint_speed', VerdictAction.SCALED, 'fr3_joint1', 3.0, 2.0, 'rad/s', 'too fast', 'c')
    for k in range(5):
        line.verdict(START + k * 10_000_000, held)
    line.verdict(START + 2_000_000_000, held)
    line.verdict(START, Verdict('workspace', VerdictAction.PASSED, '', 0.0, 0.0, '', '', 'c'))
    rows = line.news(START)['verdicts']
    assert [(r['n'], r['count'], r['t']) for r in rows] == [(0, 5, 0.0), (1, 1, 2.0)]
    line.verdict(START + 2_010_000_000, held)
    assert [(r['n'], r['count']) for r in line.news(START)['verdicts']] == [(1, 2)], 'the same row again, with more'


def test_the_marks_show_both_motions_the_gap_and_where_we_are():
    line = timeline(chunk(1.0, 0.005))
    line.said(Reasoning('say-1', START, 'go along', 'I go.', ReasoningKind.PLAN, final=True))
    line.news(START + 1_200_000_000)
    early, late = (replay_marks.shapes(line, t) for t in (0.5, 1.2))
    named = {s.namespace: s for s in late}
    assert 'replay_predicted' not in {s.namespace for s in early}, 'a chunk is shown from its observation on'
    assert len(named) == len(late) and {'replay_recorded', 'replay_predicted', 'replay_error', 'replay_bar'} <= set(
        named
    )
    assert named['replay_error'].kind is Kind.LINE_LIST
    first, last = named['replay_error'].points[-2:]
    assert np.linalg.norm(first - last) == pytest.approx(0.02, abs=1e-3)
    left, right = replay_marks.BAR
    share = 1.2 / line.motion.duration
    assert named['replay_cursor'].position[1] == pytest.approx(left + share * (right - left), abs=0.01)
    assert '20 mm apart after 0.4 s' in named['replay_text'].text and 'I go.' in named['replay_text'].text
    played = named['replay_recorded'].colors[:, 3]
    assert played[0] > 0.9 > played[-1]
    for shape in late:
        assert all(v > 0 for v in shape.scale) and np.isfinite(shape.points).all()
        assert shape.colors is None or len(shape.colors) == len(shape.points)


def test_a_late_browser_gets_everything_and_a_new_recording_begins_anew():
    page, line = Page(), timeline(chunk(1.0))
    text = json.dumps(line.news(START + 1_100_000_000))
    assert page.whole() is None and page.on_news(text) is None, 'kept until the recorded motion is there'
    told = page.on_recorded(json.dumps(line.motion.plain()))
    assert [c['id'] for c in told['chunks']] == ['c'] and told['number'] == 1
    line.chunk(chunk(2.0, name='d'))
    news = page.on_news(json.dumps(line.news(START + 2_100_000_000)))
    assert news['number'] == 2 and [c['id'] for c in news['chunks']] == ['d']
    assert [c['id'] for c in page.whole()['chunks']] == ['c', 'd'] and page.whole()['now'] == 2.1
    assert page.on_recorded(json.dumps(line.motion.plain()))['chunks'] == []


@pytest.mark.parametrize('text', ['', '[1]', '{}', '{"t": 1, "rows": []}', '{"now": "x"}'])
def test_what_no_player_sends_is_refused(text):
    page = Page()
    with pytest.raises(ObservationError):
        page.on_recorded(text)
    with pytest.raises(ObservationError):
        page.on_news(text)
