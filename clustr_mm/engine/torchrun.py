"""One process a GPU, by torchrun: what tools/dist_train.sh and tools/dist_test.sh run.

Read from the environment:

- ``NNODES`` machines take part (1), of which this is ``NODE_RANK`` (0); ``MASTER_ADDR`` is the
  address of the first, and ``PORT`` a free port there (29500). On one machine a free port is found.
- ``MAX_RESTARTS`` times the processes are started again when one of them dies (0). The run then
  goes on from the newest checkpoint in its work folder. A mistake that the user has to mend ends
  the run at once.
- ``OMP_NUM_THREADS`` threads a process (on a CPU: the cores shared out; beside GPUs: 1).
"""

import logging
import os
import socket
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from clustr_mm.engine.config import near_files
from clustr_mm.engine.errors import UserError, run_tool
from clustr_mm.engine.launcher import LAUNCHER_PID, end_when_told

_FILES = {'train.py': ('CONFIG',), 'test.py': ('CONFIG', 'CHECKPOINT')}
_DEFAULT_PORT = 29500


def torchrun_arguments(tool: str, arguments: Sequence[str]) -> list[str]:
    """Checks a command line and turns it into torchrun's.

    Args:
        tool: Path of train.py or test.py.
        arguments: The files that the tool takes, the number of processes on this machine, and
            the tool's options.

    Returns:
        list[str]: The arguments of ``torchrun``.

    Raises:
        UserError: If an argument or a variable of the environment does not make sense.
    """
    names = _FILES[os.path.basename(tool)]
    files, rest = list(arguments[: len(names)]), list(arguments[len(names) :])
    for name, file in zip(names, files, strict=False):
        if not os.path.exists(file):
            hint = near_files(Path(file)) if name == 'CONFIG' else ''
            raise UserError(f'{name.lower()} {file} does not exist{hint or "; check the path"}')
    if not rest:
        given = ' '.join(files) or 'nothing'
        raise UserError(f'give {" ".join(names)} GPUS [options of {Path(tool).name}]; got {given}')
    gpus, *options = rest
    processes = _number('GPUS', gpus, at_least=1)
    gpus_here = 0 if _on_cpu(options) else torch.cuda.device_count()
    if gpus_here and processes > gpus_here:
        raise UserError(f'GPUS is {processes}, and torch sees {gpus_here} here; ask for no more')
    restarts = _number('MAX_RESTARTS', os.environ.get('MAX_RESTARTS', '0'))
    resumes = any(each.split('=')[0] == '--resume' for each in options)
    if restarts and Path(tool).name == 'train.py' and not resumes:
        options.append('--resume')
    _set_threads(processes, gpus_here)
    return [
        f'--nproc-per-node={processes}',
        f'--max-restarts={restarts}',
        *_meeting_place(restarts),
        tool,
        *files,
        '--launcher=pytorch',
        *options,
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a tool in several processes.

    Args:
        arguments: The tool's path and its arguments; None takes those of the process.

    Raises:
        UserError: If the command line is wrong, or a process ended with an error.
        SystemExit: If a signal ended the run, or a user's mistake one that may restart.
    """
    tool, *rest = sys.argv[1:] if arguments is None else arguments
    command = torchrun_arguments(tool, rest)
    os.environ[LAUNCHER_PID] = str(os.getpid())
    # Else all attempts share one store, and restarted processes look for each other where the dead
    # ones left their addresses in it (dynamic_rendezvous.py of torch 2.11).
    os.environ.setdefault('TORCH_DISABLE_SHARE_RDZV_TCP_STORE', '1')
    if '--max-restarts=0' in command:
        # What torchrun says of a process that failed, the process has said; of restarts it tells.
        for name in list(logging.root.manager.loggerDict):
            if name.startswith('torch.distributed.elastic'):
                logging.getLogger(name).setLevel(logging.CRITICAL)
    else:
        end_when_told()
    try:
        run.main(command)
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = f'status {failure.exitcode}; its own message is above'
        if failure.exitcode < 0:
            how = f'{failure.signal_name()}; --resume goes on from the newest checkpoint'
        raise UserError(f'process {rank} of the run ended with {how}') from error


def _number(name: str, text: str, at_least: int = 0, at_most: int | None = None) -> int:
    """Reads a whole number."""
    limits = f'from {at_least} to {at_most}' if at_most is not None else f'of {at_least} or more'
    if not (text.isascii() and text.isdigit()) or int(text) < at_least:
        raise UserError(f'{name} is a whole number {limits}, not {text!r}')
    if at_most is not None and int(text) > at_most:
        raise UserError(f'{name} is a whole number {limits}, not {text!r}')
    return int(text)


def _on_cpu(options: Sequence[str]) -> bool:
    """Whether the tool's options ask for the CPU."""
    return '--device=cpu' in options or ('--device', 'cpu') in pairwise(options)


def _set_threads(processes: int, gpus: int) -> None:
    """Gives each process its share of the cores, unless the user has said how many."""
    share = 1 if gpus else max(1, len(os.sched_getaffinity(0)) // processes)
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        os.environ.setdefault(name, os.environ.get('OMP_NUM_THREADS', str(share)))


def _meeting_place(restarts: int) -> list[str]:
    """Says to torchrun how the processes, and the machines, find each other."""
    machines = _number('NNODES', os.environ.get('NNODES', '1'), at_least=1)
    this = _number('NODE_RANK', os.environ.get('NODE_RANK', '0'), at_most=machines - 1)
    given = os.environ.get('PORT')
    port = _number('PORT', given, at_least=1, at_most=65535) if given else 0
    if machines == 1:
        _check_port(port)
        # The address of this machine by name is no use where its name cannot be looked up.
        return _elastic('127.0.0.1', port, 'one-machine') + ['--nnodes=1', '--local-addr=127.0.0.1']
    master = os.environ.get('MASTER_ADDR')
    if not master:
        raise UserError(
            f'NNODES={machines} needs MASTER_ADDR, the address of the machine with NODE_RANK=0'
        )
    port = port or _DEFAULT_PORT
    if this == 0:
        _check_port(port)
    if not restarts:
        return [
            f'--nnodes={machines}',
            f'--node-rank={this}',
            f'--master-addr={master}',
            f'--master-port={port}',
        ]
    # Machines that start again have to agree on when, which takes the elastic kind of meeting. It
    # numbers the machines itself: NODE_RANK says only who is the host.
    host = [f'--local-addr={master}'] if this == 0 else []
    return [
        *_elastic(master, port, 'several-machines'),
        f'--nnodes={machines}',
        f'--rdzv-conf=is_host={int(this == 0)}',
        *host,
    ]


def _elastic(address: str, port: int, name: str) -> list[str]:
    return [
        '--rdzv-backend=c10d',
        f'--rdzv-endpoint={address}:{port}',
        f'--rdzv-id={name}',
    ]


def _check_port(port: int) -> None:
    """Sees that nobody here listens at a port; 0 stands for any that is free."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(('', port))
    except OSError as error:
        raise UserError(
            f'PORT={port} cannot be used here ({error.strerror}); name another, or on a single '
            'machine leave it out'
        ) from error


if __name__ == '__main__':
    sys.exit(run_tool(main))
