"""Masks as COCO writes them, and whether one can be drawn.

pycocotools draws what it is given: a polygon far away takes the machine's memory or kills the
process, run lengths that end early leave what was in memory before in the mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# pycocotools walks along a polygon in fifths of a pixel, and beyond 2**31 of them off its arrays.
_FARTHEST = 100_000  # pixels


def rle(mask: np.ndarray) -> dict:
    """COCO's run-length code of a mask, uncompressed: exact, and needs no pycocotools to write.

    Args:
        mask: (H, W) bool.

    Returns:
        ``size`` (H, W) and ``counts``, lengths of runs down the columns, the first one of zeros.
    """
    flat = np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])
    changes = np.flatnonzero(np.diff(flat))
    ends = np.concatenate([[0], changes, [mask.size]])
    counts = np.diff(ends).tolist()
    if counts[-1] == 0:  # the mask reaches the last pixel
        counts.pop()
    return dict(size=list(mask.shape), counts=counts)


def mask_fault(mask: Any, size: tuple[int, int], evaluated: bool) -> str | None:
    """Say why a mask cannot be drawn.

    Args:
        mask: an annotation's 'segmentation': a list of polygons, or run lengths as a dict of 'size'
            and 'counts', which are a list or COCO's code of one.
        size: height and width of the image in pixels.
        evaluated: whether the evaluation reads the mask, too.

    Returns:
        What is wrong, as the end of a sentence; None if it can be drawn.
    """
    if isinstance(mask, Mapping):
        if mask.get('size') not in (list(size), tuple(size)):
            return f'has a mask of size {mask.get("size")}, its image {list(size)} (height, width)'
        return _counts_fault(mask.get('counts'), size[0] * size[1])
    if not isinstance(mask, list) or not mask:
        return "has no 'segmentation'"
    for polygon in mask:
        if not isinstance(polygon, list) or not finite(polygon):
            return "has a nan, an inf or a text in 'segmentation'"
        if evaluated and not encloses(polygon):
            return f"has {len(polygon)} numbers in a polygon of 'segmentation', must be 6, 8, ..."
        if polygon and max(max(polygon), -min(polygon)) > _FARTHEST:
            return f"has a point more than {_FARTHEST:,} pixels away in 'segmentation'"
    return None


def encloses(polygon: Sequence[float]) -> bool:
    """Whether x, y, ... are three points or more."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def finite(values: Sequence) -> bool:
    """Whether all are numbers, and none nan, infinite or beyond a float."""
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def _counts_fault(counts: Any, pixels: int) -> str | None:
    """Say what is wrong with run lengths, which must fill the image and no more."""
    if not counts:
        return "has a mask without 'counts'"
    if isinstance(counts, str):
        try:
            counts = _decode(counts)
        except ValueError:
            return "has a text in 'counts' that is no code of run lengths"
    if not isinstance(counts, list) or not all(isinstance(each, int) for each in counts):
        return "has something else than whole numbers in 'counts'"
    if min(counts) < 0:
        return f"has a negative number in 'counts', {min(counts)}"
    if sum(counts) != pixels:
        return f"has a mask of {sum(counts)} pixels in 'counts', its image {pixels}"
    return None


def _decode(code: str) -> list[int]:
    """Decode COCO's text of run lengths.

    A number is a row of characters from chr(48) on, of five bits each, lowest first; a sixth says
    that it goes on, the last one's fifth is its sign. From the fourth on, a number is the
    difference to the one before the last (rleFrString in pycocotools' maskApi.c).

    Raises:
        ValueError: if a character is none of these, or the last number does not end.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in code:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f'{character!r} is no digit')
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError('the last number does not end')
    return lengths
