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

from clustr_mm.datasets.annotations import check_annotations, is_remote, join_path

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


def check_data_root(cfg: Mapping[str, Any], splits: Sequence[str] = SPLITS) -> None:
    """Check that every data set of a config is where the config says.

    Looks at the data sets of ``{train,val,test}_dataloader``, through wrappers (`dataset`,
    `datasets`), and at whole paths besides them: `bbox_file`, and `ann_file` of the evaluators.
    Then reads the COCO files of detection and whole-body pose; a warning says which of their
    annotations the run passes over by mistake. Paths with a scheme (``s3://``) are passed over.

    Args:
        cfg: an mmengine Config, or a dict of its form.
        splits: which of 'train', 'val' and 'test' the run will use.

    Raises:
        DataNotFoundError: one sentence with the missing path, who names it, the expected tree and
            the mend.
        AnnotationError: one sentence with the file, the annotation and the mend.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader:
            for place, dataset in _datasets(loader.get('dataset'), f'{split}_dataloader.dataset'):
                _check_dataset(dataset, place)
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


def _datasets(node: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (where in the config, config) of each data set that reads files."""
    if not isinstance(node, Mapping):
        return
    if 'datasets' in node:  # ConcatDataset, CombinedDataset
        for i, inner in enumerate(node['datasets']):
            yield from _datasets(inner, f'{place}.datasets.{i}')
    elif 'dataset' in node:  # RepeatDataset, ClassBalancedDataset, MultiImageMixDataset, ...
        yield from _datasets(node['dataset'], f'{place}.dataset')
    else:
        yield place, node


def _check_dataset(dataset: Mapping[str, Any], place: str) -> None:
    kind = dataset.get('type', '')
    kind = kind.split('.')[-1] if isinstance(kind, str) else kind.__name__
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
    prefixes = dataset.get('data_prefix') or {}
    if not isinstance(prefixes, Mapping):  # mmpretrain allows a plain string
        prefixes = {'img_path': prefixes}
    if kind == 'ImageNet' and dataset.get('split') and not any(prefixes.values()):
        prefixes = {'img_path': dataset['split']}
    for prefix in prefixes.values():
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


def _exists(path: str) -> bool:
    return is_remote(path) or os.path.exists(path)
