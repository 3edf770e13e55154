"""Raw camera buffers to RGB. Expected pixels of Bayer and YUV were computed with OpenCV 4 (cvtColor)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructvla_ros import imaging
from instructvla_ros.errors import ObservationError

MOSAIC = (np.arange(20, dtype=np.uint8).reshape(4, 5) * 37 % 251).astype(np.uint8)
# fmt: off
OPENCV = {
    'rggb': [94, 94, 222, 94, 94, 222, 131, 3, 131, 104, 104, 40, 104, 104, 40, 94, 94, 222, 94, 94, 222, 131, 3, 131,
             104, 104, 40, 104, 104, 40, 151, 151, 151, 151, 151, 151, 188, 124, 124, 97, 225, 97, 97, 225, 97,
             151, 151, 151, 151, 151, 151, 188, 124, 124, 97, 225, 97, 97, 225, 97],
    'gbrg': [94, 222, 94, 94, 222, 94, 3, 131, 131, 40, 40, 168, 40, 40, 168, 94, 222, 94, 94, 222, 94, 3, 131, 131,
             40, 40, 168, 40, 40, 168, 87, 151, 151, 87, 151, 151, 60, 188, 188, 97, 97, 225, 97, 97, 225,
             87, 151, 151, 87, 151, 151, 60, 188, 188, 97, 97, 225, 97, 97, 225],
}
PACKED = (np.arange(16, dtype=np.uint8).reshape(2, 4, 2) * 53 % 255).astype(np.uint8)
OPENCV_YUV = {
    'yuv422': [8, 111, 0, 131, 234, 0, 0, 21, 170, 10, 136, 255, 63, 255, 255, 0, 138, 145, 255, 106, 179, 176, 0, 5],
    'yuyv': [49, 4, 0, 154, 109, 0, 207, 255, 0, 33, 111, 0, 86, 187, 255, 0, 12, 190, 0, 189, 225, 88, 255, 255],
}
# fmt: on


def padded(rows: np.ndarray, padding: int) -> tuple[bytes, int]:
    """Bytes of a 2-D uint8 array with garbage after each row, and the step."""
    step = rows.shape[1] + padding
    out = np.full((rows.shape[0], step), 0xAB, dtype=np.uint8)
    out[:, : rows.shape[1]] = rows
    return out.tobytes(), step


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 5),
    encoding=st.sampled_from(['rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8']),
    seed=st.integers(0, 2**16),
)
def test_eight_bit_encodings_with_padding(height, width, padding, encoding, seed):
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    alpha = np.full((height, width, 1), 7, dtype=np.uint8)
    if encoding == 'mono8':
        rgb = np.repeat(rgb[..., :1], 3, axis=2)
        channels = rgb[..., :1]
    else:
        colours = rgb if encoding.startswith('rgb') else rgb[..., ::-1]
        channels = np.concatenate([colours, alpha], axis=2) if encoding.endswith('a8') else colours
    data, step = padded(channels.reshape(height, -1), padding)
    np.testing.assert_array_equal(imaging.to_rgb(data, height, width, step, encoding), rgb)


@pytest.mark.parametrize('bigendian', [False, True])
@pytest.mark.parametrize('encoding', ['mono16', 'rgb16', 'bgr16', 'rgba16', 'bgra16'])
def test_sixteen_bit_is_scaled_in_either_byte_order(encoding, bigendian):
    channels = {'mono16': 1, 'rgb16': 3, 'bgr16': 3}.get(encoding, 4)
    values = np.random.default_rng(3).integers(0, 65536, (4, 5, channels), dtype=np.uint16)
    data = values.astype('>u2' if bigendian else '<u2').tobytes()
    rgb = imaging.to_rgb(data, 4, 5, 5 * channels * 2, encoding, bigendian)
    expected = np.rint(values * (255.0 / 65535.0)).astype(np.uint8)[..., :3]
    if encoding.startswith('bgr'):
        expected = expected[..., ::-1]
    np.testing.assert_array_equal(rgb, np.broadcast_to(expected, (4, 5, 3)))


@pytest.mark.parametrize('pattern', OPENCV)
def test_bayer_equals_opencv(pattern):
    rgb = imaging.to_rgb(MOSAIC.tobytes(), 4, 5, 5, f'bayer_{pattern}8')
    np.testing.assert_array_equal(rgb, np.array(OPENCV[pattern], dtype=np.uint8).reshape(4, 5, 3))


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_bayer_recovers_flat_colours_from_every_pattern(pattern):
    colour = {'r': 200, 'g': 90, 'b': 30}
    block = np.array([colour[c] for c in pattern], dtype=np.uint8).reshape(2, 2)
    mosaic = np.tile(block, (3, 4))
    rgb = imaging.to_rgb(mosaic.tobytes(), 6, 8, 8, f'bayer_{pattern}8')
    assert (rgb == np.array([200, 90, 30])).all()
    wide = imaging.to_rgb((mosaic.astype(np.uint16) * 257).tobytes(), 6, 8, 16, f'bayer_{pattern}16')
    np.testing.assert_array_equal(wide, rgb)


@pytest.mark.parametrize('encoding', OPENCV_YUV)
def test_yuv_equals_opencv(encoding):
    rgb = imaging.to_rgb(PACKED.tobytes(), 2, 4, 8, encoding)
    np.testing.assert_array_equal(rgb, np.array(OPENCV_YUV[encoding], dtype=np.uint8).reshape(2, 4, 3))
    alias = {'yuv422': 'uyvy', 'yuyv': 'yuv422_yuy2'}[encoding]
    np.testing.assert_array_equal(imaging.to_rgb(PACKED.tobytes(), 2, 4, 8, alias), rgb)


@pytest.mark.parametrize(
    ('size', 'height', 'width', 'step', 'encoding', 'numbers'),
    [
        (100, 4, 5, 14, 'rgb8', ('14', '15')),
        (59, 4, 5, 15, 'rgb8', ('59', '60')),
        (100, 0, 5, 15, 'rgb8', ('5 x 0',)),
        (100, 4, 0, 15, 'mono8', ('0 x 4',)),
        (100, 100000, 100000, 300000, 'rgb8', ('100000 x 100000',)),
        (100, 4, 5, 9, 'mono16', ('9', '10')),
        (100, 2, 5, 10, 'yuyv', ('even', '5')),
        (100, 2, 2, 2, 'bayer_rggb8', ('3 x 3', '2 x 2')),
    ],
)
def test_impossible_sizes_are_refused_with_numbers(size, height, width, step, encoding, numbers):
    with pytest.raises(ObservationError) as err:
        imaging.to_rgb(bytes(size), height, width, step, encoding)
    assert all(n in str(err.value) for n in numbers), str(err.value)


@pytest.mark.parametrize('encoding', ['16UC1', '32FC1', '8UC3', '8UC1', 'nv21', '', 'rgb 8'])
def test_encodings_without_colour_are_refused_by_name(encoding):
    with pytest.raises(ObservationError, match='no colour meaning') as err:
        imaging.to_rgb(bytes(1000), 4, 5, 60, encoding)
    assert repr(encoding) in str(err.value) and 'bayer_rggb8' in str(err.value)


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=400),
    height=st.integers(0, 20),
    width=st.integers(0, 20),
    step=st.integers(0, 90),
    encoding=st.sampled_from(imaging.COLOR_ENCODINGS),
    bigendian=st.booleans(),
)
def test_any_header_gives_an_image_or_our_error(data, height, width, step, encoding, bigendian):
    try:
        rgb = imaging.to_rgb(data, height, width, step, encoding, bigendian)
    except ObservationError:
        return
    assert rgb.shape == (height, width, 3) and rgb.dtype == np.uint8


def test_jpeg_round_trip_is_close_and_rgb():
    rgb = np.zeros((48, 64, 3), dtype=np.uint8)
    rgb[:, :32] = (220, 30, 40)
    rgb[:, 32:] = (20, 60, 210)
    back = imaging.decode(imaging.encode_jpeg(rgb, 95), 'rgb8; jpeg compressed bgr8')
    assert np.abs(back[:, 2:28].astype(int) - rgb[:, 2:28]).max() < 8
    assert np.abs(back[:, 40:60].astype(int) - rgb[:, 40:60]).max() < 8


def test_grey_jpeg_becomes_rgb():
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.full((8, 9), 77, dtype=np.uint8)).save(out, format='JPEG')
    assert imaging.decode(out.getvalue(), 'jpeg').shape == (8, 9, 3)


@pytest.mark.parametrize(
    ('data', 'format_', 'reason'),
    [
        (b'', 'jpeg', 'cannot be decoded'),
        (b'not an image', 'png', 'cannot be decoded'),
        (imaging.encode_jpeg(np.zeros((64, 64, 3), dtype=np.uint8), 80)[:200], 'jpeg', 'cannot be decoded'),
        (b'x' * 30, '16UC1; compressedDepth png', 'depth'),
    ],
)
def test_bad_compressed_images_are_refused(data, format_, reason):
    with pytest.raises(ObservationError, match=reason):
        imaging.decode(data, format_)


def test_sixteen_bit_png_is_depth():
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.full((4, 4), 1200, dtype=np.uint16)).save(out, format='PNG')
    with pytest.raises(ObservationError, match='depth'):
        imaging.decode(out.getvalue(), 'png')
