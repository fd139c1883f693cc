"""The network in a form that other runtimes can run: one graph, standard operations, any size."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from clustr_mm.models.cluster_attention import ClusterAttention
from clustr_mm.models.clustr import ClusTR

Module = TypeVar('Module', bound=nn.Module)


def make_exportable(model: Module, dynamic: bool = True) -> Module:
    """Copies a model with every cluster attention in exportable form, for evaluation.

    Args:
        model: A model with ClusTR in it, or a ClusTR. ``crop_padding`` is turned off: a graph does
            not look for padding, so its images must all fill their batch.
        dynamic: Whether the graph must serve any number of tokens.

    Returns:
        The copy, in evaluation mode.

    Raises:
        ValueError: If ``dynamic`` is asked of a model with windows.
    """
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, ClusTR):
            module.crop_padding = False
        if isinstance(module, ClusterAttention):
            if dynamic and module.cluster_window is not None:
                raise ValueError(
                    f'cluster_window is {module.cluster_window}: windows depend on the size, which '
                    'a graph for any size does not know; export for one size, or set it to None'
                )
            module.backend = 'traceable'
    return model
