"""Real-time chunking: a chunk that continues the one being executed while it was computed (arXiv 2506.07339).

While a chunk of H steps is computed the arm goes on with the previous one. What the previous chunk says about the time
of the new one, its remainder, is H - s steps long (s steps have gone by between the two observations). The first d
steps of it will have been executed when the new chunk arrives: they are committed. 'guided' sampling pulls the flow
towards the remainder with full weight on the committed steps and a decaying one on the rest of the overlap, so the new
chunk is a sample of the model that begins as the arm moves. 'blend' mixes a finished chunk with the remainder by the
same weights; it costs nothing, but half-way between two ways around an obstacle is the obstacle.

Time runs as in :mod:`.flow`, noise at t = 0 and actions at t = 1, which is also the paper's direction. From
x_t = (1 - (1 - sigma) t) n + t a and v = a - (1 - sigma) n follows x_t + (1 - t) v = a + sigma n: the point at which
the integration ends when v stays as it is, whatever sigma.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..datatypes import STEP_DIM
from ..geometry import Array
from .flow import integrate
from .statistics import GRIPPER

Velocity = Callable[[Tensor, Tensor], Tensor]

LATENCIES = 50  # newest latencies that the running percentile is taken over
PERCENTILE = 90.0
ROUNDING = 1e-6  # of a step


@dataclass(frozen=True)
class Guide:
    """What a new chunk has to continue.

    Attributes:
        previous: (H, 7) normalised remainder of the previous chunk from the new observation on; zeros behind its end.
        delay_steps: first steps that are committed, d. execution_steps: last steps nothing is known about, s.
        beta: bound of the guidance weight.
    """

    previous: Array
    delay_steps: int
    execution_steps: int
    beta: float


def ramp(horizon: int, delay_steps: int, execution_steps: int) -> Array:
    """(H,) weights: 1 on the first d steps, 0 on the last s, between them c = (H - s - i) / (H - s - d + 1).

    When the chunks overlap by less than d steps the whole overlap is committed.
    """
    overlap = min(max(horizon - execution_steps, 0), horizon)
    d = min(max(delay_steps, 0), overlap)
    i = np.arange(horizon, dtype=np.float64)
    c = (overlap - i) / (overlap - d + 1)
    return np.where(i < d, 1.0, np.where(i < overlap, c, 0.0))


def soft_mask(horizon: int, delay_steps: int, execution_steps: int) -> Array:
    """(H,) weights of the guidance: W = c (e^c - 1) / (e - 1) of :func:`ramp` (eq. 5 of the paper)."""
    c = ramp(horizon, delay_steps, execution_steps)
    return np.where(c >= 1.0, 1.0, c * np.expm1(c) / math.expm1(1.0))


def per_number(mask: Array) -> Array:
    """(H,) weights of steps -> (H, 7) of their numbers: a gripper is kept where the weight is 1, never faded."""
    out = np.repeat(mask[:, None], STEP_DIM, axis=1)
    out[:, GRIPPER] = mask >= 1.0
    return out


def guidance_weight(t: float, beta: float) -> float:
    """min(beta, (1 - t) / (t r^2)) with r^2 = (1 - t)^2 / (t^2 + (1 - t)^2) (eq. 2 and 4); beta at both ends."""
    if t <= 0.0 or t >= 1.0:
        return beta
    return min(beta, (t * t + (1.0 - t) ** 2) / (t * (1.0 - t)))


def guidance(velocity: Velocity, x: Tensor, t: float, previous: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Velocity (B, H, 7) at x (B, H, 7) and time t, and the pull towards ``previous`` (B, H, 7).

    The pull is (W (Y - x1))^T dx1/dx with the one-step estimate x1 = x + (1 - t) v: downhill on
    0.5 sum W (Y - x1)^2, W and Y constant. One forward and one backward pass of the velocity.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        v = velocity(x, torch.full((len(x),), t, device=x.device)).float()
        end = x + (1.0 - t) * v
        (pull,) = torch.autograd.grad(end, x, (weights * (previous - end)).detach())
    return v.detach(), pull


def sample_guided(
    velocity: Velocity,
    noise: Tensor,
    previous: Tensor,
    delay_steps: int,
    execution_steps: int,
    beta: float = 10.0,
    steps: int = 10,
    trace: list[Tensor] | None = None,
) -> Tensor:
    """Forward Euler from noise (B, H, 7) as :func:`~.flow.integrate`, pulled towards ``previous`` (B or 1, H, 7).

    Args:
        velocity: (x (B, H, 7), t (B,)) -> (B, H, 7); differentiable in x unless nothing overlaps.
        previous: remainder of the previous chunk in the units of the flow; its last ``execution_steps`` do not matter.
        delay_steps, execution_steps: d and s of :func:`soft_mask`. With s >= H this is ``integrate``, to the bit.
        beta: bound of the guidance weight; 0 switches it off. The paper takes 5 at 5 steps; beta above ``steps`` can
            overshoot.
        trace: receives the unguided velocity of every step.
    """
    horizon = noise.shape[1]
    if execution_steps >= horizon or beta <= 0.0:
        return integrate(velocity, noise, steps, trace)
    weights = torch.from_numpy(per_number(soft_mask(horizon, delay_steps, execution_steps)))
    previous, weights = (v.to(noise.device, torch.float32) for v in (previous, weights))
    return pulled(velocity, noise, previous, weights, beta, steps, trace)


def pulled(
    velocity: Velocity,
    noise: Tensor,
    previous: Tensor,
    weights: Tensor,
    beta: float,
    steps: int,
    trace: list[Tensor] | None = None,
) -> Tensor:
    """The loop of :func:`sample_guided` with the weights (H, 7) of the guidance as a tensor."""
    x = noise.float()
    for k in range(steps):
        v, pull = guidance(velocity, x, k / steps, previous, weights)
        if trace is not None:
            trace.append(v)
        x = x + (v + guidance_weight(k / steps, beta) * pull) / steps
    return x


def remainder(chunk: Array, shift: float) -> Array:
    """Steps (K, 7) of a chunk (H, 7) as seen ``shift`` >= 0 steps after its observation; only whole ones, K may be 0.

    A step is a displacement per period, so a step that begins within step n, by the fraction f, consists of 1 - f of
    step n and f of step n + 1. The gripper takes the value of the one it overlaps more.
    """
    first = math.floor(shift + ROUNDING)
    fraction = max(shift - first, 0.0)
    left = chunk[first:]
    if fraction <= ROUNDING or not len(left):
        return left.copy()
    out = (1.0 - fraction) * left[:-1] + fraction * left[1:]
    out[:, GRIPPER] = (left[:-1] if fraction < 0.5 else left[1:])[:, GRIPPER]
    return out


def blend(chunk: Array, guide: Guide) -> Array:
    """Mix a chunk (H, 7) with the remainder by the ramp; committed steps, gripper included, are the remainder."""
    weights = per_number(ramp(len(chunk), guide.delay_steps, guide.execution_steps))
    return weights * guide.previous + (1.0 - weights) * chunk


def commit(chunk: Array, guide: Guide) -> Array:
    """Chunk (H, 7) with the committed steps as they will have been executed; guidance reaches them only nearly."""
    out = chunk.copy()
    committed = min(guide.delay_steps, len(chunk) - guide.execution_steps)
    out[:committed] = guide.previous[:committed]
    return out


@dataclass(frozen=True)
class _Sent:
    stamp_ns: int
    instruction: str
    steps: Array


class Continuation:
    """Remembers the chunk being executed and how long chunks take; says what the next one has to continue.

    Args:
        mode: 'off', 'blend' or 'guided'. beta: see :class:`Guide`. step_period: [s].
        sent: steps of a chunk that are executed at most. extra_latency: time from the camera to the model and from
            the model to the arm, on top of what is measured [s].
    """

    def __init__(self, mode: str, beta: float, step_period: float, sent: int, extra_latency: float = 0.0) -> None:
        self.mode, self.beta, self.step_period, self.sent = mode, beta, step_period, sent
        self.extra_latency = extra_latency
        self._previous: _Sent | None = None
        self._latencies: deque[float] = deque(maxlen=LATENCIES)

    def reset(self, latencies: bool = False) -> None:
        """Forget the chunk. How long the model takes does not depend on the episode and is kept unless asked for."""
        self._previous = None
        if latencies:
            self._latencies.clear()

    @property
    def latency(self) -> float:
        """Expected time from an observation to the execution of its chunk [s]."""
        measured = float(np.percentile(self._latencies, PERCENTILE)) if self._latencies else 0.0
        return measured + self.extra_latency

    def measured(self, latency: float) -> None:
        """One more latency of the model [s]."""
        self._latencies.append(latency)

    def keep(self, stamp_ns: int, instruction: str, steps: Array) -> None:
        """This normalised chunk (H, 7) will be executed."""
        self._previous = _Sent(stamp_ns, instruction, steps)

    def guide(self, stamp_ns: int, instruction: str) -> Guide | None:
        """What a chunk of an observation has to continue; None when there is nothing of use to it.

        Nothing is: a chunk of another instruction, of a later observation, or one whose steps are over.
        """
        previous = self._previous
        if self.mode == 'off' or previous is None or previous.instruction != instruction:
            return None
        shift = (stamp_ns - previous.stamp_ns) * 1e-9 / self.step_period
        horizon = len(previous.steps)
        if shift < 0.0 or shift >= min(self.sent, horizon):
            return None
        left = remainder(previous.steps, shift)
        if not len(left):
            return None
        # The remainder may reach further than what was sent, as intention; committed is only what the arm has.
        delay = min(math.ceil(self.latency / self.step_period - ROUNDING), math.floor(self.sent - shift), len(left))
        padded = np.zeros_like(previous.steps)
        padded[: len(left)] = left
        return Guide(padded, max(delay, 0), horizon - len(left), self.beta)

    def finish(self, chunk: Array, guide: Guide | None) -> Array:
        """Finished normalised chunk (H, 7) -> the one to execute."""
        if guide is None:
            return chunk
        return blend(chunk, guide) if self.mode == 'blend' else commit(chunk, guide)
