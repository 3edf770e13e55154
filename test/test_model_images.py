"""Image transforms and statistics: exact against arithmetic written here."""

from __future__ import annotations

import warnings

import model_doubles as doubles
import numpy as np
import pytest
from PIL import Image as PilImage

from instructvla_ros.errors import CheckpointError, ObservationError
from instructvla_ros.model.images import bicubic, dino_pixels, join_views, siglip_pixels
from instructvla_ros.model.statistics import read_statistics


@pytest.mark.parametrize('shape', [(224, 224), (512, 640), (480, 640), (640, 480)])
def test_siglip_squashes_to_a_square(shape):
    frame = doubles.image(*shape)
    expected = np.asarray(PilImage.fromarray(frame).resize((448, 448), 3), np.float32)
    expected = ((expected / np.float32(255) - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1)
    found = siglip_pixels(frame, 448)
    assert found.dtype == np.float32 and found.shape == (3, 448, 448)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ('shape', 'resized', 'left', 'top'),
    [
        ((224, 224), (256, 256), 16, 16),
        ((512, 640), (320, 256), 48, 16),
        ((480, 640), (341, 256), 58, 16),  # 58.5 rounds to even
        ((640, 480), (256, 341), 16, 58),
    ],
)
def test_dino_resizes_the_shorter_side_and_crops_the_centre(shape, resized, left, top):
    frame = doubles.image(*shape)
    picture = np.asarray(PilImage.fromarray(frame).resize(resized, 3), np.float32)[top : top + 224, left : left + 224]
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    expected = ((picture / np.float32(255) - mean) / std).transpose(2, 0, 1)
    found = dino_pixels(frame, 224)
    assert found.shape == (3, 224, 224) and found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('shape', [(2, 2), (64, 64), (480, 640), (480, 1280), (1080, 1920)])
def test_the_quick_filter_is_pillows_within_two_grey_levels(shape):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (*shape, 3), np.uint8)
    ramp = np.repeat(np.add.outer(np.arange(shape[0]), 3 * np.arange(shape[1])).astype(np.uint8)[..., None], 3, 2)
    for picture in (noise, ramp, np.where(noise > 127, 255, 0).astype(np.uint8)):
        for width, height in ((192, 192), (448, 448), (341, 256)):
            beside = np.abs(bicubic(picture, width, height).astype(int) - bicubic(picture, width, height, quick=True))
            assert beside.max() <= 2 and (beside > 0).mean() < 0.2
    mirrored = noise[:, ::-1]  # not contiguous, as a camera that is flipped
    np.testing.assert_array_equal(bicubic(mirrored, 56, 56, True), bicubic(mirrored.copy(), 56, 56, True))
    frozen = noise.copy()
    frozen.setflags(write=False)  # as the memory of a message
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        np.testing.assert_array_equal(bicubic(frozen, 56, 56, True), bicubic(noise, 56, 56, True))
    assert siglip_pixels(noise, 56, quick=True).shape == dino_pixels(noise, 56, quick=True).shape == (3, 56, 56)


def test_views_are_joined_left_to_right():
    a, b = doubles.image(48, 64, 1), doubles.image(48, 32, 2)
    joined = join_views([a, b])
    np.testing.assert_array_equal(joined[:, :64], a)
    np.testing.assert_array_equal(joined[:, 64:], b)
    with pytest.raises(ObservationError, match=r'\[32, 48\] px'):
        join_views([a, doubles.image(32, 64)])


@pytest.mark.parametrize(
    'bad', [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32), [[1]]]
)
def test_images_of_the_wrong_kind_are_refused(bad):
    for transform in (siglip_pixels, dino_pixels):
        for quick in (False, True):
            with pytest.raises(ObservationError, match=r'uint8 RGB \(H, W, 3\)'):
                transform(bad, 56, quick)


def statistics(**changes):
    return read_statistics({'toy': {**doubles.STATISTICS['toy'], **changes}}, proprio=True)


def test_gripper_is_thresholded_before_scaling_and_stays_binary():
    steps = np.zeros((4, 7))
    steps[:, 6] = [0.4999, 0.5, -3.0, 7.0]
    steps[0, :3] = [-9.0, 0.0, 9.0]
    finished = statistics().finish(steps)
    np.testing.assert_array_equal(finished[:, 6], [0, 1, 0, 1])
    physical = statistics().unnormalize(finished)
    np.testing.assert_array_equal(physical[:, 6], [0, 1, 0, 1])
    np.testing.assert_allclose(physical[0, :3], [-0.02, 0.0, 0.03], atol=1e-15)


def test_normalising_and_back():
    rng = np.random.default_rng(0)
    s = statistics()
    physical = rng.uniform(s.q01, s.q99, (50, 7))
    physical[:, 6] = rng.integers(0, 2, 50)
    np.testing.assert_allclose(s.unnormalize(s.normalize(physical)), physical, atol=1e-12)


def test_proprio_with_equal_quantiles_is_zero():
    out = statistics().normalize_proprio(np.array([0.1, 0.4, 9.0, 0, 0, 0, 5.0, 1.0]))
    np.testing.assert_allclose(out, [-1, 1, 1, 0, 0, 0, 0, 1], atol=1e-6)
    assert out[6] == 0.0


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({}, 'no dataset'),
        ({'a': {}, 'b': {}}, '2 datasets, name one: a, b'),
        ({'a': {'action': {'q01': [0] * 7}}}, "lacks 'q99'"),
        ({'a': {'proprio': {}}}, "lacks the group 'action'"),
        ({'a': {'action': {'q01': [0] * 6, 'q99': [1] * 7}}}, '7 finite numbers'),
        ({'a': {'action': {'q01': [0] * 7, 'q99': ['x'] * 7}}}, 'not a list of numbers'),
        ({'a': {'action': {'q01': [0] * 7, 'q99': [1] * 7}}}, "lacks the group 'proprio'"),
        ({'a': {'action': {'q01': [0] * 7, 'q99': [1] * 7, 'mask': [True]}}}, 'mask must have 7'),
    ],
)
def test_statistics_that_lack_something_say_what(content, message):
    with pytest.raises(CheckpointError, match=message):
        read_statistics(content, proprio=True)


def test_statistics_of_an_unknown_dataset_suggest_the_known(tmp_path):
    with pytest.raises(CheckpointError, match="Did you mean 'toy'"):
        read_statistics(doubles.STATISTICS, 'toys')
    with pytest.raises(CheckpointError, match='cannot read'):
        read_statistics(tmp_path / 'none.json')
    (tmp_path / 'bad.json').write_text('{')
    with pytest.raises(CheckpointError, match='not JSON'):
        read_statistics(tmp_path / 'bad.json')


def test_missing_mask_scales_everything():
    action = {k: doubles.STATISTICS['toy']['action'][k] for k in ('q01', 'q99')}
    assert read_statistics({'a': {'action': action}}).mask.all()
