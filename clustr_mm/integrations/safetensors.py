"""mmengine's own loading of weights, which knows no safetensors, learns to read them."""

from __future__ import annotations

from typing import Any

from mmengine.runner.checkpoint import CheckpointLoader

from clustr_mm.weights.files import read_checkpoint


@CheckpointLoader.register_scheme(prefixes=r'.*\.safetensors$', force=True)
def load_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Reads a safetensors file, for ``load_from`` and ``init_cfg`` in any library's tools."""
    return read_checkpoint(filename, map_location or 'cpu')
