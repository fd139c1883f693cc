"""From a command line's options to the config that runs."""

import argparse
import inspect
import logging
import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from clustr_mm.datasets import check_data_root, guard_dataset
from clustr_mm.engine.errors import UserError, dicts, near

# Top-level names that take effect without being one of the Runner's arguments.
_ALSO_READ = {
    'activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval',
    'find_unused_parameters', 'model_wrapper_cfg', 'numerics_guard', 'on_broken_file',
    'runner_type', 'strategy', 'sync_bn', 'tta_model', 'tta_pipeline',
}  # fmt: skip
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def load_config(path: str) -> Config:
    """Reads a config file.

    Args:
        path: Path of the file.

    Returns:
        Config: The config, its custom imports made.

    Raises:
        UserError: If there is no such file (with the nearest names), or it cannot be read.
    """
    if not os.path.isfile(path):
        raise UserError(f'config {path} does not exist{near_files(Path(path))}')
    try:
        return Config.fromfile(path)
    except Exception as error:
        raise UserError(f'config {path}: {type(error).__name__}: {error}') from error


def configure(options: argparse.Namespace) -> Config:
    """Reads the config and applies the options that training and testing share.

    Args:
        options: What :mod:`clustr_mm.engine.options` read.

    Returns:
        Config: The config, ready but for what only training or only testing does.

    Raises:
        UserError: If an option does not fit the config.
    """
    cfg = load_config(options.config)
    if options.data_root is not None:
        set_data_root(cfg, options.data_root)
    apply_cfg_options(cfg, options.cfg_options)
    cfg.launcher = options.launcher
    if options.work_dir is not None:
        cfg.work_dir = options.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(options.config).stem)
    for name in _LOADERS:
        loader = cfg.get(name)
        if loader and not loader.get('num_workers'):
            loader.persistent_workers = False  # torch refuses to keep workers that there are not
    _drop_missing_tensorboard(cfg)
    return cfg


def set_data_root(cfg: Config, root: str) -> None:
    """Moves every data set and evaluator of a config to another folder.

    A data set's own paths are joined with its ``data_root``; an evaluator's ``ann_file`` and a
    ``bbox_file`` are whole paths and begin with it. Both kinds follow.

    Args:
        cfg: The config, changed in place.
        root: The folder to take in place of the config's ``data_root``.

    Raises:
        UserError: If the config names no data root, or several.
    """
    places = [node for node in dicts(cfg) if isinstance(node.get('data_root'), str)]
    old_roots = {os.path.normpath(node['data_root']) for node in places if node['data_root']}
    if not places:
        raise UserError(f'--data-root {root}: config {cfg.filename} has no data_root to replace')
    if len(old_roots) > 1:
        raise UserError(
            f'--data-root {root}: config {cfg.filename} reads from {len(old_roots)} folders '
            f'({", ".join(sorted(old_roots))}); set them one by one with --cfg-options'
        )
    for old in old_roots:
        for name in cfg:
            if name.endswith(('_dataloader', '_evaluator')):
                cfg[name] = _replace_prefix(cfg[name], old, root)
    for node in dicts(cfg):
        if isinstance(node.get('data_root'), str):
            node['data_root'] = root


def apply_cfg_options(cfg: Config, options: dict[str, Any]) -> None:
    """Checks ``--cfg-options`` and sets what they say.

    Args:
        cfg: The config, changed in place.
        options: Dotted keys and their values.

    Raises:
        UserError: As :func:`check_keys`.
    """
    check_keys(cfg, options)
    cfg.merge_from_dict(options)


def check_keys(cfg: Config, options: dict[str, Any]) -> None:
    """Refuses ``--cfg-options`` that could take no effect.

    A key that is new inside an existing part is passed to that part's constructor, which knows
    its own arguments; here only what nobody would read is refused.

    Args:
        cfg: The config, before the options.
        options: Dotted keys and their values.

    Raises:
        UserError: If a key is no part of the config and no near name is, or leads nowhere, or a
            value takes the place of a dict.
    """
    known = {*inspect.signature(Runner.__init__).parameters, *_ALSO_READ}
    for key in options:
        top, *inner = key.split('.')
        if top == 'data_root':
            raise UserError(
                '--cfg-options data_root only changes a name that the data sets were given the '
                'value of; --data-root moves every data set'
            )
        if top not in known and top not in cfg:
            raise UserError(f'--cfg-options {key}: no run reads {top!r}{near(top, {*known, *cfg})}')
        if top not in known and not inner:
            print_log(
                f'--cfg-options {key}: what the config made from this name keeps its value',
                level=logging.WARNING,
            )
        node: Any = cfg
        for index, part in enumerate([top, *inner]):
            where = '.'.join([top, *inner][:index])
            if isinstance(node, list | tuple):
                if not part.isdigit() or int(part) >= len(node):
                    raise UserError(f'--cfg-options {key}: {where} is a list of {len(node)}')
                node = node[int(part)]
            elif isinstance(node, dict | Config):
                if part not in node:
                    hint = near(part, node.keys())
                    if hint and index < len(inner):
                        raise UserError(f'--cfg-options {key}: no {part!r} in {where}{hint}')
                    break
                node = node[part]
            else:
                raise UserError(f'--cfg-options {key}: {where} is {node!r}, without keys below it')
        else:
            if isinstance(node, dict) and not isinstance(options[key], dict | list | None):
                raise UserError(
                    f'--cfg-options {key}={options[key]}: {key} has keys; set one of them '
                    f'({key}.{next(iter(node), "key")}=...), or None'
                )


def guard_data(cfg: Config, splits: Sequence[str]) -> None:
    """Sees that the data sets are there, and makes their loading name a damaged file.

    A damaged training file stops the run, or is passed over with a warning where the config says
    ``on_broken_file = 'skip'``; validation and test always stop, for a score is of all images.

    Args:
        cfg: The config, changed in place.
        splits: Which of 'train', 'val' and 'test' the run uses.

    Raises:
        DataNotFoundError: If a folder or file that the config names is missing.
    """
    check_data_root(cfg, splits)
    for split in splits:
        on_error = cfg.get('on_broken_file', 'raise') if split == 'train' else 'raise'
        for node in dicts(cfg.get(f'{split}_dataloader')):
            if isinstance(node.get('pipeline'), list | tuple):
                node['pipeline'] = guard_dataset(node, cfg.get('default_scope'), on_error)


def add_hook(cfg: Config, hook: dict[str, Any]) -> None:
    """Adds a hook, unless the config has one of its type, as a run's dumped config has.

    Args:
        cfg: The config, changed in place.
        hook: Config of the hook.
    """
    hooks = list(cfg.get('custom_hooks') or ())
    if hook['type'] not in {each.get('type') for each in hooks if isinstance(each, dict)}:
        cfg.custom_hooks = [*hooks, hook]


def clustr_backbone(cfg: Config) -> Any:
    """Finds the settings of a config's ClusTR.

    Args:
        cfg: A config.

    Returns:
        ConfigDict: Its ``model.backbone``.

    Raises:
        UserError: If that is no ClusTR.
    """
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    kind = backbone.get('type')
    if getattr(kind, '__name__', kind) != 'ClusTR':  # a Python-style config has the class
        raise UserError(f'config {cfg.filename} has no model with the backbone ClusTR; give one')
    return backbone


def use_amp(cfg: Config, device: str) -> None:
    """Turns on mixed precision.

    Args:
        cfg: The config, changed in place.
        device: The run's device.

    Raises:
        UserError: If the device is no GPU, or the optimizer wrapper is not the plain one.
    """
    if device == 'cpu':
        raise UserError('--amp needs a GPU, and this run is on the CPU; leave --amp out')
    wrapper = cfg.get('optim_wrapper') or {}
    kind = wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(f'--amp takes the place of OptimWrapper, and this config has {kind}')
    wrapper['type'] = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')


def use_init_from(cfg: Config, checkpoint: str) -> None:
    """Makes the backbone start from a checkpoint's ``backbone.`` weights.

    Args:
        cfg: The config, changed in place.
        checkpoint: Path of a .pth or .safetensors file.

    Raises:
        UserError: If there is no such file, or the config has no backbone.
    """
    if not os.path.isfile(checkpoint):
        raise UserError(f'--init-from: checkpoint {checkpoint} does not exist; check the path')
    if not isinstance(cfg.model.get('backbone'), dict):
        raise UserError(f'--init-from {checkpoint}: config {cfg.filename} has no model.backbone')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')


def use_tta(cfg: Config) -> None:
    """Puts the config's test-time augmentation in place of its plain test.

    Args:
        cfg: The config, changed in place.

    Raises:
        UserError: If the config has none.
    """
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise UserError(
            f'--tta: config {cfg.filename} has no tta_model and tta_pipeline '
            "(segmentation and detection have them; a pose model's flip test is always on)"
        )
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = {**cfg.tta_model, 'module': cfg.model}


def near_files(path: Path) -> str:
    """Says which configs have a name close to a mistyped one's.

    Args:
        path: The path that does not exist.

    Returns:
        str: As :func:`clustr_mm.engine.errors.near`.
    """
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


def _drop_missing_tensorboard(cfg: Config) -> None:
    """Trains without curves where tensorboard is not installed, and says so."""
    backends = (cfg.get('visualizer') or {}).get('vis_backends') or []
    kept = [each for each in backends if each.get('type') != 'TensorboardVisBackend']
    if len(kept) < len(backends) and not find_spec('tensorboard'):
        cfg.visualizer.vis_backends = kept
        print_log('No TensorBoard curves: pip install tensorboard to have them.')
