"""Many observations at once: of a recording, or of several episodes that go on side by side.

A small model on a fast CPU, and a large one on a GPU, spends much of its time on being called. Rows of similar length
are read in one call, the shorter ones padded; the numbers differ from those of single calls only by the rounding of
other matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .checkpoint import Bundle
from .fast import FastPath, Session
from .instructvla import InstructVLA

MOST = 16
"""Rows of one call; more do not make it faster, and every row of a sentence has its caches."""

WASTE = 1.5
"""Longest prompt of a call, as a multiple of its shortest."""

Prompt = tuple[Tensor, np.ndarray]
"""Pixels (1, 3, S, S) and token ids (N,)."""


class _Ragged(FastPath):
    """The fast path for prompts of unlike lengths, padded at the right.

    Causality hides the padding from the prompt; from the sentence that grows behind it a mask does.

    Args:
        lengths: of the prompts without their padding.
    """

    def __init__(self, model: InstructVLA, lengths: Sequence[int]) -> None:
        super().__init__(model)
        self._lengths = torch.tensor(lengths, device=model.device)[:, None]
        self._wide = max(lengths)

    def _last(self, ids: Tensor) -> Tensor:
        return self._lengths - 1

    def _next(self, session: Session, token: Tensor) -> tuple[Tensor, Tensor]:
        vlm, ids, past = self.model.vlm, token[:, None], session.length
        self._make_room(session, past + 1)
        keys = torch.arange(past + 1, device=ids.device)
        where = {
            'mask': ((keys < self._lengths) | (keys >= self._wide))[:, None, None],
            'positions': self._lengths + (past - self._wide),
        }
        x = vlm.lookup(ids)
        gate = vlm.rank_gate(x, session.base, **where)
        hidden = vlm.decoder(x, gate=gate, cache=session.adapted, **where)
        session.ids = torch.cat((session.ids, ids), dim=1)
        return self._choose(hidden)


class Together:
    """Batches of the fast path.

    Args:
        bundle: weights and prompts. euler_steps: of a chunk; 0: as the model has it.
    """

    def __init__(self, bundle: Bundle, euler_steps: int = 0) -> None:
        self._model, self._end, self._pad = bundle.model, bundle.prompts.end_id, bundle.prompts.pad_id
        self._path, self._steps = FastPath(bundle.model), euler_steps or bundle.config.euler_steps

    def sentences(self, prompts: Sequence[Prompt], total: int = 0) -> list[list[int]]:
        """Tokens of the greedy sentence of each prompt.

        Args:
            total: most tokens of prompt and sentence together; 0: as long as the model lets a sentence be.
        """
        out: list[list[int]] = [[]] * len(prompts)
        for rows, pixels, ids, lengths in self._groups(prompts):
            limits = [max(1, total - n) if total else self._model.config.max_new_tokens for n in lengths]
            path = _Ragged(self._model, lengths)
            told = path.sentence(path.begin(pixels), ids, end_id=self._end, limit=max(limits))
            for row, tokens, limit in zip(rows, told, limits, strict=True):
                out[row] = tokens[:limit]
        return out

    def latents(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Latent (1, queries, d) of each action prompt."""
        out: list[Tensor] = [torch.empty(0)] * len(prompts)
        for rows, pixels, ids, _ in self._groups(prompts):
            for row, latent in zip(rows, self._path.latent(self._path.begin(pixels), ids).split(1), strict=True):
                out[row] = latent
        return out

    def chunks(
        self,
        latents: Sequence[Tensor],
        views: Sequence[Tensor],
        proprio: Sequence[Tensor | None],
        noise: Sequence[Tensor],
    ) -> Tensor:
        """Normalised actions (n, H, 7) before clipping, of lists of n rows as :meth:`FastPath.chunk` takes them."""
        out = []
        for first in range(0, len(latents), MOST):
            part = slice(first, first + MOST)
            known = [p for p in proprio[part] if p is not None]
            out.append(
                self._path.chunk(
                    torch.cat(tuple(latents[part])),
                    torch.cat(tuple(views[part])),
                    torch.cat(known) if known else None,
                    torch.cat(tuple(noise[part])),
                    steps=self._steps,
                )
            )
        return torch.cat(out)

    def _groups(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], Tensor, Tensor, list[int]]]:
        """Positions, pixels (B, 3, S, S), ids (B, N) padded at the right, and lengths, of at most :data:`MOST`."""
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row][1]))
        while order:
            shortest = len(prompts[order[0]][1])
            part = [row for row in order[:MOST] if len(prompts[row][1]) <= WASTE * shortest]
            order = order[len(part) :]
            lengths = [len(prompts[row][1]) for row in part]
            ids = np.full((len(part), lengths[-1]), self._pad, dtype=np.int64)
            for k, row in enumerate(part):
                ids[k, : lengths[k]] = prompts[row][1]
            yield part, torch.cat([prompts[r][0] for r in part]), torch.from_numpy(ids).to(self._model.device), lengths
