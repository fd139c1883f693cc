"""Whether the files that a config's data sets name are there: a look of milliseconds before a run.

OpenMMLab's data sets fail late and elsewhere where a folder is missing: with an empty list of
images, which some samplers go through for ever. What is in the files is audit.py's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.registry import DATASETS

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_LIBRARIES = ('mmdet', 'mmseg', 'mmpose', 'mmpretrain', 'mmengine')
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
        loaders: the dataloaders that the run will use; the evaluators beside them are looked at,
            too.

    Raises:
        DataNotFoundError: one line with the missing path, who names it, the tree that was expected
            and the mend.
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
    if library not in _LIBRARIES or kind in _DOWNLOADED:
        return
    root = dataset.get('data_root') or ''
    ann_file = dataset.get('ann_file')
    ann_file = ann_file if isinstance(ann_file, str) else ''
    folders = _read_folders(part, library)

    def fail(what: str, path: str) -> None:
        named = [ann_file, *(os.path.join(each, '') for each in folders)]
        tree = f'; expected in {root}: {", ".join(filter(None, named))}' if root else ''
        make = ' (tools/make_mini_data.py draws it)' if 'mini' in root else ''
        raise DataNotFoundError(
            f'{what}: {os.path.abspath(path)} ({part.place}, {kind}){tree}; pass --data-root DIR '
            f'to say where it is{make}'
        )

    if remote(root, dataset):
        return
    named = [each for each in (ann_file, *folders) if each]
    joined = not named or not all(map(os.path.isabs, named))  # else nobody reads the root
    if root and joined and not _exists(root):
        fail('data folder not found', root)
    if ann_file:
        path = os.path.join(root, ann_file)
        if not remote(path, dataset) and not _exists(path):
            fail('annotation file not found', path)
    for folder in folders:
        path = os.path.join(root, folder)
        if not path or remote(path, dataset, *each_step(part.pipeline)):
            continue
        if not os.path.isdir(os.path.expanduser(path)):
            fail('data folder not found', path)
        suffix = ''
        if library == 'mmseg' and not ann_file and folder == folders[0]:  # images by their name
            suffix = dataset.get('img_suffix', '.jpg' if kind == 'BaseSegDataset' else '')
        if not _holds(path, suffix):
            fail(f'no *{suffix} (img_suffix) in' if suffix else 'data folder is empty', path)
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
    steps = [
        (type_name(step['type']), step) for step in each_step(part.pipeline) if step.get('type')
    ]
    prefixes = part.cfg.get('data_prefix') or {}
    if not isinstance(prefixes, Mapping):  # mmpretrain allows a plain string
        prefixes = {'img_path': prefixes}
    if type_name(part.cfg.get('type', '')) == 'ImageNet' and not any(prefixes.values()):
        prefixes = {'img_path': part.cfg.get('split')}
    reads = {
        'img': any(name.startswith('Load') and 'Image' in name for name, _ in steps),
        'seg': any(
            step.get('with_seg', library == 'mmseg' or name == 'LoadPanopticAnnotations')
            for name, step in steps
            if name.startswith('Load') and name.endswith('Annotations')
        ),
    }
    return [
        prefixes[key]
        for what, keys in (('img', ('img', 'img_path')), ('seg', ('seg', 'seg_map_path')))
        for key in keys
        if reads[what] and isinstance(prefixes.get(key), str)
    ]


def each_step(node: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the transforms of a pipeline, and those inside them."""
    if isinstance(node, Mapping):
        yield node
        node = list(node.values())
    if isinstance(node, list | tuple):
        for each in node:
            yield from each_step(each)


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


def _holds(folder: str, suffix: str) -> bool:
    """Whether a folder, or one below it, has a file whose name ends so: stops at the first."""
    folders = [os.path.expanduser(folder)]
    for each in folders:
        with os.scandir(each) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.name.endswith(suffix):
                    return True
    return False
