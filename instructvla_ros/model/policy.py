"""The learned policy: observations to sentences and chunks; owns every piece of inference state."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..datatypes import Act, ActionChunk, Ask, Observation, Reasoning, ReasoningKind, new_id
from ..errors import CheckpointError, ObservationError
from ..geometry import Array, pose_from_xyz_rpy
from ..settings import Embodiment, PolicySettings
from .checkpoint import Bundle
from .checkpoint import load as load_checkpoint
from .device import pick_device, pick_dtype
from .fast import Session, lay_out_weights, merge_adapters
from .graphs import upload
from .images import Floats, dino_pixels, join_views, siglip_pixels
from .many import Turn, act_all
from .realtime import Continuation
from .static import make_engine, make_lanes
from .together import Together
from .warmup import warm_up

log = logging.getLogger(__name__)

_SMALL = 30_000_000  # parameters below which threads cost more than they bring, above all beside a simulator


def load(settings: PolicySettings, embodiment: Embodiment) -> InstructVLAPolicy:
    """Policy with the checkpoint, device and number format of the settings.

    Raises:
        CheckpointError: the checkpoint is not usable, or needs more cameras than the embodiment has.
        ConfigError: the device does not exist here.
    """
    device = pick_device(settings.device)
    number = pick_dtype(settings.dtype, device)
    started = time.perf_counter()
    bundle = load_checkpoint(
        settings.checkpoint, device=device, dtype=number, mask=settings.mask or None, revision=settings.revision
    )
    small = sum(p.numel() for p in bundle.model.parameters()) < _SMALL
    policy = InstructVLAPolicy(bundle, settings, embodiment)
    if small and device.type == 'cpu' and 'OMP_NUM_THREADS' not in os.environ:
        torch.set_num_threads(1)
    if device.type == 'cuda' or settings.compile:
        policy.warm_up()
    log.info(
        'loaded %s (%s) on %s in %s, %.1f s',
        settings.checkpoint,
        bundle.revision,
        device,
        str(number).removeprefix('torch.'),
        time.perf_counter() - started,
    )
    return policy


@dataclass(frozen=True)
class Frame:
    """One observation as tensors: pixels (1, 3, S, S), views (1, V, 3, S', S'), proprio (1, 8) or None."""

    stamp_ns: int
    pixels: Tensor
    views: Tensor
    proprio: Tensor | None


@dataclass(frozen=True)
class Thought:
    """A latent with the sentence and instruction it came from."""

    latent: Tensor
    instruction: str
    reasoning_id: str


class InstructVLAPolicy:
    """InstructVLA behind the interface of a policy.

    ``think`` and ``infer`` may run at the same time in two threads: they share weights, never buffers. A chunk names
    the sentence its latent came from. ``reset`` clears everything and makes the noise start over.

    Args:
        bundle: model, prompts, statistics. settings: periods, steps, seed, dataset. embodiment: cameras, conventions.
    """

    name = 'instructvla'
    privileged = False

    def __init__(self, bundle: Bundle, settings: PolicySettings, embodiment: Embodiment) -> None:
        config = bundle.config
        self._view_names = tuple(embodiment.views)[: config.views]
        if len(self._view_names) < config.views:
            raise CheckpointError(
                f'the checkpoint sees {config.views} views, the embodiment {embodiment.name} has '
                f'{len(embodiment.views)} ({", ".join(embodiment.views) or "none"}); add cameras to its views'
            )
        self.checkpoint_revision = bundle.revision
        self.stream: Callable[[Reasoning], None] | None = None
        """Receives the sentence so far after every token of ``think``: same id as the result, ``final`` False."""
        self._bundle, self._settings, self._embodiment = bundle, settings, embodiment
        self._statistics = bundle.dataset(settings.dataset)
        self._euler_steps = settings.euler_steps or config.euler_steps
        # More would pull beyond the chunk that is continued in the first step.
        self._beta = min(settings.realtime_beta, float(self._euler_steps))
        merge_adapters(bundle.model)
        lay_out_weights(bundle.model, pack=not settings.compile, expert=settings.realtime != 'guided')
        self._engine = make_engine(bundle.model, settings.capture, settings.compile)
        self._lanes = make_lanes(self._engine, urgent='chunk')
        self._continuation = Continuation(
            settings.realtime,
            self._beta,
            settings.step_period,
            min(settings.horizon, config.horizon),
            settings.realtime_latency,
        )
        self._lock = threading.Lock()
        self._epoch = 0
        self.reset()

    def reset(self) -> None:
        """Forget sentence, latent and counters; a sentence being generated is cut short."""
        with self._lock:
            self._epoch += 1
            self._thought: Thought | None = None
            self._uses = 0
            self._said: tuple[str, int, Session | None, str] | None = None
            self._prepared: dict[int, tuple[Observation, Floats, Floats]] = {}
            self._generator = torch.Generator().manual_seed(self._settings.seed)
            self._continuation.reset()

    def think(self, observation: Observation) -> Reasoning | None:
        """Say what to do next; None for a model without words. ``final`` is False when a reset cut it short."""
        if not self._bundle.config.reasons:
            return None
        prompt = self._bundle.prompts.reason(observation.instruction)
        with self._lanes('sentence'):
            return self._speak(observation, prompt, observation.instruction, ReasoningKind.PLAN)

    def answer(self, observation: Observation, question: str) -> Reasoning:
        """Answer a question about the image, in the model's words."""
        prompt = self._bundle.prompts.question(question)
        with self._lanes('answer'):
            return self._speak(observation, prompt, question, ReasoningKind.ANSWER)

    def infer(self, observation: Observation, reasoning: Reasoning | None) -> ActionChunk:
        """Next steps. The latent is computed anew every ``latent_period`` calls, and for a new instruction."""
        with self._lanes('chunk'):
            return self._infer(observation, reasoning)

    def _draw(self) -> Tensor:
        """(1, H, 7) noise of the next chunk; the caller holds the lock."""
        return self._settings.noise * self._bundle.model.noise(1, self._generator)

    def _infer(self, observation: Observation, reasoning: Reasoning | None) -> ActionChunk:
        started = time.perf_counter()
        with self._lock:
            epoch, thought, uses = self._epoch, self._thought, self._uses
            noise = self._draw()
            guide = self._continuation.guide(observation.stamp_ns, observation.instruction)
        frame, session = self._frame(observation), None
        stale = thought is None or thought.instruction != observation.instruction
        if thought is None or stale or uses >= self._settings.latent_period:
            thought, session = self._conclude(frame, observation.instruction, reasoning)
            uses = 0
        raw = self._engine.chunk(
            thought.latent,
            frame.views,
            frame.proprio,
            noise,
            steps=self._euler_steps,
            guide=guide if self._settings.realtime == 'guided' else None,
        )
        normalized = self._statistics.finish(raw[0].double().cpu().numpy())
        del session  # not earlier: memory of the thread that said the sentence, until the device is done with it
        normalized = self._continuation.finish(normalized, guide)
        latency = self._since(started)
        with self._lock:
            if self._settings.realtime_measured:
                self._continuation.measured(latency)
            if epoch == self._epoch:
                self._thought, self._uses = thought, uses + 1
                self._continuation.keep(observation.stamp_ns, observation.instruction, normalized)
        return self._as_chunk(observation, normalized, thought, latency)

    def _as_chunk(self, observation: Observation, normalized: Array, thought: Thought, latency: float) -> ActionChunk:
        return ActionChunk(
            id=new_id('chunk'),
            observation_stamp_ns=observation.stamp_ns,
            created_stamp_ns=observation.stamp_ns + int(latency * 1e9),
            step_period=self._settings.step_period,
            steps=self._statistics.unnormalize(normalized)[: self._settings.horizon],
            frame_id=observation.frame_id,
            reference_pose=pose_from_xyz_rpy(observation.proprio[:6]),
            delta_frame='tool' if self._embodiment.delta_frame == 'tool' else 'base',
            rotation='rotvec' if self._embodiment.rotation == 'rotvec' else 'rpy',
            instruction=observation.instruction,
            policy=self.name,
            reasoning_id=thought.reasoning_id,
            checkpoint_revision=self.checkpoint_revision,
            model_latency=latency,
        )

    def act_many(self, asks: Sequence[Ask], reasoning: Reasoning | None) -> Iterator[Act]:
        """Sentences and chunks about many observations, as if asked one after the other; the first ones come early.

        Only what does not depend on the chunk before is shared out in batches; with real-time chunking nothing is.
        """
        if self._settings.realtime != 'off' or len(asks) < 2:
            yield from self._one_by_one(asks, reasoning)
            return
        with self._lanes('chunk'):
            yield from act_all(self._together(), [Turn(self, asks, reasoning)])

    def member(self) -> InstructVLAPolicy:
        """One more episode on these weights: settings and everything remembered are its own."""
        return self.with_settings(capture='off', compile=False)

    def act_each(
        self, members: Sequence[object], asks: Sequence[Ask], reasonings: Sequence[Reasoning | None]
    ) -> list[Act]:
        """What each member says and does about its observation, as if asked alone, in batches."""
        told = list(zip(cast(Sequence[InstructVLAPolicy], members), asks, reasonings, strict=True))
        if len(told) < 2 or any(m._settings.realtime != 'off' for m, _, _ in told):
            return [act for m, ask, reasoning in told for act in m._one_by_one([ask], reasoning)]
        with self._lanes('chunk'):
            turns = [Turn(m, [ask], reasoning) for m, ask, reasoning in told]
            return list(act_all(self._together(), turns))

    def _together(self) -> Together:
        return Together(self._bundle, self._euler_steps)

    def _one_by_one(self, asks: Sequence[Ask], reasoning: Reasoning | None) -> Iterator[Act]:
        for ask in asks:
            said = self.think(ask.observation) if ask.think else None
            reasoning = said or reasoning
            yield Act(said, self.infer(ask.observation, reasoning))

    def warm_up(self) -> None:
        """Run everything once on black images, so that the first real call is not slower; the state is reset."""
        size = np.zeros((64, 64, 3), np.uint8)
        observation = Observation(
            stamp_ns=0,
            views={name: size for name in self._view_names},
            proprio=np.zeros(8),
            q=np.zeros(0),
            dq=np.zeros(0),
            frame_id=self._embodiment.base_frame,
            instruction='warm up',
        )
        log.info('warming up ...')
        warm_up(
            self._engine,
            self._bundle,
            steps=self._euler_steps,
            guided=self._settings.realtime == 'guided',
            beta=self._beta,
            say=log.info,
        )
        self.infer(observation, self.think(observation))
        self.reset()
        self._continuation.reset(latencies=True)

    def _since(self, started: float) -> float:
        """Time that passed for the robot [s]; less than on the clock where a simulator runs slower than that."""
        return (time.perf_counter() - started) * self._settings.sim_speed

    def _speak(self, observation: Observation, prompt: np.ndarray, words: str, kind: ReasoningKind) -> Reasoning:
        started = time.perf_counter()
        prompts, plan = self._bundle.prompts, kind is ReasoningKind.PLAN
        stream = self.stream if plan else None
        with self._lock:
            epoch = self._epoch
        # An answer belongs to no instruction: the start of one does not cut it short.
        stop = (lambda: epoch != self._epoch) if plan else None
        session = self._engine.begin(self._frame(observation).pixels)
        tokens: list[int] = []
        name = new_id('say')

        def so_far(final: bool) -> Reasoning:
            return Reasoning(
                id=name,
                stamp_ns=observation.stamp_ns,
                instruction=words,
                text=prompts.response(tokens),
                kind=kind,
                tokens=len(tokens),
                latency=self._since(started),
                final=final,
                source=self.name,
            )

        def heard(token: int) -> None:
            tokens.append(token)
            if stream is not None:
                stream(so_far(False))

        ids = torch.from_numpy(prompt)[None].to(self._bundle.model.device)
        self._engine.sentence(session, ids, end_id=prompts.end_id, on_token=heard, stop=stop)
        reasoning = so_far(stop is None or not stop())
        if plan and reasoning.final:
            fed = prompts.response(tokens, self._bundle.config.response)
            with self._lock:
                if epoch == self._epoch:
                    self._said = (reasoning.id, observation.stamp_ns, session, fed)
        return reasoning

    def _conclude(self, frame: Frame, instruction: str, reasoning: Reasoning | None) -> tuple[Thought, Session]:
        """Latent of this frame, and the session it was read in: the sentence's when it is about this frame."""
        response, reasoning_id = self._words(instruction, reasoning)
        session = None
        with self._lock:
            if self._said is not None and self._said[:2] == (reasoning_id, frame.stamp_ns):
                session = self._said[2]
                # One thread at a time writes into a session: it now belongs to this call.
                self._said = (reasoning_id, frame.stamp_ns, None, self._said[3])
        ids = torch.from_numpy(self._bundle.prompts.action(instruction, response))[None].to(self._bundle.model.device)
        session = session or self._engine.begin(frame.pixels)
        return Thought(self._engine.latent(session, ids), instruction, reasoning_id), session

    def _words(self, instruction: str, reasoning: Reasoning | None, fed: str | None = None) -> tuple[str | None, str]:
        """What the action prompt is told of a sentence, None if it is about something else, and the sentence's id.

        Args:
            fed: the model's own form of this sentence, where the caller knows it.
        """
        if (
            reasoning is None
            or reasoning.kind is not ReasoningKind.PLAN
            or reasoning.instruction != instruction
            or not reasoning.text
        ):
            return None, ''
        with self._lock:
            if fed is None and self._said is not None and self._said[0] == reasoning.id:
                fed = self._said[3]
        return reasoning.text if fed is None else fed, reasoning.id

    def prepare(self, observation: Observation, keep: int = 2) -> None:
        """Bring the pictures of an observation to the sizes of the model; ``think`` and ``infer`` then find them."""
        self._pictures(observation, keep)

    def _frame(self, observation: Observation) -> Frame:
        pixels, views = self._pictures(observation)
        device, proprio = self._bundle.model.device, None
        if self._bundle.config.proprio:
            normalized = self._statistics.normalize_proprio(observation.proprio).astype(np.float32)
            proprio = upload(torch.from_numpy(normalized)[None], device)
        return Frame(
            observation.stamp_ns,
            upload(torch.from_numpy(pixels)[None], device),
            upload(torch.from_numpy(views)[None], device),
            proprio,
        )

    def _pictures(self, observation: Observation, keep: int = 2) -> tuple[Floats, Floats]:
        """Pixels (3, S, S) of the VLM, views (V, 3, S', S') of DINO; kept for the next call with this very object."""
        known = self._prepared.get(id(observation))
        if known is not None:
            return known[1:]
        config = self._bundle.config
        absent = [n for n in self._view_names if n not in observation.views]
        if absent:
            raise ObservationError(
                f'the observation lacks the views {", ".join(absent)}; it has {", ".join(observation.views) or "none"}'
            )
        frames = [observation.views[n] for n in self._view_names]
        quick = self._settings.resize == 'quick'
        pixels = siglip_pixels(join_views(frames), config.vision.image_size, quick)
        views = np.stack([dino_pixels(f, config.dino.image_size, quick) for f in frames])
        # The observation is kept with them: as long as it lives nothing else has its id.
        with self._lock:
            newest = list(self._prepared.items())[max(len(self._prepared) - keep + 1, 0) :]
            self._prepared = {**dict(newest), id(observation): (observation, pixels, views)}
        return pixels, views

    def with_settings(self, **changes: object) -> InstructVLAPolicy:
        """Same weights with other settings (for measurements of periods and Euler steps)."""
        return InstructVLAPolicy(self._bundle, dataclasses.replace(self._settings, **changes), self._embodiment)  # type: ignore[arg-type]
