"""Named ways to spoil a small data set, each with what training on it must then come to."""

from __future__ import annotations

from .annotations import OBJECT_MUTATIONS, PERSON_MUTATIONS
from .case import IMAGES, JSONS, Case, Mutation, Sample
from .folders import FOLDER_MUTATIONS
from .images import IMAGE_MUTATIONS
from .label_maps import LABEL_MUTATIONS

MUTATIONS: dict[str, dict[str, Mutation]] = {
    'segmentation': {**IMAGE_MUTATIONS, **LABEL_MUTATIONS},
    'detection': {**IMAGE_MUTATIONS, **OBJECT_MUTATIONS},
    'pose': {**IMAGE_MUTATIONS, **PERSON_MUTATIONS},
    'classification': {**IMAGE_MUTATIONS, **FOLDER_MUTATIONS},
}

__all__ = ['IMAGES', 'JSONS', 'MUTATIONS', 'Case', 'Mutation', 'Sample']
