"""The policy beside the reading of a recording: order of what the judge hears, errors, one or many questions."""

from __future__ import annotations

import threading
import time
from math import isfinite

import pytest

from instructvla_ros.datatypes import Act
from instructvla_ros.errors import ObservationError
from instructvla_ros.evaluation.replay_asking import ALONE, FIRST, TIMED, Asking, WaitingJudge


class Diary:
    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))


class Slow:
    """Answers when it is let."""

    def __init__(self):
        self.go, self.asked = threading.Event(), []

    def think(self, seen):
        return f'words about {seen}'

    def infer(self, seen, reasoning):
        assert self.go.wait(10.0)
        self.asked.append((seen, reasoning, threading.current_thread()))
        if seen == 'broken':
            raise ObservationError('cannot see')
        return f'chunk of {seen}'


class Fast(Slow):
    """Works on many at once."""

    def __init__(self):
        super().__init__()
        self.go.set()
        self.many = []

    def prepare(self, seen, keep=2):
        pass

    def act_many(self, asks, reasoning):
        self.many.append([ask.observation for ask in asks])
        for ask in asks:
            said = self.think(ask.observation) if ask.think else None
            reasoning = said or reasoning
            yield Act(said, self.infer(ask.observation, reasoning))


def test_many_are_asked_at_once_behind_the_first_few_and_answered_in_order():
    policy, got = Fast(), []
    asking = Asking(policy, together=ALONE + 2)
    for k in range(2 * ALONE + 5):
        asking.ask(k, k in (0, ALONE + 1), got.append)
    assert [a.chunk for a in got] == [f'chunk of {k}' for k in range(ALONE + 2)]
    asking.settle()
    asking.close()
    assert [a.chunk for a in got] == [f'chunk of {k}' for k in range(2 * ALONE + 5)]
    assert policy.many == [[ALONE, ALONE + 1], [2 * ALONE + 2, 2 * ALONE + 3]]
    second = f'words about {ALONE + 1}'
    assert [words for _, words, _ in policy.asked] == ['words about 0'] * (ALONE + 1) + [second] * (ALONE + 4)
    # How long it takes is known of those that were asked alone.
    assert [isfinite(a.infer) for a in got] == 2 * (ALONE * [True] + 2 * [False]) + [True]


def test_the_policy_has_something_to_do_soon():
    policy, got = Fast(), []
    asking = Asking(policy, together=3 * FIRST)
    for k in range(8 * FIRST):
        asking.ask(k, k == 0, got.append)
        if k == 2 * FIRST:
            assert policy.asked  # it does not wait for as many as it can
    asking.settle()
    assert [len(many) for many in policy.many] == [FIRST - ALONE, 2 * FIRST, 3 * FIRST - ALONE, 2 * FIRST - ALONE]
    asking.forget()  # another instruction: the same from the beginning
    for k in range(FIRST):
        asking.ask(k, k == 0, got.append)
    asking.settle()
    asking.close()
    assert len(policy.many[-1]) == FIRST - ALONE and len(got) == 9 * FIRST


def test_of_a_long_recording_only_some_are_asked_alone():
    policy, got = Fast(), []
    asking = Asking(policy, together=FIRST)
    for k in range(8 * TIMED):
        asking.ask(k, False, got.append)
    asking.settle()
    asking.close()
    assert sum(isfinite(a.infer) for a in got) == TIMED and len(got) == 8 * TIMED


def test_what_was_asked_behind_a_failure_is_not_answered():
    policy, got = Slow(), []
    policy.go.set()
    asking = Asking(policy)
    try:
        asking.ask('broken', False, got.append)
        with pytest.raises(ObservationError, match='cannot see'):
            asking.ask('next', False, got.append)
        asking.settle()
        assert not got
    finally:
        asking.close()


def test_answers_are_handed_over_before_the_last_of_their_batch():
    policy, got, go_on = Fast(), [], threading.Event()

    def hesitate(seen, reasoning):
        assert seen < FIRST - 1 or go_on.wait(10.0)
        return f'chunk of {seen}'

    policy.infer = hesitate
    asking = Asking(policy, together=FIRST)
    try:
        for k in range(FIRST):
            asking.ask(k, False, got.append)
        deadline = time.monotonic() + 10.0
        while asking._answers.qsize() < FIRST - 1 and time.monotonic() < deadline:
            time.sleep(0.005)
        asking.ask(FIRST, False, got.append)
        assert [a.chunk for a in got] == [f'chunk of {k}' for k in range(FIRST - 1)]
        go_on.set()
        asking.settle()
        assert [a.chunk for a in got] == [f'chunk of {k}' for k in range(FIRST + 1)]
    finally:
        go_on.set()
        asking.close()


def test_after_a_failure_old_answers_are_not_taken_for_new_ones():
    policy, got = Fast(), []
    asking = Asking(policy, together=FIRST)
    try:
        asks = ['broken', *range(2 * FIRST - 1)]
        with pytest.raises(ObservationError, match='cannot see'):
            for seen in asks:
                asking.ask(seen, False, got.append)
        asking.settle()
        for seen in ('a', 'b'):
            asking.ask(seen, False, got.append)
        asking.settle()
        assert [a.chunk for a in got] == ['chunk of a', 'chunk of b']
    finally:
        asking.close()


def test_the_judge_hears_of_several_chunks_in_their_order():
    diary = Diary()
    judge = WaitingJudge(diary)
    for now in (1, 2, 3):
        judge.hold()
        judge.advance(now)
    assert not diary.calls
    judge.chunk(0, 'a', 1, 1)
    assert diary.calls == [('chunk', 0, 'a', 1, 1), ('advance', 1)]
    judge.chunk(1, 'b', 2, 2)
    judge.chunk(2, 'c', 3, 3)
    judge.advance(4)
    assert [c[1] for c in diary.calls] == [0, 1, 1, 2, 2, 3, 4]


def test_what_follows_a_chunk_is_told_after_it():
    diary = Diary()
    judge = WaitingJudge(diary)
    judge.advance(1)
    judge.hold()
    judge.advance(2)
    judge.state('there')
    judge.drop('why')
    assert diary.calls == [('advance', 1)]
    judge.chunk(0, 'chunk', 5, 1)
    judge.advance(3)
    told = [('advance', 1), ('chunk', 0, 'chunk', 5, 1), ('advance', 2), ('state', 'there'), ('drop', 'why')]
    assert diary.calls == [*told, ('advance', 3)]
    judge.finish()
    judge.close()
    assert [c[0] for c in diary.calls[-2:]] == ['finish', 'close']


def test_the_answer_is_handed_over_in_the_thread_that_settles():
    policy, got = Slow(), []
    asking = Asking(policy, together=5)  # which this policy cannot
    try:
        asking.ask('a', False, lambda answer: got.append((answer, threading.current_thread())))
        assert not got  # ask does not wait
        policy.go.set()
        asking.ask('b', True, lambda answer: got.append((answer, threading.current_thread())))
        assert len(got) == 1  # but the next question waits for the answer before
        asking.ask('c', False, lambda answer: got.append((answer, threading.current_thread())))
        asking.settle()
        asking.settle()
        asking.forget()
        asking.ask('d', False, lambda answer: got.append((answer, threading.current_thread())))
        asking.settle()
    finally:
        asking.close()
    first, second, *_ = (answer for answer, _ in got)
    assert (first.said, first.chunk, first.think) == (None, 'chunk of a', 0.0)
    assert (second.said, second.chunk) == ('words about b', 'chunk of b') and second.infer >= 0.0
    assert [words for _, words, _ in policy.asked] == [None, 'words about b', 'words about b', None]
    assert all(thread is threading.current_thread() for _, thread in got)
    assert all(thread is not threading.current_thread() for *_, thread in policy.asked)


def test_an_error_of_the_policy_comes_out_once_and_the_thread_ends():
    policy = Slow()
    policy.go.set()
    asking = Asking(policy)
    asking.ask('broken', False, lambda answer: pytest.fail('there is no answer'))
    with pytest.raises(ObservationError, match='cannot see'):
        asking.settle()
    asking.settle()
    asking.close()
    assert not policy.asked[0][2].is_alive()
