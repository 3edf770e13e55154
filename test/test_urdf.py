"""The robot description: two libraries, Franka's published numbers and a real recording agree on it."""

from __future__ import annotations

import math
from pathlib import Path

import mujoco
import numpy as np
import pinocchio as pin
import pytest
from scipy.spatial.transform import Rotation

from instructvla_ros import config
from instructvla_ros.errors import SetupError
from instructvla_ros.geometry import pose_from_xyz_rpy
from instructvla_ros.resources import config_file, robot_description
from instructvla_ros.settings import Embodiment, Sim
from instructvla_ros.sim.camera import description_arguments, optical_pose

ROBOTS = {'fr3': 'franka.yaml', 'panda': 'panda.yaml'}
RECORDING = Path(__file__).resolve().parents[2] / 'shared' / 'realdata' / 'fr3_ros2_teleop_1khz'


def embodiment(robot):
    return config.load(Embodiment, config_file(ROBOTS[robot]))


@pytest.fixture(scope='module', params=list(ROBOTS))
def models(request):
    robot = request.param
    urdf = robot_description(robot)
    return robot, urdf, pin.buildModelFromXML(urdf), mujoco.MjModel.from_xml_string(urdf)


def random_q(model, rng):
    return rng.uniform(model.lowerPositionLimit, model.upperPositionLimit)


def craig_dh(q):
    """Flange pose from Franka's published Craig DH table (a, d, alpha), written out by hand."""
    table = [
        (0.0, 0.333, 0.0), (0.0, 0.0, -math.pi / 2), (0.0, 0.316, math.pi / 2), (0.0825, 0.0, math.pi / 2),
        (-0.0825, 0.384, -math.pi / 2), (0.0, 0.0, math.pi / 2), (0.088, 0.0, math.pi / 2), (0.0, 0.107, 0.0),
    ]  # fmt: skip
    out = np.eye(4)
    for (a, d, alpha), theta in zip(table, [*q, 0.0], strict=True):
        ca, sa, ct, st = math.cos(alpha), math.sin(alpha), math.cos(theta), math.sin(theta)
        out = out @ np.array(
            [[ct, -st, 0, a], [st * ca, ct * ca, -sa, -d * sa], [st * sa, ct * sa, ca, d * ca], [0, 0, 0, 1]]
        )
    return out


def test_pinocchio_and_mujoco_agree_on_every_frame(models):
    """200 random configurations: largest difference below 1e-6 (measured 1e-15 m and 2e-15 in the rotation)."""
    robot, _, model, mj = models
    data, sim, rng = model.createData(), mujoco.MjData(mj), np.random.default_rng(0)
    names = [mj.body(k).name for k in range(1, mj.nbody)]
    frames = [model.getFrameId(n) for n in names]
    worst = 0.0
    for _ in range(200):
        q = random_q(model, rng)
        for k, name in enumerate(model.names[1:]):
            sim.qpos[mj.joint(name).qposadr[0]] = q[model.joints[k + 1].idx_q]
        mujoco.mj_kinematics(mj, sim)
        pin.framesForwardKinematics(model, data, q)
        for name, frame in zip(names, frames, strict=True):
            ours = data.oMf[frame]
            body = sim.body(name)
            worst = max(worst, np.abs(ours.translation - body.xpos).max())
            worst = max(worst, np.abs(ours.rotation - body.xmat.reshape(3, 3)).max())
    assert f'{robot}_hand_tcp' in names
    assert worst < 1e-6


def test_dynamics_agree(models):
    """Mass matrix of the arm: the inertials mean the same to both libraries."""
    _, _, model, mj = models
    sim, rng = mujoco.MjData(mj), np.random.default_rng(1)
    for _ in range(10):
        q = random_q(model, rng)
        sim.qpos[:] = [q[model.joints[model.getJointId(mj.joint(k).name)].idx_q] for k in range(mj.njnt)]
        mujoco.mj_forward(mj, sim)
        full = np.zeros((mj.nv, mj.nv))
        mujoco.mj_fullM(mj, sim, full)
        mass = pin.crba(model, model.createData(), q)
        mass = np.triu(mass) + np.triu(mass, 1).T
        assert np.allclose(full[:7, :7], mass[:7, :7], atol=1e-9)


def test_flange_hand_and_tcp_are_frankas(models):
    robot, _, model, _ = models
    data, rng = model.createData(), np.random.default_rng(2)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler('z', -45, degrees=True).as_matrix()
    tcp = turn.copy()
    tcp[2, 3] = 0.1034
    for _ in range(20):
        q = random_q(model, rng)
        pin.framesForwardKinematics(model, data, q)
        flange = craig_dh(q[:7])
        for frame, expected in (
            (f'{robot}_link8', flange),
            (f'{robot}_hand', flange @ turn),
            (f'{robot}_hand_tcp', flange @ tcp),
        ):
            assert np.allclose(data.oMf[model.getFrameId(frame)].homogeneous, expected, atol=1e-9), frame


def test_limits_contain_those_of_the_embodiment(models):
    """The configuration may be narrower than the arm, never wider."""
    robot, _, model, _ = models
    arm = embodiment(robot)
    for k, name in enumerate(arm.arm_joints):
        joint = model.joints[model.getJointId(name)]
        assert model.lowerPositionLimit[joint.idx_q] <= arm.limits.lower[k]
        assert model.upperPositionLimit[joint.idx_q] >= arm.limits.upper[k]
        assert model.velocityLimit[joint.idx_v] >= arm.limits.velocity[k]
        assert model.effortLimit[joint.idx_v] == (87 if k < 4 else 12)
    for name in arm.gripper.joints:
        joint = model.joints[model.getJointId(name)]
        assert 2 * model.upperPositionLimit[joint.idx_q] == pytest.approx(arm.gripper.max_width)


def test_masses_are_frankas():
    def mass(robot):
        model = pin.buildModelFromXML(robot_description(robot))
        return [model.inertias[model.getJointId(f'{robot}_joint{k}')].mass for k in range(1, 7)]

    assert mass('fr3') == pytest.approx([2.92747, 2.93554, 2.24490, 2.61560, 2.32712, 1.81704])
    assert mass('panda') == pytest.approx([2.7907, 2.542, 2.2513, 2.2037, 2.2855, 1.353])


def test_pinocchio_reads_every_collision_shape(models):
    """Pinocchio drops capsules silently unless the URDF says version 1.2."""
    _, urdf, model, mj = models
    geometry = pin.buildGeomFromUrdfString(model, urdf, pin.GeometryType.COLLISION)
    assert geometry.ngeoms == int(np.sum(mj.geom_contype != 0)) > 20


def test_fingers_mimic(models):
    robot, urdf, _, mj = models
    assert pin.buildModelFromXML(urdf, mimic=True).nq == 8
    assert mj.neq == 1 and f'{robot}_finger_joint2' in {
        mj.joint(int(mj.eq_obj1id[0])).name,
        mj.joint(int(mj.eq_obj2id[0])).name,
    }


def test_camera_frames_default_to_the_simulator(models):
    """The xacro defaults are those of config/sim.yaml: optical frames are where the pictures come from."""
    robot, _, model, _ = models
    sim, arm = config.load(Sim, config_file('sim.yaml')), embodiment(robot)
    data = model.createData()
    pin.framesForwardKinematics(model, data, pin.neutral(model))
    assert len(description_arguments(sim, arm)) == 4
    for camera in sim.cameras:
        parent = data.oMf[
            model.getFrameId('base' if camera.parent == 'world' else f'{robot}_{camera.parent}')
        ].homogeneous
        frame = data.oMf[model.getFrameId(arm.views[camera.view].frame_id)].homogeneous
        assert np.allclose(frame, parent @ optical_pose(camera), atol=1e-5), camera.view


def test_camera_arguments_move_the_frame():
    values = (0.5, -0.4, 0.9, 2.5, 0.1, -0.3)
    text = robot_description('fr3', 'builtin', (('camera_xyz', '0.5 -0.4 0.9'), ('camera_rpy', '2.5 0.1 -0.3')))
    model = pin.buildModelFromXML(text)
    data = model.createData()
    pin.framesForwardKinematics(model, data, pin.neutral(model))
    frame = data.oMf[model.getFrameId('camera_color_optical_frame')].homogeneous
    assert np.allclose(frame, pose_from_xyz_rpy(values), atol=1e-9)


def test_unknown_robot_is_refused_by_name():
    with pytest.raises(SetupError, match='use fr3 or panda'):
        robot_description('ur5')


@pytest.mark.skipif(not RECORDING.is_dir(), reason=f'no recording in {RECORDING}')
def test_forward_kinematics_against_a_real_fr3():
    """Two 1 kHz logs of a real FR3 with joint positions and the end-effector pose that the robot reported.

    The recorded frame is ``hand_tcp``: a free constant transform fitted behind link8 comes out at
    x 0.14 / 0.12, y -0.15 / -0.16, z 103.449 / 103.449 mm and -45.000 deg about z (0, 0, 103.4 mm, -45 deg expected),
    while link8 itself is 103.4 mm and 45 deg away. Our forward kinematics is off by 0.243 / 0.247 mm on average,
    0.77 / 0.50 mm at most, and 0.005 deg on average, 0.05 deg at most.
    Of this, 0.21 mm is a constant offset along the base x axis (0.23 mm at rest), and the rest grows with speed
    like a pose sampled 0.31 / 0.38 ms after the joints (a third of the 1 kHz period; up to 1.35 m/s here);
    with both removed 0.08 / 0.09 mm rms remain.
    """
    model = pin.buildModelFromXML(robot_description('fr3'))
    data = model.createData()
    files = sorted(RECORDING.glob('*.npy'))
    assert files
    for file in files:
        rows = np.load(file, allow_pickle=False)[::10]
        tcp, flange = [], []
        for q in rows[:, 1:8]:
            pin.framesForwardKinematics(model, data, np.concatenate([q, [0.0, 0.0]]))
            tcp.append(data.oMf[model.getFrameId('fr3_hand_tcp')].homogeneous.copy())
            flange.append(data.oMf[model.getFrameId('fr3_link8')].homogeneous.copy())
        tcp, flange = np.array(tcp), np.array(flange)
        measured = Rotation.from_quat(rows[:, 32:36])
        error = np.linalg.norm(tcp[:, :3, 3] - rows[:, 29:32], axis=1)
        angle = (Rotation.from_matrix(tcp[:, :3, :3]).inv() * measured).magnitude()
        assert error.mean() < 0.3e-3 and error.max() < 1.0e-3
        assert np.degrees(angle.mean()) < 0.01 and np.degrees(angle.max()) < 0.1
        offset = np.einsum('nji,nj->ni', flange[:, :3, :3], rows[:, 29:32] - flange[:, :3, 3]).mean(axis=0)
        assert offset == pytest.approx([0.0, 0.0, 0.1034], abs=0.2e-3)
        turn = (Rotation.from_matrix(flange[:, :3, :3]).inv() * measured).mean().as_euler('xyz', degrees=True)
        assert turn == pytest.approx([0.0, 0.0, -45.0], abs=0.01)
