"""What happens around a sample: its chance, and what a damaged file leads to.

Chance depends on where a run is, and on nothing that happened before: each sample is drawn and
changed by a chance of (seed, epoch, position in it), each training step by one of (seed, step,
process). No generator's state has to be saved, carried from worker to worker or be the same after a
restart: data order, augmentation, drop path and the sampling of regions are those of a run that was
never stopped, with any number of workers.

torch's loader asks a data set that has ``__getitems__`` for a batch's samples at once. The data
set's object gets one here, and stays what the library made it: its type, its pipeline, and what
hooks change of them while the run goes on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from torch.utils.data import DataLoader

from clustr_mm.datasets.faults import failed_sample, sample_fault
from clustr_mm.engine.errors import UserError

ACTIONS = ('raise', 'skip')
_DRAWS = 100  # of other samples, before a data set is given up
_SAMPLE, _STEP, _BATCH = 0, 1, 2  # streams, so that no sample has a step's chance


def seed_all(*key: int) -> None:
    """Seeds Python, NumPy, torch, and this process's GPU, by numbers that are not negative."""
    words = np.random.SeedSequence(key).generate_state(4, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(words[1:3].view(np.uint32))
    # torch.manual_seed would note a seed for GPUs that are not in use, with a stack trace each.
    torch.default_generator.manual_seed(int(words[3]))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(int(words[3]))


def seed_step(seed: int, step: int) -> None:
    """Seeds a training step, counted from 0, of this process."""
    seed_all(_STEP, seed, step, get_dist_info()[0])


@contextmanager
def _chance_of(*key: int) -> Iterator[None]:
    """Seeds as ``seed_all`` does, and puts the generators of the CPU back at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_all(*key)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Placed(NamedTuple):
    """An index into a data set, with the chance of this drawing of it."""

    index: Any
    key: tuple[int, ...]


class PlacedBatches:
    """The batches of a loader's batch sampler, with the place in the run in every index.

    Positions count over all processes, as mmengine's samplers deal them out: a sample meets the
    same chance however many processes share the work.
    """

    def __init__(self, batches: Any, seed: int) -> None:
        self.batches = batches
        self.seed = seed
        self.epoch = 0
        self.first = 0  # that the next pass loads
        self.passed = 0  # by the last pass, loaded or not

    def __iter__(self) -> Iterator[list[Placed]]:
        rank, processes = get_dist_info()
        first, self.first = self.first, 0
        self.passed = position = 0
        batches = iter(self.batches)
        while True:
            # Some samplers draw by the process's own chance.
            with _chance_of(_BATCH, self.seed, self.epoch, self.passed, rank):
                batch = next(batches, None)
            if batch is None:
                return
            if self.passed >= first:
                yield [
                    Placed(index, (_SAMPLE, self.seed, self.epoch, place * processes + rank))
                    for place, index in enumerate(batch, position)
                ]
            position += len(batch)
            self.passed += 1

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        if name == 'batches':  # asked for while it is being unpickled
            raise AttributeError(name)
        return getattr(self.batches, name)


class Samples:
    """A data set's ``__getitems__``."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.action: str | None = None  # at a damaged file; None leaves it to the library

    def __call__(self, indices: Sequence[Any]) -> list[Any]:
        """Loads the samples of a batch."""
        return [self._load(index) for index in indices]

    def _load(self, index: Any) -> Any:
        if isinstance(index, Placed):
            seed_all(*index.key)
            index = index.index
        for _ in range(_DRAWS):
            try:
                return self.dataset[index]
            except Exception as error:
                failed = None if self.action is None else failed_sample(error)
                fault = failed and sample_fault(*failed)
                if fault is None:
                    raise
                if self.action == 'raise':
                    raise UserError(
                        f'{fault}; restore the file or take it out of the data set '
                        "(BrokenFileHook's action='skip' trains without it)"
                    ) from error
                print_log(f'skipped a sample: {fault}', logger='current', level=30)  # WARNING
            index = np.random.randint(len(self.dataset))
        raise UserError(f'{_DRAWS} samples in a row have damaged files; look with check_data.py')


def samples_of(dataset: Any) -> Samples:
    """Finds or makes the ``__getitems__`` of a data set's object, which a list cannot have."""
    if not hasattr(dataset, '__dict__'):
        raise UserError(
            f'a data set of type {type(dataset).__name__} cannot be looked after; wrap it in a '
            "torch.utils.data.Dataset, or take mmengine's own loop and hooks"
        )
    samples = vars(dataset).get('__getitems__')
    if not isinstance(samples, Samples):
        samples = dataset.__getitems__ = Samples(dataset)
    return samples


def place_batches(loader: DataLoader, seed: int) -> PlacedBatches:
    """Makes the samples of a loader depend on their place in the run alone.

    Data set, sampler and pipeline stay the objects that they are.

    Returns:
        What the loader's ``batch_sampler`` is from now on.
    """
    samples_of(loader.dataset)
    samplers: list[Any] = [loader.sampler, getattr(loader.batch_sampler, 'sampler', None)]
    for sampler in samplers:
        if hasattr(sampler, 'seed'):
            sampler.seed = seed  # a resumed run takes its seed from the checkpoint
    batches = loader.batch_sampler
    if not isinstance(batches, PlacedBatches):
        batches = PlacedBatches(batches, seed)
        # DataLoader forbids this once it is made, for iterators that might exist: none does here.
        object.__setattr__(loader, 'batch_sampler', batches)
    batches.seed = seed
    return batches


@HOOKS.register_module()
class BrokenFileHook(Hook):
    """Names the damaged file where a sample cannot be loaded.

    Args:
        action: In training, ``'raise'`` stops with one line, ``'skip'`` logs it and draws another
            sample. Validation and test always stop: a score is of all images.

    Raises:
        ValueError: If the action is another.
    """

    def __init__(self, action: str = 'raise') -> None:
        if action not in ACTIONS:
            raise ValueError(f'BrokenFileHook.action is {action!r}; use one of {ACTIONS}')
        self.action = action

    def before_train(self, runner: Any) -> None:
        """Looks after the training data."""
        samples_of(runner.train_loop.dataloader.dataset).action = self.action

    def before_val(self, runner: Any) -> None:
        """Looks after the validation data."""
        samples_of(runner.val_loop.dataloader.dataset).action = 'raise'

    def before_test(self, runner: Any) -> None:
        """Looks after the test data."""
        samples_of(runner.test_loop.dataloader.dataset).action = 'raise'
