"""Small models and inputs for the tests of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / 'data' / 'golden'
SHARED = HERE.parent.parent / 'shared' / 'golden'
CASES = (
    'base_stage1',
    'state_stage1',
    'wrist_stage1',
    'base_stage2_direct',
    'state_stage2_reason',
    'base_stage2_early_stop',
)
TEXTS = (
    'What action should the robot take to put the red cube in the bowl? First answer my question.',
    'I will move to the red cube and close the gripper.',
    'You are a helpful assistant.',
)
STATISTICS = {
    'toy': {
        'action': {
            'q01': [-0.02, -0.03, -0.04, -0.1, -0.1, -0.2, 0.0],
            'q99': [0.03, 0.03, 0.03, 0.1, 0.12, 0.2, 1.0],
            'mask': [True] * 6 + [False],
        },
        'proprio': {'q01': [0.1, -0.4, 0, -1, -0.5, -0.9, 0, 0], 'q99': [0.6, 0.4, 0.5, 1, 0.5, 0.9, 0, 1]},
    }
}


def needs_model() -> None:
    """Skip the calling test file when torch or transformers is missing."""
    torch = pytest.importorskip('torch', reason='the model needs torch (pip install .[model])')
    pytest.importorskip('transformers', reason='the model needs transformers (pip install .[model])')
    torch.set_num_threads(1)  # models this small only lose time to threads


def needs_packing(number: str = 'float32') -> None:
    """Skip the calling test where torch does not multiply packed matrices of a number format."""
    import torch

    from instructvla_ros.model.packed import can_pack

    if not can_pack(getattr(torch, number)):
        pytest.skip(f'torch does not multiply packed matrices of {number} here')


def golden(case: str) -> Path:
    """Folder of a golden case; two are in the repository, the others only where the full set is at hand."""
    for root in (GOLDEN, SHARED):
        if (root / case / 'golden.npz').is_file():
            return root / case
    pytest.skip(f'golden case {case} is not on this machine')


def small_config(**changes):
    """A model of some thousand parameters."""
    from instructvla_ros.model.config import Adapters, Dino, Expert, Language, ModelConfig, Vision

    parts = {
        'name': 'small',
        'vision': Vision(hidden_size=16, intermediate_size=24, layers=2, heads=2, image_size=56, patch_size=14),
        'language': Language(vocab_size=400, hidden_size=24, intermediate_size=32, layers=3, heads=4, kv_heads=2),
        'adapters': Adapters(count=2, rank=4, alpha=8.0, gate_depth=3, gate_size=8),
        'dino': Dino(width=16, depth=5, heads=2, image_size=56, patch_size=14),
        'expert': Expert(hidden_size=24, intermediate_size=32, layers=3, heads=2),
        'queries': 4,
        'horizon': 6,
        'views': 2,
        'proprio': True,
        'reasons': True,
        'max_new_tokens': 8,
    }
    return ModelConfig(**{**parts, **changes})


def small_bundle(folder: Path, **changes):
    """Model of :func:`small_config` with random weights (adapters and all) and a tokenizer of its own."""
    import torch

    from instructvla_ros.model.checkpoint import create
    from instructvla_ros.model.tokenizer import train_tokenizer

    config = small_config(**changes)
    train_tokenizer(TEXTS, config.language.vocab_size, folder / 'tokenizer')
    bundle = create(config, folder / 'tokenizer', STATISTICS, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.15
            is_norm = parameter.dim() == 1 and bool((parameter == 1).all())
            parameter.copy_(1 + noise if is_norm else noise)
    bundle.model.eval()
    return bundle


def inputs(config, batch: int = 1, seed: int = 0):
    """pixels, views, proprio, noise of a batch."""
    import torch

    g = torch.Generator().manual_seed(seed)
    size, dino = config.vision.image_size, config.dino.image_size
    return (
        torch.randn(batch, 3, size, size, generator=g),
        torch.randn(batch, config.views, 3, dino, dino, generator=g),
        torch.rand(batch, 8, generator=g) * 2 - 1 if config.proprio else None,
        torch.randn(batch, config.horizon, 7, generator=g),
    )


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Random uint8 RGB."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
