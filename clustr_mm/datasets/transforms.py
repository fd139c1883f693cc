"""Loading that names a damaged file.

`CheckedLoad` wraps the loading transform of any OpenMMLab library. It is registered in mmengine's
root registry; the wrapped transform is looked up when a pipeline is built, so that importing this
module imports no task library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmengine.fileio import get
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from clustr_mm.datasets.images import image_fault

ON_ERROR = ('raise', 'skip')
# What loads files first in a pipeline, by the type names of mmcv, mmdet, mmseg, mmpose, mmpretrain.
LOADERS = ('LoadImageFromFile', 'LoadImage', 'LoadAnnotations')
_MEND = (
    'restore the file or take it out of the data set (--cfg-options on_broken_file=skip trains '
    'without it)'
)


class DataFileError(ValueError):
    """An image or annotation file is missing, truncated, corrupt or of the wrong kind."""


@TRANSFORMS.register_module()
class CheckedLoad:
    """A loading transform that refuses a damaged file by name.

    Before the wrapped transform runs, the file is checked with `image_fault`, which finds what
    decoders let pass. Odd but whole files (CMYK, grey, 16 bits, EXIF rotation) load.

    Args:
        loader: config of the wrapped transform, say ``dict(type='LoadImageFromFile')``.
        on_error: 'raise' stops with a `DataFileError`; 'skip' logs a warning that names the file
            and returns None, upon which a training data set draws another sample. (When testing,
            mmengine stops at None: no image may be missing from a result.)
        keys: which of a sample's keys hold the paths of image files to check. None: 'seg_map_path'
            for a ``LoadAnnotations``, else 'img_path'. A key that a sample lacks is passed over.

    Raises:
        ValueError: for an unknown `on_error`.

    Example:
        >>> dict(type='CheckedLoad', loader=dict(type='LoadAnnotations'), on_error='skip')
    """

    def __init__(
        self,
        loader: dict[str, Any],
        on_error: str = 'raise',
        keys: Sequence[str] | None = None,
    ) -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f'on_error is {on_error!r}, must be one of {ON_ERROR}')
        kind = loader['type']
        name = kind if isinstance(kind, str) else kind.__name__
        if keys is None:
            keys = ('seg_map_path',) if name.endswith('LoadAnnotations') else ('img_path',)
        self.keys = tuple(keys)
        self.on_error = on_error
        self.loader: Callable[[dict], dict | None] = TRANSFORMS.build(loader)

    def __call__(self, results: dict) -> dict | None:
        """Check the sample's files, then load.

        Args:
            results: the sample so far; its 'img' (an array instead of a file) is never checked.

        Returns:
            What the wrapped transform returns; None for a damaged file if `on_error` is 'skip'.

        Raises:
            DataFileError: for a damaged file if `on_error` is 'raise'.
        """
        try:
            for key in self.keys:
                path = results.get(key)
                if path is not None and not (key == 'img_path' and 'img' in results):
                    self._check(path)
            loaded = self.loader(results)
            _check_label_map(loaded, results.get('seg_map_path'))
        except DataFileError as error:
            if self.on_error == 'raise':
                raise
            print_log(f'skipped a sample: {error}', logger='current', level=30)  # WARNING
            return None
        return loaded

    def _check(self, path: str) -> None:
        try:
            data = get(path, backend_args=getattr(self.loader, 'backend_args', None))
        except OSError as error:
            reason = error.strerror or error
            raise DataFileError(f'{path} cannot be read ({reason}): {_MEND}') from error
        fault = image_fault(data)
        if fault is not None:
            raise DataFileError(f'{path} {fault}: {_MEND}')

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.loader!r}, on_error={self.on_error!r})'


def _check_label_map(results: dict | None, path: str | None) -> None:
    """Refuse an annotation that is no label map of its image."""
    labels = None if results is None else results.get('gt_seg_map')
    if results is None or labels is None:
        return
    if labels.ndim != 2:
        raise DataFileError(
            f'{path} is no label map: shape {labels.shape}, must be (height, width) with one label '
            'a pixel (8-bit grey or palette png)'
        )
    size = results.get('ori_shape')
    if size is not None and labels.shape != tuple(size[:2]):
        raise DataFileError(
            f'{path} has {labels.shape[0]}x{labels.shape[1]} pixels, its image '
            f'{results.get("img_path")} {size[0]}x{size[1]}: they must have one size'
        )


def guard_pipeline(pipeline: Sequence[dict], on_error: str = 'raise') -> list[dict]:
    """Wrap the loading transforms of a pipeline in `CheckedLoad`.

    Args:
        pipeline: configs of transforms.
        on_error: 'raise' or 'skip', as `CheckedLoad` has it.

    Returns:
        A new list; transforms that load nothing, or are wrapped already, stay as they are.
    """
    out = []
    for step in pipeline:
        kind = step.get('type')
        if isinstance(kind, str) and kind.split('.')[-1] in LOADERS:
            step = dict(type='CheckedLoad', loader=step, on_error=on_error)
        elif kind == 'TestTimeAug':
            step = dict(step)
            step['transforms'] = [guard_pipeline(branch, on_error) for branch in step['transforms']]
        out.append(step)
    return out
