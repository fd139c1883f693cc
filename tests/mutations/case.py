"""A small data set that is being spoiled, and what training on it must then come to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

Mutation = Callable[['Case'], None]

# Below a task's data root: the training images, their label maps or annotation file.
IMAGES = {
    'segmentation': 'images/training',
    'detection': 'train2017',
    'pose': 'train2017',
    'classification': 'train',
}
LABEL_MAPS = 'annotations/training'
JSONS = {
    'detection': 'annotations/instances_train2017.json',
    'pose': 'annotations/coco_wholebody_train_v1.0.json',
}


@dataclass
class Sample:
    """What the model must be given for one image, or for one person in pose.

    Attributes:
        path: The image's file.
        image: (3, H, W), as the pipeline packs it; None where anything may be.
        target: The task's target, see ``batches.read``.
        tolerance: Mean difference of the image's values that is allowed: 0 for a lossless file.
    """

    path: Path
    image: np.ndarray | None
    target: Any
    tolerance: float = 0.0


@dataclass
class Case:
    """One data set, to be spoiled by mutations.

    Attributes:
        task: A key of ``IMAGES``.
        root: The data root; its files may be changed.
        rng: The mutations' chance.
        samples: What the model must be given, by image (or by annotation id in pose).
        coco: The annotation file's content; it is written when all mutations are done.
        last: What to do with the content when they are, as one that leaves nothing for others;
            it gives what to write.
        refusals: If any: training must be refused, in a line that contains one of them.
        warnings: Each must be in a warning if training is not refused.
    """

    task: str
    root: Path
    rng: np.random.Generator
    samples: dict[Any, Sample]
    coco: dict | None = None
    last: Callable[[dict], bytes] = lambda coco: json.dumps(coco).encode()
    refusals: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _free: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.task in JSONS and self.coco is None:
            self.coco = json.loads(self.json.read_text())
        self._free = sorted({sample.path for sample in self.samples.values()})
        self.rng.shuffle(self._free)

    @property
    def json(self) -> Path:
        """The annotation file."""
        return self.root / JSONS[self.task]

    def image(self) -> Path:
        """Takes an image that no other mutation has or will have."""
        return self._free.pop()

    def of(self, path: Path) -> list[Sample]:
        """The samples of an image."""
        return [sample for sample in self.samples.values() if sample.path == path]

    def label_map(self) -> tuple[Path, Sample]:
        """Takes the label map of an image, and its sample."""
        path = self.image()
        return self.root / LABEL_MAPS / f'{path.stem}.png', self.of(path)[0]

    def record(self) -> dict:
        """Takes an image's record in the annotation file."""
        assert self.coco is not None
        name = self.image().name
        return next(each for each in self.coco['images'] if each.get('file_name') == name)

    def annotation(self) -> dict:
        """Takes an image, and gives an annotation of it that is trained on."""
        assert self.coco is not None
        record = self.record()
        own = [each for each in self.coco['annotations'] if each.get('image_id') == record['id']]
        if self.task == 'pose':
            own = [each for each in own if each['id'] in self.samples]
        return own[self.rng.integers(len(own))]

    def refuse(self, name: object) -> None:
        """Expects a refusal that names something."""
        self.refusals.append(str(name))

    def refuse_annotation(self, annotation: dict) -> None:
        """Expects a refusal that names an annotation."""
        self.refuse(f'annotation {annotation["id"]} ')

    def drop(self, annotation: dict) -> None:
        """Expects that an annotation is not trained on."""
        if self.task == 'pose':
            del self.samples[annotation['id']]
        else:
            del self.samples[annotation['image_id']].target[annotation['id']]

    def without_broken(self) -> Case | None:
        """What is left where broken files are skipped; None if more than files is at fault."""
        broken = {Path(name).stem for name in self.refusals}
        if not broken <= {sample.path.stem for sample in self.samples.values()}:
            return None
        left = {key: each for key, each in self.samples.items() if each.path.stem not in broken}
        return replace(self, samples=left, refusals=[])

    def finish(self) -> None:
        """Writes the annotation file."""
        if self.coco is not None:
            self.json.write_bytes(self.last(self.coco))
