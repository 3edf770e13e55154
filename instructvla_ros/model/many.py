"""Many asks at once, with the result of asking one after the other: of one policy about a recording, or of several
policies on the same weights, each in an episode of its own.

What an ask needs of the ones before it (which sentence holds, whether the latent is still good) is settled first; what
is left is rows, and rows of all turns are read in the same batches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..datatypes import Act, Ask, Reasoning, ReasoningKind, new_id
from ..geometry import Array
from .together import MOST, Prompt, Together

if TYPE_CHECKING:
    from .policy import InstructVLAPolicy, Thought


def act_all(together: Together, turns: Sequence[Turn]) -> Iterator[Act]:
    """What every turn says and does, in their order; as many at a time as are read in one call."""
    started = time.perf_counter()
    sentences = iter(together.sentences([prompt for turn in turns for prompt in turn.to_say()]))
    spoken = time.perf_counter()
    sayers = sum(len(turn.sayers) for turn in turns)
    for turn in turns:
        turn.hear([next(sentences) for _ in turn.sayers], (spoken - started) / max(1, sayers))
    rows = [(turn, k) for turn in turns for k in range(len(turn.asks))]
    for first in range(0, len(rows), MOST):
        part = rows[first : first + MOST]
        reading = [(turn, k) for turn, k in part if k in turn.wanted]
        latents = together.latents([turn.wanted[k].prompt for turn, k in reading])
        for (turn, k), latent in zip(reading, latents, strict=True):
            turn.learn(k, latent)
        read, views, proprio, noise = zip(*(turn.to_do(k) for turn, k in part), strict=True)
        raw = together.chunks(read, views, proprio, noise).double().cpu().numpy()
        latency = (time.perf_counter() - started) / (first + len(part))
        for (turn, k), actions in zip(part, raw, strict=True):
            yield turn.finish(k, actions, latency)


@dataclass(frozen=True)
class Wanted:
    """A latent that has to be read: its prompt, and what the thought is about."""

    prompt: Prompt
    instruction: str
    reasoning_id: str


class Turn:
    """Asks to one policy, and what it remembers between them. Its methods are called in the order they stand here.

    Args:
        reasoning: the sentence before the first ask.
    """

    def __init__(self, policy: InstructVLAPolicy, asks: Sequence[Ask], reasoning: Reasoning | None) -> None:
        self.asks, self._policy, self._reasoning = asks, policy, reasoning
        bundle = policy._bundle
        with policy._lock:
            self._epoch, self._thought, self._uses = policy._epoch, policy._thought, policy._uses
            self._noise = [policy._draw() for _ in asks]
        self._frames = [policy._frame(ask.observation) for ask in asks]
        self.sayers = [k for k, ask in enumerate(asks) if ask.think and bundle.config.reasons]
        self._said: dict[int, tuple[Reasoning, str]] = {}  # of an ask: its sentence, and what is fed back of it
        self.wanted: dict[int, Wanted] = {}  # by ask
        self._learned: dict[int, Thought] = {}
        self._known: list[Thought] = []  # what the chunk of each ask rests on

    def to_say(self) -> list[Prompt]:
        """Prompts of the sentences that are asked for."""
        reason = self._policy._bundle.prompts.reason
        return [(self._frames[k].pixels, reason(self.asks[k].observation.instruction)) for k in self.sayers]

    def hear(self, tokens: Sequence[list[int]], latency: float) -> None:
        """Take the tokens of those sentences; latency: of one of them on the clock [s]."""
        bundle = self._policy._bundle
        for k, told in zip(self.sayers, tokens, strict=True):
            seen = self.asks[k].observation
            reasoning = Reasoning(
                id=new_id('say'),
                stamp_ns=seen.stamp_ns,
                instruction=seen.instruction,
                text=bundle.prompts.response(told),
                kind=ReasoningKind.PLAN,
                tokens=len(told),
                latency=latency * self._policy._settings.sim_speed,
                final=True,
                source=self._policy.name,
            )
            self._said[k] = reasoning, bundle.prompts.response(told, bundle.config.response)
        self._choose()

    def _choose(self) -> None:
        """Latents are needed where the instruction is new, or the last latent is used up."""
        policy, reasoning, uses = self._policy, self._reasoning, self._uses
        about = self._thought.instruction if self._thought is not None else None
        for k, ask in enumerate(self.asks):
            instruction, reasoning = ask.observation.instruction, self._said[k][0] if k in self._said else reasoning
            if about != instruction or uses >= policy._settings.latent_period:
                fed = next((t for r, t in self._said.values() if reasoning is not None and r.id == reasoning.id), None)
                response, reasoning_id = policy._words(instruction, reasoning, fed)
                prompt = self._frames[k].pixels, policy._bundle.prompts.action(instruction, response)
                self.wanted[k] = Wanted(prompt, instruction, reasoning_id)
                about, uses = instruction, 0
            uses += 1
        self._uses = uses

    def learn(self, k: int, latent: Tensor) -> None:
        """Take the latent of an ask that wanted one."""
        from .policy import Thought

        self._learned[k] = Thought(latent, self.wanted[k].instruction, self.wanted[k].reasoning_id)

    def to_do(self, k: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Latent, views, proprio and noise of the chunk of an ask; those of the asks before it come first."""
        thought = self._learned.get(k, self._thought if k == 0 else self._known[k - 1])
        assert thought is not None
        self._known.append(thought)
        frame = self._frames[k]
        return thought.latent, frame.views, frame.proprio, self._noise[k]

    def finish(self, k: int, raw: Array, latency: float) -> Act:
        """What was said and done for an ask, and with the last one the policy remembers.

        Args:
            raw: the model's actions (H, 7). latency: of one chunk on the clock [s].
        """
        policy, ask = self._policy, self.asks[k]
        if k == len(self.asks) - 1:
            self._remember()
        chunk = policy._as_chunk(
            ask.observation,
            policy._statistics.finish(np.asarray(raw)),
            self._known[k],
            latency * policy._settings.sim_speed,
        )
        return Act(self._said[k][0] if k in self._said else None, chunk)

    def _remember(self) -> None:
        policy = self._policy
        with policy._lock:
            if self._epoch == policy._epoch:
                policy._thought, policy._uses = self._known[-1], self._uses
                if self._said:
                    spoken, text = self._said[max(self._said)]
                    policy._said = (spoken.id, spoken.stamp_ns, None, text)
            done = {id(ask.observation) for ask in self.asks}
            policy._prepared = {k: v for k, v in policy._prepared.items() if k not in done}
