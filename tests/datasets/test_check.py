"""A missing or faulty data set is said before anything is built, with what it must be."""

import shutil

import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger

from clustr_mm.datasets import DataNotFoundError, check_data_root
from clustr_mm.datasets.check import ClassFoldersError
from clustr_mm.datasets.mini.mini import MiniData, build


@pytest.fixture(scope='module')
def roots(tmp_path_factory):
    return build(tmp_path_factory.mktemp('data') / 'mini', MiniData('all', 10, 10, (48, 48)))


def ade(root, **more):
    prefix = dict(img_path='images/training', seg_map_path='annotations/training')
    return dict(type='ADE20KDataset', data_root=str(root), data_prefix=prefix, **more)


def coco(root, **more):
    return dict(
        type='mmdet.CocoDataset',
        data_root=str(root),
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        **more,
    )


def config(dataset, split='train', **more):
    return Config({f'{split}_dataloader': dict(dataset=dataset), **more})


def message(cfg, **options):
    with pytest.raises(DataNotFoundError) as error:
        check_data_root(cfg, **options)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_all_layouts_pass(roots):
    wholebody = dict(
        type='CocoWholeBodyDataset',
        data_root=str(roots['coco_wholebody']),
        ann_file='annotations/coco_wholebody_train_v1.0.json',
        data_prefix=dict(img='train2017/'),
    )
    for dataset in (
        ade(roots['ade20k']),
        coco(roots['coco']),
        wholebody,
        dict(type='ImageNet', data_root=str(roots['imagenet']), split='train'),
        dict(type='CustomDataset', data_root=str(roots['imagenet']), data_prefix='val'),
    ):
        for split in ('train', 'val', 'test'):
            check_data_root(config(dataset, split))


def test_missing_root_says_tree_and_mend(tmp_path):
    text = message(config(ade(tmp_path / 'nowhere')))
    for part in (
        str(tmp_path / 'nowhere'),
        'ADE20KDataset',
        'train_dataloader',
        'images/{training,validation}/*.jpg',
        '--data-root DIR',
        'make_mini_data.py DIR --layout ade20k',
    ):
        assert part in text


def test_missing_and_empty_folders_below_the_root(tmp_path):
    (tmp_path / 'images/training').mkdir(parents=True)
    assert 'is empty' in message(config(ade(tmp_path)))
    (tmp_path / 'images/training/a.jpg').write_bytes(b'x')
    assert f'not found: {tmp_path}/annotations/training' in message(config(ade(tmp_path)))


def test_missing_annotation_file(roots, tmp_path):
    (tmp_path / 'val2017').mkdir()
    text = message(config(coco(tmp_path), 'val'))
    assert f'{tmp_path}/annotations/instances_val2017.json' in text and '--layout coco' in text


def test_wrappers_are_opened(roots, tmp_path):
    inner = dict(type='RepeatDataset', times=2, dataset=ade(tmp_path / 'gone'))
    both = dict(type='ConcatDataset', datasets=[ade(roots['ade20k']), inner])
    assert 'train_dataloader.dataset.datasets.1.dataset' in message(config(both))


def test_folders_of_classes_are_those_of_the_model_and_of_every_split(tmp_path):
    for split in ('train', 'val'):
        for name in 'abc':
            (tmp_path / split / name).mkdir(parents=True)
    sets = {
        f'{split}_dataloader': dict(
            dataset=dict(type='CustomDataset', data_root=str(tmp_path), data_prefix=split)
        )
        for split in ('train', 'val')
    }
    check_data_root(Config(sets))
    check_data_root(Config(dict(sets, model=dict(head=dict(num_classes=3)))))
    with pytest.raises(ClassFoldersError, match=r'train has 3 folders .*, the model 2 \(a is'):
        check_data_root(Config(dict(sets, model=dict(head=dict(num_classes=2)))))
    # A notebook's, which comes before all others.
    (tmp_path / 'train' / '.ipynb_checkpoints').mkdir()
    with pytest.raises(ClassFoldersError, match=r'\(\.ipynb_checkpoints in one only\)'):
        check_data_root(Config(sets))
    check_data_root(Config(sets), splits=['val'])


def test_label_maps_without_an_image_are_counted(roots, tmp_path, caplog):
    root = shutil.copytree(roots['ade20k'], tmp_path / 'ade')
    first, second = sorted((root / 'images' / 'training').iterdir())[:2]
    first.unlink()
    second.rename(second.with_suffix('.JPG'))  # nobody looks for it under this name
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        check_data_root(config(ade(roots['ade20k'])))
        assert not caplog.messages
        check_data_root(config(ade(root)))
    finally:
        logger.removeHandler(caplog.handler)
    (line,) = caplog.messages
    assert '2 label maps have no image' in line and f'{first.stem}.png' in line


def test_missing_box_file_says_how_to_do_without(roots):
    cfg = config(coco(roots['coco'], bbox_file='data/boxes.json'), 'val')
    assert 'val_dataloader.dataset.bbox_file=None' in message(cfg)
    cfg.val_dataloader.dataset.bbox_file = None
    check_data_root(cfg)


def test_evaluators_annotation_file(roots):
    evaluator = [dict(type='X'), dict(type='CocoMetric', ann_file='gone.json')]
    cfg = config(coco(roots['coco']), 'val', val_evaluator=evaluator)
    assert 'val_evaluator' in message(cfg) and 'gone.json' in message(cfg)


def test_only_the_splits_that_run_are_checked(roots, tmp_path):
    cfg = config(ade(roots['ade20k']), test_dataloader=dict(dataset=ade(tmp_path / 'gone')))
    check_data_root(cfg, splits=['train', 'val'])
    assert 'test_dataloader' in message(cfg)


def test_configs_without_data_pass():
    check_data_root(Config(dict(model=dict(type='X'), train_dataloader=None)))


def test_unknown_type_has_no_tree_but_a_mend(tmp_path):
    text = message(config(dict(type='LadybirdDataset', data_root=str(tmp_path / 'x'))))
    assert 'LadybirdDataset' in text and '--data-root' in text and 'expected tree' not in text
