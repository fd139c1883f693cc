"""Chance that depends on where a run is, and on nothing that happened before.

Each sample is drawn and changed by a chance of (seed, epoch, position in it), each training step by
one of (seed, step, process). No generator's state has to be saved, carried from worker to worker or
be the same after a restart: data order, augmentation, drop path and the sampling of regions are
those of a run that was never stopped, with any number of workers.
"""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS
from torch.utils.data import Dataset, Sampler

_SAMPLE, _STEP = 0, 1  # two streams, so that no sample has a step's chance


def seed_all(*key: int) -> None:
    """Seeds Python, NumPy, torch, and this process's GPU if it uses one.

    Args:
        key: Numbers that name the point of the run, none negative.
    """
    words = np.random.SeedSequence(key).generate_state(4, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(words[1:3].view(np.uint32))
    # torch.manual_seed would note a seed for GPUs that are not in use, with a stack trace each.
    torch.default_generator.manual_seed(int(words[3]))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(int(words[3]))


class SeededIndex(int):
    """An index into a data set that knows the chance of this drawing of it."""

    key: tuple[int, ...]

    def __new__(cls, index: int, key: tuple[int, ...]) -> 'SeededIndex':
        """Makes an index; see the class."""
        made = super().__new__(cls, index)
        made.key = key
        return made

    def __getnewargs__(self) -> tuple[int, tuple[int, ...]]:  # type: ignore[override]
        return int(self), self.key


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler):
    """A sampler whose indices know their place in the run.

    Positions count over all processes, as mmengine's samplers deal them out: a sample meets the
    same chance however many processes share the work.

    Args:
        sampler: Config of the sampler, say ``dict(type='DefaultSampler', shuffle=True)``.
        dataset: The data set.
        seed: The run's seed; None takes the one that the sampler finds.
    """

    def __init__(self, sampler: dict[str, Any], dataset: Dataset, seed: int | None = None) -> None:
        self.sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.dataset = dataset
        self.epoch = 0
        self._start = 0
        self._passed = 0
        if hasattr(self.sampler, 'skip'):
            self.skip = self._skip

    def __iter__(self) -> Iterator[SeededIndex]:
        rank, processes = get_dist_info()
        indices = enumerate(self.sampler, self._passed)
        start, self._start = self._start, 0
        for position, index in itertools.islice(indices, start, None):
            key = (_SAMPLE, self.seed, self.epoch, position * processes + rank)
            yield SeededIndex(index, key)

    def __len__(self) -> int:
        return len(self.sampler)

    @property
    def seed(self) -> int:
        """The seed of the order."""
        return self.sampler.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self.sampler.seed = seed

    def set_epoch(self, epoch: int) -> None:
        """Takes the order of an epoch.

        Args:
            epoch: From 0.
        """
        self.epoch = epoch
        self.sampler.set_epoch(epoch)

    def start_at(self, position: int) -> None:
        """Leaves out the first samples of the coming epoch.

        Args:
            position: How many of this process's samples.
        """
        self._start = position

    def _skip(self, num_samples: int) -> None:
        """Goes to a place in an endless stream, as mmengine's iteration loop asks."""
        self.sampler.skip(num_samples)
        self._passed = num_samples


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A data set that seeds each sample by its ``SeededIndex``, and is otherwise the one inside.

    Args:
        dataset: Config of the data set.
    """

    def __init__(self, dataset: dict[str, Any]) -> None:
        object.__setattr__(self, 'dataset', DATASETS.build(dataset))

    def __getitem__(self, index: SeededIndex) -> Any:
        seed_all(*index.key)
        return self.dataset[int(index)]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # asked for while it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)  # some hooks change a data set's pipeline


@HOOKS.register_module()
class SeedHook(Hook):
    """Seeds every training step by (seed, step, process)."""

    priority = 'VERY_HIGH'

    def before_train(self, runner: Any) -> None:
        """Gives the samples' order the seed of the run, which a resumed one takes from its file.

        Args:
            runner: The runner of the training.
        """
        loader = runner.train_dataloader
        sampler = getattr(loader.batch_sampler, 'sampler', None)
        if isinstance(sampler, SeededSampler) and not runner._randomness_cfg.get('diff_rank_seed'):
            sampler.seed = runner.seed

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seeds the step.

        Args:
            runner: The runner of the training.
            batch_idx: Not used: it begins anew every epoch.
            data_batch: Not used.
        """
        seed_all(_STEP, runner.seed, runner.iter, get_dist_info()[0])


def random_state() -> dict[str, Any]:
    """Takes the state of every generator that ``seed_all`` seeds, as plain data.

    Returns:
        dict: For ``set_random_state``.
    """
    state = {
        'python': random.getstate(),
        'numpy': np.random.get_state(),
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Puts generators into a state.

    Args:
        state: From ``random_state``; the GPU's is passed over where none is in use.
    """
    random.setstate(state['python'])
    np.random.set_state(state['numpy'])
    torch.set_rng_state(state['torch'])
    if 'cuda' in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state['cuda'])
