"""Which file of a sample is damaged: it tells bad data from a bug when loading has failed.

Nothing is looked at beforehand. The sample's loading steps run once more, and what they fail on is
read with Pillow, which says what is wrong with a file; whatever is left is a bug.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.fileio import get

# What loaders raise for their own mistakes, never for what is in a file.
_BUGS = (TypeError, AttributeError, NameError, ImportError, KeyError)


def sample_fault(dataset: Any, index: int) -> str | None:
    """Say which file of a sample is missing or damaged, by loading the sample again.

    Args:
        dataset: a data set of an mm library that is no wrapper, as `failed_sample` finds it.
        index: the sample's place in it.

    Returns:
        The file's path and what is wrong with it; None where the sample's files are whole, or the
        data set does not say which they are.
    """
    try:
        sample = dataset.get_data_info(index)
    except Exception:  # a foreign data set, or not the file's fault
        return None
    steps = loading_steps(dataset)
    for step in steps:
        name = type(step).__name__
        reads = {True} if 'Image' in name else {False} if 'Annotation' in name else {True, False}
        paths = [path for path, is_image in _paths(sample) if is_image in reads]
        try:
            sample = step(sample)
        except Exception as error:
            backend = getattr(step, 'backend_args', None)
            return next(filter(None, (file_fault(path, error, backend) for path in paths)), None)
        if sample is None:
            return None
    if not steps:  # it reads its files in a way of its own
        faults = (file_fault(path, None) for path, is_image in _paths(sample) if is_image)
        return next(filter(None, faults), None)
    return next(loaded_faults(sample), None)


def failed_sample(error: BaseException) -> tuple[Any, int] | None:
    """Find the data set and the place of the sample that was being loaded when an error was raised.

    It need not be the one that was asked for: wrappers count in their own way, mosaics load others
    besides. None if no data set of mmengine was loading one, or the error has lost its traceback.
    """
    found = None
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == 'prepare_data' and {'self', 'idx'} <= frame.f_locals.keys():
            found = (frame.f_locals['self'], frame.f_locals['idx'])
        trace = trace.tb_next
    return found


def loading_steps(dataset: Any) -> list[Any]:
    """The steps of a built data set's pipeline that load files: all libraries call them Load..."""
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    return [step for step in steps if type(step).__name__.startswith('Load')]


def loaded_faults(sample: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong between the parts of a loaded sample, each with its file.

    Looked at are 'img' (H, W, C), 'gt_seg_map' (H, W), and 'height' and 'width' in pixels, which
    its annotations are made for.
    """
    image, labels = sample.get('img'), sample.get('gt_seg_map')
    path = sample.get('img_path')
    size = getattr(image, 'shape', (None, None))[:2]
    stated = (sample.get('height'), sample.get('width'))
    if None not in size and None not in stated and tuple(size) != stated:
        hint = ': is it turned by its EXIF tag?' if size == stated[::-1] else ''
        yield (
            f'{path} has {size[0]}x{size[1]} pixels (height x width), its annotations are made for '
            f'{stated[0]}x{stated[1]}{hint}'
        )
    if labels is not None and labels.ndim != 2:
        yield (
            f'{sample.get("seg_map_path")} is no label map: shape {labels.shape}, must be (height, '
            'width) with one label a pixel (8-bit grey or palette png)'
        )
    elif labels is not None and None not in size and labels.shape != tuple(size):
        yield (
            f'{sample.get("seg_map_path")} has {labels.shape[0]}x{labels.shape[1]} pixels, its '
            f'image {path} {size[0]}x{size[1]}: they must have one size'
        )


def file_fault(
    path: str, error: Exception | None, backend_args: Mapping[str, Any] | None = None
) -> str | None:
    """Say what is wrong with an image file or a label map; None if it is whole.

    Args:
        path: where it is, for mmengine's file backends.
        error: what its loader raised, if it did: formats that Pillow does not know are damaged
            where their own loader says so.
        backend_args: as the loading transforms have it.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        data = get(path, backend_args=dict(backend_args) if backend_args else None)
    except OSError as reason:
        return f'{path} cannot be read ({reason.strerror or reason})'
    if not data:
        return f'{path} is empty (0 bytes)'
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()  # checksums
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Image.DecompressionBombError:
        return None  # Pillow's own limit, and not the loaders'
    except UnidentifiedImageError:
        suffix = os.path.splitext(path)[1].lower()
        known = suffix in Image.registered_extensions() and not suffix.startswith('.tif')
        if known or (error is not None and not isinstance(error, _BUGS)):
            said = f' ({first_line(error)})' if error and 'BytesIO' not in str(error) else ''
            return f'{path} is not an image, or of a format that its loader cannot read{said}'
    except Exception as reason:  # Pillow raises half a dozen kinds for damaged files
        return f'{path} is truncated or corrupt ({first_line(reason)})'
    return None


def first_line(error: BaseException) -> str:
    """An exception's type and the first line of what it says."""
    return ' '.join(f'{type(error).__name__}: {error}'.strip().split('\n')[0].split())


def _paths(node: Any, key: str = '') -> Iterator[tuple[str, bool]]:
    """Yield the paths that a sample names, and whether each is an image's (or a label map's)."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _paths(value, str(name))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _paths(value, key)
    elif isinstance(node, str) and 'path' in key:
        yield node, 'img' in key
