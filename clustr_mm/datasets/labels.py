"""Which classes a data set labels: what is learnt in silence where its labels are not as meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clustr_mm.datasets.faults import loading_steps

IGNORED = 255  # the label of pixels that no loss and no metric counts


def label_report(dataset: Any, limit: int = 200) -> list[str]:
    """Say which labels are no class, and whether half of the classes or more have no label.

    Args:
        dataset: a data set of an mm library, or a wrapper of some.
        limit: how many samples to look at, spread over the data set; their label maps are read.
            Where they are too few to tell, nothing is said of classes without a label.
    """
    labels = Labels()
    parts = list(_inner(dataset))
    all_seen = sum(map(len, parts)) <= limit
    for part in parts:
        for place in np.unique(np.linspace(0, len(part) - 1, limit // len(parts) + 1, dtype=int)):
            try:
                sample = part.get_data_info(int(place))
                found = load_labels(part, sample)
                labels.add(part, sample, None if found is None else np.bincount(found.ravel()))
            except Exception:  # what is wrong with it is said when it is trained on
                continue
    known = len(labels.classes or ())
    labelled = labels.counts.total() if labels.unit != 'pixel' else 10 * labels.samples
    telling = (all_seen or labelled >= 10 * known) and 2 * len(labels.missing()) >= known
    return labels.lines() if labels.outside or telling else []


def load_labels(dataset: Any, sample: dict) -> np.ndarray | None:
    """Load a sample's label map (H, W) by the data set's own step, without its image.

    `sample` is as `get_data_info` gives it, and is changed. None where no step loads one alone.
    """
    for step in loading_steps(dataset):
        boxes = getattr(step, 'with_bbox', False) or getattr(step, 'with_mask', False)
        if getattr(step, 'with_seg', False) and not boxes and sample.get('seg_map_path'):
            loaded = step(sample)
            return None if loaded is None else loaded.get('gt_seg_map')
    return None


class Labels:
    """How often each class is labelled in the samples that were added."""

    def __init__(self) -> None:
        self.classes: Sequence[str] | None = None
        self.counts: Counter[int] = Counter()
        self.outside: dict[int, str] = {}  # labels that are no class, and where the first is
        self.samples = 0
        self.unit = 'image'

    def add(self, dataset: Any, sample: Mapping[str, Any], pixels: np.ndarray | None) -> None:
        """Count a labelled sample itself, its boxes, or its `pixels` of each label."""
        given = np.atleast_1d(sample.get('gt_label', ()))
        if pixels is not None:
            self.unit = 'pixel'
            found = dict(enumerate(pixels.tolist()))
        elif 'instances' in sample:
            self.unit = 'box'
            found = Counter(each.get('bbox_label', 0) for each in sample['instances'])
        elif given.dtype.kind in 'iu':
            found = Counter(given.tolist())
        else:
            return
        self.samples += 1
        classes = dataset.metainfo.get('classes')
        self.classes = self.classes or classes
        self.counts.update(found)
        if not classes or (self.unit == 'pixel' and not hasattr(dataset, 'reduce_zero_label')):
            return  # mmdet's label maps may count stuff besides
        for label, count in found.items():
            if count and not 0 <= label < len(classes) and label != IGNORED:
                where = sample.get('seg_map_path' if self.unit == 'pixel' else 'img_path')
                self.outside.setdefault(label, str(where))

    def missing(self) -> list[str]:
        """The classes that nothing is labelled as."""
        return [name for i, name in enumerate(self.classes or ()) if not self.counts[i]]

    def useless(self) -> bool:
        """Whether of several classes one at most is labelled: there is nothing to tell apart."""
        count = len(self.classes or ())
        return self.samples > 0 and count - len(self.missing()) < min(count, 2)

    def lines(self) -> list[str]:
        """What is odd, a line each."""
        lines = []
        known = len(self.classes or ())
        if self.outside:
            named = ', '.join(map(str, sorted(self.outside)[:9]))
            lines.append(
                f'labels {named} are no class, must be 0 to {known - 1}; the first is in '
                f'{min(self.outside.values())}'
            )
        if self.samples and (missing := self.missing()):
            line = (
                f'{len(missing)} of {known} classes have not one {self.unit} in '
                f'{self.samples:,} samples: {", ".join(map(str, missing)):.200}'
            )
            if self.unit == 'pixel' and (ignored := self.counts[IGNORED]):
                share = ignored / self.counts.total()
                line += f'; {share:.0%} of the pixels are {IGNORED}, which is ignored'
            lines.append(line)
        return lines


def _inner(dataset: Any) -> Iterator[Any]:
    """The data sets inside of wrappers."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner != [None]:
        for each in inner:
            yield from _inner(each)
    elif hasattr(dataset, 'get_data_info') and hasattr(dataset, 'metainfo') and len(dataset):
        yield dataset
