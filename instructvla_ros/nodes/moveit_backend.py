"""Backend ``moveit``: the ways of chunks are checked by move_group, large motions planned, the scene kept there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ..control.clearance import Answer, Question, alike, describe_contacts, spaced
from ..control.frames import LinkFrames
from ..control.route import Route
from ..control.scene import allow_contacts, scene_boxes
from ..errors import SetupError
from ..geometry import Array
from ..settings import Control, Embodiment
from . import moveit_messages as messages
from .moveit_asking import AskingBackend
from .moveit_link import MoveItError, MoveItLink

SCENE_TIMEOUT = 5.0  # s
NEEDED = ('check_state_validity', 'get_planning_scene', 'apply_planning_scene')


class MoveItBackend(AskingBackend):
    """Asks the services of move_group.

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
        super().__init__(embodiment, control, answer, latency)
        self._tip = self._settings.tip or embodiment.tcp_frame
        self._tip_offset = tcp_to_link(self.source.urdf, embodiment.tcp_frame, self._tip)
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
        self.start()

    def close(self) -> None:
        """End the thread and the calls."""
        super().close()
        self._link.close()

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

    def check(self, question: Question, path: Iterable[Array], timeout: float) -> Answer:
        """Ask about states along the way, or about all of it as one Cartesian path."""
        if self._settings.check == 'cartesian':
            return self._check_cartesian(question, np.array(list(path)), timeout)
        return self._check_states(question, path, timeout)

    def _check_states(self, question: Question, path: Iterable[Array], timeout: float) -> Answer:
        joints = self.embodiment.arm_joints
        free: list[int] = []

        def requests() -> Iterator[Any]:
            for count, q in spaced(path, question.q, self._settings.resolution):
                free.append(count)
                yield messages.validity_request(joints, q, self.group)

        responses = self._link.call_many('check_state_validity', requests(), timeout)
        for k, response in enumerate(responses):
            if not response.valid:
                subject, text = describe_contacts(messages.contacts(response))
                return Answer(question, free[k - 1] if k else 0, text, subject)
        return Answer(question, free[-1] if free else 0)

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
