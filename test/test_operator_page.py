"""The operator's page without ROS and without a browser: who gets in, what is understood, what is shown."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest

from instructvla_ros import config, graph_session, resources
from instructvla_ros.control.frames import LinkFrames
from instructvla_ros.datatypes import ActionChunk, Reasoning, ReasoningKind, Verdict, VerdictAction
from instructvla_ros.errors import ConfigError, InstructionError, SetupError
from instructvla_ros.goals import ControllerMode
from instructvla_ros.operator_page import access, intents
from instructvla_ros.operator_page.arm import bones, solids
from instructvla_ros.operator_page.desk import ControllerReport, Desk, GoalNews
from instructvla_ros.operator_page.ledger import Durations, VerdictList
from instructvla_ros.operator_page.server import ASSETS, plain
from instructvla_ros.settings import Embodiment, Safety, Visual

ROBOT = config.load(Embodiment, resources.config_file('franka.yaml'))
URDF = resources.robot_description()
TOKEN = 'a-token_of-16-plus'


def desk(described: bool = True) -> Desk:
    made = Desk(ROBOT, Safety(), Visual(), 1.0)
    if described:
        made.on_description(URDF)
    return made


def chunk(name: str = 'chunk-1', **fields: Any) -> ActionChunk:
    steps = np.zeros((4, 7))
    steps[:, 0] = 0.01
    steps[:, 6] = 1.0
    reference = np.eye(4)
    reference[:3, 3] = [0.4, 0.0, 0.3]
    values = {'observation_stamp_ns': 10**9, 'created_stamp_ns': 10**9 + 120_000_000, **fields}
    return ActionChunk(name, step_period=0.1, steps=steps, frame_id=ROBOT.base_frame, reference_pose=reference,
                       reasoning_id='say-1', model_latency=0.05, **values)  # fmt: skip


def said(text: str, name: str = 'say-1', final: bool = True, kind: ReasoningKind = ReasoningKind.PLAN) -> Reasoning:
    return Reasoning(name, 10**9, 'put it there', text, kind, final=final, latency=0.2, tokens=7)


# -- who gets in


@pytest.mark.parametrize('name', ['localhost', '127.0.0.1', '127.8.8.8', '::1', '[::1]'])
def test_loopback(name):
    assert access.is_loopback(name)


@pytest.mark.parametrize('name', ['0.0.0.0', '::', '', '192.168.1.2', 'robot', 'localhost.evil.org', '127.0.0.1.a.b'])
def test_not_loopback(name):
    assert not access.is_loopback(name)


def test_a_page_on_loopback_needs_no_token_and_elsewhere_always_has_one():
    assert access.Access('127.0.0.1').token == ''
    first, second = access.Access('0.0.0.0').token, access.Access('0.0.0.0').token
    assert first != second and min(len(first), len(second)) >= 32
    assert access.Access('127.0.0.1', TOKEN).token == TOKEN


@pytest.mark.parametrize(
    'host, origin, refused',
    [
        ('127.0.0.1:8765', None, False),
        ('localhost:8765', 'http://localhost:8765', False),
        ('[::1]:8765', 'http://[::1]:8765', False),
        ('LOCALHOST:8765', 'http://localhost:8765', False),
        ('localhost:8765', 'http://localhost:3000', True),  # another page of this machine
        ('localhost:8765', 'https://evil.org', True),
        ('localhost:8765', 'null', True),
        ('localhost:8765', 'file://', True),
        ('evil.org:8765', 'http://evil.org:8765', True),  # a name that was made to point here
        ('', None, True),
        ('[::1', None, True),
    ],
)
def test_origin_and_host_of_a_page_on_loopback(host, origin, refused):
    assert bool(access.Access('127.0.0.1').refusal(host, origin)) is refused


def test_origin_of_a_page_for_others():
    page = access.Access('0.0.0.0', TOKEN)
    assert not page.refusal('robot.lan:8765', 'http://robot.lan:8765')
    assert page.refusal('robot.lan:8765', 'http://evil.org')


def test_tokens():
    page = access.Access('0.0.0.0', TOKEN)
    assert page.admits(TOKEN)
    assert not any(page.admits(wrong) for wrong in ('', TOKEN[:-1], TOKEN + 'x', TOKEN.upper(), 'ä', '\udc80'))
    assert access.token_in_query(f'/?a=1&token={TOKEN}') == TOKEN and access.token_in_query('/') == ''
    assert access.token_in_cookie(f'x=1; i_1={TOKEN}', 'i_1') == TOKEN and access.token_in_cookie('x=1', 'i_1') == ''


def test_token_files(tmp_path):
    file = tmp_path / 'token'
    file.write_text(f'{TOKEN}\n')
    assert access.read_token(str(file)) == TOKEN and access.read_token('') == ''
    for bad in ('', 'short', 'with a space in it', 'ümlaut-ümlaut-ümlaut'):
        file.write_text(bad)
        with pytest.raises(ConfigError, match='at least 16'):
            access.read_token(str(file))
    with pytest.raises(SetupError, match='cannot read'):
        access.read_token(str(tmp_path / 'none'))


# -- what is understood


def test_wishes():
    assert intents.parse('{"do": "stop"}') == intents.Intent(intents.Do.STOP)
    assert intents.parse('{"do": "enable", "on": true}') == intents.Intent(intents.Do.ENABLE, on=True)
    wish = intents.parse('{"do": "instruction", "text": "  pick <b>it</b> ", "seconds": 5}')
    assert wish == intents.Intent(intents.Do.INSTRUCTION, 'pick <b>it</b>', seconds=5.0)
    assert intents.parse('{"ack": "state", "at": 12.5}') == intents.Ack('state', 12.5)


@pytest.mark.parametrize(
    'message',
    [
        '', 'stop', '[]', '3', '{}', b'{"do": "stop"}', '{"do": 1}', '{"do": "fly"}', '{"do": ["stop"]}',
        '{"do": "enable"}', '{"do": "enable", "on": 1}', '{"do": "enable", "on": "true"}',
        '{"do": "instruction"}', '{"do": "instruction", "text": " "}', '{"do": "question", "text": "a\\u0000b"}',
        '{"do": "instruction", "text": "a\\u202eb"}', '{"do": "instruction", "text": "x", "seconds": -1}',
        '{"do": "instruction", "text": "x", "seconds": NaN}', '{"ack": "state", "at": Infinity}', '{"ack": 1, "at": 0}',
        '[' * 100_000, json.dumps({'do': 'instruction', 'text': 'x' * 1001}),
    ],
)  # fmt: skip
def test_nonsense_is_refused(message):
    with pytest.raises(InstructionError):
        intents.parse(message)


# -- what is shown


def test_the_arm_is_drawn_from_its_own_primitives():
    shapes = solids(URDF)
    assert {f'fr3_link{k}' for k in range(8)} <= {s.link for s in shapes}
    assert {'fr3_leftfinger', 'fr3_rightfinger', 'fr3_hand'} <= {s.link for s in shapes}
    assert all(min(s.size[:2]) > 0 and np.isfinite(s.origin).all() and max(s.color) <= 1 for s in shapes)
    assert bones(URDF, frozenset(s.link for s in shapes)) == ()


MESHES = """<robot name="m"><material name="blue"><color rgba="0 0 1 1"/></material>
<link name="a"><visual><geometry><mesh filename="a.stl"/></geometry></visual></link>
<link name="b"><visual><geometry><mesh filename="b.stl"/></geometry></visual>
<collision><origin xyz="0 0 1" rpy="0 0 0"/><geometry><sphere radius="0.1"/></geometry></collision></link>
<link name="c"><visual><geometry><box size="1 2 3"/></geometry><material name="blue"/></visual></link>
<joint name="ab" type="revolute"><parent link="a"/><child link="b"/></joint>
<joint name="bc" type="revolute"><parent link="b"/><child link="c"/></joint></robot>"""


def test_meshes_are_replaced_by_collision_shapes_or_lines():
    shapes = {s.link: s for s in solids(MESHES)}
    assert set(shapes) == {'b', 'c'}
    assert shapes['b'].kind == 'sphere' and shapes['b'].origin[2, 3] == 1.0
    assert shapes['c'].color == (0.0, 0.0, 1.0) and shapes['c'].size == (1.0, 2.0, 3.0)
    assert bones(MESHES, frozenset(shapes)) == (('a', 'b'),)


@pytest.mark.parametrize(
    'text',
    [
        'no urdf',
        '<!DOCTYPE r [<!ENTITY a "b">]><robot name="r">&a;</robot>',
        '<robot><link name="a"><visual><geometry><box size="1 nan 1"/></geometry></visual></link></robot>',
        '<robot><link name="a"><visual><geometry><sphere/></geometry></visual></link></robot>',
    ],
)
def test_broken_descriptions_are_refused(text):
    with pytest.raises(SetupError):
        solids(text)


def test_equal_verdicts_are_counted_and_old_ones_leave():
    rows = VerdictList()
    for k in range(3):
        rows.add(Verdict('ik', VerdictAction.CLIPPED, 'joint2', 1.0 + k, 0.5, 'rad'), 0.1 * k)
    rows.add(Verdict('finite', VerdictAction.REFUSED, text='step 2 is NaN', chunk_id='chunk-9'), 1.0)
    rows.add(Verdict('finite', VerdictAction.PASSED), 1.0)
    first, second = rows.rows(2.0)
    assert (first['rule'], first['chunk'], first['age']) == ('finite', 'chunk-9', 1.0)
    assert (second['count'], second['value'], second['limit']) == (3, 3.0, 0.5)
    assert rows.rows(1000.0) == []
    rows.add(Verdict('ik', VerdictAction.CLIPPED, 'joint2', 9.0), 100.0)
    assert rows.rows(100.0)[0]['count'] == 1


def test_durations():
    times = Durations()
    for k in range(1, 201):
        times.add('a', 0.001 * k)
    times.add('a', math.nan)
    (row,) = times.rows()
    assert row['count'] == 100 and row['last'] == 0.2 and 0.14 < row['p50'] < 0.16 and 0.19 < row['p95'] < 0.2


def test_nothing_heard_has_no_age_and_no_values():
    state = desk(described=False).state(5.0)
    assert state['ages'] == {} and state['controller'] is None and state['links'] is None and state['goal'] is None
    json.dumps(plain(state), allow_nan=False)


def test_ages_are_those_of_what_was_heard():
    d = desk()
    d.on_joints(dict(zip(ROBOT.arm_joints, ROBOT.home, strict=True)), 1.0)
    d.on_chunk(chunk(), 2.0)
    d.on_controller(ControllerReport(0, ControllerMode.TRACKING, True), 3.0)
    d.on_reasoning(said('I begin', final=False), 4.0)
    assert d.state(5.0)['ages'] == {'joints': 4.0, 'chunk': 3.0, 'controller': 2.0}
    d.on_reasoning(said('I begin.'), 4.5)
    assert d.state(5.0)['ages']['thought'] == 0.5
    assert d.on_reasoning(said('Said before.', 'say-0'), 5.0, 60.0)['age'] == 60.0
    d.forget_path()
    assert d.state(5.0)['ages'] == {}


def test_links_are_where_the_kinematics_says():
    d, frames = desk(), LinkFrames(URDF, ROBOT.base_frame)
    joints = dict(zip(ROBOT.arm_joints, [0.3, -0.5, 0.2, -1.9, 0.1, 1.7, 0.4], strict=True))
    d.on_joints(joints, 0.0)
    frames.set_joints(joints)
    arm = d.hello(0.0)['arm']
    rows = d.state(0.0)['links']
    assert len(rows) == len(arm['links']) and ROBOT.base_frame not in arm['links']
    for name, row in zip(arm['links'], rows, strict=True):
        assert np.allclose(np.array(row).reshape(3, 4), frames.pose(name)[:3], atol=1e-5)
    assert {s['link'] for s in arm['solids']} <= set(range(len(rows) + 1))


def test_the_plan_is_drawn_in_the_colours_of_time_with_the_gripper():
    d = desk()
    d.on_chunk(chunk(), 0.0)
    shapes = {s['space']: s for s in d.state(0.0)['shapes']}
    assert {'chunk_path', 'chunk_points', 'chunk_gripper', 'workspace', 'table'} <= set(shapes)
    path = shapes['chunk_path']
    assert np.allclose(np.reshape(path['points'], (-1, 3))[:, 0], [0.4, 0.41, 0.42, 0.43, 0.44])
    colors = np.reshape(path['colors'], (-1, 4))
    assert colors[0, 2] > 200 and colors[-1, 0] > 200 and colors[-1, 2] < 60  # blue to yellow


def test_latencies_and_verdicts_of_the_controller():
    d = desk()
    d.on_chunk(chunk(), 0.0)
    verdicts = [Verdict('workspace', VerdictAction.REFUSED, 'z', -0.2, 0.0, 'm', 'too low', 'chunk-1')]
    for k in range(2):  # the second state of the same chunk is no second command
        report = ControllerReport(10**9 + 150_000_000 + k, ControllerMode.TRACKING, False, chunk_id='chunk-1',
                                  observation_stamp_ns=10**9, verdicts=verdicts[k:])  # fmt: skip
        d.on_controller(report, 0.1)
    state = d.state(0.2)
    times = {row['name']: row for row in state['latency']}
    assert times['camera to chunk']['last'] == pytest.approx(0.12)
    assert times['camera to command']['last'] == pytest.approx(0.15) and times['camera to command']['count'] == 1
    assert [v['rule'] for v in state['verdicts']] == ['workspace']
    assert any(s['space'] == 'verdict' and 'REFUSED' in s['text'] for s in state['shapes'])
    assert (state['controller']['mode'], state['controller']['enabled']) == ('TRACKING', True)
    d.on_controller(ControllerReport(0, ControllerMode.STOPPED, False), 0.3)
    assert d.state(0.3)['controller']['enabled'] is False


def test_sentences_replace_their_drafts_and_come_with_the_greeting():
    d = desk()
    for k, text in enumerate(('I', 'I will', 'I will pick it')):
        event = d.on_reasoning(said(text, final=k == 2), float(k))
        assert event['text'] == text and event['final'] == (k == 2)
    d.on_reasoning(said('a cube', 'say-2', kind=ReasoningKind.ANSWER), 3.0)
    thoughts = d.hello(5.0)['thoughts']
    assert [(t['id'], t['text'], t['kind'], t['age']) for t in thoughts] == [
        ('say-1', 'I will pick it', 'PLAN', 3.0), ('say-2', 'a cube', 'ANSWER', 2.0)
    ]  # fmt: skip
    for k in range(100):
        d.on_reasoning(said('more', f'say-{k + 10}'), 6.0)
    assert len(d.hello(6.0)['thoughts']) == 40


def test_goals_are_shown():
    d = desk()
    d.on_goal(GoalNews('pick it', 'ACTING', 1.5))
    goal = plain(d.state(0.0))['goal']
    assert goal['phase'] == 'ACTING' and goal['progress'] is None and goal['outcome'] == ''


def test_the_page_never_makes_markup_of_words_and_loads_nothing_from_elsewhere():
    for file in ASSETS.iterdir():
        if file.suffix in ('.js', '.html', '.css'):
            text = file.read_text(encoding='utf-8')
            for banned in ('innerHTML', 'outerHTML', 'insertAdjacentHTML', 'document.write', 'eval(', 'Function(',
                           'srcdoc', 'javascript:'):  # fmt: skip
                assert banned not in text, f'{file.name}: {banned}'
            assert not re.search(r'(https?:)?//[a-z]', re.sub(r'^\s*//.*$', '', text, flags=re.M)), file.name
            assert len(text.splitlines()) <= 450


def test_the_demo_starts_the_page_when_asked(tmp_path):
    first = graph_session.EpisodeRequest('put', 0)
    names = [s.name for s in graph_session.specs(graph_session.GraphOptions(), tmp_path, first)]
    assert 'web_node' not in names
    options = graph_session.GraphOptions(web_port=9000)
    graph_session.check_options(options)
    spec = next(s for s in graph_session.specs(options, tmp_path, first) if s.name == 'web_node')
    assert spec.parameters['port'] == 9000 and spec.parameters['embodiment'].endswith('franka.yaml')
    with pytest.raises(ConfigError, match='port'):
        graph_session.check_options(graph_session.GraphOptions(web_port=0))


def test_a_camera_is_where_its_mount_says() -> None:
    from dataclasses import replace

    from instructvla_ros.settings import Mount

    name, view = next(iter(ROBOT.views.items()))
    mounted = replace(view, mount=Mount(ROBOT.base_frame, (1.0, 0.2, 0.6), (0.0, 0.0, 0.0)))
    made = Desk(replace(ROBOT, views={**ROBOT.views, name: mounted}), Safety(), Visual(), 1.0)
    made.on_description(URDF)
    pose = made.camera(view.frame_id)
    assert isinstance(pose, np.ndarray)
    np.testing.assert_allclose(pose[:3, 3], [1.0, 0.2, 0.6], atol=1e-9)
    there = desk().camera(view.frame_id)
    assert isinstance(there, str) or not np.allclose(there[:3, 3], pose[:3, 3])
