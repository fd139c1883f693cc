"""Images of several sizes in one batch, each run as if it had no padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def without_padding(
    forward: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor, strides: Sequence[int]
) -> tuple[Tensor, ...]:
    """Runs images of one size together, without their padding, and pads the maps with 0.

    Padding is the rows and columns at the bottom and right that are exactly 0 in all channels.

    Args:
        forward: From images (B, C, height, width) to maps.
        images: (B, C, height, width), padded to one size. The host waits for their values.
        strides: Of each map.

    Returns:
        The maps, of the whole batch's size.
    """
    sizes = sizes_without_padding(images)
    if set(sizes) == {tuple(images.shape[2:])}:
        return forward(images)
    full = [tuple(-(-side // stride) for side in images.shape[2:]) for stride in strides]
    parts: list[list[Tensor]] = [[] for _ in strides]  # [output][group]
    places: list[int] = []  # images in the order of the groups
    for height, width in sorted(set(sizes)):
        members = [i for i, size in enumerate(sizes) if size == (height, width)]
        places += members
        outs = forward(images[members, :, :height, :width])
        for part, out, (rows, columns) in zip(parts, outs, full, strict=True):
            part.append(F.pad(out, (0, columns - out.shape[3], 0, rows - out.shape[2])))
    back = torch.tensor(places, device=images.device).argsort()
    return tuple(torch.cat(part)[back] for part in parts)


def sizes_without_padding(images: Tensor) -> list[tuple[int, int]]:
    """Height and width of each image up to its last row and column that are not all 0.

    An image of zeros alone has no padding.
    """
    seen = images.ne(0).any(1)  # (B, height, width)
    sizes = []
    for dim, side in ((2, images.shape[2]), (1, images.shape[3])):
        number = torch.arange(1, side + 1, device=images.device)
        sizes.append((seen.any(dim) * number).amax(1))
    rows, columns = torch.stack(sizes).tolist()
    return [
        (h, w) if h else (images.shape[2], images.shape[3])
        for h, w in zip(rows, columns, strict=True)
    ]
