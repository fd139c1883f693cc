"""Every single way to spoil a data set: the audit names what a run refuses, and nothing else."""

import copy
import gc
import logging
import shutil

import numpy as np
import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmpose')
pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mutations import IMAGES, MUTATIONS
from mutations.tasks import Task

from clustr_mm.datasets.audit import audit
from clustr_mm.engine import UserError
from clustr_mm.engine.config import guard_data, set_data_root
from clustr_mm.engine.errors import explained

_GONE = ('missing', 'dangling link', 'folder in its place', 'unknown extension')
# What the audit names although a run goes on, by task, and why.
NAMED_THOUGH_ACCEPTED = {
    # A run warns of label maps without an image, once for all; the audit names each.
    'segmentation': dict.fromkeys(_GONE, 'has no image'),
    # The classifier would never see the class whose last image this was.
    'classification': dict.fromkeys((*_GONE, 'classes: one without images'), 'holds no image'),
}


@pytest.fixture(scope='module', params=IMAGES)
def task(request, tmp_path_factory):
    """A task's small data set, its log quiet."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    made = Task(request.param, tmp_path_factory.mktemp(request.param))
    # mmengine collects garbage for every data set, and this process has much that is none.
    gc.collect()
    gc.freeze()
    yield made
    gc.unfreeze()
    logger.setLevel(level)


def as_trained(task, root):
    """The config with a spoiled data root, for training; a classifier's classes are compared."""
    cfg = copy.deepcopy(task.cfg)
    set_data_root(cfg, str(root))
    for split in ('test',) if task.name == 'classification' else ('val', 'test'):
        cfg[f'{split}_dataloader'] = cfg[f'{split}_evaluator'] = None
    return cfg


def as_validated(task, root):
    """The config with the training files of a spoiled data root as its validation data."""
    cfg = copy.deepcopy(task.cfg)
    spoiled = cfg.val_dataloader
    for name in ('ann_file', 'data_prefix'):
        if name in cfg.train_dataloader.dataset:
            spoiled.dataset[name] = cfg.train_dataloader.dataset[name]
    spoiled.update(num_workers=0, persistent_workers=False)
    spoiled.dataset.data_root = str(root)
    cfg.train_dataloader.dataset.data_root = str(task.root)
    if task.name != 'classification':
        cfg.train_dataloader = None
    cfg.val_evaluator = cfg.test_dataloader = cfg.test_evaluator = None
    return cfg


def is_validated(cfg):
    """Whether validation gets through the data."""
    cfg = copy.deepcopy(cfg)
    try:
        with explained(cfg):
            guard_data(cfg, ('train', 'val') if cfg.train_dataloader else ('val',))
            for _ in Runner.build_dataloader(cfg.val_dataloader):
                pass
    except UserError:
        return False
    return True


def wrong_faults(cfg, accepted, names, reported=None):
    """Compares the audit with what a run does: what is wrong with the faults that it yields."""
    try:
        faults = list(audit(cfg, lambda line: None, lambda *_: None, decode=True))
    except Exception as error:
        return f'crashed: {type(error).__name__}: {error}'
    if any('\n' in fault for fault in faults):
        return f'more than a line: {faults}'
    if accepted:
        return f'accepted, and named: {faults}' if any(reported not in f for f in faults) else None
    named = any(name in fault for name in names for fault in faults)
    return None if named else f'refused, must be named with one of {names}: {faults}'


def test_the_audit_names_what_a_run_refuses(task, tmp_path):
    wrong = []
    reported = NAMED_THOUGH_ACCEPTED.get(task.name, {})
    for number, (name, mutate) in enumerate(MUTATIONS[task.name].items()):
        case = task.case(tmp_path / str(number), np.random.default_rng([5, number]))
        mutate(case)
        case.finish()
        trained, validated = as_trained(task, case.root), as_validated(task, case.root)
        # Where only validation refuses, its annotation file is at fault.
        names = case.refusals or [str(case.root)]
        found = {
            # What training must refuse, tests/test_mutated_data.py sees to.
            'trained': wrong_faults(trained, not case.refusals, names, reported.get(name, '\n')),
            'validated': wrong_faults(
                validated, is_validated(validated), names, reported.get(name, '\n')
            ),
        }
        wrong += [f'{name}, {how}: {each}' for how, each in found.items() if each]
        shutil.rmtree(case.root)
    assert not wrong, '\n'.join(wrong)
