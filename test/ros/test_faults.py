"""Faults on the real graph: whatever breaks, the arm comes to rest, says why, and goes on only when told to."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import pytest
from graph import CAMERAS, JOINT_STATES, Cell, Goal, eventually

from instructvla_ros import resources
from instructvla_ros.action import ExecuteInstruction
from instructvla_ros.msg import ActionChunk, ControllerState
from instructvla_ros.nodes.convert import stamp_from_msg, stamp_to_msg
from instructvla_ros.pace import comfortable_speed

Result = ExecuteInstruction.Result
STOP_TIME = 0.3  # s: within which a stopped arm is at rest
FULL_SPEED = 0.7  # s: the start ramp is over
SLACK = min(0.1 / comfortable_speed(), 0.3)  # s: messages on their way, and a loaded or slow machine


@pytest.fixture(scope='module')
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    # What a killed process leaves in shared memory can make the rest of the graph deaf (eProsima/Fast-DDS issue 5469).
    os.environ['FASTDDS_DEFAULT_PROFILES_FILE'] = str(resources.config_file('fastdds_udp.xml'))
    with Cell(tmp_path_factory.mktemp('cell')) as made:
        yield made


def run_out(cell: Cell) -> float:
    """When the newest chunk of the policy has played to its end [s, monotonic]."""
    arrived, chunk = cell.witness.chunks[-1]
    age = (stamp_from_msg(chunk.header.stamp) - stamp_from_msg(chunk.observation_stamp)) * 1e-9
    return arrived - age + chunk.horizon * chunk.step_period


def still_for(cell: Cell, seconds: float) -> None:
    """Fail when the arm moves within the next ``seconds``."""
    since = time.monotonic()
    time.sleep(seconds)
    assert cell.witness.travel(since) < 0.01, 'the arm moved'


def test_policy_killed_in_the_middle_of_a_chunk(cell: Cell) -> None:
    cell.start()
    time.sleep(FULL_SPEED)
    killed = cell.kill('policy_node')
    rest = cell.witness.rest_after(killed)
    end = run_out(cell)
    print(f'at rest {rest:.3f} s after the kill; its last chunk would have lasted until {end - killed:.3f} s')
    assert rest < STOP_TIME + SLACK
    assert cell.witness.mode == ControllerState.HOLDING
    still_for(cell, 0.5)
    cell.revive('policy_node')
    still_for(cell, 0.3)
    goal = cell.start()
    assert goal.cancel().outcome == Result.STOPPED


@pytest.mark.parametrize('view', sorted(CAMERAS))
def test_a_camera_goes_silent(cell: Cell, view: str) -> None:
    goal = cell.start()
    time.sleep(FULL_SPEED)
    cell.witness.cut.add(CAMERAS[view])
    silent = time.monotonic()
    result = goal.result()
    assert result.outcome == Result.STALE_INPUT and view in result.reason
    last = max(at for at, _ in cell.witness.chunks)
    assert last < silent + 0.3 + 0.04 + SLACK, 'chunks without this camera'
    rest = cell.witness.rest_after(silent)
    print(f'{view}: at rest {rest:.3f} s after it went silent, {silent + rest - run_out(cell):.3f} s after the chunk')
    assert silent + rest < run_out(cell) + STOP_TIME + SLACK
    cell.witness.cut.clear()
    still_for(cell, 0.5)
    again = Goal(cell.witness, cell.witness.scene.instruction)
    eventually(cell.witness.moving, 5.0, 'motion with the camera back')
    again.cancel()


def test_joint_states_go_silent(cell: Cell) -> None:
    goal = cell.start()
    time.sleep(FULL_SPEED)
    silent = time.monotonic()
    cell.witness.cut.add(JOINT_STATES)
    rest = cell.witness.rest_after(silent)
    print(f'at rest {rest:.3f} s after the last joint state')
    assert rest < 0.2 + STOP_TIME + SLACK, 'the controller takes states up to 0.2 s old'
    result = goal.result()
    assert result.outcome == Result.STALE_INPUT and 'joint state' in result.reason
    cell.witness.cut.clear()
    still_for(cell, 0.4)
    goal = cell.start()
    goal.cancel()


def forged(cell: Cell, name: str) -> ActionChunk:
    """A chunk that would move the arm by 24 cm if it were taken."""
    now = cell.witness.get_clock().now().nanoseconds
    steps = np.zeros((8, 7))
    steps[:, 0], steps[:, 6] = 0.03, 1.0
    chunk = ActionChunk(id=name, horizon=8, step_period=0.1, steps=steps.ravel().tolist(), policy='forged')
    chunk.header.stamp = chunk.observation_stamp = stamp_to_msg(now)
    chunk.header.frame_id = 'fr3_link0'
    chunk.reference_pose = cell.witness.states[-1][1].measured_pose
    return chunk


def shift(chunk: ActionChunk, seconds: float) -> None:
    for holder, field in ((chunk.header, 'stamp'), (chunk, 'observation_stamp')):
        setattr(holder, field, stamp_to_msg(stamp_from_msg(getattr(holder, field)) + int(seconds * 1e9)))


def test_bad_chunks_are_refused_by_name_and_good_ones_go_on(cell: Cell) -> None:
    cell.start().cancel()
    cell.witness.rest_after(time.monotonic())
    expected = {
        'nan': {'finite'}, 'inf': {'finite'}, 'future': {'future_stamp'}, 'past': {'chunk_age'}, 'frame': {'frame'},
    }
    since = time.monotonic()
    assert {name: rules_against(cell, name) for name in expected} == expected
    time.sleep(0.5)
    assert cell.witness.travel(since) < 0.01, 'a bad chunk moved the arm'
    assert rules_against(cell, 'good') == set()
    eventually(cell.witness.moving, 1.0, 'a good chunk moves it')
    cell.witness.rest_after(time.monotonic())


def rules_against(cell: Cell, fault: str) -> set[str]:
    """Rules by which a forged chunk with that fault is refused; one that met a late joint state is sent again."""
    rules: set[str] = set()
    for _ in range(5):
        chunk = forged(cell, f'{fault}-{time.time_ns()}')
        if fault in ('nan', 'inf'):
            chunk.steps[9] = float(fault)
        elif fault in ('future', 'past'):
            shift(chunk, {'future': 2.0, 'past': -3.0}[fault])
        elif fault == 'frame':
            chunk.header.frame_id = 'world'
        cell.witness.chunk_publisher.publish(chunk)

        def heard() -> bool:
            return chunk.id in cell.witness.refusals or cell.witness.states[-1][1].chunk_id == chunk.id  # noqa: B023

        eventually(heard, 2.0, f'what becomes of {fault}')
        rules = cell.witness.refusals.get(chunk.id, set())
        if rules != {'joint_state'}:
            break
    return rules


def test_a_bad_chunk_amid_good_ones_changes_nothing(cell: Cell) -> None:
    goal = cell.start()
    for k in range(10):
        bad = forged(cell, f'amid-{k}-{time.time_ns()}')
        bad.steps = [float('nan')] * 56
        cell.witness.chunk_publisher.publish(bad)
        time.sleep(0.1)
    witness = cell.witness
    # A chunk of the policy that comes late makes a slow machine brake for a moment; a bad one must not be why.
    eventually(lambda: witness.mode == ControllerState.TRACKING and witness.moving(), 2.0, 'tracking goes on')
    assert goal.cancel().outcome == Result.STOPPED


def test_the_stop_latch(cell: Cell) -> None:
    goal = cell.start()
    time.sleep(FULL_SPEED)
    stopped = time.monotonic()
    assert cell.witness.call('stop').success
    rest = cell.witness.rest_after(stopped)
    print(f'at rest {rest:.3f} s after the call of stop')
    assert rest < STOP_TIME + SLACK
    result = goal.result()
    assert result.outcome == Result.STOPPED and 'latch' in result.reason
    assert cell.witness.mode == ControllerState.STOPPED
    assert not cell.witness.call('enable', data=True).success, 'the latch wants a reset'
    assert Goal(cell.witness, cell.witness.scene.instruction).result().outcome == Result.STOPPED
    still_for(cell, 0.4)
    cell.witness.call('reset')
    still_for(cell, 0.4)
    goal = cell.start()
    goal.cancel()


def test_the_controller_is_restarted(cell: Cell) -> None:
    goal = cell.start()
    killed = cell.kill('controller_node')
    rest = cell.witness.rest_after(killed)
    print(f'at rest {rest:.3f} s after the controller was killed')
    assert rest < 0.6, 'the arm follows what it has and stays'
    cell.revive('controller_node')
    eventually(lambda: cell.witness.mode == ControllerState.DISABLED, 3.0, 'it starts disabled')
    still_for(cell, 0.5)
    cell.enable()
    eventually(cell.witness.moving, 3.0, 'the goal that runs goes on once the controller is enabled')
    assert goal.cancel().outcome == Result.STOPPED


def test_the_simulator_is_restarted(cell: Cell) -> None:
    goal = cell.start()
    cell.kill('sim_node')
    result = goal.result()
    assert result.outcome == Result.STALE_INPUT
    cell.revive('sim_node')
    still_for(cell, 0.5)
    goal = cell.start()
    assert goal.cancel().outcome == Result.STOPPED
