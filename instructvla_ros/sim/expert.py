"""A scripted expert that solves every task from the simulator's ground truth.

It is a pure function of the state: :meth:`ScriptedExpert.plan` looks at one :class:`SceneState`, decides, imagines the
outcome of the step kinematically, decides again, and so on for the horizon. It remembers nothing, so it does not
matter how much of a plan was executed, how old the state was, or who moved the object meanwhile. Grasping and letting
go are never imagined: within a plan the hand closes or opens and waits, and only a state that reports the object as
held, or as free, lets it go on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..datatypes import STEP_DIM, SceneState
from ..errors import TaskError, suggest
from ..geometry import Array, apply_delta
from .expert_motion import Pace, step_to
from .expert_phases import PULLED, PUSHED, Intent, decide, fingers_at
from .tasks import TASKS

FINGER_SPEED = 1.5
"""Change of the openness per second that is assumed when a plan is imagined; real fingers are faster but start late."""


@dataclass(frozen=True)
class ExpertPlan:
    """What the expert would do.

    Attributes:
        steps: (H, 7) base-frame dx dy dz [m], rpy delta [rad], openness 0 or 1.
        sentence: first person. phase: name of the first step's phase. done: nothing is left to do.
    """

    steps: Array
    sentence: str
    phase: str
    done: bool


class ScriptedExpert:
    """Plans ``horizon`` steps of ``step_period`` seconds."""

    def __init__(self, step_period: float, horizon: int, pace: Pace | None = None) -> None:
        """Raises ValueError unless the period is positive and the horizon at least 1."""
        if not (np.isfinite(step_period) and step_period > 0.0) or horizon < 1:
            raise ValueError(f'step_period {step_period} s and horizon {horizon}: both must be positive')
        self.step_period = step_period
        self.horizon = horizon
        self.pace = pace or Pace()

    def plan(self, scene: SceneState, instruction: str = '') -> ExpertPlan:
        """Steps from ``scene.tcp_pose`` on. Task, target and destination are those of ``scene``.

        Args:
            instruction: only looked at when the scene has no task: it then says what is missing.

        Raises:
            TaskError: the scene has no task, or lacks the objects of its task.
        """
        _check(scene, instruction)
        steps = np.zeros((self.horizon, STEP_DIM))
        state, first = scene, None
        for k in range(self.horizon):
            intent = decide(state)
            first = first or intent
            steps[k, :6] = step_to(state.tcp_pose, intent.goal, self.step_period, self.pace)
            steps[k, 6] = intent.openness
            state = imagine(state, steps[k], self.step_period)
        assert first is not None  # horizon >= 1
        return ExpertPlan(steps, first.sentence, first.phase, bool(first.done))


def imagine(scene: SceneState, step: Array, dt: float) -> SceneState:
    """The state after one step, if the arm follows exactly and a held object stays in the hand."""
    tcp = apply_delta(scene.tcp_pose, step[:6])
    change = FINGER_SPEED * dt * (1.0 if step[6] > 0.5 else -1.0)
    gripper = float(np.clip(scene.gripper + change, fingers_at(scene) if change < 0 else 0.0, 1.0))
    objects = dict(scene.objects)
    obj = objects.get(scene.held)
    if obj is not None:
        if obj.category == 'drawer':
            objects[obj.name] = replace(obj, opening=_slid(obj.opening, float(-obj.pose[:3, 0] @ step[:3])))
        else:
            moved = tcp @ np.linalg.inv(scene.tcp_pose) @ obj.pose
            objects[obj.name] = replace(obj, pose=moved)
    return replace(scene, tcp_pose=tcp, gripper=gripper, objects=objects)


def _slid(opening: float, way: float) -> float:
    """Opening after a pull; the point where the handle is let go is not passed before a state says so."""
    new = opening + way
    if opening > PUSHED:
        new = max(new, PUSHED + 0.001)
    if opening < PULLED:
        new = min(new, PULLED - 0.001)
    return max(0.0, new)


def _check(scene: SceneState, instruction: str) -> None:
    if scene.task not in TASKS:
        said = f' for {instruction!r}' if instruction else ''
        raise TaskError(f'the scene has no task{said}: got {scene.task!r}.{suggest(scene.task, TASKS)}')
    needed = [scene.target] + ([scene.destination] if scene.task in ('put', 'stack', 'move_near') else [])
    for name in needed:
        if name not in scene.objects:
            raise TaskError(f'task {scene.task!r}: no object {name!r} in the scene.{suggest(name, scene.objects)}')


__all__ = ['ExpertPlan', 'Intent', 'ScriptedExpert', 'imagine']
