"""Thin ROS shell over :class:`instructvla_ros.control.controller.Controller`.

A thread of its own runs one controller period per deadline; chunks, joint states and services arrive through the
executor. Every command carries its own stop, so an arm whose controller dies comes to rest.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import deque

import numpy as np
from rclpy.event_handler import (
    QoSLivelinessChangedInfo,
    QoSRequestedIncompatibleQoSInfo,
    SubscriptionEventCallbacks,
)
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from instructvla_ros.msg import ActionChunk, ControllerState

from .. import config
from ..control.clearance import Answer
from ..control.controller import Controller, ControllerOutput, Mode
from ..control.safety import trajectory_points
from ..datatypes import RobotState, Verdict, VerdictAction
from ..errors import ChunkError, SetupError
from ..settings import Control
from . import params, qos, runtime
from .convert import chunk_from_msg, pose_to_msg, stamp_to_msg, verdict_to_msg
from .convert_robot import JointReader, trajectory_to_msg
from .diagnostics import OK, WARN
from .gripper_driver import make_gripper
from .homing import Homing
from .moveit_asking import AskingBackend
from .moveit_backend import MoveItBackend
from .moveit_py_backend import MoveItPyBackend
from .moveit_servo import ServoLink
from .pacing import Pacer

_SILENCE = 0.25  # longest time between two ControllerState messages while the clock stands still [s]
_LAST_COMMANDS = 1.0  # longest time spent braking at shutdown [s]
_KEPT_VERDICTS = 64  # between two ControllerState messages


class ControllerNode(runtime.BaseNode):
    """Action chunks in, joint trajectories and gripper commands out."""

    def __init__(self, **kwargs: object) -> None:
        """Build the controller and start its periods.

        Raises:
            ConfigError, SetupError: the settings or this machine do not allow it.
        """
        super().__init__('controller_node', **kwargs)
        self.embodiment = params.load_embodiment(self)
        driver = params.text_parameter(
            self, 'gripper_driver', 'auto', 'who moves the fingers; auto: gripper.driver of the embodiment'
        )
        if driver != 'auto':
            self.embodiment = config.replace(
                self.embodiment, gripper=config.replace(self.embodiment.gripper, driver=driver)
            )
        self.settings = params.load_settings(self, Control, 'controller.yaml')
        self.priority = params.integer_parameter(
            self, 'realtime_priority', 20, 0, 99, 'SCHED_FIFO priority of the process; 0, or not permitted: ordinary'
        )
        topics = self.embodiment.topics
        self._moveit = self._connect_moveit() if self.settings.backend != 'direct' else None
        self._controller = Controller(self.embodiment, self.settings, clearance=self._moveit)
        self._servo = self._connect_servo() if self.settings.output == 'servo' else None
        self._joints = JointReader(self.embodiment)
        self._state: RobotState | None = None
        self._lock = threading.Lock()
        self._verdicts: deque[Verdict] = deque(maxlen=_KEPT_VERDICTS)
        self._arrivals: dict[str, float] = {}
        self._stopping = False
        self._period = 1.0 / self.settings.rate
        self._state_every = max(1, round(self.settings.rate / self.settings.state_rate))
        self._mode: Mode | None = None

        self._trajectory_pub = self.create_publisher(JointTrajectory, topics.joint_trajectory, qos.COMMAND)
        self._gripper = make_gripper(self, self.embodiment)
        self._state_pub = self.create_publisher(ControllerState, 'controller_state', qos.STATE)
        self.create_subscription(
            JointState, topics.joint_states, self.guard('joint_states', self._on_joints), qos.SENSOR
        )
        self.create_subscription(
            ActionChunk,
            'action_chunk',
            self.guard('action_chunk', self._on_chunk),
            qos.chunk_executor(self.settings.chunk_lease),
            event_callbacks=SubscriptionEventCallbacks(
                liveliness=self._on_liveliness, incompatible_qos=self._on_incompatible
            ),
        )
        self.create_service(SetBool, 'enable', self.guard_service('enable', self._on_enable))
        self.create_service(Trigger, 'stop', self.guard_service('stop', self._on_stop))
        self.create_service(Trigger, 'reset', self.guard_service('reset', self._on_reset))
        self.create_service(SetBool, 'dry_run', self.guard_service('dry_run', self._on_dry_run))
        unable = 'MoveIt Servo follows poses, not joints; home needs output: trajectory' if self._servo else ''
        self._homing = Homing(self, self._controller, self.embodiment, self.settings, self._moveit, unable)
        self.diagnostics.expect('joint_states', self.settings.safety.max_state_age)
        self._thread = threading.Thread(target=self._run, name='controller', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Brake and hold when the arm is moving, then end the periods."""
        self._stopping = True
        self._thread.join(timeout=_LAST_COMMANDS + 1.0)
        for link in (self._moveit, self._servo):
            if link is not None:
                link.close()
        self._moveit = self._servo = None

    def _connect_moveit(self) -> AskingBackend | None:
        """MoveIt's part in the controller; None when it is not there and ``backend_fallback`` allows that."""

        def answered(answer: Answer) -> None:
            for verdict in self._controller.on_answer(answer, self.now_ns()):
                if verdict.action in (VerdictAction.REFUSED, VerdictAction.HELD):
                    self.warn(f'chunk {verdict.rule}', f'chunk {verdict.chunk_id}: {verdict.text}')

        def took(seconds: float) -> None:
            self.diagnostics.latency('moveit check', seconds)

        kind = MoveItBackend if self.settings.backend == 'moveit' else MoveItPyBackend
        try:
            return kind(self.embodiment, self.settings, answered, took)
        except SetupError as err:
            if not self.settings.backend_fallback:
                raise
            self.get_logger().warning(f'{err} (backend_fallback: continuing with backend direct)')
            self.diagnostics.condition('backend', WARN, f'direct instead of {self.settings.backend}: {err}')
            return None

    def _connect_servo(self) -> ServoLink:
        def halted(reason: str) -> None:
            self._controller.drop_chunk(reason)
            self.warn('servo', reason)

        def told(name: str, text: str) -> None:
            level = OK if name == 'NO_WARNING' else WARN
            self.diagnostics.condition('servo', level, f'{name} {text}'.rstrip())

        return ServoLink(self.embodiment, self.settings, halted, told)

    # -- messages and services, in the executor -------------------------------------------------------------------

    def _on_joints(self, message: JointState) -> None:
        state = self._joints.read(message)
        if state is not None:
            self._state = state
            self._gripper.measured(state.gripper)

    def _on_chunk(self, message: ActionChunk) -> None:
        arrived = time.monotonic()
        try:
            chunk = chunk_from_msg(message)
        except ChunkError as err:
            verdict = Verdict('malformed', VerdictAction.REFUSED, 'chunk', text=str(err), chunk_id=message.id)
            with self._lock:
                self._verdicts.append(verdict)
            raise
        self._arrivals = {chunk.id: arrived}
        for verdict in self._controller.on_chunk(chunk, self.now_ns()):
            if verdict.action is VerdictAction.REFUSED:
                self.warn(f'chunk {verdict.rule}', f'chunk {chunk.id} refused: {verdict.text}')

    def _on_liveliness(self, event: QoSLivelinessChangedInfo) -> None:
        if event.alive_count_change < 0:
            self._controller.drop_chunk('a publisher of action chunks died or left')
            self.diagnostics.count('chunk publishers lost', f'{event.alive_count} left')

    def _on_incompatible(self, _event: QoSRequestedIncompatibleQoSInfo) -> None:
        self.warn(
            'chunk publisher',
            'a publisher of action chunks does not prove that it lives and is not listened to: give it liveliness '
            f'AUTOMATIC with a lease of at most {self.settings.chunk_lease} s, or set chunk_lease to 0',
        )

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        problem = self._nobody_listens() if request.data else ''
        problem = problem or self._controller.enable(request.data)
        response.success = not problem
        response.message = problem or ('enabled' if request.data else 'disabled')
        return response

    def _nobody_listens(self) -> str:
        # Commands that nobody hears let the command run away from the arm until the tracking error holds it for good.
        if self._servo is not None:
            return '' if self._controller.dry_run else self._servo.problem
        if self._controller.dry_run or self._trajectory_pub.get_subscription_count() > 0:
            return ''
        topic = self.embodiment.topics.joint_trajectory
        return f'nobody takes trajectories on {topic}; start the joint_trajectory_controller of the arm, or sim_node'

    def _on_stop(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._controller.stop('the stop service was called')
        response.success, response.message = True, 'stopped; call reset, then enable'
        return response

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        problem = self._controller.reset()
        response.success, response.message = not problem, problem or 'the stop latch is cleared; call enable'
        return response

    def _on_dry_run(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._controller.dry_run = request.data
        response.success = True
        response.message = 'nothing is sent to the arm' if request.data else 'commands go to the arm'
        return response

    # -- controller thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        # A missed deadline is skipped: each period moves the command by one period, so catching up would be a jerk.
        pacer = Pacer(self._period, catch_up=self._period)
        simulated = bool(self.get_parameter('use_sim_time').value)
        last = told = time.monotonic()
        count, ticked = 0, 0
        shutdown_at: float | None = None
        while True:
            skipped = pacer.wait()
            begin = time.monotonic()
            loop_period, last = begin - last, begin
            if skipped > 0.0:
                self.diagnostics.count('periods missed', f'a period took {loop_period * 1e3:.1f} ms')
            if self._stopping and shutdown_at is None:
                shutdown_at = begin
                self._controller.stop('the controller shuts down')
            try:
                now = self.now_ns()
                output = self._controller.tick(now, self._state)
                self._send(output)
                # A simulator slower than this clock leaves periods without time in between; nothing happens in those.
                fresh = now != ticked
                count += fresh
                if (fresh and count % self._state_every == 0) or begin - told > _SILENCE:
                    between = (now - ticked) * 1e-9 if simulated and fresh and ticked else loop_period
                    self._publish_state(output, between)
                    told = begin
                ticked = now
            except Exception as err:  # a defect must not leave a moving arm without its controller
                self.drop('controller period', err)
                self._controller.stop(f'a controller period failed: {err}')
                output = None
            self.diagnostics.latency('period error', abs(loop_period - self._period))
            self.diagnostics.latency('period work', time.monotonic() - begin)
            if shutdown_at is not None and (begin - shutdown_at > _LAST_COMMANDS or _at_rest(output)):
                return

    def _send(self, output: ControllerOutput) -> None:
        command = output.command
        if command is not None and self._servo is not None:
            self._servo.send(output.commanded_pose, command.stamp_ns)
            self.diagnostics.tick('commands')
        elif command is not None:
            times, positions, velocities = trajectory_points(command, self.embodiment.limits)
            self._trajectory_pub.publish(
                trajectory_to_msg(self.embodiment.arm_joints, times, positions, velocities, command.stamp_ns)
            )
            self.diagnostics.tick('commands')
        if output.gripper_changed:
            self._gripper.command(output.gripper)
        arrived = self._arrivals.pop(output.chunk_id, None)
        if arrived is not None:
            self.diagnostics.latency('chunk to command', time.monotonic() - arrived)
            if command is not None:
                self.diagnostics.latency(
                    'camera to command', (command.stamp_ns - output.observation_stamp_ns) * 1e-9
                )
        with self._lock:
            self._verdicts.extend(output.verdicts)
        for verdict in output.verdicts:
            stops = verdict.action in (VerdictAction.REFUSED, VerdictAction.HELD)
            self.diagnostics.count(f'{verdict.rule} {verdict.action.name.lower()}', verdict.text, WARN if stops else OK)
        if output.mode is not self._mode:
            self._mode = output.mode
            self.diagnostics.value('mode', output.mode.name)
            latched = self._controller.stop_reason
            self.diagnostics.condition('stop latch', WARN if latched else OK, f'stopped: {latched}; call reset')

    def _publish_state(self, output: ControllerOutput, loop_period: float) -> None:
        message = ControllerState(
            mode=int(output.mode),
            dry_run=self._controller.dry_run,
            joint_names=list(self.embodiment.arm_joints),
            commanded_pose=pose_to_msg(output.commanded_pose),
            measured_pose=pose_to_msg(output.measured_pose),
            gripper_command=float(output.gripper),
            chunk_id=output.chunk_id,
            reasoning_id=output.reasoning_id,
            step_index=output.step_index,
            observation_stamp=stamp_to_msg(output.observation_stamp_ns),
            loop_period=loop_period,
        )
        message.header.stamp = stamp_to_msg(output.command.stamp_ns if output.command else self.now_ns())
        message.header.frame_id = self.embodiment.base_frame
        if output.q is not None and output.dq is not None:
            message.commanded_positions, message.commanded_velocities = output.q.tolist(), output.dq.tolist()
        state = self._state
        if state is not None:
            message.measured_positions, message.measured_velocities = state.q.tolist(), state.dq.tolist()
        with self._lock:
            verdicts = list(self._verdicts)
            self._verdicts.clear()
        message.verdicts = [verdict_to_msg(v) for v in verdicts]
        self._state_pub.publish(message)
        self.diagnostics.value('dry_run', self._controller.dry_run)


def _at_rest(output: ControllerOutput | None) -> bool:
    return output is not None and (output.command is None or not np.any(output.command.dq))


def main(args: list[str] | None = None) -> int:
    """Run the controller until a signal arrives; returns the exit code."""

    def build() -> ControllerNode:
        node = ControllerNode()
        node.diagnostics.value('scheduling', runtime.raise_priority(node.priority))
        # What start-up made lives as long as the process: the collector need not visit it in the middle of a period.
        gc.collect()
        gc.freeze()
        return node

    try:
        return runtime.run(build, args)
    finally:
        gc.unfreeze()


if __name__ == '__main__':
    raise SystemExit(main())
