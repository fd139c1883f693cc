"""Everything that is missing or wrong of a config's data sets, before a long run starts.

`check_data_root` looks at what decides whether a run starts, and stops at the first fault. The
audit goes on, and looks at every file as the run would: it builds the data sets and loads their
samples with the steps that training loads them with. On a full data set it takes minutes, or with
`decode` as long as loading an epoch does.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from itertools import islice
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope

from clustr_mm.datasets.annotations import (
    AnnotationError,
    check_annotations,
    image_sizes,
    is_remote,
    join_path,
)
from clustr_mm.datasets.check import (
    SPLITS,
    ClassFoldersError,
    DataNotFoundError,
    check_class_folders,
    check_data_root,
    check_paths,
    each_dataset,
    lone_labels,
)
from clustr_mm.datasets.transforms import CheckedLoad, DataFileError, guard_dataset, type_name

# Images of the public data sets, train and val. Sources: the data sets' own pages (ADE20K's scene
# parsing benchmark, COCO 2017, ILSVRC 2012); COCO-WholeBody annotates COCO's images.
EXPECTED_IMAGES = {
    'ADE20KDataset': {'train': 20210, 'val': 2000},
    'CocoDataset': {'train': 118287, 'val': 5000},
    'CocoWholeBodyDataset': {'train': 118287, 'val': 5000},
    'ImageNet': {'train': 1281167, 'val': 50000},
}
_WORKERS = 8  # opening files is waiting, mostly

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]


def audit(
    cfg: Mapping[str, Any],
    say: Say,
    progress: Progress,
    decode: bool = False,
    subset: bool = False,
) -> Iterator[str]:
    """Look for every fault of a config's data sets.

    Args:
        cfg: an mmengine Config, or a dict of its form.
        say: called with a line on what was looked at.
        progress: called with (what, files done, files in all).
        decode: whether to load every image, too.
        subset: whether fewer images than the public data set has are meant.

    Yields:
        One line a fault.
    """
    scope = cfg.get('default_scope')
    init_default_scope(scope or 'mmengine')
    seen = set()
    for split in SPLITS:
        loader = cfg.get(f'{split}_dataloader') or {}
        for place, dataset in each_dataset(loader.get('dataset'), f'{split}_dataloader.dataset'):
            trained = split == 'train'
            where = ('data_root', 'ann_file', 'data_prefix', 'split')
            key = repr([trained, *map(dataset.get, where)])
            if key in seen:  # a test set that is the validation set
                continue
            seen.add(key)
            try:
                check_paths(dataset, place)
                check_annotations(dataset, scope, evaluated=not trained)
            except (DataNotFoundError, AnnotationError) as error:
                yield str(error)  # and what else it may have, no library could read
                continue
            for label, image in lone_labels(dataset):
                yield f'label map {label} has no image {image}'
            try:
                built = _build(dataset)
            except Exception as error:  # the libraries' words for what is in the files
                reason = ' '.join(f'{type(error).__name__}: {error}'.split())
                yield f'{place} cannot be built ({reason})'
                continue
            first = _first_samples(built)
            if not first:
                kind = type_name(dataset['type'])
                say(f'{split}: {kind}: only that its files and folders are there has been checked')
                continue
            yield from _count_faults(dataset, first, split, say, subset)
            yield from _class_faults(built, first, split, say)
            if trained:
                yield from _head_faults(cfg.get('model'), built.metainfo.get('classes'))
            look = partial(_sample_faults, built, _loaders(dataset, scope), decode)
            yield from _each(look, list(first.values()), f'{split} images', progress)
        try:
            check_data_root({f'{split}_evaluator': cfg.get(f'{split}_evaluator')}, [split])
        except DataNotFoundError as error:
            yield str(error)
    try:
        check_class_folders({name: cfg[name] for name in cfg if name.endswith('_dataloader')})
    except ClassFoldersError as error:
        yield str(error)


def _build(dataset: Mapping[str, Any]) -> BaseDataset:
    """Build a data set whose samples are what its pipeline would be given."""
    without: dict[str, Any] = {'pipeline': []} if 'pipeline' in dataset else {}
    with redirect_stdout(io.StringIO()):  # pycocotools prints how long it takes
        built = DATASETS.build({**dataset, **without})
        built.full_init()
    return built


def _first_samples(built: BaseDataset) -> dict[str, int]:
    """The place of each image's first sample; the persons of an image are a sample each."""
    first: dict[str, int] = {}
    for i in range(len(built)):
        path = built.get_data_info(i).get('img_path')
        if isinstance(path, str):
            first.setdefault(path, i)
    return first


def _head_faults(node: Any, classes: Sequence[str] | None, place: str = 'model') -> Iterator[str]:
    """Yield the heads of a model that are made for another number of classes than the data has."""
    if classes is None:
        return
    if isinstance(node, Mapping):
        found = node.get('num_classes')
        if isinstance(found, int) and found != len(classes) and 'rpn' not in place:
            yield (
                f'{place}.num_classes is {found}, and the training data has {len(classes)} '
                f'classes: set it to {len(classes)} in the config'
            )
        for name, value in node.items():
            yield from _head_faults(value, classes, f'{place}.{name}')
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _head_faults(value, classes, f'{place}.{i}')


def _count_faults(
    dataset: Mapping[str, Any], paths: Collection[str], split: str, say: Say, subset: bool
) -> Iterator[str]:
    """Say how many images a data set has, and yield if the public one has another number."""
    kind = type_name(dataset['type'])
    root = dataset.get('data_root') or ''
    where = join_path(root, dataset['ann_file']) if dataset.get('ann_file') else root
    classes = (dataset.get('metainfo') or {}).get('classes')
    public = not classes and not os.path.exists(os.path.join(root, 'mini_data.json'))
    expected = EXPECTED_IMAGES.get(kind, {}).get(split) if public else None
    # Of the images that a COCO file lists, training reads those with objects.
    count = len(image_sizes(where) if expected and where.endswith('.json') else paths)
    of = f' of {expected:,}' if expected else ''
    say(f'{split}: {kind}: {count:,}{of} images, {where}')
    if expected and count != expected and not subset:
        yield (
            f'{where}: {count:,} images, the data set has {expected:,}; get the rest, or '
            'pass --subset if a part is meant'
        )


def _class_faults(
    built: BaseDataset, paths: Collection[str], split: str, say: Say
) -> Iterator[str]:
    """Say what the folders of classes hold, and yield those without an image.

    Nothing tells what ought to be in a folder: that a class has fewer images than the others, or a
    file that is passed over, is said and is no fault.
    """
    folders = getattr(built, 'folder_to_idx', None)
    if not folders:
        return
    above = built.img_prefix
    counts = Counter(os.path.relpath(path, above).split(os.sep)[0] for path in paths)
    for name in folders:
        if not counts[name]:
            yield f'{os.path.join(above, name)} holds no image'
    fewest, most = min(folders, key=counts.__getitem__), max(counts.values())
    say(f'{split}: from {counts[fewest]:,} ({fewest}) to {most:,} images a class')
    passed_over = [
        path
        for name in folders
        for folder, _, files in os.walk(os.path.join(above, name), followlinks=True)
        for path in sorted(os.path.join(folder, file) for file in files)
        if path not in paths
    ]
    if passed_over:
        number = f'{len(passed_over):,} file{"s" * (len(passed_over) > 1)}'
        say(f'{split}: {number} passed over as no images, the first {passed_over[0]}')


def _loaders(dataset: Mapping[str, Any], scope: str | None) -> list[CheckedLoad]:
    """The loading steps of a data set's pipeline, as training guards them."""
    steps = guard_dataset(dataset, scope) if dataset.get('pipeline') else []
    return [
        TRANSFORMS.build({**step, 'on_error': 'raise'})
        for step in steps
        if step['type'] == CheckedLoad.__name__
    ]


def _sample_faults(
    built: BaseDataset, loaders: Sequence[CheckedLoad], decode: bool, index: int
) -> list[str]:
    """Load a sample's files as a run does; without `decode` its image is looked up only."""
    sample = built.prepare_data(index)
    faults = [] if decode else _lookup_faults(sample['img_path'])
    for load in loaders:
        # A small file of its own, of which nothing but its pixels tells whether it fits.
        label_map = sample.get('seg_map_path') and load.keys == ('seg_map_path',)
        if label_map or (decode and not faults):
            try:
                sample = load(sample)
            except DataFileError as error:
                faults.append(str(error))
    return faults


def _lookup_faults(path: str) -> list[str]:
    """Say whether an image is missing or empty, without reading it."""
    if is_remote(path):
        return []
    try:
        size = os.path.getsize(path)
    except OSError as error:
        return [f'image {path}: {error.strerror}']
    return [] if size else [f'image {path} is empty']


def _each(
    look: Callable[[int], list[str]], indices: Sequence[int], what: str, progress: Progress
) -> Iterator[str]:
    """Look at samples, some at once, and yield their faults in order."""
    rest = iter(indices)
    done = 0
    progress(what, done, len(indices))
    with ThreadPoolExecutor(_WORKERS) as pool:
        while batch := list(islice(rest, 4 * _WORKERS)):
            for faults in pool.map(look, batch):
                yield from faults
            done += len(batch)
            progress(what, done, len(indices))
