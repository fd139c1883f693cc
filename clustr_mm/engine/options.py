"""What the command lines share: how they are read, and what some of their options do."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from mmengine.config import DictAction
from mmengine.device import get_device
from mmengine.device import utils as mmengine_device
from mmengine.runner.checkpoint import CheckpointLoader

from clustr_mm.engine.errors import UserError
from clustr_mm.weights.files import plain_data_only, read_checkpoint, trust_checkpoints

TRUST = dict(
    action='store_true',
    help='load a checkpoint that is a pickle of more than plain data: it can run any code',
)


class Parser(argparse.ArgumentParser):
    """Ends a mistyped option as every other mistake ends: one line, status 1."""

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print with the usage."""
        raise UserError(f'{self.prog}: {message} (see --help)')


class CfgOptions(DictAction):
    """mmengine's ``key=value`` reader with a sentence for a value that it cannot read."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        """Reads the values as argparse asks for it."""
        for value in values:
            if '=' not in value:
                raise UserError(f'--cfg-options takes KEY=VALUE, not {value!r}')
        try:
            super().__call__(parser, namespace, values, option_string)
        except RecursionError as error:  # mmengine's reader, at a bracket that it does not know
            raise UserError(
                f'--cfg-options {" ".join(values)}: a value is a number, a word, a list or a '
                'tuple; give a dict key by key, as in a.b.type=GN a.b.num_groups=8'
            ) from error
        except (ValueError, AssertionError, SyntaxError) as error:
            raise UserError(f'--cfg-options {" ".join(values)}: {error}') from error


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust-checkpoint``, which every tool that reads checkpoints takes."""
    parser.add_argument('--trust-checkpoint', **TRUST)  # type: ignore[arg-type]


@contextmanager
def reading_safely(trusted: bool) -> Iterator[None]:
    """Says whether checkpoints may run code, in this process and those that it starts.

    If not, torch refuses every pickle of more than plain data, whoever asks for it: mmengine's
    fallback to full pickles is not reached.
    """
    schemes = dict(CheckpointLoader._schemes)
    # mmengine's own that fall back to a full pickle; the user's readers stay, and so do names in
    # tables ('torchvision://resnet50'), which torch alone loads.
    own = {name for name, reader in schemes.items() if reader.__module__.startswith('mmengine.')}
    own &= {'', 'http://', 'https://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://'}
    own |= {r'.*\.safetensors$'} - schemes.keys()
    CheckpointLoader.register_scheme([*own], _read, force=True)
    trust_checkpoints(trusted)
    try:
        with plain_data_only(not trusted):
            yield
    finally:
        trust_checkpoints(False)
        CheckpointLoader._schemes = schemes


def choose_device(name: str | None) -> str:
    """Makes mmengine's runners take a device; of None, says which they take by themselves."""
    if name == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device cuda: torch sees no GPU here; leave the option out or say cpu')
    if name is not None:
        # mmengine settles its device when it is imported, and asks nobody again.
        mmengine_device.DEVICE = name
    if name == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
    return get_device()


def _read(filename: str, map_location: Any = None) -> dict[str, Any]:
    return read_checkpoint(filename, map_location or 'cpu')
