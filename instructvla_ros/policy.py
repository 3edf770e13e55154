"""Policies: from an :class:`Observation` to a sentence (System 2) and to an :class:`ActionChunk` (System 1).

A policy owns all its inference state and forgets it in ``reset``. It knows no clock: stamps come from the observation,
and whoever publishes a chunk replaces ``created_stamp_ns`` by the time of its own clock.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, cast, runtime_checkable

import numpy as np

from .config import replace
from .datatypes import Act, ActionChunk, Ask, Observation, Reasoning, new_id
from .errors import CheckpointError, ConfigError, SetupError, suggest
from .geometry import Array, pose_from_xyz_rpy
from .settings import Embodiment, PolicySettings


@runtime_checkable
class Policy(Protocol):
    """What the nodes and the evaluation need.

    ``think`` and ``answer`` may be called from one thread while ``infer`` runs in another; ``reset`` is called when an
    instruction starts, from either. A policy that cannot do both at once takes a lock inside.

    Attributes:
        name: as in the settings. privileged: it reads ``Observation.privileged``, which no robot has.
        checkpoint_revision: of the weights, '' for policies without weights.
    """

    @property
    def name(self) -> str:
        """Name in the settings."""
        ...

    @property
    def privileged(self) -> bool:
        """Whether it reads the simulator's ground truth."""
        ...

    @property
    def checkpoint_revision(self) -> str:
        """Revision of the weights, or ''."""
        ...

    def reset(self) -> None:
        """Forget everything about the instruction so far."""

    def think(self, observation: Observation) -> Reasoning | None:
        """Say what to do next; None for a policy without words."""

    def infer(self, observation: Observation, reasoning: Reasoning | None) -> ActionChunk:
        """Predict the next steps, conditioned on ``reasoning`` when there is one."""

    def answer(self, observation: Observation, question: str) -> Reasoning:
        """Answer a question about what the observation shows."""


@runtime_checkable
class StreamingPolicy(Protocol):
    """A policy whose sentences can be followed while they grow.

    Attributes:
        stream: called from the thread of ``think`` with the sentence so far: its final id, ``final`` False.
    """

    stream: Callable[[Reasoning], None] | None


@runtime_checkable
class PreparingPolicy(Protocol):
    """A policy with work on an observation that needs none of its state, such as resizing pictures."""

    def prepare(self, observation: Observation, keep: int = 2) -> None:
        """Do it now, in any thread and beside any other call; ``think`` and ``infer`` get the same object later.

        Args:
            keep: observations whose work is kept, the newest ones.
        """


@runtime_checkable
class BatchPolicy(PreparingPolicy, Protocol):
    """A policy to which many observations at once are less work than one after the other: for recordings."""

    def act_many(self, asks: Sequence[Ask], reasoning: Reasoning | None) -> Iterable[Act]:
        """What thinking where it is asked for, and inferring with the newest sentence, give one after the other.

        Up to rounding. Each may be had as soon as it is known; the policy is to be asked nothing else before the last.
        reasoning: the sentence before the first of them.
        """
        ...


def act_alone(policy: Policy, ask: Ask, reasoning: Reasoning | None) -> Act:
    """Think, where it is asked for, and infer; reasoning: the sentence before."""
    said = policy.think(ask.observation) if ask.think else None
    return Act(said, policy.infer(ask.observation, said or reasoning))


@runtime_checkable
class SharedPolicy(Protocol):
    """A policy on whose weights several episodes can be played at once, for less than one after the other."""

    def member(self) -> Policy:
        """A policy for one more episode: the same weights, a memory of its own."""
        ...

    def act_each(
        self, members: Sequence[Policy], asks: Sequence[Ask], reasonings: Sequence[Reasoning | None]
    ) -> list[Act]:
        """What :func:`act_alone` gives of each of its members, up to rounding.

        Args:
            asks: one to each member. reasonings: the sentence of each before.
        """
        ...


def make_chunk(
    policy: Policy,
    observation: Observation,
    steps: Array,
    step_period: float,
    started: float,
    reasoning: Reasoning | None = None,
    done: bool = False,
) -> ActionChunk:
    """Chunk of base-frame rpy ``steps`` (H, 7) that rests on ``observation``.

    Args:
        started: ``time.perf_counter()`` when the work on it began; the latency is measured from there.
    """
    latency = time.perf_counter() - started
    return ActionChunk(
        id=new_id('chunk'),
        observation_stamp_ns=observation.stamp_ns,
        created_stamp_ns=observation.stamp_ns + int(latency * 1e9),
        step_period=step_period,
        steps=steps,
        frame_id=observation.frame_id,
        reference_pose=pose_from_xyz_rpy(observation.proprio[:6]),
        instruction=observation.instruction,
        policy=policy.name,
        reasoning_id=reasoning.id if reasoning is not None else '',
        checkpoint_revision=policy.checkpoint_revision,
        model_latency=latency,
        done=done,
    )


class HoldPolicy:
    """Stays where it is: zero deltas and the measured gripper openness. It has no words."""

    name = 'hold'
    privileged = False
    checkpoint_revision = ''

    def __init__(self, step_period: float, horizon: int) -> None:
        self._step_period = step_period
        self._horizon = horizon

    def reset(self) -> None:
        """Nothing to forget."""

    def think(self, observation: Observation) -> Reasoning | None:
        """No words."""
        return None

    def infer(self, observation: Observation, reasoning: Reasoning | None) -> ActionChunk:
        """Chunk that stays at the observed pose."""
        started = time.perf_counter()
        steps = np.zeros((self._horizon, 7))
        steps[:, 6] = observation.proprio[7]
        return make_chunk(self, observation, steps, self._step_period, started, reasoning)

    def answer(self, observation: Observation, question: str) -> Reasoning:
        """Raise: this policy has no words."""
        raise ConfigError("policy 'hold' has no words; start the node with policy 'instructvla' to ask about the scene")


def _expert(settings: PolicySettings, embodiment: Embodiment) -> Policy:
    from .policy_expert import ExpertPolicy  # a robot needs nothing of the simulator

    return ExpertPolicy(settings.step_period, settings.horizon)


MODEL_MODULE = 'instructvla_ros.model.policy'


def _instructvla(settings: PolicySettings, embodiment: Embodiment) -> Policy:
    """Learned policy: ``load(settings, embodiment) -> Policy`` of the model package, imported only when asked for."""
    if not settings.checkpoint:
        raise CheckpointError(
            "policy 'instructvla' needs weights: set the parameter `checkpoint` to a run directory or a hub id"
        )
    try:
        return cast(Policy, importlib.import_module(MODEL_MODULE).load(settings, embodiment))
    except ImportError as err:
        raise SetupError(
            f"policy 'instructvla' cannot be loaded because {err.name or MODEL_MODULE} is missing ({err}); "
            "install the package with its model extra, or choose policy 'hold' or 'expert'"
        ) from err


_FACTORIES: dict[str, Callable[[PolicySettings, Embodiment], Policy]] = {
    'hold': lambda settings, embodiment: HoldPolicy(settings.step_period, settings.horizon),
    'expert': _expert,
    'instructvla': _instructvla,
}


def make_policy(settings: PolicySettings, embodiment: Embodiment) -> Policy:
    """Policy named in the settings.

    Raises:
        ConfigError: no such policy (with the nearest names).
        CheckpointError: no checkpoint is named, or it is not usable.
        SetupError: the model code or one of its libraries is not installed.
    """
    if settings.policy not in _FACTORIES:
        raise ConfigError(f'policy {settings.policy!r} is not known.{suggest(settings.policy, _FACTORIES)}')
    return _FACTORIES[settings.policy](settings, embodiment)


class PolicyHost:
    """The policy in use, shared by the threads of a process; its weights can be swapped while the graph runs."""

    def __init__(self, settings: PolicySettings, embodiment: Embodiment, policy: Policy | None = None) -> None:
        self.settings = settings
        self._embodiment = embodiment
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._policy = policy if policy is not None else make_policy(settings, embodiment)

    @property
    def current(self) -> Policy:
        """Policy in use. Take it once per inference: the next call may return another one."""
        with self._lock:
            return self._policy

    def load(self, checkpoint: str, revision: str = '') -> Policy:
        """Make a policy from other weights and use it from now on; the old one stays when that fails.

        Raises:
            CheckpointError: the policy has no weights, the checkpoint is not usable, or another one is being loaded.
            SetupError: the model code or one of its libraries is not installed.
        """
        if not self.settings.checkpoint and not self.current.checkpoint_revision:
            raise CheckpointError(f'policy {self.current.name!r} has no weights; a checkpoint means nothing to it')
        if not self._loading.acquire(blocking=False):
            raise CheckpointError('another checkpoint is being loaded; try again when it is done')
        try:
            settings = replace(self.settings, checkpoint=checkpoint, revision=revision)
            policy = make_policy(settings, self._embodiment)
            with self._lock:
                self._policy, self.settings = policy, settings
            return policy
        finally:
            self._loading.release()
