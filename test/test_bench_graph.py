"""End to end: what is made of the recordings of the episodes; the graph itself is in test/ros."""

from __future__ import annotations

import numpy as np
import pytest
import synthetic_run

from instructvla_ros.errors import SetupError
from instructvla_ros.evaluation import bench_graph, metrics, runlog


class Episodes:
    """A session that leaves recordings behind, as the episode node does."""

    logs: tuple[runlog.RunLog, ...] = ()

    def __init__(self, wanted, folder, options) -> None:
        self.wanted, self.folder, self.options = wanted, folder, options
        self.rows = [{'success': k == 0, 'reason': 'out of time'} for k in range(len(wanted))]

    def __enter__(self) -> Episodes:
        return self

    def __exit__(self, *_) -> None:
        pass

    def events(self):
        for k, log in enumerate(self.logs):
            runlog.save(log, self.folder / f'episode_{k:03d}')
            yield {'event': 'result'}


def test_chunks_of_all_episodes_are_pooled(tmp_path, monkeypatch):
    log = synthetic_run.synthetic_run(4.0)
    monkeypatch.setattr(Episodes, 'logs', (log, log))
    monkeypatch.setattr(bench_graph, 'Session', Episodes)
    said: list[str] = []
    found = bench_graph.measure_graph(tmp_path, checkpoint='models/tiny', episodes=2, progress=said.append)
    one = metrics.chunk_latency(log)
    assert found['stages']['total']['count'] == 2 * len(one['total']) > 0
    for name, values in one.items():
        assert found['stages'][name]['p50'] == pytest.approx(float(np.median(np.tile(values, 2))))
    assert set(found['stages']) == set(bench_graph.STAGES) == set(one)
    assert (found['episodes'], found['solved'], found['checkpoint']) == (2, 1, 'tiny')
    assert found['jitter']['p99'] >= 0.0 and len(said) == 3


def test_a_graph_that_played_nothing_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_graph, 'Session', Episodes)
    with pytest.raises(SetupError, match='no episode was recorded'):
        bench_graph.measure_graph(tmp_path, episodes=1)
