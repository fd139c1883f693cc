"""A user's mistake is one line, however deep it happened; a bug stays a bug."""

import errno
import signal
from importlib.util import find_spec

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from torch.utils.data import DataLoader, Dataset
from toy_run import make_config, run

from clustr_mm import ClusTR
from clustr_mm.engine import UserError, explain, run_tool, train
from clustr_mm.engine.errors import explained


class Broken(Dataset):
    """Meets a damaged file in a data-loading process."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError('images/7.jpg is truncated')


def raised(function) -> Exception:
    with pytest.raises(Exception) as error:
        function()
    return error.value


def test_damaged_file_is_named_out_of_a_loading_process():
    error = raised(lambda: next(iter(DataLoader(Broken(), num_workers=1))))
    assert 'Traceback' in str(error)
    assert explain(error) == 'images/7.jpg is truncated'


def test_unknown_arch_is_explained():
    error = raised(lambda: ClusTR(arch='huge'))
    assert "'huge'" in explain(error)
    assert "'small'" in explain(error)


def test_unknown_config_key_is_explained_with_the_near_one():
    cfg = Config(dict(model=dict(type='ClusTR', recluster_evry=0)))
    error = raised(lambda: MODELS.build(cfg.model))
    assert explain(error, cfg) == (
        "ClusTR has no option 'recluster_evry'; did you mean 'recluster_every'?"
    )


def test_unknown_type_is_explained():
    cfg = Config(dict(model=dict(type='ClusTRR')))
    error = raised(lambda: MODELS.build(cfg.model))
    assert "'ClusTRR'" in explain(error, cfg)
    assert "'ClusTR'" in explain(error, cfg)


def test_full_disk_is_explained():
    error = OSError(errno.ENOSPC, 'No space left on device', 'runs/log')
    assert explain(error) == 'No space left on device: runs/log'


def test_a_data_set_without_a_sample_is_explained():
    class Empty(BaseDataset):
        """Whose img_suffix is that of no file."""

        def load_data_list(self):
            return []

    assert 'no sample is left: are classes, filter_cfg and img_suffix' in explain(raised(Empty))


def test_the_cause_is_found_behind_a_librarys_exception():
    try:
        try:
            raise UserError('the mend')
        except UserError as error:
            raise RuntimeError('class X in y.py: ...') from error
    except RuntimeError as error:
        assert explain(error) == 'the mend'


def test_bugs_are_not_explained_away():
    cfg = Config(dict(model=dict(type='ClusTR')))
    assert explain(raised(lambda: [][1]), cfg) is None
    assert explain(raised(lambda: dict(a=1)['b']), cfg) is None
    assert explain(TypeError("f() got an unexpected keyword argument 'x'"), cfg) is None
    with pytest.raises(ValueError), explained(cfg):
        int('x')


def test_what_a_data_set_asserts_of_the_users_files_is_shown(tmp_path):
    datasets = pytest.importorskip('mmpretrain.datasets')
    (tmp_path / 'cat').mkdir()
    (tmp_path / 'cat' / '1.jpg').touch()
    classes = dict(classes=('cat', 'dog'))
    error = raised(lambda: datasets.CustomDataset(data_root=str(tmp_path), metainfo=classes))
    assert 'number of subfolders (1)' in explain(error)


def test_what_a_library_says_of_a_config_is_one_line(tmp_path):
    cfg = make_config(tmp_path, epochs=False)
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    if not torch.cuda.is_available():
        assert 'training on gpu' in explain(raised(lambda: run(cfg)))
    cfg = make_config(tmp_path, epochs=False)
    cfg.param_scheduler = dict(type='LinearLR', begin=5, end=5, by_epoch=False)
    line = explain(raised(lambda: run(cfg)))
    assert 'begins when the training is over' in line and 'begin=5, end=5' in line
    if find_spec('wandb') is None:
        cfg = make_config(tmp_path, epochs=False)
        cfg.visualizer = dict(type='Visualizer', vis_backends=[dict(type='WandbVisBackend')])
        assert 'pip install wandb' in explain(raised(lambda: run(cfg)))


def test_weights_by_mmsegs_old_key_are_pointed_to_init_cfg():
    cfg = Config(dict(model=dict(type='ClusTR', pretrained='a.pth')))
    line = explain(raised(lambda: MODELS.build(cfg.model)), cfg)
    assert 'model.pretrained=None' in line and 'init_cfg' in line


@pytest.mark.parametrize('place', ['a file', 'a file/below'])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, place):
    (tmp_path / 'a file').touch()
    line = explain(raised(lambda: (tmp_path / place).mkdir()))
    assert 'a file' in line and '\n' not in line


@HOOKS.register_module()
class Interrupts(Hook):
    """Ctrl-C after the fifth step."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 4:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupted_training_says_how_it_goes_on(tmp_path, capsys):
    pytest.importorskip('mmseg')
    cfg = make_config(tmp_path / 'run', epochs=False)
    cfg.default_scope = 'mmseg'  # whose own script is run
    cfg.custom_hooks = [dict(type='Interrupts', priority='LOWEST')]
    cfg.dump(tmp_path / 'toy.py')
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & has it ignored
    try:
        assert run_tool(lambda _: train([str(tmp_path / 'toy.py'), '--device', 'cpu'])) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    (line,) = [each for each in capsys.readouterr().err.splitlines() if 'interrupted' in each]
    assert line == 'error: interrupted; --resume goes on from the newest checkpoint'
    assert (tmp_path / 'run' / 'iter_5.pth').is_file()


def test_an_interruption_elsewhere_is_one_word(capsys):
    def draw(_):
        raise KeyboardInterrupt

    assert run_tool(draw) == 130
    assert capsys.readouterr().err == 'error: interrupted\n'
