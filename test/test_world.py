"""The simulated cell: physics that holds things, honest state, pictures that fit the camera model."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pinocchio as pin
import pytest

from instructvla_ros import config
from instructvla_ros.errors import ConfigError, InstructVLAError, KinematicsError, SetupError
from instructvla_ros.resources import config_file, robot_description
from instructvla_ros.settings import Embodiment, Randomization, Sim, SimCamera
from instructvla_ros.sim import gl
from instructvla_ros.sim.render import CameraRig
from instructvla_ros.sim.scene import (
    COLORS,
    GRASPABLE,
    SIZES,
    Look,
    SceneSpec,
    arrange,
    handle_position,
    make_object,
    opening_direction,
    sample_look,
)
from instructvla_ros.sim.world import World

SIM = config.load(Sim, config_file('sim.yaml'))
ARM = config.load(Embodiment, config_file('franka.yaml'))
HOME = np.array(ARM.home)
draws = pytest.mark.skipif(not gl.BACKEND, reason='neither EGL nor OSMesa on this machine')


@pytest.fixture(scope='module')
def world():
    with World(SIM, ARM, render=bool(gl.BACKEND)) as w:
        yield w


class Hand:
    """Moves the tool in straight lines, pointing down, by damped least squares; independent of control/."""

    def __init__(self, world):
        model = pin.buildModelFromXML(robot_description('fr3'))
        fingers = [model.getJointId(n) for n in ARM.gripper.joints]
        self.model = pin.buildReducedModel(model, fingers, pin.neutral(model))
        self.data, self.frame = self.model.createData(), self.model.getFrameId(ARM.tcp_frame)
        self.world, self.q = world, HOME.copy()
        self.at = world.tcp_pose()[:3, 3]

    def solve(self, xyz, yaw):
        goal = pin.SE3(pin.utils.rotate('z', yaw) @ np.diag([1.0, -1.0, -1.0]), np.asarray(xyz))
        q = self.q
        for _ in range(8):
            pin.forwardKinematics(self.model, self.data, q)
            pin.updateFramePlacement(self.model, self.data, self.frame)
            error = pin.log6(self.data.oMf[self.frame].actInv(goal)).vector
            jac = pin.computeFrameJacobian(self.model, self.data, q, self.frame)
            q = q + jac.T @ np.linalg.solve(jac @ jac.T + 1e-5 * np.eye(6), error)
        return np.clip(q, ARM.limits.lower, ARM.limits.upper)

    def go(self, xyz, width, seconds=0.7, yaw=0.0):
        start, n = self.at, round(seconds / 0.02)
        for k in range(n):
            q = self.solve(start + (np.asarray(xyz) - start) * (k + 1) / n, yaw)
            self.world.set_joint_target(q, (q - self.q) / 0.02)
            self.world.set_gripper_target(width)
            self.world.advance(0.02)
            self.q = q
        self.at = np.asarray(xyz, dtype=float)


def test_starts_at_home_with_an_open_hand(world):
    world.reset(SceneSpec())
    state = world.robot_state(123)
    assert state.stamp_ns == 123 and state.gripper == pytest.approx(1.0, abs=0.01)
    assert state.q == pytest.approx(HOME, abs=1e-3) and np.abs(state.dq).max() < 1e-3
    tcp = world.tcp_pose()
    assert tcp[:3, 3] == pytest.approx([0.307, 0.0, 0.487], abs=2e-3)
    assert tcp[:3, 2] == pytest.approx([0.0, 0.0, -1.0], abs=1e-3)  # pointing down


def test_time_goes_on_over_resets(world):
    before = world.time
    world.advance(0.5)
    assert world.time == pytest.approx(before + 0.5)
    world.reset(SceneSpec())
    assert world.time == pytest.approx(before + 0.5)
    world.advance(0.1)
    assert world.time == pytest.approx(before + 0.6)


def test_fractions_of_a_step_add_up(world):
    world.reset(SceneSpec())
    start = world.time
    for _ in range(100):
        world.advance(0.0033)
    assert world.time - start == pytest.approx(0.33, abs=SIM.timestep)
    with pytest.raises(ValueError, match='finite'):
        world.advance(float('nan'))
    with pytest.raises(ValueError, match='>= 0'):
        world.advance(-0.1)


def test_same_scene_same_motion(world):
    scene = SceneSpec(arrange(np.random.default_rng(1), [make_object('cube', 'red'), make_object('ball', 'blue')]))
    ends = []
    for _ in range(2):
        world.reset(scene)
        world.set_joint_target(HOME + 0.2)
        world.advance(1.0)
        ends.append((world.robot_state(0).q, world.scene_state(0).objects['blue_ball'].pose))
    assert np.array_equal(ends[0][0], ends[1][0]) and np.array_equal(ends[0][1], ends[1][1])


def test_objects_are_where_the_scene_says(world):
    rng = np.random.default_rng(2)
    drawer = make_object('drawer', xy=(0.7, -0.22), yaw=0.2, opening=0.05)
    things = [make_object('cube', 'red', 'small'), make_object('bowl', 'blue'), make_object('plate', 'white')]
    scene = SceneSpec((drawer, *arrange(rng, things, [drawer])), seed=7)
    world.reset(scene)
    world.advance(3.0)
    state = world.scene_state(5)
    assert state.seed == 7 and state.stamp_ns == 5 and state.held == ''
    for spec in scene.objects:
        seen = state.objects[spec.name]
        assert (seen.category, seen.color, seen.size) == (spec.category, spec.color, spec.size)
        assert seen.pose[:3, 3] == pytest.approx(spec.xyz, abs=2e-3)
        assert np.arctan2(seen.pose[1, 0], seen.pose[0, 0]) == pytest.approx(spec.yaw, abs=0.02)
    assert state.objects['drawer'].opening == pytest.approx(0.05, abs=1e-3)


def test_a_ball_stays_where_it_was_put(world):
    world.reset(SceneSpec((make_object('ball', 'red', 'small'),)))
    before = world.scene_state(0).objects['red_ball'].pose
    world.advance(10.0)
    assert np.linalg.norm(world.scene_state(0).objects['red_ball'].pose - before) < 1e-3


def test_servos_follow_a_moving_target(world):
    world.reset(SceneSpec())
    worst = 0.0
    for k in range(200):
        t = 0.01 * k
        world.set_joint_target(HOME + 0.2 * (1 - np.cos(2 * t)), np.full(7, 0.4 * np.sin(2 * t)))
        world.advance(0.01)
        worst = max(worst, np.abs(world.robot_state(0).q - HOME - 0.2 * (1 - np.cos(2 * (t + 0.01)))).max())
    assert worst < 0.006


@pytest.mark.parametrize(
    'target, error, part',
    [
        (np.where(np.arange(7) == 3, 0.5, HOME), KinematicsError, 'fr3_joint4'),
        (np.where(np.arange(7) == 5, np.nan, HOME), ValueError, 'fr3_joint6'),
        (HOME[:6], ValueError, 'expected 7'),
    ],
)
def test_bad_targets_are_refused_and_the_last_one_stays(world, target, error, part):
    world.reset(SceneSpec())
    goal = HOME + 0.1
    world.set_joint_target(goal)
    with pytest.raises(error, match=part):
        world.set_joint_target(target)
    world.advance(2.0)
    assert world.robot_state(0).q == pytest.approx(goal, abs=2e-3)


def test_bad_velocity_and_width_are_refused(world):
    world.reset(SceneSpec())
    with pytest.raises(ValueError, match='velocity'):
        world.set_joint_target(HOME, np.full(7, np.inf))
    world.set_gripper_target(0.04)
    with pytest.raises(ValueError, match='finite'):
        world.set_gripper_target(float('nan'))
    world.advance(1.5)
    assert world.robot_state(0).gripper == pytest.approx(0.5, abs=0.02)
    world.set_gripper_target(5.0)
    world.advance(1.5)
    assert world.robot_state(0).gripper == pytest.approx(1.0, abs=0.02)


def test_fingers_move_together_at_their_speed(world):
    world.reset(SceneSpec())
    world.set_gripper_target(0.0)
    world.advance(0.2)
    fingers, speed = world.finger_state()
    assert abs(fingers[0] - fingers[1]) < 5e-4
    assert -speed == pytest.approx([ARM.gripper.speed] * 2, rel=0.15)
    world.advance(1.0)
    assert world.robot_state(0).gripper < 0.02


@pytest.mark.parametrize('kind', GRASPABLE)
@pytest.mark.parametrize('size', SIZES)
def test_grasps_lifts_and_carries(world, kind, size):
    """Three seeded places each; the tool is up to 6 mm off. The gripper must say what it holds, and hold it fast."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        scene = SceneSpec(arrange(rng, [make_object(kind, 'red', size), make_object('cube', 'blue')]))
        world.reset(scene)
        hand, thing = Hand(world), scene.objects[0]
        at = np.array(thing.xyz) + [*rng.uniform(-0.006, 0.006, 2), 0.0]
        hand.go([at[0], at[1], 0.15], 0.08, yaw=thing.yaw)
        hand.go(at, 0.08, yaw=thing.yaw)
        assert world.scene_state(0).held == ''
        hand.go(at, 0.0, 0.5, yaw=thing.yaw)
        before = world.scene_state(0)
        assert before.held == thing.name
        hand.go([0.5, 0.0, 0.25], 0.0, 1.2, yaw=thing.yaw)
        after = world.scene_state(0)
        assert after.held == thing.name and after.objects[thing.name].pose[2, 3] > 0.2
        grip = [np.linalg.inv(s.tcp_pose) @ s.objects[thing.name].pose for s in (before, after)]
        assert np.linalg.norm(grip[0][:3, 3] - grip[1][:3, 3]) < 0.005


@pytest.mark.parametrize('container', ['bowl', 'plate'])
def test_things_lie_inside_a_container(world, container):
    for kind in GRASPABLE:
        for size in SIZES:
            box = make_object(container, 'blue', xy=(0.5, 0.1))
            thing = replace(make_object(kind, 'red', size, xy=(0.51, 0.09)), xyz=(0.51, 0.09, 0.09))
            world.reset(SceneSpec((box, thing)))
            world.advance(2.0)
            objects = world.scene_state(0).objects
            a, b = objects[thing.name].pose[:3, 3], objects[box.name].pose[:3, 3]
            assert np.linalg.norm(a[:2] - b[:2]) < box.extent[0] / 2 - 0.02, (kind, size)
            floor = b[2] - box.extent[2] / 2 + 0.006
            assert abs(a[2] - floor - thing.extent[2] / 2) < 0.012, (kind, size)


@pytest.mark.parametrize('yaw', [0.0, 0.4])
def test_drawer_is_pulled_stays_and_is_pushed_shut(world, yaw):
    world.reset(SceneSpec((make_object('drawer', xy=(0.70, -0.1), yaw=yaw),)))
    drawer = world.scene_state(0).objects['drawer']
    handle, out = handle_position(drawer), opening_direction(drawer)
    hand = Hand(world)
    hand.go(handle + [0, 0, 0.12], 0.08)
    hand.go(handle, 0.08)
    hand.go(handle, 0.0, 0.5)
    assert world.scene_state(0).held == 'drawer'
    hand.go(handle + 0.1 * out, 0.0, 1.2)
    hand.go(hand.at, 0.08, 0.5)
    hand.go(hand.at + [0, 0, 0.12], 0.08)
    world.advance(1.0)
    drawer = world.scene_state(0).objects['drawer']
    assert drawer.opening == pytest.approx(0.1, abs=0.005)
    assert handle_position(drawer) == pytest.approx(handle + 0.1 * out, abs=0.005)
    hand.go(handle + 0.17 * out + [0, 0, 0.12], 0.0)
    hand.go(handle + 0.17 * out, 0.0)
    hand.go(handle + 0.02 * out, 0.0, 1.5)
    assert world.scene_state(0).objects['drawer'].opening < 0.01


def test_diverged_physics_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with World(SIM, ARM, render=False) as w:
        w._data.qvel[:] = 1e12
        with pytest.raises(InstructVLAError, match='diverged'):
            w.advance(0.1)
        w.reset(SceneSpec())
        w.advance(0.1)
    assert not list(tmp_path.iterdir())  # MuJoCo's own log file


def test_panda_too():
    arm = config.load(Embodiment, config_file('panda.yaml'))
    with World(SIM, arm, render=False) as w:
        w.advance(0.2)
        assert w.tcp_pose()[:3, 3] == pytest.approx([0.307, 0.0, 0.487], abs=3e-3)


def test_wrong_camera_parent_and_view_are_named():
    wrong = replace(SIM, cameras=(SimCamera(view='a', parent='hnd', position=(0.1, 0.0, 0.0)),))
    with pytest.raises(ConfigError, match='fr3_hand'):
        World(wrong, ARM, render=False)
    blind = replace(SIM, cameras=(SimCamera(view='a', position=(0, 0, 1.0), target=(0, 0, 0.0)),))
    with pytest.raises(ConfigError, match="camera 'a'"):
        World(blind, ARM, render=False)
    with World(SIM, ARM, render=False) as w:
        with pytest.raises(ConfigError, match="'wrist'"):
            w.camera('rist')
        with pytest.raises(ConfigError, match='render=False'):
            w.render('wrist')


@draws
@pytest.mark.parametrize('view', ['third_person', 'wrist'])
def test_pictures_fit_the_camera_model(world, view):
    """Balls appear where ``camera()`` projects them: the middle of their pixels within 1.5 px."""
    colors = ('red', 'green', 'blue')
    for dq in (0.0, 0.15):
        things = tuple(
            make_object('ball', c, 'small', xy=(0.45 + 0.05 * k, 0.12 * (k - 1))) for k, c in enumerate(colors)
        )
        world.reset(SceneSpec(things, replace(Look(), camera_shift=(0.02, -0.03, 0.01))))
        world.set_joint_target(HOME + [0.0, dq, 0.0, 0.0, 0.0, 0.0, dq])
        world.advance(1.0)
        image, camera = world.render(view).astype(float), world.camera(view)
        assert image.shape == (camera.height, camera.width, 3)
        assert np.allclose(camera.T_base_optical[:3, :3] @ camera.T_base_optical[:3, :3].T, np.eye(3), atol=1e-9)
        for channel, name in enumerate(colors):
            center = world.scene_state(0).objects[f'{name}_ball'].pose[:3, 3]
            (uv,), (depth,) = camera.project(center)
            others = [k for k in range(3) if k != channel]
            mask = image[:, :, channel] > 1.8 * image[:, :, others].max(axis=2) + 20
            rows, columns = np.nonzero(mask)
            assert depth > 0 and len(rows) > 30
            assert [columns.mean(), rows.mean()] == pytest.approx(uv, abs=1.5)


@draws
def test_tool_is_in_the_lower_middle_of_the_wrist_picture(world):
    world.reset(SceneSpec())
    (uv,), _ = world.camera('wrist').project(world.tcp_pose()[:3, 3])
    assert 0.35 < uv[0] / 640 < 0.65 and 0.55 < uv[1] / 480 < 0.85


@draws
def test_pictures_are_neither_dark_nor_washed_out(world):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        things = [make_object('cube', c, rng=rng, color_jitter=0.06) for c in list(COLORS)[:5]]
        world.reset(SceneSpec(arrange(rng, things), sample_look(rng, Randomization(light=1.0, table=1.0, camera=0.05))))
        for view in ('third_person', 'wrist'):
            image = world.render(view)
            assert 35 < image.mean() < 205 and image.std() > 12
            assert np.mean(image.min(axis=2) > 250) < 0.05


@draws
def test_seed_decides_the_picture(world):
    def picture(seed):
        rng = np.random.default_rng(seed)
        world.reset(SceneSpec((make_object('cube', 'red'),), sample_look(rng, Randomization())))
        return world.render('third_person')

    assert np.array_equal(picture(1), picture(1))
    assert np.abs(picture(1).astype(int) - picture(2)).mean() > 3


@draws
def test_another_thread_draws_while_physics_goes_on(world):
    world.reset(SceneSpec((make_object('cube', 'red'),)))
    old = world.snapshot()
    pictures, errors, done = [], [], threading.Event()

    def draw():
        try:
            rig = CameraRig(SIM.cameras)
            while not done.is_set():
                pictures.append(rig.render(world.snapshot(), 'wrist'))
            pictures.append(rig.render(old, 'wrist'))
            rig.close()
        except BaseException as err:
            errors.append(err)

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20.0
    steps = 0
    try:
        while len(pictures) < 12 and not errors and time.monotonic() < deadline:
            world.set_joint_target(HOME + 0.3 * np.sin(0.01 * steps))
            world.advance(0.01)
            steps += 1
            if steps == 100:
                world.reset(SceneSpec((make_object('cube', 'blue'),)))
    finally:
        done.set()
        thread.join(20.0)
    assert not errors and len(pictures) >= 12
    assert steps > 100  # drawing did not stop the physics
    assert np.abs(pictures[0].astype(int) - pictures[-2]).mean() > 1  # the arm moved
    assert np.abs(pictures[0].astype(int) - pictures[-1]).mean() < 1  # a snapshot keeps its instant and its scene


def test_no_opengl_is_a_setup_error_that_names_packages(monkeypatch):
    monkeypatch.setattr(gl, 'BACKEND', '')
    with World(SIM, ARM) as w, pytest.raises(SetupError, match='libosmesa6'):
        w.render('wrist')


@pytest.mark.parametrize('given, expected', [('osmesa', 'osmesa'), ('', gl.BACKEND)])
def test_backend_choice_respects_the_environment(given, expected):
    if given == 'osmesa' and not gl.osmesa_works():
        pytest.skip('libosmesa6 is not installed')
    env = {k: v for k, v in os.environ.items() if k not in ('MUJOCO_GL', 'PYOPENGL_PLATFORM')}
    env.update({'MUJOCO_GL': given} if given else {})
    code = 'from instructvla_ros.sim import gl; import os; print(gl.BACKEND, os.environ.get("MUJOCO_GL", ""))'
    out = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.split() == [expected, expected] if expected else out.stdout.split() == []
