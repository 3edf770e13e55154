"""The policy node on a real graph with a robot double: every outcome of a goal, services, and its manners."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip('rclpy', reason='ROS 2 is not installed')
pytest.importorskip('instructvla_ros.msg', reason='the messages are not built')

import rclpy
from doubles import ABORTED, CANCELED, SUCCEEDED, Robot, Run, ScriptedPolicy, eventually, shut_down
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

from instructvla_ros import resources
from instructvla_ros.action import ExecuteInstruction
from instructvla_ros.datatypes import Observation
from instructvla_ros.errors import CheckpointError
from instructvla_ros.msg import ControllerState
from instructvla_ros.nodes import convert, qos
from instructvla_ros.nodes.convert_image import compressed_to_msg
from instructvla_ros.nodes.policy_node import PolicyNode
from instructvla_ros.nodes.reasoning_node import ReasoningNode
from instructvla_ros.srv import AskScene, LoadCheckpoint

Result = ExecuteInstruction.Result
Feedback = ExecuteInstruction.Feedback


class Graph:
    """Policy node, reasoning node when shared, and robot double, each with an executor thread."""

    def __init__(self, policy: ScriptedPolicy, **settings: object) -> None:
        settings = {'input_timeout': 0.6, 'chunk_rate': 10.0, 'reasoning_period': 0.5, **settings}
        overrides = [Parameter(name, value=value) for name, value in settings.items()]
        self.policy = policy
        self.robot = Robot()
        self.node = PolicyNode(policy, parameter_overrides=overrides)
        shared = self.node.share()
        self.nodes = [self.node] + ([ReasoningNode(shared, parameter_overrides=overrides)] if shared else [])
        policy.clock = self.node.now_ns
        self._executors = [SingleThreadedExecutor(), SingleThreadedExecutor()]
        for node in self.nodes:
            self._executors[0].add_node(node)
        self._executors[1].add_node(self.robot)
        self._threads = [threading.Thread(target=e.spin, daemon=True) for e in self._executors]
        for thread in self._threads:
            thread.start()

    def call(self, kind: type, name: str, **fields: object) -> object:
        client = self.robot.create_client(kind, name)
        assert client.wait_for_service(timeout_sec=20.0)
        future = client.call_async(kind.Request(**fields))
        eventually(future.done, 8.0, name)
        self.robot.destroy_client(client)
        return future.result()

    def close(self) -> None:
        shut_down(self.nodes, self.robot, self._executors, self._threads)


@pytest.fixture(scope='module', autouse=True)
def context() -> Iterator[None]:
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture
def graph() -> Iterator[Graph]:
    made = Graph(ScriptedPolicy())
    yield made
    made.close()


def moving(robot: Robot) -> list[object]:
    return [c for c in robot.chunks if any(c.steps[:6])]


def test_a_goal_is_followed_to_its_end(graph: Graph) -> None:
    graph.policy.done_after = 12
    run = Run(graph.robot, 'pick the red cube')
    result = run.result()
    assert result.status == SUCCEEDED and result.result.outcome == Result.SUCCEEDED
    assert 'done in 3 chunks' in result.result.reason and result.result.chunks == 14
    assert result.result.duration == pytest.approx(1.4, abs=0.6)
    assert max(np.diff(run.feedback_times)) < 0.5, 'feedback at 2 Hz or more'
    last = run.feedback[-1]
    assert last.reasoning == 'I will pick the red cube.' and last.state == Feedback.ACTING
    chunks = [convert.chunk_from_msg(c) for c in moving(graph.robot)]
    assert len(chunks) == 14 and len({c.id for c in chunks}) == 14
    assert all(c.instruction == 'pick the red cube' and c.checkpoint_revision == 'r1' for c in chunks)
    assert all(c.observation_stamp_ns < c.created_stamp_ns for c in chunks)
    assert np.all(np.diff([c.observation_stamp_ns for c in chunks]) > 0)
    assert chunks[0].reasoning_id, 'the first chunk waits for its sentence'
    np.testing.assert_allclose(chunks[0].reference_pose[:3, 3], [0.307, 0.0, 0.487], atol=0.01)
    said = {s.id: s for s in graph.robot.sentences}
    assert {c.reasoning_id for c in chunks} <= set(said) and len(said) >= 2
    assert said[chunks[0].reasoning_id].first_chunk_id == chunks[0].id
    assert graph.policy.threads == {'follower'} and graph.policy.resets == 1


def test_the_arm_is_told_to_stay_when_a_goal_ends(graph: Graph) -> None:
    run = Run(graph.robot, 'pick the red cube')
    eventually(lambda: len(moving(graph.robot)) >= 3)
    run.cancel()
    result = run.result()
    assert result.status == CANCELED and result.result.outcome == Result.STOPPED
    assert result.result.reason == 'cancelled by the client'
    last = eventually(lambda: not any(graph.robot.chunks[-1].steps[:6]) and graph.robot.chunks[-1])
    np.testing.assert_allclose(last.steps[6::7], 0.25), 'the gripper keeps what it was told'
    count = len(graph.robot.chunks)
    time.sleep(0.4)
    assert len(graph.robot.chunks) == count, 'nothing follows'


def test_a_newer_goal_takes_over(graph: Graph) -> None:
    first = Run(graph.robot, 'pick the red cube')
    eventually(lambda: graph.robot.chunks)
    second = Run(graph.robot, 'open the drawer')
    ended = first.result()
    assert ended.status == ABORTED and ended.result.outcome == Result.PREEMPTED
    assert 'open the drawer' in ended.result.reason
    eventually(lambda: moving(graph.robot)[-1].instruction == 'open the drawer')
    second.cancel()
    assert second.result().result.outcome == Result.STOPPED and graph.policy.resets == 2


def test_time_runs_out(graph: Graph) -> None:
    result = Run(graph.robot, 'pick the red cube', duration=0.8).result().result
    assert result.outcome == Result.TIMEOUT and result.duration == pytest.approx(0.8, abs=0.2)


@pytest.mark.parametrize('silent', ['wrist', 'joint_states'])
def test_a_silent_input_is_named_and_no_chunk_is_made_without_it(graph: Graph, silent: str) -> None:
    run = Run(graph.robot, 'pick the red cube')
    eventually(lambda: graph.robot.chunks)
    graph.robot.silent.add(silent)
    silenced = graph.robot.now_ns()
    result = run.result().result
    assert result.outcome == Result.STALE_INPUT and silent.split('_')[0] in result.reason
    late = [c for c in graph.robot.chunks if convert.stamp_from_msg(c.header.stamp) > silenced + 0.45e9]
    assert not late, 'a silent input is never replaced by an old one'
    assert any(f.state == Feedback.WAITING_INPUT for f in run.feedback)
    graph.robot.silent.clear()
    again = Run(graph.robot, 'pick the red cube')
    count = len(graph.robot.chunks)
    eventually(lambda: len(graph.robot.chunks) > count)
    again.cancel()
    again.result()


def test_a_failing_policy_ends_the_goal_and_not_the_node(graph: Graph) -> None:
    graph.policy.error = RuntimeError('out of memory')
    result = Run(graph.robot, 'pick the red cube').result()
    assert result.status == ABORTED and result.result.outcome == Result.POLICY_FAILED
    assert result.result.reason == 'RuntimeError: out of memory'
    graph.policy.error = None
    graph.policy.done_after = 1
    assert Run(graph.robot, 'pick the red cube').result().result.outcome == Result.SUCCEEDED


@pytest.mark.parametrize(
    ('instruction', 'duration', 'word'),
    [('', 0.0, 'empty'), ('x' * 10_000, 0.0, '10000'), ('a\x07b', 0.0, 'U+0007'), ('go', -1.0, 'max_duration')],
)
def test_bad_goals_are_rejected_with_the_reason(graph: Graph, instruction: str, duration: float, word: str) -> None:
    result = Run(graph.robot, instruction, duration).result().result
    assert result.outcome == Result.REJECTED and word in result.reason and not graph.robot.chunks


def test_words_on_the_topic(graph: Graph) -> None:
    robot = graph.robot
    eventually(lambda: robot.instruction.get_subscription_count())
    robot.instruction.publish(String(data='pick the red cube'))
    eventually(lambda: robot.chunks and robot.chunks[-1].instruction == 'pick the red cube')
    robot.instruction.publish(String(data='pick the red cube'))
    robot.instruction.publish(String(data='bad\x07'))
    time.sleep(0.2)
    assert graph.policy.resets == 1, 'the same words do not start over, bad words change nothing'
    robot.instruction.publish(String(data='open the drawer'))
    eventually(lambda: robot.chunks[-1].instruction == 'open the drawer')
    robot.instruction.publish(String(data=''))
    eventually(lambda: not any(robot.chunks[-1].steps[:6]))
    count = len(robot.chunks)
    time.sleep(0.3)
    assert len(robot.chunks) == count


def test_the_stop_latch_ends_the_goal(graph: Graph) -> None:
    run = Run(graph.robot, 'pick the red cube')
    eventually(lambda: graph.robot.chunks)
    graph.robot.mode = ControllerState.STOPPED
    result = run.result().result
    assert result.outcome == Result.STOPPED and 'reset' in result.reason
    assert Run(graph.robot, 'pick the red cube').result().result.outcome == Result.STOPPED
    graph.robot.mode = ControllerState.HOLDING


def test_persistent_refusals_are_unsafe(graph: Graph) -> None:
    graph.robot.refuse_chunks = True
    result = Run(graph.robot, 'pick the red cube').result().result
    assert result.outcome == Result.UNSAFE and 'too far' in result.reason


def test_dry_run_is_set_before_the_first_chunk_and_taken_back(graph: Graph) -> None:
    run = Run(graph.robot, 'pick the red cube', dry_run=True)
    eventually(lambda: graph.robot.chunks)
    assert graph.robot.dry_run_calls == [True]
    run.cancel()
    run.result()
    assert graph.robot.dry_run_calls == [True, False]
    eventually(lambda: not graph.node._link.state().dry_run)
    graph.robot.dry_run = True  # set by the operator: stays
    eventually(lambda: graph.node._link.state().dry_run)
    run = Run(graph.robot, 'pick the red cube', dry_run=True)
    run.cancel()
    run.result()
    assert graph.robot.dry_run


def test_dry_run_without_a_controller_is_rejected() -> None:
    graph = Graph(ScriptedPolicy())
    try:
        graph.robot.destroy_service(next(s for s in graph.robot.services if s.srv_name.endswith('dry_run')))
        time.sleep(0.3)
        result = Run(graph.robot, 'pick the red cube', dry_run=True).result().result
        assert result.outcome == Result.REJECTED and 'dry_run' in result.reason and not graph.robot.chunks
    finally:
        graph.close()


def test_a_slow_policy_always_gets_the_newest_frame_and_blocks_nobody(graph: Graph) -> None:
    graph.policy.delay = 0.35
    run = Run(graph.robot, 'pick the red cube')
    eventually(lambda: len(graph.policy.ages) >= 5, 8.0)
    assert max(graph.policy.ages[1:]) < 0.12, 'frames that came meanwhile are dropped'
    assert max(np.diff(run.feedback_times)) < 0.5, 'feedback goes on'
    asked = time.monotonic()
    assert graph.call(AskScene, 'ask_scene', question='what is there?').answer == 'A table.'
    assert time.monotonic() - asked < 0.5
    run.cancel()
    run.result()


def test_a_chunk_that_is_ready_after_the_end_is_dropped(graph: Graph) -> None:
    graph.policy.delay = 0.4
    run = Run(graph.robot, 'pick the red cube')
    eventually(lambda: graph.robot.chunks)
    seen = len(graph.policy.ages)
    eventually(lambda: len(graph.policy.ages) > seen, what='the policy is at work')
    run.cancel()
    assert run.result().result.chunks == len(moving(graph.robot))
    time.sleep(0.6)
    assert not any(graph.robot.chunks[-1].steps[:6]), 'the last word is to stay'


def test_a_new_image_triggers_a_chunk_at_once(graph: Graph) -> None:
    run = Run(graph.robot, 'pick the red cube')
    eventually(lambda: len(graph.robot.chunks) >= 15)
    run.cancel()
    run.result()
    chunks = moving(graph.robot)
    latency = [
        convert.stamp_from_msg(c.header.stamp) - convert.stamp_from_msg(c.observation_stamp) for c in chunks[1:]
    ]
    assert np.median(latency) < 25e6, f'camera stamp to chunk stamp [ns]: {latency}'
    starts = np.diff([convert.stamp_from_msg(c.header.stamp) for c in chunks])
    assert np.median(starts) == pytest.approx(0.1e9, rel=0.15), 'ten per second from a camera with twenty'


def test_questions_are_answered_or_refused_by_name(graph: Graph) -> None:
    eventually(lambda: graph.robot.frames > 3)
    answer = graph.call(AskScene, 'ask_scene', question='what is there?')
    assert answer.success and answer.answer == 'A table.' and answer.image_stamp.sec > 0
    assert eventually(lambda: [s for s in graph.robot.sentences if s.kind == s.ANSWER])[0].text == 'A table.'
    empty = graph.call(AskScene, 'ask_scene', question=' ')
    assert not empty.success and 'question is empty' in empty.message
    graph.robot.silent.add('third_person')
    time.sleep(0.5)
    blind = graph.call(AskScene, 'ask_scene', question='what is there?')
    assert not blind.success and 'third_person' in blind.message


def test_weights_are_swapped_and_bad_ones_are_not(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(settings: object, embodiment: object) -> ScriptedPolicy:
        if settings.checkpoint == 'bad':
            raise CheckpointError('bad has no weights')
        return ScriptedPolicy(f'{settings.checkpoint}@{settings.revision}')

    monkeypatch.setattr('instructvla_ros.policy.make_policy', make)
    run = Run(graph.robot, 'pick the red cube')
    eventually(lambda: graph.robot.chunks)
    bad = graph.call(LoadCheckpoint, 'load_checkpoint', path='bad')
    assert not bad.success and 'stay' in bad.message and bad.checkpoint_revision == 'r1'
    good = graph.call(LoadCheckpoint, 'load_checkpoint', path='runs/b', revision='7')
    assert good.success and good.checkpoint_revision == 'runs/b@7'
    eventually(lambda: graph.robot.chunks[-1].checkpoint_revision == 'runs/b@7')
    run.cancel()
    run.result()


def test_a_policy_without_words_does_not_keep_its_arm_waiting(graph: Graph) -> None:
    graph.policy.wordless = True
    started = time.monotonic()
    run = Run(graph.robot, 'pick the red cube')
    chunk = eventually(lambda: graph.robot.chunks and graph.robot.chunks[0])
    assert time.monotonic() - started < 1.0 and chunk.reasoning_id == ''
    run.cancel()
    run.result()


def test_without_reasoning_the_policy_node_answers_itself() -> None:
    graph = Graph(ScriptedPolicy(), reasoning='off')
    try:
        run = Run(graph.robot, 'pick the red cube')
        chunk = eventually(lambda: graph.robot.chunks and graph.robot.chunks[0])
        assert chunk.reasoning_id == '' and not graph.robot.sentences
        assert graph.call(AskScene, 'ask_scene', question='what is there?').success
        run.cancel()
        run.result()
    finally:
        graph.close()


def test_impossible_images_are_dropped_and_the_node_lives(graph: Graph) -> None:
    from instructvla_ros.nodes.convert_image import image_to_msg

    run = Run(graph.robot, 'pick the red cube')
    eventually(lambda: graph.robot.chunks)
    bad = image_to_msg(np.zeros((4, 4, 3), np.uint8), graph.robot.now_ns(), 'x')
    bad.step = 3
    for _ in range(20):
        graph.robot.image_publishers['wrist'].publish(bad)
    count = len(graph.robot.chunks)
    eventually(lambda: len(graph.robot.chunks) > count + 3)
    eventually(lambda: graph.node.diagnostics.counted('view wrist dropped') >= 1)
    run.cancel()
    run.result()


def test_compressed_images_by_the_name_of_the_topic(tmp_path: Path) -> None:
    robot = yaml.safe_load(resources.config_file('franka.yaml').read_text(encoding='utf-8'))
    robot['views']['wrist']['topic'] = '/wrist_camera/color/image_raw/compressed'
    file = tmp_path / 'robot.yaml'
    file.write_text(yaml.safe_dump(robot), encoding='utf-8')
    graph = Graph(ScriptedPolicy(), embodiment=str(file))
    try:
        topic = robot['views']['wrist']['topic']
        publisher = graph.robot.create_publisher(CompressedImage, topic, qos.SENSOR_PUBLISHER)
        picture = np.full((48, 64, 3), (200, 30, 10), np.uint8)
        graph.robot.create_timer(
            0.05, lambda: publisher.publish(compressed_to_msg(picture, graph.robot.now_ns(), 'wrist', 90))
        )
        seen = eventually(lambda: isinstance(graph.node.observe('x'), Observation) and graph.node.observe('x'))
        np.testing.assert_allclose(seen.views['wrist'][20, 20], (200, 30, 10), atol=6)
        run = Run(graph.robot, 'pick the red cube')
        eventually(lambda: graph.robot.chunks)
        run.cancel()
        run.result()
    finally:
        graph.close()
