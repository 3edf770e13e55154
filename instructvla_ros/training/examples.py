"""From stored frames to batches: which frames, which words, which labels. Everything follows from (seed, step)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.prompts import CAPTION_REQUESTS, Mix, sample_dialog
from ..errors import DataError
from ..geometry import Array
from ..model.flow import sample_time
from ..model.images import dino_scale, siglip_scale
from ..model.instructvla import Batch
from ..model.prompt import Encoded, Message, PromptEncoder
from ..model.statistics import Statistics
from ..sim.reasons import listed
from ..wording import REASON
from .augment import augment
from .corpus import Texts, Variant
from .frames import OBJECTS, FrameStore, in_crop, in_joined
from .settings import Training

COLORS = ('red', 'green', 'blue', 'yellow', 'orange', 'purple', 'white', 'black')
SHAPES = ('cube', 'ball', 'cylinder', 'bowl', 'plate')
SIZES = ('small', 'medium', 'large')
COMMANDS, TOLD, FACTS, CAPTIONS = 0.15, 0.2, 0.25, 0.6
"""Of the dialogues without motion: plain commands, instructions for a scene told in words, and facts about words. Of
those about a picture: captions, which name everything in it in order and so teach most."""
CLASSES = len(COLORS) * len(SHAPES) + 1
"""Colour and shape together, and the drawer."""
PHASE_WEIGHTS = {'approach': 0.7, 'descend': 1.3, 'close': 1.6, 'open': 1.3, 'lower': 1.4, 'release': 1.5, 'lift': 0.8}

UNTOUCHED = ('', 'still', 'approach', 'descend')


@dataclass(frozen=True)
class Labels:
    """Where the objects of each frame are.

    Attributes:
        joined: (B, V, objects, 2) 0..1 in the VLM's square. crops: the same in DINO's crops; nan when unseen.
        kinds: (B, objects) class or -1. sizes: (B, objects) or -1. target, destination: (B,) position or -1.
    """

    joined: Tensor
    crops: Tensor
    kinds: Tensor
    sizes: Tensor
    target: Tensor
    destination: Tensor

    def to(self, device: torch.device) -> Labels:
        """Copy on a device."""
        return Labels(**{k: v.to(device) for k, v in vars(self).items()})


def class_of(color: str, category: str) -> int:
    """Class of an object for the patch labels; -1 for words that are not known."""
    if category == 'drawer':
        return CLASSES - 1
    if color not in COLORS or category not in SHAPES:
        return -1
    return SHAPES.index(category) * len(COLORS) + COLORS.index(color)


class Examples:
    """Draws batches from one dataset.

    Args:
        held_out: draw from the validation episodes instead of the others.
        facts: questions about words with answers, which need no picture.
    """

    def __init__(
        self,
        store: FrameStore,
        corpus: Sequence[Texts],
        prompts: PromptEncoder,
        statistics: Statistics | None,
        options: Training,
        image_size: int,
        held_out: bool = False,
        facts: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.facts = facts
        self.store, self.corpus, self.prompts = store, corpus, prompts
        self.statistics, self.options, self.image_size = statistics, options, image_size
        self.mix = Mix(**{k: getattr(options.mixture, k) for k in ('plain', 'qa', 'cc', 'cr', 'primitive')})
        self.stage = 1 if options.recipe == 'stage1' else 2
        self.views = store.views.shape[1]
        self.held_out = held_out
        keep = np.array([is_held_out(t.id, options.held_out) == held_out for t in store.texts])
        if not options.retell:
            keep &= np.array([t.success is not False for t in store.texts])
        self.rows = store.of_episodes(keep)
        if options.retell:  # what is said about places holds until something has been moved
            self.rows = np.array([r for r in self.rows if self._phase(int(r)) in UNTOUCHED], int)
        if not len(self.rows):
            raise DataError(
                f'{store.place.parent.parent} has no episodes {"held out" if held_out else "to train on"}: '
                f'{len(keep)} in all, {sum(t.success is False for t in store.texts)} of them failed'
            )
        starts = self.rows[store.frame[self.rows] == 0]
        self.first = starts if len(starts) else self.rows
        weights = np.array([self._weight(int(r)) for r in self.rows])
        self.cumulative = np.cumsum(weights / weights.sum())
        self.kinds = np.full((len(store.texts), OBJECTS), -1)
        self.sizes = np.full((len(store.texts), OBJECTS), -1)
        for k, text in enumerate(store.texts):
            for j, thing in enumerate(text.info.get('objects', ())[:OBJECTS]):
                self.kinds[k, j] = class_of(thing['color'], thing['category'])
                self.sizes[k, j] = SIZES.index(thing['size']) if thing['size'] in SIZES else -1

    def _phase(self, row: int) -> str:
        phases = self.store.texts[self.store.episode[row]].info.get('phases')
        return str(phases[self.store.frame[row]]) if phases else ''

    def _weight(self, row: int) -> float:
        return PHASE_WEIGHTS.get(self._phase(row), 1.0)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Batch, Labels]:
        """A random batch; the motion is left out when the words may ask for something the episode does not do."""
        each = self.options.tellings
        draws = rng.random(-(-count // each))
        rows = self.rows[np.minimum(np.searchsorted(self.cumulative, draws), len(self.rows) - 1)]
        return self.batch(np.repeat(rows, each)[:count], rng)

    def batch(self, rows: Array, rng: np.random.Generator, plain: bool = False) -> tuple[Batch, Labels]:
        """Batch of given frames. ``plain``: the episode's own instruction without any answer."""
        store, options = self.store, self.options
        chosen, encoded = [], []
        for row in rows:
            texts = self.corpus[store.episode[row]]
            variant = texts.variants[0]
            if options.retell and not plain:
                variant = texts.variants[int(rng.integers(len(texts.variants)))]
            chosen.append(variant)
            encoded.append(self._words(texts, variant, int(store.frame[row]), rng, plain))
        ids, labels = self.prompts.collate(encoded)
        shown, which = np.unique(rows, return_inverse=True) if options.tellings > 1 else (rows, None)
        joined, views = np.array(store.joined[shown]), np.array(store.views[shown])
        if not self.held_out:
            joined, views = augment(joined, views, options.augment, rng)
        if which is not None and options.acts:
            views = views[which]
        batch = Batch(
            ids=torch.from_numpy(ids),
            labels=torch.from_numpy(labels),
            pixels=torch.from_numpy(siglip_scale(joined)),
            views=torch.from_numpy(dino_scale(views)) if options.acts else None,
            picture=None if which is None else torch.from_numpy(which),
            **self._motion(rows, rng),
        )
        return batch, self._labels(rows, chosen)

    def general(self, rng: np.random.Generator, count: int) -> Batch:
        """Dialogues without motion: captions and questions about one picture, and what needs none and costs little.

        The latter are plain commands, from which a small model learns to repeat names, instructions for a scene that
        is told in words, from which it learns what they refer to, and facts about words.
        """
        encoded: list[Encoded] = []
        shown: list[int] = []  # rows whose picture is needed
        which: list[int] = []  # of them, for each dialogue with a picture
        row = -1
        for k in range(count):
            if k % self.options.tellings == 0:
                row = int(self.first[int(rng.integers(len(self.first)))])
            texts = self.corpus[self.store.episode[row]]
            pair = self._asked(texts, rng)
            draw = rng.random()
            if self.facts and (pair is None or draw < COMMANDS + TOLD + FACTS):
                encoded.append(self.prompts.dialog(_turns(*self._unseen(texts, draw, rng)), images=0))
            elif pair is not None:
                if not shown or shown[-1] != row:
                    shown.append(row)
                which.append(len(shown) - 1)
                encoded.append(self.prompts.dialog(_turns(*pair)))
        if not encoded:
            raise DataError(f'{self.store.place.parent.parent} has no captions or questions: set general_batch to 0')
        ids, labels = self.prompts.collate(encoded)
        pixels = torch.from_numpy(siglip_scale(np.array(self.store.joined[shown]))) if shown else None
        picture = torch.tensor(which) if len(which) > len(shown) else None
        return Batch(torch.from_numpy(ids), torch.from_numpy(labels), pixels, picture=picture)

    def _unseen(self, texts: Texts, draw: float, rng: np.random.Generator) -> tuple[str, str]:
        said = None
        if draw < COMMANDS + TOLD:
            said = _command(texts, rng) if draw < COMMANDS else _told(texts, rng)
        return said or self.facts[int(rng.integers(len(self.facts)))]

    @staticmethod
    def _asked(texts: Texts, rng: np.random.Generator) -> tuple[str, str] | None:
        options = [(q, a) for q, a in texts.questions]
        if texts.captions:
            request = CAPTION_REQUESTS[int(rng.integers(len(CAPTION_REQUESTS)))]
            told = (request, texts.captions[int(rng.integers(len(texts.captions)))])
            if not options or rng.random() < CAPTIONS:
                return told
        return options[int(rng.integers(len(options)))] if options else None

    def _words(self, texts: Texts, variant: Variant, frame: int, rng: np.random.Generator, plain: bool) -> Encoded:
        instruction = variant.plain[int(rng.integers(len(variant.plain)))]
        if plain:
            return self.prompts.dialog(self.prompts.action_messages(instruction))
        entry = texts.annotations(variant, rng)
        dialog = sample_dialog(instruction, entry, frame, rng, self.stage, self.prompts.query_text, self.mix)
        return self.prompts.dialog(dialog.messages)

    def _motion(self, rows: Array, rng: np.random.Generator) -> dict[str, Tensor | None]:
        store, options = self.store, self.options
        if options.retell or not options.acts or self.statistics is None or not store.has_actions:
            return {}
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        actions = self.statistics.normalize(store.actions[rows]).astype(np.float32)
        b, h, width = actions.shape
        draws = (options.draws,) if options.draws > 1 else ()
        proprio = None
        if self.statistics.proprio_q01 is not None:
            proprio = torch.from_numpy(self.statistics.normalize_proprio(store.proprio[rows]).astype(np.float32))
        return {
            'actions': torch.from_numpy(actions),
            'proprio': proprio,
            'noise': torch.randn((b, *draws, h, width), generator=generator),
            't': sample_time(b * options.draws, generator).reshape(b, *draws),
            'valid': torch.from_numpy(np.array(store.valid[rows])),
        }

    def _labels(self, rows: Array, chosen: Sequence[Variant]) -> Labels:
        store = self.store
        points, episodes = np.array(store.points[rows]), store.episode[rows]
        sizes = list(store.meta.views.values())
        crops = np.stack([in_crop(points[:, v], *sizes[v], self.image_size) for v in range(self.views)], axis=1)
        return Labels(
            torch.from_numpy(in_joined(points, self.views)),
            torch.from_numpy(crops),
            torch.from_numpy(self.kinds[episodes]),
            torch.from_numpy(self.sizes[episodes]),
            torch.tensor([v.target for v in chosen]),
            torch.tensor([v.destination for v in chosen]),
        )


def _command(texts: Texts, rng: np.random.Generator) -> tuple[str, str] | None:
    """A plain command with its answer, asked as an instruction is; None for episodes without answers."""
    variant = texts.variants[int(rng.integers(len(texts.variants)))]
    if not variant.rewritten or len(variant.plain) < 2:
        return None
    # The first is the sentence of the episode, which may say more than the answer repeats.
    command = variant.plain[int(rng.integers(1, len(variant.plain)))]
    return REASON.format(command), variant.rewritten[0][1]


def _told(texts: Texts, rng: np.random.Generator) -> tuple[str, str] | None:
    """An instruction with its answer, behind words for what stands there; None for episodes without either.

    The words are the list of the answer, where looking decides, or a caption.
    """
    variant = texts.variants[int(rng.integers(len(texts.variants)))]
    pools = [pool for pool in (variant.rewritten, variant.situated) if pool]
    if not pools or not texts.captions:
        return None
    pool = pools[int(rng.integers(len(pools)))]
    instruction, answer = pool[int(rng.integers(len(pool)))]
    scene = listed(answer) or texts.captions[int(rng.integers(len(texts.captions)))]
    return f'{scene} {REASON.format(instruction)}', answer


def _turns(question: str, answer: str) -> list[Message]:
    return [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]


def is_held_out(episode_id: str, share: float) -> bool:
    """Whether an episode belongs to the validation set: a hash of its id, so that it never changes sides."""
    return int(hashlib.sha256(episode_id.encode()).hexdigest()[:8], 16) / 16**8 < share
