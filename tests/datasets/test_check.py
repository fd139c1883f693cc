"""A missing folder or file is said before anything is built, with what was expected."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

import clustr_mm.datasets
from clustr_mm.datasets import DataNotFoundError, check_paths
from clustr_mm.datasets.mini import MiniData, build

LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]


@pytest.fixture(scope='module')
def roots(tmp_path_factory):
    return build(tmp_path_factory.mktemp('data') / 'mini', MiniData('all', 10, 10, (48, 48)))


def ade(root, **more):
    prefix = dict(img_path='images/training', seg_map_path='annotations/training')
    return dict(
        type='mmseg.ADE20KDataset',
        data_root=str(root),
        data_prefix=prefix,
        pipeline=LOAD,
        **more,
    )


def coco(root, **more):
    made = dict(
        type='mmdet.CocoDataset',
        data_root=str(root),
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        pipeline=LOAD,
    )
    return {**made, **more}


def config(dataset, split='train', **more):
    return Config({f'{split}_dataloader': dict(dataset=dataset), **more})


def message(cfg, **options):
    with pytest.raises(DataNotFoundError) as error:
        check_paths(cfg, **options)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_all_layouts_pass(roots):
    wholebody = dict(
        type='mmpose.CocoWholeBodyDataset',
        data_root=str(roots['coco_wholebody']),
        ann_file='annotations/coco_wholebody_train_v1.0.json',
        data_prefix=dict(img='train2017/'),
    )
    for dataset in (
        ade(roots['ade20k']),
        coco(roots['coco']),
        wholebody,
        dict(type='mmpretrain.ImageNet', data_root=str(roots['imagenet']), split='train'),
        dict(type='mmpretrain.CustomDataset', data_root=str(roots['imagenet']), data_prefix='val'),
    ):
        for split in ('train', 'val', 'test'):
            check_paths(config(dataset, split))
    check_paths(Config(dict(model=dict(type='X'), train_dataloader=None)))  # no data at all


def test_missing_root_says_tree_and_mend(tmp_path):
    text = message(config(ade(tmp_path / 'nowhere')))
    for part in (
        f'data folder not found: {tmp_path}/nowhere',
        'ADE20KDataset',
        'train_dataloader',
        'images/training/, annotations/training/',
        '--data-root DIR',
    ):
        assert part in text


def test_missing_folders_below_the_root(tmp_path):
    (tmp_path / 'images' / 'training').mkdir(parents=True)
    assert f'not found: {tmp_path}/annotations/training' in message(config(ade(tmp_path)))
    without_image = dict(coco(tmp_path), ann_file='', data_prefix=dict(img='gone'))
    assert f'not found: {tmp_path}/gone' in message(config(without_image))


def test_missing_annotation_file(roots, tmp_path):
    (tmp_path / 'val2017').mkdir()
    text = message(config(coco(tmp_path), 'val'))
    assert f'{tmp_path}/annotations/instances_val2017.json' in text


def test_wrappers_are_opened(roots, tmp_path):
    gone = ade(tmp_path / 'gone')
    inner = dict(type='MultiImageMixDataset', dataset=dict(type='RepeatDataset', dataset=gone))
    both = dict(type='ConcatDataset', datasets=[ade(roots['ade20k']), inner])
    assert 'train_dataloader.dataset.datasets.1.dataset.dataset' in message(config(both))


def test_a_wrappers_pipeline_reads_the_files(roots, tmp_path):
    """CombinedDataset of mmpose loads its parts' images itself."""
    part = coco(roots['coco'], type='mmpose.CocoDataset', pipeline=[dict(type='KeypointConverter')])
    part['data_prefix'] = dict(img='gone')
    check_paths(config(part))
    both = dict(type='CombinedDataset', datasets=[part], pipeline=[dict(type='LoadImage')])
    assert f'not found: {roots["coco"]}/gone' in message(config(both))


@pytest.mark.parametrize(
    ('step', 'asked'),
    [
        (dict(type='LoadAnnotations', with_bbox=True), False),
        (dict(type='LoadAnnotations', with_seg=True), True),
        (dict(type='mmdet.LoadPanopticAnnotations'), True),
    ],
)
def test_a_folder_that_no_step_reads_is_not_asked_for(roots, step, asked):
    data = coco(roots['coco'], data_prefix=dict(img='val2017/', seg='panoptic/'))
    data['pipeline'] = [LOAD[0], step]
    if asked:
        assert '/panoptic' in message(config(data))
    else:
        check_paths(config(data))


def test_paths_of_a_file_backend_are_left_to_it(roots):
    for data in (
        coco('s3://bucket/coco'),
        coco('petrel:s3://bucket/coco'),
        coco('data/x', backend_args=dict(backend='petrel', path_mapping={'data/': 's3://'})),
        coco(roots['coco'], data_prefix=dict(img='http://host/val2017')),
        coco(
            roots['coco'],
            data_prefix=dict(img='mapped/'),
            pipeline=[dict(LOAD[0], backend_args=dict(backend='petrel'))],
        ),
    ):
        check_paths(config(data))
    assert '/mapped' in message(
        config(coco('mapped', backend_args=dict(backend='local'), ann_file=''))
    )


def test_a_type_may_be_a_class(tmp_path):
    datasets = pytest.importorskip('mmseg.datasets')
    steps = [dict(type=datasets.LoadAnnotations)]
    data = dict(ade(tmp_path), type=datasets.ADE20KDataset, pipeline=steps)
    assert 'annotations/training' in message(Config(dict(train_dataloader=dict(dataset=data))))


def test_foreign_data_sets_are_left_alone(tmp_path):
    @DATASETS.register_module(force=True)
    class Foreign(BaseDataset):
        """Which may fetch its files."""

    gone = dict(data_root=str(tmp_path / 'gone'), ann_file='a.db', pipeline=LOAD)
    for kind in ('Foreign', Foreign, 'other.CocoDataset', 'mmpretrain.CIFAR10'):
        check_paths(
            dict(train_dataloader=dict(dataset=dict(gone, type=kind)), default_scope='mmseg')
        )


def test_missing_box_file_says_how_to_do_without(roots):
    cfg = config(coco(roots['coco'], bbox_file='data/boxes.json'), 'val')
    assert 'val_dataloader.dataset.bbox_file=None' in message(cfg)
    cfg.val_dataloader.dataset.bbox_file = None
    check_paths(cfg)


def test_evaluators_annotation_file(roots):
    evaluator = [dict(type='X'), dict(type='CocoMetric', ann_file='gone.json')]
    cfg = config(coco(roots['coco']), 'val', val_evaluator=evaluator)
    assert 'val_evaluator' in message(cfg) and 'gone.json' in message(cfg)


def test_only_the_loaders_that_run_are_checked(roots, tmp_path):
    cfg = config(ade(roots['ade20k']), test_dataloader=dict(dataset=ade(tmp_path / 'gone')))
    check_paths(cfg, ['train_dataloader', 'val_dataloader'])
    assert 'test_dataloader' in message(cfg)


def test_it_takes_milliseconds_whatever_the_files_hold(tmp_path):
    """COCO's annotation files have 450 MB: nobody reads them here."""
    (tmp_path / 'annotations').mkdir()
    with open(tmp_path / 'annotations' / 'instances_val2017.json', 'wb') as file:
        file.truncate(450 << 20)
    (tmp_path / 'val2017').mkdir()
    for i in range(2000):
        (tmp_path / 'val2017' / f'{i}.jpg').touch()
    cfg = config(coco(tmp_path))
    start = time.perf_counter()
    check_paths(cfg)
    assert time.perf_counter() - start < 0.1


def test_importing_it_imports_no_decoder():
    # Without the package above it, which imports the models.
    code = (
        'import sys, types; sys.modules["clustr_mm"] = types.ModuleType("clustr_mm"); '
        'sys.modules["clustr_mm"].__path__ = sys.argv[1:]; import clustr_mm.datasets; '
        'print(*{"cv2", "pycocotools", "mmcv", "mmdet", "PIL.Image"} & {*sys.modules})'
    )
    package = Path(clustr_mm.datasets.__file__).parents[1]
    command = [sys.executable, '-c', code, package]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ''
