"""What a run starts from: datasets with their sentences, the model of its recipe, statistics, examples."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.prompts import CAPTION_REQUESTS
from ..errors import ConfigError, DataError
from ..model.checkpoint import Bundle, create, load, read_json
from ..model.config import ModelConfig, preset
from ..model.instructvla import Batch
from ..model.statistics import Statistics, read_statistics
from ..model.tokenizer import train_tokenizer
from ..model.trainable import set_trainable, to_stage2
from ..sim.phrasebook import knowledge
from ..wording import ACTION, PRIMITIVE, REASON
from .checks import check_statistics, check_store
from .corpus import Texts, every_sentence, read_corpus
from .examples import Examples
from .frames import FrameStore, open_frames
from .general import General
from .normalise import statistics_of
from .settings import Training

log = logging.getLogger(__name__)
DATASET = 'train'
FROM_DATA, OWN = 'data', 'own'
RETRIES = 100
SENTENCES = 20_000
"""Of the data, from which a new tokenizer is made: all up to twice so many, of more an even selection."""


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
    general: General | None = None

    def talk(self, examples: Examples, rng: np.random.Generator, count: int | None = None) -> Batch | None:
        """Dialogues without motion, of the conversations or of the scenes; None when there are none.

        Args:
            count: how many; by default ``general_batch``.
        """
        count = self.options.general_batch if count is None else count
        if not count:
            return None
        spoken = any(t.captions or t.questions for t in examples.corpus) or bool(examples.facts)
        if self.general is not None and (not spoken or rng.random() < self.options.general_share):
            return self.general.draw(rng, count)
        for _ in range(RETRIES if spoken else 0):
            try:
                return examples.general(rng, count)
            except DataError:  # only some episodes have texts, and none of these was drawn
                continue
        return None

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
    if options.gains_adapter(config.stage):
        if bundle is None:
            if options.recipe == 'stage2':
                raise ConfigError('recipe stage2 goes on from a model that acts: name a stage-1 checkpoint with --init')
            config = replace(config, adapters=replace(config.adapters, count=2))
        else:
            bundle = to_stage2(bundle, config.adapters.gate_depth, config.adapters.gate_size, options.seed)
            config = bundle.config
    stores = [open_frames(path, config, progress) for path in options.datasets]
    tested = [open_frames(path, config, progress) for path in options.validation]
    for store in stores:
        check_store(store, options.fewest)
    for store in tested:
        check_store(store, 1)
    corpora = [read_corpus(store, progress) for store in stores]
    if bundle is None:
        bundle = _new(options, config, stores, corpora, out)
    if options.max_new_tokens:
        bundle.model.config = replace(bundle.config, max_new_tokens=options.max_new_tokens)
    scales = _statistics(options, bundle, stores)
    trainable = set_trainable(bundle.model, options.recipe, dino=options.dino)
    facts = knowledge() if any(t.info.get('objects') for s in stores for t in s.texts) else []
    size = config.dino.image_size

    def examples(
        store: FrameStore, corpus: list[Texts], scale: Statistics | None, held_out: bool, share: float
    ) -> Examples:
        given = replace(options, held_out=share)
        return Examples(store, corpus, bundle.prompts, scale, given, size, held_out, facts)

    shares = [0.0 if tested else _held_out(options, s) for s in stores]
    train = [examples(s, c, k, False, h) for s, c, k, h in zip(stores, corpora, scales, shares, strict=True)]
    own = options.statistics == OWN
    held_out = [
        examples(s, read_corpus(s, progress), scales[k if own else 0], True, 1.0) for k, s in enumerate(tested)
    ]
    for k, share in enumerate(shares):
        if share:
            try:
                held_out.append(examples(stores[k], corpora[k], scales[k], True, share))
            except DataError:  # all of them failed
                log.info('%s has no held-out episodes', options.datasets[k])
    general = General.open(options, bundle) if options.general else None
    if options.general_batch and general is None and not facts:
        for path, corpus in zip(options.datasets, corpora, strict=True):
            if not any(t.captions or t.questions for t in corpus):
                log.warning(
                    '%s has no captions or questions, and no general conversations are given: trained on motion alone, '
                    'the model may forget how to speak (docs/training.md)', path
                )  # fmt: skip
    weights = np.array(options.shares or [len(e.rows) for e in train], float)
    if len(weights) != len(train) or weights.sum() <= 0:
        raise ConfigError(f'shares {options.shares}: give one positive number for each of the {len(train)} datasets')
    return Run(options, bundle, train, held_out, weights / weights.sum(), trainable, general)


def _held_out(options: Training, store: FrameStore) -> float:
    """Share of a dataset for validation; of a handful of episodes at least one."""
    share = options.held_out
    good = [t.id for t in store.texts if t.success is not False]
    if not share or len(good) <= options.fewest:
        return share
    places = sorted(int(hashlib.sha256(i.encode()).hexdigest()[:8], 16) / 16**8 for i in good)
    return share if places[0] < share else (places[0] + places[1]) / 2


def _new(
    options: Training, config: ModelConfig, stores: Sequence[FrameStore], corpora: Sequence[list[Texts]], out: Path
) -> Bundle:
    """A model with random weights and a tokenizer of its own sentences."""
    texts = [t for c in corpora for t in every_sentence(c)]
    # So many and no more: the words of large data must not leave the rarer words of the facts in pieces.
    texts = texts[:: max(1, len(texts) // SENTENCES)] + [part for pair in knowledge() for part in pair] * 20
    frame = ['system', 'user', 'assistant', 'You are a helpful assistant.', ACTION, REASON, PRIMITIVE]
    texts += [t.replace('{}', '') for t in frame] * 500
    texts += [*CAPTION_REQUESTS] * 50
    folder = out / 'tokenizer'
    if not (folder / 'tokenizer.json').is_file():
        train_tokenizer(texts, config.language.vocab_size, folder)
    return create(config, folder, seed=options.seed)


def _computed(options: Training, stores: Sequence[FrameStore], name: str) -> dict[str, Any]:
    return statistics_of(stores, name, steady=options.angles == 'steady')


def _own(options: Training, bundle: Bundle, stores: Sequence[FrameStore]) -> list[Statistics | None]:
    """Each dataset is scaled by itself: slow and fast arms, and other places, share one checkpoint."""
    names = [s.meta.name for s in stores]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ConfigError(
            f'statistics=own: several datasets are called {", ".join(twice)}; merge them, or build them with --name'
        )
    if len(options.validation) > len(stores):
        raise ConfigError(
            f'statistics=own: {len(options.validation)} held-out folders for {len(stores)} datasets; the first is '
            'scaled as the first dataset, and so on: give at most one for each'
        )
    content: dict[str, Any] = {}
    for name, store in zip(names, stores, strict=True):
        content.update(_computed(options, [store], name) if store.has_actions else {})
    if content:
        bundle.statistics = content
    return [read_statistics(content, n, proprio=bundle.config.proprio) if n in content else None for n in names]


def _statistics(options: Training, bundle: Bundle, stores: Sequence[FrameStore]) -> list[Statistics | None]:
    """Of each dataset: from the options, the checkpoint or the data, in this order; the checkpoint keeps the result."""
    if options.statistics == OWN:
        return _own(options, bundle, stores)
    moving = any(s.has_actions for s in stores)
    origin = 'statistics of the checkpoint'
    if options.statistics and options.statistics != FROM_DATA:
        content: dict[str, Any] = read_json(Path(options.statistics))
        bundle.statistics, origin = content, f'statistics in {options.statistics}'
    elif moving and (options.statistics == FROM_DATA or not bundle.statistics):
        bundle.statistics, origin = _computed(options, stores, DATASET), 'statistics of the data'
    if not bundle.statistics:
        return [None] * len(stores)
    names = list(bundle.statistics)
    found = read_statistics(bundle.statistics, names[0], proprio=bundle.config.proprio)
    if moving:
        check_statistics(stores, found, options.clipped, origin)
    return [found] * len(stores)
