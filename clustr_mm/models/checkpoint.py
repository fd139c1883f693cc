"""Weights in files: read without running anything, loaded strictly, written whole or not at all.

Whatever does not fit is a `CheckpointError` of one line, never a warning.
"""

from __future__ import annotations

import importlib
import os
import pickle
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

# What torch.load and pickle raise for files that are cut short, are no checkpoints, or want code.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    ImportError,
    TypeError,
    OSError,
)


class CheckpointError(ValueError):
    """A checkpoint is missing, unreadable, or does not fit the model."""


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint file without running anything that it contains.

    Args:
        path: A file that torch.save, mmengine or safetensors wrote.

    Returns:
        The dict in the file, tensors on the CPU; of a safetensors file
        ``{'state_dict': tensors, 'meta': metadata}``.

    Raises:
        CheckpointError: If the file is missing, or no such file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f'checkpoint {path} does not exist; check the path')
    try:
        content = _read_safetensors(path) if path.suffix == '.safetensors' else _read_torch(path)
    except _UNREADABLE as error:
        reason = _first_line(error)
        raise CheckpointError(
            f'{path} is not a checkpoint that can be read ({reason}); give a whole file that '
            'torch.save, mmengine or safetensors wrote'
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f'{path} holds a {type(content).__name__}; give a file that holds a state dict'
        )
    return dict(content)


def state_dict_of(content: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Finds the state dict in a checkpoint: bare, or under ``state_dict`` or ``model``.

    Args:
        content: What ``read_checkpoint`` returned.
        path: Where it came from, for the error.

    Returns:
        Tensors by key.

    Raises:
        CheckpointError: If there is none.
    """
    for key in ('state_dict', 'model'):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(content):
        raise CheckpointError(
            f'{path} holds no state dict (its keys: {_some(content)}); give a file with tensors by '
            "key, bare or under 'state_dict' or 'model'"
        )
    return tensors


def load_strictly(module: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Loads a state dict whose keys and shapes are exactly the module's.

    Args:
        module: Where to load; unchanged if anything does not fit.
        state_dict: Tensors by key.
        source: Where the tensors came from, for the error.

    Raises:
        CheckpointError: If a key is missing or unexpected or has another shape.
    """
    own = module.state_dict()
    problems = []
    if missing := [key for key in own if key not in state_dict]:
        problems.append(f'{len(missing)} keys missing: {_some(missing)}')
    if unexpected := [key for key in state_dict if key not in own]:
        problems.append(f'{len(unexpected)} keys unexpected: {_some(unexpected)}')
    if shapes := [
        f'{key} is {tuple(state_dict[key].shape)}, not {tuple(own[key].shape)}'
        for key in own
        if key in state_dict and state_dict[key].shape != own[key].shape
    ]:
        problems.append(f'{len(shapes)} shapes differ: {_some(shapes)}')
    if problems:
        raise CheckpointError(
            f'{source} does not fit this {type(module).__name__} ({"; ".join(problems)}); use the '
            'variant that it was saved from'
        )
    module.load_state_dict(dict(state_dict), strict=True)


def load_pretrained(module: nn.Module, init_cfg: Mapping[str, Any]) -> None:
    """Loads what mmengine's ``dict(type='Pretrained', ...)`` names, strictly.

    Args:
        module: Where to load.
        init_cfg: ``checkpoint``, a path or an address that mmengine knows, and optionally
            ``prefix``, which the keys to be loaded begin with.

    Raises:
        CheckpointError: If the checkpoint cannot be read or does not fit.
    """
    source = str(init_cfg['checkpoint'])
    if re.match(r'[\w-]+://', source):
        content = CheckpointLoader.load_checkpoint(source, map_location='cpu')
    else:
        content = read_checkpoint(source)
    state_dict = state_dict_of(content, source)
    if prefix := init_cfg.get('prefix'):
        prefix = prefix.rstrip('.') + '.'
        chosen = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        if not chosen:
            raise CheckpointError(
                f'{source} has no key that begins with {prefix!r} (its keys: {_some(state_dict)}); '
                'convert published weights with tools/convert_checkpoint.py'
            )
        state_dict = chosen
    load_strictly(module, state_dict, source)


def save_checkpoint(state_dict: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Writes a state dict, as safetensors where the name ends so, whole or not at all.

    Args:
        state_dict: Tensors by key.
        path: Where to write; an existing file is replaced at the end.

    Raises:
        CheckpointError: If it cannot be written.
    """
    path = Path(path)
    part = path.with_name(f'{path.name}.part')
    try:
        if path.suffix == '.safetensors':
            _write_safetensors(state_dict, part)
        else:
            torch.save({'state_dict': dict(state_dict)}, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError when a disk is full
        part.unlink(missing_ok=True)
        raise CheckpointError(
            f'{path} cannot be written ({_first_line(error)}); choose a folder that exists and has '
            'space'
        ) from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError(
            f'{path} needs the package safetensors; pip install safetensors'
        ) from error
    try:
        with safe_open(path, framework='pt', device='cpu') as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return {'state_dict': tensors, 'meta': dict(file.metadata() or {})}
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _write_safetensors(state_dict: Mapping[str, Tensor], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {key: value.contiguous() for key, value in state_dict.items()}
    try:
        save_file(tensors, path, metadata={'format': 'pt'})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError:
        # mmengine's training checkpoints hold the run's history besides tensors.
        return torch.load(
            path, map_location='cpu', weights_only=False, pickle_module=_restricted_pickle
        )


def _history_method(owner: Any, name: str) -> Any:
    """``getattr`` for what a pickled history needs, and for nothing else."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'it wants getattr({owner!r}, {name!r})')
    return getattr(owner, name)


class _RestrictedUnpickler(pickle.Unpickler):
    """Knows tensors, arrays, and mmengine's history; refuses every other class and function."""

    _ALLOWED = re.compile(
        r'collections\.(OrderedDict|defaultdict)'
        r'|torch\._utils\._rebuild_(tensor_v2|parameter|tensor)'
        r'|torch\.(Size|device|dtype|Tensor|\w+Storage|float\d+|bfloat16|int\d+|uint8|bool)'
        r'|torch\.storage\.\w+Storage'
        r'|numpy\.(ndarray|dtype)'
        r'|numpy\.(core|_core)\.multiarray\.(_reconstruct|scalar)'
        r'|numpy\.dtypes\.\w+'
        r'|_codecs\.encode'
        r'|mmengine\.logging\.history_buffer\.HistoryBuffer'
        r'|builtins\.(set|frozenset|slice|complex|bytearray)'
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (('builtins', 'getattr'), ('__builtin__', 'getattr')):
            return _history_method
        if not self._ALLOWED.fullmatch(f'{module}.{name}'):
            raise pickle.UnpicklingError(f'it wants {module}.{name}')
        # numpy renamed its core; either version reads the other's files.
        if module == 'numpy._core.multiarray' and not hasattr(
            importlib.import_module('numpy'), '_core'
        ):
            module = 'numpy.core.multiarray'
        return super().find_class(module, name)


def _restricted_load(file: Any, **kwargs: Any) -> Any:
    return _RestrictedUnpickler(file, **kwargs).load()


# What torch.load wants of a pickle module.
_restricted_pickle: Any = types.ModuleType('restricted_pickle')
_restricted_pickle.Unpickler = _RestrictedUnpickler
_restricted_pickle.load = _restricted_load


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip('.')[:160] if lines else type(error).__name__


def _some(names: Iterable[str], most: int = 4) -> str:
    names = list(map(str, names))
    return ', '.join(names[:most]) + (
        f', and {len(names) - most} more' if len(names) > most else ''
    )


@CheckpointLoader.register_scheme(prefixes=r'.*\.safetensors$', force=True)
def _load_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Lets mmengine's own loading read safetensors."""
    content = read_checkpoint(filename)
    if map_location not in (None, 'cpu'):
        content['state_dict'] = {k: v.to(map_location) for k, v in content['state_dict'].items()}
    return content
