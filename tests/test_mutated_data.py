"""Two hundred spoiled data sets a task: each is trained on correctly, or refused by name."""

import gc
import logging
import math
import shutil
from collections import Counter

import numpy as np
import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmpose')
pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')
from mmengine.logging import MMLogger
from mutations import IMAGES, MUTATIONS
from mutations.tasks import Task

from clustr_mm.engine import UserError

COUNT = 200
SEED = 5


@pytest.fixture(scope='module', params=IMAGES)
def task(request, tmp_path_factory):
    """A task's small data set and model."""
    made = Task(request.param, tmp_path_factory.mktemp(request.param))
    # mmengine collects garbage for every data set, and this process has much that is none.
    gc.collect()
    gc.freeze()
    yield made
    gc.unfreeze()


class Messages(logging.Handler):
    """Keeps the warnings of a run."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def messages():
    """The warnings since the test, or its case, began."""
    handler = Messages()
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


def draw(names, trained, number):
    """The mutations of a case: each by itself once, then two or three that are trained, or any."""
    rng = np.random.default_rng([SEED, number])
    if number < len(names):
        return rng, [names[number]]
    among = [name for name in names if trained[name]] if number % 2 else names
    return rng, list(rng.choice(among, rng.integers(2, 4), replace=False))


def faults(task, case, messages):
    """Trains a step on a spoiled data set: (was it refused, what is wrong with that)."""
    try:
        batch = task.batch(case.root)
    except UserError as error:
        line = str(error)
        if '\n' in line or not any(name in line for name in case.refusals):
            return True, [f'refused: {line}']
        return True, faults_of_what_is_left(task, case)
    except Exception as error:
        return True, [f'crashed: {type(error).__name__}: {error}']
    if case.refusals:
        return False, [f'trained, must be refused with one of {case.refusals}']
    said = ' '.join(messages)
    wrong = [f'no warning with {words!r}' for words in case.warnings if words not in said]
    return False, wrong + faults_of_a_step(task, case, batch)


def faults_of_what_is_left(task, case):
    """Trains a step on what is left where broken files are skipped, if nothing else is wrong."""
    left = case.without_broken()
    if left is None:
        return []
    found = faults_of_a_step(task, left, task.batch(case.root, on_broken_file='skip'))
    return [f'skipping broken files: {each}' for each in found]


def faults_of_a_step(task, case, batch):
    """Compares a batch with what it must be, and trains on it."""
    wrong = task.differences(case, task.read(batch))
    losses, broken = task.step(batch)
    wrong += [f'{name} is {loss}' for name, loss in losses.items() if not math.isfinite(loss)]
    return wrong + [f'weight {name} is not finite' for name in broken]


def test_every_mutation_is_refused_by_name_or_trained_correctly(task, tmp_path, messages):
    names = list(MUTATIONS[task.name])
    assert len(names) <= COUNT
    cases, refused, trained, wrong = Counter(), Counter(), Counter(), []
    for number in range(COUNT):
        rng, chosen = draw(names, trained, number)
        case = task.case(tmp_path / str(number), rng)
        for name in chosen:
            MUTATIONS[task.name][name](case)
        case.finish()
        messages.clear()
        was_refused, found = faults(task, case, messages)
        (refused if was_refused else trained).update(chosen)
        cases['refused' if was_refused else 'trained'] += 1
        wrong += [f'{number} {" + ".join(chosen)}: {each}' for each in found]
        shutil.rmtree(case.root)
    print(f'{task.name}: {COUNT} cases, {cases["refused"]} refused, {cases["trained"]} trained')
    print(f'{task.name}: {"mutation":50} refused trained')
    for name in names:
        print(f'{task.name}: {name:50} {refused[name]:7} {trained[name]:7}')
    assert not wrong, '\n'.join(wrong)
