"""What must not be trained on silently: too few episodes, no words, numbers that are not finite, another robot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import DataError
from ..geometry import Array
from ..model.statistics import Statistics
from .frames import FrameStore

CHANNELS = ('x', 'y', 'z', 'roll', 'pitch', 'yaw', 'gripper')
STATE = ('x', 'y', 'z', 'roll', 'pitch', 'yaw', 'padding', 'gripper')
STATE_CUT = 0.5
"""Largest share of frames whose arm state may lie outside of the statistics in a channel: places differ, robots too."""
NARROWEST = 0.04
"""Smallest spread of the motion, in units of that of the statistics: below, metres have met millimetres."""
_SLACK = 0.02
"""Part of the range by which a number may pass a quantile without counting as cut off."""


def check_store(store: FrameStore, fewest: int) -> None:
    """Refuse a dataset that nothing can be learned from.

    Raises:
        DataError: too few episodes, an episode without instruction, or a number that is not finite; names which.
    """
    place = store.place.parent.parent
    count = sum(t.success is not False for t in store.texts)
    if count < fewest:
        failed = len(store.texts) - count
        raise DataError(
            f'{place} has {count} episodes to learn from{f" ({failed} failed ones left out)" if failed else ""}, '
            f'at least {fewest} are needed: record more, or allow fewer with --set fewest={max(1, count)}'
        )
    silent = [t.id for t in store.texts if not t.instruction.strip()]
    if silent:
        raise DataError(
            f'{place}: {len(silent)} of {len(store.texts)} episodes have no instruction ({", ".join(silent[:3])}'
            f'{", ..." if len(silent) > 3 else ""}): build with --instruction, or leave them out'
        )
    for name, values in (('state', store.proprio), ('action', np.where(store.valid[..., None], store.actions, 0.0))):
        bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if bad.any():
            row = int(bad.argmax())
            episode = store.texts[int(store.episode[row])].id
            raise DataError(f'{place}: the {name} of episode {episode} is not finite in frame {store.frame[row]}')


def check_statistics(stores: Sequence[FrameStore], statistics: Statistics, limit: float, origin: str) -> None:
    """Refuse statistics that do not fit the motion: those of another robot, rate or unit.

    Args:
        limit: largest share of steps that may be cut off in a channel. origin: where the statistics are from.

    Raises:
        DataError: names the channel, both ranges, and what to do.
    """
    advice = (
        f'the {origin} belong to another robot, rate or unit. Compute new ones with --set statistics=data (the '
        'expert then has to learn the new scale), or allow it with --set clipped=1'
    )
    for store in stores:
        if not store.has_actions or limit >= 1.0:
            continue
        place = store.place.parent.parent
        steps = np.asarray(store.actions, np.float64)[np.asarray(store.valid)]
        scaled = np.asarray(statistics.mask)
        cut = np.where(scaled, outside(steps, statistics.q01, statistics.q99), 0.0)
        worst = int(cut.argmax())
        if cut[worst] > limit:
            low, high = np.quantile(steps[:, worst], (0.01, 0.99))
            raise DataError(
                f'{place}: {cut[worst]:.0%} of the steps lie outside of {statistics.q01[worst]:.4g} .. '
                f'{statistics.q99[worst]:.4g} in {CHANNELS[worst]} (the data: {low:.4g} .. {high:.4g}): {advice}'
            )
        spread = np.subtract(*np.quantile(steps[:, :3], (0.99, 0.01), axis=0))
        share = float((spread / np.maximum((statistics.q99 - statistics.q01)[:3], 1e-9)).max())
        if scaled[:3].all() and share < NARROWEST:
            raise DataError(
                f'{place}: the translation spans {spread.max():.2g} m per step, {share:.1%} of the statistics: {advice}'
            )
        if statistics.proprio_q01 is None or statistics.proprio_q99 is None:
            continue
        state = np.asarray(store.proprio, np.float64)
        low, high = statistics.proprio_q01, statistics.proprio_q99
        away = np.where(high > low, outside(state, low, high), 0.0)
        worst = int(away.argmax())
        if away[worst] > STATE_CUT:
            raise DataError(
                f'{place}: the arm is outside of {low[worst]:.4g} .. {high[worst]:.4g} in {STATE[worst]} in '
                f'{away[worst]:.0%} of the frames: {advice}'
            )


def outside(values: Array, low: Array, high: Array) -> Array:
    """Share (n,) of rows (N, n) that lie outside of low .. high by more than a small part of that range."""
    slack = _SLACK * (high - low)
    return np.asarray(((values < low - slack) | (values > high + slack)).mean(axis=0))
