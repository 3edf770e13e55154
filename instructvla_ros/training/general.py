"""General conversations about pictures, co-trained so that a model keeps what it knew (specification 9.9)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..data.conversations import IN_A_ROW, Conversations, Sample
from ..errors import DataError
from ..model.checkpoint import Bundle
from ..model.images import siglip_scale, siglip_square
from ..model.instructvla import Batch
from ..model.prompt import Encoded, PromptEncoder
from .settings import Training

log = logging.getLogger(__name__)
LONGEST = 1024
"""Tokens of a dialogue; longer ones are cut on the right."""
HELD_OUT = 0.05
MOST_HELD_OUT = 2000
PATTERN = 97


class General:
    """Conversations as training batches. About one in twenty is never drawn: those measure forgetting.

    Attributes:
        held_out: (n,) numbers of the samples that are kept back.
        faults: samples that could not be used. fault: the first of them in words.
    """

    def __init__(self, source: Conversations, prompts: PromptEncoder, image_size: int) -> None:
        self.source, self.prompts, self.image_size = source, prompts, image_size
        self.faults, self.fault = 0, ''
        at = np.arange(len(source))
        # A fixed pattern, so that a longer file of the same samples holds the same ones back.
        aside = (at * 61 + 17) % PATTERN < HELD_OUT * PATTERN
        if len(source) > 1 and not aside.any():
            aside[-1] = True
        self.held_out = at[aside][:MOST_HELD_OUT]
        self._train = at[~aside]

    @staticmethod
    def open(options: Training, bundle: Bundle) -> General:
        """Conversations of the options.

        Raises:
            DataError: no such file, a folder with none or several, or nothing in it.
        """
        return General(Conversations.open(find(options.general)), bundle.prompts, bundle.config.vision.image_size)

    def draw(self, rng: np.random.Generator, count: int) -> Batch:
        """Random dialogues of the training part; samples that cannot be used are passed over and counted."""
        return self.batch([self._sample(rng) for _ in range(count)])

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Batch of dialogues, each cut at :data:`LONGEST` tokens."""
        encoded = [cut(self.prompts.dialog(s.messages, images=0 if s.image is None else 1)) for s in samples]
        pictures = [siglip_square(s.image, self.image_size, quick=True) for s in samples if s.image is not None]
        ids, labels = self.prompts.collate(encoded)
        pixels = torch.from_numpy(siglip_scale(np.stack(pictures))) if pictures else None
        return Batch(torch.from_numpy(ids), torch.from_numpy(labels), pixels)

    def read(self, k: int) -> Sample | None:
        """Sample k; None when it cannot be used, which is counted."""
        try:
            return self.source.read(k)
        except DataError as err:
            if not self.faults:
                self.fault = str(err)
                log.warning('passed over: %s', err)
            self.faults += 1
            return None

    def _sample(self, rng: np.random.Generator) -> Sample:
        for _ in range(IN_A_ROW):
            found = self.read(int(rng.choice(self._train)))
            if found is not None:
                return found
        raise DataError(f'{self.source.file}: {self.faults} samples cannot be used, the first because {self.fault}')


def cut(encoded: Encoded) -> Encoded:
    """At most :data:`LONGEST` tokens."""
    return Encoded(encoded.ids[:LONGEST], encoded.labels[:LONGEST])


def find(path: str | Path) -> Path:
    """The file itself, or the only .json or .jsonl file of a folder."""
    place = Path(path).expanduser()
    if not place.is_dir():
        return place
    files = sorted(f for f in place.iterdir() if f.suffix in ('.json', '.jsonl') and f.is_file())
    if len(files) != 1:
        raise DataError(f'{place} holds {len(files)} .json or .jsonl files; name the file of the conversations')
    return files[0]
