"""Whole runs of the command lines, small: what they write, and how mistakes end."""

import os
import runpy
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip('mmseg')

from clustr_mm.datasets.mini.mini import MiniData, build
from clustr_mm.engine import UserError, train
from clustr_mm.engine import test as evaluate  # a name that pytest does not collect
from clustr_mm.engine.errors import run_tool
from clustr_mm.weights.files import trust_checkpoints

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / 'configs' / 'mmseg' / 'upernet_clustr_pvtb0_mini.py')
SMALL = [
    '--device', 'cpu', '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2',
    'train_dataloader.batch_size=2', 'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0', 'test_dataloader.num_workers=0',
    'default_hooks.logger.interval=1', 'model.data_preprocessor.size=(64,64)',
]  # fmt: skip


@pytest.fixture(scope='session')
def data(tmp_path_factory) -> Path:
    """A few small scenes in ADE20K's layout."""
    mini = MiniData(layout='ade20k', train=6, val=3, size=(64, 64))
    return build(tmp_path_factory.mktemp('data') / 'mini', mini)['ade20k']


@pytest.fixture(scope='session')
def trained(data, tmp_path_factory) -> Path:
    """The work folder of a run of two iterations."""
    folder = tmp_path_factory.mktemp('run')
    # Of runs in one process those of one name would share their visualizer.
    options = [*SMALL, f'visualizer.name={folder.name}']
    train([CONFIG, '--data-root', str(data), '--work-dir', str(folder), *options])
    return folder


def log_of(folder: Path) -> str:
    return ''.join(path.read_text() for path in sorted(folder.glob('*/*.log')))


def run(*arguments, cwd, **environment):
    """Runs a command as a user does; the repository is on no path but its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )


def assert_one_line(result, *words):
    errors = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert result.returncode == 1, result.stderr
    assert len(errors) == 1, result.stderr
    assert 'Traceback' not in result.stderr
    for word in words:
        assert word in errors[0]


def test_training_writes_checkpoint_log_curves_and_scores(trained):
    log = log_of(trained)
    assert (trained / 'iter_2.pth').is_file()
    assert list(trained.glob('*/vis_data/events.out.tfevents*'))
    assert 'eta:' in log
    assert 'mIoU' in log
    assert log.count('random weights') == 1
    assert '--init-from' in log


def test_resume_goes_on(trained, data, tmp_path):
    checkpoint = str(trained / 'iter_2.pth')
    options = [*SMALL, 'train_cfg.max_iters=3']
    run_options = ['--data-root', str(data), '--work-dir', str(tmp_path), '--resume', checkpoint]
    runner = train([CONFIG, *run_options, *options])
    assert runner.iter == 3
    assert 'resumed epoch: 0, iter: 2' in log_of(tmp_path)
    assert 'random weights' not in log_of(tmp_path)


def test_testing_writes_label_maps_as_mmseg_does(trained, data, tmp_path):
    out = tmp_path / 'label_maps'
    metrics = evaluate(
        [CONFIG, str(trained / 'iter_2.pth'), '--data-root', str(data)]
        + ['--work-dir', str(tmp_path), '--out', str(out), *SMALL]
    )
    assert 0 <= metrics['mIoU'] <= 100
    images = {path.stem for path in (data / 'images' / 'validation').iterdir()}
    assert {path.stem for path in out.iterdir()} == images
    labels = cv2.imread(str(min(out.iterdir())), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (64, 64)


def test_augmented_testing(trained, data, tmp_path):
    arguments = [CONFIG, str(trained / 'iter_2.pth'), '--data-root', str(data), '--tta']
    metrics = evaluate([*arguments, '--work-dir', str(tmp_path), *SMALL])
    assert 0 <= metrics['mIoU'] <= 100


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_backbone_starts_from_a_checkpoint(trained, data, tmp_path, suffix):
    checkpoint = tmp_path / f'weights{suffix}'
    weights = torch.load(trained / 'iter_2.pth', weights_only=False)['state_dict']
    if suffix == '.pth':
        torch.save(dict(state_dict=weights), checkpoint)
    else:
        from safetensors.torch import save_file

        save_file(weights, checkpoint)
    options = [*SMALL, 'train_cfg.max_iters=1', 'optim_wrapper.optimizer.lr=0']
    arguments = ['--init-from', str(checkpoint), '--data-root', str(data)]
    runner = train([CONFIG, *arguments, '--work-dir', str(tmp_path / 'run'), *options])
    state = runner.model.state_dict()
    compared = [key for key in weights if key.startswith('backbone.')]
    assert compared
    assert all(torch.equal(state[key], weights[key]) for key in compared)
    assert 'random weights' not in log_of(tmp_path / 'run')
    # The whole model's weights are tested in either form.
    tested = [CONFIG, str(checkpoint), '--data-root', str(data), '--work-dir', str(tmp_path)]
    assert 'mIoU' in evaluate([*tested, *SMALL])


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['model.backbone.arch=huge'], ["'huge'", 'small']),
        (['model.backbone.recluster_evry=0'], ['recluster_evry', 'recluster_every']),
        (['train_cfg.max_iter=3'], ["'max_iter'", "'max_iters'"]),
        (['model.backbone.type=ClusTRR'], ["'ClusTRR'", "'ClusTR'"]),
    ],
)
def test_mistakes_in_the_config_are_one_sentence(data, tmp_path, options, words):
    arguments = [CONFIG, '--data-root', str(data), '--work-dir', str(tmp_path)]
    # mmengine names a run's logger by the second: two runs within one would share a log.
    name = f'experiment_name={tmp_path.name}'
    with pytest.raises(UserError) as error:
        train([*arguments, *SMALL, *options, name])
    for word in words:
        assert word in str(error.value)
    assert '\n' not in str(error.value)
    # Who wants to know where it came from finds it in the log.
    assert 'Traceback' in log_of(tmp_path)


def test_checkpoint_of_another_variant_is_refused(trained, data, tmp_path):
    checkpoint = str(trained / 'iter_2.pth')
    common = ['--data-root', str(data), '--work-dir', str(tmp_path), *SMALL]
    with pytest.raises(UserError, match='iter_2.pth') as error:
        evaluate([CONFIG, checkpoint, *common, 'model.backbone.arch=small'])
    assert 'missing' in str(error.value)
    with pytest.raises(UserError, match='iter_2.pth'):
        train([CONFIG, '--init-from', checkpoint, *common, 'model.backbone.arch=small'])


def test_file_that_is_no_checkpoint_is_refused(data, tmp_path):
    (tmp_path / 'text.pth').write_text('hello')
    common = ['--data-root', str(data), '--work-dir', str(tmp_path), *SMALL]
    with pytest.raises(UserError, match='text.pth'):
        evaluate([CONFIG, str(tmp_path / 'text.pth'), *common])
    with pytest.raises(UserError, match='nowhere.pth does not exist'):
        evaluate([CONFIG, 'nowhere.pth', *common])


@pytest.fixture
def damaged(data, tmp_path) -> Path:
    """The data with one training image cut short."""
    root = tmp_path / 'damaged'
    for path in data.rglob('*.*'):
        copy = root / path.relative_to(data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    image = min((root / 'images' / 'training').iterdir())
    image.write_bytes(image.read_bytes()[:200])
    return root


@pytest.mark.parametrize('workers', [0, 1])
def test_damaged_image_stops_training_by_name(damaged, tmp_path, workers):
    image = min((damaged / 'images' / 'training').iterdir())
    options = [*SMALL, f'train_dataloader.num_workers={workers}', 'train_cfg.max_iters=8']
    arguments = [CONFIG, '--data-root', str(damaged), '--work-dir', str(tmp_path / 'run')]
    with pytest.raises(UserError, match=image.name) as error:
        train([*arguments, *options])
    assert "action='skip'" in str(error.value) and '\n' not in str(error.value)


@pytest.mark.slow
def test_damaged_image_is_passed_over_where_the_config_says_so(damaged, tmp_path):
    image = min((damaged / 'images' / 'training').iterdir())
    skip = 'default_hooks.broken_files.action=skip'
    options = [*SMALL, skip, 'train_cfg.max_iters=4', 'train_cfg.val_interval=9']
    arguments = [CONFIG, '--data-root', str(damaged), '--work-dir', str(tmp_path / 'run')]
    runner = train([*arguments, *options])
    assert runner.iter == 4
    assert image.name in log_of(tmp_path / 'run')


def test_a_mistake_ends_the_process_with_one_line_and_status_1(tmp_path):
    missing = tmp_path / 'nowhere'
    result = run(ROOT / 'tools' / 'train.py', CONFIG, '--data-root', missing, cwd=tmp_path)
    assert_one_line(result, str(missing), 'annotations/training/')
    assert not (tmp_path / 'work_dirs').exists()


def test_command_line_mistakes_are_one_line(monkeypatch, capsys):
    for arguments, word in (
        (['no_such_config.py'], 'no_such_config.py'),
        ([CONFIG, '--ampp'], '--ampp'),
        ([CONFIG, '--cfg-options', 'train_cfg.max_iters'], 'KEY=VALUE'),
        ([CONFIG, '--cfg-options', "model.neck=dict(type='FPN',num_outs=4)"], 'key by key'),
        ([CONFIG, '--init-from', 'no.pth'], 'no.pth'),
        ([CONFIG, '--no-pin-memory'], "mmseg's train.py: unrecognized arguments: --no-pin-memory"),
        *([] if torch.cuda.is_available() else [([CONFIG, '--amp'], 'GPU')]),
        *([] if torch.cuda.is_available() else [([CONFIG, '--device', 'cuda'], 'GPU')]),
    ):
        assert run_tool(lambda _, arguments=arguments: train(arguments)) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith('error: ')
        assert word in lines[0]


@pytest.mark.parametrize('trusted', [False, True])
@pytest.mark.parametrize('tool', ['export', 'demo', 'analysis/clusters'])
def test_a_tool_that_names_trust_checkpoint_takes_it(tool, trusted, tmp_path):
    checkpoint = tmp_path / 'more.pth'
    torch.save(dict(state_dict={}, more=Fraction(1, 2)), checkpoint)  # no plain data
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((64, 64, 3), np.uint8))
    arguments = {
        'export': [CONFIG, checkpoint, tmp_path / 'a.onnx', '--backbone'],
        'demo': ['segmentation', CONFIG, checkpoint, tmp_path / 'a.png', '--device', 'cpu'],
        'analysis/clusters': [CONFIG, checkpoint, tmp_path / 'a.png', '--device', 'cpu'],
    }[tool]
    main = runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'))['main']
    try:
        with pytest.raises(Exception) as error:
            main([*map(str, arguments), *(['--trust-checkpoint'] if trusted else [])])
    finally:
        trust_checkpoints(False)
    assert ('--trust-checkpoint' in str(error.value)) is not trusted


@pytest.mark.parametrize(
    'tool',
    [
        'check_data', 'convert_checkpoint', 'demo', 'demo_train', 'export', 'make_mini_data',
        'publish_checkpoint', 'web_demo', 'analysis/clusters', 'analysis/compare',
        'analysis/count_params', 'analysis/draw_architecture', 'analysis/get_flops',
        'examples/classify_sequences',
    ],
)  # fmt: skip
def test_a_mistyped_option_of_any_tool_is_one_line(tool, capsys):
    main = runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'))['main']
    assert run_tool(lambda _: main(['--no-such-option'])) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1 and '--help' in error


def test_an_arch_that_is_no_dict_is_one_line(capsys):
    main = runpy.run_path(str(ROOT / 'tools' / 'convert_checkpoint.py'))['main']
    assert run_tool(lambda _: main(['a.pth', 'b.pth', '--arch', "{'depths': (2"])) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --arch {'depths'") and error.count('\n') == 1


@pytest.mark.long
def test_several_processes_train_and_test_without_a_gpu(data, tmp_path):
    torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    options = ['--launcher', 'pytorch', '--data-root', data, '--work-dir', tmp_path]
    sync = ['model.decode_head.norm_cfg.type=SyncBN']
    result = run(*torchrun, ROOT / 'tools/train.py', CONFIG, *options, *SMALL, *sync, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert 'SyncBN runs on GPUs only' in log_of(tmp_path)
    out = tmp_path / 'out'
    options += ['--out', out]
    result = run(
        *torchrun, ROOT / 'tools/test.py', CONFIG, tmp_path / 'iter_2.pth', *options, *SMALL,
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(list(out.iterdir())) == 3
