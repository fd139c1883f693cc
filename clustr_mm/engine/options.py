"""The command line that train.py and test.py share, and what the other tools take of it."""

import argparse
import os
from collections.abc import Sequence
from typing import NoReturn

from mmengine.config import DictAction

from clustr_mm.engine.errors import UserError
from clustr_mm.weights.files import trust_checkpoints

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


class Parser(argparse.ArgumentParser):
    """Ends a mistyped option as every other mistake ends: one line, status 1."""

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print with the usage.

        Args:
            message: What is wrong.

        Raises:
            UserError: Always.
        """
        raise UserError(f'{message} (see --help)')


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


def parse_train(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads train.py's command line.

    Args:
        arguments: The arguments without the program's name; None takes those of the process.

    Returns:
        argparse.Namespace: The options, one attribute each.

    Raises:
        UserError: If an option is unknown or a value cannot be read.
    """
    parser = Parser(description='Train a ClusTR model from an OpenMMLab config.')
    parser.add_argument('config', help='the config file')
    _add_shared(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='go on from CKPT, or from the newest checkpoint in the work folder',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by this run's batch size over the config's base_batch_size",
    )
    parser.add_argument(
        '--init-from',
        metavar='CKPT',
        help="start the backbone from this checkpoint's weights (.pth or .safetensors)",
    )
    return _read(parser, arguments)


def parse_test(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads test.py's command line.

    Args:
        arguments: The arguments without the program's name; None takes those of the process.

    Returns:
        argparse.Namespace: The options, one attribute each.

    Raises:
        UserError: If an option is unknown or a value cannot be read.
    """
    parser = Parser(description='Test a ClusTR model from an OpenMMLab config.')
    parser.add_argument('config', help='the config file')
    parser.add_argument('checkpoint', help='the weights to test (.pth or .safetensors)')
    _add_shared(parser)
    parser.add_argument('--show-dir', metavar='DIR', help='draw a picture of every image here')
    parser.add_argument('--out', metavar='FILE', help='write the predictions here, as JSON')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    return _read(parser, arguments)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust-checkpoint``, which every tool that reads checkpoints takes.

    :func:`clustr_mm.weights.files.trust_checkpoints` then takes its value.

    Args:
        parser: Where to add it.
    """
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load a checkpoint that is a pickle of more than plain data: it can run any code',
    )


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--work-dir', metavar='DIR', help='where logs and checkpoints go')
    parser.add_argument('--data-root', metavar='DIR', help="the data set, in place of the config's")
    add_trust(parser)
    parser.add_argument('--amp', action='store_true', help='mixed precision (needs a GPU)')
    parser.add_argument(
        '--device', choices=('cpu', 'cuda'), help='by default a GPU where there is one'
    )
    parser.add_argument(
        '--launcher', choices=LAUNCHERS, default='none', help='how the processes were started'
    )
    # torchrun says it by the environment; torch.distributed.launch by either spelling.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        default={},
        metavar='KEY=VALUE',
        help='set config values, for example train_cfg.max_iters=100 model.backbone.with_cp=True',
    )
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')


def _read(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    options = parser.parse_args(arguments)
    os.environ.setdefault('LOCAL_RANK', str(options.local_rank))
    trust_checkpoints(options.trust_checkpoint)
    if options.debug:
        os.environ['CLUSTR_DEBUG'] = '1'
    return options
