"""End to end: from the header stamp of a camera image to the stamp of the command that rests on it, per stage.

Runs episodes through the running graph (simulator, policy, controller as processes over DDS) and pools every chunk that
was played. Nothing is stamped by this module: the numbers come from the recorded messages.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SetupError
from ..graph_session import EpisodeRequest, GraphOptions, Session
from . import metrics, runlog

STAGES = {
    'to_policy': 'camera to policy',
    'policy': 'policy',
    'to_command': 'chunk to command',
    'total': 'camera to command',
    'without_policy': 'the same without the policy',
}


def measure_graph(
    folder: Path,
    *,
    policy: str = 'instructvla',
    checkpoint: str = '',
    episodes: int = 3,
    embodiment: str = 'franka.yaml',
    time_limit: float = 20.0,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run episodes of picking and putting and sum up.

    Args:
        folder: for the recordings (empty or new). time_limit: of an episode [s].

    Returns:
        ``stages``: name -> count, mean, p50, p95, p99, max [s] over all chunks that were played; ``jitter`` of the
        controller's period [s]; ``solved`` of ``episodes``; ``policy``, ``checkpoint``.

    Raises:
        SetupError: the graph did not come up, or no chunk was played.
    """
    wanted = [EpisodeRequest(('pick', 'put')[k % 2], 1_000_100 + k) for k in range(episodes)]
    options = GraphOptions(policy, checkpoint, embodiment, record=True, video=False, time_limit=time_limit)
    progress(f'graph: starting, policy {checkpoint or policy}')
    with Session(wanted, folder, options) as session:
        for event in session.events():
            if event['event'] == 'result':
                progress(f'graph: {len(session.rows)} of {episodes} episodes')
        rows = list(session.rows)
    logs = [runlog.load(file.parent) for file in sorted(folder.rglob(runlog.RECORDING))]
    if not logs:
        raise SetupError(f'no episode was recorded in {folder}; see its log/ folder')
    pooled: dict[str, list[Any]] = {name: [] for name in STAGES}
    jitter = []
    for log in logs:
        for name, values in metrics.chunk_latency(log).items():
            pooled[name].append(values)
        period = log.controller.loop_period[log.controller.loop_period > 0]
        nominal = 1.0 / log.meta['control_rate'] if log.meta.get('control_rate') else np.median(period)
        jitter.append(np.abs(period - nominal) if len(period) else period)
    stages = {name: metrics.percentiles(np.concatenate(pooled[name])) for name in STAGES}
    if not stages['total']['count']:
        raise SetupError('no chunk was played: ' + '; '.join(str(r.get('reason', '')) for r in rows))
    return {
        'stages': stages,
        'jitter': metrics.percentiles(np.concatenate(jitter)),
        'episodes': len(rows),
        'solved': sum(bool(r['success']) for r in rows),
        'policy': policy,
        'checkpoint': Path(checkpoint).name,
    }
