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
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from mmengine.fileio import list_dir_or_file
from mmengine.registry import DATASETS, init_default_scope

from clustr_mm.datasets.check import (
    LOADERS,
    DataNotFoundError,
    Part,
    check_part,
    check_paths,
    each_part,
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

_DARK = 31  # of 255: a picture without a brighter pixel has lost bits on its way
_NO_SAMPLE = 'no sample is left: are classes and img_suffix those of the files?'
_WORKERS = 8  # opening files is waiting, mostly

Say = Callable[[str], None]
Track = Callable[[Iterable, int, str], Iterable]


def audit(
    cfg: Mapping[str, Any],
    say: Say,
    track: Track = lambda steps, total, what: steps,
    decode: bool = False,
) -> Iterator[str]:
    """Look for every fault of a config's data sets.

    Args:
        cfg: an mmengine Config, or a dict of its form.
        say: called with a line on what was looked at, or ("warning: ...") on what may be meant so.
        track: goes through (steps, their number, what they are) and shows how far it has come.
        decode: whether to load every image, too.

    Yields:
        One line a fault.
    """
    scope = cfg.get('default_scope')
    init_default_scope(scope or 'mmengine')
    folders: dict[str, set[str]] = {}
    seen: list[Part] = []
    for loader in LOADERS:
        split = loader.removesuffix('_dataloader')
        labels = Labels()
        for part in each_part((cfg.get(loader) or {}).get('dataset'), f'{loader}.dataset'):
            if any(part[1:] == each[1:] for each in seen):  # a test set that is the validation set
                continue
            seen.append(part)
            try:
                check_part(part, scope)
                built = _build(part)
            except DataNotFoundError as error:
                yield str(error)
                continue
            except Exception as error:  # the libraries' words for what is in the files
                yield f'{_source(part)} ({part.place}): {_build_fault(error)}'
                continue
            for line in _annotation_faults(built, split != 'train'):
                if line.startswith('warning: '):
                    say(line)
                else:
                    yield line
            first = _first_samples(built)
            say(f'{split}: {type_name(part.cfg["type"])}: {len(first):,} images, {_source(part)}')
            if not len(built):
                yield f'{_source(part)} ({part.place}): {_NO_SAMPLE}'
            yield from _class_folder_faults(built, first, split, folders, say)
            yield from _lone_labels(built)
            if split == 'train':
                yield from _head_faults(cfg.get('model'), built.metainfo.get('classes'))
            dark: list[str] = []
            with ThreadPoolExecutor(_WORKERS) as pool:
                found = pool.map(lambda i, b=built, d=dark: _look(b, i, decode, d), first.values())
                for sample, label_map, faults in track(found, len(first), f'{split} images'):
                    labels.add(built, sample, label_map)
                    yield from dict.fromkeys(faults)
            if dark:
                say(
                    f'warning: {split}: {len(dark):,} images have no value above {_DARK} of 255, '
                    f'the first {min(dark)}: were 10 or 12 bits cut down to 8?'
                )
        for line in labels.lines():
            if split == 'train' and (labels.useless() or labels.outside):
                yield f'{split}: {line}'
            else:
                say(f'warning: {split}: {line}')
        evaluator = loader.replace('_dataloader', '_evaluator')
        try:
            check_paths({evaluator: cfg.get(evaluator)}, [loader])
        except DataNotFoundError as error:
            yield str(error)


def _build(part: Part) -> Any:
    """Build a data set whose pipeline is its loading steps."""
    loads = [step for step in part.pipeline if type_name(step['type']).startswith('Load')]
    pipeline: dict[str, Any] = {'pipeline': loads} if part.pipeline else {}
    # pycocotools prints how long it takes, and warnings are not about the data.
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        built = DATASETS.build({**part.cfg, **pipeline})
        built.full_init()
    return built


def _build_fault(error: Exception) -> str:
    """Say why a data set's class could not read its files."""
    if isinstance(error, KeyError):
        return f'a record has no {error}'
    if isinstance(error, ValueError) and 'need at least one array' in str(error):  # mmengine's
        return _NO_SAMPLE
    return f'cannot be read ({first_line(error)})'


def _source(part: Part) -> str:
    """The annotation file or folder that a data set's samples are listed in."""
    file = part.cfg.get('ann_file')
    root = part.cfg.get('data_root') or ''
    return os.path.join(root, file) if isinstance(file, str) else root


def _first_samples(built: Any) -> dict[str, int]:
    """The place of each image's first sample; the persons of an image are a sample each."""
    first: dict[str, int] = {}
    for i in range(len(built)):
        path = built.get_data_info(i).get('img_path')
        if isinstance(path, str):
            first.setdefault(path, i)
    return first


def _annotation_faults(built: Any, evaluated: bool) -> Iterator[str]:
    """Look into a file of COCO's format, where the data set has one."""
    path = str(getattr(built, 'ann_file', ''))
    if not path.endswith('.json') or not os.path.isfile(path):
        return
    with open(path, encoding='utf-8') as file:
        content = json.load(file)
    if isinstance(content, dict) and {'annotations', 'images'} <= content.keys():
        masks = any(getattr(step, 'with_mask', False) for step in loading_steps(built))
        for is_fault, line in coco_faults(content, built, evaluated, masks):
            yield f'{path}: {line}' if is_fault else f'warning: {path}: {line}'


def _class_folder_faults(
    built: Any, paths: Iterable[str], split: str, before: dict[str, set[str]], say: Say
) -> Iterator[str]:
    """Look at folders that are the classes: labels number them in order.

    `before` holds the folders' names, by where they are, of the splits before; it is added to.
    """
    names = getattr(built, 'folder_to_idx', None)
    if not names:
        return
    above = built.img_prefix
    counts = Counter(os.path.relpath(path, above).split(os.sep)[0] for path in paths)
    for name in names:
        if not counts[name]:
            yield f'{os.path.join(above, name)} holds no image'
    fewest = min(names, key=counts.__getitem__)
    say(f'{split}: from {counts[fewest]:,} ({fewest}) to {max(counts.values()):,} images a class')
    for other, theirs in before.items():
        if theirs != set(names):
            lone = ', '.join(sorted(theirs ^ set(names)))
            yield (
                f'{other} and {above} have different folders of classes ({lone:.200} in one only), '
                'and labels number the folders in order: give both the same ones'
            )
    before[above] = set(names)


def _lone_labels(built: Any) -> Iterator[str]:
    """Yield the label maps without an image: mmseg begins with the images, and never sees them."""
    folder = (getattr(built, 'data_prefix', None) or {}).get('seg_map_path')
    suffix = getattr(built, 'seg_map_suffix', None)
    if not folder or not suffix or built.ann_file or not os.path.isdir(folder):
        return
    used = {built.get_data_info(i).get('seg_map_path') for i in range(len(built))}
    names = list_dir_or_file(folder, list_dir=False, suffix=suffix, recursive=True)
    for path in sorted({os.path.join(folder, name) for name in names} - used):
        yield f'label map {path} has no image'


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
        node = {str(key): value for key, value in node.items()}
    elif isinstance(node, list | tuple):
        node = {str(i): value for i, value in enumerate(node)}
    else:
        return
    for name, value in node.items():
        yield from _head_faults(value, classes, f'{place}.{name}')


def _look(
    built: Any, place: int, decode: bool, dark: list[str]
) -> tuple[dict, np.ndarray | None, list[str]]:
    """Load a sample's files as a run does; without `decode` its image is looked up only.

    Returns:
        The sample, its label map if it has one, and what is wrong.
    """
    sample = built.get_data_info(place)
    path = sample['img_path']
    label_map, faults = _look_at_labels(built, built.get_data_info(place))
    local = '://' not in path and not getattr(built, 'backend_args', None)
    if not decode:
        return sample, label_map, faults + (_lookup_faults(path) if local else [])
    try:
        loaded = built.prepare_data(place)
        if loaded is None:
            raise ValueError('its loading steps give nothing')
    except Exception as error:
        fault = sample_fault(built, place) or f'{path} cannot be loaded ({first_line(error)})'
        return sample, label_map, [*faults, fault]
    faults += loaded_faults(loaded)
    if local and (broken := file_fault(path, None)):
        faults.append(broken)  # what decoders let pass
    image = loaded.get('img')
    if image is not None and image.dtype == np.uint8 and image.max(initial=0) <= _DARK:
        dark.append(path)
    return sample, label_map, faults


def _lookup_faults(path: str) -> list[str]:
    """Say whether an image is missing or empty, without reading it."""
    try:
        size = os.path.getsize(path)
    except OSError as error:
        return [f'{path} cannot be read ({error.strerror})']
    if os.path.isdir(path):
        return [f'{path} is a folder, must be an image']
    return [] if size else [f'{path} is empty (0 bytes)']


def _look_at_labels(built: Any, sample: dict) -> tuple[np.ndarray | None, list[str]]:
    """Load a sample's label map, and say what is wrong with it."""
    path = str(sample.get('seg_map_path'))
    try:
        labels = load_labels(built, sample)
    except Exception as error:
        fault = file_fault(path, error) or f'{path} cannot be loaded ({first_line(error)})'
        return None, [fault]
    faults = list(loaded_faults(sample))
    if labels is None or labels.ndim != 2:
        return None, faults
    return labels, faults + _stored_faults(path)


def _stored_faults(path: str) -> list[str]:
    """Say how a label map loses its labels when it is stored or read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            kind, mode = image.format, image.mode
            top = np.max(np.asarray(image)) if mode.startswith(('I', 'F')) else 0
    except OSError:  # remote, or of a format of its loader's
        return []
    if kind == 'JPEG':
        return [f'{path} is a JPEG, which blurs labels into others: write it anew as png']
    if mode == 'F' or not 0 <= top <= IGNORED:
        return [f'{path} has label {top} ({mode}): labels are read as 8 bits, 0 to {IGNORED}']
    return []
