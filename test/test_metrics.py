"""metrics, scores and the recorded-run format against numbers put in by hand."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from synthetic_run import MS, START_NS, synthetic_run

from instructvla_ros.evaluation import metrics, runlog, scores
from instructvla_ros.evaluation.runlog import ChunkRows, ControllerRows, RunLog, RunLogError, Table


@pytest.fixture(scope='module')
def log() -> RunLog:
    return synthetic_run(transport=0.006, policy=0.004, controller=0.005)


def test_latency_per_stage_is_what_was_put_in(log):
    latency = metrics.summarize(log)['latency']
    assert latency['to_policy']['p50'] == pytest.approx(0.006, abs=1e-9)
    assert latency['policy']['p50'] == pytest.approx(0.004, abs=1e-12)
    # The command comes with the first controller period after the chunk: 5 ms later, rounded up to the 10 ms grid.
    assert latency['to_command']['p50'] == pytest.approx(0.010, abs=1e-6)
    assert latency['without_policy']['p50'] == pytest.approx(0.016, abs=1e-6)
    stages = sum(metrics.chunk_latency(log)[name] for name in metrics.STAGES)
    np.testing.assert_allclose(stages, metrics.chunk_latency(log)['total'], atol=1e-9)


def test_no_stage_is_negative_when_the_simulator_fell_behind_its_asked_speed(log):
    """The policy's time counts at the asked speed: 40 ms of it in 10 ms of simulated time."""
    slow = np.full_like(log.chunks.model_latency, 0.040)
    chunks = dataclasses.replace(log.chunks, model_latency=slow)
    latency = metrics.chunk_latency(dataclasses.replace(log, chunks=chunks))
    assert min(v.min() for v in latency.values()) >= 0.0
    np.testing.assert_allclose(latency['policy'], 0.010)
    np.testing.assert_allclose(latency['without_policy'], latency['to_command'])


def test_a_chunk_that_was_never_played_has_no_latency(log):
    chunk = np.where(log.controller.chunk == 3, -1, log.controller.chunk).astype('i4')
    without = dataclasses.replace(log, controller=dataclasses.replace(log.controller, chunk=chunk))
    assert metrics.first_command_ns(without)[3] == 0
    summary = metrics.summarize(without)
    assert summary['chunks'] == {'count': len(log.chunks.created_ns), 'played': len(log.chunks.created_ns) - 1}


def test_jitter_is_against_the_nominal_period(log):
    jitter = metrics.summarize(log)['controller']['jitter']
    assert jitter['p50'] == pytest.approx(0.001, abs=1e-9) and jitter['max'] == pytest.approx(0.001, abs=1e-9)


def test_tracking_error_counts_only_periods_in_motion(log):
    summary = metrics.summarize(log)['tracking']
    assert summary['rms'] == pytest.approx([0.002] * 7)
    still = dataclasses.replace(log.controller, mode=np.ones_like(log.controller.mode))
    assert metrics.summarize(dataclasses.replace(log, controller=still))['tracking']['rms'] == []


def test_path_length_of_a_square():
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [np.nan, 0, 0], [0, 1, 0]], dtype=float)
    assert metrics.path_length(square) == pytest.approx(3.0)
    assert metrics.path_length(np.empty((0, 3))) == 0.0


def test_spans_cover_the_time_without_gaps():
    found = metrics.spans(np.array([0.0, 1.0, 2.0, 3.0]), [1, 1, 2, 2])
    assert found == [(1, 0.0, 2.0), (2, 2.0, 3.0)]
    assert metrics.spans(np.empty(0), []) == []


def test_verdicts_are_grouped_and_the_worst_is_kept(log):
    entry = metrics.verdict_summary(log)[0]
    assert (entry['rule'], entry['action'], entry['unit']) == ('joint_velocity', 'SCALED', 'rad/s')
    assert entry['count'] == len(log.verdicts)
    assert entry['value'] == pytest.approx(max(v['value'] for v in log.verdicts))
    passed = tuple({**v, 'action': 'PASSED'} for v in log.verdicts)
    assert metrics.verdict_summary(dataclasses.replace(log, verdicts=passed)) == []


def test_verdict_without_numbers_is_not_the_worst(log):
    odd = {**log.verdicts[0], 'value': float('nan'), 'limit': float('nan'), 'text': 'odd'}
    entry = metrics.verdict_summary(dataclasses.replace(log, verdicts=(odd, *log.verdicts)))[0]
    assert entry['text'] != 'odd'


def test_cameras(log):
    camera = metrics.frame_statistics(log)['wrist']
    assert camera['rate'] == pytest.approx(1 / 0.07) and camera['transport']['p50'] == pytest.approx(0.004)


def test_percentiles_of_nothing_are_none_and_of_known_values_right():
    assert metrics.percentiles([np.nan])['p50'] is None
    found = metrics.percentiles(np.arange(101))
    assert (found['p50'], found['p95'], found['p99'], found['max'], found['count']) == (50, 95, 99, 100, 101)


def test_an_empty_run_has_a_summary():
    summary = metrics.summarize(RunLog(meta={}, joint_names=()))
    assert summary['duration'] == 0.0 and summary['latency']['total']['p50'] is None
    json.dumps(runlog.plain(summary), allow_nan=False)


# The format.


def test_save_and_load_give_the_same_run(log, tmp_path):
    again = runlog.load(runlog.save(log, tmp_path / 'run'))
    for name in ('controller', 'joints', 'commands', 'chunks', 'frames', 'task'):
        for field in dataclasses.fields(getattr(log, name)):
            mine, other = getattr(getattr(log, name), field.name), getattr(getattr(again, name), field.name)
            np.testing.assert_array_equal(mine, other)
            assert mine.dtype == other.dtype
    np.testing.assert_array_equal(again.steps, log.steps)
    assert (again.joint_names, again.chunk_ids, again.verdicts, again.reasoning) == (
        log.joint_names,
        log.chunk_ids,
        log.verdicts,
        log.reasoning,
    )
    assert metrics.summarize(again) == metrics.summarize(log)


def test_not_finite_words_become_null(log, tmp_path):
    odd = dataclasses.replace(log, verdicts=({**log.verdicts[0], 'value': float('nan'), 'limit': float('inf')},))
    runlog.save(odd, tmp_path)
    assert json.loads((tmp_path / 'run.json').read_text())['verdicts'][0]['value'] is None
    metrics.summarize(runlog.load(tmp_path))


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda f: (f / 'run.json').unlink(), 'run.json is missing'),
        (lambda f: (f / 'recording.npz').write_bytes(b'PK\x03\x04 cut off'), 'damaged'),
        (lambda f: (f / 'run.json').write_text('{"format": 99}'), 'format 99'),
        (lambda f: (f / 'run.json').write_text('[]'), 'format'),
        (lambda f: np.savez(f / 'recording.npz', steps=np.zeros((1, 7))), 'column controller.stamp_ns is missing'),
        (lambda f: np.savez(f / 'recording.npz', steps=np.array([object()], dtype=object)), 'damaged'),
    ],
)
def test_damaged_runs_are_refused_by_name(log, tmp_path, damage, message):
    runlog.save(log, tmp_path)
    damage(tmp_path)
    with pytest.raises(RunLogError, match=message):
        runlog.load(tmp_path)


def test_table_refuses_a_wrong_column_and_a_wrong_shape():
    table = Table(ControllerRows, 7)
    with pytest.raises(RunLogError, match='loop_period'):
        table.append(stamp_ns=1)
    chunks = Table(ChunkRows, 7)
    row = {f.name: 0 for f in dataclasses.fields(ChunkRows)}
    chunks.append(**{**row, 'reference_pose': np.eye(3)})
    with pytest.raises(RunLogError, match='reference_pose'):
        chunks.build()


def test_time_zero(log):
    assert log.start_ns == START_NS and log.seconds(START_NS + 250 * MS) == pytest.approx(0.25)
    rest = dataclasses.replace(log, meta={})
    assert rest.start_ns == START_NS


# Scores.


@pytest.mark.parametrize(
    ('k', 'n', 'low', 'high'),
    # Published values: Brown, Cai, DasGupta (2001) and R's binom.wilson.
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (28, 30, 0.7868, 0.9815), (5, 10, 0.2366, 0.7634)],
)
def test_wilson_interval(k, n, low, high):
    assert scores.wilson(k, n) == pytest.approx((low, high), abs=2e-4)


def test_wilson_bounds():
    assert scores.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match='3 successes in 2'):
        scores.wilson(3, 2)


def test_scores_by_task():
    def row(task, seed, success):
        return {
            'task': task,
            'seed': seed,
            'success': success,
            'outcome': 'SUCCEEDED' if success else 'TIMEOUT',
            'reason': 'r',
            'instruction': 'i',
            'progress': 0.5,
            'success_after': 5.0 + seed if success else None,
            'duration': 6.0,
            'verdicts': {'workspace clipped': 2},
            'latency': {'without_policy': {'p50': 0.01, 'p99': 0.02 + seed / 1000}},
            'jitter': None,
        }

    found = scores.by_task([row('put', 0, True), row('put', 1, False), row('put', 2, True), row('pick', 0, True)])
    put = found['put']
    assert list(found) == ['put', 'pick']
    assert (put['episodes'], put['successes'], put['rate']) == (3, 2, pytest.approx(2 / 3))
    assert put['success_after']['p50'] == pytest.approx(6.0) and put['verdicts'] == {'workspace clipped': 6}
    assert [f['seed'] for f in put['failures']] == [1]
    assert put['latency']['without_policy']['p99_worst'] == pytest.approx(0.022) and put['jitter']['p50'] is None


# Stops.


def stopping(rest_after: float | None, latched: bool = True) -> tuple[RunLog, int]:
    """A joint that moves at 0.5 rad/s and comes to rest linearly in speed after the stop at 1.0 s; None: never."""
    table = Table(ControllerRows, 1)
    asked = START_NS + 1_000_000_000
    q = 0.0
    for k in range(300):
        t = 0.01 * k
        speed = 0.5 if t < 1.0 or rest_after is None else max(0.0, 0.5 * (1.0 - (t - 1.0) / rest_after))
        q += 0.01 * speed
        mode = 'STOPPED' if latched and t >= 1.02 else 'TRACKING'
        row = {f.name: 0 for f in dataclasses.fields(ControllerRows)}
        row.update(
            stamp_ns=START_NS + round(t * 1e9),
            mode=runlog.MODES.index(mode),
            measured_q=[q],
            commanded_q=[q],
            commanded_dq=[speed],
        )
        table.append(**{**row, 'commanded_xyz': (0, 0, 0), 'measured_xyz': (0, 0, 0)})
    return RunLog(meta={'start_ns': START_NS}, joint_names=('j',), controller=table.build()), asked


def test_stop_times():
    found = metrics.stop_times(*stopping(0.2))
    assert found['latched'] == pytest.approx(0.02, abs=1e-6)
    assert 0.15 < found['rest'] < 0.3
    assert found['travel'] == pytest.approx(0.5 * 0.2 / 2, rel=0.15)


def test_a_missed_stop_is_seen():
    assert metrics.stop_times(*stopping(None))['rest'] is None
    assert metrics.stop_times(*stopping(0.2, latched=False))['latched'] is None
