"""One model on images, folders and videos, by the libraries' inferencers, with overlays written."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import nn

from clustr_mm.datasets.files import IMAGE_SUFFIXES
from clustr_mm.engine.config import load_config
from clustr_mm.engine.devices import choose_device
from clustr_mm.engine.errors import UserError
from clustr_mm.engine.options import add_trust
from clustr_mm.engine.pictures import draw_sample
from clustr_mm.weights.files import (
    load_strictly,
    read_checkpoint,
    state_dict_of,
    trust_checkpoints,
)

# The library of every task.
TASKS = {
    'classification': 'mmpretrain',
    'detection': 'mmdet',
    'pose': 'mmpose',
    'segmentation': 'mmseg',
}
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.webm')

_OVERLAP = 0.3  # IoU above which two detected boxes are one person, as in mmpose's inferencer

_logger = logging.getLogger(__name__)

Draw = Callable[[str, str], None]  # an image file to an overlay file
Persons = Callable[[str], np.ndarray]  # an image file to boxes: left, top, right, bottom, (P, 4)


@dataclass(frozen=True)
class Demo:
    """A loaded model that draws what it predicts; called with an image file and an overlay file.

    Attributes:
        task: One of ``TASKS``.
        inferencer: The library's own, with the model in it.
        persons: Finds the persons of a pose model's image.
        how: Options of the library's visualizer.
    """

    task: str
    inferencer: Any
    persons: Persons
    how: Mapping[str, Any]

    @property
    def model(self) -> nn.Module:
        """The library's model."""
        return self.inferencer.model

    def predict(self, image: str) -> Any:
        """The library's data sample of an image; without instances where nobody is found."""
        if self.task == 'pose':
            sample = _predict_poses(self.model, image, self.persons(image))
        else:
            result = self.inferencer(image, return_datasamples=True)
            result = result['predictions'] if isinstance(result, dict) else result
            sample = result[0] if isinstance(result, list) else result
        sample.set_metainfo({'img_path': image})
        return sample

    def __call__(self, image: str, overlay: str) -> None:
        """Draws what the model predicts in one image, into another file."""
        draw_sample(self.inferencer.visualizer, self.predict(image), overlay, **self.how)


def load_demo(
    task: str,
    config: str,
    checkpoint: str,
    device: str,
    boxes: Sequence[Sequence[float]] = (),
    detector: tuple[str, str, int] | None = None,
    score: float = 0.3,
) -> Demo:
    """Loads a model that draws what it predicts.

    Args:
        task: One of ``TASKS``.
        config: Path of the model's config.
        checkpoint: Path of a checkpoint that training wrote, with the classes' names.
        device: Where the model runs.
        boxes: The persons of a pose model's images, [left, top, width, height] in pixels; the same
            in all, and all of them drawn.
        detector: Config, checkpoint and class index of a detector that finds them; an image where
            it finds nobody stays as it is. With neither, the whole image is one person.
        score: The lowest score that is drawn, of detected objects and of keypoints; and the lowest
            that a detector's person has. Classification and segmentation have none.

    Returns:
        The model, ready to draw.

    Raises:
        UserError: If the config is of another task, the checkpoint names no classes, a box has no
            area, or the detector has no such class.
        CheckpointError: If the checkpoint does not fit the model.
    """
    persons = _given(boxes) if boxes else _whole_image
    inferencer = _load(TASKS[task], _config_for(task, config), checkpoint, device)
    how: dict[str, Any] = dict(draw_gt=False)
    if task == 'detection':
        how['pred_score_thr'] = score
    elif task == 'pose':
        how |= dict(kpt_thr=score, draw_bbox=True)
        if detector is not None:
            path, weights, category = detector
            finder = _load('mmdet', _config_for('detection', path), weights, device)
            persons = _found_by(finder, category, score)
    return Demo(task, inferencer, persons, how)


def _given(boxes: Sequence[Sequence[float]]) -> Persons:
    """The same persons in every image; [left, top, width, height] in pixels, one a person."""
    for box in boxes:
        if not (np.isfinite(box).all() and min(box[2:]) > 0):
            raise UserError(
                f'box {" ".join(f"{each:g}" for each in box)} has no area; '
                'give left, top, width and height in pixels'
            )
    corners = np.array([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=np.float32)
    return lambda image: corners


def _whole_image(image: str) -> np.ndarray:
    """One person that fills the image."""
    import mmcv

    height, width = mmcv.imread(image).shape[:2]
    return np.array([[0, 0, width, height]], dtype=np.float32)


def _found_by(detector: Any, category: int, score: float) -> Persons:
    """The persons that a detector, mmdet's inferencer, finds: its objects of one class."""
    classes = detector.model.dataset_meta['classes']
    if not 0 <= category < len(classes):
        raise UserError(f'the detector has classes 0 to {len(classes) - 1}, and no {category}')

    def find(image: str) -> np.ndarray:
        from mmpose.evaluation.functional import nms

        (sample,) = detector(image, return_datasamples=True)['predictions']
        objects = sample.pred_instances.cpu().numpy()
        boxes = np.column_stack([objects.bboxes, objects.scores])  # (objects, 5)
        boxes = boxes[(objects.labels == category) & (objects.scores >= score)]
        return boxes[nms(boxes, _OVERLAP), :4]

    return find


def _predict_poses(model: nn.Module, image: str, boxes: np.ndarray) -> Any:
    """A data sample of all persons. mmpose would take the whole image where there is no box."""
    from mmpose.apis import inference_topdown
    from mmpose.structures import PoseDataSample, merge_data_samples

    if len(boxes) == 0:
        return PoseDataSample()
    with DefaultScope.overwrite_default_scope('mmpose'):
        return merge_data_samples(inference_topdown(model, image, boxes))


def add_demo_options(parser: argparse.ArgumentParser) -> None:
    """Adds what the demos' command lines share; :func:`demo_from` takes it.

    Args:
        parser: Where to add it.
    """
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

    Args:
        options: What a parser with :func:`add_demo_options` read.
        boxes: As for :func:`load_demo`.

    Returns:
        The model, ready to draw.

    Raises:
        UserError: As for :func:`load_demo`; or if persons are asked for in another task, in two
            ways at once, or of half a detector.
        CheckpointError: If a checkpoint does not fit its model.
    """
    warnings.filterwarnings('ignore')
    MMLogger.get_current_instance().setLevel('ERROR')
    trust_checkpoints(options.trust_checkpoint)
    named = (options.det_config, options.det_checkpoint)
    if any(named) and not all(named):
        raise UserError('a detector needs --det-config and --det-checkpoint; give both')
    if options.task != 'pose' and (boxes or any(named)):
        raise UserError(f'boxes and detectors are for pose, not for {options.task}; leave them out')
    if boxes and any(named):
        raise UserError('both --box and a detector say where persons are; leave one out')
    return load_demo(
        options.task,
        options.config,
        options.checkpoint,
        choose_device(options.device),
        boxes,
        (*named, options.det_class) if any(named) else None,
        options.score,
    )


def _config_for(task: str, path: str) -> Config:
    cfg = load_config(path)
    scope = cfg.get('default_scope')
    if scope != TASKS[task]:
        of = next((name for name, library in TASKS.items() if library == scope), 'no known task')
        raise UserError(f'config {path} is for {of}, not for {task}; give another config or task')
    backbone = cfg.model.get('backbone') or {}
    if 'init_cfg' in backbone:
        backbone['init_cfg'] = None  # the checkpoint brings all weights
    if task == 'pose':
        # mmpose's inferencer looks for what its own configs say at their top.
        dataset = cfg.test_dataloader.dataset
        cfg.setdefault('dataset_type', dataset.type)
        cfg.setdefault('data_mode', dataset.get('data_mode', 'topdown'))
    return cfg


def _load(library: str, cfg: Config, checkpoint: str, device: str) -> Any:
    """A library's inferencer with a model whose weights are all from the checkpoint."""
    content = read_checkpoint(checkpoint)
    if 'dataset_meta' not in (content.get('meta') or {}):
        raise UserError(
            f'checkpoint {checkpoint} does not name its classes; give one that training wrote'
        )
    # They load what fits and print what does not; what does not is an error here.
    scope = DefaultScope.overwrite_default_scope(library)
    with scope, contextlib.redirect_stdout(io.StringIO()):
        inferencer = _build(library, cfg, checkpoint, device)
    load_strictly(inferencer.model, state_dict_of(content, checkpoint), source=checkpoint)
    return inferencer


def _build(library: str, cfg: Config, checkpoint: str, device: str) -> Any:
    if library == 'mmdet':
        from mmdet.apis import DetInferencer

        return DetInferencer(cfg, checkpoint, device, show_progress=False)
    if library == 'mmseg':
        from mmseg.apis import MMSegInferencer

        return MMSegInferencer(cfg, checkpoint, device=device, show_progress=False)
    if library == 'mmpose':
        from mmpose.apis import Pose2DInferencer

        return Pose2DInferencer(cfg, checkpoint, device, det_model='whole_image')
    from mmpretrain.apis import ImageClassificationInferencer
    from mmpretrain.visualization import UniversalVisualizer

    inferencer = ImageClassificationInferencer(cfg, checkpoint, device)
    inferencer.visualizer = UniversalVisualizer()  # which it makes at its own first drawing
    return inferencer


def run_demo(draw: Draw, source: str, out_dir: str) -> Iterator[str]:
    """Draws overlays of an image, of all images and videos in a folder, or of a video's frames.

    Args:
        draw: What :func:`load_demo` returned.
        source: The file or folder.
        out_dir: The folder of the overlays; each is named after its file, and a PNG where that
            does not end as an image does. A video that ends early is warned of.

    Yields:
        The overlays' paths, as they are written.

    Raises:
        UserError: If there is nothing to draw, or a file cannot be read; or, before anything is
            drawn, if an overlay would replace one of the files or another overlay.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES + VIDEOS)
        if not files:
            raise UserError(f'{source} has no image and no video in it; give another folder')
    elif path.is_file():
        files = [path]
    else:
        raise UserError(f'{source} does not exist; give an image, a folder or a video')
    overlays = _overlays(files, out_dir)
    os.makedirs(out_dir, exist_ok=True)
    for file, overlay in zip(files, overlays, strict=True):
        if file.suffix.lower() in VIDEOS:
            _draw_video(draw, file, overlay)
        else:
            _check_image(file)
            draw(str(file), overlay)
        yield overlay


def _overlays(files: Sequence[Path], out_dir: str) -> list[str]:
    """The overlays' paths, each for itself and none of them a file that is drawn on."""
    inputs = {file.resolve() for file in files}
    owners: dict[Path, Path] = {}
    overlays = []
    for file in files:
        overlay = Path(out_dir, file.name)
        if file.suffix.lower() in VIDEOS:
            overlay = overlay.with_suffix('.mp4')
        elif file.suffix.lower() not in IMAGE_SUFFIXES:  # by which the overlay's format is chosen
            overlay = overlay.with_suffix('.png')
        if overlay.resolve() in inputs:
            raise UserError(
                f'the overlay of {file} would replace {overlay}; choose another --out-dir'
            )
        other = owners.setdefault(overlay.resolve(), file)
        if other is not file:
            raise UserError(f'{other} and {file} would share the overlay {overlay}; rename one')
        overlays.append(str(overlay))
    return overlays


def _check_image(file: Path) -> None:
    import mmcv

    if file.stat().st_size == 0 or mmcv.imread(str(file)) is None:
        raise UserError(f'{file} is no image or video that can be read; leave it out')


def _draw_video(draw: Draw, video: Path, overlay: str) -> None:
    """Draws every frame; as a file, for not all inferencers read an array's colours alike."""
    import cv2
    import mmcv

    frames = mmcv.VideoReader(str(video))
    if not frames.opened or len(frames) == 0:
        raise UserError(f'{video} is no video that can be read; leave it out')
    writer, drawn = None, 0
    with tempfile.TemporaryDirectory() as folder:
        before, after = os.path.join(folder, 'frame.png'), os.path.join(folder, 'overlay.png')
        partial = os.path.join(folder, 'overlay.mp4')
        for frame in frames:
            mmcv.imwrite(frame, before)
            draw(before, after)
            picture = mmcv.imread(after)
            if writer is None:
                size = (picture.shape[1], picture.shape[0])
                code = cv2.VideoWriter.fourcc(*'mp4v')
                writer = cv2.VideoWriter(partial, code, frames.fps or 25.0, size)
            writer.write(picture)
            drawn += 1
        if writer is None:
            raise UserError(f'{video} has no frame that can be read; leave it out')
        writer.release()
        if drawn < len(frames):  # cut off, or its container counts more than it holds
            _logger.warning('%s: %d of %d frames could be read', video, drawn, len(frames))
        Path(overlay).write_bytes(Path(partial).read_bytes())
