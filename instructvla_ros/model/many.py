"""Many asks at once, with the result of asking one after the other: of one policy about a recording, or of several
policies on the same weights, each in an episode of its own.

What an ask needs of the ones before it (which sentence holds, whether the latent is still good) is settled first; what
is left is rows, and rows of all turns are read in the same batches.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..datatypes import Act, Ask, Reasoning, ReasoningKind, new_id
from ..geometry import Array
from .together import Prompt, Together

if TYPE_CHECKING:
    from .policy import InstructVLAPolicy, Thought


def act_all(together: Together, turns: Sequence[Turn]) -> list[list[Act]]:
    """Sentences and chunks of every turn, in their order."""
    started = time.perf_counter()
    sentences = iter(together.sentences([prompt for turn in turns for prompt in turn.to_say()]))
    spoken = time.perf_counter()
    sayers = sum(len(turn.sayers) for turn in turns)
    for turn in turns:
        turn.hear([next(sentences) for _ in turn.sayers], (spoken - started) / max(1, sayers))
    latents = iter(together.latents([prompt for turn in turns for prompt in turn.to_read()]))
    rows: list[tuple[Tensor, Tensor, Tensor | None, Tensor]] = []
    for turn in turns:
        turn.learn([next(latents) for _ in turn.wanted])
        rows += turn.to_do()
    read, views, proprio, noise = zip(*rows, strict=True)
    raw = together.chunks(read, views, proprio, noise)
    finished = raw.double().cpu().numpy()
    latency = (time.perf_counter() - started) / len(rows)
    out, first = [], 0
    for turn in turns:
        out.append(turn.finish(finished[first : first + len(turn.asks)], latency))
        first += len(turn.asks)
    return out


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
            self._noise = [bundle.model.noise(1, policy._generator) for _ in asks]
        self._frames = [policy._frame(ask.observation) for ask in asks]
        self.sayers = [k for k, ask in enumerate(asks) if ask.think and bundle.config.reasons]
        self._said: dict[int, tuple[Reasoning, str]] = {}  # of an ask: its sentence, and what is fed back of it
        self.wanted: list[tuple[int, str, str]] = []  # latents to be read: ask, instruction, id of the sentence
        self._thoughts: list[Thought | int] = []  # of each ask: what is known, or the number of the latent

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

    def to_read(self) -> list[Prompt]:
        """Prompts of the latents that are needed: where the instruction is new, or the last latent is used up."""
        policy, reasoning, uses = self._policy, self._reasoning, self._uses
        about = self._thought.instruction if self._thought is not None else None
        prompts: list[Prompt] = []
        for k, ask in enumerate(self.asks):
            instruction, reasoning = ask.observation.instruction, self._said[k][0] if k in self._said else reasoning
            if about != instruction or uses >= policy._settings.latent_period:
                fed = next((t for r, t in self._said.values() if reasoning is not None and r.id == reasoning.id), None)
                response, reasoning_id = policy._words(instruction, reasoning, fed)
                prompts.append((self._frames[k].pixels, policy._bundle.prompts.action(instruction, response)))
                self.wanted.append((k, instruction, reasoning_id))
                about, uses = instruction, 0
            if self.wanted:
                self._thoughts.append(len(self.wanted) - 1)
            else:
                assert self._thought is not None
                self._thoughts.append(self._thought)
            uses += 1
        self._uses = uses
        return prompts

    def learn(self, latents: Sequence[Tensor]) -> None:
        """Take those latents."""
        from .policy import Thought

        read = [Thought(x, about, said) for x, (_, about, said) in zip(latents, self.wanted, strict=True)]
        self._known = [read[t] if isinstance(t, int) else t for t in self._thoughts]

    def to_do(self) -> list[tuple[Tensor, Tensor, Tensor | None, Tensor]]:
        """Latent, views, proprio and noise of the chunk of each ask."""
        frames = zip(self._known, self._frames, self._noise, strict=True)
        return [(thought.latent, frame.views, frame.proprio, noise) for thought, frame, noise in frames]

    def finish(self, raw: Array, latency: float) -> list[Act]:
        """Acts from the model's actions (n, H, 7); latency: of one chunk on the clock [s]. The policy remembers."""
        policy = self._policy
        finished = policy._statistics.finish(np.asarray(raw))
        with policy._lock:
            if self._epoch == policy._epoch:
                policy._thought, policy._uses = self._known[-1], self._uses
                if self._said:
                    spoken, text = self._said[max(self._said)]
                    policy._said = (spoken.id, spoken.stamp_ns, None, text)
            done = {id(ask.observation) for ask in self.asks}
            policy._prepared = {k: v for k, v in policy._prepared.items() if k not in done}
        latency *= policy._settings.sim_speed
        return [
            Act(
                self._said[k][0] if k in self._said else None,
                policy._as_chunk(ask.observation, finished[k], self._known[k], latency),
            )
            for k, ask in enumerate(self.asks)
        ]
