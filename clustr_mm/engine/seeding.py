"""Chance that depends on where a run is, and on nothing that happened before.

Each sample is drawn and changed by a chance of (seed, epoch, position in it), each training step by
one of (seed, step, process). No generator's state has to be saved, carried from worker to worker or
be the same after a restart: data order, augmentation, drop path and the sampling of regions are
those of a run that was never stopped, with any number of workers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_dist_info

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
