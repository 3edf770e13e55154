"""Forward and differential inverse kinematics of the arm: Pinocchio for the geometry, Pink and DAQP for the QP.

One step solves ``min |W (J dq - e)|^2 + posture + damping`` under box bounds on the joint displacement, where e is
the SE(3) logarithm from the tcp to the target. The bounds hold velocity, position, and the speed from which
a joint can still brake before its position limit. Near a singularity the damping grows as the smallest
singular value falls (Nakamura and Hanafusa 1986). A step that moves joints without bringing the tcp closer is not
taken, so the arm comes to rest at an unreachable target instead of wandering.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt

import numpy as np
import pinocchio as pin
from numpy.typing import ArrayLike, NDArray
from pink import Configuration, build_ik
from pink.limits import Limit
from pink.tasks import FrameTask, PostureTask
from qpsolvers import solve_problem

from ..errors import KinematicsError, SetupError, suggest
from ..geometry import Array
from ..resources import robot_description
from ..settings import Embodiment

POSITION_TOLERANCE = 1e-4  # m
ROTATION_TOLERANCE = 1e-3  # rad
ROTATION_WEIGHT = 0.3  # m per rad: how much orientation counts against position
POSTURE_WEIGHT = 3e-4
POSTURE_TIME = 2.0  # s: time constant with which the free elbow drifts towards home
SINGULAR_VALUE = 0.04  # below this smallest singular value the damping sets in
SINGULAR_DAMPING = 0.02
BASE_DAMPING = 1e-9
FAR_DAMPING = 1e-3  # m^2
AT_LIMIT = 1e-3  # rad
BRAKING_SHARE = 0.5  # share of the acceleration limit counted on for braking before a position limit
PROGRESS = 0.01  # m per rad: a step has to bring the tcp at least this much closer
SOLVE_PERIOD = 0.1  # s: displacement per iteration of solve() is what the velocity limits allow in this time
SOLVE_ITERATIONS = 300
_EYE = np.eye(3)


@dataclass(frozen=True)
class IkStep:
    """Result of one differential step.

    Attributes:
        q: joint positions after the step (n,) [rad]. dq: joint velocities of the step (n,) [rad/s].
        position_error, rotation_error: what is left to the target after the step [m], [rad].
        limited_by: what keeps the tcp from the target, such as ``'fr3_joint4 position'``, ``'fr3_joint2 velocity'``,
            ``'singularity'`` or ``'reach'``; empty when the step reaches it.
        stalled: no admissible step brings the tcp closer; q stays where it is.
    """

    q: Array
    dq: Array
    position_error: float
    rotation_error: float
    limited_by: str = ''
    stalled: bool = False


class _Box(Limit):  # type: ignore[misc]
    """Bounds on the displacement of every joint in one step: velocity, position and braking distance."""

    def __init__(self, lower: Array, upper: Array, velocity: Array, acceleration: Array) -> None:
        self.lower, self.upper, self.speed = lower, upper, velocity
        self.braking = BRAKING_SHARE * np.concatenate([acceleration, acceleration])
        self.matrix = np.vstack([np.eye(len(lower)), -np.eye(len(lower))])
        self.bound = np.zeros(2 * len(lower))  # of the last problem
        self.free = np.zeros(2 * len(lower), dtype=bool)  # True where velocity is what binds

    def compute_qp_inequalities(self, configuration: Configuration, dt: float) -> tuple[Array, Array]:
        """Return G, h of G dq <= h (Pink's interface)."""
        q = configuration.q
        room = np.concatenate([self.upper - q, q - self.lower])
        np.maximum(room, 0.0, out=room)
        # Discrete form of sqrt(2 a x): after this step the joint still has to stop within what is left.
        approach = self.braking * dt * (np.sqrt(dt * dt + 2.0 * room / self.braking) - dt)
        speed = np.concatenate([self.speed, self.speed]) * dt
        np.minimum(approach, room, out=room)
        self.free = speed <= room
        self.bound = np.minimum(room, speed)
        return self.matrix, self.bound


def _least_squares(jacobian: Array, error: Array) -> tuple[Array, float]:
    """Damped joint displacement (n,) for a tcp error (6,), and the damping its Jacobian calls for."""
    square = jacobian @ jacobian.T
    smallest = sqrt(max(np.linalg.eigvalsh(square)[0], 0.0))
    damping = BASE_DAMPING
    if smallest < SINGULAR_VALUE:
        damping += (SINGULAR_DAMPING * (1.0 - smallest / SINGULAR_VALUE)) ** 2
    square.flat[::7] += damping
    return jacobian.T @ np.linalg.solve(square, error), damping


def _length(vector: Array) -> float:
    return sqrt(vector @ vector)


def _determinant(m: Array) -> float:
    (a, b, c), (d, e, f), (g, h, i) = m.tolist()
    return float(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))


class Kinematics:
    """Kinematics of the arm joints of one embodiment; fingers are locked. Not thread-safe.

    Args:
        embodiment: names and limits.
        urdf: URDF text; ``resources.robot_description`` of the embodiment when omitted.
        lower, upper, velocity: tighter bounds than the embodiment's [rad], [rad/s] (n,).

    Raises:
        SetupError: the description lacks a joint or the tcp frame of the embodiment.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        urdf: str | None = None,
        *,
        lower: ArrayLike | None = None,
        upper: ArrayLike | None = None,
        velocity: ArrayLike | None = None,
    ) -> None:
        self.embodiment = embodiment
        self.urdf = urdf if urdf is not None else robot_description(embodiment.name, embodiment.description)
        full = pin.buildModelFromXML(self.urdf)
        names = list(full.names)[1:]
        for joint in embodiment.arm_joints:
            if joint not in names:
                raise SetupError(f'the robot description has no joint {joint!r}.{suggest(joint, names)}')
        if not full.existFrame(embodiment.tcp_frame):
            frames = [f.name for f in full.frames]
            raise SetupError(
                f'the robot description has no frame {embodiment.tcp_frame!r}.{suggest(embodiment.tcp_frame, frames)}'
            )
        locked = [full.getJointId(n) for n in names if n not in embodiment.arm_joints]
        self.model = pin.buildReducedModel(full, locked, pin.neutral(full))
        if tuple(list(self.model.names)[1:]) != tuple(embodiment.arm_joints):
            raise SetupError(
                f'arm_joints {list(embodiment.arm_joints)} are not in kinematic order; '
                f'the robot description has {list(self.model.names)[1:]}'
            )
        self.n = self.model.nq
        limits = embodiment.limits
        self.lower = np.asarray(limits.lower if lower is None else lower, dtype=np.float64)
        self.upper = np.asarray(limits.upper if upper is None else upper, dtype=np.float64)
        self.velocity = np.asarray(limits.velocity if velocity is None else velocity, dtype=np.float64)
        # Pink checks the model's own limits; ours are the ones that count.
        self.model.lowerPositionLimit = np.full(self.n, -1e6)
        self.model.upperPositionLimit = np.full(self.n, 1e6)
        self.data = self.model.createData()
        self.base = self._frame(embodiment.base_frame, full)
        self.tcp = self.model.getFrameId(embodiment.tcp_frame)
        self._identity_base = bool(np.allclose(self.base.homogeneous, np.eye(4), atol=1e-12))
        self._box = _Box(self.lower, self.upper, self.velocity, np.asarray(limits.acceleration, dtype=np.float64))
        self._frame_task = FrameTask(
            embodiment.tcp_frame, position_cost=1.0, orientation_cost=ROTATION_WEIGHT, lm_damping=1e-3
        )
        self._weights = np.array([1.0] * 3 + [ROTATION_WEIGHT] * 3)
        self._configuration = Configuration(self.model, self.data, self._inside(np.zeros(self.n)), copy_data=False)
        self._posture_task = PostureTask(cost=POSTURE_WEIGHT)
        self._posture_task.set_target(np.asarray(embodiment.home, dtype=np.float64))

    def _frame(self, name: str, full: pin.Model) -> pin.SE3:
        if not full.existFrame(name):
            raise SetupError(
                f'the robot description has no frame {name!r}.{suggest(name, [f.name for f in full.frames])}'
            )
        frame = full.frames[full.getFrameId(name)]
        if frame.parentJoint != 0:
            raise SetupError(f'base_frame {name!r} moves with a joint; it has to be fixed to the root')
        return frame.placement

    def limited(self, lower: ArrayLike, upper: ArrayLike, velocity: ArrayLike) -> Kinematics:
        """Kinematics of the same arm with these bounds [rad], [rad/s] (n,)."""
        return Kinematics(self.embodiment, self.urdf, lower=lower, upper=upper, velocity=velocity)

    def forward(self, q: ArrayLike) -> Array:
        """Pose T_base_tcp (4, 4) [m] at the joint positions (n,) [rad]."""
        pin.forwardKinematics(self.model, self.data, self._joints(q))
        pose = pin.updateFramePlacement(self.model, self.data, self.tcp)
        if not self._identity_base:
            pose = self.base.actInv(pose)
        return np.asarray(pose.homogeneous)

    def position(self, q: Array) -> Array:
        """Position (3,) [m] of the tcp in the base frame at joint positions (n,) [rad], which are not checked."""
        pin.forwardKinematics(self.model, self.data, q)
        pose = pin.updateFramePlacement(self.model, self.data, self.tcp)
        return np.array(pose.translation if self._identity_base else self.base.actInv(pose).translation)

    def step(self, q: ArrayLike, target: ArrayLike, dt: float, speed: float = 1.0) -> IkStep:
        """One step of differential inverse kinematics towards T_base_tcp ``target`` (4, 4) in ``dt`` [s].

        A target too far for the velocity limits is approached on the straight way: the step is shortened, not bent.
        ``speed`` is the share of the velocity limits that may be used, 0..1.

        A start outside the position limits is allowed: it is drawn back to them no faster than the velocity limits.

        Raises:
            KinematicsError: q, target or dt is not usable (wrong size, not finite, not a rotation).
        """
        start = self._joints(q)
        goal = self._pose(target)
        if not (isfinite(dt) and dt > 0.0):
            raise KinematicsError(f'dt must be a positive number of seconds, got {dt}')
        inside = self._inside(start)
        self._configuration.update(inside)
        self._box.speed = min(max(speed, 0.0), 1.0) * self.velocity
        reach = self._box.speed * dt
        error = pin.log6(self.data.oMf[self.tcp].actInv(goal)).vector
        before = _length(self._weights * error)
        damping, slow = self._damping_and_slow(inside, error, reach)
        # Joints that can do little for a far target keep calm (Sugihara 2011: damping by the squared error).
        damping = max(damping, min(before * before, FAR_DAMPING))
        self._frame_task.set_target(goal if slow is None else self._part_way(error, slow[1]))
        self._posture_task.gain = min(1.0, dt / POSTURE_TIME)
        tasks = (self._frame_task, self._posture_task)
        problem = build_ik(self._configuration, tasks, dt, damping=damping, limits=(self._box,))
        solution = solve_problem(problem, solver='daqp')
        delta = solution.x
        if not solution.found or delta is None or not np.isfinite(delta).all():
            delta = np.zeros(self.n)
        active = np.concatenate([delta, -delta]) >= self._box.bound - 1e-9
        small = ROTATION_WEIGHT * ROTATION_TOLERANCE
        stalled = True
        moved = inside
        for scale in (1.0, 0.5, 0.25):
            step = scale * delta
            moved = self._inside(inside + step)
            after = self._evaluate(moved, goal)
            if after <= small or before - after >= PROGRESS * float(np.abs(step).max()):
                stalled = False
                break
        if stalled:
            moved = inside
            self._evaluate(moved, goal)
        out = start + np.minimum(np.maximum(moved - start, -reach), reach)
        placement = self.data.oMf[self.tcp]
        position = _length(placement.translation - goal.translation)
        rotation = _length(pin.log3(placement.rotation.T @ goal.rotation))
        reached = position <= POSITION_TOLERANCE and rotation <= ROTATION_TOLERANCE
        limited_by = '' if reached else self._cause(active, damping, stalled, slow)
        return IkStep(out, (out - start) / dt, position, rotation, limited_by, stalled and not reached)

    def solve(self, target: ArrayLike, seed: ArrayLike) -> IkStep:
        """Joint positions that reach ``target`` (4, 4), by repeated steps from ``seed`` (n,) [rad].

        Raises:
            KinematicsError: not reached; the message names the joint or bound in the way and the remaining error.
        """
        q = self._joints(seed)
        result = IkStep(q, np.zeros(self.n), float('inf'), float('inf'))
        for _ in range(SOLVE_ITERATIONS):
            result = self.step(result.q, target, SOLVE_PERIOD)
            if not result.limited_by:
                return IkStep(result.q, np.zeros(self.n), result.position_error, result.rotation_error)
            if result.stalled:
                break
        raise KinematicsError(
            f'the pose at {np.round(self._pose(target).translation, 3).tolist()} m is not reachable: limited by '
            f'{result.limited_by}, {1000 * result.position_error:.1f} mm and {result.rotation_error:.3f} rad remain. '
            'Choose a pose nearer to the arm, or another seed'
        )

    def _joints(self, q: ArrayLike) -> Array:
        array = np.asarray(q, dtype=np.float64)
        if array.shape != (self.n,) or not np.isfinite(array).all():
            raise KinematicsError(f'joint positions must be {self.n} finite numbers [rad], got {array!r}')
        return array

    def _pose(self, target: ArrayLike) -> pin.SE3:
        matrix = np.asarray(target, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise KinematicsError(f'a target pose must be a finite (4, 4) matrix, got {matrix!r}')
        rotation = matrix[:3, :3]
        if np.abs(rotation.T @ rotation - _EYE).max() > 1e-4 or _determinant(rotation) < 0.0:
            raise KinematicsError(f'a target pose must hold a rotation matrix, got {rotation.tolist()}')
        goal = pin.SE3(rotation, matrix[:3, 3])
        return goal if self._identity_base else self.base * goal

    def _inside(self, q: Array) -> Array:
        return np.minimum(np.maximum(q, self.lower), self.upper)

    def _evaluate(self, q: Array, goal: pin.SE3) -> float:
        pin.forwardKinematics(self.model, self.data, q)
        here = pin.updateFramePlacement(self.model, self.data, self.tcp)
        return _length(self._weights * pin.log6(here.actInv(goal)).vector)

    def _damping_and_slow(self, q: Array, error: Array, reach: Array) -> tuple[float, tuple[int, float] | None]:
        """Damping of the QP; and the joint that is too slow for the whole way with the share of it that is possible."""
        jacobian = pin.getFrameJacobian(self.model, self.data, self.tcp, pin.ReferenceFrame.LOCAL)
        need, damping = _least_squares(jacobian, error)
        # A joint at its limit that is wanted beyond it is no help: what the others can do without it counts.
        blocked = ((need > 0.0) & (q >= self.upper - AT_LIMIT)) | ((need < 0.0) & (q <= self.lower + AT_LIMIT))
        if blocked.any():
            jacobian = np.where(blocked, 0.0, jacobian)
            need, damping = _least_squares(jacobian, error)
        ratio = reach / np.maximum(np.abs(need), 1e-12)
        k = int(np.argmin(ratio))
        return damping, None if ratio[k] >= 1.0 else (k, float(ratio[k]))

    def _part_way(self, error: Array, share: float) -> pin.SE3:
        """Pose ``share`` of the way from the tcp to the goal, along the screw between them."""
        return self.data.oMf[self.tcp] * pin.exp6(share * error)

    def _cause(self, active: NDArray[np.bool_], damping: float, stalled: bool, slow: tuple[int, float] | None) -> str:
        joints = self.embodiment.arm_joints
        position = [joints[k % self.n] for k in np.flatnonzero(active & ~self._box.free)]
        if position:
            return f'{position[0]} position'
        speed = [joints[k % self.n] for k in np.flatnonzero(active & self._box.free)]
        if not stalled and (speed or slow is not None):
            return f'{joints[slow[0]] if slow is not None else speed[0]} velocity'
        if slow is None and damping > BASE_DAMPING and not stalled:
            return 'singularity'
        return 'reach'
