"""What happens around the loading of a sample: its chance, and what a damaged file leads to.

torch's loader asks a data set that has ``__getitems__`` for a batch's samples at once. The data
set's object gets one here, and stays what the library made it: its type, its pipeline, and what
hooks change of them while the run goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from torch.utils.data import DataLoader

from clustr_mm.datasets.faults import failed_sample, sample_fault
from clustr_mm.engine.errors import UserError
from clustr_mm.engine.seeding import Placed, PlacedBatches, seed_all

ACTIONS = ('raise', 'skip')
_DRAWS = 100  # of other samples, before a data set is given up


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
