"""Mutations of an image file: damaged, of another kind, of an odd but sound kind."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from encoding import encode as encode_image
from PIL import Image

from .case import Case, Mutation


def encode(path: Path, kind: str, mode: str = 'RGB', **options: object) -> bytes:
    """Encodes a picture anew."""
    with Image.open(path) as image:
        return encode_image(image.convert(mode), kind, **options)


def pixels(path: Path) -> np.ndarray:
    """Decodes a picture: (H, W, 3), blue first."""
    return cv2.imread(str(path), cv2.IMREAD_COLOR_BGR)


def png_claiming(height: int, width: int) -> bytes:
    """A PNG whose checksums are right and whose pixels are not there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    """Leaves a part of a file: at least a byte, at most all but four."""
    return data[: rng.integers(1, len(data) - 4)]


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes a byte somewhere in the second half, short of a PNG's last chunk."""
    out = bytearray(data)
    out[rng.integers(len(out) // 2, len(out) - 16)] ^= 1 << rng.integers(8)
    return bytes(out)


def with_reserved_marker(data: bytes) -> bytes:
    """A JPEG with two bytes in its picture data that cannot stand there."""
    middle = (data.rfind(b'\xff\xda') + len(data)) // 2
    return data[:middle] + b'\xff\x05' + data[middle + 2 :]


# What makes the file's bytes of (its path, chance): all of them must be refused.
_DAMAGED: dict[str, Callable[[Path, np.random.Generator], bytes]] = {
    'empty': lambda path, rng: b'',
    'cut': lambda path, rng: cut(path.read_bytes(), rng),
    'cut in the header': lambda path, rng: path.read_bytes()[: rng.integers(1, 24)],
    'cut png': lambda path, rng: cut(encode(path, 'PNG'), rng),
    'cut bmp': lambda path, rng: cut(encode(path, 'BMP'), rng),
    'cut webp': lambda path, rng: cut(encode(path, 'WEBP'), rng),
    'cut tiff': lambda path, rng: cut(encode(path, 'TIFF'), rng),
    'flipped bit in png': lambda path, rng: flipped(encode(path, 'PNG'), rng),
    'foreign bytes in jpeg': lambda path, rng: with_reserved_marker(path.read_bytes()),
    'zeros': lambda path, rng: bytes(path.stat().st_size),
    'noise': lambda path, rng: rng.bytes(path.stat().st_size),
    'a web page': lambda path, rng: b'<!DOCTYPE html><title>404 Not Found</title>',
    'json': lambda path, rng: b'{"images": []}',
    'pdf': lambda path, rng: b'%PDF-1.4\n1 0 obj\n<<>>\nendobj\ntrailer\n<<>>\n%%EOF\n',
    'gigapixels claimed': lambda path, rng: png_claiming(65000, 65000),
    'no pixels claimed': lambda path, rng: png_claiming(0, 0),
    '12 bits of 16': lambda path, rng: png(np.uint16(pixels(path)) * 8),
    'float tiff': lambda path, rng: tiff(np.float32(pixels(path)[..., 0])),
}


def png(image: np.ndarray) -> bytes:
    """Encodes an array without loss."""
    return cv2.imencode('.png', image)[1].tobytes()


def tiff(image: np.ndarray) -> bytes:
    """Encodes an array of any type."""
    return cv2.imencode('.tiff', image)[1].tobytes()


def grey(image: np.ndarray) -> np.ndarray:
    """(3, H, W), its mean brightness three times (ITU-R 601, blue first)."""
    return np.broadcast_to(np.tensordot([0.114, 0.587, 0.299], image, 1), image.shape)


def same(image: np.ndarray) -> np.ndarray:
    """The image."""
    return image


# What makes the bytes, what the pipeline must make of the image, and how near it must come.
_SOUND: dict[str, tuple[Callable[[Path], bytes], Callable, float]] = {
    'png': (lambda path: png(pixels(path)), same, 0),
    'bmp': (lambda path: cv2.imencode('.bmp', pixels(path))[1].tobytes(), same, 0),
    'tiff': (lambda path: tiff(pixels(path)), same, 0),
    'bytes behind the end': (lambda path: path.read_bytes() + b'\0trailer' * 9, same, 0),
    'alpha': (lambda path: png(np.dstack([pixels(path), pixels(path)[..., 0]])), same, 0),
    '16 bits': (lambda path: png(np.uint16(pixels(path)) * 257), same, 0),
    'progressive jpeg': (lambda path: encode(path, 'JPEG', quality=95, progressive=True), same, 4),
    'cmyk jpeg': (lambda path: encode(path, 'JPEG', 'CMYK', quality=95), same, 8),
    'palette': (lambda path: encode(path, 'PNG', 'P', optimize=True), same, 24),
    'grey jpeg': (lambda path: encode(path, 'JPEG', 'L', quality=95), grey, 4),
    'grey png': (lambda path: encode(path, 'PNG', 'L'), grey, 2),
}


def _damage(case: Case, make: Callable[[Path, np.random.Generator], bytes]) -> None:
    path = case.image()
    path.write_bytes(make(path, case.rng))
    case.refuse(path)


def _rewrite(case: Case, make: Callable[[Path], bytes], expect: Callable, tolerance: float) -> None:
    path = case.image()
    path.write_bytes(make(path))
    for sample in case.of(path):
        sample.image, sample.tolerance = expect(sample.image), tolerance


def missing(case: Case) -> None:
    """The image is not there."""
    path = case.image()
    path.unlink()
    leave_out(case, path)


def dangling_link(case: Case) -> None:
    """The image is a link to nothing."""
    path = case.image()
    path.unlink()
    path.symlink_to('nowhere.jpg')
    leave_out(case, path)


def folder(case: Case) -> None:
    """A folder stands where the image was."""
    path = case.image()
    path.unlink()
    path.mkdir()
    leave_out(case, path)


def unknown_extension(case: Case) -> None:
    """The image is there under a name that nobody looks for."""
    path = case.image()
    path.rename(path.with_suffix('.dat'))
    leave_out(case, path)


def leave_out(case: Case, path: Path) -> None:
    """Expects what the task does without an image file that is not there.

    The annotation file names it; a label map without image is named in a warning; a folder of a
    class has one image less, as if it had never been there.
    """
    if case.task in ('detection', 'pose'):
        case.refuse(path)
        return
    case.samples = {key: each for key, each in case.samples.items() if each.path != path}
    if case.task == 'segmentation':
        case.warnings.append('label maps have no image')


def link(case: Case) -> None:
    """The image is a link to a file elsewhere."""
    path = case.image()
    target = case.root / 'elsewhere.bin'
    path.rename(target)
    path.symlink_to(target)


def turned(case: Case) -> None:
    """The image is turned by its EXIF tag; its annotations are not."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned right by 90 degrees
    _resized(case, lambda path: encode(path, 'JPEG', exif=exif, quality=95))


def one_pixel(case: Case) -> None:
    """The image is one pixel."""
    _resized(case, lambda path: png(pixels(path)[:1, :1]))


def huge(case: Case) -> None:
    """The image has twelve megapixels, and so not the annotations' size."""
    _resized(case, lambda path: png(np.zeros((3000, 4000, 3), np.uint8)))


def other_size(case: Case) -> None:
    """The image is a few pixels larger than its annotations say."""
    more = case.rng.integers(1, 9)
    _resized(case, lambda path: png(np.pad(pixels(path), [(0, more), (0, 0), (0, 0)])))


def _resized(case: Case, make: Callable[[Path], bytes]) -> None:
    path = case.image()
    path.write_bytes(make(path))
    if case.task == 'classification':  # takes any size
        for sample in case.of(path):
            sample.image = None
    else:
        case.refuse(path)


IMAGE_MUTATIONS: dict[str, Mutation] = {
    **{name: partial(_damage, make=make) for name, make in _DAMAGED.items()},
    **{
        f'{name}, named jpg': partial(_rewrite, make=make, expect=expect, tolerance=tolerance)
        for name, (make, expect, tolerance) in _SOUND.items()
    },
    'missing': missing,
    'dangling link': dangling_link,
    'folder in its place': folder,
    'unknown extension': unknown_extension,
    'link': link,
    'turned': turned,
    'one pixel': one_pixel,
    'huge': huge,
    'other size': other_size,
}
