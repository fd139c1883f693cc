"""mmengine's own loading of weights, made as careful as ours.

A config can name weights for any module (``init_cfg=dict(type='Pretrained', ...)``), and mmengine's
loader runs what such a file contains wherever torch refuses to load it as plain data.
"""

from collections.abc import Callable
from typing import Any

from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

import clustr_mm.integrations.safetensors  # noqa: F401
from clustr_mm.weights.files import CheckpointError, read_checkpoint, state_dict_of

# Names of weights, and mmengine's tables of their addresses.
_TABLES = {
    'modelzoo://': 'get_torchvision_models',
    'torchvision://': 'get_torchvision_models',
    'open-mmlab://': 'get_external_models',
    'openmmlab://': 'get_external_models',
    'mmcls://': 'get_mmcls_models',
}
_REFUSED = ['pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://']


def use_safe_loading() -> None:
    """Lets mmengine read every checkpoint of this process with ``read_checkpoint``."""
    CheckpointLoader.register_scheme(['', 'http://', 'https://'], _load, force=True)
    CheckpointLoader.register_scheme(_REFUSED, _refuse, force=True)
    for prefix, table in _TABLES.items():
        CheckpointLoader.register_scheme(prefix, _load_named(prefix, table), force=True)


def _load(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Reads a file or an address; tensors stay on the CPU, and are moved as they are loaded."""
    return read_checkpoint(filename)


def _refuse(filename: str, map_location: Any = None) -> dict[str, Any]:
    raise CheckpointError(
        f'{filename}: weights are read from files and http(s) addresses; copy the file here and '
        'give its path'
    )


def _load_named(prefix: str, table: str) -> Callable[..., dict[str, Any]]:
    def _load_from_table(filename: str, map_location: Any = None) -> dict[str, Any]:
        addresses = getattr(mmengine_checkpoint, table)()
        name = filename[len(prefix) :]
        if name not in addresses:
            raise CheckpointError(f'{filename}: {prefix} knows no {name!r}')
        content = read_checkpoint(addresses[name])
        if prefix == 'mmcls://':  # the backbone alone, as mmengine has it
            weights = state_dict_of(content, filename)
            own = {k[9:]: v for k, v in weights.items() if k.startswith('backbone.')}
            content = {'state_dict': own}
        return content

    return _load_from_table
