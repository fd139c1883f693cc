"""A training checkpoint stripped to what others need: weights, and where they come from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clustr_mm.models import ARCHS
from clustr_mm.weights.files import (
    CheckpointError,
    read_checkpoint,
    save_checkpoint,
    state_dict_of,
)
from clustr_mm.weights.published import backbone_shapes

PARTS = ('model', 'backbone')
_HASH_DIGITS = 8  # as torch.hub has it in its files' names
_PREFIX = 'backbone.'


def publish(
    source: str,
    folder: str,
    name: str | None = None,
    part: str = 'model',
    score: str | None = None,
    trust: bool = False,
) -> Path:
    """Writes a checkpoint's weights as safetensors, with metadata, and its hash in the name.

    Args:
        source: A training checkpoint, or one with weights alone; of a run with averaged weights
            the averaged ones are taken, as mmengine stores them.
        folder: Where to write; made if missing.
        name: The file's name before the hash; None takes the source's.
        part: ``'model'`` for every weight, ``'backbone'`` for those that ``--init-from`` reads.
        score: What it achieves, say ``'mIoU 49.6'``; None takes the best score of the run if the
            source is the checkpoint that has it.
        trust: See ``read_checkpoint``.

    Returns:
        Path of the file, ``NAME-HASH.safetensors``; HASH is the beginning of its SHA-256.

    Raises:
        CheckpointError: If the source cannot be read, or has no backbone and ``part`` asks for one,
            or the file cannot be written.
    """
    content = read_checkpoint(source, trust=trust)
    weights = state_dict_of(content, source)
    if part == 'backbone':
        weights = {key: value for key, value in weights.items() if key.startswith(_PREFIX)}
        if not weights:
            raise CheckpointError(
                f'{source} has no key that begins with {_PREFIX!r}; use --part model'
            )
    # Weights that share memory are each written for themselves.
    weights = {key: value.clone() for key, value in weights.items()}
    metadata = {'part': part, **_origin(content, source), **_versions(content)}
    metadata['arch'] = find_arch(weights) or ''
    if score := score or _best_score(content, source):
        metadata['score'] = score
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f'cannot make folder {folder}: {error.strerror}; choose another'
        ) from error
    stem = name or Path(source).stem
    whole = target / f'{stem}.new.safetensors'
    save_checkpoint(weights, whole, {key: value for key, value in metadata.items() if value})
    digest = hashlib.sha256(whole.read_bytes()).hexdigest()
    return whole.replace(target / f'{stem}-{digest[:_HASH_DIGITS]}.safetensors')


def find_arch(weights: Mapping[str, Tensor]) -> str | None:
    """Tells a backbone's variant by its weights.

    Args:
        weights: Tensors by key; the backbone's begin with ``backbone.``.

    Returns:
        A key of ``ARCHS``; None for another backbone or a variant of one's own.
    """
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    own = {key: shape for key, shape in shapes.items() if key.startswith(_PREFIX)}
    return next((arch for arch in ARCHS if backbone_shapes(arch) == own), None)


def _origin(content: Mapping[str, Any], source: str) -> dict[str, str]:
    """The run that the weights come from, as far as the checkpoint says it."""
    meta = content.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    known = {
        'source': Path(source).name,
        'config': meta.get('cfg', meta.get('config')),
        'experiment': meta.get('experiment_name'),
        'epoch': meta.get('epoch'),
        'iter': meta.get('iter'),
        'seed': meta.get('seed'),
        'time': meta.get('time'),
        'score': meta.get('score'),  # of a file that was published before
        'licence': meta.get('licence'),  # of one that tools/convert_checkpoint.py made
        'how': meta.get('how'),
    }
    dataset = meta.get('dataset_meta')
    if isinstance(dataset, Mapping) and 'classes' in dataset:
        known['classes'] = json.dumps(list(dataset['classes']))
    return {key: str(value) for key, value in known.items() if value is not None}


def _versions(content: Mapping[str, Any]) -> dict[str, str]:
    """What wrote the checkpoint, as far as it says so, and what published it."""
    versions = {'torch': str(torch.__version__)}
    for distribution in ('clustr-mm', 'safetensors', 'mmcv', 'onedl-mmcv'):
        try:
            versions[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    meta = content.get('meta')
    if isinstance(meta, Mapping) and 'mmengine_version' in meta:
        versions['mmengine'] = meta['mmengine_version']
    return {'versions': json.dumps(versions)}


def _best_score(content: Mapping[str, Any], source: str) -> str | None:
    """The best score of the run, if the source is the checkpoint that has it."""
    hub = content.get('message_hub')
    info = hub.get('runtime_info', {}) if isinstance(hub, Mapping) else {}
    best = str(info.get('best_ckpt', ''))
    match = re.fullmatch(r'best_(.+)_(epoch|iter)_\d+\.pth', Path(source).name)
    if match is None or Path(best).name != Path(source).name or 'best_score' not in info:
        return None
    return f'{match[1]} {float(info["best_score"]):.4f}'
