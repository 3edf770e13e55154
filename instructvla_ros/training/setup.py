"""What a run starts from: datasets with their sentences, the model of its recipe, statistics, examples."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from ..model.checkpoint import Bundle, create, load
from ..model.config import ModelConfig, preset
from ..model.statistics import Statistics, read_statistics
from ..model.tokenizer import train_tokenizer
from ..model.trainable import set_trainable, to_stage2
from ..sim.phrasebook import knowledge
from ..wording import ACTION, PRIMITIVE, REASON
from .corpus import Texts, every_sentence, read_corpus
from .examples import Examples
from .frames import FrameStore, open_frames
from .normalise import statistics_of
from .settings import Training

log = logging.getLogger(__name__)
DATASET = 'train'


@dataclass
class Run:
    """Everything a run needs.

    Attributes:
        train, held_out: one per dataset; ``held_out`` only of those with validation episodes.
        shares: of each dataset, adding up to 1. trainable: names of the parameters.
    """

    options: Training
    bundle: Bundle
    train: list[Examples]
    held_out: list[Examples]
    shares: np.ndarray
    trainable: list[str]
    statistics: Statistics | None

    def pick(self, rng: np.random.Generator) -> Examples:
        """A dataset by its share."""
        return self.train[int(rng.choice(len(self.train), p=self.shares))]


def prepare(options: Training, out: Path, progress: bool = True) -> Run:
    """Open datasets, make or load the model, decide what is trained.

    Raises:
        ConfigError, DataError, CheckpointError: what does not fit, and what to do.
    """
    if not options.datasets:
        raise ConfigError('no datasets: name at least one folder made by `instructvla dataset build`')
    bundle = load(options.init) if options.init else None
    config = bundle.config if bundle else preset(options.model)
    if bundle is not None and options.recipe == 'stage2' and config.stage == 1:
        bundle = to_stage2(bundle, config.adapters.gate_depth, config.adapters.gate_size, options.seed)
        config = bundle.config
    stores = [open_frames(path, config, progress) for path in options.datasets]
    corpora = [read_corpus(store, progress) for store in stores]
    if bundle is None:
        bundle = _new(options, config, stores, corpora, out)
    statistics = _statistics(options, bundle, stores)
    trainable = set_trainable(bundle.model, options.recipe)
    facts = knowledge() if any(t.info.get('objects') for s in stores for t in s.texts) else []

    def examples(k: int, held_out: bool) -> Examples:
        size = config.dino.image_size
        return Examples(stores[k], corpora[k], bundle.prompts, statistics, options, size, held_out, facts)

    train = [examples(k, False) for k in range(len(stores))]
    held_out = []
    for k in range(len(stores)):
        try:
            held_out.append(examples(k, True))
        except DataError:
            log.info('%s has no held-out episodes', options.datasets[k])
    shares = np.array(options.shares or [len(e.rows) for e in train], float)
    if len(shares) != len(train) or shares.sum() <= 0:
        raise ConfigError(f'shares {options.shares}: give one positive number for each of the {len(train)} datasets')
    return Run(options, bundle, train, held_out, shares / shares.sum(), trainable, statistics)


def _new(
    options: Training, config: ModelConfig, stores: Sequence[FrameStore], corpora: Sequence[list[Texts]], out: Path
) -> Bundle:
    """A model with random weights and a tokenizer of its own sentences."""
    texts = [t for c in corpora for t in every_sentence(c)]
    texts += [part for pair in knowledge() for part in pair] * 20
    frame = ['system', 'user', 'assistant', 'You are a helpful assistant.', ACTION, REASON, PRIMITIVE]
    texts += [t.replace('{}', '') for t in frame] * 500
    folder = out / 'tokenizer'
    if not (folder / 'tokenizer.json').is_file():
        train_tokenizer(texts, config.language.vocab_size, folder)
    statistics = statistics_of(stores, DATASET) if any(s.has_actions for s in stores) else {}
    return create(config, folder, statistics, options.seed)


def _statistics(options: Training, bundle: Bundle, stores: Sequence[FrameStore]) -> Statistics | None:
    """Of the options, the checkpoint, or the data, in this order; the checkpoint is given the result."""
    if options.statistics:
        content: dict[str, Any] = json.loads(Path(options.statistics).read_text(encoding='utf-8'))
        bundle.statistics = content
    elif not bundle.statistics and any(s.has_actions for s in stores):
        bundle.statistics = statistics_of(stores, DATASET)
    if not bundle.statistics:
        return None
    names = list(bundle.statistics)
    return read_statistics(bundle.statistics, names[0], proprio=bundle.config.proprio)
