"""Studies: one recipe for several models, over several seeds, scored once on the test split.

A study is a small config file. ``config`` is the recipe, a config as tools/train.py takes it; each
entry of ``rows`` says what one model changes of it, as ``--cfg-options`` would, but for values of
any kind: a dict with ``_delete_=True`` takes a backbone's place.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from clustr_mm.engine.config import check_keys, load_config, set_data_root
from clustr_mm.engine.errors import UserError, near

RATE = 'optim_wrapper.optimizer.lr'
# What a score depends on. The rest of a config says where files lie and what is logged.
_DECIDES = (
    'model', 'data_preprocessor', 'train_dataloader', 'test_dataloader', 'test_evaluator',
    'train_cfg', 'optim_wrapper', 'param_scheduler', 'load_from',
)  # fmt: skip
# How a loader hands over its samples: the same samples, whatever these are.
_HANDLING = ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor', 'data_root')
_KEYS = {
    'config': str, 'score': str, 'shape': Sequence, 'seeds': Sequence, 'rows': Mapping,
    'rates': Sequence, 'rate_search': Mapping, 'options': Mapping, 'factor': int | float,
}  # fmt: skip
_ROW_KEYS = ('options', 'rate', 'init_from', 'seeds', 'note')


@dataclass(frozen=True, eq=False)
class Run:
    """One training and its score.

    Attributes:
        study: Name of the study.
        row: Name of the row.
        seed: Of the weights and of the order of the data.
        rate: Learning rate; None for the config's.
        search: Whether the run is one of those that choose the rate, on the validation split.
        options: What is changed of the study's config.
        init_from: Weights that the backbone starts from; None for random ones.
    """

    study: str
    row: str
    seed: int
    rate: float | None = None
    search: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    init_from: str | None = None

    @property
    def name(self) -> str:
        """The name of its record and of its work folder, within the study."""
        return f'{self.row}_rate{self.rate:g}' if self.search else f'{self.row}_seed{self.seed}'


@dataclass(frozen=True)
class Study:
    """A study, as its file says it.

    Attributes:
        name: The file's name.
        config: Path of the recipe.
        score: Metric that is the score, as the library's evaluator names it.
        shape: Height and width of a test image as the model gets it, for multiply-adds and time.
        seeds: Seeds of every row.
        rows: Of every row ``options``, and where it has them: ``rate``, a rate or the name of the
            row that it takes its rate from; ``init_from``; ``seeds``, its own; ``note``. ``{seed}``
            in an option or in ``init_from`` stands for the run's seed.
        rates: Rates to choose from; empty to leave the config's.
        rate_search: What the runs that choose a rate change besides, such as their length.
        options: What every run changes of the config.
        factor: What the score is multiplied by in tables: 100 for a fraction.
    """

    name: str
    config: str
    score: str
    shape: tuple[int, int]
    seeds: tuple[int, ...]
    rows: Mapping[str, Mapping[str, Any]]
    rates: tuple[float, ...] = ()
    rate_search: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    factor: float = 1.0

    def search(self, row: str) -> list[Run]:
        """The runs that choose a row's rate; none where it is said or another row's."""
        if not self.rates or 'rate' in self.rows[row]:
            return []
        run = self._run(row, self.seeds_of(row)[0], None)
        options = {**run.options, **self.rate_search}
        return [replace(run, rate=rate, search=True, options=options) for rate in self.rates]

    def runs(self, row: str, rate: float | None) -> list[Run]:
        """The runs of a row that are scored on the test split."""
        return [self._run(row, seed, rate) for seed in self.seeds_of(row)]

    def seeds_of(self, row: str) -> tuple[int, ...]:
        """The seeds of a row."""
        return tuple(self.rows[row].get('seeds', self.seeds))

    def rate_row(self, row: str) -> str | None:
        """The row whose search gives a row's rate; None where the row names a number or none."""
        if not self.rates:
            return None
        said = self.rows[row].get('rate', row)
        return said if isinstance(said, str) else None

    def _run(self, row: str, seed: int, rate: float | None) -> Run:
        said = self.rows[row]
        options = _seeded({**self.options, **said.get('options', {})}, seed)
        init_from = _seeded(said.get('init_from'), seed)
        return Run(self.name, row, seed, rate, options=options, init_from=init_from)


def _seeded(node: Any, seed: int) -> Any:
    """With a run's seed where ``{seed}`` stands."""
    if isinstance(node, Mapping):
        return {key: _seeded(value, seed) for key, value in node.items()}
    return node.replace('{seed}', str(seed)) if isinstance(node, str) else node


def load_study(path: str) -> Study:
    """Reads a study.

    Raises:
        UserError: If there is no such file, or a key of it is missing, unknown or of no use.
    """
    if not Path(path).is_file():
        raise UserError(f'study {path} does not exist; tools/analysis/studies has some')
    said = load_config(path).to_dict()
    # A study may have names of its own, such as those of its _base_; a slip of the pen is none.
    for key in said:
        if key not in _KEYS and (hint := near(key, _KEYS, cutoff=0.8)):
            raise UserError(f'study {path} has {key!r}{hint}')
    given = {key: said[key] for key in _KEYS if key in said}
    for key in ('config', 'score', 'shape', 'seeds', 'rows'):
        if not given.get(key):
            raise UserError(f'study {path} has no {key}; give it one')
    for key, value in given.items():
        if not isinstance(value, _KEYS[key]):
            raise UserError(f'study {path}: {key} is {value!r}, of another kind; see --help')
    rows = given['rows']
    for name, row in rows.items():
        if not re.fullmatch(r'[\w.+-]+', name) or not isinstance(row, Mapping):
            raise UserError(
                f'study {path}: row {name!r} is {row!r}; use a dict, and a name of letters, '
                'digits and . + - _, which names files too'
            )
        if unknown := [key for key in row if key not in _ROW_KEYS]:
            hint = near(unknown[0], _ROW_KEYS)
            raise UserError(f'study {path}: row {name!r} has no key {unknown[0]!r}{hint}')
        of = row.get('rate')
        if isinstance(of, str) and (of not in rows or 'rate' in rows[of]):
            raise UserError(
                f'study {path}: row {name!r} takes its rate from {of!r}; name a row that '
                'searches for one'
            )
    listed = [key for key in ('shape', 'seeds', 'rates') if key in given]
    tuples: dict[str, Any] = {key: tuple(given[key]) for key in listed}
    return Study(name=Path(path).stem, **(given | tuples))


def config_of(study: Study, run: Run, data_root: str | None = None) -> Config:
    """The config of a run, whole: what tools/train.py and tools/test.py are given.

    Nothing is validated on the way, and the samples are loaded by the process that trains.

    Raises:
        UserError: If the recipe cannot be read, or an option is none of its keys.
    """
    cfg = load_config(study.config)
    options = dict(run.options)
    if run.rate is not None:
        options[RATE] = run.rate
    check_keys(cfg, options)
    try:
        cfg.merge_from_dict(options)
    except TypeError as error:  # a dict in the place of something else
        raise UserError(f'study {study.name}, row {run.row}: {error}') from error
    if data_root is not None:
        set_data_root(cfg, data_root)
    if run.search:
        cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    for name in ('train_dataloader', 'test_dataloader'):
        cfg[name].num_workers = 0
        cfg[name].persistent_workers = False
        cfg[name].pop('prefetch_factor', None)
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    for key in ('val_interval', 'val_begin', 'dynamic_intervals'):
        cfg.train_cfg.pop(key, None)
    cfg.default_hooks.checkpoint.update(save_best=None, max_keep_ckpts=1)
    cfg.randomness = dict(seed=run.seed)
    cfg.work_dir = None
    return cfg


def fingerprint(cfg: Config) -> str:
    """Twelve digits that stand for all of a config that decides a score."""

    def plain(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {str(k): plain(v) for k, v in node.items() if k not in _HANDLING}
        if isinstance(node, list | tuple):
            return [plain(each) for each in node]
        return node if isinstance(node, str | int | float | bool | None) else repr(node)

    decides = {key: plain(cfg.get(key)) for key in _DECIDES}
    # An evaluator's file lies below the data root, wherever that is.
    root = str((cfg.train_dataloader.get('dataset') or {}).get('data_root', ''))
    text = json.dumps(decides, sort_keys=True)
    if root:
        text = text.replace(f'"{root}/', '"')
    return hashlib.sha256(text.encode()).hexdigest()[:12]
