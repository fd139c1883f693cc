"""Pixels of any type and number of bands as pictures that can be shown."""

from __future__ import annotations

import numpy as np


def rgb_or_bands(image: np.ndarray) -> np.ndarray:
    """Turns what a pipeline loads, (H, W) or (H, W, C), BGR where C is 3, into RGB or bands."""
    image = image[..., None] if image.ndim == 2 else image
    return np.ascontiguousarray(image[..., ::-1]) if image.shape[2] == 3 else image


def as_photo(pixels: np.ndarray) -> np.ndarray:
    """Makes pixels of any type and number of bands a picture that can be shown.

    Args:
        pixels: (H, W) or (H, W, C).

    Returns:
        (H, W, 3) uint8: the first three bands, or of one or two the first alone, in grey. Values
        that do not fit are stretched, from the darkest 2 % of them to the brightest.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    bands = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1].repeat(3, -1)
    with np.errstate(invalid='ignore'):
        plain = bands.astype(np.uint8)
        if np.array_equal(plain, bands):
            return plain
    finite = bands[np.isfinite(bands)].astype(np.float32)
    low, high = np.percentile(finite, (2, 98)) if finite.size else (0, 1)
    stretched = (bands.astype(np.float32) - low) * (255 / max(high - low, 1e-12))
    return np.nan_to_num(stretched, nan=0, posinf=255, neginf=0).clip(0, 255).astype(np.uint8)
