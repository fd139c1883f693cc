"""ClusTR among timm's models.

Importing it registers one name for each of ``ARCHS``, ``clustr_tiny`` to ``clustr_pvt_v2_b4``, and
whatever builds its backbones by ``timm.create_model`` has them too::

    import clustr_mm.integrations.timm
    import timm

    model = timm.create_model('clustr_small', features_only=True, cluster_window=56)

Names and meanings are timm's; arguments that it does not know are those of
``clustr_mm.models.ClusTR``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_notrace_module,
)
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch import Tensor, nn

from clustr_mm import models
from clustr_mm.models.clustr import Stage
from clustr_mm.weights.files import CheckpointError

register_notrace_module(Stage)  # how many tokens there are decides what runs


class ClusTR(models.ClusTR):
    """The ClusTR backbone with a classification head, by timm's contract.

    Its weights have the names of a backbone by itself, ``stages.*``, and ``head.fc.*``. Files of
    whole models load as well: ``backbone.*`` and, where the model has a classifier, ``head.fc.*``
    are taken. ``checkpoint_path`` wants the model's own shapes. For images of other channels or
    other classes, hand the file over as pretrained weights, which timm adapts::

        timm.create_model(
            'clustr_pvt_v2_b2', pretrained=True, pretrained_cfg_overlay=dict(file=FILE),
            in_chans=8, num_classes=20,
        )

    (``num_classes`` in the overlay, where the file's head has not 1000.)

    Args:
        arch: As for ``clustr_mm.models.ClusTR``.
        in_chans: Channels of the images.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling before the classifier, one of timm's; empty for none.
        drop_rate: Dropout before the classifier.
        device: Where the parameters are to be.
        dtype: Their type.
        kwargs: As for ``clustr_mm.models.ClusTR``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Sequence[int]] = 'small',
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, in_chans, **kwargs)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.channels[-1]
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)
        self.to(device=device, dtype=dtype)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """Scores of the classes, (B, num_classes), of images (B, in_chans, height, width)."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The last stage's map, (B, C, H, W)."""
        return self._maps(images, [len(self.stages) - 1])[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Scores (B, num_classes), or what they are made of (B, C), of the last stage's map."""
        return self.head(x, pre_logits=pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of some stages, and the last map.

        Args:
            x: Images, (B, in_chans, height, width).
            indices: Stages, from 0 or, from the end, from -1; a number for that many last ones;
                None for all.
            norm: Without a meaning: every stage ends with its norm.
            stop_early: Whether the last map is that of the last stage among ``indices``.
            output_fmt: ``'NCHW'``, which is all there is.
            intermediates_only: Whether the last map is left out.

        Returns:
            Maps (B, C, H, W), ascending; with the last map before them if that is asked for.

        Raises:
            ValueError: If ``output_fmt`` is another.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt is {output_fmt!r}; use 'NCHW'")
        taken, deepest = feature_take_indices(len(self.stages), indices)
        last = deepest if stop_early or intermediates_only else len(self.stages) - 1
        run = sorted({*taken, last})
        maps = dict(zip(run, self._maps(x, run), strict=True))
        intermediates = [maps[i] for i in run if i in taken]
        return intermediates if intermediates_only else (maps[last], intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Takes away the stages after the last that is asked for.

        Args:
            indices: As for ``forward_intermediates``.
            prune_norm: Without a meaning: a stage's norm is part of it.
            prune_head: Whether the classifier goes too, as it does wherever a stage goes.

        Returns:
            The stages that are asked for, from 0.
        """
        taken, deepest = feature_take_indices(len(self.stages), indices)
        if deepest < len(self.stages) - 1:
            prune_head = True
            self.stages = self.stages[: deepest + 1]
            self.num_features = self.head_hidden_size = self.channels[deepest]
            self.head.in_features = self.num_features
        if prune_head:
            self.reset_classifier(0, '')
        return taken

    def get_classifier(self) -> nn.Module:
        """The layer that scores classes; ``nn.Identity`` where there is none."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Makes a new classifier.

        Args:
            num_classes: Classes; 0 for no classifier.
            global_pool: Pooling before it; None for the one that is there.
        """
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that say by a parameter's name in which layer it is, as ``get_layer_depth``.

        Args:
            coarse: Whether a layer is a stage, not a block.
        """
        blocks = [
            (r'^stages\.(\d+)\.patch_embed', (0,)),
            (r'^stages\.(\d+)\.blocks\.(\d+)', None),
            (r'^stages\.(\d+)\.norm', (99999,)),
        ]
        return dict(stem=r'^stages\.0\.patch_embed', blocks=r'^stages\.(\d+)' if coarse else blocks)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, beside biases and norms: none."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Says whether to save memory in training by computing activations twice."""
        for stage in self.stages:
            cast(Stage, stage).with_cp = enable

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Loads the model's own weights, or its part of a whole model's.

        Args:
            state_dict: Tensors by key.
            strict: Whether the part that is loaded must have all of the model's weights and no
                other.
            assign: See torch.

        Returns:
            What torch's method returns.

        Raises:
            RuntimeError: If a weight has another shape, or with ``strict`` a key has no partner.
        """
        return super().load_state_dict(self.own_part(state_dict), strict, assign)

    def own_part(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """What of a whole model's weights is this model's, by its names; else all as they are.

        Of the stages and the classifier only what the model has, so that one file starts a
        network for classes, for maps, and for the maps of the first stages.
        """
        whole = any(key.startswith('backbone.stages.') for key in state_dict)
        own = {
            key.removeprefix('backbone.'): value
            for key, value in state_dict.items()
            if not whole or key.startswith(('backbone.', 'head.fc.'))
        }
        gone = [f'stages.{i}.' for i in range(len(self.stages), len(self.channels))]
        if not self.num_classes:
            gone.append('head.fc.')
        return {key: value for key, value in own.items() if not key.startswith(tuple(gone))}


class FeatureNet(FeatureGetterNet):
    """ClusTR's maps as a list, for ``features_only``; loads what ``ClusTR`` loads."""

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Loads weights by names of this module, ``model.*``, or by the backbone's."""
        if any(key.startswith('model.') for key in state_dict):
            return super().load_state_dict(state_dict, strict, assign)
        return self.model.load_state_dict(state_dict, strict, assign)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See ``ClusTR``."""
        self.model.set_grad_checkpointing(enable)


def _pretrained(state_dict: Mapping[str, Any], model: ClusTR) -> dict[str, Any]:
    """The model's part of pretrained weights.

    Raises:
        CheckpointError: If they are not a whole ClusTR's. (timm itself lets keys be missing where
            the number of classes changes.)
    """
    part = model.own_part(state_dict)
    missing = [key for key in model.state_dict() if key.startswith('stages.') and key not in part]
    if missing:
        raise CheckpointError(
            f'the weights lack {len(missing)} keys of {model.arch}, such as {missing[0]}; give '
            "those of a ClusTR of this arch, PVTv2's converted by tools/convert_checkpoint.py"
        )
    return part


def _entrypoint(arch: str) -> Callable[..., nn.Module]:
    """The function that timm calls to build a variant."""

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        out_indices = kwargs.pop('out_indices', (0, 1, 2, 3))
        return build_model_with_cfg(
            ClusTR,
            name,
            pretrained,
            pretrained_filter_fn=_pretrained,
            feature_cfg=dict(out_indices=out_indices, feature_cls=FeatureNet),
            arch=arch,
            **kwargs,
        )

    name = create.__name__ = f'clustr_{arch}'
    create.__doc__ = f'ClusTR with ``arch={arch!r}``.'
    return create


# No weights are public: `pretrained=True` needs a file in `pretrained_cfg_overlay`.
default_cfgs = generate_default_cfgs(
    {
        f'clustr_{arch}': dict(
            num_classes=1000,
            input_size=(3, 224, 224),
            pool_size=(7, 7),
            crop_pct=0.875,
            interpolation='bicubic',
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            first_conv='stages.0.patch_embed.proj',
            classifier='head.fc',
            paper_name='ClusTR: Exploring Efficient Self-attention via Clustering for Vision '
            'Transformers',
            paper_ids='arXiv:2208.13138',
        )
        for arch in models.ARCHS
    }
)

for _arch in models.ARCHS:
    register_model(_entrypoint(_arch))
