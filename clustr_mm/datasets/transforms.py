"""Pipelines that name the file when a sample cannot be used.

`CheckedLoad` wraps the loading transform of any OpenMMLab library, `CheckedStep` any transform that
comes after it. They are registered in mmengine's root registry; the wrapped transform is looked up
when a pipeline is built, so that importing this module imports no task library.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmengine.fileio import get
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from clustr_mm.datasets.annotations import class_names, image_sizes
from clustr_mm.datasets.images import bits_per_channel, decode_deep, depth_fault, image_fault

if TYPE_CHECKING:
    import numpy as np

ON_ERROR = ('raise', 'skip')
# What loads files first in a pipeline, by the type names of mmcv, mmdet, mmseg, mmpose, mmpretrain.
LOADERS = ('LoadImageFromFile', 'LoadImage', 'LoadAnnotations')
_CHECKED = ('CheckedLoad', 'CheckedStep')
_IGNORED = 255  # the label of pixels that no loss and no metric counts
_MEND = (
    'restore the file or take it out of the data set (--cfg-options on_broken_file=skip trains '
    'without it; validation and test need every file)'
)


class DataFileError(ValueError):
    """An image or annotation file is missing, damaged, of the wrong kind, or cannot be used."""


@TRANSFORMS.register_module()
class CheckedStep:
    """A transform that names the sample's file where it fails.

    Args:
        transform: config of the wrapped transform, say ``dict(type='Resize', scale=(64, 64))``.
        on_error: 'raise' stops with a `DataFileError`; 'skip' logs a warning that names the file
            and returns None, upon which a training data set draws another sample. (When testing,
            mmengine stops at None: no image may be missing from a result.)

    Raises:
        ValueError: for an unknown `on_error`.
    """

    def __init__(self, transform: dict[str, Any], on_error: str = 'raise') -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f'on_error is {on_error!r}, must be one of {ON_ERROR}')
        self.on_error = on_error
        self.name = type_name(transform.get('type', ''))
        self.transform: Callable[[dict], dict | None] = TRANSFORMS.build(transform)

    def __call__(self, results: dict) -> dict | None:
        """Run the wrapped transform.

        Args:
            results: the sample so far.

        Returns:
            What the wrapped transform returns; None for a sample that it fails on if `on_error` is
            'skip'.

        Raises:
            DataFileError: for a sample that it fails on if `on_error` is 'raise'.
        """
        path = self.path_of(results)
        try:
            return self.run(results)
        except DataFileError as error:
            fault = error
        except Exception as error:
            if path is None:
                raise
            # Of a library's own sentence, the first line says it.
            reason = ' '.join(f'{type(error).__name__}: {error}'.split('\n')[0].split())
            number = f' (annotation {results["id"]})' if isinstance(results.get('id'), int) else ''
            fault = DataFileError(f'{path}{number}: {self.name} fails on it ({reason}); {_MEND}')
            fault.__cause__ = error
        if self.on_error == 'raise':
            raise fault
        print_log(f'skipped a sample: {fault}', logger='current', level=30)  # WARNING
        return None

    def path_of(self, results: dict) -> str | None:
        """The file that is at fault where the wrapped transform fails."""
        return results.get('img_path')

    def run(self, results: dict) -> dict | None:
        """Run the wrapped transform, with whatever is to be checked before and after it."""
        return self.transform(results)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.transform!r}, on_error={self.on_error!r})'


@TRANSFORMS.register_module()
class CheckedLoad(CheckedStep):
    """A loading transform that refuses by name a file that is damaged or does not fit.

    Before the wrapped transform runs, the file is checked with `image_fault`, which finds what
    decoders let pass; afterwards, that the picture has the size that its annotations are made for,
    that 8 bits were enough for it, and that a label map has the picture's size and known labels.
    Keypoints outside the picture count as not labelled. Odd but whole files (CMYK, grey, 16 bits,
    EXIF rotation) load.

    Args:
        loader: config of the wrapped transform, say ``dict(type='LoadImageFromFile')``.
        on_error: 'raise' or 'skip', as `CheckedStep` has it.
        keys: which of a sample's keys hold the paths of image files to check. None: 'seg_map_path'
            for a ``LoadAnnotations``, else 'img_path'. A key that a sample lacks is passed over.
        num_classes: how many labels a label map may have, besides 255 for pixels that do not
            count. None: as many as the data set maps its labels to, if it maps them.

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
        num_classes: int | None = None,
    ) -> None:
        super().__init__(loader, on_error)
        if keys is None:
            keys = ('seg_map_path',) if self.name == 'LoadAnnotations' else ('img_path',)
        self.keys = tuple(keys)
        self.num_classes = num_classes

    def path_of(self, results: dict) -> str | None:
        """The file that the wrapped transform loads."""
        paths = (results.get(key) for key in self.keys)
        return next((path for path in paths if path is not None), super().path_of(results))

    def run(self, results: dict) -> dict | None:
        """Check the sample's files, load, and check what was loaded.

        Args:
            results: the sample so far; its 'img' (an array instead of a file) is never checked.

        Returns:
            What the wrapped transform returns.

        Raises:
            DataFileError: for a file that is damaged or does not fit.
        """
        files = {
            key: results[key]
            for key in self.keys
            if results.get(key) is not None and not (key == 'img_path' and 'img' in results)
        }
        contents = {key: self._read(path) for key, path in files.items()}
        loads_image = 'img' not in results
        size = _annotated_size(results)
        loaded = self.transform(results)
        if loaded is None:
            return None
        if loads_image and 'img' in loaded:
            _check_image(loaded['img'], loaded, contents.get('img_path'), size)
            if 'keypoints_visible' in loaded and loaded['keypoints'].shape[-1] == 2:
                _hide_outside(loaded)
        if 'seg_map_path' in contents and loaded.get('gt_seg_map') is not None:
            _check_label_map(loaded, contents['seg_map_path'], self.num_classes)
        return loaded

    def _read(self, path: str) -> bytes:
        """Read a file that is an image, and whole."""
        try:
            data = get(path, backend_args=getattr(self.transform, 'backend_args', None))
        except OSError as error:
            reason = error.strerror or error
            raise DataFileError(f'{path} cannot be read ({reason}): {_MEND}') from error
        fault = image_fault(data)
        if fault is not None:
            raise DataFileError(f'{path} {fault}: {_MEND}')
        return data


def guard_pipeline(
    pipeline: Sequence[dict], on_error: str = 'raise', num_classes: int | None = None
) -> list[dict]:
    """Make a pipeline name the file of a sample that it cannot use.

    The loading transforms are wrapped in `CheckedLoad`, those behind them in `CheckedStep`.

    Args:
        pipeline: configs of transforms.
        on_error: 'raise' or 'skip', as `CheckedStep` has it.
        num_classes: how many labels a label map may have, as `CheckedLoad` has it.

    Returns:
        A new list; transforms before the first loading one (or all, where nothing is loaded, as in
        a wrapper that mixes samples), and those wrapped already, stay as they are.
    """
    load: dict[str, Any] = dict(type='CheckedLoad', on_error=on_error)
    if num_classes is not None:
        load['num_classes'] = num_classes

    def guard(steps: Sequence[dict], loaded: bool) -> list[dict]:
        out = []
        for step in steps:
            name = type_name(step.get('type', ''))
            if name in LOADERS:
                step, loaded = dict(load, loader=step), True
            elif name in _CHECKED:
                loaded = True
            elif name == 'TestTimeAug':
                branches = [guard(branch, loaded) for branch in step['transforms']]
                step = dict(step, transforms=branches)
            elif loaded:
                step = dict(type='CheckedStep', transform=step, on_error=on_error)
            out.append(step)
        return out

    return guard(pipeline, loaded=False)


def guard_dataset(
    dataset: Mapping[str, Any], scope: str | None, on_error: str = 'raise'
) -> list[dict]:
    """Make a data set's pipeline name the file of a sample that it cannot use.

    Args:
        dataset: config of the data set, with its 'pipeline'.
        scope: the library that a type without scope is of.
        on_error: 'raise' or 'skip', as `CheckedStep` has it.

    Returns:
        What `guard_pipeline` makes of its pipeline. The labels of mmseg's data sets must be those
        of their classes (mmdet's may count stuff besides).
    """
    kind = dataset.get('type', '')
    library = kind.split('.')[0] if isinstance(kind, str) and '.' in kind else scope
    names = class_names(dataset, scope) if library == 'mmseg' else None
    return guard_pipeline(dataset['pipeline'], on_error, len(names) if names else None)


def type_name(kind: str | type) -> str:
    """A type's name without its library.

    Args:
        kind: As a config's ``type`` says it: a name, or the class itself.

    Returns:
        str: Its last part.
    """
    return kind.split('.')[-1] if isinstance(kind, str) else kind.__name__


def _annotated_size(results: dict) -> tuple[int, int] | None:
    """Height and width of the picture that a sample's annotations are made for, if it is known."""
    if 'height' in results and 'width' in results:
        return results['height'], results['width']
    # mmpose's samples do not say it, but whose they are: look into that data set's file.
    path = getattr(results.get('dataset'), 'ann_file', None)
    return _sizes(path).get(results.get('img_id')) if path else None


# Once for every data set and process. A data-loading process inherits or makes its own.
_sizes = functools.lru_cache(maxsize=8)(image_sizes)


def _check_image(
    image: np.ndarray, results: dict, data: bytes | None, size: tuple[int, int] | None
) -> None:
    """Refuse a picture of another size than its annotations', or of too narrow a range."""
    path = results.get('img_path')
    if size is not None and image.shape[:2] != tuple(size):
        turned = image.shape[:2] == tuple(size[::-1])
        mend = (
            'is it turned by its EXIF tag? If the annotations fit the pixels as stored, load it '
            "with color_type='color_ignore_orientation'"
            if turned
            else 'bring back the picture that was annotated, or annotate this one'
        )
        raise DataFileError(
            f'{path} has {image.shape[0]}x{image.shape[1]} pixels (height x width), its '
            f'annotations are made for {size[0]}x{size[1]}: {mend}'
        )
    fault = None if data is None else depth_fault(data, image)
    if fault is not None:
        raise DataFileError(f'{path} {fault}')


def _hide_outside(results: dict) -> None:
    """Make keypoints outside the picture not visible, (N, K, 2) and (N, K) in mmpose's samples."""
    points, (height, width) = results['keypoints'], results['img'].shape[:2]
    inside = ((points >= 0) & (points <= (width, height))).all(axis=-1)
    results['keypoints_visible'] = results['keypoints_visible'] * inside


def _check_label_map(results: dict, data: bytes, num_classes: int | None) -> None:
    """Refuse an annotation that is no label map of its image."""
    path, labels = results['seg_map_path'], results['gt_seg_map']
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
    if data.startswith(b'\xff\xd8'):
        raise DataFileError(
            f'{path} is a JPEG, which blurs labels into others: write it anew as png, from what it '
            'was made of'
        )
    bits = bits_per_channel(data)
    if bits > 16:
        raise DataFileError(
            f'{path} has {bits} bits a channel, of which labels lose fractions and nan: write it '
            'anew with 8'
        )
    if bits > 8 and (top := decode_deep(data).max()) > _IGNORED:
        raise DataFileError(
            f'{path} has label {top}: labels are read as 8 bits, must be 0 to {_IGNORED}'
        )
    mapped = results.get('label_map')
    if mapped:
        num_classes = 1 + max(new for new in mapped.values() if new != _IGNORED)
    if num_classes is not None:
        unknown = labels[(labels >= num_classes) & (labels != _IGNORED)]
        if unknown.size:
            shift = results.get('reduce_zero_label') and ' (in the file one more)'
            raise DataFileError(
                f'{path} has label {unknown.max()}{shift or ""} on {unknown.size} pixels: the '
                f'model has {num_classes} classes, and {_IGNORED} is for pixels that do not count'
            )
