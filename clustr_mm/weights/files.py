"""Weights in files: read without running anything, loaded strictly, written whole or not at all.

Whatever does not fit is a `CheckpointError` of one line, never a warning.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from clustr_mm.weights.download import download
from clustr_mm.weights.safe_pickle import WantsCodeError, restricted_pickle

_CHECKSUM = 'sha256'  # of the tensors: safetensors' own format has none
_trusted = False


class CheckpointError(ValueError):
    """A checkpoint is missing, unreadable, or does not fit the model."""


def trust_checkpoints(trusted: bool) -> None:
    """Says whether checkpoints may run code from now on (``--trust-checkpoint``).

    Args:
        trusted: Whether a pickle that names more than plain data is loaded all the same.
    """
    global _trusted
    _trusted = trusted


def read_checkpoint(path: str | os.PathLike[str], structures: str = '') -> dict[str, Any]:
    """Reads a checkpoint, verified, without running anything that it contains.

    A torch file's CRCs are checked, which torch.load does not do, and a safetensors file's
    checksum if it has one (those that this package writes do).

    Args:
        path: A file that torch.save, mmengine or safetensors wrote, or its http(s) address.
        structures: A regular expression of the dotted names of further classes that may be in it;
            they must be of plain data.

    Returns:
        The dict in the file, tensors on the CPU; of a safetensors file
        ``{'state_dict': tensors, 'meta': metadata}``.

    Raises:
        CheckpointError: If the file is missing, damaged, no such file, or would run code.
    """
    source = str(path)
    if '://' not in source:
        return _read_file(Path(path).expanduser(), source, structures)
    try:
        file = download(source)
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{source} cannot be fetched ({_first_line(error)})') from error
    try:
        return _read_file(file, source, structures)
    except CheckpointError:
        file.unlink(missing_ok=True)  # a download cut short would be found again next time
        raise


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
        init_cfg: ``checkpoint``, a path or an http(s) address, and optionally ``prefix``, which
            the keys to be loaded begin with.

    Raises:
        CheckpointError: If the checkpoint cannot be read or does not fit.
    """
    source = str(init_cfg['checkpoint'])
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


def save_checkpoint(
    state_dict: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a state dict, as safetensors where the name ends so, whole or not at all.

    Args:
        state_dict: Tensors by key.
        path: Where to write; an existing file is replaced at the end.
        metadata: What to say about them, beside the checksum; ``meta`` of a .pth file.

    Raises:
        CheckpointError: If it cannot be written.
    """
    path = Path(path)
    part = path.with_name(f'{path.name}.part')
    try:
        if path.suffix == '.safetensors':
            _write_safetensors(state_dict, part, metadata or {})
        else:
            torch.save({'state_dict': dict(state_dict), 'meta': dict(metadata or {})}, part)
        replace_durably(part, path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError when a disk is full
        part.unlink(missing_ok=True)
        raise CheckpointError(
            f'{path} cannot be written ({_first_line(error)}); choose a folder that exists and has '
            'space'
        ) from error


def replace_durably(part: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Gives a file that was written under a temporary name its own, on disk, at once.

    Args:
        part: The temporary name, on the same file system.
        path: The name; a file of that name is replaced.

    Raises:
        OSError: If the file system refuses; a full network disk may say so only here.
    """
    with open(part, 'rb+') as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    # The new name itself is in the folder, which is another thing to write.
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_file(path: Path, source: str, structures: str) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f'checkpoint {source} does not exist; check the path')
    try:
        content = (
            _read_safetensors(path)
            if path.suffix == '.safetensors'
            else _read_torch(path, structures)
        )
    except CheckpointError:
        raise
    except WantsCodeError as error:
        raise CheckpointError(
            f'{source} is a pickle that wants to run {error}, and was not loaded; if you trust '
            'whoever made it, --trust-checkpoint loads it'
        ) from error
    except Exception as error:  # there is no end to what a damaged file can make a parser raise
        raise CheckpointError(
            f'{source} is not a checkpoint that can be read ({_first_line(error)}); give a whole '
            'file that torch.save, mmengine or safetensors wrote'
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f'{source} holds a {type(content).__name__}; give a file that holds a state dict'
        )
    return dict(content)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise CheckpointError(
            f'{path} needs the package safetensors; pip install safetensors'
        ) from error
    with safe_open(path, framework='pt', device='cpu') as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        meta = dict(file.metadata() or {})
    if _CHECKSUM in meta and meta[_CHECKSUM] != _checksum(tensors):
        raise ValueError('its tensors do not fit its checksum: it is damaged')
    return {'state_dict': tensors, 'meta': meta}


def _write_safetensors(
    state_dict: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]
) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {key: value.contiguous() for key, value in state_dict.items()}
    try:
        own = {'format': 'pt', _CHECKSUM: _checksum(tensors)}
        save_file(tensors, path, metadata={**metadata, **own})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(f'{key} {value.dtype} {tuple(value.shape)}\n'.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_torch(path: Path, structures: str) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if (record := archive.testzip()) is not None:
                raise ValueError(f'its record {record} does not fit its CRC: it is damaged')
    elif tarfile.is_tarfile(path):
        # torch before 2.6 unpickles what is in one, whatever weights_only says (CVE-2025-32434).
        raise ValueError('a tar file, which torch wrote before its version 0.1.10')
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError:
        pass
    try:  # a training checkpoint of mmengine, for example
        known = restricted_pickle(structures)
        return torch.load(path, map_location='cpu', weights_only=False, pickle_module=known)
    except WantsCodeError:
        if not _trusted:
            raise
    return torch.load(path, map_location='cpu', weights_only=False)


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
