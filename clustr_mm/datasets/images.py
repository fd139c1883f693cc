"""Whether an image file is whole.

Decoders do not say it well: for a cut file OpenCV returns None or, in other versions and formats,
a picture whose missing part is grey; Pillow raises without naming the file. So the file's own
structure is read: a JPEG is walked marker by marker to its end-of-image marker, a PNG chunk by
chunk, checksums included; other formats are decoded by Pillow, which refuses them. What is odd but
whole passes: CMYK, grey, 16 bits, EXIF rotation, bytes behind the end. A JPEG has no checksum:
bytes overwritten inside its picture data show only where they form a marker that may not stand
there.
"""

from __future__ import annotations

import io
import re
import struct
import zlib

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
# In picture data, 0xff stands only before 00 (a plain 0xff), d0 to d7 (restart), ff (fill) or the
# next marker.
_JPEG_NEXT_MARKER = re.compile(rb'\xff([\x01-\xcf\xd8-\xfe])')
# Markers that no picture data can run into: 01 to bf are reserved, as are f0 to fd.
_JPEG_NEVER = {*range(0x01, 0xC0), *range(0xF0, 0xFE)}
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA


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
