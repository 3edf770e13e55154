"""While a recording is played: its timeline on the operator's page and in the markers for RViz."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from doubles import EMBODIMENT, eventually
from rclpy.parameter import Parameter
from visualization_msgs.msg import Marker, MarkerArray

from instructvla_ros.datatypes import ActionChunk
from instructvla_ros.msg import ActionChunk as ChunkMsg
from instructvla_ros.msg import ControllerState, SafetyVerdict
from instructvla_ros.nodes import qos
from instructvla_ros.nodes.convert import chunk_to_msg
from instructvla_ros.nodes.replay_node import ReplayNode
from instructvla_ros.nodes.web_node import WebNode

BAG = Path(__file__).resolve().parents[1] / 'data' / 'sim_put'
SECONDS = 150.0


def parameters(**values: Any) -> list[Parameter]:
    return [Parameter(name, value=value) for name, value in values.items()]


def test_the_page_and_rviz_get_recorded_and_predicted_motion(spin):
    web = WebNode(parameter_overrides=parameters(port=0))
    other = rclpy.create_node('policy', namespace='/instructvla')
    markers: list[Marker] = []
    other.create_subscription(MarkerArray, 'replay/markers', lambda m: markers.extend(m.markers), qos.EVENT)
    chunks = other.create_publisher(ChunkMsg, 'action_chunk', qos.CHUNK)
    states = other.create_publisher(ControllerState, 'controller_state', qos.STATE)
    spin(web)
    spin(other)
    player = ReplayNode(parameter_overrides=parameters(bag=str(BAG), rate=0.2, duration=3.0, wait=0.0))
    spin(player)
    motion = eventually(lambda: player._show.timeline.motion, SECONDS, 'the motion is read')
    whole = eventually(web.timeline.whole, SECONDS, 'the page knows the recording')
    assert whole['recorded']['name'] == 'sim_put' and len(whole['recorded']['rows']) > 100
    assert 2.5 < whole['recorded']['duration'] <= 3.05
    assert whole['recorded']['notes'] and whole['recorded']['instructions']
    eventually(lambda: web.timeline.whole()['now'] > 0.1, SECONDS, 'the cursor moves')

    steps = np.zeros((8, 7))
    steps[:, 2] = 0.01
    pose = motion.track.poses(np.array([motion.start_ns]))[0]
    stamp = motion.start_ns
    chunk = ActionChunk('chunk-test', stamp, stamp, 0.1, steps, EMBODIMENT.base_frame, pose, policy='test')
    chunks.publish(chunk_to_msg(chunk))
    row = eventually(lambda: next(iter(web.timeline.whole()['chunks']), None), SECONDS, 'the chunk on the page')
    assert row['id'] == 'chunk-test' and row['t'] == 0.0 and row['error'][0] < 0.5 < row['error'][-1]

    # The recorded arm moves, so the controller has no starting point; that says nothing about the chunk.
    for rule in ('joint_state', 'workspace'):
        verdict = SafetyVerdict(rule=rule, action=SafetyVerdict.REFUSED, value=1.0, chunk_id='chunk-test')
        states.publish(ControllerState(verdicts=[verdict]))
    told = eventually(lambda: web.timeline.whole()['verdicts'], SECONDS, 'the verdict on the page')
    assert 'joint_state' not in {v['rule'] for v in told}
    eventually(lambda: 'workspace' in {v['rule'] for v in web.timeline.whole()['verdicts']}, SECONDS, 'the refusal')

    wanted = {'replay_recorded', 'replay_predicted', 'replay_error', 'replay_bar', 'replay_cursor', 'replay_verdicts'}
    eventually(lambda: wanted <= {m.ns for m in markers}, SECONDS, f'markers {wanted}')
    drawn = [m for m in markers if m.action == Marker.ADD]
    assert {m.header.frame_id for m in drawn} == {EMBODIMENT.base_frame}
    assert markers[0].action == Marker.DELETEALL
    first, last = drawn[0], [m for m in drawn if m.ns == 'replay_recorded'][-1]
    assert len(last.points) == len(last.colors) > 50 and first.ns

    late = WebNode(parameter_overrides=parameters(port=0))
    spin(late)
    eventually(lambda: (late.timeline.whole() or {}).get('chunks'), SECONDS, 'a page that comes late knows all of it')
    eventually(player.done.is_set, SECONDS, 'the recording is over')
    time.sleep(0.5)
    count = late.timeline.whole()['number']
    time.sleep(1.0)
    assert late.timeline.whole()['number'] <= count + 1, 'silence when nothing is played any more'
