"""Whether the files that a config's data sets name are there: a look of milliseconds before a run.

OpenMMLab's data sets fail late and elsewhere where a folder is missing. What is in the files is
audit.py's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.registry import DATASETS

NO_SAMPLE = 'no sample is left: are classes, filter_cfg and img_suffix those of the files?'
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
LIBRARIES = ('mmdet', 'mmseg', 'mmpose', 'mmpretrain')
# These fetch what is missing.
_DOWNLOADED = ('CIFAR10', 'CIFAR100', 'FashionMNIST', 'MNIST', 'OneDLDataset')


class DataNotFoundError(ValueError):
    """A folder or file that a config names is not there."""


class Part(NamedTuple):
    """A data set that reads files, as a config writes it."""

    place: str  # in the config
    cfg: Mapping[str, Any]
    pipeline: list[Mapping[str, Any]]  # its own steps, then those of the wrappers around it


def check_paths(cfg: Mapping[str, Any], loaders: Sequence[str] = LOADERS) -> None:
    """Check that the annotation files and image folders that a config names are there.

    Only what the pipelines read is asked for. Paths that a file backend resolves (``s3://``,
    `backend_args`) and data sets of other libraries than OpenMMLab's are the loader's own.

    Args:
        cfg: an mmengine Config, or a dict of its form.
        loaders: the dataloaders that the run will use, with the evaluators beside them.

    Raises:
        DataNotFoundError: with the missing path, who names it, the expected tree and the mend.
    """
    for name in loaders:
        for part in each_part((cfg.get(name) or {}).get('dataset'), f'{name}.dataset'):
            check_part(part, cfg.get('default_scope'))
        place = name.replace('_dataloader', '_evaluator')
        evaluators = cfg.get(place)
        for evaluator in [evaluators] if isinstance(evaluators, Mapping) else evaluators or ():
            path = evaluator.get('ann_file') if isinstance(evaluator, Mapping) else None
            if isinstance(path, str) and not remote(path, evaluator) and not _exists(path):
                raise DataNotFoundError(
                    f'annotation file not found: {os.path.abspath(path)} ({place}.ann_file); pass '
                    f'--data-root DIR, or --cfg-options {place}.ann_file=FILE'
                )


def check_part(part: Part, scope: str | None) -> None:
    """Check one data set's paths, as `check_paths` does; types without scope are of `scope`."""
    dataset = part.cfg
    kind = type_name(dataset.get('type', ''))
    library = _library(dataset.get('type', ''), scope)
    root, ann_file = dataset.get('data_root') or '', dataset.get('ann_file')
    if library not in (*LIBRARIES, 'mmengine') or kind in _DOWNLOADED or remote(root, dataset):
        return
    ann_file = ann_file if isinstance(ann_file, str) else ''
    folders = _read_folders(part, library)
    named = [each for each in (ann_file, *(os.path.join(each, '') for each in folders)) if each]

    def expect(what: str, path: str, *readers: Mapping[str, Any]) -> None:
        if remote(path, dataset, *readers) or _exists(path):
            return
        tree = f'; expected in {root}: {", ".join(named)}' if root else ''
        make = ' (tools/make_mini_data.py draws it)' if 'mini' in root else ''
        raise DataNotFoundError(
            f'{what} not found: {os.path.abspath(path)} ({part.place}, {kind}){tree}; pass '
            f'--data-root DIR to say where it is{make}'
        )

    if root and not (named and all(map(os.path.isabs, named))):  # else nobody reads the root
        expect('data folder', root)
    if ann_file:
        expect('annotation file', os.path.join(root, ann_file))
    for folder in filter(None, folders):
        expect('data folder', os.path.join(root, folder), *each_dict(part.pipeline))
    boxes = dataset.get('bbox_file')
    if isinstance(boxes, str) and not remote(boxes, dataset) and not _exists(boxes):
        raise DataNotFoundError(
            f'person boxes not found: {os.path.abspath(boxes)} ({part.place}.bbox_file); to take '
            f'the annotated boxes instead, pass --cfg-options {part.place}.bbox_file=None'
        )


def each_part(node: Any, place: str, around: Sequence[Mapping] = ()) -> Iterator[Part]:
    """Find the data sets that read files, through wrappers (whose pipelines are `around` them)."""
    if not isinstance(node, Mapping):
        return
    steps = [step for step in node.get('pipeline') or () if isinstance(step, Mapping)]
    steps += around
    if 'datasets' in node:  # ConcatDataset, CombinedDataset
        for i, inner in enumerate(node['datasets']):
            yield from each_part(inner, f'{place}.datasets.{i}', steps)
    elif 'dataset' in node:  # RepeatDataset, ClassBalancedDataset, MultiImageMixDataset, ...
        yield from each_part(node['dataset'], f'{place}.dataset', steps)
    else:
        yield Part(place, node, steps)


def type_name(kind: str | type) -> str:
    """The name without its library of a config's ``type``, which may be a class."""
    return kind.split('.')[-1] if isinstance(kind, str) else kind.__name__


def _library(kind: str | type, scope: str | None) -> str | None:
    """The library whose class a type is; nothing is imported to see it."""
    if not isinstance(kind, str):
        return kind.__module__.split('.')[0]
    named = kind.split('.')[0] if '.' in kind else scope
    for registry in (DATASETS, *DATASETS.children.values()):
        known = registry.module_dict.get(type_name(kind))
        if known is not None and registry.scope in (named, 'mmengine'):
            return known.__module__.split('.')[0]
    return named


def _read_folders(part: Part, library: str) -> list[str]:
    """The folders below a data set's root that its pipeline reads, images first."""
    steps = [(type_name(s['type']), s) for s in each_dict(part.pipeline) if s.get('type')]
    prefixes = part.cfg.get('data_prefix') or {}
    if not isinstance(prefixes, Mapping):  # mmpretrain allows a plain string
        prefixes = {'img_path': prefixes}
    if type_name(part.cfg.get('type', '')) == 'ImageNet' and not any(prefixes.values()):
        prefixes = {'img_path': part.cfg.get('split')}
    keys: list[str] = []
    if any(name.startswith('Load') and 'Image' in name for name, _ in steps):
        keys += ('img', 'img_path')
    if any(
        step.get('with_seg', library == 'mmseg' or name == 'LoadPanopticAnnotations')
        for name, step in steps
        if name.startswith('Load') and name.endswith('Annotations')
    ):
        keys += ('seg', 'seg_map_path')
    return [prefixes[key] for key in keys if isinstance(prefixes.get(key), str)]


def each_dict(node: Any) -> Iterator[dict[str, Any]]:
    """Yields every dict of a part of a config, outer ones first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list | tuple):
        for each in node:
            yield from each_dict(each)


def remote(path: str, *readers: Mapping[str, Any]) -> bool:
    """Whether a path is for a file backend to resolve, or any step or data set has one for it."""
    if '://' in path:
        return True
    for reader in readers:
        backend = reader.get('backend_args') or reader.get('file_client_args')
        if backend and backend.get('backend') not in ('local', 'disk'):
            return True
    return False


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))
