"""The scripted expert of the simulator behind the interface of a policy: for demonstrations, and to prove the path."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from .datatypes import ActionChunk, Observation, Reasoning, ReasoningKind, SceneObject, SceneState, new_id
from .errors import ObservationError, TaskError
from .policy import make_chunk
from .sim.expert import ScriptedExpert
from .sim.language import GRASPABLE, Description, parse


class ExpertPolicy:
    """Reads ``Observation.privileged`` and therefore cannot run on a robot; its sentences say so in ``source``.

    It follows the instruction in the scene there is, also when the simulator was reset for another task.
    """

    name = 'expert'
    privileged = True
    checkpoint_revision = ''
    source = 'expert (reads simulator state)'

    def __init__(self, step_period: float, horizon: int) -> None:
        self._step_period = step_period
        self._expert = ScriptedExpert(step_period, horizon)

    def reset(self) -> None:
        """Nothing to forget: the expert is a function of the state."""

    def think(self, observation: Observation) -> Reasoning | None:
        """Say what the expert does next.

        Raises:
            ObservationError: no ground truth. TaskError: the instruction does not fit the scene.
        """
        started = time.perf_counter()
        plan = self._expert.plan(_asked(observation), observation.instruction)
        return self._say(observation, observation.instruction, plan.sentence, ReasoningKind.PLAN, started)

    def infer(self, observation: Observation, reasoning: Reasoning | None) -> ActionChunk:
        """Next steps of the expert; raises like :meth:`think`."""
        started = time.perf_counter()
        plan = self._expert.plan(_asked(observation), observation.instruction)
        steps = np.asarray(plan.steps, dtype=np.float64)
        return make_chunk(self, observation, steps, self._step_period, started, reasoning, plan.done)

    def answer(self, observation: Observation, question: str) -> Reasoning:
        """List what is on the table; the expert neither understands questions nor looks at images."""
        started = time.perf_counter()
        scene = _truth(observation)
        held = f' The gripper holds the {scene.held.replace("_", " ")}.' if scene.held else ''
        text = f'The simulator has {_listed(scene)}.{held}'
        return self._say(observation, question, text, ReasoningKind.ANSWER, started)

    def _say(
        self, observation: Observation, instruction: str, text: str, kind: ReasoningKind, started: float
    ) -> Reasoning:
        return Reasoning(
            id=new_id('say'),
            stamp_ns=observation.stamp_ns,
            instruction=instruction,
            text=text,
            kind=kind,
            latency=time.perf_counter() - started,
            source=self.source,
        )


def _truth(observation: Observation) -> SceneState:
    if observation.privileged is None:
        raise ObservationError(
            "policy 'expert' needs the simulator's ground truth (/sim/state), which no robot has; "
            "start sim_node, or choose policy 'hold' or 'instructvla'"
        )
    return observation.privileged


def _asked(observation: Observation) -> SceneState:
    """Ground truth with task, target and destination of the instruction instead of those of the last reset."""
    scene = _truth(observation)
    instruction = observation.instruction.strip()
    if not instruction or instruction == scene.instruction:
        return scene
    command = parse(instruction)
    graspable = command.task in ('pick', 'put', 'move_near', 'stack')
    target = _find(scene, command.target, scene.target, graspable)
    destination = ''
    if command.destination is not None:
        destination = _find(scene, command.destination, scene.destination, False, apart_from=target)
    return replace(scene, task=command.task, instruction=instruction, target=target, destination=destination)


def _find(scene: SceneState, said: Description, expected: str, graspable: bool, apart_from: str = '') -> str:
    fitting = [
        o.name
        for o in scene.objects.values()
        if said.matches(o.category, o.color, o.size)
        and o.name != apart_from
        and (o.category in GRASPABLE or not graspable)
    ]
    if not fitting:
        raise TaskError(f'{said} is not in the scene; it has {_listed(scene)}. Name one of these, or reset the world')
    if len(fitting) > 1 and expected not in fitting:
        raise TaskError(f'{said} may be any of {", ".join(fitting)}; add a colour or a size')
    return expected if expected in fitting else fitting[0]


def _listed(scene: SceneState) -> str:
    return ', '.join(f'a {_words(o)}' for o in scene.objects.values()) or 'no objects'


def _words(thing: SceneObject) -> str:
    return ' '.join(word for word in (thing.size, thing.color, thing.category) if word)
