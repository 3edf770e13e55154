"""Routes in joint space: the straight way home, its checks, and how the controller follows one."""

import re
from dataclasses import replace

import numpy as np
import pytest
from test_controller import ARM, HOME, KIN, Rig, rules

from instructvla_ros.control.bounds import Bounds
from instructvla_ros.control.controller import Mode
from instructvla_ros.control.direct import DirectBackend
from instructvla_ros.control.route import Route, check_route, straight_route
from instructvla_ros.errors import KinematicsError
from instructvla_ros.settings import Control

BOUNDS = Bounds.from_settings(ARM, Control())
AWAY = HOME + np.array([0.5, 0.3, -0.2, 0.2, 0.3, 0.2, -0.6])


def test_a_straight_route_is_straight_and_within_its_share():
    route = straight_route(AWAY, HOME, BOUNDS, 0.2)
    times = np.linspace(0.0, route.duration, 300)
    points = [route.at(t) for t in times]
    q, dq = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    np.testing.assert_allclose(q[0], AWAY, atol=1e-9)
    np.testing.assert_allclose(q[-1], HOME, atol=1e-9)
    assert (np.abs(dq) <= 0.2 * BOUNDS.velocity * 1.001).all() and np.abs(dq[0]).max() < 1e-9
    shares = (q - AWAY) / (HOME - AWAY)
    np.testing.assert_allclose(shares, shares[:, :1] * np.ones(7), atol=1e-9)
    numeric = np.gradient(q[:, 0], times)
    np.testing.assert_allclose(numeric[2:-2], dq[2:-2, 0], atol=2e-3)


def test_a_route_to_where_one_is_takes_no_time():
    assert straight_route(HOME, HOME, BOUNDS, 0.2).duration == 0.0


@pytest.mark.parametrize(
    ('times', 'positions', 'velocities', 'text'),
    [
        ([0.0, 1.0], np.zeros((2, 6)), np.zeros((2, 6)), 'needs times'),
        ([0.0, 0.0], np.zeros((2, 7)), np.zeros((2, 7)), 'have to grow'),
        ([0.0, 1.0], np.full((2, 7), np.nan), np.zeros((2, 7)), 'not finite'),
    ],
)
def test_broken_routes_are_named(times, positions, velocities, text):
    with pytest.raises(KinematicsError, match=text):
        Route.of_points(np.array(times), positions, velocities, 7)


def test_checks_name_the_limit_the_workspace_and_the_collision():
    backend = DirectBackend(ARM, BOUNDS, KIN)
    assert check_route(straight_route(AWAY, HOME, BOUNDS, 0.2), BOUNDS, backend) == ''
    beyond = HOME.copy()
    beyond[6] = BOUNDS.upper[6] + 0.1
    assert 'fr3_joint7 would be' in check_route(straight_route(HOME, beyond, BOUNDS, 0.2), BOUNDS, backend)
    behind = HOME.copy()
    behind[0] = 2.2
    assert 'leave the workspace at x' in check_route(straight_route(HOME, behind, BOUNDS, 0.2), BOUNDS, backend)


def test_the_controller_follows_a_route_and_says_so():
    rig = Rig(q=AWAY, ramp_time=0.0)
    run = rig.controller.follow(straight_route(rig.controller.joints(), HOME, BOUNDS, 0.3), 'home')
    assert rig.run(0.5)[-1].mode is Mode.TRACKING and not run.done.is_set()
    refused = rig.feed()
    assert [v.rule for v in refused] == ['route']
    outs = rig.run(run.route.duration + 0.5)
    assert run.done.is_set() and run.problem == '' and 'route' in rules(outs)
    np.testing.assert_allclose(rig.q, HOME, atol=0.01)
    speeds = np.array([np.abs(o.dq) / BOUNDS.velocity for o in rig.outputs if o.dq is not None])
    assert speeds.max() < 0.32
    rig.feed()
    assert rig.run(0.3)[-1].mode is Mode.TRACKING, 'chunks are taken again'


def test_after_a_stall_the_route_goes_on_and_nothing_is_caught_up():
    rig = Rig(q=AWAY, ramp_time=0.0)
    run = rig.controller.follow(straight_route(rig.controller.joints(), HOME, BOUNDS, 0.3), 'home')
    rig.run(0.5)
    rig.now += 100_000_000
    before = len(rig.outputs)
    rig.run(run.route.duration)
    speeds = np.array([np.abs(o.dq) / BOUNDS.velocity for o in rig.outputs[before:] if o.dq is not None])
    assert run.problem == '' and 0.2 < speeds.max() < 0.32


@pytest.mark.parametrize(
    ('end', 'text'),
    [
        ('stop', 'stopped: test'),
        ('disable', 'disabled'),
        ('silence', 'no joint state has arrived'),
        ('blocked', 'rad from its command.*free the arm'),
    ],
)
def test_a_route_ends_when_the_arm_has_to_hold_and_says_why(end, text):
    rig = Rig(q=AWAY, ramp_time=0.0)
    run = rig.controller.follow(straight_route(rig.controller.joints(), HOME, BOUNDS, 0.3), 'home')
    rig.run(0.5)
    if end == 'stop':
        rig.controller.stop('test')
    elif end == 'disable':
        rig.controller.enable(False)
    blocked = rig.measured()
    for _ in range(200 if end == 'blocked' else 60):
        rig.tick({'silence': None, 'blocked': replace(blocked, stamp_ns=rig.now)}.get(end, 'measured'))
    assert run.done.is_set() and re.search(text, run.problem) and not np.any(rig.outputs[-1].dq)
    assert np.abs(rig.q - HOME).max() > 0.2


def test_a_route_is_refused_when_disabled_moving_or_elsewhere():
    rig = Rig(q=AWAY, enabled=False)
    route = straight_route(AWAY, HOME, BOUNDS, 0.3)
    assert 'not enabled' in rig.controller.follow(route, 'home').problem
    rig.controller.enable(True)
    rig.tick()
    assert 'not where' in rig.controller.follow(straight_route(HOME, AWAY, BOUNDS, 0.3), 'home').problem
    rig.feed()
    rig.run(0.3)
    assert 'moves' in rig.controller.follow(route, 'home').problem


def test_a_route_the_arm_cannot_follow_ends_with_the_reason():
    rig = Rig(q=AWAY, ramp_time=0.0)
    points = np.array([AWAY, HOME])
    run = rig.controller.follow(Route.of_points(np.array([0.0, 0.05]), points, np.zeros((2, 7)), 7), 'home')
    rig.run(1.0)
    assert 'cannot follow' in run.problem and not np.any(rig.outputs[-1].dq)
