"""Scoring of a running episode: progress and success from the ground truth.

A task has succeeded when its predicate has held for :data:`HOLD_TIME` while the object hardly moved, so neither a
thing flying past nor a hand passing by counts.

=============  ==================================================================================================
task           predicate
=============  ==================================================================================================
pick           the target is held, at least 5 cm over its start
put, stack     :func:`~instructvla_ros.sim.relations.placed` in/on the destination, and released
move_near      placed near the destination, which moved less than 5 cm, and released
open_drawer    at least 10 cm open
close_drawer   at most 1 cm open
=============  ==================================================================================================

Progress is 1 after success, else below 1. Moving an object: up to 0.3 as the hand comes to the target; 0.3 to 0.5 as
a held target is raised by 5 cm (for ``pick`` 0.3 to 0.95); up to 0.8 as a held target nears its destination; 0.9 once
it is placed. Drawers: up to 0.2 as the hand comes to the handle, the rest in proportion to the way the drawer went.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..datatypes import SceneObject, SceneState
from ..errors import TaskError
from .relations import distance, placed, released
from .scene import handle_position
from .tasks import Episode

LIFT_HEIGHT = 0.05
OPEN_ENOUGH = 0.10
SHUT_ENOUGH = 0.01
HOLD_TIME = 0.3
"""How long the predicate has to hold [s]."""
STILL = 0.008
"""How far a placed object may move during that time [m]."""


def predicate(episode: Episode, start: SceneState, now: SceneState) -> bool:
    """Whether the task's condition holds at this instant; ``start`` is the scene at the reset."""
    target = now.objects[episode.target]
    if episode.task == 'pick':
        before = start.objects[episode.target]
        return now.held == target.name and bool(target.pose[2, 3] - before.pose[2, 3] >= LIFT_HEIGHT)
    if episode.task == 'open_drawer':
        return target.opening >= OPEN_ENOUGH
    if episode.task == 'close_drawer':
        return target.opening <= SHUT_ENOUGH
    destination = now.objects[episode.destination]
    if not placed(target, destination, episode.relation) or not released(now, target):
        return False
    return episode.task != 'move_near' or distance(destination, start.objects[destination.name]) < 0.05


def progress(episode: Episode, start: SceneState, now: SceneState) -> float:
    """How far the task is, 0..1 (see the module); below 1."""
    target, before = now.objects[episode.target], start.objects[episode.target]
    if episode.task in ('open_drawer', 'close_drawer'):
        goal = OPEN_ENOUGH if episode.task == 'open_drawer' else SHUT_ENOUGH
        went = (target.opening - before.opening) / (goal - before.opening) if goal != before.opening else 1.0
        reach = _nearer(_to_handle(start.tcp_pose, before), _to_handle(now.tcp_pose, target))
        return float(np.clip(max(0.2 * reach, 0.2 + 0.75 * went if went > 0.02 else 0.0), 0.0, 0.95))
    reach = _nearer(_between(start.tcp_pose, before), _between(now.tcp_pose, target))
    lifted = float(np.clip((target.pose[2, 3] - before.pose[2, 3]) / LIFT_HEIGHT, 0.0, 1.0))
    held = now.held == target.name
    if episode.task == 'pick':
        return 0.3 + 0.65 * lifted if held else 0.3 * reach
    destination = now.objects[episode.destination]
    if predicate(episode, start, now):
        return 0.9
    if not held:
        return 0.3 * reach
    went = _nearer(distance(before, start.objects[destination.name]), distance(target, destination))
    return max(0.3 + 0.2 * lifted, 0.5 + 0.3 * went if lifted > 0.3 or went > 0.5 else 0.0)


class TaskMonitor:
    """Follows one episode from its first update on."""

    def __init__(self, episode: Episode) -> None:
        """Raises TaskError when the episode names objects that its scene does not have."""
        names = {o.name for o in episode.scene.objects}
        for name in (episode.target, episode.destination):
            if name and name not in names:
                raise TaskError(f'episode {episode.task} {episode.seed}: no object {name!r} in its scene')
        self.episode = episode
        self._start: SceneState | None = None
        self._since: int | None = None
        self._anchor = np.zeros(3)

    def update(self, scene: SceneState) -> SceneState:
        """The same state with the fields of the task filled in; the first call is the start of the episode."""
        episode = self.episode
        if self._start is None:
            self._start = scene
        now = scene.stamp_ns
        if predicate(episode, self._start, scene):
            where = np.array(scene.objects[episode.target].pose[:3, 3])
            moves = (
                episode.task in ('put', 'stack', 'move_near') and float(np.linalg.norm(where - self._anchor)) > STILL
            )
            if self._since is None or moves:
                self._since, self._anchor = now, where
        else:
            self._since = None
        success = self._since is not None and (now - self._since) * 1e-9 >= HOLD_TIME
        return replace(
            scene,
            target=episode.target,
            destination=episode.destination,
            task=episode.task,
            instruction=episode.instruction,
            seed=episode.seed,
            progress=1.0 if success else float(progress(episode, self._start, scene)),
            success=success,
            elapsed=max(0.0, (now - self._start.stamp_ns) * 1e-9),
            time_limit=episode.time_limit,
        )


def _nearer(at_start: float, now: float) -> float:
    return float(np.clip(1.0 - now / max(at_start, 1e-3), 0.0, 1.0))


def _between(tcp: np.ndarray, obj: SceneObject) -> float:
    return float(np.linalg.norm(tcp[:3, 3] - obj.pose[:3, 3]))


def _to_handle(tcp: np.ndarray, drawer: SceneObject) -> float:
    return float(np.linalg.norm(tcp[:3, 3] - handle_position(drawer)))
