"""Client of the graph: runs a list of episodes, one JSON line per event on standard output, one per result in a file.

For each episode: controller off, simulator reset, controller on, instruction sent as a goal, judged by the simulator.
The graph is not restarted in between. Events: ``waiting ready episode progress result finished error``.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rclpy.action import ActionClient
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import CameraInfo
from std_srvs.srv import SetBool, Trigger

from instructvla_ros.action import ExecuteInstruction
from instructvla_ros.srv import ResetWorld

from ..datatypes import SceneState
from ..errors import ConfigError, InstructVLAError
from ..evaluation import metrics, runlog
from ..goals import Outcome, Phase
from ..settings import Embodiment
from . import params, qos
from .convert import stamp_from_msg
from .episode_files import EpisodeSettings, append_json, emit, read_episodes
from .recorder import Recorder
from .runtime import BaseNode, run

_NEEDED = ('simulator state', 'joint states', 'controller state')
_FRAMES = 2  # further frames of each camera before an episode begins
_STATES = 5  # controller states in a row that count as settled
_PATIENCE = 5.0  # for the controller to brake, or to have seen joint states [s]
LINGER = 4.0  # a learned policy does not say when it is done: so long after the success its goal is ended [s]
DISABLED, HOLDING = runlog.MODES.index('DISABLED'), runlog.MODES.index('HOLDING')


class GraphError(InstructVLAError):
    """A part of the graph does not answer or refuses."""


class EpisodeNode(BaseNode):
    """Runs the episodes on a thread of its own; ``code`` is the exit code of the process."""

    def __init__(self) -> None:
        super().__init__('episode_node')
        self._robot: Embodiment = params.load_embodiment(self)
        self._settings = params.declare(self, EpisodeSettings, EpisodeSettings())
        if not self._settings.episodes or not self._settings.output:
            raise ConfigError('episodes and output are needed: -p episodes:=<file> -p output:=<folder>')
        self._episodes = read_episodes(Path(self._settings.episodes))
        self._output = Path(self._settings.output)
        self._output.mkdir(parents=True, exist_ok=True)
        self.code = 1
        self._stop = threading.Event()
        self._slow = max(1.0, 1.0 / self._settings.sim_speed)  # what takes a second takes so many
        group = ReentrantCallbackGroup()
        self._enable = self.create_client(SetBool, 'enable', callback_group=group)
        self._latch = self.create_client(Trigger, 'reset', callback_group=group)
        self._stop_arm = self.create_client(Trigger, 'stop', callback_group=group)
        self._world = self.create_client(ResetWorld, '/sim/reset', callback_group=group)
        self._execute = ActionClient(self, ExecuteInstruction, 'execute', callback_group=group)
        self._recorder = Recorder(self, self._robot, images=self._settings.record and self._settings.video)
        self._cameras: dict[str, int] = dict.fromkeys(self._robot.views, 0)  # newest stamp [ns]
        self._frames: dict[str, int] = dict.fromkeys(self._robot.views, 0)
        for name, view in self._robot.views.items():
            self.create_subscription(CameraInfo, view.info_topic, self._camera_seen(name), qos.SENSOR)
        self._thread = threading.Thread(target=self._run, name='episodes', daemon=True)
        # Once the executor runs: the parameters are checked between here and then.
        self._starter = self.create_timer(0.01, self._begin, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def close(self) -> None:
        """Leave the running episode: its goal is cancelled and the controller switched off."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=4.0)

    def _begin(self) -> None:
        self._starter.cancel()
        self._thread.start()

    def _camera_seen(self, name: str) -> Callable[[Any], None]:
        def seen(message: CameraInfo) -> None:
            self._cameras[name] = stamp_from_msg(message.header.stamp)
            self._frames[name] += 1

        return seen

    # The thread of the episodes.

    def _run(self) -> None:
        try:
            self._wait_ready()
            for index, episode in enumerate(self._episodes):
                if self._stop.is_set():
                    return
                emit('result', **self._episode(index, episode))
            emit('finished', episodes=len(self._episodes))
            self.code = 0
        except InstructVLAError as err:
            emit('error', text=str(err))
            self.code = 2
        except Exception as err:  # the parent has to hear of a defect too
            traceback.print_exc()
            emit('error', text=f'{type(err).__name__}: {err}')
        finally:
            if self._stop.is_set():
                self._recorder.abort()
            self.leave()

    def _wait_ready(self) -> None:
        started, last = time.monotonic(), None
        while missing := self._silent():
            if missing != last:
                emit('waiting', silent=missing)
                last = missing
            waited = time.monotonic() - started
            if self._stop.wait(0.05):
                return
            if waited > self._settings.ready_timeout:
                raise GraphError(
                    f'after {waited:.0f} s still silent: {", ".join(missing)}. Look at the logs of these nodes'
                )
        emit('ready', seconds=round(time.monotonic() - started, 2))

    def _silent(self) -> list[str]:
        out = self._recorder.silent(_NEEDED)
        out += [f'camera {name}' for name, count in self._frames.items() if not count]
        for name, client in (
            ('service /sim/reset', self._world),
            ('service enable', self._enable),
            ('service reset', self._latch),
        ):
            if not client.service_is_ready():
                out.append(name)
        if not self._execute.server_is_ready():
            out.append('action execute')
        return out

    def _episode(self, index: int, episode: dict[str, Any]) -> dict[str, Any]:
        self._switch_off()
        request = ResetWorld.Request(
            task=episode.get('task', ''), instruction=episode.get('instruction', ''), seed=int(episode.get('seed', 0))
        )
        answer = self._call(self._world, request, '/sim/reset', 20.0)
        if not answer.success:
            raise GraphError(f'the simulator refuses the episode: {answer.message}')
        words = str(episode.get('said') or answer.instruction)
        scene = self._wait_scene(lambda s: s.episode == answer.episode, f'/sim/state of episode {answer.episode}')
        self._wait_fresh(scene.stamp_ns)
        self._switch_on()
        limit = self._settings.time_limit or scene.time_limit
        emit(
            'episode',
            index=index,
            of=len(self._episodes),
            task=scene.task,
            seed=scene.seed,
            instruction=words,
            time_limit=limit,
        )
        folder = self._output if len(self._episodes) == 1 else self._output / f'episode_{index:03d}'
        with_video = self._settings.record and self._settings.video
        if with_video:
            folder.mkdir(parents=True, exist_ok=True)
        self._recorder.start(folder if with_video else None)
        every = self._settings.stop_every
        drill = self._settings.stop_after if every and index % every == every - 1 else None
        result = self._follow(words, limit, drill)
        settle = self._settings.settle if drill is None else max(self._settings.settle, 1.0)
        self._stop.wait(settle / self._settings.sim_speed)
        meant = {**episode, 'meant': answer.instruction} if words != answer.instruction else episode
        return self._conclude(meant, words, result, limit, folder)

    def _wait_fresh(self, since_ns: int) -> None:
        """Wait until what the others see is certainly of the new scene."""
        seen = self._recorder.count('joint states')
        self._wait(lambda: self._recorder.count('joint states') >= seen + 5, 5.0, 'joint states after the reset')
        self._wait(lambda: all(s > since_ns for s in self._cameras.values()), 10.0, 'images after the reset')
        frames = dict(self._frames)
        # An image arrives after its CameraInfo, and the policy pairs it with a state that comes at a rate of its own.
        self._wait(lambda: all(self._frames[n] >= frames[n] + _FRAMES for n in frames), 10.0, 'images after the reset')

    def _switch_off(self) -> None:
        """Make the controller let go of the arm: a controller that holds a pose would pull the reset arm back to it."""
        deadline = time.monotonic() + _PATIENCE * self._slow
        while True:
            # Refused while there is no stop latch, and while the arm still brakes.
            self._call(self._latch, Trigger.Request(), 'reset')
            self._call(self._enable, SetBool.Request(data=False), 'enable')
            if self._modes_follow(DISABLED):
                return
            if time.monotonic() > deadline or self._stop.is_set():
                raise GraphError(f'the controller does not let go of the arm, it is {self._mode_name()}')

    def _switch_on(self) -> None:
        deadline = time.monotonic() + _PATIENCE * self._slow
        while True:
            answer = self._call(self._enable, SetBool.Request(data=True), 'enable')
            if answer.success and self._modes_follow(HOLDING):
                return
            if time.monotonic() > deadline or self._stop.wait(0.1):
                why = answer.message or f'it is {self._mode_name()}'
                raise GraphError(f'the controller cannot be enabled: {why}')

    def _modes_follow(self, wanted: int) -> bool:
        """Whether the next states of the controller all say ``wanted``: then the policy node has heard it as well."""
        seen = self._recorder.count('controller state')
        end = time.monotonic() + 0.5 * self._slow
        while time.monotonic() < end and self._recorder.count('controller state') < seen + _STATES:
            time.sleep(0.005)
            if self._recorder.mode != wanted:
                seen = self._recorder.count('controller state')
        return self._recorder.mode == wanted

    def _mode_name(self) -> str:
        return runlog.MODES[self._recorder.mode] if self._recorder.mode >= 0 else 'silent'

    def _follow(self, instruction: str, limit: float, drill: float | None = None) -> dict[str, Any]:
        """Send the goal, report progress, wait for its end; with ``drill``, stop the arm at that time [s]."""
        feedback: dict[str, Any] = {'state': 'WAITING_INPUT'}

        def on_feedback(message: Any) -> None:
            feedback['state'] = Phase(message.feedback.state).name

        goal = ExecuteInstruction.Goal(instruction=instruction, max_duration=limit)
        handle = self._future(
            self._execute.send_goal_async(goal, feedback_callback=on_feedback), 10.0, 'action execute'
        )
        if not handle.accepted:
            raise GraphError('the policy node did not accept the goal')
        done = threading.Event()
        future = handle.get_result_async()
        future.add_done_callback(lambda _: done.set())
        deadline = time.monotonic() + (limit + 15.0) / self._settings.sim_speed
        solved_at: float | None = None
        asked_ns: int | None = None
        settled = False
        while not done.wait(0.1):
            scene = self._recorder.scene
            solved_at = _solved_at(scene, solved_at)
            if scene is not None:
                emit(
                    'progress',
                    elapsed=round(scene.elapsed, 2),
                    limit=limit,
                    progress=scene.progress,
                    success=scene.success,
                    state=feedback['state'],
                    mode=self._mode_name(),
                    sentence=self._recorder.sentence,
                    verdicts=self._recorder.verdict_counts(),
                )
                if drill is not None and asked_ns is None and scene.elapsed >= drill:
                    asked_ns = self.now_ns()
                    self._call(self._stop_arm, Trigger.Request(), 'stop')
                over = drill is None and scene.success and solved_at is not None
                if over and not settled and scene.elapsed - (solved_at or 0.0) > LINGER:
                    settled = True
                    self._future(handle.cancel_goal_async(), 2.0, 'cancel')
            if self._stop.is_set() or time.monotonic() > deadline:
                self._future(handle.cancel_goal_async(), 2.0, 'cancel')
                if self._stop.is_set():
                    self._call(self._enable, SetBool.Request(data=False), 'enable', 2.0)
                    return {'outcome': 'STOPPED', 'reason': 'interrupted', 'duration': 0.0, 'solved_at': solved_at}
                raise GraphError(f'the goal did not end {limit + 15.0:.0f} s after it began; is the policy node alive?')
        r = future.result().result
        reason = 'the simulator sees it solved; the policy does not say when it is done' if settled else r.reason
        return {
            'outcome': Outcome.SUCCEEDED.name if settled else Outcome(r.outcome).name,
            'reason': reason,
            'duration': r.duration,
            'solved_at': solved_at,
            'stop_asked_ns': asked_ns,
        }

    def _conclude(
        self, episode: dict[str, Any], instruction: str, result: dict[str, Any], limit: float, folder: Path
    ) -> dict[str, Any]:
        scene = self._recorder.scene
        success = bool(scene is not None and scene.success)
        solved_at = _solved_at(scene, result['solved_at']) if success else None
        row = {
            **episode,
            'instruction': instruction,
            'success': success,
            'outcome': result['outcome'],
            'reason': result['reason'],
            'duration': result['duration'],
            'success_after': solved_at,
            'time_limit': limit,
            'progress': scene.progress if scene else None,
        }
        meta = {**row, 'robot': self._robot.name, 'control_rate': self._settings.control_rate or None}
        log = self._recorder.stop(meta)
        if self._settings.record:
            runlog.save(log, folder)
        summary = metrics.summarize(log)
        if result.get('stop_asked_ns') is not None:
            row['drill'] = metrics.stop_times(log, result['stop_asked_ns'])
        row['chunks'] = summary['chunks']['count']
        row['latency'] = {name: summary['latency'][name] for name in ('without_policy', 'policy', 'total')}
        row['jitter'] = summary['controller']['jitter']
        row['verdicts'] = {f'{v["rule"]} {v["action"].lower()}': v['count'] for v in summary['verdicts']}
        append_json(self._output / 'episodes.jsonl', row)
        return row

    # Waiting for others.

    def _call(self, client: Any, request: Any, name: str, timeout: float = 5.0) -> Any:
        return self._future(client.call_async(request), timeout, f'service {name}')

    def _future(self, future: Any, timeout: float, name: str) -> Any:
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        if not done.wait(timeout):
            raise GraphError(f'{name} did not answer within {timeout:.0f} s')
        return future.result()

    def _wait_scene(self, wanted: Callable[[SceneState], bool], name: str) -> SceneState:
        self._wait(lambda: self._recorder.scene is not None and wanted(self._recorder.scene), 10.0, name)
        scene = self._recorder.scene
        if scene is None:
            raise GraphError(f'{name} did not come')
        return scene

    def _wait(self, condition: Callable[[], bool], timeout: float, name: str) -> None:
        timeout *= self._slow
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline or self._stop.wait(0.01):
                raise GraphError(f'{name}: nothing within {timeout:.0f} s')


def _solved_at(scene: SceneState | None, before: float | None) -> float | None:
    """Since when the task has been solved without interruption [s]."""
    if scene is None or not scene.success:
        return None
    return scene.elapsed if before is None else before


def main(args: list[str] | None = None) -> int:
    """Run the episodes. Exit codes: 0 all ran (solved or not), 2 the graph is not usable, 1 a defect or interrupted."""
    made: list[EpisodeNode] = []

    def build() -> EpisodeNode:
        made.append(EpisodeNode())
        return made[0]

    code = run(build, args)
    return code or (made[0].code if made else code)


if __name__ == '__main__':
    raise SystemExit(main())
