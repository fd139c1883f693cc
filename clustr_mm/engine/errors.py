"""A user's mistake ends in one line; a bug keeps its traceback.

Whatever the libraries do to an exception on its way up (wrap it, re-raise it out of a data-loading
process as text), :func:`explain` finds the sentence that was meant for the user.
"""

import difflib
import errno
import inspect
import linecache
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS

from clustr_mm.datasets.check import NO_SAMPLE, each_dict

_PACKAGE = __name__.split('.')[0]
_PACKAGE_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
# A data-loading process hands its exception over as the text of a traceback.
_OURS_IN_TEXT = re.compile(rf'^{_PACKAGE}\.[\w.]+: (.*)', re.MULTILINE | re.DOTALL)
_UNKNOWN_ARGUMENT = re.compile(r"([\w.]+)\(\) got an unexpected keyword argument '(\w+)'")
_UNREGISTERED = re.compile(r'(\S+) is not in the (\S+) registry')
# What the libraries say of a config or of data, they say by a raise or an assert with a sentence.
_LIBRARY_CODE = re.compile(r'[/\\]mm(cv|engine|det|seg|pose|pretrain)[/\\]')
# Registries raise again what a constructor raised, with its text.
_BUILD_CODE = re.compile(r'[/\\]registry[/\\]')
_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG,
    errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
}  # fmt: skip
# What is said too far from the cause to be understood; {text} stands for what the library said.
_IN_OTHER_WORDS = {
    'Weights only load failed': 'a checkpoint that the config names holds more than plain data, '
    'and loading it could run any code; --trust-checkpoint loads it all the same',
    'gloo/transport': 'lost the connection to another process of this run; the one that ended '
    'first says why',
    'Expected more than 1 value per channel': 'batch normalisation needs more than one value a '
    'channel, and this batch is too small for it; set train_dataloader.batch_size to 2 or more',
    'end should be larger than begin': 'a schedule of param_scheduler begins when the training is '
    'over ({text}); train longer, or let param_scheduler begin earlier',
    'need at least one array to concatenate': f'{NO_SAMPLE} tools/check_data.py says in which '
    'data set',
}


class UserError(Exception):
    """A mistake that the user can mend; its message is one line that says how."""


def near(
    name: str, known: Iterable[str], shown: Mapping[str, str] | None = None, cutoff: float = 0.6
) -> str:
    """Says ``"; did you mean 'a' or 'b'?"`` of known names, written as shown, or nothing."""
    matches = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=3, cutoff=cutoff)
    written = [shown[each] if shown else repr(each) for each in matches]
    return f'; did you mean {" or ".join(written)}?' if matches else ''


def explain(error: BaseException, cfg: Config | None = None) -> str | None:
    """The one line to show for an exception; None where it looks like a bug, also by the config."""
    for each in _causes(error):
        line = _explain_one(each, cfg)
        if line is not None:
            return ' '.join(line.split())
    return None


def run_tool(main: Callable[[Sequence[str] | None], object]) -> int:
    """Runs a command line and turns a user's mistake into ``error: ...`` and status 1.

    ``CLUSTR_DEBUG=1`` in the environment (``--debug``) shows the traceback too.

    Returns:
        The exit status.
    """
    # With a full disk every log line would print a traceback of the logging module.
    logging.raiseExceptions = False
    try:
        main(None)
    except KeyboardInterrupt as error:
        print('; '.join(['error: interrupted', *map(str, error.args)]), file=sys.stderr)
        return 130
    except Exception as error:
        line = explain(error)
        if line is None or os.environ.get('CLUSTR_DEBUG'):
            traceback.print_exc()
        if line is not None:
            print(f'error: {line}', file=sys.stderr, flush=True)
        return 1
    return 0


@contextmanager
def explained(cfg: Config) -> Iterator[None]:
    """Re-raises what goes wrong inside as :class:`UserError` where it is the user's mistake.

    The run's log file gets the whole traceback either way.
    """
    try:
        yield
    except Exception as error:
        _log_to_file(error)
        line = explain(error, cfg)
        if line is None:
            raise
        raise UserError(line) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the exception, then what it was raised from, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _explain_one(error: BaseException, cfg: Config | None) -> str | None:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if 'Original Traceback' in text:
        ours = _OURS_IN_TEXT.findall(text)
        return ours[-1] if ours else None
    where = _raised_by(error)
    if type(error).__module__.split('.')[0] == _PACKAGE or where.startswith(_PACKAGE_FOLDER):
        return text
    if isinstance(error, OSError) and error.errno in _DISK:
        return f'{error.strerror}: {error.filename or "writing to the work folder"}'
    for words, line in _IN_OTHER_WORDS.items():
        if words in text:
            return line.format(text=text)
    if isinstance(error, TypeError):
        return _unknown_argument(text, cfg) if cfg is not None else None
    if isinstance(error, KeyError) and (match := _UNREGISTERED.search(text)):
        hint = near(match[1], MODELS.module_dict)
        return (
            f'type {match[1]!r} is not in the {match[2]} registry; is it spelt right, and its '
            f'package in custom_imports{hint or "?"}'
        )
    return text if _LIBRARY_CODE.search(where) and not _BUILD_CODE.search(where) else None


def _raised_by(error: BaseException) -> str:
    """The file whose ``raise`` or ``assert`` made the exception; none where an operation failed."""
    frames = traceback.extract_tb(error.__traceback__)
    line = linecache.getline(frames[-1].filename, frames[-1].lineno or 0) if frames else ''
    return frames[-1].filename if re.match(r'\s*(raise|assert)\b', line) else ''


def _unknown_argument(text: str, cfg: Config) -> str | None:
    """Explains ``f() got an unexpected keyword argument 'x'`` if the config says ``x``."""
    match = _UNKNOWN_ARGUMENT.search(text)
    if match is None:
        return None
    owner, key = match[1].removesuffix('.__init__').split('.')[-1], match[2]
    holders = [node for node in each_dict(cfg._cfg_dict) if key in node]
    if not holders:
        return None
    known = [name for node in holders for name in node if name != key]
    if key == 'pretrained':
        return (
            f'{owner} has no option {key!r}; set model.pretrained=None, and name weights by '
            "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE, prefix='backbone.')"
        )
    # Only the root registry can be asked without knowing the scope: our own classes are there.
    for base in getattr(MODELS.module_dict.get(owner), '__mro__', ()):
        if '__init__' in vars(base):
            known += inspect.signature(base).parameters
    return f'{owner} has no option {key!r}{near(key, known)}'


def _log_to_file(error: BaseException) -> None:
    """Writes the traceback into the run's log file, if a run has begun."""
    logger = MMLogger.get_current_instance()
    text = ''.join(traceback.format_exception(error))
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
