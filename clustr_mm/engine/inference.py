"""A trained model on images, folders and videos, by its library's own inferencer and visualizer."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import VISUALIZERS, DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.structures import InstanceData, PixelData
from PIL import Image

from clustr_mm.datasets.check import type_name
from clustr_mm.datasets.files import IMAGE_SUFFIXES
from clustr_mm.datasets.pixels import as_photo, rgb_or_bands
from clustr_mm.engine.config import library_of, load_config
from clustr_mm.engine.errors import UserError
from clustr_mm.engine.options import add_trust, choose_device
from clustr_mm.engine.pictures import image_loader, in_library
from clustr_mm.weights.files import load_strictly, read_checkpoint, state_dict_of

# The library of every task, its inferencer, and the visualizer where a config names none.
TASKS = {
    'classification': 'mmpretrain',
    'detection': 'mmdet',
    'pose': 'mmpose',
    'segmentation': 'mmseg',
}
_PARTS = {
    'mmdet': ('DetInferencer', 'DetLocalVisualizer'),
    'mmpose': ('Pose2DInferencer', 'PoseLocalVisualizer'),
    'mmpretrain': ('ImageClassificationInferencer', 'UniversalVisualizer'),
    'mmseg': ('MMSegInferencer', 'SegLocalVisualizer'),
}
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.webm')
_SIDE = 480  # pixels that an overlay has at least, about, squared
_OVERLAP = 0.3  # IoU above which two detected boxes are one person, as in mmpose's inferencer

_logger = logging.getLogger(__name__)
_handed: dict[str, dict[str, Any]] = {}  # contents of checkpoints on their way to an inferencer


@CheckpointLoader.register_scheme(prefixes='handed:')
def _take(filename: str, map_location: Any = None) -> dict[str, Any]:
    return _handed.pop(filename)


class Demo:
    """A trained model that, called with an image, draws what it predicts there.

    Args:
        task: One of ``TASKS``.
        config: Path of the model's config.
        checkpoint: Path of a checkpoint that training wrote, with the classes' names.
        device: Where the model runs.
        boxes: The persons of a top-down pose model's images, [left, top, width, height] in pixels;
            the same in all, and all of them drawn.
        detector: Config, checkpoint and class index of a detector that finds them; an image where
            it finds nobody stays as it is. With neither, the whole image is one person.
        score: The lowest score that is drawn, of detected objects and of keypoints; and the lowest
            that a detector's person has. Classification and segmentation have none.
        trust: Whether the checkpoints may run code, see ``clustr_mm.weights.files``.

    Attributes:
        model: The library's model.
        read: Reads an image file as the config's test pipeline does; see :func:`image_loader`.

    Raises:
        UserError: If the config is of another task, the checkpoint names no classes, a box has no
            area, or the detector has no such class.
        CheckpointError: If the checkpoint does not fit the model.
    """

    def __init__(
        self,
        task: str,
        config: str,
        checkpoint: str,
        device: str,
        boxes: Sequence[Sequence[float]] = (),
        detector: tuple[str, str, int] | None = None,
        score: float = 0.3,
        trust: bool = False,
    ) -> None:
        for box in boxes:
            if not (np.isfinite(box).all() and min(box[2:]) > 0):
                raise UserError(
                    f'box {" ".join(f"{each:g}" for each in box)} has no area; '
                    'give left, top, width and height in pixels'
                )
        cfg = _config_for(task, config)
        self.inferencer = _inferencer(cfg, checkpoint, device, trust)
        self.model = self.inferencer.model
        self.read = image_loader(cfg)
        self.top_down = task == 'pose' and cfg.data_mode == 'topdown'
        self.boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=np.float32)
        self.score = score
        drawing = dict(
            detection=dict(pred_score_thr=score), pose=dict(kpt_thr=score, draw_bbox=True)
        )
        self.how: dict[str, Any] = drawing.get(task, {})
        self.detector = None
        if detector is not None:
            path, weights, self.person = detector
            self.detector = _inferencer(_config_for('detection', path), weights, device, trust)
            last = len(self.detector.model.dataset_meta['classes']) - 1
            if not 0 <= self.person <= last:
                raise UserError(f'the detector has classes 0 to {last}, and no {self.person}')

    def predict(self, image: np.ndarray) -> Any:
        """The library's data sample of an image (H, W, C), BGR where C is 3."""
        return self._predict_poses(image) if self.top_down else _predict(self.inferencer, image)

    def _predict_poses(self, image: np.ndarray) -> Any:
        """A data sample of all persons. mmpose would take the whole image where there is no box."""
        from mmpose.apis import inference_topdown
        from mmpose.evaluation.functional import nms
        from mmpose.structures import PoseDataSample, merge_data_samples

        boxes = self.boxes if len(self.boxes) else None
        if self.detector is not None:
            objects = _predict(self.detector, image).pred_instances.cpu().numpy()
            persons = objects[(objects.labels == self.person) & (objects.scores >= self.score)]
            boxes = persons.bboxes[nms(np.column_stack([persons.bboxes, persons.scores]), _OVERLAP)]
            if len(boxes) == 0:
                return PoseDataSample()
        with DefaultScope.overwrite_default_scope('mmpose'):
            return merge_data_samples(inference_topdown(self.model, image, boxes))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Draws what the model predicts: (H, W, 3) uint8, RGB, of an image as for ``predict``."""
        sample, photo = self.predict(image), as_photo(rgb_or_bands(image))
        visualizer = self.inferencer.visualizer
        # Of a small image's pixels each becomes several: labels are read, and lines get finer.
        factor = max(1, round(_SIDE / (photo.shape[0] * photo.shape[1]) ** 0.5))
        photo = photo.repeat(factor, 0).repeat(factor, 1)
        chance = np.random.get_state()
        np.random.seed(0)  # mmdet varies the masks' colours; a video would flicker
        try:
            if hasattr(visualizer, 'visualize_cls'):
                visualizer.visualize_cls(photo, sample, draw_gt=False)
            else:
                sample = _enlarge(sample, factor)
                visualizer.add_datasample('', photo, sample, draw_gt=False, **self.how)
        finally:
            np.random.set_state(chance)
        return visualizer.get_image()

    def draw_file(self, file: Path, overlay: Path) -> None:
        """Draws on an image, or on every frame of a video, into another file."""
        overlay.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() in VIDEOS:
            self._draw_video(file, overlay)
        else:
            Image.fromarray(self(self.read(str(file)))).save(overlay)

    def _draw_video(self, video: Path, overlay: Path) -> None:
        import cv2
        import mmcv

        frames = mmcv.VideoReader(str(video))
        writer, drawn = None, 0
        partial = overlay.with_name(f'partial-{overlay.name}')
        for frame in frames if frames.opened else ():
            picture = self(frame)
            if writer is None:
                code, size = cv2.VideoWriter.fourcc(*'mp4v'), picture.shape[1::-1]
                writer = cv2.VideoWriter(str(partial), code, frames.fps or 25.0, size)
            writer.write(picture[..., ::-1])
            drawn += 1
        if writer is None:
            raise UserError(f'{video} has no frame that can be read; leave it out')
        writer.release()
        if drawn < len(frames):  # cut off, or its container counts more than it holds
            _logger.warning('%s: %d of %d frames could be read', video, drawn, len(frames))
        os.replace(partial, overlay)


def _config_for(task: str, path: str) -> Config:
    """Reads a config, with what the inferencers look for in the form that they know."""
    cfg = load_config(path)
    cfg.default_scope = library = library_of(cfg)
    if library != TASKS[task]:
        of = next(name for name, each in TASKS.items() if each == library)
        raise UserError(f'config {path} is for {of}, not for {task}; give another config or task')
    cfg.test_dataloader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    if cfg.test_dataloader is None:
        raise UserError(f'config {path} has no test_dataloader, whose pipeline reads images')
    dataset = cfg.test_dataloader.dataset
    for step in dataset.pipeline:
        name = type_name(step['type'])
        if name.startswith('Load'):
            step['type'] = name
    # They look for the first two at the top, and build backends that would have nowhere to write.
    cfg.setdefault('dataset_type', type_name(dataset['type']))
    cfg.setdefault('data_mode', dataset.get('data_mode', 'topdown'))
    cfg.setdefault('visualizer', dict(type=_PARTS[library][1])).pop('vis_backends', None)
    return cfg


def _inferencer(cfg: Config, checkpoint: str, device: str, trust: bool) -> Any:
    """The library's inferencer with a model whose weights are all from the checkpoint."""
    content = read_checkpoint(checkpoint, trust=trust)
    meta = (content.get('meta') or {}).get('dataset_meta')
    if meta is None:
        raise UserError(
            f'checkpoint {checkpoint} does not name its classes; give one that training wrote'
        )
    state_dict = state_dict_of(content, checkpoint)
    weights = f'handed:{checkpoint}'
    _handed[weights] = {**content, 'state_dict': state_dict}
    library = cfg.default_scope
    build = getattr(importlib.import_module(f'{library}.apis'), _PARTS[library][0])
    how = dict(det_model='whole_image') if library == 'mmpose' else {}
    # They load what fits and print what does not; here a weight that does not is an error.
    with in_library(library):
        inferencer = build(cfg, weights, device=device, **how)
        if inferencer.visualizer is None:
            inferencer.visualizer = VISUALIZERS.build(cfg.visualizer)
    if library in ('mmseg', 'mmpretrain'):  # which would tell it at their own drawing
        inferencer.visualizer.dataset_meta = meta
    if unexpected := load_strictly(inferencer.model, state_dict, source=checkpoint):
        _logger.warning('%s: the model does not have %s', checkpoint, ', '.join(unexpected))
    return inferencer


def _predict(inferencer: Any, image: np.ndarray) -> Any:
    """An inferencer's data sample of an image, without a bar of its progress."""
    batch = next(iter(inferencer.preprocess([image])))
    if not isinstance(batch, dict):  # mmdet and mmpose give the images along
        batch = next(part for part in batch if isinstance(part, dict))
    return inferencer.forward(batch)[0]


def _enlarge(sample: Any, factor: int) -> Any:
    """Moves a prediction to where it is in an image of repeated pixels."""

    def repeat(pixels: Any) -> torch.Tensor:
        return torch.as_tensor(pixels).repeat_interleave(factor, -2).repeat_interleave(factor, -1)

    sample = sample.new()
    for name, part in [each for each in sample.items() if each[0].startswith('pred_')]:
        if isinstance(part, PixelData):
            sample.set_field(PixelData(data=repeat(part.data)), name)
        elif isinstance(part, InstanceData):
            moved = part.new()
            for key in {'bboxes', 'keypoints'} & set(part.keys()):
                moved.set_field(part[key] * factor, key)
            if 'masks' in part:
                moved.set_field(repeat(part.masks), 'masks')
            sample.set_field(moved, name)
    return sample


def add_demo_options(parser: argparse.ArgumentParser) -> None:
    """Adds what the demos' command lines share; :func:`demo_from` takes it."""
    parser.add_argument('task', choices=sorted(TASKS), metavar='TASK')
    parser.add_argument('config', help="the model's config")
    parser.add_argument('checkpoint', help='a checkpoint that training wrote')
    parser.add_argument(
        '--score', type=float, default=0.3, metavar='FROM_0_TO_1',
        help='the lowest that is drawn, of detected objects, persons and keypoints (0.3); '
        'classification and segmentation have none',
    )  # fmt: skip
    parser.add_argument('--det-config', help='a detector of persons, of mmdet')
    parser.add_argument('--det-checkpoint')
    parser.add_argument('--det-class', type=int, default=0, help='its class of persons (0)')
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='a GPU where there is one')
    add_trust(parser)


def demo_from(options: argparse.Namespace, boxes: Sequence[Sequence[float]] = ()) -> Demo:
    """Loads the model that a demo's command line names, and keeps the libraries quiet.

    Raises:
        UserError: As for :class:`Demo`; or if persons are asked for in another task, in two ways
            at once, or of half a detector.
    """
    warnings.filterwarnings('ignore')
    MMLogger.get_current_instance().setLevel('ERROR')
    named = (options.det_config, options.det_checkpoint)
    if any(named) and not all(named):
        raise UserError('a detector needs --det-config and --det-checkpoint; give both')
    if options.task != 'pose' and (boxes or any(named)):
        raise UserError(f'boxes and detectors are for pose, not for {options.task}; leave them out')
    if boxes and any(named):
        raise UserError('both --box and a detector say where persons are; leave one out')
    detector = (*named, options.det_class) if any(named) else None
    device = choose_device(options.device)
    model = options.task, options.config, options.checkpoint
    return Demo(*model, device, boxes, detector, options.score, options.trust_checkpoint)


def plan_overlays(source: str, out_dir: str) -> list[tuple[Path, Path]]:
    """The images and videos of a file or folder, each with the overlay to be drawn.

    An overlay is named after its file: a video's ends in .mp4, and that of a file whose ending is
    no image's in .png.

    Raises:
        UserError: If there is none, or an overlay would replace one of the files or another.
    """
    path = Path(source)
    if not path.exists():
        raise UserError(f'{source} does not exist; give an image, a folder or a video')
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES + VIDEOS)
    if not files:
        raise UserError(f'{source} has no image and no video in it; give another folder')
    inputs = {file.resolve() for file in files}
    owners: dict[Path, Path] = {}
    for file in files:
        overlay = Path(out_dir, file.name)
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            overlay = overlay.with_suffix('.mp4' if file.suffix.lower() in VIDEOS else '.png')
        if overlay.resolve() in inputs:
            raise UserError(
                f'the overlay of {file} would replace {overlay}; choose another --out-dir'
            )
        if (other := owners.setdefault(overlay, file)) is not file:
            raise UserError(f'{other} and {file} would share the overlay {overlay}; rename one')
    return [(file, overlay) for overlay, file in owners.items()]
