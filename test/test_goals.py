"""The goal state machine: every outcome, and the words that come with it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from instructvla_ros.datatypes import ActionChunk, Verdict, VerdictAction
from instructvla_ros.errors import InstructionError, TaskError
from instructvla_ros.goals import ControllerMode, Goal, Outcome, Phase, check_duration, check_instruction
from instructvla_ros.observing import Stale
from instructvla_ros.settings import PolicySettings

SETTINGS = PolicySettings(input_timeout=3.0, done_chunks=3, max_refusals=4)
STALE = Stale('wrist', 0.5, 0.3, "view 'wrist' is silent: newest image 0.500 s old, allowed 0.300 s")


def goal(duration: float = 10.0) -> Goal:
    return Goal('pick the red cube', duration, False, 100.0, SETTINGS)


def chunk(name: str, done: bool = False) -> ActionChunk:
    return ActionChunk(name, 1, 1, 0.1, np.zeros((8, 7)), 'base', np.eye(4), policy='expert', done=done)


def refusal(chunk_id: str) -> Verdict:
    return Verdict('workspace', VerdictAction.REFUSED, 'z', -0.1, 0.0, 'm', 'tcp z -0.100 m is below 0.000 m', chunk_id)


def outcome(g: Goal) -> Outcome:
    assert g.ending is not None
    return g.ending.outcome


def test_runs_through_its_phases() -> None:
    g = goal()
    assert g.phase is Phase.WAITING_INPUT
    g.on_observation(100.1)
    assert g.phase is Phase.THINKING
    g.on_chunk(chunk('a'), 100.2)
    assert g.phase is Phase.ACTING and g.chunks == 1 and g.chunk_id == 'a'
    g.on_stale(STALE, 100.3)
    assert g.phase is Phase.WAITING_INPUT
    g.on_controller(ControllerMode.DISABLED, '', (), 100.4)
    g.on_observation(100.4)
    g.on_chunk(chunk('b'), 100.5)
    assert g.phase is Phase.HOLDING and g.ending is None


def test_done_must_be_said_several_times_in_a_row() -> None:
    g = goal()
    for k, done in enumerate([True, True, False, True, True]):
        g.on_chunk(chunk(f'{k}', done), 101.0 + k)
        assert g.ending is None
    g.on_chunk(chunk('last', True), 107.5)
    assert outcome(g) is Outcome.SUCCEEDED and '3 chunks' in g.ending.reason and '7.5 s' in g.ending.reason
    assert g.elapsed(500.0) == pytest.approx(7.5)


def test_success_of_the_simulator_must_last() -> None:
    g = goal()
    g.on_observation(101.0, success=True)
    g.on_observation(101.1, success=False)
    g.on_observation(101.2, success=True, progress=0.9)
    g.on_observation(101.3, success=True)
    assert g.ending is None
    g.on_observation(101.45, success=True)
    assert outcome(g) is Outcome.SUCCEEDED and 'simulator' in g.ending.reason


def test_without_a_simulator_nothing_is_success() -> None:
    g = goal()
    for k in range(20):
        g.on_observation(100.0 + 0.1 * k, success=None)
    assert g.ending is None and math.isnan(g.progress)


def test_silence_ends_after_the_timeout_and_a_single_observation_restarts_it() -> None:
    g = goal()
    g.on_stale(STALE, 102.9)
    assert g.ending is None
    g.on_observation(103.0)
    g.on_stale(STALE, 105.9)
    assert g.ending is None
    g.on_stale(STALE, 106.1)
    assert outcome(g) is Outcome.STALE_INPUT and 'wrist' in g.ending.reason and '3.1 s' in g.ending.reason


def test_timeout_says_what_it_was_waiting_for() -> None:
    g = goal(5.0)
    g.on_chunk(chunk('a'), 101.0)
    g.tick(104.9)
    assert g.ending is None
    g.tick(105.1)
    assert outcome(g) is Outcome.TIMEOUT and 'controller_node' in g.ending.reason
    disabled = goal(5.0)
    disabled.on_controller(ControllerMode.DISABLED, '', (), 101.0)
    disabled.tick(106.0)
    assert disabled.ending is not None and 'not enabled' in disabled.ending.reason
    stale = goal(2.0)
    stale.on_stale(STALE, 101.0)
    stale.tick(103.0)
    assert stale.ending is not None and 'wrist' in stale.ending.reason
    forever = Goal('x', math.inf, False, 0.0, SETTINGS)
    forever.tick(1e9)
    assert forever.ending is None


def test_stop_latch() -> None:
    g = goal()
    g.on_controller(
        ControllerMode.STOPPED, '', (Verdict('stop_latch', VerdictAction.HELD, text='asked by the operator'),), 101.0
    )
    assert outcome(g) is Outcome.STOPPED and 'asked by the operator' in g.ending.reason and 'reset' in g.ending.reason


def test_persistent_refusals_are_unsafe_single_ones_are_not() -> None:
    g = goal()
    for k in range(20):
        name = f'c{k}'
        g.on_chunk(chunk(name), 101.0 + k)
        if k % 3:
            g.on_controller(ControllerMode.HOLDING, '', (refusal(name), refusal(name)), 101.1 + k)
        else:
            g.on_controller(ControllerMode.TRACKING, name, (), 101.1 + k)
    assert g.ending is None
    for k in range(4):
        name = f'd{k}'
        g.on_chunk(chunk(name), 130.0 + k)
        g.on_controller(ControllerMode.DECELERATING, '', (refusal(name),), 130.1 + k)
        # A refused chunk that is named as the one being played proves nothing.
        g.on_controller(ControllerMode.TRACKING, name, (), 130.2 + k)
    assert outcome(g) is Outcome.UNSAFE and '4 chunks' in g.ending.reason and 'below 0.000 m' in g.ending.reason


def test_refusals_of_other_chunks_do_not_count() -> None:
    g = goal()
    g.on_chunk(chunk('mine'), 101.0)
    for k in range(10):
        g.on_controller(ControllerMode.HOLDING, '', (refusal(f'other{k}'),), 101.0)
    assert g.ending is None


def test_a_controller_that_is_off_is_waited_for() -> None:
    g = goal()
    for k in range(20):
        g.on_chunk(chunk(f'c{k}'), 101.0)
        off = Verdict('disabled', VerdictAction.REFUSED, 'chunk', text='not enabled', chunk_id=f'c{k}')
        g.on_controller(ControllerMode.DISABLED, '', (off,), 101.0)
    assert g.ending is None and g.phase is Phase.HOLDING


def test_the_first_ending_stays() -> None:
    g = goal()
    g.on_policy_error(RuntimeError('out of memory'), 103.0)
    assert not g.end(Outcome.STOPPED, 'cancelled', 104.0)
    assert outcome(g) is Outcome.POLICY_FAILED and g.ending.reason == 'RuntimeError: out of memory'


def test_an_instruction_that_does_not_fit_the_scene_is_rejected() -> None:
    g = goal()
    g.on_policy_error(TaskError('the blue ball is not in the scene'), 103.0)
    assert outcome(g) is Outcome.REJECTED and g.ending.reason == 'the blue ball is not in the scene'


@pytest.mark.parametrize(
    ('text', 'word'),
    [
        ('', 'empty'),
        ('   \n', 'empty'),
        ('x' * 1001, '1001 characters'),
        ('x' * 10_000, '10000 characters'),
        ('pick\x00 it', 'U+0000'),
        ('pick\nit', 'U+000A'),
        ('pick \x1b[2J', 'U+001B'),
        ('pick \u202e it', 'U+202E'),
        ('pick \ud800', 'U+D800'),
    ],
)
def test_bad_instructions_are_refused_by_name(text: str, word: str) -> None:
    with pytest.raises(InstructionError) as caught:
        check_instruction(text, 1000)
    assert word in str(caught.value)


def test_good_instructions_pass_in_any_language() -> None:
    assert check_instruction('  put the red cube in the bowl\n', 1000) == 'put the red cube in the bowl'
    for text in ('lege den roten Würfel in die Schüssel', '把红色方块放进碗里', 'ضع المكعب', 'x' * 1000, 'pick 🟥'):
        assert check_instruction(text, 1000) == text


def test_durations() -> None:
    assert check_duration(0.0, 60.0) == 60.0 and check_duration(5.5, 60.0) == 5.5
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(InstructionError, match='max_duration'):
            check_duration(bad, 60.0)
