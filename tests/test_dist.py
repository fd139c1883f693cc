"""Several processes on a CPU, started as a user starts them: as good as one, and none left over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ports import free_port

pytest.importorskip('mmseg')

from clustr_mm.datasets.mini.mini import MiniData, build

ROOT = Path(__file__).resolve().parents[1]
LEAVES = dict(
    seg='mmseg/upernet_clustr_pvtb0_mini.py',
    det='mmdet/mask_rcnn_clustr_t_mini.py',
    pose='mmpose/topdown_clustr_t_mini.py',
)
LAYOUTS = dict(seg='ade20k', det='coco', pose='coco_wholebody')

# A leaf without chance, without statistics of batches, one sample a process and step: the sample
# that process r of 2 sees in step t is the one that a single process sees in step 2 t + r.
CONFIG = """
_base_ = '{leaf}'
custom_imports = dict(
    imports=[*_base_.custom_imports.imports, 'loss_recorder'], allow_failed_imports=False
)
custom_hooks = [dict(type='LossRecorder')]
train_cfg = dict(_delete_=True, type='ResumableIterLoop', max_iters={steps})
param_scheduler = []
pipeline = [t for t in _base_.train_dataloader.dataset.pipeline if t['type'] != 'RandomFlip']
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    batch_sampler=None,
    dataset=dict(pipeline=pipeline),
)
optim_wrapper = dict(accumulative_counts={accumulate})
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = dict(batch_size=1, num_workers=0)
default_hooks = dict(
    checkpoint=dict(_delete_=True, type='SafeCheckpointHook', by_epoch=False, interval=10**6),
    logger=dict(interval=1),
)
log_processor = dict(by_epoch=False)
"""
EXTRA = dict(
    seg="""
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    decode_head=dict(channels=32, norm_cfg=dict(_delete_=True, type='GN', num_groups=8)),
)
""",
    # Every candidate is taken: none is drawn.
    det="""
everything = dict(sampler=dict(num=10**6))
model = dict(
    train_cfg=dict(rpn=everything, rcnn=everything),
    test_cfg=dict(rcnn=dict(score_thr=0.0)),  # twenty steps make nobody sure
)
""",
    pose='',
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """The mini data of a task: small, and of an odd number of images for validation."""
    folder, made = tmp_path_factory.mktemp('data'), {}

    def of(task):
        if task not in made:
            mini = MiniData(layout=LAYOUTS[task], train=8, val=3, size=(64, 64))
            made[task] = build(folder / task, mini)[LAYOUTS[task]]
        return made[task]

    return of


@pytest.fixture(scope='module')
def environment():
    """What the processes see: one thread each, and the recorder."""
    for name in ('NNODES', 'NODE_RANK', 'MASTER_ADDR', 'PORT', 'MAX_RESTARTS', 'LOCAL_RANK'):
        os.environ.pop(name, None)
    path = os.pathsep.join([str(ROOT / 'tests'), os.environ.get('PYTHONPATH', '')])
    return {
        **os.environ,
        'PYTHONPATH': path.rstrip(os.pathsep),
        'PYTHON': sys.executable,
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '-1',
    }


def write_config(folder, task, steps, accumulate=1, more=''):
    text = CONFIG.format(leaf=ROOT / 'configs' / LEAVES[task], steps=steps, accumulate=accumulate)
    path = folder / f'{task}_{steps}_{accumulate}.py'
    path.write_text(text + EXTRA[task] + more)
    return path


def start(*command, env):
    return subprocess.Popen(
        list(map(str, command)),
        env=env,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*command, env):
    process = start(*command, env=env)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-4000:]


def train_alone(config, data_root, folder, env):
    options = ['--data-root', data_root, '--work-dir', folder]
    run(sys.executable, 'tools/train.py', config, *options, env=env)


def train_two(config, data_root, folder, env, *more):
    options = ['--data-root', data_root, '--work-dir', folder, *more]
    run('tools/dist_train.sh', config, 2, *options, env=env)


def losses(folder, rank=0):
    return json.loads((folder / f'losses_{rank}.json').read_text())


def weights(folder, steps):
    return torch.load(folder / f'iter_{steps}.pth', weights_only=False)['state_dict']


def assert_close(a, b):
    assert a.keys() == b.keys()
    worst = max((a[key].double() - b[key].double()).abs().max().item() for key in a)
    assert worst <= 1e-4
    return worst


def compare_with_accumulation(task, steps, data_root, folder, env):
    """Trains in two processes and in one; returns the folder of the two and what differs most."""
    two, one = folder / 'two', folder / 'one'
    train_two(write_config(folder, task, steps), data_root, two, env)
    train_alone(write_config(folder, task, 2 * steps, 2), data_root, one, env)
    alone = losses(one)
    assert len(alone) == 2 * steps
    gap = 0.0
    for rank in range(2):
        for step, mine in enumerate(losses(two, rank)):
            other = alone[2 * step + rank]
            assert mine.keys() == other.keys()
            gap = max(gap, *(abs(mine[key] - other[key]) for key in mine))
    assert gap <= 1e-4
    return two, gap, assert_close(weights(two, steps), weights(one, 2 * steps))


def metrics(folder):
    (path,) = folder.glob('*/*.json')
    found = json.loads(path.read_text().splitlines()[-1])
    return {key: value for key, value in found.items() if 'time' not in key}


def compare_tests(task, trained, steps, data_root, folder, env):
    config, checkpoint = write_config(folder, task, steps), trained / f'iter_{steps}.pth'
    starts = dict(
        by_two=['tools/dist_test.sh', config, checkpoint, 2],
        by_one=[sys.executable, 'tools/test.py', config, checkpoint],
    )
    for name, command in starts.items():
        # The images are of an odd number: with pose the processes' shares differ.
        options = ['--work-dir', folder / name]
        run(*command, '--data-root', data_root, *options, env=env)
    found = metrics(folder / 'by_two')
    assert found == metrics(folder / 'by_one')
    assert len(found) > 2


@pytest.mark.slow
def test_two_processes_are_one_with_accumulation(data, tmp_path, environment):
    compare_with_accumulation('seg', 3, data('seg'), tmp_path, environment)


@pytest.mark.long
@pytest.mark.parametrize('task', LEAVES)
def test_two_processes_train_and_test_as_one(task, data, tmp_path, environment):
    two, *gaps = compare_with_accumulation(task, 20, data(task), tmp_path, environment)
    print(f'{task}: losses differ by {gaps[0]:.1e}, weights by {gaps[1]:.1e}')
    compare_tests(task, two, 20, data(task), tmp_path, environment)


@pytest.mark.long
def test_two_machines(data, tmp_path, environment):
    config, folder = write_config(tmp_path, 'seg', 3), tmp_path / 'machines'
    port = str(free_port())
    options = ['--data-root', data('seg'), '--work-dir', folder]
    for restarts in '01':
        place = dict(NNODES='2', MASTER_ADDR='127.0.0.1', PORT=port, MAX_RESTARTS=restarts)
        machines = [
            start(
                *('tools/dist_train.sh', config, 1, *options),
                env={**environment, **place, 'NODE_RANK': rank},
            )
            for rank in '01'
        ]
        for machine in machines:
            _, errors = machine.communicate(timeout=600)
            assert machine.returncode == 0, errors[-4000:]
        folder.rename(tmp_path / f'machines_{restarts}')
    train_two(config, data('seg'), tmp_path / 'here', environment)
    for restarts in '01':
        assert_close(weights(tmp_path / f'machines_{restarts}', 3), weights(tmp_path / 'here', 3))


def workers_of(folder):
    """The processes that train into a folder, without their launcher."""
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            words = path.read_bytes().split(b'\0')
        except OSError:
            continue  # it ended meanwhile
        if str(folder).encode() in words and b'torch.distributed.run' not in words:
            found.append(int(path.parent.name))
    return found


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.1)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='asks Linux to end orphans')
@pytest.mark.long
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_its_launcher(how, data, tmp_path, environment):
    config, folder = write_config(tmp_path, 'seg', 10**5), tmp_path / 'run'
    options = ['--data-root', data('seg'), '--work-dir', folder]
    launcher = start('tools/dist_train.sh', config, 2, *options, env=environment)
    try:
        # The first step is done: on a busy machine that takes minutes.
        wait_for(lambda: list(folder.glob('*/vis_data/*.json')), 600)
        assert len(workers_of(folder)) == 2
        launcher.send_signal(how)
        wait_for(lambda: not workers_of(folder), 60)
        launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert launcher.returncode != 0


@pytest.mark.long
def test_killed_process_is_started_again_and_the_run_is_the_same(data, tmp_path, environment):
    more = "\ndefault_hooks['checkpoint']['interval'] = 1\n"
    config = write_config(tmp_path, 'seg', 8, more=more)
    folder, whole = tmp_path / 'run', tmp_path / 'whole'
    options = ['--data-root', data('seg'), '--work-dir', folder]
    env = {**environment, 'MAX_RESTARTS': '2'}
    launcher = start('tools/dist_train.sh', config, 2, *options, env=env)
    try:
        wait_for((folder / 'iter_2.pth').is_file, 600)
        os.kill(workers_of(folder)[1], signal.SIGKILL)
        _, errors = launcher.communicate(timeout=600)
    finally:
        launcher.kill()
    assert launcher.returncode == 0, errors[-4000:]
    assert len(losses(folder)) < 8  # it went on, and did not begin anew
    train_two(config, data('seg'), whole, environment)
    here, there = weights(folder, 8), weights(whole, 8)
    assert all(torch.equal(here[key], there[key]) for key in there)
