"""One episode in one process with the real control path: physics, controller, trajectory follower, a policy.

Time is the simulator's, so a run gives the same result on any machine: the policy takes no time unless ``latency``
says so. What the nodes do is done here by the same classes: ``Synchronizer`` builds the observations from camera
stamps, ``Controller`` ticks at its rate, ``TrajectoryFollower`` stands between its commands and the servos.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

import numpy as np

from .. import camera_view
from ..control.controller import Controller, ControllerOutput, Mode
from ..control.kinematics import Kinematics
from ..control.safety import trajectory_points
from ..datatypes import Act, ActionChunk, Ask, Observation, Reasoning, RobotState, SceneState, VerdictAction
from ..errors import ConfigError, InstructVLAError
from ..geometry import Array
from ..observing import Stale, Synchronizer
from ..policy import Policy, act_alone
from ..settings import Control, Embodiment, PolicySettings, Sim, View
from ..sim.monitor import TaskMonitor
from ..sim.tasks import Episode
from ..sim.trajectory import TrajectoryFollower
from ..sim.world import World

TARGET_PERIOD = 0.004
"""How often the servos get a new target [s], as in the simulator node."""
FINGERTIP = 0.0088
"""Fingertips below the tcp [m]; lower than the table by a millimetre counts as a touch."""
BUMP = 0.02
"""Way of an object that nobody asked to move, beyond which it counts as bumped [m]."""
START_NS = 1_000_000_000
"""Stamp of the first instant; header stamps of 0 mean that there is none."""
_NO_IMAGE = np.zeros((1, 1, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Disturbance:
    """What makes an episode harder than the ideal.

    Attributes:
        latency: from the observation's arrival to the chunk's arrival at the controller [s].
        translation, rotation: standard deviation of the noise on each step of a chunk [m], [rad] per axis.
        drop: probability that a chunk is lost. frame_drop: probability that a camera frame is lost.
        seed: of the noise.
    """

    latency: float = 0.0
    translation: float = 0.0
    rotation: float = 0.0
    drop: float = 0.0
    frame_drop: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Moment:
    """What a recorder gets once per controller period; the pictures are in ``observation`` when it is new.

    Attributes:
        time: since the start of the episode [s]. observation, chunk, reasoning: new in this period, else None.
    """

    time: float
    state: RobotState
    scene: SceneState
    output: ControllerOutput
    observation: Observation | None = None
    chunk: ActionChunk | None = None
    reasoning: Reasoning | None = None


@dataclass(frozen=True)
class RolloutResult:
    """What one episode came to.

    Attributes:
        success: the task's predicate held at some time. done: the policy said so before the time limit.
        progress, best_progress: at the end, and the largest. time: of the success, or of the end [s].
        chunks: admitted. verdicts: number of decisions by ``'rule/action'``, passed ones left out.
        table_touches: times the fingertips came below the table plane. bumped: names of objects other than the target
            that were pushed more than 2 cm. path: measured tcp (n, 3) at 20 Hz [m].
        failure: '' on success, else one of stopped, refused, physics, not_reached, wrong_object, not_grasped,
            dropped, not_placed, timeout. detail: one sentence.
    """

    task: str
    seed: int
    instruction: str
    policy: str
    success: bool
    done: bool
    progress: float
    best_progress: float
    time: float
    chunks: int
    verdicts: dict[str, int]
    table_touches: int
    path: Array = field(repr=False)
    bumped: tuple[str, ...] = ()
    failure: str = ''
    detail: str = ''

    @property
    def path_length(self) -> float:
        """Way of the tcp [m]."""
        return float(np.linalg.norm(np.diff(self.path, axis=0), axis=1).sum()) if len(self.path) > 1 else 0.0


Recorder = Callable[[Moment], None]


def run_episode(
    episode: Episode,
    policy: Policy,
    *,
    sim: Sim,
    embodiment: Embodiment,
    control: Control,
    policy_settings: PolicySettings,
    record: Recorder | None = None,
    views: bool | None = None,
    disturbance: Disturbance | None = None,
    world: World | None = None,
    kinematics: Kinematics | None = None,
    linger: float = 4.0,
    sentence: bool = True,
) -> RolloutResult:
    """Run one episode until it has succeeded and the policy is done, or until its time limit.

    Args:
        record: called once per controller period. views: render the cameras for the policy; by default unless the
            policy is privileged or ``hold``. world, kinematics: to reuse; made (and closed) here when omitted.
        linger: time a policy gets after the success to say that it is done [s].
        sentence: let the policy think before it acts; without, ``think`` is never called.

    Raises:
        ConfigError: views are asked for but the simulator has no cameras. SetupError: rendering is not possible here.
        Whatever the policy raises.
    """
    render = (not policy.privileged and policy.name != 'hold') if views is None else views
    own = world is None
    world = world or World(sim, embodiment, render=render)
    try:
        run = EpisodeRun(
            episode,
            policy,
            sim,
            embodiment,
            control,
            policy_settings,
            disturbance or Disturbance(),
            world,
            kinematics or Kinematics(embodiment),
            render,
            record,
            sentence,
        )
        return _alone(run.play(linger), policy)
    finally:
        if own:
            world.close()


Play = Generator[Ask, Act, RolloutResult]
"""An episode under way: asks about observations, is sent what the policy says and does, returns the result."""


def _alone(play: Play, policy: Policy) -> RolloutResult:
    """Answer every ask of an episode at once."""
    reasoning: Reasoning | None = None
    try:
        ask = next(play)
        while True:
            done = act_alone(policy, ask, reasoning)
            reasoning = done.said or reasoning
            ask = play.send(done)
    except StopIteration as end:
        result: RolloutResult = end.value
        return result


class EpisodeRun:
    """One episode from its start; :meth:`play` runs it. Arguments as of :func:`run_episode`.

    The policy is only reset, and asked for its name and whether it reads ground truth.
    """

    def __init__(
        self,
        episode: Episode,
        policy: Policy,
        sim: Sim,
        embodiment: Embodiment,
        control: Control,
        settings: PolicySettings,
        disturbance: Disturbance,
        world: World,
        kinematics: Kinematics,
        render: bool,
        record: Recorder | None,
        sentence: bool,
    ) -> None:
        self.episode, self.policy, self.world, self.record = episode, policy, world, record
        self.embodiment, self.settings, self.disturbance = embodiment, settings, disturbance
        self.render, self.sentence = render, sentence
        names = [c.view for c in sim.cameras if c.view in embodiment.views or not embodiment.views]
        if render and not names:
            raise ConfigError('the policy needs views, but the simulator has no camera of the embodiment')
        self.rates = {c.view: c.rate for c in sim.cameras if c.view in names} or {'clock': 1.0 / 0.05}
        self.rng = np.random.default_rng(disturbance.seed)
        self.frame_rng = np.random.default_rng([disturbance.seed, 1])
        self.controller = Controller(embodiment, replace(control, start_enabled=True), kinematics)
        self.sync = Synchronizer(list(self.rates), kinematics.forward, embodiment.base_frame, settings, privileged=True)
        world.reset(episode.scene)
        policy.reset()
        self.origin = world.time
        self.monitor = TaskMonitor(episode)
        self.follower = TrajectoryFollower(embodiment, embodiment.home)
        self.period = 1.0 / control.rate
        self.state_period = 1.0 / sim.state_rate
        self.next_state, self.next_frame = 0.0, dict.fromkeys(self.rates, 0.0)
        self.next_infer = 0.0
        self.next_think = 0.0
        self.waiting: tuple[float, ActionChunk] | None = None
        self.scene = self.monitor.update(world.scene_state(START_NS))
        self.start = self.scene
        self.verdicts: Counter[str] = Counter()
        self.path: list[Array] = []
        self.chunks = 0
        self.refused = 0
        self.done = False
        self.best = 0.0
        self.success_at: float | None = None
        self.touches, self.touching = 0, False
        self.held: list[str] = []
        self.stopped = ''

    @property
    def now(self) -> float:
        """Since the start of the episode [s]."""
        # The clock of a reused world has other rounding errors; they must not decide anything.
        return round(self.world.time - self.origin, 9)

    @property
    def now_ns(self) -> int:
        """The same as a stamp."""
        return START_NS + round(self.now * 1e9)

    def play(self, linger: float) -> Play:
        """Run to the end and sum up; see :data:`Play`."""
        failure = detail = ''
        try:
            while self.now < self.episode.time_limit - 1e-9 and not self.stopped:
                yield from self._tick()
                if self.success_at is not None and (self.done or self.now - self.success_at > linger):
                    break
        except InstructVLAError as err:
            if 'diverged' not in str(err):
                raise
            failure, detail = 'physics', str(err)
        success = self.success_at is not None
        if not success and not failure:
            failure, detail = self._failure()
        return RolloutResult(
            task=self.episode.task,
            seed=self.episode.seed,
            instruction=self.episode.instruction,
            policy=self.policy.name,
            success=success,
            done=self.done,
            progress=self.scene.progress,
            best_progress=self.best,
            time=self.success_at if self.success_at is not None else self.now,
            chunks=self.chunks,
            verdicts=dict(self.verdicts),
            table_touches=self.touches,
            path=np.array(self.path).reshape(-1, 3),
            bumped=self._bumped(),
            failure='' if success else failure,
            detail='' if success else detail,
        )

    def _tick(self) -> Generator[Ask, Act, None]:
        now, stamp = self.now, self.now_ns
        state = self.world.robot_state(stamp)
        self.sync.feed_state(state)
        if now >= self.next_state - 1e-9:
            self.next_state += self.state_period
            self._look(stamp)
        for view, rate in self.rates.items():
            if now >= self.next_frame[view] - 1e-9:
                self.next_frame[view] += 1.0 / rate
                self._frame(view, stamp)
        output = self.controller.tick(stamp, state)
        self._send(output, stamp)
        observation, chunk, said = yield from self._think_and_infer(now, stamp)
        for verdict in output.verdicts:
            if verdict.action is not VerdictAction.PASSED:
                self.verdicts[f'{verdict.rule}/{verdict.action.name.lower()}'] += 1
        if output.mode is Mode.STOPPED:
            self.stopped = self.controller.stop_reason or 'the controller stopped'
        if self.record is not None:
            self.record(Moment(now, state, self.scene, output, observation, chunk, said))
        self._advance()

    def _look(self, stamp: int) -> None:
        self.scene = scene = self.monitor.update(self.world.scene_state(stamp))
        self.sync.feed_privileged(scene)
        self.best = max(self.best, scene.progress)
        self.path.append(np.array(scene.tcp_pose[:3, 3]))
        if scene.held and (not self.held or self.held[-1] != scene.held):
            self.held.append(scene.held)
        if scene.success and self.success_at is None:
            self.success_at = self.now
        low = scene.tcp_pose[2, 3] + FINGERTIP * scene.tcp_pose[2, 2] < -0.001
        self.touches += int(low and not self.touching)
        self.touching = bool(low)

    def _frame(self, view: str, stamp: int) -> None:
        if self.disturbance.frame_drop:
            if self.frame_rng.random() < self.disturbance.frame_drop:
                return
        elif max(self.next_infer, self.waiting[0] if self.waiting else 0.0) >= self.next_frame[view] - 1e-9:
            return  # nobody looks before the next frame, and rendering is most of the time of an episode
        image = _NO_IMAGE
        if self.render:
            image = camera_view.prepare(self.embodiment.views.get(view, View()), self.world.render(view))
        self.sync.feed(view, stamp, image)

    def _bumped(self) -> tuple[str, ...]:
        before, after = self.start.objects, self.scene.objects
        return tuple(
            name
            for name in before
            if name != self.episode.target
            and float(np.linalg.norm(after[name].pose[:3, 3] - before[name].pose[:3, 3])) > BUMP
        )

    def _think_and_infer(
        self, now: float, stamp: int
    ) -> Generator[Ask, Act, tuple[Observation | None, ActionChunk | None, Reasoning | None]]:
        observation, said, arrived = None, None, None
        if self.waiting is None and now >= self.next_infer - 1e-9:
            found = self.sync.latest(stamp, self.episode.instruction)
            if not isinstance(found, Stale):
                observation = self._as_seen(found)
                think = self.sentence and now >= self.next_think - 1e-9
                if think:
                    self.next_think = now + self.settings.reasoning_period
                answer = yield Ask(observation, think)
                said, chunk = answer.said, self._disturbed(answer.chunk, stamp)
                self.waiting = (now + self.disturbance.latency, chunk)
                self.next_infer = max(self.next_infer + 1.0 / self.settings.chunk_rate, now)
        if self.waiting is not None and now >= self.waiting[0] - 1e-9:
            arrived, self.waiting = self.waiting[1], None
            if self.rng.random() >= self.disturbance.drop:
                self._deliver(arrived, stamp)
        return observation, arrived, said

    def _as_seen(self, observation: Observation) -> Observation:
        """What the policy may look at: no stand-ins for pictures, no ground truth unless it says that it reads it."""
        if not self.render:
            observation = replace(observation, views={}, view_stamps_ns={})
        return observation if self.policy.privileged else replace(observation, privileged=None)

    def _disturbed(self, chunk: ActionChunk, stamp: int) -> ActionChunk:
        d = self.disturbance
        steps = np.array(chunk.steps)
        steps[:, :3] += self.rng.normal(0.0, 1.0, (len(steps), 3)) * d.translation
        steps[:, 3:6] += self.rng.normal(0.0, 1.0, (len(steps), 3)) * d.rotation
        created = stamp + round(d.latency * 1e9)
        return replace(chunk, steps=steps, created_stamp_ns=created, model_latency=d.latency)

    def _deliver(self, chunk: ActionChunk, stamp: int) -> None:
        verdicts = self.controller.on_chunk(chunk, stamp)
        if any(v.action is VerdictAction.REFUSED for v in verdicts):
            self.refused += 1
            return
        self.chunks += 1
        self.done = bool(chunk.done)

    def _send(self, output: ControllerOutput, stamp: int) -> None:
        if output.command is not None:
            times, q, dq = trajectory_points(output.command, self.embodiment.limits)
            reason = self.follower.accept(self.embodiment.arm_joints, times, q, dq, output.command.stamp_ns, stamp)
            if reason:
                self.verdicts['trajectory/rejected'] += 1
        if output.gripper_changed:
            self.world.set_gripper_target(output.gripper * self.embodiment.gripper.max_width)

    def _advance(self) -> None:
        parts = max(1, round(self.period / TARGET_PERIOD))
        for _ in range(parts):
            self.world.set_joint_target(*self.follower.sample(self.now_ns))
            self.world.advance(self.period / parts)

    def _failure(self) -> tuple[str, str]:
        """Kind and sentence of a failure that is not an exception, from the furthest the episode came."""
        target = self.episode.target
        if self.stopped:
            return 'stopped', self.stopped
        if self.chunks == 0:
            return 'refused', f'no chunk was admitted, {self.refused} were refused'
        if self.episode.task in ('open_drawer', 'close_drawer'):
            reached = self.best > 0.2 or target in self.held
            opening = self.scene.objects[target].opening
            return ('not_moved_enough' if reached else 'not_reached'), f'the drawer is {opening:.3f} m open'
        if target not in self.held:
            others = [h for h in self.held if h != target]
            if others:
                return 'wrong_object', f'took {others[0]} instead of {target}'
            kind = 'not_grasped' if self.best > 0.24 else 'not_reached'
            return kind, f'{target} was never held (best progress {self.best:.2f})'
        if self.scene.held == target:
            return 'timeout', f'{target} was still in the hand at the end'
        away = 'dropped' if self.episode.task == 'pick' or self.best < 0.75 else 'not_placed'
        return away, f'{target} was held, and is not where it should be (best progress {self.best:.2f})'
