"""Others' heads on our backbone: every leaf is read, built, trained a little, and predicts.

Data and hooks are those of the leaf, only small: fewer and smaller pictures, fewer queries. Real
photographs are taken where they lie beside the repository, drawn ones elsewhere.
"""

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
from mmengine.config import Config, ConfigDict
from mmengine.registry import TRANSFORMS
from mmengine.runner import Runner
from recipes import HEADS

from clustr_mm.datasets.check import check_paths
from clustr_mm.datasets.mini.mini import MiniData, build
from clustr_mm.engine.runner import ToolRunner

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
        height, width = results['gt_masks'].height, results['gt_masks'].width
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
    """A fifth, in steps of 32, of every length in pixels below a node of a config."""
    if isinstance(node, dict):
        return {key: smaller(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(smaller(value) for value in node)
    if isinstance(node, int) and node >= 224:
        return max(32, node // 160 * 32)
    return node


def fewer(node):
    """At most 32 queries, proposals, samples and points below a node of a config."""
    counts = ('num_queries', 'num_points', 'num_dn_queries', 'max_per_img', 'nms_pre', 'num')
    if isinstance(node, list):
        return [fewer(value) for value in node]
    if not isinstance(node, dict):
        return node
    return {key: min(value, 32) if key in counts else fewer(value) for key, value in node.items()}


def steps_of(pipeline, name):
    """A leaf's pipeline with what this machine can load."""
    steps = [step for step in pipeline if step.type != 'Albumentation']  # not installed here
    for step in steps:
        if 'ratio_range' in step:
            step.ratio_range = (1.0, 1.0)  # a tenth would leave nothing to learn from
        if step.type == 'LoadPanopticAnnotations':
            step.type = 'LoadAnnotations'
            step.with_mask = step.with_bbox = True
            steps.insert(steps.index(step) + 1, ConfigDict(type='MadePanoptic'))
    return steps if name == 'mmpose' else smaller(steps)


def shrink(cfg, data, name):
    """Makes a leaf's config train two steps of one picture or, for batch norm, two; in place."""
    root = str(data['cityscapes' if 'cityscapes' in cfg.filename else name])
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        size = 1 if name in ('mmdet', 'mmpose') else 2
        loader.update(batch_size=size, num_workers=0, persistent_workers=False, pin_memory=False)
        dataset = loader.dataset
        steps = steps_of(dataset.pipeline, name)
        dataset.update(data_root=f'{root}/', pipeline=steps, indices=2 * size)
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
        dataset.indices = 1 if name == 'mmseg' else 2  # ADE20K's are large
        evaluator = cfg[f'{split}_evaluator']
        for each in evaluator if isinstance(evaluator, list) else [evaluator]:
            if 'ann_file' in each:
                each.ann_file = f'{root}/{dataset.ann_file}'
    length = dict(max_iters=2) if 'max_iters' in cfg.train_cfg else dict(max_epochs=1)
    cfg.train_cfg.update(**length, val_interval=9)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.randomness = dict(seed=0)
    cfg.default_hooks.checkpoint = None
    cfg.default_hooks.logger.interval = 1
    cfg.visualizer.update(name=Path(cfg.filename).stem, vis_backends=[])
    cfg.model = fewer(cfg.model)
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


def assert_is_whole(prediction, library, leaf):
    """A prediction is of its picture's size, and of numbers."""
    size = tuple(prediction.get('ori_shape', ())[:2])
    if library == 'mmseg':
        assert prediction.pred_sem_seg.shape == size
    elif library == 'mmpose':
        points = prediction.pred_instances.keypoints
        assert points.shape[1:] == (133 if 'wholebody' in leaf else 17, 2)
        assert np.isfinite(points).all()
    elif library == 'mmpretrain':
        assert prediction.pred_score.sum().item() == pytest.approx(1, abs=1e-4)
    elif 'panoptic' in leaf:
        assert prediction.pred_panoptic_seg.shape[-2:] == size
    else:
        assert prediction.pred_instances.bboxes.isfinite().all()
        if 'masks' in prediction.pred_instances:
            assert prediction.pred_instances.masks.shape[1:] == size


def assert_learns_as_it_says(runner, leaf):
    """Rates and decay of the optimizer, and no parameter without a gradient."""
    cfg, optimizer = runner.cfg, runner.optim_wrapper.optimizer
    rate, decay = {}, {}
    for group in optimizer.param_groups:
        for parameter in group['params']:
            rate[parameter] = group.get('initial_lr', group['lr']) / cfg.optim_wrapper.optimizer.lr
            decay[parameter] = group['weight_decay']
    backbone = runner.model.backbone
    rates = {round(rate[parameter], 6) for parameter in backbone.parameters()}
    constructor = cfg.optim_wrapper.get('constructor')
    layers = sum(len(stage.blocks) for stage in backbone.stages)
    if constructor:
        factor = cfg.optim_wrapper.paramwise_cfg.layer_decay_rate
        assert min(rates) == pytest.approx(factor ** (layers + 1), rel=1e-2)
        assert len(rates) == layers + 1
    else:
        assert rates == ({0.1} if 'dino' in leaf or 'mask2former' in leaf else {1.0})
    heads = {
        rate[parameter]
        for name, parameter in runner.model.named_parameters()
        if not name.startswith('backbone.') and parameter.requires_grad
    }
    assert heads == ({10.0} if 'segformer' in leaf else {1.0})
    if not any(name in leaf for name in ('retinanet', 'dino', 'topdown')):  # which say nothing
        norms = [each for each in backbone.modules() if isinstance(each, torch.nn.LayerNorm)]
        assert {decay[each.weight] for each in norms} == {0.0}
    # Training on several GPUs stops at a parameter without a gradient, or is told to look for such.
    lacking = [
        name
        for name, parameter in runner.model.named_parameters()
        if parameter.requires_grad and parameter not in optimizer.state
    ]
    assert not lacking or cfg.get('find_unused_parameters')


@pytest.mark.parametrize('leaf', LEAVES)
def test_a_head_trains_and_predicts(leaf, data, tmp_path):
    path = str(ROOT / 'configs' / leaf)
    library = leaf.partition('/')[0]
    # To log a config formatted would take longer than the rest.
    cfg = Config(Config.fromfile(path).to_dict(), filename=path, format_python_code=False)
    shrink(cfg, data, library)
    cfg.work_dir = str(tmp_path)
    check_paths(cfg, ['train_dataloader', 'test_dataloader'])
    runner = ToolRunner.from_cfg(cfg)
    runner.train()
    assert runner.iter >= 2
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert np.isfinite(losses).all()
    assert_learns_as_it_says(runner, leaf)
    predictions, metrics = predict(runner, cfg)
    assert len(predictions) >= cfg.test_dataloader.dataset.indices
    for prediction in predictions:
        assert_is_whole(prediction, library, leaf)
    assert metrics is None or all(math.isfinite(value) for value in metrics.values())
