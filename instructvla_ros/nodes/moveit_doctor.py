"""Is the MoveIt that runs here the one the controller needs? One finding per check, with the way out."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rclpy
from rcl_interfaces.srv import GetParameters
from rclpy.node import Node

from .. import config, resources
from ..control.frames import LinkFrames
from ..control.kinematics import Kinematics
from ..control.scene import scene_boxes
from ..doctor import MISSING, NOTE, OK, Finding
from ..errors import InstructVLAError, SetupError
from ..settings import Control, Embodiment
from . import moveit_messages as messages
from .convert import pose_from_msg
from .moveit_asking import planning_group
from .moveit_backend import NEEDED
from .moveit_link import MoveItError, MoveItLink

ANSWER = 3.0  # s
NEAR = 1e-3  # m, rad
MARGIN = 1e-3  # rad, rad/s


def check(embodiment_file: str, control_file: str, wait: float = 5.0) -> list[Finding]:
    """Ask the running move_group; about ``wait`` [s] at most for it to appear."""
    try:
        embodiment = config.load(Embodiment, resources.config_file(embodiment_file))
        control = config.load(Control, resources.config_file(control_file))
        frames = LinkFrames(Kinematics(embodiment).urdf, embodiment.base_frame)
    except InstructVLAError as err:
        return [Finding('configuration', MISSING, str(err), 'correct the file')]
    own = not rclpy.ok()
    if own:
        rclpy.init()
    try:
        link = MoveItLink(control.moveit.namespace, 'moveit_doctor')
    except SetupError as err:
        return [Finding('messages', MISSING, str(err), 'or use controller:=direct, which needs no MoveIt')]
    finally:
        if own and messages.MISSING:
            rclpy.shutdown()
    try:
        return list(_Doctor(embodiment, control, link, frames).findings(wait))
    finally:
        link.close()
        if own:
            rclpy.shutdown()


class _Doctor:
    def __init__(self, embodiment: Embodiment, control: Control, link: MoveItLink, frames: LinkFrames) -> None:
        self.embodiment, self.control, self.link, self.frames = embodiment, control, link, frames
        self.node: Node = link.node
        self.group = planning_group(embodiment, control)

    def findings(self, wait: float) -> Iterator[Finding]:
        yield Finding('messages', OK, 'moveit_msgs can be imported')
        absent = self.link.wait((), wait)
        needed = [n for n in absent if n.rpartition('/')[2] in NEEDED]
        if needed:
            way = 'start it (robot:=fake does), or set moveit.namespace in config/controller.yaml'
            yield Finding('move_group', MISSING, f'nobody offers {", ".join(needed)}', way)
        elif absent:
            way = 'add the capability to move_group, or do without homing and check: cartesian'
            yield Finding('move_group', NOTE, f'nobody offers {", ".join(absent)}', way)
        else:
            yield Finding('move_group', OK, 'every service is there')
        if not needed:
            for step in (self._model, self._tip, self._scene):
                yield from self._safely(step)
        yield from self._topics()
        if importlib.util.find_spec('moveit') is None:
            way = 'install ros-<distro>-moveit-py for backend moveit_py; backend moveit does not need it'
            yield Finding('moveit_py', NOTE, 'cannot be imported', way)
        else:
            yield Finding('moveit_py', OK, 'can be imported')

    def _safely(self, step: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
        name = step.__name__.strip('_')
        try:
            yield from step()
        except MoveItError as err:
            yield Finding(name, MISSING, str(err), 'is move_group still busy or dead? Look at its log')
        except (ElementTree.ParseError, ValueError) as err:
            yield Finding(name, NOTE, f'the description in move_group cannot be read: {err}', 'look at its parameters')

    def _parameters(self, names: list[str]) -> list[str]:
        prefix = f'/{self.control.moveit.namespace.strip("/")}'.rstrip('/')
        client: Any = self.node.create_client(GetParameters, f'{prefix}/move_group/get_parameters')
        try:
            if not client.wait_for_service(timeout_sec=ANSWER):
                raise MoveItError(f'{client.srv_name} is not there: the node is not called move_group')
            future = client.call_async(GetParameters.Request(names=names))
            deadline = time.monotonic() + ANSWER
            while not future.done() and time.monotonic() < deadline:
                time.sleep(0.01)
            if not future.done():
                raise MoveItError(f'{client.srv_name} does not answer')
            return [value.string_value for value in future.result().values]
        finally:
            self.node.destroy_client(client)

    def _model(self) -> Iterator[Finding]:
        """Planning group and joint limits in the descriptions that move_group has."""
        urdf, srdf = self._parameters(['robot_description', 'robot_description_semantic'])
        if not urdf or not srdf:
            way = 'give move_group robot_description and robot_description_semantic (MoveItConfigsBuilder does)'
            yield Finding('planning group', NOTE, 'move_group has no robot description as parameters', way)
            return
        groups = {g.get('name', ''): g for g in ElementTree.fromstring(srdf).iter('group') if g.get('name')}
        if self.group not in groups:
            way = f'set moveit.group to one of: {", ".join(groups)}, or choose the embodiment that fits the arm'
            yield Finding('planning group', MISSING, f'move_group has no group {self.group}', way)
        else:
            tips = [chain.get('tip_link') for chain in groups[self.group].iter('chain')]
            text = f'{self.group}, to {tips[0]}' if tips else self.group
            yield Finding('planning group', OK, text)
        joints = {j.get('name'): j for j in ElementTree.fromstring(urdf).iter('joint')}
        absent = [name for name in self.embodiment.arm_joints if name not in joints]
        if absent:
            way = 'choose the embodiment (embodiment:=panda.yaml, franka.yaml) whose joints these are'
            yield Finding('joints', MISSING, f'its robot has no joint {", ".join(absent)}', way)
            return
        yield from self._limits(joints)

    def _limits(self, joints: dict[str | None, Any]) -> Iterator[Finding]:
        limits, beyond = self.embodiment.limits, []
        for k, name in enumerate(self.embodiment.arm_joints):
            given = joints[name].find('limit')
            if given is None:
                continue
            lower, upper = float(given.get('lower', '-inf')), float(given.get('upper', 'inf'))
            speed = float(given.get('velocity', 'inf'))
            if limits.lower[k] < lower - MARGIN or limits.upper[k] > upper + MARGIN:
                ours = f'{limits.lower[k]:.3f} .. {limits.upper[k]:.3f}'
                beyond.append(f'{name} {ours} rad, its {lower:.3f} .. {upper:.3f} rad')
            if limits.velocity[k] > speed + MARGIN:
                beyond.append(f'{name} {limits.velocity[k]:.3f} rad/s, its {speed:.3f} rad/s')
        if beyond:
            way = 'tighten limits in the file of the embodiment: MoveIt calls what lies beyond its own invalid'
            yield Finding('joint limits', MISSING, f'ours are wider: {"; ".join(beyond)}', way)
        else:
            yield Finding('joint limits', OK, 'ours lie inside those of move_group')

    def _tip(self) -> Iterator[Finding]:
        """Forward kinematics of both for one link."""
        arm = self.embodiment
        home = np.array(arm.home)
        self.frames.set_joints(dict(zip(arm.arm_joints, home, strict=True)))
        ours = self.frames.poses()
        first = self.control.moveit.tip or arm.tcp_frame
        candidates = list(dict.fromkeys([first, f'{arm.name}_hand', f'{arm.name}_link8']))
        for name in candidates:
            if name not in ours:
                continue
            request = messages.forward_request(arm.arm_joints, home, [name], arm.base_frame)
            response = self.link.call('compute_fk', request, ANSWER)
            if not messages.succeeded(response.error_code) or not response.pose_stamped:
                continue
            seen = pose_from_msg(response.pose_stamped[0].pose)
            far = float(np.linalg.norm(seen[:3, 3] - ours[name][:3, 3]))
            turn = float(np.arccos(np.clip((np.trace(seen[:3, :3].T @ ours[name][:3, :3]) - 1.0) / 2.0, -1.0, 1.0)))
            if far > NEAR or turn > 1e-2:
                text = f'{name} at home is {1000 * far:.1f} mm and {turn:.3f} rad from where our description has it'
                way = 'use the same URDF: description: franka_description (or a file) in the embodiment'
                yield Finding('tip', MISSING, text, way)
            else:
                yield Finding('tip', OK, f'{name} is where our description has it')
            if name != candidates[0]:
                way = f'for check: cartesian set moveit.tip to {name}'
                yield Finding('tip', NOTE, f'move_group has no link {candidates[0]}', way)
            return
        way = 'set moveit.tip to a link that both descriptions have'
        yield Finding('tip', MISSING, f'move_group has none of {", ".join(candidates)}', way)

    def _scene(self) -> Iterator[Finding]:
        response = self.link.call('get_planning_scene', messages.scene_components(), ANSWER)
        have = messages.object_names(response)
        wanted = [b.name for b in scene_boxes(self.embodiment, self.control)]
        absent = [name for name in wanted if name not in have]
        if absent:
            way = 'the controller puts it there at start (backend: moveit, moveit.scene: true)'
            yield Finding('planning scene', NOTE, f'without {", ".join(absent)}', way)
        else:
            yield Finding('planning scene', OK, f'has {", ".join(have)}')

    def _topics(self) -> Iterator[Finding]:
        topics = self.embodiment.topics
        if self.node.get_subscriptions_info_by_topic(topics.joint_trajectory):
            yield Finding('arm controller', OK, f'listens on {topics.joint_trajectory}')
        else:
            way = 'start and activate the joint_trajectory_controller (ros2 control list_controllers), or correct '
            text = f'nobody listens on {topics.joint_trajectory}'
            yield Finding('arm controller', MISSING, text, way + 'topics.joint_trajectory of the embodiment')
        if self.node.get_publishers_info_by_topic(topics.joint_states):
            yield Finding('joint states', OK, f'come on {topics.joint_states}')
        else:
            way = 'start the joint_state_broadcaster, or correct topics.joint_states of the embodiment'
            yield Finding('joint states', MISSING, f'nobody publishes {topics.joint_states}', way)
