"""The parts that only small models and training use: convolutional stem, several flow draws per row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from instructvla_ros.config import replace as change
from instructvla_ros.errors import ConfigError
from instructvla_ros.model.config import Dino, Vision, preset
from instructvla_ros.model.dino import FilmDino
from instructvla_ros.model.expert import FlowExpert
from instructvla_ros.model.stem import ConvStem


def test_stem_shape_and_reach():
    stem = ConvStem(16, 24)
    pixels = torch.zeros(1, 3, 64, 64)
    base = stem(pixels)
    assert base.shape == (1, 24, 4, 4) and stem.weight.dtype == torch.float32
    pixels[0, :, 15, 15] = 5.0  # the last pixel of patch (0, 0) is also seen by its neighbours
    assert (stem(pixels) - base)[0, :, 1, 1].abs().max() > 0


def test_stem_needs_a_patch_of_whole_cells():
    with pytest.raises(ConfigError, match='patch_size 14'):
        Vision(hidden_size=32, heads=2, image_size=112, patch_size=14, stem='conv')
    with pytest.raises(ConfigError, match='stem'):
        change(Dino(), stem='other')


def test_dino_with_conv_stem():
    config = Dino(width=32, depth=2, heads=2, image_size=64, patch_size=16, tap_block=1, stem='conv')
    out = FilmDino(config, 8)(torch.randn(2, 2, 3, 64, 64), torch.randn(2, 4, 8))
    assert out.shape == (2, 16 * 2, 32)


def test_draws_equal_separate_calls():
    torch.manual_seed(0)
    config = preset('tiny')
    config = replace(config, expert=replace(config.expert, mask='block'))
    expert = FlowExpert(config).eval()
    prefix = torch.randn(2, config.prefix_length, config.expert.hidden_size)
    steps, t = torch.randn(2, 3, config.horizon, 7), torch.rand(2, 3)
    together = expert.velocity_of_draws(prefix, steps, t)
    for k in range(3):
        alone = expert.velocity(prefix, steps[:, k], t[:, k])
        torch.testing.assert_close(together[:, k], alone, atol=1e-5, rtol=1e-5)
