"""Whether the data sets are where, and what, a config says they are.

OpenMMLab's data sets fail late and elsewhere when a folder is missing (an empty list of images, an
assertion in pycocotools). `check_data_root` looks before anything is built and says which path is
missing, what the data set's tree must look like, and how to mend it; annotations.py checks what the
COCO files hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.fileio import list_dir_or_file
from mmengine.logging import print_log

from clustr_mm.datasets.annotations import check_annotations, is_remote, join_path
from clustr_mm.datasets.transforms import type_name

SPLITS = ('train', 'val', 'test')

# The tree that a data set of a type is kept in, below its data_root.
EXPECTED_TREES: dict[str, str] = {
    'ADE20KDataset': (
        'ADEChallengeData2016/{images/{training,validation}/*.jpg,'
        'annotations/{training,validation}/*.png}'
    ),
    'CocoDataset': 'coco/{annotations/instances_{train,val}2017.json,{train,val}2017/*.jpg}',
    'CocoWholeBodyDataset': (
        'coco/{annotations/coco_wholebody_{train,val}_v1.0.json,{train,val}2017/*.jpg}'
    ),
    'ImageNet': 'imagenet/{train,val}/<one folder a class>/*.JPEG',
}
EXPECTED_TREES['CustomDataset'] = EXPECTED_TREES['ImageNet']

_LAYOUTS = {
    'ADE20KDataset': 'ade20k',
    'CocoDataset': 'coco',
    'CocoWholeBodyDataset': 'coco_wholebody',
    'ImageNet': 'imagenet',
    'CustomDataset': 'imagenet',
}


class DataNotFoundError(ValueError):
    """A folder or file that a config names is not there."""


class ClassFoldersError(ValueError):
    """The folders that are a data set's classes are not the model's, or another split's."""


def check_data_root(cfg: Mapping[str, Any], splits: Sequence[str] = SPLITS) -> None:
    """Check that every data set of a config is where the config says.

    Looks at the data sets of ``{train,val,test}_dataloader``, through wrappers (`dataset`,
    `datasets`), and at whole paths besides them: `bbox_file`, and `ann_file` of the evaluators.
    Then reads the COCO files of detection and whole-body pose; a warning says which of their
    annotations the run passes over by mistake, and which label maps have no image; and the folders
    of classes of all splits are compared. Paths with a scheme (``s3://``) are passed over.

    Args:
        cfg: an mmengine Config, or a dict of its form.
        splits: which of 'train', 'val' and 'test' the run will use.

    Raises:
        DataNotFoundError: one sentence with the missing path, who names it, the expected tree and
            the mend.
        AnnotationError: one sentence with the file, the annotation and the mend.
        ClassFoldersError: one sentence with the folders, those that differ and the mend.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader:
            for place, dataset in each_dataset(
                loader.get('dataset'), f'{split}_dataloader.dataset'
            ):
                check_paths(dataset, place)
                _warn_of_lone_labels(dataset)
                check_annotations(dataset, cfg.get('default_scope'), evaluated=split != 'train')
        evaluators = cfg.get(f'{split}_evaluator')
        if isinstance(evaluators, Mapping):
            evaluators = [evaluators]
        for evaluator in evaluators or ():
            path = evaluator.get('ann_file')
            if path and not _exists(path):
                raise DataNotFoundError(
                    f'annotation file {path} ({split}_evaluator.ann_file) not found: pass '
                    f'--data-root DIR, or --cfg-options {split}_evaluator.ann_file=FILE'
                )
    check_class_folders(cfg, splits)


def check_class_folders(cfg: Mapping[str, Any], splits: Sequence[str] = SPLITS) -> None:
    """Check that labels made of folders mean the same in every split, and fit the model.

    A classifier's data set numbers its folders in order: one that is missing, or a notebook's
    hidden one, moves the labels of all behind it. Folders that are not there are passed over.

    Args:
        cfg: an mmengine Config, or a dict of its form.
        splits: which of 'train', 'val' and 'test' the run will use.

    Raises:
        ClassFoldersError: one sentence with the folders, those that differ and the mend.
    """
    head = (cfg.get('model') or {}).get('head') or {}
    count = head.get('num_classes') if isinstance(head, Mapping) else None
    before: tuple[str, set[str]] | None = None
    for split in splits:
        for _, dataset in each_dataset((cfg.get(f'{split}_dataloader') or {}).get('dataset'), ''):
            above = _class_folder(dataset)
            if above is None:
                continue
            names = {entry.name for entry in os.scandir(above) if entry.is_dir()}
            if count is not None and len(names) > count:
                raise ClassFoldersError(
                    f'{above} has {len(names)} folders of classes, the model {count} '
                    f'({min(names)} is the first): take away what is no class, or set '
                    'model.head.num_classes'
                )
            if before is not None and names != before[1]:
                lone = ', '.join(sorted(names ^ before[1]))
                raise ClassFoldersError(
                    f'{before[0]} and {above} have different folders of classes ({lone:.200} in '
                    'one only), and labels number the folders in order: give both the same ones'
                )
            before = (above, names)


def _class_folder(dataset: Mapping[str, Any]) -> str | None:
    """The folder whose folders are the classes of a data set, if they are."""
    if type_name(dataset.get('type', '')) not in ('ImageNet', 'CustomDataset') or dataset.get(
        'ann_file'
    ):
        return None
    if dataset.get('with_label') is False:
        return None
    folder = join_path(dataset.get('data_root') or '', _prefixes(dataset).get('img_path') or '')
    return folder if os.path.isdir(folder) else None


def lone_labels(dataset: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Find label maps without an image: mmseg begins with the images, and never sees them.

    Args:
        dataset: config of a data set; of another kind, or elsewhere than on a disk, it has none.

    Returns:
        Path of each, and of the image that it lacks.
    """
    prefixes = _prefixes(dataset)
    if type_name(dataset.get('type', '')) not in ('ADE20KDataset', 'BaseSegDataset') or dataset.get(
        'ann_file'
    ):
        return []
    root = dataset.get('data_root') or ''
    images, labels = (join_path(root, prefixes.get(n) or '') for n in ('img_path', 'seg_map_path'))
    if not prefixes.get('seg_map_path') or is_remote(images) or is_remote(labels):
        return []
    suffixes = (dataset.get('img_suffix', '.jpg'), dataset.get('seg_map_suffix', '.png'))
    stems = [
        {
            name.removesuffix(suffix)
            for name in list_dir_or_file(folder, list_dir=False, suffix=suffix, recursive=True)
        }
        for folder, suffix in zip((images, labels), suffixes, strict=True)
    ]
    return [
        (os.path.join(labels, stem + suffixes[1]), os.path.join(images, stem + suffixes[0]))
        for stem in sorted(stems[1] - stems[0])
    ]


def _warn_of_lone_labels(dataset: Mapping[str, Any]) -> None:
    """Say how many label maps have no image."""
    lone = lone_labels(dataset)
    if lone:
        print_log(
            f'{len(lone)} label maps have no image and are left out (the first: {lone[0][0]}, '
            f'without {lone[0][1]})',
            logger='current',
            level=30,  # WARNING
        )


def each_dataset(node: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Find the data sets that read files, through wrappers.

    Args:
        node: config of a data set or a wrapper of some; of None there are none.
        place: where in the config it stands.

    Yields:
        Where in the config each stands, and its config.
    """
    if not isinstance(node, Mapping):
        return
    if 'datasets' in node:  # ConcatDataset, CombinedDataset
        for i, inner in enumerate(node['datasets']):
            yield from each_dataset(inner, f'{place}.datasets.{i}')
    elif 'dataset' in node:  # RepeatDataset, ClassBalancedDataset, MultiImageMixDataset, ...
        yield from each_dataset(node['dataset'], f'{place}.dataset')
    else:
        yield place, node


def check_paths(dataset: Mapping[str, Any], place: str) -> None:
    """Check that a data set's folders and files are there.

    Args:
        dataset: config of the data set.
        place: where in the config it stands.

    Raises:
        DataNotFoundError: as `check_data_root` has it.
    """
    kind = type_name(dataset.get('type', ''))
    root = dataset.get('data_root') or ''

    def fail(what: str, path: str) -> None:
        tree = EXPECTED_TREES.get(kind)
        layout = _LAYOUTS.get(kind)
        expected = f'; expected tree: {tree}' if tree else ''
        make = f', or run `python tools/make_mini_data.py DIR --layout {layout}`' if layout else ''
        raise DataNotFoundError(
            f'{what}: {os.path.abspath(path)} ({place}, {kind}){expected}; pass --data-root DIR '
            f'to say where it is{make}'
        )

    # The data set's own joining: data_root before whatever is not absolute.
    if root and not _exists(root):
        fail('data folder not found', root)
    ann_file = dataset.get('ann_file')
    if ann_file and not _exists(path := join_path(root, ann_file)):
        fail('annotation file not found', path)
    for prefix in _prefixes(dataset).values():
        path = join_path(root, prefix or '')
        if not path or is_remote(path):
            continue
        if not os.path.isdir(path):
            fail('data folder not found', path)
        if not any(os.scandir(path)):
            fail('data folder is empty', path)
    bbox_file = dataset.get('bbox_file')
    if bbox_file and not _exists(bbox_file):
        raise DataNotFoundError(
            f'person boxes not found: {os.path.abspath(bbox_file)} ({place}.bbox_file); to take '
            f'the annotated boxes instead, pass --cfg-options {place}.bbox_file=None'
        )


def _prefixes(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """The folders of a data set below its root, by what is in them."""
    prefixes = dataset.get('data_prefix') or {}
    if not isinstance(prefixes, Mapping):  # mmpretrain allows a plain string
        prefixes = {'img_path': prefixes}
    if (
        type_name(dataset.get('type', '')) == 'ImageNet'
        and dataset.get('split')
        and not any(prefixes.values())
    ):
        prefixes = {'img_path': dataset['split']}
    return prefixes


def _exists(path: str) -> bool:
    return is_remote(path) or os.path.exists(path)
