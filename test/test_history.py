"""The record of commands: what was commanded at the time of a measurement."""

import numpy as np

from instructvla_ros.control.history import History, linear

Q = [np.full(7, float(k)) for k in range(4)]
OTHER = np.full(7, 9.0)


def past(keep=1.0):
    record = History(keep, linear)
    for k, q in enumerate(Q):
        record.record(k * 500_000_000, q)
    return record


def test_between_two_commands_it_is_linear_and_outside_the_nearest():
    record = past(10.0)
    np.testing.assert_allclose(record.at(750_000_000, OTHER), 1.5)
    np.testing.assert_allclose(record.at(1_000_000_000, OTHER), 2.0)
    np.testing.assert_allclose(record.at(-5, OTHER), 0.0)
    np.testing.assert_allclose(record.at(9_000_000_000, OTHER), 3.0)


def test_what_is_older_than_needed_is_dropped_but_the_span_stays_covered():
    record = past(0.6)
    np.testing.assert_allclose(record.at(0, OTHER), 1.0)
    np.testing.assert_allclose(record.at(900_000_000, OTHER), 1.8)


def test_without_any_command_the_given_one_is_the_answer_and_an_earlier_time_changes_nothing():
    record = past()
    record.record(100, OTHER)
    np.testing.assert_allclose(record.at(10**12, OTHER), 3.0)
    record.clear()
    np.testing.assert_allclose(record.at(0, OTHER), 9.0)
