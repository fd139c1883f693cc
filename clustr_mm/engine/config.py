"""Reading a config, and the options that change one."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from clustr_mm.datasets.check import LIBRARIES, each_dict, type_name
from clustr_mm.engine.errors import UserError, near
from clustr_mm.weights.files import load_pretrained

# Top-level names that take effect without being one of the Runner's arguments.
_ALSO_READ = (
    'activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval',
    'find_unused_parameters', 'model_wrapper_cfg', 'preprocess_cfg', 'runner_type', 'strategy',
    'sync_bn', 'tta_model', 'tta_pipeline',
)  # fmt: skip
# What version 0.1 read, and what does it now: to pass over it would train without it.
_OF_BEFORE = dict(
    on_broken_file="custom_hooks=[dict(type='BrokenFileHook', action='skip')]",
    numerics_guard="default_hooks=dict(numerics_guard=dict(type='NumericsGuardHook'))",
)


def load_config(path: str) -> Config:
    """Reads a config file, and makes its custom imports; a mistyped one gets the nearest names."""
    if not os.path.isfile(path):
        raise UserError(f'config {path} does not exist{near_files(Path(path))}')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        raise UserError(f'config {path}: {type(error).__name__}: {error}') from error
    _refuse_old(f'config {path}', cfg)
    return cfg


def _refuse_old(where: str, names: Iterable[str]) -> None:
    for name in names:
        if name in _OF_BEFORE:
            raise UserError(f"{where}: {name} is version 0.1's; use {_OF_BEFORE[name]}")


def library_of(cfg: Config) -> str:
    """The task library of a config: its ``default_scope``, else where its model's type is from."""
    kind = (cfg.get('model') or {}).get('type', '')
    model = kind.split('.')[0] if isinstance(kind, str) else kind.__module__.split('.')[0]
    for name in (cfg.get('default_scope'), model):
        if name in LIBRARIES:
            return name
    raise UserError(
        f'config {cfg.filename} does not say which library trains it; set default_scope to one of '
        f'{", ".join(LIBRARIES)}'
    )


def clustr_backbone(cfg: Config) -> Any:
    """The settings of a config's ClusTR, its ``model.backbone``; else a ``UserError``."""
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    if type_name(backbone.get('type', '')) != 'ClusTR':
        raise UserError(f'config {cfg.filename} has no model with the backbone ClusTR; give one')
    return backbone


def set_data_root(cfg: Config, root: str) -> None:
    """Moves every data set and evaluator of a config, in place, to another folder.

    A data set's own paths are joined with its ``data_root``; an evaluator's ``ann_file`` and a
    ``bbox_file`` are whole paths and begin with it. Both kinds follow.
    """
    places = [node for node in each_dict(cfg._cfg_dict) if isinstance(node.get('data_root'), str)]
    old_roots = {os.path.normpath(node['data_root']) for node in places if node['data_root']}
    if not places:
        raise UserError(f'--data-root {root}: config {cfg.filename} has no data_root to replace')
    if len(old_roots) > 1:
        raise UserError(
            f'--data-root {root}: config {cfg.filename} reads from {len(old_roots)} folders '
            f'({", ".join(sorted(old_roots))}); set them one by one with --cfg-options'
        )
    for name in [name for name in cfg if name.endswith(('_dataloader', '_evaluator'))]:
        for old in old_roots:
            cfg[name] = _replace_prefix(cfg[name], old, root)
    for node in each_dict(cfg._cfg_dict):
        if isinstance(node.get('data_root'), str):
            node['data_root'] = root


def check_keys(cfg: Config, options: Mapping[str, Any]) -> None:
    """Refuses ``--cfg-options`` that are mistyped, or would take the place of a dict.

    A key is mistyped if it is close to a name that exists, and nobody reads it.
    """
    _refuse_old('--cfg-options', (key.partition('.')[0] for key in options))
    known = {*inspect.signature(Runner.__init__).parameters, *_ALSO_READ, *cfg}
    for key, value in options.items():
        node: Any = cfg
        parts = key.split('.')
        for index, part in enumerate(parts):
            where = '.'.join(parts[:index]) or 'the config'
            if parts[index - 1] == 'custom_keys' and index:  # any name of a parameter's may follow
                break
            if isinstance(node, list | tuple):
                if not part.isdigit() or int(part) >= len(node):
                    raise UserError(f'--cfg-options {key}: {where} is a list of {len(node)}')
                node = node[int(part)]
            elif isinstance(node, dict | Config):
                if part not in node:
                    # A new key at the end may be an argument that is left at its default.
                    hint = near(part, known if index == 0 else node.keys(), cutoff=0.8)
                    if hint and part not in known and (index == 0 or index < len(parts) - 1):
                        raise UserError(f'--cfg-options {key}: no {part!r} in {where}{hint}')
                    break
                node = node[part]
            else:
                raise UserError(f'--cfg-options {key}: {where} is {node!r}, without keys below it')
        else:
            if isinstance(node, dict) and node and value and not isinstance(value, dict | list):
                raise UserError(
                    f'--cfg-options {key}={value}: {key} has keys; set one of them '
                    f'({key}.{next(iter(node))}=...), or None'
                )


def use_amp(cfg: Config, device: str) -> None:
    """Sees that ``--amp`` can be; a wrapper that is a class becomes its name, which mmseg knows."""
    if device == 'cpu':
        raise UserError('--amp needs a GPU, and this run is on the CPU; leave --amp out')
    wrapper = cfg.get('optim_wrapper') or {}
    if type_name(wrapper.get('type', '')) in ('OptimWrapper', 'AmpOptimWrapper'):
        wrapper['type'] = type_name(wrapper['type'])


def use_init_from(cfg: Config, checkpoint: str) -> None:
    """Makes the backbone start from the ``backbone.`` weights of a file or an address, strictly."""
    if '://' not in checkpoint and not os.path.isfile(checkpoint):
        raise UserError(f'--init-from: checkpoint {checkpoint} does not exist; check the path')
    backbone: Any = cfg.model.get('backbone')
    if not isinstance(backbone, dict):
        raise UserError(f'--init-from {checkpoint}: config {cfg.filename} has no model.backbone')
    start = dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')
    if type_name(backbone['type']) == 'ClusTR':
        backbone['init_cfg'] = start
        return
    # Others read an init_cfg in their own ways (mmdet's PVTv2 knows no prefix) and pass over what
    # does not fit: ToolRunner loads these weights, and what does not fit is said here already.
    backbone['init_cfg'] = None
    with DefaultScope.overwrite_default_scope(library_of(cfg)):
        load_pretrained(MODELS.build(backbone), start)
    cfg.init_from = checkpoint


def near_files(path: Path) -> str:
    """Says, as ``near`` does, which configs have a name close to a mistyped one's."""
    folder = path.parent
    files: Iterable[Path] = folder.glob('*.py')
    if not folder.is_dir():
        # A mistyped folder: look through all configs beside it, but not through a whole disk.
        above = [each for each in folder.parents if (each / 'configs').is_dir()]
        files = (above[0] / 'configs').rglob('*.py') if above else ()
    known = {file.name: str(file) for file in files}
    return near(path.name, known, known)


def _replace_prefix(node: Any, old: str, new: str) -> Any:
    """Replaces a leading folder in every string below a node."""
    if isinstance(node, dict):
        for key, value in node.items():
            node[key] = _replace_prefix(value, old, new)
        return node
    if isinstance(node, list | tuple):
        return type(node)(_replace_prefix(value, old, new) for value in node)
    if isinstance(node, str) and os.path.normpath(node or '.').startswith(old + os.sep):
        return os.path.join(new, os.path.relpath(node, old))
    return node
