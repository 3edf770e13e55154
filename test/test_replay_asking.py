"""The policy beside the reading of a recording: order of what the judge hears, errors, one question at a time."""

from __future__ import annotations

import threading

import pytest

from instructvla_ros.errors import ObservationError
from instructvla_ros.evaluation.replay_asking import Asking, WaitingJudge


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
    asking = Asking(policy)
    try:
        asking.ask('a', 'old words', False, lambda answer: got.append((answer, threading.current_thread())))
        assert not got  # ask does not wait
        policy.go.set()
        asking.ask('b', 'old words', True, lambda answer: got.append((answer, threading.current_thread())))
        assert len(got) == 1  # but the next question waits for the answer before
        asking.settle()
        asking.settle()
    finally:
        asking.close()
    first, second = (answer for answer, _ in got)
    assert (first.said, first.chunk, first.think) == (None, 'chunk of a', 0.0)
    assert (second.said, second.chunk) == ('words about b', 'chunk of b') and second.infer >= 0.0
    assert [words for _, words, _ in policy.asked] == ['old words', 'words about b']
    assert all(thread is threading.current_thread() for _, thread in got)
    assert all(thread is not threading.current_thread() for *_, thread in policy.asked)


def test_an_error_of_the_policy_comes_out_once_and_the_thread_ends():
    policy = Slow()
    policy.go.set()
    asking = Asking(policy)
    asking.ask('broken', None, False, lambda answer: pytest.fail('there is no answer'))
    with pytest.raises(ObservationError, match='cannot see'):
        asking.settle()
    asking.settle()
    asking.close()
    assert not policy.asked[0][2].is_alive()
