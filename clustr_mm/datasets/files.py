"""Which files are images, and which are weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
WEIGHT_SUFFIXES = ('.pth', '.safetensors')


def find_images(paths: Iterable[str]) -> Iterator[Path]:
    """Yield files, whatever they are called, and the images in folders by name.

    Raises:
        ValueError: if a path does not exist, or is a folder without an image.
    """
    for path in map(Path, paths):
        found = [path]
        if path.is_dir():
            found = sorted(each for each in path.iterdir() if each.suffix.lower() in IMAGE_SUFFIXES)
        if not found or not path.exists():
            raise ValueError(f'{path}: no such image, or a folder without any; check the path')
        yield from found
