"""The reasoning node in a process of its own: sentences by topic, at its own rate, tied to the chunks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')
pytest.importorskip('instructvla_ros.msg', reason='the messages are not built')

import numpy as np
import rclpy
from doubles import Robot, Run, ScriptedPolicy, eventually, shut_down
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from std_msgs.msg import String

from instructvla_ros.msg import Reasoning
from instructvla_ros.nodes import qos, reasoning_node
from instructvla_ros.nodes.policy_node import PolicyNode
from instructvla_ros.nodes.reasoning_node import ReasoningNode
from instructvla_ros.srv import AskScene


class Graph:
    """Nodes with a policy each, and the robot double; every node has an executor thread of its own."""

    def __init__(self, alone: bool = False, **settings: object) -> None:
        settings = {'reasoning': 'separate', 'reasoning_period': 0.4, 'chunk_rate': 10.0, **settings}
        overrides = [Parameter(name, value=value) for name, value in settings.items()]
        self.thinking, self.acting = ScriptedPolicy(), ScriptedPolicy()
        self.robot = Robot()
        self.reasoner = ReasoningNode(policy=self.thinking, parameter_overrides=overrides)
        self.nodes = [self.reasoner]
        if not alone:
            self.nodes.append(PolicyNode(self.acting, parameter_overrides=overrides))
        self.instruct = self.robot.create_publisher(String, 'current_instruction', qos.LATCHED) if alone else None
        self._executors = []
        self._threads = []
        for node in (*self.nodes, self.robot):
            executor = SingleThreadedExecutor()
            executor.add_node(node)
            self._executors.append(executor)
            self._threads.append(threading.Thread(target=executor.spin, daemon=True))
            self._threads[-1].start()

    def close(self) -> None:
        shut_down(self.nodes, self.robot, self._executors, self._threads)


@pytest.fixture(scope='module', autouse=True)
def context() -> Iterator[None]:
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture
def pair() -> Iterator[Graph]:
    made = Graph()
    yield made
    made.close()


@pytest.fixture
def alone() -> Iterator[Graph]:
    made = Graph(alone=True)
    yield made
    made.close()


def test_sentences_of_another_process_condition_the_chunks(pair: Graph) -> None:
    run = Run(pair.robot, 'pick the red cube')
    eventually(lambda: len(pair.robot.chunks) >= 10)
    run.cancel()
    run.result()
    said = {s.id for s in pair.robot.sentences}
    assert pair.robot.chunks[0].reasoning_id in said, 'the first chunk waits for its sentence'
    tied = eventually(lambda: {s.id: s.first_chunk_id for s in pair.robot.sentences if s.first_chunk_id})
    assert tied[pair.robot.chunks[0].reasoning_id] == pair.robot.chunks[0].id
    assert pair.acting.threads == {'follower'} and not pair.thinking.threads
    count = len({s.id for s in pair.robot.sentences})
    time.sleep(0.6)
    assert len({s.id for s in pair.robot.sentences}) <= count + 1, 'no goal, no sentences'


def test_a_missing_sentence_delays_the_arm_only_for_a_while() -> None:
    graph = Graph(reasoning_wait=0.5)
    try:
        graph.thinking.think_delay = 2.0
        started = time.monotonic()
        run = Run(graph.robot, 'pick the red cube')
        chunk = eventually(lambda: graph.robot.chunks and graph.robot.chunks[0])
        assert chunk.reasoning_id == '' and 0.4 < time.monotonic() - started < 1.5
        eventually(lambda: graph.robot.chunks[-1].reasoning_id)
        run.cancel()
        run.result()
    finally:
        graph.close()


def test_its_own_rate_and_at_once_when_the_words_change(alone: Graph) -> None:
    assert alone.instruct is not None
    eventually(lambda: alone.robot.frames > 3)
    eventually(lambda: alone.instruct.get_subscription_count())
    alone.instruct.publish(String(data='pick the red cube'))
    eventually(lambda: len(alone.robot.sentences) >= 4)
    stamps = [s.header.stamp.sec + s.header.stamp.nanosec * 1e-9 for s in alone.robot.sentences[:4]]
    assert np.diff(stamps) == pytest.approx(0.4, abs=0.12)
    changed = time.monotonic()
    alone.instruct.publish(String(data='open the drawer'))
    eventually(lambda: alone.robot.sentences[-1].text == 'I will open the drawer.')
    assert time.monotonic() - changed < 0.25
    last = alone.robot.sentences[-1]
    assert last.kind == Reasoning.PLAN and last.final and last.source == 'instructvla'
    assert last.header.frame_id == 'camera_color_optical_frame'
    alone.instruct.publish(String())
    time.sleep(0.2)
    count = len(alone.robot.sentences)
    time.sleep(0.7)
    assert len(alone.robot.sentences) == count


def test_it_waits_for_its_eyes(alone: Graph) -> None:
    assert alone.instruct is not None
    alone.robot.silent.add('wrist')
    time.sleep(0.5)
    eventually(lambda: alone.instruct.get_subscription_count())
    alone.instruct.publish(String(data='pick the red cube'))
    time.sleep(0.5)
    assert not alone.robot.sentences
    alone.robot.silent.clear()
    eventually(lambda: alone.robot.sentences, 2.0)


def test_a_policy_that_raises_is_not_asked_again_and_the_node_lives(alone: Graph) -> None:
    assert alone.instruct is not None
    calls = []

    def fail(observation: object) -> None:
        calls.append(1)
        raise RuntimeError('no memory')

    think, alone.thinking.think = alone.thinking.think, fail
    eventually(lambda: alone.instruct.get_subscription_count() and alone.robot.frames > 3)
    alone.instruct.publish(String(data='pick the red cube'))
    eventually(lambda: calls)
    time.sleep(0.6)
    assert len(calls) == 1
    alone.thinking.think = think
    alone.instruct.publish(String(data='open the drawer'))
    eventually(lambda: alone.robot.sentences)


def test_one_question_at_a_time(alone: Graph) -> None:
    alone.thinking.think_delay = 0.4
    eventually(lambda: alone.robot.frames > 3)
    client = alone.robot.create_client(AskScene, 'ask_scene')
    assert client.wait_for_service(timeout_sec=20.0)
    futures = [client.call_async(AskScene.Request(question=q)) for q in ('what?', 'where?')]
    eventually(lambda: all(f.done() for f in futures))
    answers = sorted((f.result() for f in futures), key=lambda a: not a.success)
    assert answers[0].success and answers[0].answer == 'A table.' and answers[0].latency > 0.35
    assert not answers[1].success and 'another question' in answers[1].message


def test_alone_it_wants_to_be_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    rclpy.try_shutdown()
    try:
        assert reasoning_node.main(['--ros-args', '-p', 'reasoning:=shared', '-p', 'policy:=hold']) == 2
        assert "reasoning:='separate'" in capfd.readouterr().err
    finally:
        rclpy.init()
