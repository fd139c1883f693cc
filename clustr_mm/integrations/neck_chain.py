"""Several necks, one after the other, where a library takes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module()
class NeckChain(BaseModule):
    """Runs necks one after the other.

    mmpose's heads read the last map of a tuple, an FPN's coarsest. ``FPN`` and then
    ``FeatureMapProcessor(select_index=0)`` hand them the finest.

    Args:
        necks: Configs of the necks, built in the library that runs.
        init_cfg: mmengine's initialisation.
    """

    def __init__(self, necks: Sequence[dict], init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg)
        self.necks = nn.ModuleList(MODELS.build(neck) for neck in necks)

    def forward(self, x: Any) -> Any:
        """Hands each neck what the one before it returned."""
        for neck in self.necks:
            x = neck(x)
        return x
