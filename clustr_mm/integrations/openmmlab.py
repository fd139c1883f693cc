"""ClusTR in mmengine's registries, and what the task libraries need beside it.

Importing it registers ``ClusTR``, ``ClusTRLayerDecay``, ``NeckChain`` and
``ClassWeightedCrossEntropy``; ``import clustr_mm`` does so wherever mmengine is installed. Of
mmengine it imports the registry alone: models and optimizers take two seconds more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from torch import Tensor, nn

from clustr_mm import models


@MODELS.register_module()
class ClusTR(models.ClusTR):
    """The ClusTR backbone with mmengine's initialisation.

    Args:
        args: As for ``clustr_mm.models.ClusTR``.
        init_cfg: ``dict(type='Pretrained', checkpoint=..., prefix='backbone.')`` loads strictly;
            mmengine's other kinds do what they do. None keeps the parameters as they are.
        kwargs: As for ``clustr_mm.models.ClusTR``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, *args: Any, init_cfg: dict | list[dict] | None = None, **kwargs: Any
    ) -> None:
        entries = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg or {}]
        if not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f'init_cfg is {init_cfg!r}; use a dict or a list of dicts')
        if len(entries) > 1 and any(entry.get('type') == 'Pretrained' for entry in entries):
            raise ValueError('init_cfg has a Pretrained entry beside others; leave only that one')
        super().__init__(*args, **kwargs)
        self.init_cfg = init_cfg

    def init_weights(self) -> None:
        """Initialises from ``init_cfg``; without one nothing changes.

        Raises:
            CheckpointError: If a pretrained checkpoint is missing, unreadable, or not of this
                variant.
        """
        entry = self.init_cfg[0] if isinstance(self.init_cfg, list | tuple) else self.init_cfg
        if not entry:
            return
        if entry.get('type') == 'Pretrained':
            from clustr_mm.weights.files import load_pretrained  # which imports mmengine's runner

            load_pretrained(self, entry)
        else:
            from mmengine.model import initialize

            initialize(self, self.init_cfg)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ClusTRLayerDecay:
    """Layer-wise learning-rate decay: the nearer to the image, the slower a layer learns.

    Layer l of L + 1 learns at lr * rate^(L + 1 - l), with L the backbone's blocks; all that is not
    the backbone is layer L + 1 (Bao et al., "BEiT: BERT Pre-Training of Image Transformers",
    arXiv 2106.08254). In a config of any of the libraries::

        optim_wrapper = dict(
            constructor='ClusTRLayerDecay', paramwise_cfg=dict(layer_decay_rate=0.9)
        )

    Norms and biases get no weight decay. The other keys of ``paramwise_cfg``
    (``custom_keys`` and so on, see mmengine) hold as always; a ``lr_mult`` multiplies the layer's
    rate, and ``norm_decay_mult`` or ``bias_decay_mult`` bring weight decay back.

    Args:
        optim_wrapper_cfg: The config of the wrapper, with ``optimizer``, which names its ``lr``.
        paramwise_cfg: ``layer_decay_rate``, above 0 and up to 1, and mmengine's keys.

    Raises:
        ValueError: If the rate is missing or out of range, or the optimizer names no ``lr``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        from clustr_mm.integrations.layer_decay import LayerDecay

        self.constructor = LayerDecay(optim_wrapper_cfg, paramwise_cfg)

    def __call__(self, model: nn.Module) -> Any:
        """Makes the optimizer wrapper of a model, whose parts include one ClusTR."""
        return self.constructor(model)


@MODELS.register_module()
class NeckChain(nn.Module):
    """Runs necks one after the other, where a library takes one.

    mmpose's heads read the last map of a tuple, an FPN's coarsest. ``FPN`` and then
    ``FeatureMapProcessor(select_index=0)`` hand them the finest.

    Args:
        necks: Configs of the necks, built in the library that runs.
    """

    def __init__(self, necks: Sequence[dict]) -> None:
        super().__init__()
        self.necks = nn.ModuleList(MODELS.build(neck) for neck in necks)

    def init_weights(self) -> None:
        """Initialises the necks, as their configs say."""
        for neck in self.necks:
            init_weights = getattr(neck, 'init_weights', None)
            if callable(init_weights):
                init_weights()

    def forward(self, x: Any) -> Any:
        """Hands each neck what the one before it returned."""
        for neck in self.necks:
            x = neck(x)
        return x


@MODELS.register_module()
class ClassWeightedCrossEntropy(nn.Module):
    """Cross-entropy averaged by class weight over the pixels that count, the same on every stack.

    It equals ``CrossEntropyLoss(class_weight=...)`` of onedl-mmsegmentation. The one of
    mmsegmentation 1.2.2 looks up a weight for the label of ignored pixels too: an ``IndexError``.

    Args:
        class_weight: A weight for each class.
        loss_weight: Factor of the loss.
        loss_name: Its name in the logs. Begins with ``loss``, or it is not trained on.
    """

    def __init__(
        self,
        class_weight: Sequence[float],
        loss_weight: float = 1.0,
        loss_name: str = 'loss_ce',
    ) -> None:
        super().__init__()
        self.class_weight = list(class_weight)
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(
        self, logits: Tensor, label: Tensor, weight: Tensor | None = None, ignore_index: int = 255
    ) -> Tensor:
        """Returns the loss, a scalar; 0 where every pixel is ignored.

        Args:
            logits: (B, C, H, W).
            label: (B, H, W) of class indices or ``ignore_index``.
            weight: (B, H, W), of a pixel sampler, or None.
            ignore_index: The label of pixels that do not count.
        """
        class_weight = logits.new_tensor(self.class_weight)
        loss = F.cross_entropy(
            logits, label, class_weight, ignore_index=ignore_index, reduction='none'
        )
        if weight is not None:
            loss = loss * weight
        total = class_weight[label[label != ignore_index]].sum()
        return self.loss_weight * loss.sum() / (total + torch.finfo(total.dtype).eps)
