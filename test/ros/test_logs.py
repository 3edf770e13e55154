"""Python records of the package in the ROS log."""

from __future__ import annotations

import logging

import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from instructvla_ros.nodes import logs


@pytest.fixture(autouse=True)
def restored():
    ours = logging.getLogger(logs.PACKAGE)
    level = ours.level
    yield
    ours.setLevel(level)
    for handler in [h for h in ours.handlers if isinstance(h, logs.RosLog)]:
        ours.removeHandler(handler)


def test_records_come_once_with_their_severity_and_name(capfd):
    logs.forward()
    logs.forward()
    log = logging.getLogger('instructvla_ros.model.somewhere')
    for repeat in range(2):  # the second time rclpy knows these lines of code
        log.debug('too much detail %d', repeat)
        log.info('warming up: %d of 2', repeat)
        log.warning('could not be recorded %d', repeat)
        log.error('failed %d', repeat)
    captured = capfd.readouterr()
    lines = [line for line in (captured.out + captured.err).splitlines() if 'somewhere' in line]
    found = [(line.split(']')[0].strip('['), line.rpartition(': ')[2]) for line in lines]
    assert (
        found
        == [
            (severity, text.format(repeat))
            for repeat in range(2)
            for severity, text in (
                ('INFO', '{} of 2'),
                ('WARN', 'could not be recorded {}'),
                ('ERROR', 'failed {}'),
            )
        ]
        and 'warming up: 0 of 2' in lines[0]
    )


def test_a_record_that_cannot_be_formatted_does_not_end_the_work(capfd, monkeypatch):
    logs.forward()
    # The handlers of pytest do raise.
    monkeypatch.setattr(logging.getLogger(logs.PACKAGE), 'propagate', False)
    logging.getLogger('instructvla_ros.model').info('%d', 'no number')
    assert 'no number' in capfd.readouterr().err
