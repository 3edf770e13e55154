"""Backend ``moveit``: the ways of chunks are checked by move_group, large motions planned, the scene kept there.

Poses become joints by our own kinematics in the controller's pace, as with ``direct``; move_group is asked once per
chunk, by a thread of its own, and its word decides whether the chunk plays (``control/clearance.py``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from ..control.bounds import Bounds
from ..control.clearance import Answer, Question, alike, describe_contacts, joint_path
from ..control.frames import LinkFrames
from ..control.kinematics import Kinematics
from ..control.route import Route
from ..control.scene import allow_contacts, scene_boxes
from ..errors import InstructVLAError, SetupError
from ..geometry import Array
from ..settings import Control, Embodiment
from . import moveit_messages as messages
from .moveit_link import MoveItError, MoveItLink

SCENE_TIMEOUT = 5.0  # s
NEEDED = ('check_state_validity', 'get_planning_scene', 'apply_planning_scene')


class MoveItBackend:
    """Answers the controller's questions (:class:`instructvla_ros.control.clearance.Clearance`) through move_group.

    Args:
        embodiment, control: configuration. answer: called with each answer, from a thread of this object.
        latency: called with the time each answer took [s].

    Raises:
        SetupError: MoveIt is not installed, move_group is not there in time, or it refuses the scene.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        control: Control,
        answer: Callable[[Answer], None],
        latency: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.embodiment, self.control = embodiment, control
        self._settings = control.moveit
        self._answer, self._latency = answer, latency
        self.group = planning_group(embodiment, control)
        bounds = Bounds.from_settings(embodiment, control)
        source = Kinematics(embodiment)
        self._kinematics = source.limited(bounds.lower, bounds.upper, bounds.velocity)
        self._tip = self._settings.tip or embodiment.tcp_frame
        self._tip_offset = tcp_to_link(source.urdf, embodiment.tcp_frame, self._tip)
        self._lock = threading.Condition()
        self._next: tuple[Question, float] | None = None
        self._closing = False
        self._link = MoveItLink(self._settings.namespace)
        try:
            needed = [*NEEDED, *(['compute_cartesian_path'] if self._settings.check == 'cartesian' else [])]
            absent = self._link.wait(needed, self._settings.startup_wait)
            if absent:
                raise SetupError(
                    f'MoveIt does not offer {", ".join(absent)} ({self._settings.startup_wait} s waited): start '
                    'move_group, or set backend: direct, or backend_fallback: true'
                )
            if self._settings.scene:
                self.apply_scene()
        except BaseException:
            self._link.close()
            raise
        self._thread = threading.Thread(target=self._work, name='moveit', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and the calls."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._thread.join(timeout=1.0)
        self._link.close()

    def ask(self, question: Question) -> None:
        """Take a question over; a newer one replaces one that was not begun."""
        with self._lock:
            self._next = question, time.monotonic()
            self._lock.notify()

    def apply_scene(self) -> None:
        """Put the table and the configured boxes into the planning scene.

        Raises:
            SetupError: move_group does not take it.
        """
        boxes = scene_boxes(self.embodiment, self.control)
        try:
            before = self._link.call('get_planning_scene', messages.scene_components(), SCENE_TIMEOUT)
            names, matrix = allow_contacts(*messages.contact_matrix(before), boxes)
            request = messages.scene_request(boxes, self.embodiment.base_frame, before, names, matrix)
            taken = self._link.call('apply_planning_scene', request, SCENE_TIMEOUT).success
            after = self._link.call('get_planning_scene', messages.scene_components(), SCENE_TIMEOUT)
        except MoveItError as err:
            raise SetupError(f'the planning scene could not be set: {err}') from None
        absent = [b.name for b in boxes if b.name not in messages.object_names(after)]
        if not taken or absent:
            raise SetupError(
                f'move_group did not take {", ".join(absent) or "the scene"} into its planning scene; is the frame '
                f'{self.embodiment.base_frame} known to it (moveit.scene: false leaves the scene to you)?'
            )

    def plan(self, start: Array, goal: Array) -> Route:
        """A collision-free route between joints (n,) [rad] at ``home_speed``. Blocks.

        Raises:
            MoveItError, KinematicsError: no answer, or no way.
        """
        joints, time_limit = self.embodiment.arm_joints, self._settings.planning_time
        request = messages.plan_request(joints, start, goal, self.group, self.control.home_speed, time_limit)
        response = self._link.call('plan_kinematic_path', request, 4.0 * time_limit + 1.0)
        return messages.route_of_plan(response, joints)

    # -- thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closing or self._next is not None)
                if self._closing:
                    return
                assert self._next is not None
                (question, begun), self._next = self._next, None
            try:
                answer = self._judge(question, begun + self._settings.timeout)
            except InstructVLAError as err:
                answer = Answer(question, failure=str(err))
            except Exception as err:  # whatever went wrong, the arm must not wait for an answer that never comes
                answer = Answer(question, failure=f'the check of the chunk failed: {type(err).__name__}: {err}')
            self._latency(time.monotonic() - begun)
            self._answer(answer)

    def _judge(self, question: Question, deadline: float) -> Answer:
        path = joint_path(self._kinematics, question.q, question.poses)
        left = max(deadline - time.monotonic(), 0.001)
        if self._settings.check == 'cartesian':
            return self._check_cartesian(question, path, left)
        return self._check_states(question, path, left)

    def _check_states(self, question: Question, path: Array, timeout: float) -> Answer:
        joints = self.embodiment.arm_joints
        requests = [messages.validity_request(joints, q, self.group) for q in path]
        for k, response in enumerate(self._link.call_many('check_state_validity', requests, timeout)):
            if not response.valid:
                subject, text = describe_contacts(messages.contacts(response))
                return Answer(question, k, text, subject)
        return Answer(question, len(path))

    def _check_cartesian(self, question: Question, path: Array, timeout: float) -> Answer:
        joints, count = self.embodiment.arm_joints, len(path)
        poses = question.poses @ self._tip_offset
        request = messages.cartesian_request(
            joints, question.q, poses, self.group, self._tip, self.embodiment.base_frame
        )
        response = self._link.call('compute_cartesian_path', request, timeout)
        if response.fraction < 0.0 or (not messages.succeeded(response.error_code) and response.fraction == 0.0):
            return Answer(question, failure=f'MoveIt computes no path: {messages.error_name(response.error_code)}')
        free = int(response.fraction * count + 1e-6)
        theirs = messages.joint_positions(response.solution, joints)
        same = alike(path[:free], theirs, self._settings.elbow)
        if same < free:
            text = f"MoveIt's path differs by more than {self._settings.elbow} rad from the one the arm would take"
            return Answer(question, same, text, 'elbow', rule='moveit_path')
        if free < count:
            text = f'MoveIt follows {100.0 * response.fraction:.0f} % of the way; then a collision or its reach ends it'
            return Answer(question, free, text, self._tip)
        return Answer(question, count)


def planning_group(embodiment: Embodiment, control: Control) -> str:
    """Name of the planning group of the arm."""
    return f'{embodiment.name}_arm' if control.moveit.group == 'auto' else control.moveit.group


def tcp_to_link(urdf: str, tcp: str, link: str) -> Array:
    """Fixed T_tcp_link (4, 4) [m] of a description.

    Raises:
        SetupError: one of them is missing, or a joint lies between them.
    """
    frames = LinkFrames(urdf, tcp)
    if link == tcp:
        return np.eye(4)
    if not frames.is_fixed(link):
        raise SetupError(f'moveit.tip {link!r} moves against {tcp!r}; name a link that is fixed to the tcp')
    return frames.pose(link)
