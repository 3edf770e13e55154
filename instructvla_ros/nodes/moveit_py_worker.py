"""The process that holds moveit_py: ``python -m instructvla_ros.nodes.moveit_py_worker <file descriptor>``.

One JSON object per line comes in on standard input and goes out on the file descriptor; what MoveIt prints stays on
standard error. It is a process of its own because moveit_py keeps Python's interpreter while it plans, and because its
teardown can crash: at the end the process leaves without one.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from .. import config
from ..control.scene import allow_contacts, scene_boxes
from ..errors import InstructVLAError, SetupError
from ..settings import Control, Embodiment
from . import moveit_messages as messages
from .moveit_asking import planning_group
from .moveit_py_config import parameters

NODE = 'instructvla_moveit_py'
MISSING = (
    'moveit_py cannot be imported ({}): install ros-<distro>-moveit-py and source it, or choose backend moveit '
    '(services of move_group) or direct'
)


class Worker:
    """moveit_py with a planning scene of ours.

    Raises:
        SetupError: moveit_py or its messages are missing, or MoveIt does not take the configuration or the scene.
    """

    def __init__(self, embodiment: Embodiment, control: Control) -> None:
        if messages.MISSING:
            raise SetupError(messages.MISSING)
        try:
            from moveit.core.collision_detection import CollisionRequest, CollisionResult
            from moveit.planning import MoveItPy, PlanRequestParameters
        except ImportError as err:
            raise SetupError(MISSING.format(err)) from None
        self._embodiment, self._control = embodiment, control
        self._request, self._result = CollisionRequest, CollisionResult
        self._group = planning_group(embodiment, control)
        try:
            # A move_group beside it would answer get_planning_scene too.
            self._moveit = MoveItPy(
                node_name=NODE, config_dict=parameters(embodiment, control), provide_planning_service=False
            )
            self._monitor = self._moveit.get_planning_scene_monitor()
            self._planner = self._moveit.get_planning_component(self._group)
            self._parameters = PlanRequestParameters(self._moveit, '')
        except SetupError:
            raise
        except Exception as err:  # pybind11 raises what C++ threw
            raise SetupError(f'moveit_py does not start: {err}') from err
        if control.moveit.scene:
            self._apply_scene()

    def _apply_scene(self) -> None:
        boxes = scene_boxes(self._embodiment, self._control)
        with self._monitor.read_only() as scene:
            before = SimpleNamespace(scene=scene.planning_scene_message)
        # The matrix that a scene hands out is a copy: a change of it reaches the scene in a message only.
        names, matrix = allow_contacts(*messages.contact_matrix(before), boxes)
        request = messages.scene_request(boxes, self._embodiment.base_frame, before, names, matrix)
        self._monitor.new_planning_scene_message(request.scene)
        with self._monitor.read_only() as scene:
            there = messages.object_names(SimpleNamespace(scene=scene.planning_scene_message))
        absent = [box.name for box in boxes if box.name not in there]
        if absent:
            raise SetupError(
                f'MoveIt did not take {", ".join(absent)} into its planning scene; is the frame '
                f'{self._embodiment.base_frame} in its model (moveit.scene: false leaves the scene to you)?'
            )

    def states(self, path: Sequence[Sequence[float]]) -> dict[str, Any]:
        """How many leading joint states (k, n) [rad] are free, and what is in the way at the next one."""
        joints = self._embodiment.arm_joints
        with self._monitor.read_only() as scene:
            state = copy.deepcopy(scene.current_state)  # the live one changes under our hands
            for k, q in enumerate(path):
                state.joint_positions = dict(zip(joints, q, strict=True))
                state.update()
                if self._collides(scene.check_collision, state):
                    own = self._collides(scene.check_self_collision, state)
                    # moveit_py does not say which bodies touch.
                    subject = 'self' if own else 'scene'
                    text = 'the arm would touch itself' if own else 'the arm would touch something in the scene'
                    return {'free': k, 'subject': subject, 'text': text}
                if not scene.is_state_valid(state, self._group, False):
                    text = 'the state is not valid (a constraint of the scene)'
                    return {'free': k, 'subject': 'state', 'text': text}
        return {'free': len(path), 'subject': '', 'text': ''}

    def _collides(self, check: Callable[..., Any], state: Any) -> bool:
        # Without a group every link counts, the hand and what it holds too.
        result = self._result()
        check(self._request(), result, state)
        return bool(result.collision)

    def plan(self, start: Sequence[float], goal: Sequence[float], speed: float, time: float) -> dict[str, Any]:
        """A motion between joints (n,) [rad]: times [s], positions [rad], velocities [rad/s]; or ``error``."""
        joints = self._embodiment.arm_joints
        with self._monitor.read_only() as scene:
            begin, end = copy.deepcopy(scene.current_state), copy.deepcopy(scene.current_state)
        for state, q in ((begin, start), (end, goal)):
            state.joint_positions = dict(zip(joints, q, strict=True))
            state.update()
        self._parameters.max_velocity_scaling_factor = speed
        self._parameters.max_acceleration_scaling_factor = speed
        self._parameters.planning_time = time
        self._planner.set_start_state(robot_state=begin)
        self._planner.set_goal_state(robot_state=end)
        found = self._planner.plan(single_plan_parameters=self._parameters)
        if not found:
            code = found.error_code
            return {'error': f'MoveIt found no way: {messages.error_name(code) if hasattr(code, "val") else code}'}
        message = found.trajectory.get_robot_trajectory_msg()
        times = [p.time_from_start.sec + 1e-9 * p.time_from_start.nanosec for p in message.joint_trajectory.points]
        return {
            'times': times,
            'positions': messages.joint_positions(message, joints).tolist(),
            'velocities': messages.joint_velocities(message, joints).tolist(),
        }


def answer(worker: Worker, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to one question; an error becomes ``error``."""
    try:
        if asked['op'] == 'states':
            return worker.states(asked['path'])
        if asked['op'] == 'plan':
            return worker.plan(asked['start'], asked['goal'], asked['speed'], asked['time'])
        return {'error': f'no question {asked["op"]!r}'}
    except Exception as err:  # the process goes on; the controller holds the arm and says why
        return {'error': f'{type(err).__name__}: {err}' if not isinstance(err, InstructVLAError) else str(err)}


def main() -> None:
    """Answer until standard input ends."""
    out = os.fdopen(int(sys.argv[1]), 'w', encoding='utf-8')
    # Logs of MoveIt go to standard output; whoever reads ours expects them on standard error.
    os.dup2(2, 1)
    code = 0
    try:
        first = json.loads(sys.stdin.readline())
        embodiment = config.from_dict(Embodiment, first['embodiment'])
        control = config.from_dict(Control, first['control'])
        worker = Worker(embodiment, control)
        out.write(json.dumps({'id': 0}) + '\n')
        out.flush()
        for line in sys.stdin:
            asked = json.loads(line)
            out.write(json.dumps({'id': asked['id'], **answer(worker, asked)}) + '\n')
            out.flush()
    except InstructVLAError as err:
        out.write(json.dumps({'id': 0, 'error': str(err)}) + '\n')
        out.flush()
        code = 2
    except (KeyboardInterrupt, BrokenPipeError, ValueError):
        code = 1
    sys.stderr.flush()
    os._exit(code)  # MoveItPy may crash when it is taken apart


if __name__ == '__main__':
    main()
