"""Runs of a study: trained and tested by the tools, and what came of them in a file each.

Every run is two processes of one thread, ``tools/train.py`` and ``tools/test.py``, in a work folder
of its own. What is done stays done: a run with a record is not trained, one that was interrupted
goes on, one that was trained is tested.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from clustr_mm.analysis.flops import count_macs, run_layers
from clustr_mm.analysis.parameters import build_empty, build_model, parameters_of
from clustr_mm.analysis.records import circumstances
from clustr_mm.analysis.speed import time_call
from clustr_mm.analysis.study import Run, Study, config_of, fingerprint
from clustr_mm.engine.checkpoints import newest_checkpoint
from clustr_mm.engine.config import library_of
from clustr_mm.engine.errors import UserError

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
_LIBRARIES = ('onedl-mmengine', 'mmengine', 'onedl-mmcv', 'mmcv')
_TIMINGS = 5  # of an image; the median counts


@dataclass(frozen=True)
class Record:
    """What came of a run.

    Attributes:
        study: Name of the study.
        row: Name of the row.
        seed: The seed.
        rate: Learning rate; None where the config's was left.
        split: ``'test'``, or ``'val'`` for a run that helps to choose the rate.
        score: The study's metric.
        metrics: All metrics of the evaluator.
        parameters: Of the whole model.
        gmac: 10^9 multiply-adds of a test image, all layers.
        train_seconds: Of the processor, for the whole training process; None for one that was
            interrupted, whose first part is not known.
        image_seconds: Of the processor, for a test image on one thread, all layers.
        decides: Fingerprint of all that decides the score.
        config: The study's config.
        options: What the run changed of it.
        init_from: Weights that the backbone started from.
        measured: Date, device, versions, commit, command.
    """

    study: str
    row: str
    seed: int
    rate: float | None
    split: str
    score: float
    metrics: dict[str, float]
    parameters: int
    gmac: float
    train_seconds: float | None
    image_seconds: float
    decides: str
    config: str
    options: dict[str, Any]
    init_from: str | None
    measured: dict[str, Any]


class Trials:
    """The runs of a study, their records and their work folders.

    Args:
        study: The study.
        records: Folder of the records of all studies.
        work_dir: Folder of the work folders of all studies.
        data_root: The data set, in place of the config's.
    """

    def __init__(
        self,
        study: Study,
        records: str | os.PathLike,
        work_dir: str | os.PathLike,
        data_root: str | None = None,
    ) -> None:
        self.study = study
        self.records = Path(records, study.name)
        self.work_dir = Path(work_dir, study.name)
        self.data_root = data_root

    def record_file(self, run: Run) -> Path:
        """Where a run's record is or will be."""
        return self.records / f'{run.name}.json'

    def record_of(self, run: Run) -> Record | None:
        """A run's record; None where there is none yet.

        Raises:
            UserError: If there is one, of another recipe or rate.
        """
        path = self.record_file(run)
        if not path.is_file():
            return None
        try:
            record = Record(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise UserError(f'record {path} cannot be read ({error}); remove it') from error
        decides = fingerprint(config_of(self.study, run, self.data_root))
        if record.decides != decides:
            raise UserError(
                f'record {path} is of another recipe than {run.name} of the study now has '
                f'({record.decides}, not {decides}); remove it to run that anew'
            )
        return record

    def do(self, run: Run) -> Record:
        """Does a run, or what is left of it, and writes its record.

        Raises:
            UserError: If a process failed; its log says why.
        """
        folder = self.work_dir / run.name
        cfg = config_of(self.study, run, self.data_root)
        decides = fingerprint(cfg)
        file, mark = folder / 'config.py', folder / 'decides.txt'
        if mark.is_file() and mark.read_text() != decides:
            shutil.rmtree(folder)  # what is there is of another recipe
        folder.mkdir(parents=True, exist_ok=True)
        cfg.dump(str(file))
        mark.write_text(decides)
        if cfg.train_cfg.get('max_epochs', cfg.train_cfg.get('max_iters')) == 0:
            if not cfg.get('load_from'):
                raise UserError(f'{run.name} trains for 0 epochs; give it weights as load_from')
            seconds: float | None = 0.0
            checkpoint = Path(cfg.load_from)
        else:
            seconds = self._train(run, file, folder)
            checkpoint = Path((folder / 'last_checkpoint').read_text().strip())
        metrics = self._test(file, checkpoint, folder)
        if self.study.score not in metrics:
            raise UserError(
                f'study {self.study.name}: score {self.study.score!r} is none of the metrics '
                f'{", ".join(sorted(metrics))}'
            )
        parameters, gmac, image_seconds = cost_of(cfg, self.study.shape)
        record = Record(
            study=self.study.name,
            row=run.row,
            seed=run.seed,
            rate=run.rate,
            split='val' if run.search else 'test',
            score=metrics[self.study.score],
            metrics=metrics,
            parameters=parameters,
            gmac=gmac,
            train_seconds=seconds,
            image_seconds=image_seconds,
            decides=decides,
            config=self.study.config,
            options=dict(run.options),
            init_from=run.init_from,
            measured=_measured(cfg, run),
        )
        path = self.record_file(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix('.part')
        part.write_text(json.dumps(asdict(record), indent=1) + '\n')
        part.replace(path)
        return record

    def _train(self, run: Run, config: Path, folder: Path) -> float | None:
        """Trains to the end; the processor's seconds, where the whole training is known."""
        done, begun = folder / 'trained.json', folder / 'begun'
        if done.is_file():
            return json.loads(done.read_text())['seconds']
        words = ['train.py', str(config), '--work-dir', str(folder)]
        if newest := newest_checkpoint(str(folder)):  # else from load_from, where there is one
            words += ['--resume', newest]
        if run.init_from is not None:
            words += ['--init-from', run.init_from]
        interrupted = begun.is_file()
        begun.touch()
        seconds = _run_tool(words, folder / 'train.log')
        known = None if interrupted else seconds
        done.write_text(json.dumps(dict(seconds=known)))
        return known

    def _test(self, config: Path, checkpoint: Path, folder: Path) -> dict[str, float]:
        """Tests the last checkpoint; the metrics."""
        results = folder / 'test'
        if results.is_dir():
            shutil.rmtree(results)
        words = ['test.py', str(config), str(checkpoint), '--work-dir', str(results)]
        _run_tool(words, folder / 'test.log')
        # mmengine's logger hook leaves the metrics beside the log.
        (file,) = results.glob('*/*.json')
        said = json.loads(file.read_text())
        return {key: float(value) for key, value in said.items() if isinstance(value, int | float)}


def cost_of(cfg: Config, shape: tuple[int, int]) -> tuple[int, float, float]:
    """Parameters, 10^9 multiply-adds of an image, and its processor seconds on one thread.

    Args:
        cfg: The config.
        shape: Height and width of the image.
    """
    empty = build_empty(cfg)
    parameters = parameters_of(empty).total
    gmac = sum(kinds.total() for kinds in count_macs(empty, *shape).values()) / 1e9
    model, image = build_model(cfg).eval(), torch.randn(1, 3, *shape)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            run_layers(model, image)
            seconds = [
                time_call(lambda: run_layers(model, image), image.device)[1]
                for _ in range(_TIMINGS)
            ]
    finally:
        torch.set_num_threads(threads)
    return parameters, gmac, statistics.median(seconds)


def _run_tool(words: list[str], log: Path) -> float:
    """Runs one of the tools with one thread; the processor's seconds of it and its children."""
    one = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'), '1')
    command = [sys.executable, str(TOOLS / words[0]), *words[1:]]
    with open(log, 'ab') as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **one}
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = log.read_text(errors='replace').strip().splitlines()
        raise UserError(f'tools/{words[0]} failed; {log} ends with: {lines[-1] if lines else ""}')
    return usage.ru_utime + usage.ru_stime


def _measured(cfg: Config, run: Run) -> dict[str, Any]:
    facts: dict[str, Any] = dict(date=date.today().isoformat())
    facts |= {**circumstances(torch.device('cpu')), 'threads': 1}
    # Without this machine's folders.
    facts['command'] = f'python tools/analysis/compare.py {run.study}.py --rows {run.row}'
    for name in (*_LIBRARIES, library_of(cfg), f'onedl-{library_of(cfg)}'):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            continue
    git = ['git', '-C', str(TOOLS), 'describe', '--always', '--dirty']
    said = subprocess.run(git, capture_output=True, text=True, check=False)
    if said.returncode == 0:
        facts['commit'] = said.stdout.strip()
    return facts
