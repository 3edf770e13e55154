"""Large motions in joint space: a straight line of our own, or a way that a planner found; followed by the controller.

The time law and its proofs (limits, tcp box, collision) stay in charge: a route is a reference like any other.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
from ruckig import ControlInterface, InputParameter, Ruckig, RuckigError, Trajectory

from ..datatypes import Verdict, VerdictAction
from ..errors import KinematicsError
from ..geometry import Array
from .bounds import Bounds
from .direct import Backend
from .time_law import BOX_TOLERANCE

CHECK_STEP = 0.03  # rad between two states of a line that are looked at
ARRIVED = 2e-3  # rad
AT_REST = 1e-3  # rad/s
SETTLE_TIME = 1.0  # s after the end of a route until the arm has to be there
STEPS = 400  # points of a line of our own
SHARE_SAMPLES = 200  # points of a route at which its speed is looked at
ROOM = 1.06  # of the fastest speed of a route, after a stall too; the time law follows 0.95 of its ceiling without lag


@dataclass(frozen=True)
class Route:
    """Joint positions over time, cubic between the points.

    Attributes:
        times: (k,) strictly increasing from 0 [s]. positions: (k, n) [rad]. velocities: (k, n) [rad/s].
    """

    times: Array
    positions: Array
    velocities: Array

    @classmethod
    def of_points(cls, times: Array, positions: Array, velocities: Array, joints: int) -> Route:
        """Route of points from elsewhere.

        Raises:
            KinematicsError: sizes do not fit, a number is not finite, or the times do not grow.
        """
        k = len(times)
        if k < 1 or positions.shape != (k, joints) or velocities.shape != (k, joints):
            raise KinematicsError(
                f'a route needs times (k,), positions and velocities (k, {joints}); '
                f'got {times.shape}, {positions.shape}, {velocities.shape}'
            )
        if not (np.isfinite(times).all() and np.isfinite(positions).all() and np.isfinite(velocities).all()):
            raise KinematicsError('a route holds numbers that are not finite')
        if (np.diff(times) <= 0.0).any() or times[0] < 0.0:
            raise KinematicsError('the times of a route have to grow')
        return cls(times - times[0], positions, velocities)

    @property
    def duration(self) -> float:
        """Time to the last point [s]."""
        return float(self.times[-1])

    def share(self, velocity: Array) -> float:
        """The largest share of ``velocity`` (n,) [rad/s] that the route uses; 0 when it stands still."""
        speeds = [np.abs(self.at(float(t))[1]) / velocity for t in np.linspace(0.0, self.duration, SHARE_SAMPLES)]
        return float(np.max(speeds))

    def at(self, time: float) -> tuple[Array, Array]:
        """Position (n,) [rad] and velocity (n,) [rad/s]; at rest in the last point from the end on."""
        if time >= self.times[-1]:
            return self.positions[-1], np.zeros(self.positions.shape[1])
        k = max(int(np.searchsorted(self.times, time, side='right')) - 1, 0)
        width = self.times[k + 1] - self.times[k]
        s = (max(time, 0.0) - self.times[k]) / width
        p0, p1 = self.positions[k], self.positions[k + 1]
        m0, m1 = width * self.velocities[k], width * self.velocities[k + 1]
        a, b = 2.0 * (p0 - p1) + m0 + m1, 3.0 * (p1 - p0) - 2.0 * m0 - m1
        return p0 + s * (m0 + s * (b + s * a)), (m0 + s * (2.0 * b + s * 3.0 * a)) / width


def straight_route(start: Array, goal: Array, bounds: Bounds, speed: float) -> Route:
    """Straight line in joint space from rest to rest, within a share of the bounds.

    Args:
        start, goal: (n,) [rad]. speed: share of the joint speeds, 0..1.

    Raises:
        KinematicsError: no such motion.
    """
    way = goal - start
    if float(np.abs(way).max()) < 1e-6:
        return Route(np.zeros(1), goal[None].copy(), np.zeros((1, len(goal))))
    share = np.maximum(np.abs(way), 1e-9)
    request = InputParameter(1)
    request.control_interface = ControlInterface.Position
    request.current_position, request.target_position = [0.0], [1.0]
    request.max_velocity = [float((speed * bounds.velocity / share).min())]
    request.max_acceleration = [float((speed * bounds.acceleration / share).min())]
    request.max_jerk = [float((speed * bounds.jerk / share).min())]
    trajectory = Trajectory(1)
    try:
        Ruckig(1).calculate(request, trajectory)
    except (RuckigError, ValueError) as err:
        raise KinematicsError(f'no straight motion from {start.tolist()} to {goal.tolist()}: {err}') from err
    times = np.linspace(0.0, trajectory.duration, STEPS)
    scalar = np.array([trajectory.at_time(float(t))[:2] for t in times]).reshape(STEPS, 2)
    return Route(times, start + scalar[:, :1] * way, scalar[:, 1:] * way)


def check_route(route: Route, bounds: Bounds, backend: Backend) -> str:
    """What is wrong with a route: beyond a joint limit, out of the tcp box, in collision; '' when nothing."""
    way = float(np.abs(np.diff(route.positions, axis=0)).sum(axis=0).max()) if len(route.times) > 1 else 0.0
    count = int(np.ceil(way / CHECK_STEP)) + 1
    outside = BOX_TOLERANCE
    first = route.positions[0]
    lower, upper = np.minimum(bounds.lower, first) - 1e-6, np.maximum(bounds.upper, first) + 1e-6
    for k, time in enumerate(np.linspace(0.0, route.duration, max(count, 2))):
        q, _ = route.at(float(time))
        beyond = np.maximum(lower - q, q - upper)
        if beyond.max() > 0.0:
            joint = bounds.joints[int(np.argmax(beyond))]
            return f'{joint} would be {beyond.max():.3f} rad beyond its limit, {time:.1f} s after the start'
        position = backend.position(q)
        excess = np.maximum(bounds.box_lower - position, position - bounds.box_upper)
        if k == 0:  # a start outside may only get better
            outside = max(outside, float(excess.max()) + 1e-4)
        if excess.max() > outside:
            axis = int(np.argmax(excess))
            return f'the tcp would leave the workspace at {"xyz"[axis]} = {position[axis]:.3f} m'
        hit = backend.collision(q)
        if hit:
            return f'{hit} would collide, {time:.1f} s after the start'
    return ''


@dataclass
class RouteRun:
    """A route on its way.

    Attributes:
        route: to follow. name: of the motion. ceiling: share of the joint speeds that may be used on it, 0..1.
        elapsed: how much of its time has been followed [s].
        done: set at the end. problem: why it ended early, '' when it arrived.
    """

    route: Route
    name: str
    ceiling: float
    elapsed: float = 0.0
    done: threading.Event = field(default_factory=threading.Event)
    problem: str = ''

    @classmethod
    def of(cls, route: Route, name: str, bounds: Bounds) -> RouteRun:
        """A run that is never much faster than the route itself."""
        return cls(route, name, float(np.clip(ROOM * route.share(bounds.velocity), 0.05, 1.0)))

    def end(self, problem: str) -> Verdict:
        """Finish; the verdict that says how."""
        self.problem = problem
        self.done.set()
        if problem:
            return Verdict('route', VerdictAction.HELD, self.name, text=f'{self.name}: {problem}; braking and holding')
        return Verdict('route', VerdictAction.PASSED, self.name, text=f'{self.name}: arrived')

    def advance(self, period: float) -> tuple[Array, Array]:
        """Where to be after one more period [s] of the controller: position (n,) [rad], velocity (n,) [rad/s].

        Counted in periods, not read from a clock, which would have the arm catch up after a stall.
        """
        self.elapsed += period
        return self.route.at(self.elapsed)

    def over(self, q: Array, dq: Array) -> str | None:
        """'' on arrival, a reason when the arm is not there in time, None while it is under way."""
        late = self.elapsed - self.route.duration
        if late < 0.0:
            return None
        left = float(np.abs(q - self.route.positions[-1]).max())
        if left <= ARRIVED and np.abs(dq).max() <= AT_REST:
            return ''
        return f'{left:.3f} rad are left' if late > SETTLE_TIME else None
