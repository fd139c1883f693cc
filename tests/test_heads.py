"""Others' heads on our backbone: every leaf is read, built, trained a little, and predicts.

Data and hooks are those of the leaf, only small: fewer and smaller pictures, fewer queries. Real
photographs are taken where they lie beside the repository, drawn ones elsewhere.
"""

import ast
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpose')
pytest.importorskip('mmpretrain')

from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from mmengine.runner import Runner
from recipes import HEADS

from clustr_mm.datasets.mini.mini import MiniData, build
from clustr_mm.engine import train
from clustr_mm.engine.errors import dicts

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / 'shared' / 'realdata'
# The other body of each head takes as long, and is built in test_metafiles.py already.
LEAVES = [
    pytest.param(f'{head.format(body)}.py', marks=[pytest.mark.long] if number % 2 else [])
    for n, head in enumerate(HEADS)
    for number, body in enumerate(('s', 'pvtb2') if n % 2 else ('pvtb2', 's'))
]


@TRANSFORMS.register_module()
class MadePanoptic(BaseTransform):
    """In place of panoptic labels, which only panopticapi reads: stuff of two classes behind."""

    def transform(self, results):
        height, width = results['img_shape']
        stuff = np.full((height, width), 80, np.int64)
        stuff[height // 2 :] = 132
        for label, mask in zip(results['gt_bboxes_labels'], results['gt_masks'].masks, strict=True):
            stuff[mask.astype(bool)] = label
        results['gt_seg_map'] = stuff
        return results


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A few pictures in every layout."""
    folder = tmp_path_factory.mktemp('data')
    drawn = build(folder / 'mini', MiniData(layout='all', train=10, val=10, size=(96, 128)))
    roots = dict(
        mmdet=REAL / 'coco',
        mmseg=REAL / 'ade/ADEChallengeData2016',
        mmpose=REAL / 'coco_wholebody',
    )
    layouts = dict(mmdet='coco', mmseg='ade20k', mmpose='coco_wholebody')
    found = {name: root if root.is_dir() else drawn[layouts[name]] for name, root in roots.items()}
    found['mmpretrain'] = drawn['imagenet']
    found['cityscapes'] = as_cityscapes(found['mmseg'], folder / 'cityscapes')
    return found


def as_cityscapes(ade, root):
    """Scenes of ADE20K in Cityscapes' layout, with labels made of theirs."""
    for split, name in (('training', 'train'), ('validation', 'val')):
        images, labels = root / 'leftImg8bit' / name / 'town', root / 'gtFine' / name / 'town'
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for i, path in enumerate(sorted((ade / 'images' / split).iterdir())[:4]):
            label = cv2.imread(str(ade / 'annotations' / split / f'{path.stem}.png'), -1)
            cv2.imwrite(str(images / f'{i}_leftImg8bit.png'), cv2.imread(str(path)))
            cv2.imwrite(str(labels / f'{i}_gtFine_labelTrainIds.png'), label % 19)
    return root


def smaller(node):
    """A fifth of every length in pixels below a node of a config."""
    if isinstance(node, dict):
        return {key: smaller(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(smaller(value) for value in node)
    return node // 5 if isinstance(node, int) and node >= 256 else node


def steps_of(pipeline, name):
    """A leaf's pipeline with what this machine can load."""
    steps = [step for step in pipeline if step.type != 'Albumentation']  # not installed here
    for step in steps:
        if step.type == 'LoadPanopticAnnotations':
            step.type = 'LoadAnnotations'
            step.with_mask = step.with_bbox = True
            steps.insert(steps.index(step) + 1, dict(type='MadePanoptic'))
            break
    return steps if name == 'mmpose' else smaller(steps)


def shrink(cfg, data, name):
    """Makes a leaf's config train two steps of two pictures, in place."""
    root = str(data['cityscapes' if 'cityscapes' in cfg.filename else name])
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=2, num_workers=0, persistent_workers=False, pin_memory=False)
        dataset = loader.dataset
        dataset.update(data_root=f'{root}/', pipeline=steps_of(dataset.pipeline, name), indices=4)
        if dataset.type == 'CocoPanopticDataset':
            file = f'annotations/instances_{split.replace("test", "val")}2017.json'
            dataset.update(type='CocoDataset', ann_file=file)
            dataset.data_prefix.pop('seg')
        if 'person_keypoints' in dataset.get('ann_file', ''):  # theirs begin with COCO's 17
            dataset.ann_file = (
                f'annotations/coco_wholebody_{split.replace("test", "val")}_v1.0.json'
            )
        if dataset.type == 'ImageNet':  # insists on a thousand folders
            dataset.type, dataset.data_prefix = 'CustomDataset', dataset.pop('split')
        if 'bbox_file' in dataset:
            dataset.bbox_file = None
        if 'batch_sampler' in loader:
            loader.batch_sampler = None
        if split == 'train':
            continue
        loader.batch_size = 1
        loader.dataset.indices = 2
        evaluator = cfg[f'{split}_evaluator']
        for each in evaluator if isinstance(evaluator, list) else [evaluator]:
            if 'ann_file' in each:
                each.ann_file = f'{root}/{dataset.ann_file}'
    length = dict(max_iters=2) if 'max_iters' in cfg.train_cfg else dict(max_epochs=1)
    cfg.train_cfg.update(**length, val_interval=9)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = None
    cfg.default_hooks.logger.interval = 1
    cfg.visualizer.name = Path(cfg.filename).stem
    for node in dicts(cfg.model):
        for key in ('num_queries', 'num_points'):
            if node.get(key, 0) > 64:
                node[key] = 64
    if name != 'mmpose' and 'data_preprocessor' in cfg.model:
        cfg.model.data_preprocessor = smaller(cfg.model.data_preprocessor)
    return cfg


def predict(runner, cfg):
    """Predictions of the pictures to test on, and the metrics, None without an evaluator."""
    loader = Runner.build_dataloader(cfg.test_dataloader)
    found, evaluator = [], None
    panoptic = 'panoptic' in cfg.filename
    if not panoptic:
        evaluator = runner.build_evaluator(cfg.test_evaluator)
        evaluator.dataset_meta = loader.dataset.metainfo
    runner.model.eval()
    for batch in loader:
        with torch.no_grad():
            outputs = runner.model.test_step(batch)
        found += outputs
        if evaluator:
            evaluator.process(data_samples=outputs, data_batch=batch)
    return found, evaluator.evaluate(len(found)) if evaluator else None


@pytest.mark.parametrize('leaf', LEAVES)
def test_a_head_trains_and_predicts(leaf, data, tmp_path):
    cfg = Config.fromfile(str(ROOT / 'configs' / leaf))
    library = leaf.partition('/')[0]
    path = tmp_path / f'{Path(leaf).stem}.py'
    shrink(cfg, data, library).dump(str(path))
    runner = train([str(path), '--work-dir', str(tmp_path / 'work'), '--device', 'cpu'])
    assert runner.iter >= 2
    scalars = runner.message_hub.get_scalar('train/loss').data[0]
    assert np.isfinite(scalars).all()
    predictions, metrics = predict(runner, cfg)
    assert len(predictions) >= 2
    assert metrics is None or all(math.isfinite(value) for value in metrics.values())
