"""A dataset and a model small enough to train in a second, for tests of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from instructvla_ros.data.episodes import Episode, Frames, Meta, Writer
from instructvla_ros.training.settings import Training

META = Meta('made', 'fr3', 0.1, {'third_person': (80, 60), 'wrist': (80, 60)})
SMALL = """
name: small
queries: 4
horizon: 4
views: 2
proprio: true
reasons: true
vision: {hidden_size: 32, intermediate_size: 48, layers: 1, heads: 2, image_size: 64, patch_size: 16, stem: conv}
language: {vocab_size: 420, hidden_size: 32, intermediate_size: 48, layers: 1, heads: 2, kv_heads: 1}
adapters: {count: 1, rank: 4, alpha: 8.0, gate_depth: 2, gate_size: 8, gate_dropout: 0.0, dropout: 0.1}
dino: {width: 32, depth: 1, heads: 2, image_size: 64, patch_size: 16, stem: conv, tap_block: 0}
expert: {hidden_size: 32, intermediate_size: 48, layers: 1, heads: 2, mask: block, dropout: 0.1}
"""


def dataset(
    folder: Path,
    episodes: int = 12,
    frames: int = 6,
    scale: float = 0.01,
    words: str = 'pick up the red cube',
    texts: bool = True,
) -> Path:
    """Random pictures and motion; ``scale``: standard deviation of the motion [m], [rad]."""
    rng = np.random.default_rng(0)
    with Writer(folder, META) as writer:
        for k in range(episodes):
            pictures = {v: Frames.encode(rng.integers(0, 255, (frames, 60, 80, 3), np.uint8)) for v in META.views}
            proprio = rng.normal(size=(frames, 8))
            actions = np.concatenate([rng.normal(0, scale, (frames, 6)), rng.integers(0, 2, (frames, 1))], axis=1)
            zeros = np.zeros((frames, 7))
            said = {
                'alt_instruction': {
                    'Caption': 'a red cube',
                    'QA': [{'question': 'what is red?', 'answer': 'the cube'}],
                    'CR': [{'question': 'lift the red block', 'answer': 'I will pick up the red cube.'}],
                    'CC': [],
                }
            }
            stamps = np.arange(frames) * 100_000_000
            writer.add(
                Episode(
                    f'e{k}', words, 0.1, stamps, proprio, zeros, zeros, actions, pictures, said if texts else {}, True
                )
            )
    return folder


def options(made: tuple[Path, str], **changes: object) -> Training:
    base = Training(
        recipe='stage1',
        model=made[1],
        datasets=(str(made[0]),),
        steps=4,
        batch=4,
        general_batch=0,
        lr=1e-3,
        ema=0.9,
        held_out=0.2,
        validate_every=4,
        validation_frames=8,
        save_every=2,
        seed=3,
    )
    return replace(base, **changes)
