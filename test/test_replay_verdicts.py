"""Equal verdicts of period after period are one entry that keeps the worst number."""

from __future__ import annotations

from instructvla_ros.datatypes import Verdict, VerdictAction
from instructvla_ros.evaluation.replay_verdicts import Verdicts, excess

PERIOD = 10_000_000


def lag(value: float, subject: str = 'joint2', chunk: str = 'c1') -> Verdict:
    return Verdict('joint_jerk', VerdictAction.SCALED, subject, value, 4.0, 'rad/s^3', f'{value} of 4', chunk)


def test_a_run_is_one_entry_with_its_worst_number():
    kept = Verdicts()
    for k, value in enumerate((5.0, -9.0, 6.0)):
        kept.add(k * PERIOD, lag(value))
    (entry,) = kept.entries
    assert (entry['stamp_ns'], entry['until_ns'], entry['count']) == (0, 2 * PERIOD, 3)
    assert (entry['value'], entry['text'], entry['action']) == (-9.0, '-9.0 of 4', 'SCALED')


def test_pauses_chunks_subjects_and_clocks_that_go_back_begin_new_ones():
    kept = Verdicts()
    kept.add(0, lag(5.0))
    kept.add(0, lag(5.0, subject='joint3'))  # another one meanwhile does not end the run
    kept.add(PERIOD, lag(5.0))
    kept.add(2 * PERIOD, lag(5.0, chunk='c2'))
    kept.add(12 * PERIOD, lag(5.0, chunk='c2'))
    kept.add(PERIOD, lag(5.0, chunk='c2'))
    assert [e['count'] for e in kept.entries] == [2, 1, 1, 1, 1]
    assert [e['stamp_ns'] // PERIOD for e in kept.entries] == [0, 0, 2, 12, 1]


def test_over_chunks_an_entry_goes_on_and_keeps_what_it_began_with():
    kept = Verdicts(pause=0.3, per_chunk=False)
    numbers = [kept.add(0, lag(5.0)), kept.add(25 * PERIOD, lag(9.0, chunk='c2')), kept.add(60 * PERIOD, lag(6.0))]
    assert numbers == [0, 0, 1]
    assert [(e['count'], e['value'], e['chunk_id']) for e in kept.entries] == [(2, 5.0, 'c1'), (1, 6.0, 'c1')]


def test_what_has_no_number_is_no_excess():
    assert excess(None, 1.0) == excess(float('nan'), 1.0) == excess(2.0, float('inf')) == float('-inf')
    assert excess(-3.0, 1.0) == 2.0
    kept = Verdicts()
    kept.add(0, Verdict('finite', VerdictAction.HELD, 'target', text='not finite'))
    kept.add(PERIOD, Verdict('finite', VerdictAction.HELD, 'target', text='not finite'))
    assert kept.entries[0]['count'] == 2
