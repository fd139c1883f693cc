"""What train and test refuse before anything runs or is written."""

import pytest
from toy_run import make_config

from clustr_mm.engine import UserError, train
from clustr_mm.engine import test as evaluate  # a name that pytest does not collect


@pytest.mark.parametrize(
    ('command', 'arguments', 'changes', 'message'),
    [
        (train, [], dict(train_cfg=None), 'toy.py has no train_dataloader or train_cfg to train'),
        (train, ['--auto-scale-lr'], {}, 'toy.py has no auto_scale_lr.base_batch_size'),
        (evaluate, ['folder'], {}, "checkpoint folder is a folder, as DeepSpeed's are"),
        (evaluate, ['x.pth'], {}, 'checkpoint x.pth does not exist; check the path'),
    ],
)
def test_mistakes_are_said_in_one_line(command, arguments, changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder').mkdir()
    cfg = make_config('run', epochs=False)
    for key, value in changes.items():
        cfg[key] = value
    cfg.dump('toy.py')
    with pytest.raises(UserError, match=message) as error:
        command(['toy.py', *arguments, '--device', 'cpu'])
    assert '\n' not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {'folder', 'toy.py'}
