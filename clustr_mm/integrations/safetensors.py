"""Lets mmengine's own loading of weights read safetensors, which it does not know.

Our tools import this. For ``load_from`` in a library's own tools a config names it::

    custom_imports = dict(imports=['clustr_mm', 'clustr_mm.integrations.safetensors'])

(``import clustr_mm`` does not: it would import mmengine's runner, and with it OpenCV.)
"""

from __future__ import annotations

from typing import Any

from mmengine.runner.checkpoint import CheckpointLoader

from clustr_mm.weights.files import read_checkpoint


@CheckpointLoader.register_scheme(prefixes=r'.*\.safetensors$', force=True)
def load_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Reads a safetensors file, for ``load_from`` and ``init_cfg`` in any library's tools."""
    return read_checkpoint(filename, map_location or 'cpu')
