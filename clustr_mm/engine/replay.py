"""A step that the numerics guard left out, computed again."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils import import_modules_from_strings
from torch import nn

from clustr_mm.engine.errors import UserError
from clustr_mm.engine.numerics import all_finite
from clustr_mm.engine.seeding import set_random_state
from clustr_mm.weights.files import load_strictly, read_checkpoint

# Batches hold the libraries' classes of boxes, masks and keypoints.
_STRUCTURES = r'mm(engine|det|seg|pose|pretrain)\.structures(\.[a-z_0-9]+)+\.[A-Z]\w*'
_KEYS = {'cfg', 'state_dict', 'batch', 'random_state', 'losses', 'files', 'amp'}


@dataclass
class Replay:
    """What a step computed the second time.

    Attributes:
        files: The batch's image files.
        recorded: The losses by name, in the run.
        losses: The losses by name, now.
        first: The first module whose output was not finite, and its type; None: all were.
        gradients: Names of the parameters whose gradients were not finite.
    """

    files: list[str]
    recorded: dict[str, float]
    losses: dict[str, float]
    first: str | None
    gradients: list[str]


def replay(path: str) -> Replay:
    """Computes a step of a file that the numerics guard wrote, forward and backward.

    Args:
        path: The file. It is read as checkpoints are, without running anything; then its config's
            custom_imports are imported and its model is built, as train.py would.

    Returns:
        Replay: What came out. On the same device, without normalisation across processes, the
        losses are the recorded ones.

    Raises:
        CheckpointError: If the file is damaged or would run code.
        UserError: If it is another kind of file.
    """
    content = read_checkpoint(path, structures=_STRUCTURES)
    if not set(content) >= _KEYS:
        raise UserError(
            f"{path} is not a step that the numerics guard wrote; give a file of a work folder's "
            'numerics/'
        )
    cfg = Config(content['cfg'])  # of plain data, as it was read
    import_modules_from_strings(**cfg.get('custom_imports', {'imports': []}))
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if 'data_preprocessor' in cfg:  # where a runner takes it from
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    load_strictly(model, content['state_dict'], source=path)
    device = get_device()
    model.to(device).train()

    wrong: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(_watch(name, wrong))
    set_random_state(content['random_state'])
    with _autocast(device, content['amp']):
        losses = model._run_forward(model.data_preprocessor(content['batch'], True), mode='loss')
    total, by_name = model.parse_losses(losses)
    total.backward()
    return Replay(
        files=content['files'],
        recorded=content['losses'],
        losses={name: float(value.detach()) for name, value in by_name.items()},
        first=wrong[0] if wrong else None,
        gradients=[
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is not None and not all_finite([parameter.grad])
        ],
    )


def report(result: Replay) -> str:
    """Writes down what a replay found.

    Args:
        result: From ``replay``.

    Returns:
        str: A line for each file and loss, and one each for the outputs and the gradients.
    """
    lines = [f'file: {each}' for each in result.files]
    lines += [
        f'{name}: {value:.6g} (in the run: {result.recorded.get(name, float("nan")):.6g})'
        for name, value in result.losses.items()
    ]
    lines.append(f'first output that is not finite: {result.first or "none"}')
    shown = ', '.join(result.gradients[:3])
    lines.append(
        f'gradients that are not finite: {len(result.gradients)}'
        + (f' ({shown} ...)' * bool(shown))
    )
    return '\n'.join(lines)


def _watch(name: str, wrong: list[str]) -> Callable[..., None]:
    def look(module: nn.Module, inputs: Any, outputs: Any) -> None:
        if not wrong and not all_finite(_tensors(outputs)):
            wrong.append(f'{name or "the whole model"} ({type(module).__name__})')

    return look


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    parts = value if isinstance(value, list | tuple) else ()
    return [each for part in parts for each in _tensors(part)]


def _autocast(device: str, dtype: str | None) -> Any:
    if dtype is None:
        return nullcontext()
    own = None if dtype == 'None' else getattr(torch, dtype.removeprefix('torch.'))
    return torch.autocast(device.split(':')[0], dtype=own)
