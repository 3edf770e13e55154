"""A policy of this package behind the calling convention of SimplerEnv.

SimplerEnv asks ``reset(instruction)`` once per episode and ``step(image, instruction, eef_pos)`` once per control step,
and sends ``world_vector``, ``rot_axangle`` and ``gripper`` of the answer to its controller. Conversions follow the
evaluation of the InstructVLA paper; every number of them is in :data:`SETUPS`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from ..control.ensemble import ensemble_step
from ..datatypes import PROPRIO_DIM, Image, Observation, Reasoning
from ..errors import CheckpointError, ConfigError, ObservationError, suggest
from ..geometry import Array
from ..policy import Policy
from ..settings import Embodiment, PolicySettings, View

VIEW = 'third_person'
# Turns the WidowX gripper frame of the simulator into the one Bridge V2 recorded (x forward at zero angles).
BRIDGE_FRAME = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])


@dataclass(frozen=True)
class Setup:
    """Conventions of one robot of SimplerEnv.

    Attributes:
        name: as SimplerEnv's ``policy_setup``. robot: name without the data set.
        dataset: whose statistics scale the actions. control_freq: policy steps per simulated second [Hz].
        ensemble: chunks the adaptive ensemble keeps. repeat: steps a gripper command is held (1: not sticky).
    """

    name: str
    robot: str
    dataset: str
    control_freq: float
    ensemble: int
    repeat: int


SETUPS: Mapping[str, Setup] = {
    'google_robot': Setup('google_robot', 'google_robot', 'fractal20220817_data', 3.0, 2, 10),
    'widowx_bridge': Setup('widowx_bridge', 'widowx', 'bridge_dataset', 5.0, 7, 1),
}


def find_setup(name: str) -> Setup:
    """Setup by name; 'widowx' means 'widowx_bridge'.

    Raises:
        ConfigError: no such robot.
    """
    for setup in SETUPS.values():
        if name in (setup.name, setup.robot):
            return setup
    raise ConfigError(f'SimplerEnv setup {name!r} is not known.{suggest(name, SETUPS)}')


def proprio_of(setup: Setup, eef_pos: ArrayLike) -> Array:
    """Proprioception (8,) as the data set of this robot has it.

    Args:
        eef_pos: (8,) ``obs['agent']['eef_pos']``: xyz [m], quaternion **wxyz**, openness 0..1.

    Returns:
        google_robot: xyz, quaternion **xyzw**, closedness. widowx_bridge: xyz, roll pitch yaw [rad] of the
        orientation times the transpose of :data:`BRIDGE_FRAME`, 0, openness.

    Raises:
        ObservationError: not eight finite numbers, or no orientation.
    """
    e = np.asarray(eef_pos, np.float64).reshape(-1)
    if e.shape != (PROPRIO_DIM,) or not np.all(np.isfinite(e)) or np.linalg.norm(e[3:7]) < 1e-6:
        raise ObservationError(f'eef_pos must be 8 finite numbers (xyz, quaternion wxyz, openness), got {eef_pos!r}')
    xyzw = np.roll(e[3:7], -1)
    if setup.robot == 'google_robot':
        return np.concatenate([e[:3], xyzw, [1.0 - e[7]]])
    rotation = Rotation.from_quat(xyzw) * Rotation.from_matrix(BRIDGE_FRAME.T)
    return np.concatenate([e[:3], rotation.as_euler('xyz'), [0.0, e[7]]])


class ActionConverter:
    """One action of a chunk to what SimplerEnv's controllers want; remembers what the gripper was told.

    Translation [m] as it is, rotation from fixed-axis roll pitch yaw [rad] to a rotation vector [rad], both times
    ``scale``. WidowX gripper: 1 open, -1 closed, threshold 0.5. Google gripper is relative, positive closes: 0 at
    first, then previous minus current openness; a change beyond 0.5 is held for ``setup.repeat`` steps, and only such a
    change becomes the new 'previous'.
    """

    def __init__(self, setup: Setup, scale: float = 1.0) -> None:
        self._setup = setup
        self._scale = scale
        self.reset()

    def reset(self) -> None:
        """Forget the gripper."""
        self._previous: float | None = None
        self._held = 0.0
        self._left = 0

    def convert(self, action: ArrayLike) -> dict[str, Array]:
        """Action (7,) as ``world_vector`` (3,), ``rot_axangle`` (3,), ``gripper`` (1,), ``terminate_episode`` (1,)."""
        a = np.asarray(action, np.float64)
        return {
            'world_vector': a[:3] * self._scale,
            'rot_axangle': Rotation.from_euler('xyz', a[3:6]).as_rotvec() * self._scale,
            'gripper': np.array([self._gripper(float(a[6]))]),
            'terminate_episode': np.zeros(1),
        }

    def _gripper(self, openness: float) -> float:
        if self._setup.robot == 'widowx':
            return 1.0 if openness > 0.5 else -1.0
        if self._previous is None:
            self._previous = openness
        relative = self._previous - openness
        if self._left == 0 and abs(relative) > 0.5:
            self._held, self._left, self._previous = relative, self._setup.repeat, openness
        if self._left == 0:
            return relative
        self._left -= 1
        return self._held


class SimplerPolicy:
    """The policy SimplerEnv's evaluation loop wants, on top of a :class:`~instructvla_ros.policy.Policy`.

    Args:
        policy: whose chunks are executed; one chunk per step, first action of the ensemble.
        setup: robot. sentence_period: a new sentence every that many steps; 0: act without words.
        state: the policy reads the arm state, so every step needs ``eef_pos``.
        ensemble: chunks kept, 0 for the setup's. alpha: weight of the similarity in the ensemble.
        scale: factor on translation and rotation.
    """

    def __init__(
        self,
        policy: Policy,
        setup: Setup,
        *,
        sentence_period: int = 20,
        state: bool = False,
        ensemble: int = 0,
        alpha: float = 0.1,
        scale: float = 1.0,
    ) -> None:
        if sentence_period < 0 or ensemble < 0:
            raise ConfigError(f'sentence_period {sentence_period} and ensemble {ensemble} must not be negative')
        self.policy, self.setup, self.state = policy, setup, state
        self._period, self._alpha = sentence_period, alpha
        self._chunks: deque[Array] = deque(maxlen=ensemble or setup.ensemble)
        self._converter = ActionConverter(setup, scale)
        self.instruction = ''
        self.steps = 0
        self.reasoning: Reasoning | None = None

    def reset(self, instruction: str) -> None:
        """Start an episode: forget sentence, chunks, gripper and the policy's own state."""
        self.policy.reset()
        self._chunks.clear()
        self._converter.reset()
        self.instruction, self.steps, self.reasoning = instruction, 0, None

    def step(
        self, image: Image, instruction: str | None = None, eef_pos: ArrayLike | None = None
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Next action.

        Args:
            image: uint8 RGB (H, W, 3) of the third-person camera.
            instruction: of the environment; another one than before resets the policy.
            eef_pos: (8,) as in :func:`proprio_of`; may be left out for a policy that does not read the arm state.

        Returns:
            raw action (``world_vector``, ``rotation_delta``, ``open_gripper``; after the ensemble, before conversion)
            and the action for the environment (:meth:`ActionConverter.convert`).

        Raises:
            ObservationError: no instruction yet, no ``eef_pos`` for a policy that needs it, or an unusable image.
        """
        if instruction is not None and instruction != self.instruction:
            self.reset(instruction)
        if not self.instruction:
            raise ObservationError('no instruction: call reset(instruction) first, or pass it to step')
        observation = self.observe(image, eef_pos)
        if self._period and (self.reasoning is None or self.steps % self._period == 0):
            self.reasoning = self.policy.think(observation)
        self._chunks.appendleft(self.policy.infer(observation, self.reasoning).steps)
        # Newest first: chunk i was made i steps ago, so its row i is about now.
        now = ensemble_step([c[i] for i, c in enumerate(self._chunks) if i < len(c)], self._alpha)
        self.steps += 1
        raw = {'world_vector': now[:3], 'rotation_delta': now[3:6], 'open_gripper': now[6:7]}
        return raw, self._converter.convert(now)

    def observe(self, image: Image, eef_pos: ArrayLike | None = None) -> Observation:
        """Observation of this step. ``proprio`` is in the data set's convention, not in that of this package."""
        if eef_pos is None and self.state:
            raise ObservationError(
                'this checkpoint reads the arm state, but step() got no eef_pos: use the fork of ManiSkill2_real2sim '
                'whose observations hold agent.eef_pos, or a checkpoint without state'
            )
        proprio = np.zeros(PROPRIO_DIM) if eef_pos is None else proprio_of(self.setup, eef_pos)
        return Observation(
            stamp_ns=round(self.steps * 1e9 / self.setup.control_freq),
            views={VIEW: np.ascontiguousarray(image)},
            proprio=proprio,
            q=np.zeros(0),
            dq=np.zeros(0),
            frame_id=f'{self.setup.robot}_base',
            instruction=self.instruction,
        )


def embodiment_of(setup: Setup) -> Embodiment:
    """Embodiment with the one camera of SimplerEnv; it names no joints, because the simulator solves for them."""
    return Embodiment(
        name=setup.robot,
        base_frame=f'{setup.robot}_base',
        tcp_frame='eef',
        views={VIEW: View(topic='simpler_env', frame_id=VIEW)},
    )


def policy_settings(setup: Setup, checkpoint: str, **changes: Any) -> PolicySettings:
    """Settings for one robot: the period of its steps, the whole chunk, the statistics of its data set."""
    values = {
        'policy': 'instructvla',
        'checkpoint': checkpoint,
        'step_period': 1.0 / setup.control_freq,
        'horizon': 128,
        'dataset': setup.dataset,
    }
    return PolicySettings(**{**values, **changes})


def load_policies(
    checkpoint: str, setups: Mapping[str, Setup], *, device: str = 'auto', dtype: str = 'auto', **options: Any
) -> dict[str, SimplerPolicy]:
    """One :class:`SimplerPolicy` per robot on the same weights.

    Args:
        options: of the settings (``seed``, ``latent_period``, ``euler_steps``, ``mask``, ``revision``, ``dataset``),
            and ``sentence_period``, ``ensemble`` of :class:`SimplerPolicy`.

    Raises:
        CheckpointError: not usable, more than one camera, or no statistics for one of the robots.
    """
    from ..model import checkpoint as files
    from ..model.device import pick_device, pick_dtype
    from ..model.policy import InstructVLAPolicy

    own = {k: options.pop(k) for k in ('sentence_period', 'ensemble') if k in options}
    place = pick_device(device)
    bundle = files.load(
        checkpoint,
        device=place,
        dtype=pick_dtype(dtype, place),
        mask=options.get('mask') or None,
        revision=options.get('revision', ''),
    )
    if bundle.config.views != 1:
        raise CheckpointError(f'{checkpoint} sees {bundle.config.views} views; SimplerEnv has one camera')
    if not options.get('dataset'):
        options.pop('dataset', None)
    out = {}
    for name, setup in setups.items():
        settings = policy_settings(setup, checkpoint, device=device, dtype=dtype, **options)
        policy = InstructVLAPolicy(bundle, settings, embodiment_of(setup))
        out[name] = SimplerPolicy(policy, setup, state=bundle.config.proprio, **own)
    return out
