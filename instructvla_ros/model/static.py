"""The fast path in fixed shapes and fixed buffers, so that a GPU can replay it as graphs; the same numbers.

Prompts are padded at the right to a multiple of :data:`BUCKET` tokens, where nothing can see the padding. Caches have
one capacity; a pass that goes on in them writes at places given by a tensor and masks what is not valid. The pieces
are: the vision tower with its projector, a prompt from the beginning, a prompt that goes on (a sentence before the
latent queries), one token of a sentence, and a chunk (DINO, the prefix, all Euler steps, guided or not).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .decoder import KVCache, PlacedCache
from .fast import FastPath, Session
from .flow import integrate
from .graphs import Graphs, Lanes, Options, Pool, Slot, Tensors
from .instructvla import InstructVLA
from .realtime import Guide, per_number, pulled, soft_mask

BUCKET = 32
TEXT_ROOM = 384  # tokens of prompt and instruction beside the image that a buffer has room for
MOST_SLOTS = 4  # frames that may be read at the same time; beyond, and for longer prompts, the plain fast path serves


class CacheSlot(Slot):
    """A slot with the key and value caches of one session: adapted, and base where a gate needs it."""

    def __init__(self, graphs: Graphs, caches: list[KVCache]) -> None:
        super().__init__(graphs)
        self.caches = caches
        self.state = tuple(c.data for c in caches)

    def clear(self) -> None:
        """Forget everything: masked places are multiplied by zero, and what is not a number would survive that."""
        self.wait()
        for cache in self.caches:
            cache.data.zero_()
            cache.length = 0


@dataclass(eq=False)
class StaticSession(Session):
    """A session in the buffers of a slot; without one it is read by the plain fast path."""

    slot: CacheSlot | None = None

    def fits(self, count: int) -> bool:
        """Whether ``count`` more tokens have room in the buffers of the slot."""
        # A prompt that outgrew them has moved to caches of its own.
        mine = self.slot is not None and (self.adapted is None or self.adapted is self.slot.caches[0])
        return mine and self.slot is not None and self.length + count <= self.slot.caches[0].capacity


class StaticPath(FastPath):
    """:class:`~.fast.FastPath` from fixed buffers. Threads may work on a session each and on chunks meanwhile.

    Args:
        model: the weights; not changed.
        graphs: how the pieces run.
    """

    def __init__(self, model: InstructVLA, graphs: Graphs) -> None:
        super().__init__(model)
        self.graphs = graphs
        room = model.config.vision.image_tokens + TEXT_ROOM + model.config.max_new_tokens + model.config.queries
        self.capacity = padded(room, 2 * BUCKET)
        self._sessions: dict[int, Pool[CacheSlot]] = {}
        self._experts: Pool[Slot] = Pool(lambda: Slot(graphs), MOST_SLOTS)

    # -- System 2 ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def begin(self, pixels: Tensor) -> Session:
        """Start on images (B, 3, S, S), one per row; the buffers are free again when the session is dropped."""
        pool = self._sessions.setdefault(len(pixels), Pool(partial(self._new_slot, len(pixels)), MOST_SLOTS))
        slot = pool.take()
        if slot is None:
            return super().begin(pixels)
        try:
            slot.clear()
            (images,) = slot.run('vision tower', self._see, (pixels,))
            session = StaticSession(images, torch.zeros(len(pixels), 0, dtype=torch.long, device=images.device))
        except BaseException:
            pool.give(slot)
            raise
        session.slot = slot
        weakref.finalize(session, pool.give, slot).atexit = False
        return session

    def _new_slot(self, batch: int) -> CacheSlot:
        vlm = self.model.vlm
        count = 1 if vlm.gate is None else 2
        return CacheSlot(
            self.graphs, [vlm.decoder.new_cache(batch, self.capacity, vlm.query_embed) for _ in range(count)]
        )

    def _make_room(self, session: Session, length: int) -> None:
        if isinstance(session, StaticSession) and session.slot is not None and session.adapted is None:
            session.adapted = session.slot.caches[0]
            if len(session.slot.caches) > 1:
                session.base = session.slot.caches[1]
        super()._make_room(session, length)

    def _extend(self, session: Session, ids: Tensor, x: Tensor, rows: Tensor | None) -> Tensor:
        count, wide = ids.shape[1], padded(ids.shape[1], BUCKET)
        if rows is None or not isinstance(session, StaticSession) or not session.fits(wide) or session.slot is None:
            return super()._extend(session, ids, x, rows)
        self._make_room(session, session.length + count)
        slot, wanted = session.slot, (F.pad(x, (0, 0, 0, wide - count)), rows)
        if session.length == 0:
            (hidden,) = slot.run('prompt', self._read_whole, wanted, slot.state)
        else:
            given = (*wanted, self._place(session, x))
            (hidden,) = slot.run('rest of a prompt', self._read_on, given, slot.state)
        self._grow(session, ids)
        return hidden

    def _next(self, session: Session, token: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(session, StaticSession) or not session.fits(1) or session.slot is None:
            return super()._next(session, token)
        ids = token[:, None]
        given = (ids, self._place(session, ids))
        scores, following = session.slot.run('token', self._speak, given, session.slot.state)
        self._grow(session, ids)
        return scores, following

    @staticmethod
    def _place(session: Session, like: Tensor) -> Tensor:
        return torch.full((1,), session.length, dtype=torch.long, device=like.device)  # no copy from the host

    @staticmethod
    def _grow(session: Session, ids: Tensor) -> None:
        session.ids = torch.cat((session.ids, ids), dim=1)
        for cache in (session.base, session.adapted):
            if cache is not None:
                cache.length = session.length

    # -- System 1 ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def chunk(
        self,
        latent: Tensor,
        views: Tensor,
        proprio: Tensor | None,
        noise: Tensor,
        *,
        steps: int = 10,
        mask: str | None = None,
        trace: list[Tensor] | None = None,
        guide: Guide | None = None,
    ) -> Tensor:
        """See :meth:`FastPath.chunk`; with a ``trace`` it is that one."""
        slot = self._experts.take() if trace is None else None
        if slot is None:
            return super().chunk(latent, views, proprio, noise, steps=steps, mask=mask, trace=trace, guide=guide)
        given: Tensors = (latent, views, noise)
        options: Options = (('steps', steps), ('mask', mask or self.model.config.expert.mask))
        work: Callable[..., Tensors] = self._act
        horizon = noise.shape[1]
        if guide is not None and guide.execution_steps < horizon and guide.beta > 0.0:
            weights = per_number(soft_mask(horizon, guide.delay_steps, guide.execution_steps))
            given += tuple(torch.from_numpy(v).to(noise.device, torch.float32) for v in (guide.previous, weights))
            options += (('beta', guide.beta),)
            work = self._act_guided
        try:
            (out,) = slot.run('chunk', work, given if proprio is None else (*given, proprio), (), options)
        finally:
            self._experts.give(slot)
        return out

    # -- the pieces: nothing in them depends on a value, only on shapes and options ----------------------------------

    def _see(self, pixels: Tensor) -> Tensors:
        """Images (B, 3, S, S) -> image tokens (B, tokens, d)."""
        return (self.model.vlm.image_tokens(pixels),)

    def _read_whole(self, x: Tensor, rows: Tensor, adapted: Tensor, *base: Tensor) -> Tensors:
        """Hidden states (B, R, d) at rows (B, R) of embeddings x (B, n, d) that fill the caches from the beginning."""
        vlm = self.model.vlm
        gate = vlm.rank_gate(x, KVCache(base[0]) if base else None)
        return (vlm.decoder(x, gate=gate, cache=KVCache(adapted), rows=rows),)

    def _read_on(self, x: Tensor, rows: Tensor, start: Tensor, adapted: Tensor, *base: Tensor) -> Tensors:
        """The same for embeddings that go on at position ``start`` (1,)."""
        return (self._append(x, rows, start, adapted, *base),)

    def _speak(self, ids: Tensor, start: Tensor, adapted: Tensor, *base: Tensor) -> Tensors:
        """Scores (B, vocabulary) and best token (B,) after the tokens ids (B, 1) at position ``start`` (1,)."""
        return self._choose(self._append(self.model.vlm.lookup(ids), None, start, adapted, *base))

    def _append(self, x: Tensor, rows: Tensor | None, start: Tensor, adapted: Tensor, *base: Tensor) -> Tensor:
        vlm = self.model.vlm
        places = start + torch.arange(x.shape[1], device=x.device)
        mask = torch.arange(adapted.shape[4], device=x.device) <= places[:, None]
        old = PlacedCache(base[0], places) if base else None
        gate = vlm.rank_gate(x, old, mask=mask, positions=places)
        out: Tensor = vlm.decoder(
            x, gate=gate, mask=mask, positions=places, cache=PlacedCache(adapted, places), rows=rows
        )
        return out

    def _act(self, latent: Tensor, views: Tensor, noise: Tensor, *proprio: Tensor, steps: int, mask: str) -> Tensors:
        """Chunk (B, H, 7)."""
        return (integrate(self._velocity(latent, views, proprio, mask), noise, steps),)

    def _act_guided(
        self,
        latent: Tensor,
        views: Tensor,
        noise: Tensor,
        previous: Tensor,
        weights: Tensor,
        *proprio: Tensor,
        steps: int,
        mask: str,
        beta: float,
    ) -> Tensors:
        """Chunk (B, H, 7) pulled towards ``previous`` (H, 7) with weights (H, 7)."""
        velocity = self._velocity(latent, views, proprio, mask)
        return (pulled(velocity, noise, previous[None], weights, beta, steps),)

    def _velocity(
        self, latent: Tensor, views: Tensor, proprio: Tensors, mask: str
    ) -> Callable[[Tensor, Tensor], Tensor]:
        prefix = self.model.expert.prefix(latent, views, proprio[0] if proprio else None)
        return self._blocked(prefix) if mask == 'block' else self._biased(prefix)


def padded(count: int, multiple: int) -> int:
    """The next multiple, at least one."""
    return max(-(-count // multiple), 1) * multiple


def make_engine(model: InstructVLA, capture: str = 'auto', compile: bool = False) -> FastPath:
    """Inference for a model where it is.

    Args:
        capture: 'auto' records CUDA graphs on a GPU and is the plain fast path elsewhere; 'off' is the plain fast
            path; 'on' takes fixed shapes everywhere, recorded where there is a GPU.
        compile: ``torch.compile`` of the pieces in fixed shapes; implies 'on' unless capture is 'off'.
    """
    if capture == 'off' or (capture == 'auto' and model.device.type != 'cuda' and not compile):
        return FastPath(model)
    return StaticPath(model, Graphs(model.device, compile))


def make_lanes(engine: FastPath, urgent: str) -> Lanes:
    """Streams for the threads that share an engine; one and the same where buffers are not kept apart by slots."""
    device = engine.model.device if isinstance(engine, StaticPath) else torch.device('cpu')
    return Lanes(device, urgent)
