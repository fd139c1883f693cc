"""Chance by place: the same however the samples are loaded."""

import pickle
import random

import numpy as np
import torch
import toy_run  # noqa: F401 - it registers
from mmengine.runner import Runner
from torch.utils.data import BatchSampler

from clustr_mm.engine.samples import place_batches, seed_all


def loader(workers=0, sampler='DefaultSampler', **more):
    made = Runner.build_dataloader(
        dict(
            batch_size=2,
            num_workers=workers,
            dataset=dict(type='NoisyRows', length=6),
            sampler=dict(type=sampler, shuffle=True),
            **more,
        ),
        seed=1,
    )
    place_batches(made, seed=1)
    return made


def drawn(made, epoch=0):
    made.sampler.set_epoch(epoch)
    made.batch_sampler.epoch = epoch
    return torch.cat([torch.stack(batch['inputs']) for batch in made])


def places(made):
    return [tuple(placed) for batch in made.batch_sampler for placed in batch]


def test_samples_do_not_depend_on_workers_or_on_what_was_before():
    expected = drawn(loader())
    np.random.rand(7)
    for workers in (1, 2):
        persistent = loader(workers, persistent_workers=True)
        drawn(persistent, epoch=1)
        assert torch.equal(drawn(persistent), expected)
    other = drawn(loader(), epoch=1)
    noise = [rows - rows[:, :1].floor() for rows in (expected, other)]
    assert not torch.equal(*noise), 'every epoch has its own chance'


def test_samples_do_not_depend_on_how_many_processes_share_them(monkeypatch):
    alone, shared = dict(places(loader())), {}
    for rank in (0, 1):
        for place in ('clustr_mm.engine.samples', 'mmengine.dataset.sampler'):
            monkeypatch.setattr(f'{place}.get_dist_info', lambda rank=rank: (rank, 2))
        shared |= dict(places(loader()))
    assert shared == alone


def test_beginning_in_the_middle():
    whole, part = places(loader()), loader()
    part.batch_sampler.first = 2
    assert places(part) == whole[4:]
    assert len(places(part)) == 6, 'the next epoch is whole again'


def test_the_data_set_stays_the_librarys_and_may_be_changed():
    made = loader()
    assert type(made.dataset) is toy_run.NoisyRows
    made.dataset.length = 4  # as hooks that change a pipeline do
    again = pickle.loads(pickle.dumps(made.dataset))
    assert type(again) is toy_run.NoisyRows and len(again) == 4


def test_a_seed_is_a_seed():
    def draw(*key):
        seed_all(*key)
        return random.random(), np.random.rand(), torch.rand(()).item()

    assert draw(1, 2, 3) == draw(1, 2, 3) != draw(1, 2, 4)


class DrawsByGlobalChance(BatchSampler):
    """As mmdet's GroupMultiSourceSampler does."""

    def __iter__(self):
        for batch in super().__iter__():
            yield batch + [np.random.randint(6)]


def test_batches_drawn_by_the_processs_chance_are_placed_too():
    def batches(first):
        made = loader()
        made.batch_sampler.batches = DrawsByGlobalChance(made.sampler, 2, False)
        made.batch_sampler.first = first
        np.random.rand(first + 5)
        return [[tuple(placed) for placed in batch] for batch in made.batch_sampler]

    assert batches(0)[1:] == batches(1)
