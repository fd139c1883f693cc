"""The tools' runner: what it loads, and what of it."""

import contextlib
import itertools
import os
from fractions import Fraction

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.fileio.backends import prefix_to_backends
from mmengine.model import BaseModel
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint
from torch import nn
from torch.utils.data import DataLoader

from clustr_mm.engine import UserError, checkpoints, explain  # noqa: F401 - it registers
from clustr_mm.engine.options import reading_safely
from clustr_mm.engine.runner import ToolRunner
from clustr_mm.weights.files import CheckpointError

_RUNS = itertools.count()


class Line(BaseModel):
    """A model of one layer, so that a run takes no time."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)

    def forward(self, inputs, mode='loss'):
        return dict(loss=self.layer(inputs).square().mean())


def make_runner(folder, width=3, model=None, **more):
    return ToolRunner(
        model=model or Line(width),
        work_dir=str(folder),
        experiment_name=f'run{next(_RUNS)}',  # runs of one second share their log otherwise
        train_dataloader=DataLoader([dict(inputs=torch.ones(width))] * 8, batch_size=2),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=dict(type='SafeCheckpointHook', interval=1, by_epoch=False)),
        **more,
    )


def test_checkpoints_are_whole_and_leave_nothing_beside_them(tmp_path):
    make_runner(tmp_path).train()
    files = {name for name in os.listdir(tmp_path) if os.path.isfile(tmp_path / name)}
    assert {'iter_1.pth', 'iter_2.pth', 'last_checkpoint'} <= files
    assert not [name for name in files if name.endswith('.part')]


@pytest.mark.slow
def test_full_disk_stops_in_one_line_and_the_checkpoint_before_stays(tmp_path):
    # Whatever is written through this name meets a device without room.
    os.symlink('/dev/full', tmp_path / 'iter_2.pth.part')
    with pytest.raises(UserError, match='No space left on device.*--resume .*iter_1.pth'):
        make_runner(tmp_path).train()
    assert not os.path.lexists(tmp_path / 'iter_2.pth')
    assert not os.path.lexists(tmp_path / 'iter_2.pth.part')
    assert 'state_dict' in torch.load(tmp_path / 'iter_1.pth', weights_only=False)


def test_resume_goes_on_where_the_run_stopped(tmp_path):
    make_runner(tmp_path).train()
    runner = make_runner(tmp_path, resume=True)
    runner._train_loop['max_iters'] = 3
    runner.train()
    assert runner.iter == 3
    assert (tmp_path / 'iter_3.pth').is_file()


def log_of(runner):
    with open(os.path.join(runner._log_dir, f'{runner.timestamp}.log')) as file:
        return file.read()


def test_load_from_takes_what_fits_and_says_what_does_not(tmp_path):
    weights = dict(**{'layer.bias': torch.tensor([7.0]), 'layer.weight': torch.ones(1, 5)}, new=1.0)
    weights['new'] = torch.zeros(1)
    torch.save(dict(state_dict=weights), tmp_path / 'a.pth')
    runner = make_runner(tmp_path / 'b', load_from=str(tmp_path / 'a.pth'))
    runner.load_or_resume()
    assert runner.model.layer.bias.item() == 7
    log = log_of(runner)
    assert 'size mismatch for layer.weight' in log and 'new' in log


def test_a_test_or_a_resumption_wants_every_weight(tmp_path):
    make_runner(tmp_path / 'a').train()
    path = str(tmp_path / 'a' / 'iter_2.pth')
    with pytest.raises(CheckpointError, match='layer.weight'):
        make_runner(tmp_path / 'b', width=4, load_from=path, resume=True).train()
    loader = DataLoader([dict(inputs=torch.ones(4))])
    testing = dict(test_cfg=dict(), test_dataloader=loader, test_evaluator=dict(type='DumpResults'))
    testing['test_evaluator']['out_file_path'] = str(tmp_path / 'out.pkl')
    with pytest.raises(CheckpointError, match='layer.weight'):
        make_runner(tmp_path / 'c', width=4, load_from=path, **testing).test()


def test_a_run_goes_on_from_a_storage_that_mmengine_knows(tmp_path, monkeypatch):
    class Bucket(LocalBackend):
        """Files of a folder, by addresses as S3 has them."""

        @contextlib.contextmanager
        def get_local_path(self, filepath):
            yield str(tmp_path / 'a' / filepath.rpartition('/')[2])

    monkeypatch.setitem(prefix_to_backends, 'pail', Bucket)
    make_runner(tmp_path / 'a').train()
    runner = make_runner(tmp_path / 'b', load_from='pail://runs/iter_1.pth', resume=True)
    runner.train()
    assert runner.iter == 2
    assert 'Load checkpoint from pail://runs/iter_1.pth' in log_of(runner)


def test_a_users_own_reader_of_a_scheme_comes_first_and_runs_no_files_code(tmp_path, monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    asked = []

    @CheckpointLoader.register_scheme(prefixes='s3://')
    def read(filename, map_location=None):
        asked.append(filename)
        path = tmp_path / filename.rpartition('/')[2]
        return torch.load(path, map_location, weights_only=False)

    before = dict(CheckpointLoader._schemes)
    torch.save(dict(state_dict=Line().state_dict()), tmp_path / 'plain.pth')
    torch.save(dict(state_dict=Line().state_dict(), more=Fraction(1, 2)), tmp_path / 'more.pth')
    runner = make_runner(tmp_path / 'a', load_from='s3://bucket/plain.pth')
    with reading_safely(trusted=False):
        runner.load_or_resume()
        assert load_checkpoint(Line(), 's3://bucket/plain.pth'), "mmengine's own loading"
        with pytest.raises(Exception) as error:
            runner.load_checkpoint('s3://bucket/more.pth')
    assert '--trust-checkpoint' in explain(error.value)
    with reading_safely(trusted=True):
        runner.load_checkpoint('s3://bucket/more.pth')
    assert asked == [f's3://bucket/{name}.pth' for name in ('plain', 'plain', 'more', 'more')]
    assert before == CheckpointLoader._schemes, "and after our tool's run as before"


def test_a_backbone_of_which_nothing_matched_is_one_warning(tmp_path):
    class WithBackbone(Line):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Linear(2, 2)

    torch.save(dict(state_dict=Line().state_dict()), tmp_path / 'a.pth')
    runner = make_runner(tmp_path / 'b', model=WithBackbone(), load_from=str(tmp_path / 'a.pth'))
    runner.load_or_resume()
    assert log_of(runner).count('no weight of this backbone') == 1


def test_resume_from_weights_alone_is_refused(tmp_path):
    path = str(tmp_path / 'weights.pth')
    torch.save(dict(state_dict=Line().state_dict()), path)
    with pytest.raises(UserError, match='no training state'):
        make_runner(tmp_path, load_from=path, resume=True).train()


@pytest.mark.parametrize('content', [b'', b'text', b'PK\x03\x04 cut short'])
def test_file_that_is_no_checkpoint_stops_the_run(tmp_path, content):
    path = tmp_path / 'file.pth'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='file.pth'):
        make_runner(tmp_path, load_from=str(path)).train()


def test_a_backbone_that_knows_no_prefix_starts_from_all_of_its_weights(tmp_path):
    """mmdet's PVTv2 has an init_cfg of its own kind, and passes over what it does not know."""
    backbones = pytest.importorskip('mmdet.models.backbones')

    class Model(Line):
        def __init__(self):
            super().__init__()
            self.backbone = backbones.PyramidVisionTransformerV2(embed_dims=8, num_layers=[1] * 4)

    start = {f'backbone.{key}': value for key, value in Model().backbone.state_dict().items()}
    torch.save(dict(state_dict=start), tmp_path / 'start.pth')
    more = dict(model=Model(), cfg=Config(dict(init_from=str(tmp_path / 'start.pth'))))
    runner = make_runner(tmp_path, **more)
    runner.train()
    for key, value in runner.model.backbone.state_dict().items():
        assert torch.equal(value, start[f'backbone.{key}'])
    assert 'random weights' not in log_of(runner)
    # Going on, it is the checkpoint's.
    torch.save(dict(state_dict={k: v + 1 for k, v in start.items()}), tmp_path / 'start.pth')
    more['model'] = Model()
    again = make_runner(tmp_path, resume=True, **more)
    again.train()
    assert torch.equal(again.model.backbone.state_dict()[key], value)


def test_random_weights_are_said_in_one_line(tmp_path):
    runner = make_runner(tmp_path)
    runner.train()
    lines = [line for line in log_of(runner).splitlines() if 'random weights' in line]
    assert len(lines) == 1
    assert '--init-from' in lines[0]
