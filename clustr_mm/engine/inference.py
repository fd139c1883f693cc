"""A trained model on images, by its library's own inferencer and visualizer."""

from __future__ import annotations

import argparse
import importlib
import logging
import warnings
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import VISUALIZERS

from clustr_mm.datasets.check import type_name
from clustr_mm.datasets.pixels import as_photo, rgb_or_bands
from clustr_mm.engine.config import library_of, load_config
from clustr_mm.engine.errors import UserError
from clustr_mm.engine.options import add_trust, choose_device, reading_safely
from clustr_mm.engine.pictures import image_loader, in_library
from clustr_mm.weights.files import load_strictly, read_checkpoint, state_dict_of

# The library of every task, its inferencer, and the visualizer where a config names none.
TASKS = {
    'classification': ('mmpretrain', 'ImageClassificationInferencer', 'UniversalVisualizer'),
    'detection': ('mmdet', 'DetInferencer', 'DetLocalVisualizer'),
    'pose': ('mmpose', 'Pose2DInferencer', 'PoseLocalVisualizer'),
    'segmentation': ('mmseg', 'MMSegInferencer', 'SegLocalVisualizer'),
}
_READABLE = 240  # pixels of the shorter side, from which a class's name can be read

_logger = logging.getLogger(__name__)


class Demo:
    """A trained model that, called with an image, draws what it predicts there.

    Args:
        task: One of ``TASKS``.
        config: Path of the model's config.
        checkpoint: Path of a checkpoint that training wrote, with the classes' names.
        device: Where the model runs.
        detector: Config, checkpoint and class index of a detector that finds the persons of a
            top-down pose model. Without one, or where it finds nobody, the image is one person.
        score: The lowest score that is drawn, of detected objects and of keypoints; and the lowest
            that a detector's person has. Classification and segmentation have none.
        trust: Whether the checkpoints may run code, see ``clustr_mm.weights.files``.

    Attributes:
        inferencer: The library's, with its ``model``.
        read: Reads an image file as the config's test pipeline does; see :func:`image_loader`.
    """

    def __init__(
        self,
        task: str,
        config: str,
        checkpoint: str,
        device: str,
        detector: tuple[str, str, int] | None = None,
        score: float = 0.3,
        trust: bool = False,
    ) -> None:
        cfg = _config_for(task, config)
        self.inferencer = _inferencer(task, cfg, checkpoint, device, trust)
        self.model = self.inferencer.model
        self.read = image_loader(cfg)
        self.finding = dict(bbox_thr=score) if task == 'pose' else {}
        drawing = dict(
            detection=dict(pred_score_thr=score), pose=dict(kpt_thr=score, draw_bbox=True)
        )
        self.drawing: dict[str, Any] = drawing.get(task, {})
        if detector is not None:
            path, weights, person = detector
            cfg = _config_for('detection', path)
            found = _inferencer('detection', cfg, weights, device, trust)
            last = len(found.model.dataset_meta['classes']) - 1
            if not 0 <= person <= last:
                raise UserError(f'the detector has classes 0 to {last}, and no {person}')
            self.inferencer.detector, self.inferencer.det_cat_ids = found, (person,)

    def predict(self, image: np.ndarray) -> Any:
        """The library's data sample of an image (H, W, C), BGR where C is 3."""
        batch = next(iter(self.inferencer.preprocess([image], **self.finding)))
        if not isinstance(batch, dict):  # mmdet and mmpose give the images along
            batch = next(part for part in batch if isinstance(part, dict))
        return self.inferencer.forward(batch)[0]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Draws what the model predicts: (H, W, 3) uint8, RGB, of an image as for ``predict``.

        A small image is enlarged for the name of its class.
        """
        sample, photo = self.predict(image), as_photo(rgb_or_bands(image))
        visualizer = self.inferencer.visualizer
        if hasattr(visualizer, 'visualize_cls'):
            side = max(_READABLE, min(photo.shape[:2]))
            visualizer.visualize_cls(photo, sample, draw_gt=False, resize=side)
        else:
            visualizer.add_datasample('', photo, sample, draw_gt=False, **self.drawing)
        return visualizer.get_image()

    def draw_video(self, video: str, out_dir: str) -> None:
        """Draws on a video's frames as mmpose's inferencer does; no other library's knows any."""
        if not self.finding:
            raise UserError(f'{video} is a video, which only pose takes; give images')
        how = {**self.finding, **self.drawing, 'vis_out_dir': out_dir}
        if not sum(1 for _ in self.inferencer(video, **how)):
            raise UserError(f'{video} has no frame that can be read; leave it out')


def _config_for(task: str, path: str) -> Config:
    """Reads a config, with what the inferencers look for in the form that they know."""
    cfg = load_config(path)
    cfg.default_scope = library = library_of(cfg)
    if library != TASKS[task][0]:
        of = next(name for name, each in TASKS.items() if each[0] == library)
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
    cfg.setdefault('visualizer', dict(type=TASKS[task][2])).pop('vis_backends', None)
    return cfg


def _inferencer(task: str, cfg: Config, checkpoint: str, device: str, trust: bool) -> Any:
    """The library's inferencer with a model whose weights are all from the checkpoint."""
    content = read_checkpoint(checkpoint, trust=trust)
    meta = (content.get('meta') or {}).get('dataset_meta')
    if meta is None:
        raise UserError(
            f'checkpoint {checkpoint} does not name its classes; give one that training wrote'
        )
    library, name, _ = TASKS[task]
    build = getattr(importlib.import_module(f'{library}.apis'), name)
    how = dict(det_model='whole_image') if library == 'mmpose' else {}
    with reading_safely(trust), in_library(library):
        inferencer = build(cfg, checkpoint, device=device, **how)
        if inferencer.visualizer is None:
            inferencer.visualizer = VISUALIZERS.build(cfg.visualizer)
    inferencer.show_progress = False
    if library in ('mmseg', 'mmpretrain'):  # which would tell it at their own drawing
        inferencer.visualizer.dataset_meta = meta
    # They have loaded what fits; here a weight that does not is an error.
    weights = state_dict_of(content, checkpoint)
    if unexpected := load_strictly(inferencer.model, weights, source=checkpoint):
        _logger.warning('%s: the model does not have %s', checkpoint, ', '.join(unexpected))
    return inferencer


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


def demo_from(options: argparse.Namespace) -> Demo:
    """Loads the model that a demo's command line names, and keeps the libraries quiet."""
    warnings.filterwarnings('ignore')
    MMLogger.get_current_instance().setLevel('ERROR')
    named = (options.det_config, options.det_checkpoint)
    if any(named) and not all(named):
        raise UserError('a detector needs --det-config and --det-checkpoint; give both')
    if options.task != 'pose' and any(named):
        raise UserError(f'a detector is for pose, not for {options.task}; leave it out')
    detector = (*named, options.det_class) if any(named) else None
    device = choose_device(options.device)
    model = options.task, options.config, options.checkpoint
    return Demo(*model, device, detector, options.score, options.trust_checkpoint)
