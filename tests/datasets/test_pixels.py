"""Pictures of pixels of any kind."""

import numpy as np
import pytest

from clustr_mm.datasets.pixels import as_photo, rgb_or_bands


@pytest.mark.parametrize(
    ('bands', 'kind'), [(8, np.uint16), (1, np.uint16), (4, np.float32), (2, np.int32)]
)
def test_bands_of_any_type_and_number_are_shown(bands, kind):
    values = np.linspace(0.0, 1.0, 32 * 48 * bands).reshape(32, 48, bands)
    pixels = (values * 9000).astype(kind) if kind != np.float32 else values.astype(kind)
    picture = as_photo(pixels)
    assert picture.shape == (32, 48, 3) and picture.dtype == np.uint8
    assert picture[:2].max() < 20 and picture[-2:].min() > 235
    gray = bands < 3
    assert (picture[..., 0] == picture[..., 2]).all() == gray


def test_an_ordinary_picture_is_shown_as_it_is():
    image = np.random.default_rng(0).integers(100, 140, (16, 24, 3)).astype(np.uint8)
    for each in (image, image.astype(np.float32), image.astype(np.uint16)):
        assert np.array_equal(as_photo(each), image)
    assert np.array_equal(as_photo(image[..., 0])[..., 2], image[..., 0])


def test_what_is_no_number_does_not_hide_the_rest():
    pixels = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    pixels[0, 0], pixels[0, 1] = np.nan, np.inf
    picture = as_photo(pixels)
    assert picture[0, 0].max() == 0 and picture[0, 1].min() == 255 and picture[-1].min() > 200
    assert not as_photo(np.full((4, 4), np.nan)).any()


def test_only_three_channels_are_bgr():
    image = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(rgb_or_bands(image), image)
    assert np.array_equal(rgb_or_bands(image[..., :3])[0, 0], [2, 1, 0])
    assert rgb_or_bands(image[..., 0]).shape == (2, 3, 1)
