"""Whether an image file is whole, and whether 8 bits a channel show what is in it.

Decoders do not say it well: for a cut file OpenCV returns None or, in other versions and formats,
a picture whose missing part is grey; Pillow raises without naming the file. So the file's own
structure is read: a JPEG is walked marker by marker to its end-of-image marker, a PNG chunk by
chunk, checksums included; other formats are decoded by Pillow, which refuses them. What is odd but
whole passes: CMYK, grey, 16 bits, EXIF rotation, bytes behind the end. A JPEG has no checksum:
bytes overwritten inside its picture data show only where they form a marker that may not stand
there.

The libraries' models take 8 bits a channel. Of a file with 16, OpenCV keeps the upper 8, which is
right where the picture uses the whole range and leaves nearly black where it does not (10 to 14
bits of a camera or scanner in 16); Pillow cuts 16-bit grey off at 255, which leaves white.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
# In picture data, 0xff stands only before 00 (a plain 0xff), d0 to d7 (restart), ff (fill) or the
# next marker.
_JPEG_NEXT_MARKER = re.compile(rb'\xff([\x01-\xcf\xd8-\xfe])')
# Markers that no picture data can run into: 01 to bf are reserved, as are f0 to fd.
_JPEG_NEVER = {*range(0x01, 0xC0), *range(0xF0, 0xFE)}
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_TIFF_BITS = 258  # the tag BitsPerSample


def image_fault(data: bytes) -> str | None:
    """Say what is wrong with an image file.

    Args:
        data: the file's bytes.

    Returns:
        What is wrong, as the end of a sentence ("is truncated: ..."); None if it is whole.
    """
    if not data:
        return 'is empty (0 bytes)'
    if data.startswith(b'\xff\xd8'):
        return _jpeg_fault(data)
    if data.startswith(_PNG_SIGNATURE):
        return _png_fault(data)
    return _other_fault(data)


def bits_per_channel(data: bytes) -> int:
    """Read how many bits a whole image file has for one channel of a pixel.

    Args:
        data: the file's bytes.

    Returns:
        8 or less for ordinary pictures; 16 or 32 for those that models take only converted.
    """
    if data.startswith(b'\xff\xd8'):
        return 8
    if data.startswith(_PNG_SIGNATURE):
        return data[24]  # in the first chunk, behind width and height
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header
            stated = getattr(image, 'tag_v2', {}).get(_TIFF_BITS, 8)
            deep = image.mode.startswith(('I', 'F')) or np.max(stated) > 8
    except UnidentifiedImageError:  # a format of OpenCV's only
        deep = True
    if not deep:
        return 8
    return 8 * decode_deep(data).dtype.itemsize


def decode_deep(data: bytes) -> np.ndarray:
    """Decode a whole image file at its own depth.

    Args:
        data: the file's bytes.

    Returns:
        (H, W) or (H, W, 3), uint8, uint16 or float32; opacity is left out.

    Raises:
        ValueError: if OpenCV cannot decode it.
    """
    import cv2
    import numpy as np

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError('OpenCV cannot decode it')
    return pixels if pixels.ndim == 2 else pixels[..., :3]


def depth_fault(data: bytes, loaded: np.ndarray) -> str | None:
    """Say what 8 bits a channel lost of a file that has more.

    Args:
        data: the file's bytes; the file is whole.
        loaded: (H, W) or (H, W, 3), what a decoder made of it.

    Returns:
        What was lost, as the end of a sentence; None if nothing that shows.
    """
    bits = bits_per_channel(data)
    if bits <= 8 or loaded.max() > 255:  # more than 255: loaded at its own depth
        return None
    if bits > 16:
        return f'has {bits} bits a channel, and no range that they fill: convert it to 8'
    pixels = decode_deep(data)
    peak = int(pixels.max())
    if 0 < peak < 1 << 14:
        return (
            f'has 16 bits a channel but no value above {peak}, of which 8 bits keep '
            f'{(peak >> 8) + 1} shades: stretch it to the whole range, or convert it to 8 bits'
        )
    if loaded.mean() > pixels.mean() / 257 + 8:  # 65535 / 257 = 255
        return (
            'has 16 bits a channel, which its decoder cuts off at 255: load it with '
            "imdecode_backend='cv2', or convert it to 8 bits"
        )
    return None


def _truncated(data: bytes) -> str:
    return f'is truncated: its {len(data)} bytes end before the picture does'


def _jpeg_fault(data: bytes) -> str | None:
    at, scans = 2, 0
    while True:
        # A marker: 0xff, any number of fill bytes 0xff, the code.
        while data[at : at + 2] == b'\xff\xff':
            at += 1
        if at + 2 > len(data):
            return _truncated(data)
        if data[at] != 0xFF:
            return f'is corrupt: no JPEG marker where one must be (byte {at} of {len(data)})'
        code, at = data[at + 1], at + 2
        if code == _EOI:
            return None if scans else 'is corrupt: a JPEG without picture data'
        if code in (_SOI, 0x01) or 0xD0 <= code <= 0xD7:
            continue  # stands alone
        if at + 2 > len(data):
            return _truncated(data)
        at += max(2, int.from_bytes(data[at : at + 2], 'big'))
        if code != _SOS:
            continue
        scans += 1
        following = _JPEG_NEXT_MARKER.search(data, at)
        if following is None:
            return _truncated(data)
        at = following.start()
        if following[1][0] in _JPEG_NEVER:
            return f'is corrupt: foreign bytes in the picture data (byte {at} of {len(data)})'


def _png_fault(data: bytes) -> str | None:
    at = len(_PNG_SIGNATURE)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], 'big')
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            break
        (stated,) = struct.unpack('>I', data[end - 4 : end])
        if zlib.crc32(data[at + 4 : end - 4]) != stated:
            return f'is corrupt: wrong checksum in PNG chunk {kind!r} (byte {at} of {len(data)})'
        if kind == b'IEND':
            return None
        at = end
    return _truncated(data)


def _other_fault(data: bytes) -> str | None:
    error = _pillow_error(data)
    if error is None:
        return None
    import cv2
    import numpy as np

    # Pillow knows fewer formats than OpenCV. It names those it does not know so; anything else it
    # says is about a file that it began to read.
    from PIL import UnidentifiedImageError

    if not isinstance(error, UnidentifiedImageError):
        return f'is truncated or corrupt: {error}'
    if cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) is not None:
        return None
    return 'is not an image in any known format'


def _pillow_error(data: bytes) -> Exception | None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception as error:  # Pillow raises half a dozen kinds for damaged files
        return error
    return None
