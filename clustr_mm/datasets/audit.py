"""Everything that is missing or wrong of a config's data sets, before a long run starts.

`check_paths` looks whether a run finds its files; the audit looks at every file as the run would.
It builds the data sets by their own classes and loads samples by their own loading steps, so that
it asks for nothing that a run does not. What the libraries pass over in silence, it says. On a full
data set it takes minutes, or with `decode` as long as loading an epoch does.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope
from rich.progress import track

from clustr_mm.datasets.check import (
    LOADERS,
    NO_SAMPLE,
    DataNotFoundError,
    Part,
    check_part,
    check_paths,
    each_dict,
    each_part,
    remote,
    type_name,
)
from clustr_mm.datasets.coco import coco_faults
from clustr_mm.datasets.faults import (
    file_fault,
    first_line,
    loaded_faults,
    loading_steps,
    sample_fault,
)
from clustr_mm.datasets.labels import IGNORED, Labels, load_labels

_WORKERS = 8  # opening files is waiting, mostly


def audit(cfg: Mapping[str, Any], decode: bool = False) -> Iterator[str]:
    """Look for every fault of a config's data sets; a terminal shows how far it has come.

    Args:
        cfg: an mmengine Config, or a dict of its form.
        decode: whether to load every image, too.

    Yields:
        Lines: "fault: ...", "warning: ..." for what may be meant so, and what was looked at.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    trained: dict[tuple, str] = {}
    seen: list[Part] = []
    for loader in LOADERS:
        split = loader.removesuffix('_dataloader')
        metrics = cfg.get(f'{split}_evaluator')
        labels = Labels()
        for part in each_part((cfg.get(loader) or {}).get('dataset'), f'{loader}.dataset'):
            if any(part[1:] == each[1:] for each in seen):  # a test set that is the validation set
                continue
            seen.append(part)
            try:
                check_part(part, cfg.get('default_scope'))
                built = _build(part)
            except DataNotFoundError as error:
                yield f'fault: {error}'
                continue
            except Exception as error:  # the libraries' words for what is in the files
                yield f'fault: {_source(part)} ({part.place}): {_build_fault(error)}'
                continue
            if built is None:
                yield f'{part.place}: no data set of mmengine, and not looked into'
                continue
            yield from _class_faults(built, part, trained)
            if split == 'train':
                yield from _head_faults(cfg.get('model'), built.metainfo.get('classes'))
            yield from _part_lines(part, built, labels, metrics, decode)
        wrong = split == 'train' and (labels.useless() or labels.outside)
        for line in labels.lines():
            yield f'{"fault" if wrong else "warning"}: {split}: {line}'
        try:
            check_paths({f'{split}_evaluator': metrics}, [loader])
        except DataNotFoundError as error:
            yield f'fault: {error}'


def _part_lines(
    part: Part, built: BaseDataset, labels: Labels, metrics: Any, decode: bool
) -> Iterator[str]:
    """Look into one data set, and count its labels."""
    split = part.place.split('_')[0]
    first = _first_samples(built)
    what = 'images' if first or not len(built) else 'samples, whose files are not looked at'
    kind = type_name(part.cfg['type'])
    yield f'{split}: {kind}: {len(first) or len(built):,} {what}, {_source(part)}'
    if not len(built):
        yield f'fault: {_source(part)} ({part.place}): {NO_SAMPLE}'
    sizes: dict[str, tuple[int, int]] = {}
    yield from _annotation_faults(built, metrics if split != 'train' else (), sizes)
    backed = remote(_source(part), part.cfg, *each_dict(part.pipeline))
    pool, quiet = ThreadPoolExecutor(_WORKERS), not sys.stdout.isatty()
    looked = pool.map(partial(_look, built, decode, not backed, sizes), first.values())
    try:
        for sample, counts, faults in track(looked, f'{split} images', len(first), disable=quiet):
            labels.add(built, sample, counts)
            for fault in dict.fromkeys(faults):
                yield f'fault: {fault}'
    finally:
        pool.shutdown(cancel_futures=True)  # else Ctrl-C would wait for every image


def _build(part: Part) -> BaseDataset | None:
    """Build a data set whose pipeline is its loading steps; None if it is a foreign one."""
    kind = part.cfg['type']
    with DATASETS.switch_scope_and_registry(None) as registry:
        known = registry.get(kind) if isinstance(kind, str) else kind
    if known is not None and not (isinstance(known, type) and issubclass(known, BaseDataset)):
        return None
    loads = [step for step in part.pipeline if type_name(step['type']).startswith('Load')]
    pipeline: dict[str, Any] = {'pipeline': loads} if part.pipeline else {}
    with redirect_stdout(io.StringIO()):  # pycocotools prints how long it takes
        built = DATASETS.build({**part.cfg, **pipeline})
        built.full_init()
    return built


def _build_fault(error: Exception) -> str:
    """Say why a data set's class could not read its files."""
    if isinstance(error, KeyError) and ' ' not in str(error):
        return f'a record has no {error}'
    if isinstance(error, ValueError) and 'need at least one array' in str(error):  # mmengine's
        return NO_SAMPLE
    return f'cannot be read ({first_line(error)})'


def _source(part: Part) -> str:
    """The annotation file or folder that a data set's samples are listed in."""
    file = part.cfg.get('ann_file')
    root = part.cfg.get('data_root') or ''
    return os.path.join(root, file) if isinstance(file, str) else root


def _first_samples(built: BaseDataset) -> dict[str, int]:
    """The place of each image's first sample; the persons of an image are a sample each."""
    first: dict[str, int] = {}
    for i in range(len(built)):
        path = built.get_data_info(i).get('img_path')
        if isinstance(path, str):
            first.setdefault(path, i)
    return first


def _annotation_faults(
    built: BaseDataset, metrics: Any, sizes: dict[str, tuple[int, int]]
) -> Iterator[str]:
    """Look into a file of COCO's format, where the data set has one; note the images' sizes."""
    path = str(getattr(built, 'ann_file', ''))
    if not path.endswith('.json') or not os.path.isfile(path):
        return
    with open(path, encoding='utf-8') as opened:
        content = json.load(opened)
    if isinstance(content, dict) and {'annotations', 'images', 'categories'} <= content.keys():
        masks = [step for step in loading_steps(built) if getattr(step, 'with_mask', False)]
        # mmdet's metric reads it, and asks for it once the test is done.
        kinds = {type_name(each['type']) for each in each_dict(metrics) if 'type' in each}
        crowds = 'CocoMetric' in kinds and type(built).__module__.startswith('mmdet.')
        for is_fault, line in coco_faults(content, built, crowds, bool(masks)):
            yield f'{"fault" if is_fault else "warning"}: {path}: {line}'
        folder = built.data_prefix.get('img') or ''
        for image in content['images']:
            file = os.path.join(folder, str(image.get('file_name')))
            sizes[file] = image.get('height'), image.get('width')
        for step in masks:  # they have been looked at, and a broken one can end the process
            step.with_mask = False


def _class_faults(
    built: BaseDataset, part: Part, trained: dict[tuple[str, ...], str]
) -> Iterator[str]:
    """Compare classes with those that are `trained`, and where: labels number them in order."""
    classes = tuple(built.metainfo.get('classes') or ())
    if part.place.startswith('train'):
        trained.setdefault(classes, part.place)
    elif trained and classes not in trained:
        theirs, other = next(iter(trained.items()))
        lone = ', '.join(sorted(set(classes) ^ set(theirs)))
        how = f'{lone:.200} in one only' if lone else 'in another order'
        places = f'{other} and {part.place}'
        yield f'fault: {places} have different classes ({how}), and labels number them'


def _head_faults(model: Any, classes: Sequence[str] | None) -> Iterator[str]:
    """Yield the heads of a model that are made for another number of classes than the data has."""
    nodes = list(each_dict(model))
    rpns = (each_dict(node[key]) for node in nodes for key in node if 'rpn' in str(key))
    of_rpns = {id(each) for below in rpns for each in below}  # which tell objects from none
    for node in nodes if classes is not None else ():
        found = node.get('num_classes')
        if isinstance(found, int) and found != len(classes or ()) and id(node) not in of_rpns:
            yield (
                f'fault: num_classes of {type_name(node.get("type", "model"))} is {found}, and the '
                f'training data has {len(classes or ())} classes: set it in the config'
            )


def _look(
    built: BaseDataset, decode: bool, local: bool, sizes: Mapping[str, tuple], place: int
) -> tuple[dict, np.ndarray | None, list[str]]:
    """Load a sample's files as a run does; without `decode` its image is looked up only.

    Gives the sample, how many pixels have each label, and what is wrong.
    """
    sample, labelled = built.get_data_info(place), built.get_data_info(place)
    path, label_map = sample['img_path'], str(sample.get('seg_map_path'))
    counts: np.ndarray | None = None
    faults: list[str] = []
    try:
        labels = load_labels(built, labelled)
        faults += loaded_faults(labelled)
        if labels is not None and labels.ndim == 2:
            counts = np.bincount(labels.ravel())
            faults += _stored_faults(label_map) if local else []
    except Exception as error:
        steps = (step for step in loading_steps(built) if getattr(step, 'with_seg', False))
        fault = file_fault(label_map, error, getattr(next(steps), 'backend_args', None))
        faults.append(fault or f'{label_map} cannot be loaded ({first_line(error)})')
    if not decode:
        gone = local and not (os.path.isfile(path) and os.path.getsize(path))
        return sample, counts, faults + gone * [f'{path} is not there, or empty']
    try:
        loaded = built.prepare_data(place)
        if loaded is None:
            raise ValueError('its loading steps give nothing')
    except Exception as error:
        fault = sample_fault(built, place) or f'{path} cannot be loaded ({first_line(error)})'
        return sample, counts, [*faults, fault]
    height, width = sizes.get(path, (None, None))
    faults += loaded_faults({'height': height, 'width': width, **loaded})
    if local and (broken := file_fault(path, None)):
        faults.append(broken)  # what decoders let pass
    return sample, counts, faults


def _stored_faults(path: str) -> list[str]:
    """Say how a label map loses its labels when it is stored or read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            kind, mode = image.format, image.mode
            top = np.max(np.asarray(image)) if mode.startswith(('I', 'F')) else 0
    except OSError:  # of a format that only its loader reads
        return []
    if kind == 'JPEG':
        return [f'{path} is a JPEG, which blurs labels into others: write it anew as png']
    if mode == 'F' or not 0 <= top <= IGNORED:
        return [f'{path} has label {top} ({mode}): labels are read as 8 bits, 0 to {IGNORED}']
    return []
