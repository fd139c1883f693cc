"""Chance by place: the same however the samples are loaded."""

import pickle
import random

import numpy as np
import pytest
import torch
import toy_run  # noqa: F401 - it registers
from mmengine.registry import DATA_SAMPLERS, DATASETS
from mmengine.runner import Runner

from clustr_mm.engine.seeding import (
    SeededIndex,
    SeededSampler,
    random_state,
    seed_all,
    set_random_state,
)


def loader(workers=0, sampler='DefaultSampler', **more):
    return Runner.build_dataloader(
        dict(
            batch_size=2,
            num_workers=workers,
            dataset=dict(type='SeededDataset', dataset=dict(type='NoisyRows', length=6)),
            sampler=dict(type='SeededSampler', sampler=dict(type=sampler, shuffle=True)),
            **more,
        ),
        seed=1,
    )


def drawn(made, epoch=0):
    made.sampler.set_epoch(epoch)
    return torch.cat([torch.stack(batch['inputs']) for batch in made])


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
    alone = {int(index): index.key for index in loader().sampler}
    shared = {}
    for rank in (0, 1):
        for place in ('clustr_mm.engine.seeding', 'mmengine.dataset.sampler'):
            monkeypatch.setattr(f'{place}.get_dist_info', lambda rank=rank: (rank, 2))
        shared |= {int(index): index.key for index in loader().sampler}
    assert shared == alone


def test_beginning_in_the_middle():
    whole = list(loader().sampler)
    part = loader().sampler
    part.start_at(4)
    assert [(int(index), index.key) for index in part] == [(int(i), i.key) for i in whole[4:]]
    assert len(list(part)) == 6, 'the next epoch is whole again'
    endless = loader(sampler='InfiniteSampler').sampler
    expected = [(int(index), index.key) for _, index in zip(range(9), endless, strict=False)][7:]
    late = loader(sampler='InfiniteSampler').sampler
    if not hasattr(late, 'skip'):
        pytest.skip('this mmengine goes there by loading')
    late.skip(7)
    found = [(int(index), index.key) for _, index in zip(range(2), late, strict=False)]
    assert found == expected
    assert not hasattr(loader().sampler, 'skip'), 'mmengine would skip beyond the end'


def test_an_index_takes_its_chance_along():
    index = pickle.loads(pickle.dumps(SeededIndex(3, (0, 1, 2, 4))))
    assert index == 3 and index.key == (0, 1, 2, 4)


def test_the_data_set_inside_is_what_others_see():
    dataset = DATASETS.build(dict(type='SeededDataset', dataset=dict(type='NoisyRows', length=6)))
    assert dataset.metainfo == dict(classes=('row',))
    dataset.length = 4  # as hooks that change a pipeline do
    assert len(dataset.dataset) == 4 == len(dataset)
    assert len(pickle.loads(pickle.dumps(dataset))) == 4
    sampler = dict(type='SeededSampler', sampler=dict(type='DefaultSampler'))
    made = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=5))
    assert isinstance(made, SeededSampler) and len(made) == 4 and made.seed == 5


def test_states_come_back():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    seed_all(1, 2, 3)
    state, first = random_state(), draw()
    assert draw() != first
    set_random_state(state)
    assert draw() == first
    seed_all(1, 2, 3)
    assert draw() == first
    seed_all(1, 2, 4)
    assert draw() != first
