"""Weights in files: read without running anything, loaded strictly, written whole or not at all.

Whatever is missing or does not fit is a `CheckpointError` of one line, never a warning.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import sys
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clustr_mm.weights.download import local_file
from clustr_mm.weights.safe_pickle import WantsCodeError, restricted_pickle

# With 1 in this variable torch.load refuses every pickle of more than plain data.
_WEIGHTS_ONLY = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_CHECKSUM = 'sha256'  # of the tensors: safetensors' own format has none
# What DistributedDataParallel and torch.compile put before the names of what they wrap.
_WRAPPERS = ('module.', '_orig_mod.')
# The convolution that reduces keys and values in PVTv2, by all names that it has.
_OF_PVT = re.compile(r'\.attn\.sr\.|\.spatial_reduction\.')
# The convolution that sees the image.
_STEM = 'stages.0.patch_embed.proj.weight'
_trusted = False


class CheckpointError(ValueError):
    """A checkpoint is missing, unreadable, or does not fit the model."""


def trust_checkpoints(trusted: bool) -> None:
    """Sets what reading does without ``trust=True``, from now on and in the whole process."""
    global _trusted
    _trusted = trusted


def read_checkpoint(
    source: str | os.PathLike[str],
    map_location: str | torch.device = 'cpu',
    trust: bool = False,
) -> dict[str, Any]:
    """Reads a checkpoint, verified, without running anything that it contains.

    A torch file's CRCs are checked, which torch.load does not do, and a safetensors file's
    checksum if it has one (those that this package writes do).

    Args:
        source: A file that torch.save, mmengine or safetensors wrote, or its address: http(s), or
            a scheme of mmengine's file backends (``s3://``, ``petrel://``) where that is installed.
            A reader that the user has registered with mmengine's ``CheckpointLoader`` comes first.
        map_location: Device of the tensors.
        trust: Whether a pickle that names more than plain data is loaded all the same. It can run
            any code.

    Returns:
        The dict in the file; of a safetensors file ``{'state_dict': tensors, 'meta': metadata}``.

    Raises:
        CheckpointError: If the file is missing, damaged, no such file, or would run code.
    """
    name, trust = str(source), trust or _trusted
    try:
        if (reader := _users_reader(name)) is not None:
            with plain_data_only(not trust):
                return dict(reader(name, map_location=map_location))
        with local_file(name) as path:
            return _read_file(path, name, map_location, trust)
    except OSError as error:
        raise CheckpointError(f'{name} cannot be fetched ({_first_line(error)})') from error


@contextmanager
def plain_data_only(only: bool = True) -> Iterator[None]:
    """Makes torch refuse every pickle of more than plain data, whoever asks it to load one."""
    before = os.environ.pop(_WEIGHTS_ONLY, None)
    if only:
        os.environ[_WEIGHTS_ONLY] = '1'
    try:
        yield
    finally:
        os.environ.pop(_WEIGHTS_ONLY, None)
        if before is not None:
            os.environ[_WEIGHTS_ONLY] = before


def file_hash(source: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal; ``source`` as ``read_checkpoint`` takes it.

    Raises:
        CheckpointError: If it cannot be read.
    """
    try:
        with local_file(str(source)) as path:
            return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f'{source} cannot be fetched ({_first_line(error)})') from error


def state_dict_of(
    content: Mapping[str, Any], source: str | os.PathLike[str] = 'the checkpoint'
) -> dict[str, Tensor]:
    """Finds the state dict in a checkpoint: bare, or under ``state_dict`` or ``model``.

    The prefix of all keys that DistributedDataParallel or torch.compile put there is taken off.

    Args:
        content: What ``read_checkpoint`` returned.
        source: Where it came from, for the error.

    Raises:
        CheckpointError: If there is none.
    """
    for key in ('state_dict', 'model'):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = OrderedDict((k, value) for k, value in content.items() if isinstance(value, Tensor))
    if hasattr(content, '_metadata'):  # the modules' versions, by which they know old checkpoints
        tensors._metadata = content._metadata  # type: ignore[attr-defined]
    if not tensors or len(tensors) < len(content):
        raise CheckpointError(
            f'{source} holds no state dict (its keys: {_some(content)}); give a file with tensors '
            "by key, bare or under 'state_dict' or 'model'"
        )
    return _without_wrappers(tensors)


def load_strictly(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    prefix: str | None = None,
    source: str | os.PathLike[str] = 'the checkpoint',
) -> list[str]:
    """Loads a state dict that has all of the module's weights, in their shapes.

    Args:
        module: Where to load; unchanged if anything does not fit.
        state_dict: Tensors by key.
        prefix: Beginning of the keys to be loaded, such as ``'backbone.'``; None for all.
        source: Where the tensors came from, for the error.

    Returns:
        The keys, of those to be loaded, that the module does not have, for the caller to show.

    Raises:
        CheckpointError: If a weight is missing, has another shape, or has no values.
    """
    own = module.state_dict()
    if not any(key.startswith(_WRAPPERS) for key in own):
        state_dict = _without_wrappers(state_dict)
    if any(map(_OF_PVT.search, state_dict)) and not any(map(_OF_PVT.search, own)):
        raise CheckpointError(
            f'{source} holds weights of PVTv2, which ClusTR takes when they are converted: '
            f'python tools/convert_checkpoint.py {source} CONVERTED.safetensors --from pvt_v2, '
            'then CONVERTED.safetensors in its place'
        )
    prefix = prefix.rstrip('.') + '.' if prefix else ''
    given = _below(state_dict, prefix)
    if prefix and not given:
        raise CheckpointError(
            f'{source} has no key that begins with {prefix!r} (its keys: {_some(state_dict)}); '
            'convert published weights with tools/convert_checkpoint.py'
        )
    problems = {
        'tensors without values, on the meta device': _without_values(given),
        "of the model's tensors on the meta device, where to_empty() is to come first": (
            _without_values(own)
        ),
    }
    if not any(problems.values()):
        before = {key: value.clone() for key, value in own.items()}
        # Modules may convert what they know of old: they are asked, not compared.
        try:
            found = module.load_state_dict(given, strict=False)
            if not found.missing_keys:
                return found.unexpected_keys
            problems['keys missing'] = found.missing_keys
        except RuntimeError:
            problems['keys missing'] = [key for key in own if key not in given]
            problems['shapes differ'] = [
                f'{key} is {tuple(given[key].shape)}, not {tuple(value.shape)}'
                for key, value in own.items()
                if key in given and given[key].shape != value.shape
            ]
        for key, value in own.items():
            value.copy_(before[key])
    problems['keys unexpected'] = [key for key in given if key not in own]
    said = [f'{len(names)} {what}: {_some(names)}' for what, names in problems.items() if names]
    raise CheckpointError(
        f'{source} does not fit this {type(module).__name__} ({"; ".join(said)}); use the '
        'variant that it was saved from'
    )


def load_pretrained(module: nn.Module, init_cfg: Mapping[str, Any], trust: bool = False) -> None:
    """Loads what mmengine's ``dict(type='Pretrained', ...)`` names, strictly.

    Keys that the module does not have are a warning that lists them. Weights for 3 channels start
    a network for others, which a warning says: see ``adapt_stem``.

    Args:
        module: Where to load.
        init_cfg: ``checkpoint``, as ``read_checkpoint`` takes it, and optionally ``prefix``, which
            the keys to be loaded begin with.
        trust: See ``read_checkpoint``.

    Raises:
        CheckpointError: If the checkpoint cannot be read or does not fit.
    """
    source = str(init_cfg['checkpoint'])
    state_dict = state_dict_of(read_checkpoint(source, trust=trust), source)
    stem = (init_cfg.get('prefix') or '').rstrip('.') + '.' + _STEM
    stem = stem.removeprefix('.')
    channels = getattr(module, 'in_channels', 3)
    if stem in state_dict and channels != 3 and state_dict[stem].shape[1] == 3:
        state_dict[stem] = adapt_stem(state_dict[stem], channels)
        warnings.warn(
            f'{source} is for images of 3 channels; its first convolution was made one for '
            f'{channels}',
            stacklevel=2,
        )
    if unexpected := load_strictly(module, state_dict, init_cfg.get('prefix'), source):
        warnings.warn(
            f'{source} has {len(unexpected)} keys that this {type(module).__name__} does not '
            f'have: {_some(unexpected)}',
            stacklevel=2,
        )


def adapt_stem(weight: Tensor, channels: int) -> Tensor:
    """Makes a convolution for 3 channels one for another number, as timm's adapt_input_conv does.

    Args:
        weight: (C, 3, height, width).
        channels: Of the images, N.

    Returns:
        (C, N, height, width): the sum for one channel, so that a grey image gives what it gave in
        three; else the three in turn, scaled by 3 / N so that the output keeps its size.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, [i % 3 for i in range(channels)]] * (3 / channels)


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
        CheckpointError: If it cannot be written, or a tensor has no values.
    """
    path = Path(path)
    if empty := _without_values(state_dict):
        raise CheckpointError(
            f'{path} would get {len(empty)} tensors without values, on the meta device '
            f'({_some(empty)}); load or initialise the model first'
        )
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


def _users_reader(source: str) -> Callable[..., Mapping[str, Any]] | None:
    """What was registered with mmengine's CheckpointLoader for a source, if it is no library's."""
    mmengine: Any = sys.modules.get('mmengine.runner.checkpoint')
    if mmengine is None:  # then nobody can have
        return None
    reader = mmengine.CheckpointLoader._get_checkpoint_loader(source)
    return None if reader.__module__.startswith(('mmengine.', 'clustr_mm.')) else reader


def _read_file(
    path: Path, source: str, map_location: str | torch.device, trust: bool
) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f'checkpoint {source} does not exist; check the path')
    try:
        # By the source's name: a file fetched from a storage may have another.
        content = (
            _read_safetensors(path, map_location)
            if source.endswith('.safetensors')
            else _read_torch(path, map_location, trust)
        )
    except CheckpointError:
        raise
    except WantsCodeError as error:
        raise CheckpointError(
            f'{source} is a pickle that wants to run {error}, and was not loaded; if you trust '
            'whoever made it, --trust-checkpoint (trust=True in Python) loads it'
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


def _read_safetensors(path: Path, map_location: str | torch.device) -> dict[str, Any]:
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
    return {'state_dict': {k: v.to(map_location) for k, v in tensors.items()}, 'meta': meta}


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


def _read_torch(path: Path, map_location: str | torch.device, trust: bool) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if (record := archive.testzip()) is not None:
                raise ValueError(f'its record {record} does not fit its CRC: it is damaged')
    elif tarfile.is_tarfile(path):
        # torch before 2.6 unpickles what is in one, whatever weights_only says (CVE-2025-32434).
        raise ValueError('a tar file, which torch wrote before its version 0.1.10')
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError:
        pass
    known = restricted_pickle()
    with plain_data_only(False):  # under which torch takes no unpickler but its own
        try:  # a training checkpoint of mmengine, for example
            return torch.load(path, map_location, pickle_module=known, weights_only=False)
        except WantsCodeError:
            if not trust:
                raise
        return torch.load(path, map_location=map_location, weights_only=False)


def _without_wrappers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, without the wrappers' prefixes that all keys have."""
    found = _below(state_dict, '')
    for prefix in _WRAPPERS * 2:  # either may be inside the other
        if found and all(key.startswith(prefix) for key in found):
            found = _below(found, prefix)
    return found


def _below(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors, and the versions of modules, whose names begin with a prefix, without it."""
    tensors = state_dict.items()
    found = OrderedDict((k.removeprefix(prefix), v) for k, v in tensors if k.startswith(prefix))
    if (versions := getattr(state_dict, '_metadata', None)) is not None:
        found._metadata = {  # type: ignore[attr-defined]
            f'{name}.'.removeprefix(prefix).rstrip('.'): version
            for name, version in versions.items()
            if f'{name}.'.startswith(prefix)
        }
    return found


def _without_values(state_dict: Mapping[str, Tensor]) -> list[str]:
    return [key for key, value in state_dict.items() if value.is_meta]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip('.')[:160] if lines else type(error).__name__


def _some(names: Iterable[str], most: int = 4) -> str:
    names = list(map(str, names))
    return ', '.join(names[:most]) + (
        f', and {len(names) - most} more' if len(names) > most else ''
    )
