"""DPC-KNN in C++ for float32 tokens on a CPU: ``native.cpp``, compiled when it is first needed.

The machine's own compiler makes the library for the machine's own processor, in about two seconds.
It stays in a folder of the user's, under a name that stands for all it depends on (the source, the
compiler, its options and the processor) and for its content: a damaged one is made again, one that
cannot be loaded here is not. Two variables of the environment have a say:

    CXX              the compiler, with options if need be; without it g++, c++ or clang++
    CLUSTR_MM_CACHE  the folder; without it clustr_mm in $XDG_CACHE_HOME or ~/.cache, or where that
                     cannot be used a folder of the user's own among the temporary ones
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from clustr_mm.ops.dispatch import why_switched_off

_SOURCE = Path(__file__).with_name('native.cpp')
_COMPILERS = ('g++', 'c++', 'clang++')
_OPTIONS = ('-std=c++17', '-O3', '-march=native', '-fPIC')
_PATIENCE = 600  # seconds for the compiler

_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_loaded: Callable[..., int] | str | None = None  # the function, or why there is none


class _BuildError(Exception):
    """The library cannot be made or loaded; the message says why."""


class _CompilerError(_BuildError):
    """The compiler failed."""


def can_run_native(x: Tensor) -> str | None:
    """Says why the compiled code cannot cluster these tokens. The first call compiles it.

    Args:
        x: Tokens, (B, N, C).

    Returns:
        The reason and, where there is one, the mend; None if it can.
    """
    if x.device.type != 'cpu' or x.dtype != torch.float32:
        return f"it clusters float32 tokens on a CPU, not {x.dtype} on {x.device}; use 'tiled'"
    reason = why_switched_off('dpc_knn')
    if reason is not None:
        return reason
    function = _load()
    return function if isinstance(function, str) else None


def dpc_knn_native(x: Tensor, num_clusters: Sequence[int], k: int) -> Tensor:
    """DPC-KNN with the results of the definition, in compiled code and O(N) memory.

    Tokens with NaN get some valid cluster.

    Args:
        x: Tokens, (B, N, C), float32, on a CPU.
        num_clusters: Cluster counts, each from 1 to N.
        k: Neighbours of the density estimate, from 1 to N.

    Returns:
        For each of S counts the cluster of every token, (S, B, N) int64: the rank of its centre.

    Raises:
        ValueError: If ``can_run_native`` has a reason.
    """
    reason = can_run_native(x)
    function = _load() if reason is None else reason
    if isinstance(function, str):
        raise ValueError(f"backend 'native' cannot run: {function}")
    x = x.contiguous()
    labels = torch.empty(len(num_clusters), *x.shape[:2], dtype=torch.int64)
    counts = (ctypes.c_int64 * len(num_clusters))(*num_clusters)
    failed = function(
        x.data_ptr(), *x.shape, counts, len(counts), k, torch.get_num_threads(), labels.data_ptr()
    )
    if failed:
        raise MemoryError(f'no memory left to cluster tokens of shape {tuple(x.shape)}')
    return labels


def _load() -> Callable[..., int] | str:
    """The compiled function, or the reason that there is none."""
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                try:
                    _loaded = _build_and_load()
                except (_BuildError, OSError) as error:
                    _loaded = str(error)
    return _loaded


def _build_and_load() -> Callable[..., int]:
    """Finds or makes the library, in the first folder that it can be loaded from."""
    compiler = _find_compiler()
    source = _SOURCE.read_bytes()
    failures: list[str] = []
    # The linker is not told about OpenMP: the library then uses the runtime that PyTorch has
    # loaded, for the threads of a second one would spin beside PyTorch's. Where PyTorch has another
    # than the compiler expects, the library cannot be loaded, and is made for one thread.
    for options in ((*_OPTIONS, '-fopenmp'), _OPTIONS):
        name = _name(source, compiler, options)
        for folder in _folders():
            try:
                _make_private(folder)
                library = _find(folder, name) or _compile(compiler, options, folder, name)
                function = _bind(library)
            except _CompilerError as error:
                failures.append(str(error))
                break
            except OSError as error:  # read-only, full, nothing may be executed from there, ...
                failures.append(f'compiled code cannot be kept in {folder} or loaded ({error})')
            else:
                if options == _OPTIONS:
                    _logger.warning('clustering on one thread: %s', _joined(failures))
                return function
    raise _BuildError(_joined(failures) or 'there is no folder for it; set CLUSTR_MM_CACHE to one')


def _joined(failures: Sequence[str]) -> str:
    return '; '.join(dict.fromkeys(failures))


def _find(folder: Path, name: str) -> Path | None:
    """The library, where the folder has it; removes what a crash or a full disk has damaged."""
    for library in folder.glob(f'{name}-*.so'):
        try:
            content = library.read_bytes()
        except FileNotFoundError:  # another process has just removed it
            continue
        if library.name == _file_name(name, content):
            return library
        library.unlink(missing_ok=True)
    return None


def _find_compiler() -> list[str]:
    """The compiler's command."""
    wanted = os.environ.get('CXX')
    if wanted:
        try:
            command = shlex.split(wanted)
        except ValueError:  # a quote that is not closed
            command = []
        if not command or shutil.which(command[0]) is None:
            raise _BuildError(f'CXX is {wanted!r}, which is no command here; set it to a compiler')
        return command
    for name in _COMPILERS:
        if shutil.which(name):
            return [name]
    raise _BuildError(
        f'there is no C++ compiler ({", ".join(_COMPILERS)}); install one, or set CXX to it'
    )


def _file_name(name: str, content: bytes) -> str:
    """A library's file name, by which its content is checked."""
    return f'{name}-{hashlib.sha256(content).hexdigest()[:20]}.so'


def _name(source: bytes, compiler: Sequence[str], options: Sequence[str]) -> str:
    """The beginning of a file name, which differs where the compiled library could."""
    program = os.path.realpath(shutil.which(compiler[0]) or compiler[0])
    status = os.stat(program)
    facts = [*compiler, *options, program, status.st_size, status.st_mtime_ns, *_processor()]
    digest = hashlib.sha256(source + repr(facts).encode()).hexdigest()
    return f'dpc_knn-{digest[:20]}'


def _processor() -> list[str]:
    """What -march=native looks at. Machines with different processors may share a home folder."""
    facts = [platform.machine(), platform.processor()]
    try:
        first = Path('/proc/cpuinfo').read_text(errors='replace').split('\n\n')[0]
    except OSError:
        return facts
    told = ('vendor_id', 'cpu family', 'model', 'stepping', 'flags')
    return facts + [line for line in first.splitlines() if line.split('\t')[0].strip() in told]


def _folders() -> Iterator[Path]:
    """Folders for the library, the best first."""
    chosen = os.environ.get('CLUSTR_MM_CACHE')
    if chosen:
        try:
            yield Path(chosen).expanduser().absolute()
        except RuntimeError as error:  # ~somebody
            raise _BuildError(f'CLUSTR_MM_CACHE is {chosen!r}: {error}; name a folder') from None
        return
    try:
        caches = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
        yield Path(caches).absolute() / 'clustr_mm'
    except RuntimeError:  # no home
        pass
    user = os.getuid() if hasattr(os, 'getuid') else ''
    with suppress(OSError):  # no temporary folder
        yield Path(tempfile.gettempdir()).absolute() / f'clustr_mm-{user}'


def _make_private(folder: Path) -> None:
    """Makes a folder that no stranger can put a library into.

    Raises:
        OSError: If it cannot be made, or belongs to somebody else.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if hasattr(os, 'getuid') and status.st_uid not in (os.getuid(), 0):
        raise PermissionError(f'{folder} belongs to another user')
    if status.st_mode & stat.S_IWOTH:
        raise PermissionError(f'{folder} can be written to by every user')


def _compile(compiler: Sequence[str], options: Sequence[str], folder: Path, name: str) -> Path:
    """Compiles the source. Several processes may do so at once: each moves in a whole library."""
    _logger.info('compiling %s into %s', _SOURCE.name, folder)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        compiled, linked = Path(work, 'dpc_knn.o'), Path(work, 'dpc_knn.so')
        _run([*compiler, *options, '-c', str(_SOURCE), '-o', str(compiled)])
        _run([*compiler, '-shared', str(compiled), '-o', str(linked)])
        return linked.replace(folder / _file_name(name, linked.read_bytes()))


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors='replace',
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise _CompilerError(f'{command[0]} took more than {_PATIENCE} seconds') from None
    except OSError as error:
        raise _CompilerError(f'{command[0]} does not start: {error}') from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f'exit status {done.returncode}']
        said = next((line for line in lines if 'error' in line), lines[-1])
        raise _CompilerError(f'{command[0]} could not compile {_SOURCE.name}: {said.strip()}')


def _bind(library: Path) -> Callable[..., int]:
    """Loads the library. Calls of its function let other Python threads run."""
    function = ctypes.CDLL(str(library)).clustr_dpc_knn
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [
        pointer,  # x
        integer,  # batch
        integer,  # tokens
        integer,  # channels
        ctypes.POINTER(integer),  # counts
        integer,  # scales
        integer,  # k
        integer,  # threads
        pointer,  # labels
    ]
    function.restype = ctypes.c_int
    return function
