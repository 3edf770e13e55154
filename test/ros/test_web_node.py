"""The operator's page on the graph: with stand-ins for the other nodes, and the real graph in a browser."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
import yaml
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from instructvla_ros import config, resources
from instructvla_ros.datatypes import Reasoning, ReasoningKind
from instructvla_ros.graph import Graph, node
from instructvla_ros.msg import ControllerState
from instructvla_ros.msg import Reasoning as ReasoningMsg
from instructvla_ros.nodes import qos
from instructvla_ros.nodes.convert import pose_to_msg, reasoning_to_msg, stamp_to_msg
from instructvla_ros.nodes.convert_image import image_to_msg
from instructvla_ros.nodes.web_node import WebNode
from instructvla_ros.settings import Embodiment
from instructvla_ros.srv import AskScene

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from browser import CHROMIUM, Browser  # noqa: E402

ROBOT = config.load(Embodiment, resources.config_file('franka.yaml'))
needs_browser = pytest.mark.skipif(not CHROMIUM, reason='chromium is not installed: nothing can show the page')


def eventually(condition: Callable[[], Any], timeout: float = 30.0, what: str = '') -> Any:
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f'not within {timeout} s: {what}'
        time.sleep(0.01)
    return value


class Others(Node):
    """Stand-ins for controller, cameras and policy."""

    def __init__(self) -> None:
        super().__init__('others', namespace='/instructvla')
        group = ReentrantCallbackGroup()
        self.calls: list[tuple[str, float]] = []
        self.mode, self.dry_run, self.speed = ControllerState.HOLDING, True, 0.0
        self.silent = False
        self.says = self.create_publisher(ReasoningMsg, 'reasoning', qos.REASONING)
        self._states = self.create_publisher(ControllerState, 'controller_state', qos.STATE)
        view = ROBOT.views['third_person']
        self._view = view
        from sensor_msgs.msg import Image

        self._images = self.create_publisher(Image, view.topic, qos.SENSOR_PUBLISHER)
        self.create_service(Trigger, 'stop', self._on_stop, callback_group=group)
        self.create_service(Trigger, 'reset', self._on_reset, callback_group=group)
        self.create_service(SetBool, 'enable', self._on_enable, callback_group=group)
        self.create_service(SetBool, 'dry_run', self._on_dry_run, callback_group=group)
        self.create_service(AskScene, 'ask_scene', self._on_question, callback_group=group)
        self.create_timer(0.05, self._publish, callback_group=group)

    def _on_stop(self, _request: Any, response: Any) -> Any:
        self.calls.append(('stop', time.monotonic()))
        self.mode, self.speed = ControllerState.STOPPED, 0.0
        response.success = True
        return response

    def _on_reset(self, _request: Any, response: Any) -> Any:
        self.mode = ControllerState.DISABLED
        response.success, response.message = True, 'the stop latch is cleared; call enable'
        return response

    def _on_enable(self, request: Any, response: Any) -> Any:
        self.calls.append(('enable', time.monotonic()))
        response.success, response.message = False, 'nobody takes trajectories'
        return response

    def _on_dry_run(self, request: Any, response: Any) -> Any:
        self.dry_run = request.data
        response.success = True
        return response

    def _on_question(self, request: Any, response: Any) -> Any:
        response.success, response.answer = True, f'<i>{request.question}</i>?'
        return response

    def _publish(self) -> None:
        if self.silent:
            return
        now = stamp_to_msg(self.get_clock().now().nanoseconds)
        state = ControllerState(mode=self.mode, dry_run=self.dry_run, joint_names=list(ROBOT.arm_joints),
                                measured_positions=list(ROBOT.home), commanded_velocities=[self.speed] * 7,
                                measured_pose=pose_to_msg(np.eye(4)))  # fmt: skip
        state.header.stamp = now
        self._states.publish(state)
        stamp = self.get_clock().now().nanoseconds
        self._images.publish(image_to_msg(np.full((48, 64, 3), 120, np.uint8), stamp, self._view.frame_id))


class Stage:
    """WebNode and the others, each on executors of their own."""

    def __init__(self, **parameters: Any) -> None:
        given = [Parameter(name, value=value) for name, value in {'port': 0, **parameters}.items()]
        self.web = WebNode(parameter_overrides=given)
        self.others = Others()
        self._running = []
        for one in (self.web, self.others):
            executor = MultiThreadedExecutor(num_threads=4)
            executor.add_node(one)
            thread = threading.Thread(target=executor.spin, daemon=True)
            thread.start()
            self._running.append((executor, thread))

    def leave(self, which: Node) -> None:
        which.destroy_node()

    def close(self) -> None:
        self.web.close()
        for executor, thread in self._running:
            executor.shutdown(timeout_sec=2.0)
            thread.join(timeout=2.0)
        for one in (self.web, self.others):
            one.destroy_node()


@pytest.fixture
def stage(ros: None) -> Iterator[Stage]:
    made = Stage(stale_after=4.0)  # a loaded machine is late without being silent
    try:
        yield made
    finally:
        made.close()


class Client:
    """A page without a browser: acknowledges what it gets and keeps it."""

    def __init__(self, stage: Stage) -> None:
        self._end = ExitStack()
        address = f'ws://127.0.0.1:{stage.web.server.port}/ws'
        self._socket = self._end.enter_context(connect(address, compression=None))
        self.got: dict[str, list[dict[str, Any]]] = {}
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            self._keep()
        except ConnectionClosed:
            pass  # the ordinary end

    def _keep(self) -> None:
        while True:
            data = self._socket.recv()
            head = json.loads(data if isinstance(data, str) else data[4 : 4 + int.from_bytes(data[:4], 'big')])
            kind = head['t'] if head['t'] != 'image' else f'image {head["view"]}'
            self.got.setdefault(kind, []).append(head)
            if kind == 'state' or kind.startswith('image'):
                self.say(ack=kind, at=1.0)

    def say(self, **wish: Any) -> None:
        self._socket.send(json.dumps(wish))

    def newest(self, kind: str) -> dict[str, Any]:
        return self.got.get(kind, [{}])[-1]

    def close(self) -> None:
        self._end.close()
        self._thread.join(timeout=5.0)


@pytest.fixture
def client(stage: Stage) -> Iterator[Client]:
    made = Client(stage)
    try:
        yield made
    finally:
        made.close()


def controller(client: Client) -> dict[str, Any]:
    return client.newest('state').get('controller') or {}


def test_topics_reach_the_page_and_nobody_listens_without_a_page(stage, client):
    eventually(lambda: controller(client).get('mode') == 'HOLDING', what='controller state')
    assert controller(client)['dry_run'] is True
    eventually(lambda: client.newest('image third_person').get('note'), what='picture')
    assert client.newest('image third_person')['note'].startswith('64 x 48')
    assert stage.others.count_subscribers(ROBOT.views['third_person'].topic) == 1
    client.close()
    eventually(lambda: not stage.others.count_subscribers(ROBOT.views['third_person'].topic), what='end of listening')


def test_drafts_and_sentences(stage, client):
    eventually(lambda: stage.others.says.get_subscription_count(), what='subscription')
    for k, text in enumerate(('I', 'I will', 'I will pick')):
        stage.others.says.publish(reasoning_to_msg(Reasoning('say-1', 0, 'pick', text, final=k == 2)))
    eventually(lambda: len(client.got.get('thought', [])) == 3, what='sentences')
    assert [t['text'] for t in client.got['thought']] == ['I', 'I will', 'I will pick']
    assert client.newest('thought')['age'] > 1e6  # its stamp is from 1970: nothing of it is news
    stage.others.says.publish(ReasoningMsg())  # without id: dropped, and the node lives
    stage.others.says.publish(reasoning_to_msg(Reasoning('say-2', 0, 'q', 'a', ReasoningKind.ANSWER)))
    eventually(lambda: client.newest('thought').get('kind') == 'ANSWER', what='answer')


def test_buttons_reach_the_services_and_show_what_came_of_it(stage, client):
    eventually(lambda: controller(client), what='controller state')
    client.say(do='dry_run', on=False)
    eventually(lambda: controller(client)['dry_run'] is False, what='dry run off')
    client.say(do='enable', on=True)
    eventually(lambda: client.newest('note').get('text') == 'nobody takes trajectories', what='refusal')
    assert client.newest('note')['level'] == 'error'
    assert controller(client)['mode'] == 'HOLDING'  # the true state, not the wish
    client.say(do='question', text='what?')
    eventually(lambda: client.newest('answer').get('text') == '<i>what?</i>?', what='answer')
    client.say(do='instruction', text='pick it')
    eventually(lambda: 'policy_node' in client.newest('note').get('text', ''), what='no policy')
    client.say(do='cancel')
    eventually(lambda: 'no instruction' in client.newest('note').get('text', ''), what='nothing to cancel')
    client.say(do='stop')
    eventually(lambda: controller(client)['mode'] == 'STOPPED', what='stop')
    eventually(lambda: 'stopped' in client.newest('note').get('text', ''), what='confirmation')
    client.say(do='reset')
    eventually(lambda: controller(client)['mode'] == 'DISABLED', what='reset')
    eventually(stage.web.wishes._confirmed.is_set, what='end of the repetition')
    time.sleep(0.5)  # what is on its way arrives
    stops = len(stage.others.calls)
    time.sleep(0.5)
    assert len(stage.others.calls) == stops  # a confirmed stop is not repeated


def test_stop_goes_out_while_every_thread_of_the_node_is_busy(stage, client):
    eventually(lambda: controller(client), what='controller state')
    assert stage.web.wishes._stop.wait_for_service(10.0)
    release = threading.Event()
    for _ in range(8):
        stage.web.create_timer(0.001, lambda: release.wait(20.0), callback_group=ReentrantCallbackGroup())
    time.sleep(0.5)
    seen = len(client.got['state'])
    time.sleep(0.5)
    assert len(client.got['state']) - seen <= 1, 'the executor was meant to be busy'
    began = time.monotonic()
    try:
        client.say(do='stop')
        eventually(lambda: [n for n, _ in stage.others.calls if n == 'stop'], what='the stop')
        assert stage.others.calls[0][1] - began < 5.0
    finally:
        release.set()


def test_a_stop_that_nobody_hears_is_said(ros):
    stage = Stage()
    stage.leave(stage.others)
    client = Client(stage)
    try:
        client.say(do='stop')
        eventually(lambda: 'DID NOT CONFIRM' in client.newest('note').get('text', ''), what='alarm')
    finally:
        client.close()
        stage.close()


# -- in a browser


@needs_browser
def test_words_are_never_markup_and_old_data_is_never_live(stage):
    with Browser(f'http://127.0.0.1:{stage.web.server.port}/') as page:
        page.until('document.querySelector("#mode-pill").textContent === "holding"')
        page.until('document.querySelector(".camera img").naturalWidth === 64')
        page.until('!document.body.classList.contains("lost")')
        evil = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'
        now = stage.web.now_ns()
        stage.others.says.publish(reasoning_to_msg(Reasoning('say-1', now, evil, evil, final=False)))
        page.until(f'document.querySelector("#thought").textContent === {json.dumps(evil)}')
        assert page.js('document.querySelector("#thought").classList.contains("draft")')
        stage.others.says.publish(reasoning_to_msg(Reasoning('say-1', now, evil, 'I pick it.')))
        page.until('document.querySelector("#thought").textContent === "I pick it."')
        assert not page.js('document.querySelector("#thought").classList.contains("draft")')
        stage.others.says.publish(reasoning_to_msg(Reasoning('say-2', now, evil, evil, ReasoningKind.ANSWER)))
        page.until('document.querySelector("#history").textContent.includes("onerror")')
        page.type('#question', evil)
        page.press('#ask button')
        page.until('document.querySelector("#answer").textContent.includes("<i><img")')
        assert page.js('window.hit') is None
        made = '#thought *, #history img, #answer img, script:not([src])'
        assert not page.js(f'document.querySelectorAll({json.dumps(made)}).length')

        page.until('!document.querySelector("#dry").disabled')
        page.press('#dry')
        page.until('document.querySelector("#dry").getAttribute("aria-checked") === "false"')
        page.until('!document.querySelector("#enable").disabled')
        page.press('#enable')  # refused: the switch shows what is
        page.until('document.querySelector("#note").textContent.includes("nobody takes")')
        stage.others.mode = ControllerState.DISABLED
        page.until('document.querySelector("#enable").getAttribute("aria-checked") === "false"')

        stage.others.silent = True
        page.until('document.querySelector("#mode-pill").classList.contains("stale")')
        page.until('document.querySelector(".camera").classList.contains("stale")')
        assert 'old' in page.text('.camera .age') and page.js('document.querySelector("#enable").disabled')
        assert not page.js('document.querySelector("#stop").disabled')
        stage.others.silent = False
        page.until('!document.querySelector("#mode-pill").classList.contains("stale")')

        stage.web.server.close()
        page.until('document.body.classList.contains("lost")')
        assert 'emergency stop' in page.text('#banner')
        page.key('Escape', 27)
        page.until('document.querySelector("#stop-note").textContent.includes("NOT CONFIRMED")')
        assert [e for e in page.errors if 'WebSocket' not in e and 'ERR_CONNECTION' not in e] == []


@needs_browser
def test_the_real_graph_from_instruction_to_stop(tmp_path):
    from instructvla_ros.sim.tasks import make_episode

    sentence = make_episode('put', 3, '').instruction
    sim = yaml.safe_load(resources.config_file('sim.yaml').read_text(encoding='utf-8'))
    for camera in sim['cameras']:
        camera.update(width=160, height=120)
    file = tmp_path / 'sim.yaml'
    file.write_text(yaml.safe_dump(sim), encoding='utf-8')
    # Bounds for a machine that other tests keep busy; what is tested here is the page.
    patient = {'safety.max_state_age': 3.0, 'safety.max_chunk_age': 5.0, 'safety.max_observation_age': 10.0,
               'chunk_lease': 10.0}  # fmt: skip
    waiting = {'max_view_age': 5.0, 'max_state_age': 5.0, 'input_timeout': 30.0, 'sync_slop': 0.5}
    specs = [
        node('sim_node', {'config': str(file), 'task': 'put', 'seed': 3}),
        node('controller_node', {'start_enabled': True, **patient}),
        node('policy_node', {'policy': 'expert', **waiting}),
        node('web_node', {'port': 0, 'stale_after': 10.0}),
    ]
    with Graph(specs, tmp_path) as graph:
        log = tmp_path / 'web_node.log'
        url = eventually(
            lambda: next((w for w in log.read_text().split() if w.startswith('http://')), None), 60.0, 'the address'
        )
        with Browser(url) as page:
            page.until('document.querySelector("#mode-pill").textContent === "holding"', 90.0, graph.check)
            page.until('document.querySelectorAll(".camera img[src]").length === 2', 90.0, graph.check)
            page.type('#instruction', sentence)
            page.press('#go')
            page.until('parseFloat(document.querySelector("#speed-pill").textContent) > 0.05', 60.0, graph.check)
            page.press('#stop')
            page.until('document.querySelector("#mode-pill").textContent === "stopped"', 60.0, graph.check)
            page.until('document.querySelector("#speed-pill").textContent === "0.00 rad/s"', 60.0, graph.check)
            page.until('document.querySelector("#thought").textContent.length > 5', 60.0, graph.check)
            page.until('document.querySelector("#latency tbody").rows.length === 3', 60.0, graph.check)
            page.until('document.querySelector("#goal").textContent.startsWith("stopped")', 60.0, graph.check)
            page.until('document.querySelector("#verdicts").textContent.includes("stop_latch")', 60.0, graph.check)
            page.until('!document.querySelector("#reset").disabled', 60.0, graph.check)
            page.press('#reset')
            page.until('document.querySelector("#mode-pill").textContent === "disabled"', 60.0, graph.check)
            page.until('!document.querySelector("#enable").disabled', 60.0, graph.check)
            page.press('#enable')
            page.until('document.querySelector("#mode-pill").textContent === "holding"', 60.0, graph.check)
            assert page.errors == []


def test_the_demo_serves_the_page_until_ctrl_c(tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k != 'ROS_DOMAIN_ID'}  # the demo finds a free one
    process = subprocess.Popen(
        [sys.executable, '-m', 'instructvla_ros.cli', 'demo', '--policy', 'expert', '--web', '--web-port', str(port),
         '--no-video', '--json', '--out', str(tmp_path / 'run')],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    try:
        for line in process.stderr:
            if f'http://127.0.0.1:{port}/' in line:
                break
        else:
            pytest.fail(f'no address was printed: {process.stdout.read()}')

        def served() -> bool:
            try:
                with urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=5) as answer:
                    return b'STOP' in answer.read()
            except OSError:
                assert process.poll() is None
                return False

        eventually(served, 60.0, 'the page')
        assert json.loads(process.stdout.readline())['instruction'] == 'put the red cube in the bowl'
        assert process.poll() is None and served()  # the episode is over, the page is still there
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        with pytest.raises(OSError):
            urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=5)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_the_node_refuses_a_token_it_cannot_read(ros):
    from instructvla_ros.errors import SetupError

    with pytest.raises(SetupError, match='token'):
        WebNode(parameter_overrides=[Parameter('token_file', value='/no/such/file')])
    assert rclpy.ok()
