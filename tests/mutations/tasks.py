"""The four tasks' mini data and mini configs, small enough to go through hundreds of times."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from clustr_mm.datasets.mini import MiniData, build
from clustr_mm.engine import config
from clustr_mm.engine.errors import explained
from clustr_mm.engine.seeding import seed_all

from .case import IMAGES, JSONS, LABEL_MAPS, Case, Sample

_CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
_LEAVES = {
    'segmentation': 'mmseg/upernet_clustr_t_mini.py',
    'detection': 'mmdet/mask_rcnn_clustr_t_mini.py',
    'pose': 'mmpose/topdown_clustr_t_mini.py',
    'classification': 'mmpretrain/clustr_t_mini.py',
}
_LAYOUTS = dict(
    segmentation='ade20k', detection='coco', pose='coco_wholebody', classification='imagenet'
)
_SIZE = (48, 64)  # not square: a turned picture shows
_IMAGES = 4
_ARCH = dict(
    embed_dims=(8, 16, 32, 64),
    depths=(1, 1, 1, 1),
    num_heads=(1, 1, 1, 1),
    mlp_ratios=(1, 1, 1, 1),
    reductions=(8, 4, 2, 1),
)
_CHANNELS = list(_ARCH['embed_dims'])


class Task:
    """A mini config with a small data set and a small model.

    Chance is off (no flip, whole crops, no shuffling), so that what the model is given is known.

    Args:
        name: A key of ``IMAGES``.
        folder: An empty folder.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.root = _draw(name, folder)
        self.cfg = _small(config.load_config(str(_CONFIGS / _LEAVES[name])), name)
        self.samples: dict[Any, Sample] = {}
        self.samples = self._clean_samples()
        seed_all(0)
        init_default_scope(self.cfg.default_scope)
        self.model = MODELS.build(self.cfg.model)
        self.model.init_weights()
        self.optimizer = build_optim_wrapper(self.model, self.cfg.optim_wrapper)

    def case(self, root: Path, rng: np.random.Generator) -> Case:
        """A copy of the data set, to be spoiled.

        Args:
            root: The copy's folder; it must not be there.
            rng: The mutations' chance.
        """
        shutil.copytree(self.root, root)
        samples = {
            key: replace(
                each,
                path=root / each.path.relative_to(self.root),
                target=copy.deepcopy(each.target),
            )
            for key, each in self.samples.items()
        }
        return Case(self.name, root, rng, samples)

    def batch(self, root: Path, on_broken_file: str = 'raise') -> dict:
        """What tools/train.py gives the model in its first step.

        Args:
            root: The data root.
            on_broken_file: As configs have it, 'raise' or 'skip'.

        Returns:
            The collated batch, of the whole data set.

        Raises:
            UserError: With one line, for what a user can mend; anything else is a bug.
        """
        cfg = copy.deepcopy(self.cfg)
        config.set_data_root(cfg, str(root))
        cfg.on_broken_file = on_broken_file
        init_default_scope(cfg.default_scope)
        with explained(cfg):
            config.guard_data(cfg, ('train', 'val'))
            return next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))

    def step(self, batch: dict) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Trains one step.

        Returns:
            The losses, and the names of the weights that are not finite after it.
        """
        init_default_scope(self.cfg.default_scope)
        self.model.train()
        losses = self.model.train_step(batch, self.optimizer)
        weights = self.model.state_dict().items()
        return losses, [name for name, each in weights if not torch.isfinite(each).all()]

    def read(self, batch: dict) -> dict[Any, tuple[np.ndarray, Any]]:
        """Reads a batch as ``Sample`` has it: image and target, by path (in pose by id)."""
        given = {}
        for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
            key = sample.id if self.name == 'pose' else Path(sample.img_path)
            given[key] = (image.numpy(), _TARGETS[self.name](sample))
        return given

    def differences(self, case: Case, given: dict[Any, tuple[np.ndarray, Any]]) -> list[str]:
        """Compares what the model was given with what it must be given."""
        expected = {key if self.name == 'pose' else s.path: s for key, s in case.samples.items()}
        wrong = [f'{key} is given and must not be' for key in given.keys() - expected.keys()]
        for key, sample in expected.items():
            if key not in given:
                # mmdet leaves images without objects out, as its config says.
                if self.name != 'detection' or sample.target:
                    wrong.append(f'{key} is not given')
                continue
            image, target = given[key]
            if sample.image is not None:
                if image.shape != sample.image.shape:
                    wrong.append(f'{key}: image of {image.shape}')
                elif np.abs(image - np.float64(sample.image)).mean() > sample.tolerance:
                    wrong.append(f'{key}: another image')
            if not _SAME[self.name](target, sample.target):
                wrong.append(f'{key}: given {target}, must be {sample.target}')
        return wrong

    def _clean_samples(self) -> dict[Any, Sample]:
        """What the unspoiled data set gives."""
        given = self.read(self.batch(self.root))
        if self.name == 'pose':
            content = json.loads((self.root / JSONS['pose']).read_text())
            paths = dict(_paths(content, self.root / IMAGES['pose']))
            images = {each['id']: each['image_id'] for each in content['annotations']}
            return {number: Sample(paths[images[number]], *each) for number, each in given.items()}
        if self.name == 'detection':
            content = json.loads((self.root / JSONS['detection']).read_text())
            samples = {}
            for number, path in _paths(content, self.root / IMAGES['detection']):
                image, objects = given[path]
                samples[number] = Sample(path, image, _with_ids(content, number, objects))
            return samples
        return {path: Sample(path, *each) for path, each in given.items()}


def _draw(name: str, folder: Path) -> Path:
    """Draws a task's mini data and keeps a few images of it."""
    layout = _LAYOUTS[name]
    size = (64, 64) if name == 'classification' else _SIZE
    root = build(folder / name, MiniData(layout, 10, 10, size))[layout]
    files = sorted(each for each in (root / IMAGES[name]).rglob('*.*') if each.is_file())
    if name in JSONS:
        file = root / JSONS[name]
        content = json.loads(file.read_text())
        counts = {each['id']: 0 for each in content['images']}
        for each in content['annotations']:
            counts[each['image_id']] += 1
        content['images'].sort(key=lambda record: -counts[record['id']])
        content['images'] = content['images'][:_IMAGES]
        kept = {each['id'] for each in content['images']}
        content['annotations'] = [
            each for each in content['annotations'] if each['image_id'] in kept
        ]
        file.write_text(json.dumps(content))
        names = {each['file_name'] for each in content['images']}
        unused = [each for each in files if each.name not in names]
    else:
        # Every class of a classifier keeps its image.
        unused = files[_IMAGES:] if name == 'segmentation' else []
    for each in unused:
        each.unlink()
        if name == 'segmentation':
            (root / LABEL_MAPS / f'{each.stem}.png').unlink()
    return root


def _small(cfg: Config, name: str) -> Config:
    """Makes a config small, and takes the chance out of it."""
    cfg.model.backbone.arch = _ARCH
    loader = cfg.train_dataloader
    # All at once: there are four images, or ten, and at most that many persons in each.
    loader.update(num_workers=0, persistent_workers=False, batch_size=_IMAGES)
    loader.sampler.shuffle = False
    for step in loader.dataset.pipeline:
        if step.type == 'RandomFlip':
            step.prob = 0.0
        elif step.type == 'RandomResizedCrop':
            step.update(crop_ratio_range=(1.0, 1.0), aspect_ratio_range=(1.0, 1.0))
        elif step.type == 'Resize':
            step.scale = _SIZE[::-1]
    if name == 'segmentation':
        cfg.model.data_preprocessor.size = _SIZE
        cfg.model.decode_head.update(in_channels=_CHANNELS, channels=8)
    elif name == 'detection':
        cfg.model.neck.update(in_channels=_CHANNELS, out_channels=8)
        cfg.model.rpn_head.update(in_channels=8, feat_channels=8)
        heads = cfg.model.roi_head
        heads.bbox_roi_extractor.out_channels = heads.mask_roi_extractor.out_channels = 8
        heads.bbox_head.update(in_channels=8, fc_out_channels=8)
        heads.mask_head.update(num_convs=1, in_channels=8, conv_out_channels=8)
    elif name == 'pose':
        loader.batch_size = 32
        cfg.model.neck.necks[0].update(in_channels=_CHANNELS, out_channels=8)
        cfg.model.head.in_channels = 8
    else:
        loader.batch_size = 16
        cfg.model.head.in_channels = _CHANNELS[-1]
    return cfg


def _paths(content: dict, folder: Path) -> Iterator[tuple[int, Path]]:
    for each in content['images']:
        yield each['id'], folder / each['file_name']


def _with_ids(content: dict, image: int, objects: list[dict]) -> dict[int, dict]:
    """Finds the annotation of each object."""
    out = {}
    for each in content['annotations']:
        if each['image_id'] == image:
            x, y, width, height = each['bbox']
            box = np.array([x, y, x + width, y + height], np.float32)
            found = [one for one in objects if np.allclose(one['box'], box, atol=1e-3)]
            if found:
                out[each['id']] = found[0]
    assert len(out) == len(objects)
    return out


def _objects(sample: Any) -> list[dict]:
    return [
        dict(box=box.numpy(), label=int(label), mask=mask, ignored=ignored)
        for ignored, part in ((False, sample.gt_instances), (True, sample.ignored_instances))
        for box, label, mask in zip(part.bboxes.tensor, part.labels, part.masks.masks, strict=True)
    ]


def _person(sample: Any) -> dict:
    return dict(
        box=sample.gt_instances.bboxes[0],
        points=sample.gt_instances.keypoints[0],
        weights=np.array(sample.gt_instance_labels.keypoint_weights[0], np.float32),
    )


_TARGETS = {
    'segmentation': lambda sample: sample.gt_sem_seg.data[0].numpy(),
    'detection': _objects,
    'pose': _person,
    'classification': lambda sample: int(sample.gt_label),
}


def _same_objects(given: list[dict], expected: dict[int, dict]) -> bool:
    def order(each: dict) -> tuple:
        return each['ignored'], each['label'], *each['box'].round(2).tolist()

    pairs = list(zip(sorted(given, key=order), sorted(expected.values(), key=order), strict=False))
    return len(given) == len(expected) and all(
        order(one) == order(other)
        and (other['mask'] is None or np.array_equal(one['mask'], other['mask']))
        for one, other in pairs
    )


def _same_person(given: dict, expected: dict) -> bool:
    return all(
        value is None or np.allclose(given[name], value, atol=1e-3)
        for name, value in expected.items()
    )


_SAME = {
    'segmentation': np.array_equal,
    'detection': _same_objects,
    'pose': _same_person,
    'classification': int.__eq__,
}
