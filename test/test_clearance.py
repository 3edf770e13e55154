"""Chunks wait for somebody's word that their way is free: admitted, cut, refused, or held when no word comes."""

import numpy as np
import pytest
from test_controller import ARM, HOME, KIN, Rig, rules

from instructvla_ros.control.clearance import Answer, Question, alike, describe_contacts, joint_path, spaced
from instructvla_ros.control.controller import Controller, Mode
from instructvla_ros.datatypes import VerdictAction
from instructvla_ros.settings import Control, MoveIt


class Judge:
    """Keeps the questions; a test answers them when it likes."""

    def __init__(self) -> None:
        self.questions: list[Question] = []

    def ask(self, question: Question) -> None:
        self.questions.append(question)


class AskingRig(Rig):
    def __init__(self, **changes):
        super().__init__(**changes)
        self.judge = Judge()
        control = Control(ramp_time=0.0, moveit=MoveIt(timeout=0.15))
        self.controller = Controller(ARM, control, KIN, clearance=self.judge)
        self.tick()
        assert self.controller.enable(True) == ''
        self.tick()

    def answer(self, free=None, question=-1, **fields):
        asked = self.judge.questions[question]
        free = len(asked.times) if free is None else free
        return self.controller.on_answer(Answer(asked, free, **fields), self.now)


def test_nothing_moves_before_the_answer_and_everything_after_it():
    rig = AskingRig()
    assert rig.feed() == []
    assert rig.run(0.05)[-1].mode is Mode.HOLDING and not np.any(rig.outputs[-1].dq)
    assert rig.answer() == ()
    assert rig.run(0.2)[-1].mode is Mode.TRACKING
    start = KIN.position(HOME)[1]
    rig.run(1.5)
    assert KIN.position(rig.q)[1] - start == pytest.approx(0.16, abs=0.01)


def test_the_way_is_asked_about_from_entry_to_end():
    rig = AskingRig()
    rig.feed()
    question = rig.judge.questions[0]
    assert len(question.times) == len(question.poses) == 10 and question.times[-1] == pytest.approx(0.85)
    path = np.array(list(joint_path(KIN, question.q, question.poses)))
    assert path.shape == (10, 7)
    for q, pose in zip(path, question.poses, strict=True):
        np.testing.assert_allclose(KIN.forward(q)[:3, 3], pose[:3, 3], atol=2e-3)
    assert question.poses[-1][1, 3] - question.poses[0][1, 3] == pytest.approx(0.16, abs=2e-3)


def test_a_preview_changes_nothing():
    rig, other = AskingRig(), Rig(ramp_time=0.0)
    rig.feed()
    rig.answer()
    other.feed()
    rig.run(0.3), other.run(0.3)
    for k in range(5):
        rig.controller.player.preview(rig.chunk(), rig.now, 0.1, 48)
        assert rig.tick().command.q == pytest.approx(other.tick().command.q, abs=1e-12), k


def test_no_answer_in_time_is_a_hold_with_a_name():
    rig = AskingRig()
    rig.feed()
    outs = rig.run(0.3)
    held = [v for o in outs for v in o.verdicts if v.rule == 'moveit_timeout']
    assert len(held) == 1 and held[0].action is VerdictAction.HELD and held[0].limit == 0.15
    assert 'no answer within 0.15 s' in held[0].text and held[0].value == pytest.approx(0.16, abs=0.011)
    assert rig.answer() == (), 'a late answer is no answer'
    assert not np.any(rig.run(0.3)[-1].dq)


def test_silence_brakes_an_arm_that_moves():
    rig = AskingRig()
    rig.feed()
    rig.answer()
    assert np.any(rig.run(0.3)[-1].dq)
    rig.feed()
    outs = rig.run(0.17 + 0.3)
    assert 'moveit_timeout' in rules(outs) and not np.any(outs[-1].dq) and outs[-1].mode is Mode.HOLDING


def test_a_failure_is_said_and_holds():
    rig = AskingRig()
    rig.feed()
    (verdict,) = rig.answer(failure='/check_state_validity is gone')
    assert verdict.rule == 'moveit' and verdict.action is VerdictAction.HELD and 'is gone' in verdict.text
    assert not np.any(rig.run(0.3)[-1].dq)


def test_a_chunk_is_cut_at_what_is_in_the_way():
    rig = AskingRig()
    rig.feed()
    (verdict,) = rig.answer(free=6, obstacle='fr3_hand would touch box', subject='fr3_hand and box')
    assert verdict.rule == 'collision' and verdict.action is VerdictAction.CLIPPED
    asked = rig.judge.questions[0]
    kept = int(verdict.value)
    assert 3 <= kept <= 5 and (kept + 0.5) * 0.1 <= asked.times[5] + 1e-9 and 'after' in verdict.text
    rig.run(1.5)
    reached = KIN.position(rig.q)[1] - KIN.position(HOME)[1]
    assert reached == pytest.approx(0.02 * kept, abs=2e-3)
    furthest = max(o.commanded_pose[1, 3] for o in rig.outputs)
    assert furthest <= asked.poses[5][1, 3] + 1e-3, 'it never leaves what was found free'


@pytest.mark.parametrize('free', [0, 1])
def test_something_in_the_way_at_once_refuses_and_brakes(free):
    rig = AskingRig()
    rig.feed()
    rig.answer()
    rig.run(0.3)
    rig.feed()
    (verdict,) = rig.answer(free=free, obstacle='fr3_link5 would touch shelf', subject='fr3_link5 and shelf')
    assert verdict.rule == 'collision' and verdict.action is VerdictAction.REFUSED
    assert not np.any(rig.run(0.35)[-1].dq)


def test_the_newest_question_counts():
    rig = AskingRig()
    rig.feed()
    rig.tick()
    rig.feed()
    assert rig.answer(question=0) == () and not rig.controller.player.active
    assert rig.answer(question=1) == () and rig.controller.player.active


@pytest.mark.parametrize('what', ['stop', 'disable', 'drop'])
def test_an_answer_after_the_end_starts_nothing(what):
    rig = AskingRig()
    rig.feed()
    if what == 'stop':
        rig.controller.stop('test')
    elif what == 'disable':
        rig.controller.enable(False)
    else:
        rig.controller.drop_chunk('publisher died')
    rig.answer()
    assert not np.any(rig.run(0.3)[-1].dq) and not rig.controller.player.active


def test_chunks_that_the_ladder_refuses_are_not_asked_about():
    rig = AskingRig()
    rig.feed(frame_id='world')
    rig.feed(delay=5.0)
    assert not rig.judge.questions


def test_contacts_and_differences_in_words_and_numbers():
    assert describe_contacts([('a', 'b'), ('a', 'c')]) == ('a and b', 'a would touch b (and 1 more contacts)')
    assert 'not valid' in describe_contacts([])[1]
    ours = np.linspace(0.0, 1.0, 5)[:, None] * np.ones(7)
    theirs = np.linspace(0.0, 1.0, 50)[:, None] * np.ones(7)
    assert alike(ours, theirs, 0.05) == 5 and alike(ours, theirs[:20], 0.05) == 2 and alike(ours, theirs[:0], 1) == 0
    theirs[15:, 3] += 0.3
    assert alike(ours, theirs, 0.05) == 2, 'another elbow'


def test_states_that_are_judged_are_neither_crowded_nor_far_apart():
    q = np.zeros(2)
    path = np.array([[0.01, 0.0], [0.02, 0.0], [0.06, 0.0], [0.06, -0.22], [0.065, -0.22]])
    found = list(spaced(path, q, 0.05))
    assert [count for count, _ in found] == [2, 3, 3, 3, 3, 3, 5]
    states = np.array([state for _, state in found])
    gaps = np.abs(np.diff(np.vstack([q, states]), axis=0)).max(axis=1)
    assert (gaps <= 0.05 + 1e-9).all() and (gaps > 0.0).all()
    np.testing.assert_allclose(states[-1], path[-1])
    # What is vouched for lies behind what was judged, never before it.
    for count, state in found:
        assert count == 0 or np.abs(path[count - 1] - q).sum() <= np.abs(state - q).sum() + 1e-9


def test_states_are_judged_lazily_and_each_one_where_that_is_wanted():
    path = np.arange(1, 6)[:, None] * 0.01
    assert [(c, float(s[0])) for c, s in spaced(path, np.zeros(1), 0.0)] == [(k, path[k - 1, 0]) for k in range(1, 6)]
    assert list(spaced([], np.zeros(1), 0.05)) == []
    taken = []
    first = next(spaced((taken.append(k) or s for k, s in enumerate(path)), np.zeros(1), 0.025))
    assert first[0] == 2 and taken == [0, 1, 2], 'the next state says whether one is needed, no other does'


@pytest.mark.parametrize('seed', range(20))
def test_a_way_through_something_is_never_called_free(seed):
    rng = np.random.default_rng(seed)
    path = np.cumsum(rng.normal(0.0, 0.06, (16, 3)), axis=0)
    wall = rng.uniform(0.05, 0.3)
    resolution = 0.05
    free = judged = 0
    for judged, state in spaced(path, np.zeros(3), resolution):
        if abs(state[0]) > wall:
            break
        free = judged
    assert free <= len(path)
    # A sample behind the wall is called free only where it is nearer to a judged one than the resolution.
    assert (np.abs(path[:free, 0]) <= wall + resolution).all()
    assert judged == len(path) or free < len(path)
