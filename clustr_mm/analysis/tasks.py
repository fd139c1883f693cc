"""Whole models with one backbone or another: our configs' UperNet and Mask R-CNN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from clustr_mm.analysis.parameters import quiet_build
from clustr_mm.analysis.peers import PEERS, clustr_options
from clustr_mm.engine.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (_PACKAGE.parent / 'configs', _PACKAGE / '.mim' / 'configs')  # of a clone, of the wheel
_CONFIGS = next(filter(Path.is_dir, _PLACES), _PLACES[0])


@dataclass(frozen=True)
class Task:
    """A whole model.

    Attributes:
        config: A leaf config with ClusTR-S, under ``configs/``.
        needs: The library that has its parts.
    """

    config: str
    needs: str


TASKS = {
    'upernet': Task('mmseg/upernet_clustr_s_ade20k.py', 'mmseg'),
    'mask_rcnn': Task('mmdet/mask_rcnn_clustr_s_coco_1x.py', 'mmdet'),
}


def why_not_task(task: str, device: torch.device) -> str | None:
    """Says why a task's models cannot run here; None if they can.

    Args:
        task: One of ``TASKS``.
        device: Where they shall run.

    Returns:
        The reason.
    """
    library = TASKS[task].needs
    try:
        __import__(f'{library}.models')
    except ImportError as error:
        return f'{library} cannot be imported ({error})'
    if task != 'mask_rcnn':
        return None
    try:
        from mmcv.ops import get_compiling_cuda_version, nms

        if device.type == 'cuda' and get_compiling_cuda_version() == 'not available':
            return "mmcv's CUDA operators are missing: it was compiled without CUDA"
        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device)
        nms(boxes, torch.ones(1, device=device), 0.5)
    except (ImportError, RuntimeError) as error:
        return f"mmcv's operators do not run ({str(error).splitlines()[0]})"
    return None


def build_task(
    task: str, name: str, shape: tuple[int, int], overrides: Mapping[str, Any] | None = None
) -> nn.Module:
    """Builds a task's model with another backbone.

    Args:
        task: One of ``TASKS``.
        name: A backbone as for ``clustr_options``. ClusTR has the config's settings, and what the
            name says otherwise.
        shape: Height and width of the images, for UperNet's is padded to a size in training.
        overrides: Values of the config by dotted key, as for ``--cfg-options``.

    Returns:
        The model with random weights.

    Raises:
        UserError: If there is no such backbone.
    """
    cfg = Config.fromfile(str(_CONFIGS / TASKS[task].config))
    cfg.merge_from_dict(dict(overrides or {}))
    model = cfg.model
    options = clustr_options(name)
    if options is not None:
        model.backbone.update(options)
    else:
        _swap(model, name)
    if 'size' in model.data_preprocessor:
        model.data_preprocessor.size = shape
    with DefaultScope.overwrite_default_scope(cfg.default_scope), quiet_build():
        try:
            built = MODELS.build(model)
        except TypeError as error:  # an option that ClusTR has not
            raise UserError(f'model {name}: {error}') from error
    return revert_sync_batchnorm(built)  # it has one process, and may be on a CPU


def make_batch(
    task: str, batch: int, shape: tuple[int, int], device: torch.device
) -> dict[str, Any]:
    """Makes a batch of noise with made-up annotations, on the model's device.

    Args:
        task: One of ``TASKS``.
        batch: Images.
        shape: Height and width.
        device: Where the model runs.

    Returns:
        The batch as a data loader gives it: ``inputs`` and ``data_samples``.
    """
    height, width = shape
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randint(1, 256, (3, *shape), dtype=torch.uint8, generator=generator).to(device)
        for _ in range(batch)
    ]
    meta: dict[str, Any] = dict(
        img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1.0, 1.0)
    )
    if task == 'upernet':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        samples = []
        for _ in inputs:
            labels = torch.randint(0, 150, (1, height, width), generator=generator)
            sample = SegDataSample(metainfo=meta)
            sample.gt_sem_seg = PixelData(data=labels.to(device))
            samples.append(sample)
        return dict(inputs=inputs, data_samples=samples)
    from mmdet.testing import demo_mm_inputs

    demo = demo_mm_inputs(
        batch_size=batch,
        image_shapes=[(3, height, width)] * batch,
        num_items=[7] * batch,  # about COCO's mean
        num_classes=80,
        with_mask=True,
        device=str(device),
    )
    for sample in demo['data_samples']:
        sample.set_metainfo(meta)
    return dict(inputs=inputs, data_samples=demo['data_samples'])


def _swap(model: Any, name: str) -> None:
    """Puts a peer in the backbone's place, and its channels where the heads expect them."""
    peer = PEERS[name]
    ours = (64, 128, 256, 512)
    model.backbone = dict(peer.mmdet, type=f'mmdet.{peer.mmdet["type"]}')
    for part in ('neck', 'decode_head', 'auxiliary_head'):
        head: Mapping[str, Any] | None = model.get(part)
        if head is None:
            continue
        if isinstance(head['in_channels'], int):
            model[part].in_channels = peer.channels[ours.index(head['in_channels'])]
        else:
            model[part].in_channels = list(peer.channels)
