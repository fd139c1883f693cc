"""Damaged files are found; odd but whole ones pass."""

import cv2
import numpy as np
import pytest
from encoding import encode
from PIL import Image

from clustr_mm.datasets.images import bits_per_channel, depth_fault, image_fault


def whole_files():
    rng = np.random.default_rng(0)
    array = cv2.resize(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8), (120, 90))
    image = Image.fromarray(array)
    turned = image.getexif()
    turned[0x0112] = 6
    thumbnail = image.getexif()
    thumbnail[0x010E] = 'x' * 300 + '\\xff\\xd9'
    return {
        'jpeg': encode(image, 'JPEG'),
        'progressive jpeg': encode(image, 'JPEG', progressive=True),
        'cmyk jpeg': encode(image.convert('CMYK'), 'JPEG'),
        'grey jpeg': encode(image.convert('L'), 'JPEG'),
        'exif-rotated jpeg': encode(image, 'JPEG', exif=turned),
        'jpeg with comment': encode(image, 'JPEG', exif=thumbnail, comment=b'\xff\xd9\xff\xda'),
        'jpeg with restart markers': cv2.imencode(
            '.jpg', array, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
        )[1].tobytes(),
        'png': encode(image, 'PNG'),
        'palette png': encode(image.convert('P'), 'PNG'),
        '1-bit png': encode(image.convert('1'), 'PNG'),
        '16-bit png': cv2.imencode('.png', array.astype(np.uint16) * 257)[1].tobytes(),
        'bmp': encode(image, 'BMP'),
        'tiff': encode(image, 'TIFF'),
        'webp': encode(image, 'WEBP'),
    }


@pytest.mark.parametrize(('name', 'data'), whole_files().items(), ids=list(whole_files()))
def test_whole_passes_and_every_cut_is_found(name, data):
    assert image_fault(data) is None
    for length in sorted({0, 1, *range(2, len(data), len(data) // 40), len(data) - 1}):
        assert image_fault(data[:length]), f'{name} cut to {length} of {len(data)} bytes'


def test_bytes_after_the_end_are_nobodys_business():
    files = whole_files()
    assert image_fault(files['jpeg'] + b'\0' * 100 + b'\xff') is None
    assert image_fault(files['png'] + b'trailer') is None


def test_overwritten_bytes_are_found():
    files = whole_files()
    png = bytearray(files['png'])
    png[len(png) // 2] ^= 1
    assert 'checksum' in image_fault(bytes(png))
    rng = np.random.default_rng(0)
    big = Image.fromarray(rng.integers(0, 256, (200, 300, 3), dtype=np.uint8))
    jpeg = bytearray(encode(big, 'JPEG'))
    jpeg[9000:11000] = rng.bytes(2000)
    assert image_fault(bytes(jpeg))
    jpeg[9000:9004] = b'12\xff\x42'
    assert 'foreign bytes' in image_fault(bytes(jpeg))


def test_what_is_no_image_is_said_so():
    assert 'empty' in image_fault(b'')
    assert 'not an image' in image_fault(b'<html>not found</html>')
    assert image_fault(b'\xff\xd8\xff\xd9')


def deep_files():
    """Grey ramps of 16 and 32 bits, by name: (file, what a decoder to 8 bits made of it)."""
    ramp = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    shown = (ramp >> 8).astype(np.uint8)
    png, tiff = (
        lambda array, kind=kind: cv2.imencode(kind, array)[1].tobytes() for kind in ('.png', '.tif')
    )
    return {
        'whole range png': (png(ramp), shown, None),
        'whole range tiff': (tiff(ramp), shown, None),
        'black': (png(ramp * 0), shown * 0, None),
        '14 bits': (png(ramp >> 2), shown >> 2, 'no value above 16383, of which 8 bits keep 64'),
        '12 bits': (tiff(ramp >> 4), shown >> 4, 'no value above 4095, of which 8 bits keep 16'),
        'cut off': (png(ramp), np.minimum(ramp, 255).astype(np.uint8), "imdecode_backend='cv2'"),
        'loaded at its own depth': (png(ramp >> 4), ramp >> 4, None),
        '32 bits': (tiff(ramp.astype(np.float32)), shown, 'has 32 bits'),
        'a format of OpenCV': (
            cv2.imencode('.hdr', np.dstack([ramp] * 3).astype(np.float32))[1].tobytes(),
            shown,
            'has 32 bits',
        ),
    }  # fmt: skip


@pytest.mark.parametrize(('data', 'loaded', 'words'), deep_files().values(), ids=list(deep_files()))
def test_what_8_bits_lose_is_said(data, loaded, words):
    assert image_fault(data) is None and bits_per_channel(data) in (16, 32)
    fault = depth_fault(data, loaded)
    assert fault is None if words is None else words in fault


def test_ordinary_pictures_have_8_bits_and_lose_nothing():
    for name, data in whole_files().items():
        loaded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert bits_per_channel(data) <= 8 or name == '16-bit png'
        assert depth_fault(data, loaded) is None
