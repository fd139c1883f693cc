"""A picture of every tested image, whatever the task library.

The libraries' own hooks differ in their options, and some draw every 50th image only; their
visualizers all draw one sample into one file, so one hook over those serves all.
"""

import inspect
import os
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.structures import InstanceData, PixelData

_SIDE = 640  # pixels that an enlarged picture's shorter side has, about: by a whole factor


@HOOKS.register_module()
class PictureHook(Hook):
    """Draws every tested image with its prediction (and its truth, where the library does).

    Args:
        out_dir: The folder to draw into. A picture is named after its image; where two images
            share a name, after the folder too.
    """

    priority = 'LOW'

    def __init__(self, out_dir: str) -> None:
        self.out_dir = out_dir
        self._taken: dict[str, str] = {}
        self._persons: list[Any] = []

    def before_test(self, runner: Any) -> None:
        """Makes the folder, and tells a pose visualizer about its keypoints."""
        os.makedirs(self.out_dir, exist_ok=True)
        self._batches = len(runner.test_loop.dataloader)
        self._most_batches = max(all_gather_object(self._batches))
        # The test loop has told it; but mmpose's draws by what this method works out.
        tell = getattr(runner.visualizer, 'set_dataset_meta', None)
        if tell is not None and 'skeleton_style' in inspect.signature(tell).parameters:
            tell(runner.test_loop.dataloader.dataset.metainfo)

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        """Draws one batch, of all processes, in the first one (visualizers draw only there)."""
        self._draw_all(runner, [sample.cpu() for sample in outputs or ()])
        if batch_idx + 1 == self._batches:
            for _ in range(self._batches, self._most_batches):  # others have more
                self._draw_all(runner, [])

    def _draw_all(self, runner: Any, samples: list[Any]) -> None:
        """Draws the samples of all processes in the first one."""
        gathered = all_gather_object(samples)
        if not is_main_process():
            return
        # Processes take turns at the images, so taking turns at them gives the order back.
        in_turn = chain.from_iterable(zip_longest(*gathered))
        for sample in (each for each in in_turn if each is not None):
            if 'pred_instances' in sample and 'keypoints' in sample.pred_instances:
                # A top-down model gives a sample for every person, one image's in a row.
                if self._persons and self._persons[0].img_path != sample.img_path:
                    self._draw_persons(runner)
                self._persons.append(sample)
            else:
                self._draw(runner, sample)

    def after_test_epoch(self, runner: Any, metrics: dict | None = None) -> None:
        """Draws the last image's persons and says where the pictures are."""
        if self._persons:
            self._draw_persons(runner)
        if is_main_process():
            print_log(f'Pictures of {len(self._taken)} images: {self.out_dir}', logger='current')

    def _draw_persons(self, runner: Any) -> None:
        from mmpose.structures import merge_data_samples

        self._draw(runner, merge_data_samples(self._persons), draw_gt=False, draw_bbox=True)
        self._persons = []

    def _draw(self, runner: Any, sample: Any, **how: Any) -> None:
        out_file = os.path.join(self.out_dir, self._name(sample.img_path))
        draw_sample(runner.visualizer, sample, out_file, **how)

    def _name(self, path: str) -> str:
        """Names an image's picture, no two alike."""
        name = next(each for each in _names(path) if self._taken.get(each, path) == path)
        self._taken[name] = path
        return name


def draw_sample(visualizer: Any, sample: Any, out_file: str, **how: Any) -> None:
    """Draws a data sample over its image; a small image is enlarged.

    Args:
        visualizer: A visualizer of mmdet, mmseg, mmpose or mmpretrain.
        sample: The data sample, with ``img_path``.
        out_file: The picture to write.
        how: As for the visualizer's method.
    """
    import mmcv

    image = mmcv.imread(sample.img_path, channel_order='rgb')
    factor = max(1, round(_SIDE / min(image.shape[:2])))
    chance = np.random.get_state()
    np.random.seed(0)  # mmdet varies the masks' colours; a picture is to be the same every time
    try:
        if hasattr(visualizer, 'visualize_cls'):
            how['rescale_factor'] = factor
            visualizer.visualize_cls(image, sample, out_file=out_file, **how)
            return
        if factor > 1:
            image, sample = _enlarge(image, sample, factor)
        visualizer.add_datasample('picture', image, sample, out_file=out_file, **how)
    finally:
        np.random.set_state(chance)


def _enlarge(image: np.ndarray, sample: Any, factor: int) -> tuple[np.ndarray, Any]:
    """Repeats every pixel of an image (H, W, 3), and its sample's with it: lines get finer."""
    sample = sample.new()
    for key, value in list(sample.items()):
        if key in ('pred_sem_seg', 'gt_sem_seg'):
            sample.set_data({key: PixelData(data=_repeat(value.data, factor))})
        elif isinstance(value, InstanceData):
            sample.set_data({key: _enlarge_instances(value, factor)})
    return _repeat(image.transpose(2, 0, 1), factor).transpose(1, 2, 0), sample


def _enlarge_instances(instances: InstanceData, factor: int) -> InstanceData:
    """Moves boxes, keypoints and masks to where they are in the enlarged image."""
    instances = instances.new()
    for key, value in list(instances.items()):
        if key in ('bboxes', 'keypoints') and isinstance(value, np.ndarray | torch.Tensor):
            instances.set_field(value * factor, key)
        elif key == 'bboxes':  # mmdet's class of boxes
            boxes = value.clone()
            boxes.rescale_((factor, factor))
            instances.set_field(boxes, key)
        elif key == 'masks' and isinstance(value, np.ndarray | torch.Tensor):
            instances.set_field(_repeat(value, factor), key)
        elif key == 'masks':  # mmdet's class of masks
            instances.set_field(value.rescale(factor), key)
    return instances


def _repeat(pixels: Any, factor: int) -> Any:
    """(..., H, W) to (..., factor * H, factor * W), of either library."""
    if isinstance(pixels, torch.Tensor):
        return pixels.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    return pixels.repeat(factor, -2).repeat(factor, -1)


def _names(path: str) -> Iterator[str]:
    """Yields the file's name, then with more and more of its folders in front."""
    parts = os.path.splitext(os.path.abspath(path))[0].strip(os.sep).split(os.sep)
    for start in range(len(parts) - 1, -1, -1):
        yield '_'.join(parts[start:]) + '.jpg'
    yield os.path.abspath(path).strip(os.sep).replace(os.sep, '_') + '.jpg'  # with its own ending
