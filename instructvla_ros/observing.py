"""From single sensor messages to one synchronised :class:`Observation`, or the reason why there is none.

No clock and no ROS in here: stamps come with the messages, ``now_ns`` with the question. A view that goes silent is
reported as stale by name; it is never replaced by a black image or by an old one. Images are passed on, not copied.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from . import pairing
from .datatypes import Image, Observation, RobotState, SceneState
from .errors import ConfigError
from .geometry import Array
from .settings import PolicySettings

JOINT_STATES = 'joint_states'
SIM_STATE = 'sim_state'
_NS = 1e-9
_STATES = 4096
_SCENES = 16


@dataclass(frozen=True)
class Stale:
    """Why there is no observation now.

    Attributes:
        input: view name, ``joint_states`` or ``sim_state``.
        age: of its newest usable message [s]; inf when none has arrived, negative when stamped in the future.
        limit: what is allowed [s].
        reason: one sentence with the numbers.
    """

    input: str
    age: float
    limit: float
    reason: str


class Synchronizer:
    """Pairs views by header stamp and adds the joint state of that instant. Safe to use from several threads.

    Args:
        views: names of the views every observation must have.
        forward: joint positions (n,) [rad] -> T_base_tcp (4, 4), for example ``Kinematics.forward``.
        frame_id: robot base frame.
        settings: ``sync_slop``, ``max_view_age``, ``max_state_age``.
        privileged: also require the simulator's ground truth.
        max_future: how far a stamp may lie ahead of ``now_ns`` [s].
        jump: a stamp that goes back by more than this starts over, because its source was restarted [s]; one that
            goes back by less is out of order and dropped.
    """

    def __init__(
        self,
        views: Sequence[str],
        forward: Callable[[Array], Array],
        frame_id: str,
        settings: PolicySettings,
        privileged: bool = False,
        max_future: float = 0.1,
        jump: float = 1.0,
    ) -> None:
        if not views:
            raise ConfigError('an observation needs at least one view; add one to `views` of the embodiment')
        self.jumps = 0
        self._forward = forward
        self._frame_id = frame_id
        self._settings = settings
        self._privileged = privileged
        self._max_future = max_future
        self._jump_ns = int(jump * 1e9)
        self._lock = threading.Lock()
        self._views: dict[str, deque[tuple[int, Image]]] = {name: deque(maxlen=pairing.FRAMES_KEPT) for name in views}
        self._states: deque[RobotState] = deque(maxlen=_STATES)
        self._scenes: deque[SceneState] = deque(maxlen=_SCENES)
        history = settings.max_view_age + settings.max_state_age + settings.sync_slop
        self._history_ns = int(history * 1e9)

    def feed(self, view: str, stamp_ns: int, image: Image) -> str:
        """Take an image (H, W, 3) uint8 RGB; return '' or why it was dropped."""
        with self._lock:
            if view not in self._views:
                return f'view {view!r} is not one of {", ".join(self._views)}'
            problem = self._order(f'view {view!r}', self._newest(view), stamp_ns)
            if not problem:
                self._views[view].append((stamp_ns, image))
            return problem

    def feed_state(self, state: RobotState) -> str:
        """Take a joint state; return '' or why it was dropped."""
        if not (np.isfinite(state.q).all() and np.isfinite(state.dq).all() and isfinite(state.gripper)):
            return f'{JOINT_STATES}: a position, velocity or the gripper is not a finite number'
        with self._lock:
            newest = self._states[-1].stamp_ns if self._states else None
            problem = self._order(JOINT_STATES, newest, state.stamp_ns)
            if not problem:
                self._states.append(state)
                while state.stamp_ns - self._states[0].stamp_ns > self._history_ns:
                    self._states.popleft()
            return problem

    def feed_privileged(self, scene: SceneState) -> str:
        """Take the simulator's ground truth; return '' or why it was dropped."""
        with self._lock:
            newest = self._scenes[-1].stamp_ns if self._scenes else None
            problem = self._order(SIM_STATE, newest, scene.stamp_ns)
            if not problem:
                self._scenes.append(scene)
            return problem

    def discard(self, view: str, stamp_ns: int) -> None:
        """Forget one image, for whoever feeds place-holders and finds the picture unusable when it decodes it."""
        with self._lock:
            frames = self._views.get(view)
            for k, (stamp, _) in enumerate(frames or ()):
                if frames is not None and stamp == stamp_ns:
                    del frames[k]
                    return

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._clear()

    def ages(self, now_ns: int) -> dict[str, float]:
        """Age of the newest message of every input [s]; inf for one that has not arrived."""
        with self._lock:
            newest: dict[str, int | None] = {name: self._newest(name) for name in self._views}
            newest[JOINT_STATES] = self._states[-1].stamp_ns if self._states else None
            if self._privileged:
                newest[SIM_STATE] = self._scenes[-1].stamp_ns if self._scenes else None
        return {name: float('inf') if stamp is None else (now_ns - stamp) * _NS for name, stamp in newest.items()}

    def latest(self, now_ns: int, instruction: str = '') -> Observation | Stale:
        """Newest complete observation at ``now_ns`` (clock of the header stamps), or why there is none."""
        found = self.wanted(now_ns, lambda stamp_ns: True, instruction)
        assert found is not None
        return found

    def wanted(self, now_ns: int, want: Callable[[int], bool], instruction: str = '') -> Observation | Stale | None:
        """The same, put together only when ``want`` says so of its stamp [ns], else None.

        For whoever takes few of many: kinematics and angles cost most of an observation.
        """
        limit = self._settings.max_view_age
        with self._lock:
            problem = self._silent_view(now_ns)
            if problem is not None:
                return problem
            chosen = self._pair()
            if isinstance(chosen, Stale):
                return chosen
            stamp = min(s for s, _ in chosen.values())
            age = (now_ns - stamp) * _NS
            if age > limit:
                oldest = min(chosen, key=lambda name: chosen[name][0])
                return Stale(
                    oldest, age, limit,
                    f'newest images that belong together are {age:.3f} s old, allowed {limit:.3f} s; '
                    f'view {oldest!r} lags',
                )
            state = self._state_at(stamp, now_ns)
            if isinstance(state, Stale):
                return state
            scene: SceneState | Stale | None = self._scene_at(stamp, now_ns) if self._privileged else None
            if isinstance(scene, Stale):
                return scene
            if not want(stamp):
                return None
            tcp = self._forward(state.q)  # inside the lock: kinematics libraries work on shared buffers
        return Observation(
            stamp_ns=stamp,
            views={name: image for name, (_, image) in chosen.items()},
            proprio=pairing.proprio(tcp, state.gripper),
            q=state.q,
            dq=state.dq,
            frame_id=self._frame_id,
            instruction=instruction,
            view_stamps_ns={name: s for name, (s, _) in chosen.items()},
            privileged=scene,
        )

    def _newest(self, view: str) -> int | None:
        return self._views[view][-1][0] if self._views[view] else None

    def _clear(self) -> None:
        for frames in self._views.values():
            frames.clear()
        self._states.clear()
        self._scenes.clear()

    def _order(self, name: str, newest: int | None, stamp: int) -> str:
        if stamp <= 0:
            return f'{name}: message without a header stamp'
        if newest is None or stamp > newest:
            return ''
        if stamp == newest:
            return f'{name}: duplicate of the message stamped {stamp} ns'
        if newest - stamp <= self._jump_ns:
            return f'{name}: out of order by {(newest - stamp) * _NS:.3f} s'
        # The source was restarted or a bag was rewound: nothing older than this message belongs to its time line.
        self._clear()
        self.jumps += 1
        return ''

    def _silent_view(self, now_ns: int) -> Stale | None:
        limit = self._settings.max_view_age
        worst: Stale | None = None
        for name in self._views:
            newest = self._newest(name)
            if newest is None:
                return Stale(name, float('inf'), limit, f'no image of view {name!r} has arrived')
            age = (now_ns - newest) * _NS
            if age < -self._max_future:
                return self._ahead(f'view {name!r}', name, age)
            if age > limit and (worst is None or age > worst.age):
                worst = Stale(
                    name, age, limit, f'view {name!r} is silent: newest image {age:.3f} s old, allowed {limit:.3f} s'
                )
        return worst

    def _ahead(self, label: str, name: str, age: float) -> Stale:
        return Stale(
            name, age, self._max_future,
            f'{label} is stamped {-age:.3f} s ahead of this clock, allowed {self._max_future:.3f} s; '
            'synchronise the clocks or set use_sim_time on every node',
        )

    def _pair(self) -> dict[str, tuple[int, Image]] | Stale:
        """Newest set with one frame per view whose stamps lie within the slop of its oldest member."""
        slop = int(self._settings.sync_slop * 1e9)
        chosen = pairing.newest_set(self._views, slop)
        if chosen is not None:
            return chosen
        newest = {name: frames[-1][0] for name, frames in self._views.items()}
        late, early = min(newest, key=lambda n: newest[n]), max(newest, key=lambda n: newest[n])
        spread = (newest[early] - newest[late]) * _NS
        return Stale(
            late, spread, self._settings.sync_slop,
            f'views {late!r} and {early!r} have no images within {self._settings.sync_slop:.3f} s of each other '
            f'(newest are {spread:.3f} s apart); synchronise the cameras or raise sync_slop',
        )

    def _state_at(self, stamp: int, now_ns: int) -> RobotState | Stale:
        limit = self._settings.max_state_age
        if not self._states:
            return Stale(JOINT_STATES, float('inf'), limit, 'no joint state has arrived')
        age = (now_ns - self._states[-1].stamp_ns) * _NS
        if age > limit:
            return Stale(
                JOINT_STATES, age, limit,
                f'joint states are silent: newest {age:.3f} s old, allowed {limit:.3f} s',
            )
        if age < -self._max_future:
            return self._ahead('the joint state', JOINT_STATES, age)
        after: RobotState | None = None
        before: RobotState | None = None
        for state in reversed(self._states):
            if state.stamp_ns <= stamp:
                before = state
                break
            after = state
        near = pairing.state_between(before, after, stamp, int(limit * 1e9))
        assert near is not None  # there is at least one state
        gap = abs(near.stamp_ns - stamp) * _NS
        if gap > limit:
            return Stale(
                JOINT_STATES, gap, limit,
                f'nearest joint state is {gap:.3f} s away from the image, allowed {limit:.3f} s',
            )
        return near

    def _scene_at(self, stamp: int, now_ns: int) -> SceneState | Stale:
        limit = self._settings.max_view_age
        if not self._scenes:
            return Stale(
                SIM_STATE, float('inf'), limit,
                'no simulator state has arrived; this policy needs it and no robot has it',
            )
        age = (now_ns - self._scenes[-1].stamp_ns) * _NS
        if age > limit:
            return Stale(
                SIM_STATE, age, limit, f'simulator state is silent: newest {age:.3f} s old, allowed {limit:.3f} s'
            )
        if age < -self._max_future:
            return self._ahead('the simulator state', SIM_STATE, age)
        return min(self._scenes, key=lambda scene: abs(scene.stamp_ns - stamp))


class Pacer:
    """Chooses which observations to act on: ``rate`` per second on average, each at the moment it arrives.

    Acting on arrival keeps the age of what the policy sees small. The observation nearest to the schedule is taken, so
    no start is off by more than half the time between two observations.
    """

    def __init__(self, rate: float) -> None:
        self._period = 1.0 / rate
        self.reset()

    def reset(self) -> None:
        """Take the next observation, whenever it comes."""
        self._next = -float('inf')
        self._last: float | None = None
        self._spacing = 0.0

    def take(self, now: float) -> bool:
        """Whether to act on the observation that arrived at ``now`` [s]. Ask once for each."""
        if self._last is not None:
            gap = min(now - self._last, self._period)
            self._spacing = gap if self._spacing == 0.0 else 0.8 * self._spacing + 0.2 * gap
        self._last = now
        tolerance = 0.5 * self._spacing
        if now < self._next - tolerance:
            return False
        late = now > self._next + tolerance
        self._next = (now if late else self._next) + self._period
        return True
