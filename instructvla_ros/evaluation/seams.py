"""What happens where one chunk takes over from another while an episode runs: gap, change of speed, jerk behind it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from ..datatypes import ActionChunk
from ..geometry import Array
from ..visual import chunk_poses

AFTER = 0.1  # s behind a seam in which the jerk is its own
_KEPT = 32  # chunks that may still take over


class Seams:
    """Counts take-overs. Feed it every controller period in its order.

    The gap and the change of speed are between what the two chunks want for the same time, so they belong to the policy
    (real-time chunking makes them small); the jerk is of the joints that were commanded, so it belongs to what the
    player made of them (ensemble and blend make it small).
    """

    def __init__(self) -> None:
        self._chunks: OrderedDict[str, ActionChunk] = OrderedDict()
        self._playing = ''
        self._gaps: list[float] = []
        self._jumps: list[float] = []
        self._at: list[int] = []
        self._speeds: list[Array] = []

    def period(self, stamp_ns: int, chunk_id: str, dq: Array | None, new: ActionChunk | None = None) -> None:
        """Take one period.

        Args:
            stamp_ns: of the period, on the clock of the chunks. chunk_id: that is played, '' for none. dq: commanded
                joint speeds (n,) [rad/s]. new: a chunk that was made in this period.
        """
        if new is not None:
            self._chunks[new.id] = new
            while len(self._chunks) > _KEPT:
                self._chunks.popitem(last=False)
        if chunk_id and self._playing and chunk_id != self._playing:
            self._take_over(stamp_ns, self._chunks.get(self._playing), self._chunks.get(chunk_id))
        self._playing = chunk_id
        if dq is not None:
            self._speeds.append(np.array(dq))

    def _take_over(self, stamp_ns: int, old: ActionChunk | None, new: ActionChunk | None) -> None:
        self._at.append(len(self._speeds))
        if old is None or new is None:
            return
        before, after = _wanted(old, stamp_ns), _wanted(new, stamp_ns)
        if before is not None and after is not None:
            self._gaps.append(float(np.linalg.norm(after[0] - before[0])))
            self._jumps.append(float(np.linalg.norm(after[1] - before[1])))

    def result(self, rate: float) -> dict[str, Any]:
        """seams: how many; seam_gap [m] and seam_jump [m/s]: medians; seam_jerk: rms within 0.1 s behind [rad/s^3].

        None where there was no seam, or where a chunk was over before the next one came.

        Args:
            rate: periods per second.
        """
        jerk = None
        if len(self._speeds) > 3 and self._at:
            values = np.diff(np.array(self._speeds), n=2, axis=0) * rate * rate
            wanted = np.zeros(len(values), dtype=bool)
            for k in self._at:
                wanted[max(k - 2, 0) : k - 1 + round(AFTER * rate)] = True
            if wanted.any():
                jerk = float(np.sqrt(np.mean(values[wanted] ** 2)))
        return {
            'seams': len(self._at),
            'seam_gap': float(np.median(self._gaps)) if self._gaps else None,
            'seam_jump': float(np.median(self._jumps)) if self._jumps else None,
            'seam_jerk': jerk,
        }


def _wanted(chunk: ActionChunk, stamp_ns: int) -> tuple[Array, Array] | None:
    """Position [m] and velocity [m/s] a chunk wants at a time; None after its end."""
    poses = chunk_poses(chunk)[:, :3, 3]
    at = (stamp_ns - chunk.observation_stamp_ns) * 1e-9 / chunk.step_period
    k = int(np.floor(at))
    if not 0 <= k < len(poses) - 1:
        return None
    step = poses[k + 1] - poses[k]
    return poses[k] + (at - k) * step, step / chunk.step_period
