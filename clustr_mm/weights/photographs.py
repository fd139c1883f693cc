"""Photographs to calibrate with: read from a folder, and told from noise; or drawn scenes."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

LEAST = 8  # distinct photographs
_SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'}
# ImageNet's, of red, green and blue from 0 to 255, as the configs have them.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)


def read_photographs(folder: str, count: int = 32, size: int = 224) -> list[Tensor]:
    """Reads photographs as an ImageNet classifier sees them: a square of the middle, normalised.

    Args:
        folder: Where they are, at any depth.
        count: How many to take, evenly from the files in the order of their names; all if there
            are fewer.
        size: Side of the square; the shorter side is scaled to 8/7 of that first.

    Returns:
        Each (1, 3, size, size) float32, RGB; none of pictures of noise.

    Raises:
        ValueError: If there are too few, or one cannot be read.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError('reading photographs needs Pillow; pip install pillow') from error
    if size < 32:
        raise ValueError(f'squares of {size} pixels are too small; use 32 or more, best 224')
    if count < LEAST:
        raise ValueError(f'{count} photographs are too few; use at least {LEAST}, best 32')
    files = sorted(
        path for path in Path(folder).expanduser().rglob('*') if path.suffix.lower() in _SUFFIXES
    )
    files = [files[i * len(files) // count] for i in range(count)] if len(files) > count else files
    found, judged = [], []
    for path in files:
        try:
            with Image.open(path) as file:
                image = file.convert('RGB')
        except Exception as error:  # there is no end to what a decoder raises
            raise ValueError(f'{path} is no image that can be read; leave it out') from error
        judged.append(judge(_pixels(image)))
        if not judged[-1][0]:
            continue
        scale = size * 8 / 7 / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        found.append(_normalised(_pixels(image.crop((left, top, left + size, top + size)))))
    check_judged(judged, folder)
    return found


def draw_scenes(count: int = 32, size: int = 224, seed: int = 0) -> list[Tensor]:
    """Draws scenes of the mini data, for whom there are no photographs.

    Args:
        count: How many.
        size: Side of each in pixels.
        seed: Other scenes for another.

    Returns:
        Each (1, 3, size, size) float32, normalised as photographs are.

    Raises:
        ValueError: If OpenCV is missing.
    """
    try:
        from clustr_mm.datasets.mini.scenes import make_scene
    except ImportError as error:
        raise ValueError(
            f'drawing scenes in place of photographs needs OpenCV ({error}); give photographs'
        ) from error
    drawn = [make_scene(seed, 'train', number, (size, size)).image for number in range(count)]
    return [_normalised(_pixels(image)) for image in drawn]


def judge(image: Tensor) -> tuple[bool, bytes]:
    """Tells a photograph from noise, which would be worse to calibrate with than nothing.

    Args:
        image: (channels, height, width).

    Returns:
        Whether its neighbouring pixels correlate by 0.5 or more, and a fingerprint of its pixels.

    Raises:
        ValueError: If it is smaller than 32 x 32.
    """
    if min(image.shape[1:]) < 32:
        raise ValueError(f'a picture has {tuple(image.shape[1:])} pixels; give 32 x 32 or more')
    grey = image.double().mean(0)
    pairs = [(grey[1:], grey[:-1]), (grey[:, 1:], grey[:, :-1])]
    likeness = sum(
        torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item() / 2 for a, b in pairs
    )
    pixels = image.double().cpu().contiguous().numpy().tobytes()
    # The correlation is NaN where all pixels are equal.
    return likeness >= 0.5, hashlib.sha256(pixels).digest()


def check_judged(judged: Iterable[tuple[bool, bytes]], source: str) -> None:
    """Sees that enough distinct photographs are left; a warning says how many pictures are not.

    Args:
        judged: What ``judge`` gave.
        source: Where the pictures are from, for the error.

    Raises:
        ValueError: If there are fewer than 8.
    """
    judged = list(judged)
    number = len({fingerprint for good, fingerprint in judged if good})
    noise = sum(not good for good, _ in judged)
    why = f'{noise} pictures whose neighbouring pixels correlate below 0.5, as noise does'
    if number < LEAST:
        raise ValueError(
            f'{source} has {number} distinct photographs, and {why}; give at least {LEAST} '
            'photographs, best 32'
        )
    if noise:
        warnings.warn(f'{source}: left out {why}', stacklevel=3)


def _pixels(image: object) -> Tensor:
    """A picture of Pillow's or numpy's as (3, height, width) uint8."""
    import numpy as np

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _normalised(pixels: Tensor) -> Tensor:
    """Pixels (3, height, width) as the network sees them, (1, 3, height, width)."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (_MEAN, _STD))
    return ((pixels.float() - mean) / std)[None]
