"""The simulator in the robot's place: the topics of ros2_control and of camera drivers, plus /clock and /sim.

Physics and commands live in one paced thread, drawing in another, messages come in through the executor. Stamps are
simulated time, which starts at system time and keeps its pace at ``speed`` 1; after a stall of more than 0.1 s it
jumps ahead instead of running behind for ever. At any other speed everybody follows /clock, and a stall is waited for.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from builtin_interfaces.msg import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from instructvla_ros.msg import GripperCommand, SimState
from instructvla_ros.srv import ResetWorld

from ..datatypes import SceneState
from ..errors import InstructVLAError, TaskError
from ..resources import robot_description
from ..settings import Sim
from ..sim.camera import description_arguments
from ..sim.monitor import TaskMonitor
from ..sim.tasks import Episode, episode_from_instruction, make_episode
from ..sim.trajectory import TrajectoryFollower
from ..sim.world import World
from . import params, qos, runtime
from .convert import scene_to_msg, stamp_from_msg, stamp_to_msg
from .convert_robot import gripper_width_from_msg, trajectory_from_msg
from .diagnostics import WARN
from .pacing import Pacer
from .sim_cameras import Cameras

_TARGET_PERIOD = 0.004  # how often the joint servos get a new target [s]
_RESET_TIMEOUT = 10.0
_JUMP = 0.1  # backlog beyond which simulated time jumps ahead [s]


class SimNode(runtime.BaseNode):
    """A simulated robot cell with the interfaces of a real one."""

    def __init__(self, **kwargs: object) -> None:
        """Build the world and start it.

        Raises:
            ConfigError, SetupError, TaskError: the settings, this machine, or the first task do not allow it.
        """
        super().__init__('sim_node', hardware_id='simulator', **kwargs)
        self.embodiment = params.load_embodiment(self)
        self.settings = params.load_settings(self, Sim, 'sim.yaml')
        sim, topics = self.settings, self.embodiment.topics
        self._episode = make_episode(sim.task, sim.seed, randomization=sim.randomization)
        self._episodes = 0
        self._world = World(sim, self.embodiment, render=False)
        self._world.reset(self._episode.scene)
        self._start_ns = 0  # set when time starts to run
        self._lock = threading.Lock()
        self._jobs: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._cameras: Cameras | None = None
        self._sim_ns = 0
        self._follower = TrajectoryFollower(self.embodiment, self.embodiment.home)

        self._clock_pub = self.create_publisher(Clock, '/clock', qos.SENSOR_PUBLISHER)
        self._joints_pub = self.create_publisher(JointState, topics.joint_states, qos.SENSOR_PUBLISHER)
        self._state_pub = self.create_publisher(SimState, '/sim/state', qos.SENSOR_PUBLISHER)
        self._description_pub = self.create_publisher(String, topics.robot_description, qos.LATCHED)
        source = self.embodiment.description
        arguments = description_arguments(sim, self.embodiment) if source == 'builtin' else ()
        self._description_pub.publish(String(data=robot_description(self.embodiment.name, source, arguments)))
        self._joints_message = JointState(name=[*self.embodiment.arm_joints, *self.embodiment.gripper.joints])
        self._joints_message.header.frame_id = self.embodiment.base_frame
        models = {c.view: self._world.camera(c.view) for c in sim.cameras}
        if sim.cameras:
            self._cameras = Cameras(self, sim, self.embodiment, models, self._world.snapshot())
        self.create_subscription(
            JointTrajectory, topics.joint_trajectory, self.guard('joint_trajectory', self._on_trajectory), qos.COMMAND
        )
        self.create_subscription(
            GripperCommand, topics.gripper_command, self.guard('gripper_command', self._on_gripper), qos.EVENT
        )
        self.create_service(ResetWorld, '/sim/reset', self.guard_service('reset', self._on_reset))
        self._thread = threading.Thread(target=self._run, name='physics', daemon=True)
        self._thread.start()
        self.get_logger().info(f'{self.embodiment.name} on the table: {self._episode.instruction!r}')

    def close(self) -> None:
        """Stop physics and drawing."""
        self._stopping = True
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        if self._cameras is not None:
            self._cameras.close()

    # -- messages, in the executor --------------------------------------------------------------------------------

    def _on_trajectory(self, message: JointTrajectory) -> None:
        names, times, positions, velocities = trajectory_from_msg(message)
        with self._lock:
            reason = self._follower.accept(
                names, times, positions, velocities, stamp_from_msg(message.header.stamp), self._sim_ns
            )
        if reason:
            self.diagnostics.count('trajectories rejected', reason)
            self.warn('trajectory', f'trajectory rejected: {reason}')

    def _on_gripper(self, message: GripperCommand) -> None:
        width = gripper_width_from_msg(message, self.embodiment)
        self._jobs.append(lambda: self._world.set_gripper_target(width))

    def _on_reset(self, request: ResetWorld.Request, response: ResetWorld.Response) -> ResetWorld.Response:
        randomization = self.settings.randomization
        try:
            if request.instruction.strip() and not request.task:
                episode = episode_from_instruction(request.instruction, request.seed, randomization)
            else:
                episode = make_episode(
                    request.task or self._episode.task, request.seed, request.instruction, randomization
                )
        except TaskError as err:
            response.success, response.message = False, str(err)
            return response
        done = threading.Event()
        failure: list[Exception] = []

        def reset() -> None:
            try:
                self._reset(episode)
            except InstructVLAError as err:
                failure.append(err)
            finally:
                done.set()

        self._jobs.append(reset)
        if not done.wait(_RESET_TIMEOUT):
            response.success, response.message = False, f'the simulator did not answer within {_RESET_TIMEOUT:.0f} s'
        elif failure:
            response.success, response.message = False, str(failure[0])
        else:
            response.success, response.message = True, f'{episode.task}, seed {episode.seed}'
            response.instruction, response.episode = episode.instruction, self._episodes
        return response

    # -- physics thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        sim = self.settings
        period = 1.0 / sim.joint_state_rate
        self._start_ns = time.time_ns() - round(self._world.time * 1e9)
        self._start_episode()
        pacer = Pacer(period / sim.speed, _JUMP)
        clock_every = Every(sim.clock_rate)
        state_every = Every(sim.state_rate)
        while not self._stopping:
            skipped = pacer.wait()
            if skipped > 0.0 and sim.speed == 1.0:
                self._start_ns += round(skipped * 1e9)
                self.diagnostics.count('time jumps', f'the simulator fell behind by {skipped:.2f} s')
            begin = time.monotonic()
            try:
                self._step(period)
                now = self._world.time
                stamp = stamp_to_msg(self._sim_ns)
                if clock_every.due(now):
                    self._clock_pub.publish(Clock(clock=stamp))
                self._publish_joints(stamp)
                if self._cameras is not None:
                    views = self._cameras.due(now)
                    if views:
                        self._cameras.submit(self._world.snapshot(), self._sim_ns, views)
                if state_every.due(now):
                    self._publish_state()
            except Exception as err:  # the physics diverged, say: reported, and the episode starts again
                self.drop('physics step', err)
                self._restart()
            self.diagnostics.latency('step', time.monotonic() - begin)

    def _step(self, period: float) -> None:
        while self._jobs:
            self._jobs.popleft()()
        parts = max(1, round(period / _TARGET_PERIOD))
        for _ in range(parts):
            with self._lock:
                q, dq = self._follower.sample(self._sim_ns)
            try:
                self._world.set_joint_target(q, dq)
            except InstructVLAError as err:
                self.diagnostics.count('targets refused', str(err))
                self.warn('target', str(err))
            self._world.advance(period / parts)
            self._sim_ns = self._start_ns + round(self._world.time * 1e9)

    def _publish_joints(self, stamp: Time) -> None:
        state = self._world.robot_state(0)
        fingers, finger_speeds = self._world.finger_state()
        message = self._joints_message
        message.header.stamp = stamp
        message.position = [*state.q.tolist(), *fingers.tolist()]
        message.velocity = [*state.dq.tolist(), *finger_speeds.tolist()]
        self._joints_pub.publish(message)
        self.diagnostics.tick('joint_states')

    def _publish_state(self) -> None:
        scene: SceneState = self._monitor.update(self._world.scene_state(self._sim_ns))
        if self._state_pub.get_subscription_count() > 0:
            scene = replace(scene, episode=self._episodes)
            self._state_pub.publish(scene_to_msg(scene, self.embodiment.base_frame))
        self.diagnostics.value('progress', scene.progress)

    def _reset(self, episode: Episode) -> None:
        self._world.reset(episode.scene)
        self._episode = episode
        self._start_episode()
        said = f'episode {self._episodes}: {episode.instruction!r} ({episode.task}, seed {episode.seed})'
        self.get_logger().info(said)

    def _restart(self) -> None:
        try:
            self._reset(self._episode)
        except InstructVLAError as err:
            self.diagnostics.condition('physics', WARN, f'the world cannot be reset: {err}')
            time.sleep(0.1)

    def _start_episode(self) -> None:
        self._episodes += 1
        self._monitor = TaskMonitor(self._episode)
        self._sim_ns = self._start_ns + round(self._world.time * 1e9)
        with self._lock:
            self._follower = TrajectoryFollower(self.embodiment, self.embodiment.home)


class Every:
    """Tells when something with its own rate is due on the simulated time line."""

    def __init__(self, rate: float) -> None:
        """``rate`` in simulated Hz."""
        self._period = 1.0 / rate
        self._next = 0.0

    def due(self, now: float) -> bool:
        """Whether it is time at ``now`` [s]; a backlog is dropped."""
        if now < self._next - 1e-9:
            return False
        self._next = max(self._next + self._period, now)
        return True


def main(args: list[str] | None = None) -> int:
    """Run the simulator until a signal arrives; returns the exit code."""
    return runtime.run(SimNode, args)


if __name__ == '__main__':
    raise SystemExit(main())
