"""Pickles of tensors and plain data, read without running what else they name.

``torch.load(weights_only=True)`` knows tensors; mmengine's training checkpoints hold the run's
history besides.
"""

from __future__ import annotations

import functools
import importlib
import pickle
import re
import types
from typing import Any

_HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
_ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'
# Tensors, arrays, plain containers, mmengine's history, and the one schedule with a method in its
# state.
_PLAIN = (
    r'collections\.(OrderedDict|defaultdict|Counter)'
    r'|torch\._utils\._rebuild_(tensor_v2|parameter|tensor)'
    r'|torch\.(Size|device|dtype|Tensor|\w+Storage|float\d+|bfloat16|int\d+|uint8|bool)'
    r'|torch\.storage\.\w+Storage'
    r'|numpy\.(ndarray|dtype)'
    r'|numpy\.(core|_core)\.multiarray\.(_reconstruct|scalar)'
    r'|numpy\.dtypes\.\w+'
    r'|_codecs\.encode'
    rf'|{re.escape(_HISTORY)}|{re.escape(_ONE_CYCLE)}'
    r'|(builtins|__builtin__)\.(set|frozenset|slice|complex|bytes|bytearray)'
)


class WantsCodeError(pickle.UnpicklingError):
    """A pickle names a class or function that is none of plain data's."""


@functools.cache
def restricted_pickle() -> Any:
    """Makes a pickle module that refuses every class and function but those of plain data.

    Returns:
        A module for torch.load's ``pickle_module``; its loading raises ``WantsCodeError`` before
        anything that a refused name stands for is called.
    """
    allowed = re.compile(_PLAIN)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in (('builtins', 'getattr'), ('__builtin__', 'getattr')):
                return _known_method
            # A name with dots could lead through a module to whatever that one imports.
            if '.' in name or not allowed.fullmatch(f'{module}.{name}'):
                raise WantsCodeError(f'{module}.{name}')
            # numpy renamed its core; either version reads the other's files.
            if module == 'numpy._core.multiarray' and not hasattr(
                importlib.import_module('numpy'), '_core'
            ):
                module = 'numpy.core.multiarray'
            return super().find_class(module, name)

    made: Any = types.ModuleType('restricted_pickle')
    made.Unpickler = Unpickler
    made.load = lambda file, **options: Unpickler(file, **options).load()
    return made


def _known_method(owner: Any, name: str) -> Any:
    """``getattr`` for what a pickled history or schedule needs, and for nothing else."""
    dotted = f'{owner.__module__}.{owner.__qualname__}' if isinstance(owner, type) else ''
    annealing = dotted == _ONE_CYCLE and name in ('_annealing_cos', '_annealing_linear')
    if not annealing and (dotted != _HISTORY or name.startswith('_')):
        raise WantsCodeError(f'getattr({owner!r}, {name!r})')
    return getattr(owner, name)
