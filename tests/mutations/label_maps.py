"""Mutations of a label map of semantic segmentation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .case import Case, Mutation
from .images import cut, encode, flipped, png, tiff

_IGNORED = 255


def labels_of(path: Path) -> np.ndarray:
    """Reads a label map: (H, W) uint8, 0 for no class, 1 to 150."""
    return np.array(Image.open(path))


def _with_label(path: Path, label: int, kind: type = np.uint8) -> bytes:
    labels = labels_of(path).astype(kind)
    labels[3:9, 5:20] = label
    return png(labels)


def _palette(path: Path) -> bytes:
    image = Image.fromarray(labels_of(path))
    image.putpalette(bytes(range(255, -1, -1)) * 3)
    image.save(path, 'PNG')
    return path.read_bytes()


# What makes the file's bytes of (its path, chance): all of them must be refused.
_DAMAGED: dict[str, Callable[[Path, np.random.Generator], bytes]] = {
    'empty': lambda path, rng: b'',
    'cut': lambda path, rng: cut(path.read_bytes(), rng),
    'flipped bit': lambda path, rng: flipped(path.read_bytes(), rng),
    'text': lambda path, rng: b'1 1 1 2 2 2\n' * 9,
    'colours': lambda path, rng: encode(path, 'PNG'),
    'colours and opacity': lambda path, rng: encode(path, 'PNG', 'RGBA'),
    'jpeg': lambda path, rng: encode(path, 'JPEG', 'L', quality=90),
    'lossy webp': lambda path, rng: encode(path, 'WEBP', 'RGB', quality=80),
    'label 151': lambda path, rng: _with_label(path, 151),
    'label 254': lambda path, rng: _with_label(path, 254),
    'label out of range': lambda path, rng: _with_label(path, rng.integers(151, 255)),
    'label of 16 bits': lambda path, rng: _with_label(path, rng.integers(256, 1 << 16), np.uint16),
    'labels of nan': lambda path, rng: tiff(np.where(labels_of(path) > 1, np.nan, np.float32(1))),
    'labels with fractions': lambda path, rng: tiff(labels_of(path) / np.float32(2)),
    'turned': lambda path, rng: png(labels_of(path).T),
    'one pixel': lambda path, rng: png(labels_of(path)[:1, :1]),
    'half the size': lambda path, rng: png(labels_of(path)[::2, ::2]),
    'huge': lambda path, rng: png(np.ones((3000, 4000), np.uint8)),
}
# What keeps every label.
_SOUND: dict[str, Callable[[Path], bytes]] = {
    'palette': _palette,
    '16 bits': lambda path: png(np.uint16(labels_of(path))),
    'bmp': lambda path: cv2.imencode('.bmp', labels_of(path))[1].tobytes(),
    'tiff': lambda path: tiff(labels_of(path)),
    'bytes behind the end': lambda path: path.read_bytes() + b'\0trailer' * 9,
}


def _damage(case: Case, make: Callable[[Path, np.random.Generator], bytes]) -> None:
    path, _ = case.label_map()
    path.write_bytes(make(path, case.rng))
    case.refuse(path)


def _rewrite(case: Case, make: Callable[[Path], bytes]) -> None:
    path, _ = case.label_map()
    path.write_bytes(make(path))


def missing(case: Case) -> None:
    """The label map is not there."""
    path, _ = case.label_map()
    path.unlink()
    case.refuse(path)


def wrong_extension(case: Case) -> None:
    """The label map is there under a name that nobody looks for."""
    path, _ = case.label_map()
    path.rename(path.with_suffix('.PNG'))
    case.refuse(path)


def nothing_labelled(case: Case) -> None:
    """No pixel has a class."""
    _filled(case, 0)


def all_ignored(case: Case) -> None:
    """Every pixel has the label of pixels that do not count."""
    _filled(case, _IGNORED)


def class_that_is_not_trained(case: Case) -> None:
    """Every pixel has a class of ADE20K that the mini data set leaves out."""
    _filled(case, 150)


def _filled(case: Case, label: int) -> None:
    path, sample = case.label_map()
    path.write_bytes(png(np.full_like(labels_of(path), label)))
    sample.target = np.full_like(sample.target, _IGNORED)


def one_class(case: Case) -> None:
    """Every pixel has the class of one."""
    path, sample = case.label_map()
    labels = labels_of(path)
    known = np.argwhere(sample.target != _IGNORED)
    y, x = known[case.rng.integers(len(known))]
    path.write_bytes(png(np.full_like(labels, labels[y, x])))
    sample.target = np.full_like(sample.target, sample.target[y, x])


LABEL_MUTATIONS: dict[str, Mutation] = {
    **{f'label map: {name}': partial(_damage, make=make) for name, make in _DAMAGED.items()},
    **{f'label map: {name}, named png': partial(_rewrite, make=m) for name, m in _SOUND.items()},
    'label map: missing': missing,
    'label map: wrong extension': wrong_extension,
    'label map: nothing labelled': nothing_labelled,
    'label map: all ignored': all_ignored,
    'label map: a class that is not trained': class_that_is_not_trained,
    'label map: one class': one_class,
}
