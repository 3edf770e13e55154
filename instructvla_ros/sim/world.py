"""The simulated robot cell: arm, gripper, table and objects under physics, with cameras.

Base frame: robot base at the origin standing on the table, table top z = 0, x forward, y left.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..datatypes import Image, RobotState, SceneObject, SceneState
from ..errors import ConfigError, InstructVLAError, KinematicsError
from ..geometry import Array
from ..resources import robot_description
from ..settings import Embodiment, Sim
from .camera import FLIP, CameraModel, description_arguments, find_camera, intrinsics
from .gl import mujoco
from .model_arm import build_arm, velocity_gain
from .model_scene import build_scene
from .render import CameraRig, Snapshot
from .scene import ObjectSpec, SceneSpec

SETTLE_TIME = 0.2
LIMIT_TOLERANCE = 1e-4
"""Rounding of interpolated targets, far below what a joint can be positioned to [rad]."""
_DIVERGED = (
    mujoco.mjtWarning.mjWARN_BADQPOS.value,
    mujoco.mjtWarning.mjWARN_BADQVEL.value,
    mujoco.mjtWarning.mjWARN_BADQACC.value,
)
BATCH = 5
"""Physics steps between two moments at which another thread may take a snapshot."""


class World:
    """MuJoCo world of one embodiment.

    ``advance``, ``reset`` and the targets belong to one thread; ``snapshot``, ``robot_state``, ``scene_state``,
    ``camera`` and ``render`` may be called from others meanwhile.

    Args:
        sim: cameras, physics step. embodiment: names, limits, home, gripper.
        render: False makes :meth:`render` unavailable and needs no OpenGL.

    Raises:
        SetupError: the robot description does not fit the embodiment.
    """

    def __init__(self, sim: Sim, embodiment: Embodiment, render: bool = True):
        self.sim, self.embodiment = sim, embodiment
        self._render = render
        self._lower = np.asarray(embodiment.limits.lower)
        self._upper = np.asarray(embodiment.limits.upper)
        self._urdf = robot_description(embodiment.name, 'builtin', description_arguments(sim, embodiment))
        self._lock = threading.RLock()
        self._rigs = threading.local()
        self._time_offset = 0.0
        self._carry = 0.0
        self._model: Any = None
        self._data: Any = None
        self.scene = SceneSpec()
        self.reset(self.scene)

    # -- life ---------------------------------------------------------------------------------------------------

    def reset(self, scene: SceneSpec) -> None:
        """Build the model of a scene: arm at home, gripper open, objects settled. ``time`` goes on.

        Raises:
            ConfigError, SetupError: a camera or the robot description does not fit.
        """
        spec = build_arm(self._urdf, self.embodiment, self.sim.timestep)
        build_scene(spec, scene, self.sim, self.embodiment)
        model = spec.compile()
        data = mujoco.MjData(model)
        with self._lock:
            if self._data is not None:
                self._time_offset = self.time
            self._model, self._data, self.scene, self._carry = model, data, scene, 0.0
            self._index(model)
            data.qpos[self._arm_q] = self.embodiment.home
            data.qpos[self._finger_q] = self.embodiment.gripper.max_width / 2
            for thing in scene.objects:
                if thing.category == 'drawer':
                    data.qpos[model.joint(f'{thing.name}/slide').qposadr[0]] = thing.opening
            self._q, self._dq = np.asarray(self.embodiment.home, dtype=np.float64), np.zeros(len(self._arm_q))
            self._width_goal = self._width_now = self.embodiment.gripper.max_width
            self._write_targets()
            mujoco.mj_step(model, data, nstep=max(1, round(SETTLE_TIME / self.sim.timestep)))
            self._check()
            data.time = 0.0
            mujoco.mj_forward(model, data)

    def close(self) -> None:
        """Free the OpenGL context of the calling thread."""
        rig = getattr(self._rigs, 'rig', None)
        if rig is not None:
            rig.close()
            self._rigs.rig = None

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def time(self) -> float:
        """Simulated seconds since construction; resets do not set it back."""
        return self._time_offset + float(self._data.time)

    # -- commands -----------------------------------------------------------------------------------------------

    def set_joint_target(self, q: ArrayLike, dq: ArrayLike | None = None) -> None:
        """Where the arm's joint servos go: q (n,) [rad] and, for a moving target, its velocity dq (n,) [rad/s].

        Raises:
            ValueError: wrong number of values, or not finite. KinematicsError: beyond a joint limit.
            The last target stays in both cases.
        """
        n = len(self._arm_q)
        q_new = np.array(q, dtype=np.float64)
        dq_new = np.zeros(n) if dq is None else np.array(dq, dtype=np.float64)
        for label, values in (('position', q_new), ('velocity', dq_new)):
            if values.shape != (n,):
                raise ValueError(f'joint {label} target: expected {n} values, got shape {values.shape}')
            if not np.all(np.isfinite(values)):
                bad = self.embodiment.arm_joints[int(np.flatnonzero(~np.isfinite(values))[0])]
                raise ValueError(f'joint {label} target of {bad} is not a finite number; the last target stays')
        out = np.flatnonzero((q_new < self._lower - LIMIT_TOLERANCE) | (q_new > self._upper + LIMIT_TOLERANCE))
        if out.size:
            k = int(out[0])
            raise KinematicsError(
                f'{self.embodiment.arm_joints[k]}: target {q_new[k]:.4f} rad is outside '
                f'{self._lower[k]:.4f} .. {self._upper[k]:.4f} rad; the last target stays'
            )
        with self._lock:
            self._q, self._dq = q_new, dq_new

    def set_gripper_target(self, width_m: float) -> None:
        """Where the fingers go: distance between them [m]; values beyond the stroke are cut to it.

        Raises:
            ValueError: not a finite number; the last target stays.
        """
        if not math.isfinite(width_m):
            raise ValueError(f'gripper width {width_m} m is not a finite number; the last target stays')
        with self._lock:
            self._width_goal = min(max(float(width_m), 0.0), self.embodiment.gripper.max_width)

    def advance(self, seconds: float) -> None:
        """Go on by whole physics steps; what is left of a step is added to the next call.

        Raises:
            ValueError: negative or not finite. InstructVLAError: the physics diverged; reset the world.
        """
        if not (math.isfinite(seconds) and seconds >= 0.0):
            raise ValueError(f'advance: {seconds} s; give a finite time >= 0')
        dt = self.sim.timestep
        total = self._carry + seconds
        # 1e-9: ten times 0.01 s are fifty steps of 0.002 s, whatever binary fractions make of it.
        left = int(total / dt + 1e-9)
        self._carry = max(0.0, total - left * dt)
        while left > 0:
            n = min(BATCH, left)
            with self._lock:
                self._ramp_gripper(n * dt)
                self._write_targets()
                mujoco.mj_step(self._model, self._data, nstep=n)
                self._check()
            left -= n

    def _ramp_gripper(self, dt: float) -> None:
        # Both fingers move, so the width changes at twice the finger speed.
        reach = 2.0 * self.embodiment.gripper.speed * dt
        self._width_now += min(max(self._width_goal - self._width_now, -reach), reach)

    def _write_targets(self) -> None:
        self._data.ctrl[self._arm_u] = self._q + velocity_gain() * self._dq
        self._data.ctrl[self._gripper_u] = 0.5 * self._width_now

    def _check(self) -> None:
        warned = any(self._data.warning[kind].number for kind in _DIVERGED)
        if warned or not np.all(np.isfinite(self._data.qpos)):
            raise InstructVLAError('the physics of the simulator diverged; reset the world')

    # -- state --------------------------------------------------------------------------------------------------

    def robot_state(self, stamp_ns: int) -> RobotState:
        """Measured joints and gripper openness."""
        with self._lock:
            data = self._data
            width = 2.0 * float(np.mean(data.qpos[self._finger_q]))
            return RobotState(
                stamp_ns=stamp_ns,
                q=data.qpos[self._arm_q].copy(),
                dq=data.qvel[self._arm_v].copy(),
                gripper=min(max(width / self.embodiment.gripper.max_width, 0.0), 1.0),
            )

    def finger_state(self) -> tuple[Array, Array]:
        """Positions [m] and velocities [m/s] of the finger joints, in the order of ``embodiment.gripper.joints``."""
        with self._lock:
            return self._data.qpos[self._finger_q].copy(), self._data.qvel[self._finger_v].copy()

    def tcp_pose(self) -> Array:
        """Measured tool centre point (4, 4) in the base frame [m]."""
        with self._lock:
            return self._body_pose(self._tcp)

    def scene_state(self, stamp_ns: int) -> SceneState:
        """Ground truth; the task fields keep their defaults."""
        with self._lock:
            robot = self.robot_state(stamp_ns)
            objects = {thing.name: self._object(thing) for thing in self.scene.objects}
            return SceneState(
                stamp_ns=stamp_ns,
                objects=objects,
                tcp_pose=self._body_pose(self._tcp),
                gripper=robot.gripper,
                held=self._held(),
                seed=self.scene.seed,
            )

    def _object(self, thing: ObjectSpec) -> SceneObject:
        opening = 0.0
        if thing.category == 'drawer':
            opening = float(self._data.qpos[self._model.joint(f'{thing.name}/slide').qposadr[0]])
        return SceneObject(
            name=thing.name,
            category=thing.category,
            color=thing.color,
            size=thing.size,
            pose=self._body_pose(self._model.body(thing.name).id),
            extent=np.asarray(thing.extent, dtype=np.float64),
            opening=opening,
        )

    def _body_pose(self, body: int) -> Array:
        out = np.eye(4)
        out[:3, :3] = self._data.xmat[body].reshape(3, 3)
        out[:3, 3] = self._data.xpos[body]
        return out

    def _held(self) -> str:
        pairs = self._data.contact.geom
        if len(pairs) == 0:
            return ''
        owner, finger = self._owner[pairs], self._finger[pairs]
        touching: list[set[int]] = []
        for k in range(len(self._finger_q)):
            rows = finger == k
            touching.append(set(owner[:, ::-1][rows].tolist()) - {-1})
        both = set.intersection(*touching)
        return self.scene.objects[min(both)].name if both else ''

    def _index(self, model: Any) -> None:
        def address(names: tuple[str, ...], what: str) -> Any:
            return np.array([int(getattr(model.joint(n), what)[0]) for n in names])

        arm, fingers = self.embodiment.arm_joints, self.embodiment.gripper.joints
        self._arm_q, self._arm_v = address(arm, 'qposadr'), address(arm, 'dofadr')
        self._finger_q, self._finger_v = address(fingers, 'qposadr'), address(fingers, 'dofadr')
        self._arm_u = np.array([model.actuator(n).id for n in arm])
        self._gripper_u = model.actuator('gripper').id
        self._tcp = model.body(self.embodiment.tcp_frame).id
        body_owner = np.full(model.nbody, -1)
        for k, thing in enumerate(self.scene.objects):
            body_owner[model.body(thing.name).id] = k
            if thing.category == 'drawer':
                body_owner[model.body(f'{thing.name}/tray').id] = k
        body_finger = np.full(model.nbody, -1)
        for k, name in enumerate(fingers):
            body_finger[int(model.joint(name).bodyid[0])] = k
        self._owner, self._finger = body_owner[model.geom_bodyid], body_finger[model.geom_bodyid]

    # -- cameras ------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """What a :class:`~instructvla_ros.sim.render.CameraRig` needs to draw this instant, in any thread."""
        with self._lock:
            return Snapshot(self._model, self._data.qpos.copy(), self.time)

    def render(self, view: str) -> Image:
        """Picture of one camera now, uint8 RGB (H, W, 3). Each calling thread gets its own OpenGL context.

        Raises:
            ConfigError: unknown view, or the world was made without rendering. SetupError: no OpenGL here.
        """
        if not self._render:
            raise ConfigError('this world was made with render=False')
        rig = getattr(self._rigs, 'rig', None)
        if rig is None:
            rig = self._rigs.rig = CameraRig(self.sim.cameras, self.sim.shadows)
        return rig.render(self.snapshot(), view)

    def camera(self, view: str) -> CameraModel:
        """Intrinsics and present pose of one camera.

        Raises:
            ConfigError: unknown view.
        """
        camera = find_camera(self.sim.cameras, view)
        with self._lock:
            k = self._model.camera(view).id
            out = np.eye(4)
            out[:3, :3] = self._data.cam_xmat[k].reshape(3, 3) @ FLIP
            out[:3, 3] = self._data.cam_xpos[k]
        return CameraModel(view, camera.width, camera.height, intrinsics(camera), out)
