"""mmengine's own loading of weights, made as careful as ours."""

import os

import pytest
import torch
from mmengine.runner.checkpoint import CheckpointLoader

from clustr_mm.engine.loading import use_safe_loading
from clustr_mm.weights.files import CheckpointError, save_checkpoint


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_mmengine_reads_as_carefully(tmp_path, monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    use_safe_loading()
    path = tmp_path / 'x.pth'
    torch.save({'state_dict': {'a': torch.ones(2)}, 'meta': Evil(tmp_path / 'ran')}, path)
    with pytest.raises(CheckpointError, match='mkdir'):
        CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    with pytest.raises(CheckpointError, match='no_such_name'):
        CheckpointLoader.load_checkpoint('open-mmlab://no_such_name')
    assert not (tmp_path / 'ran').exists()
    save_checkpoint({'a': torch.ones(2)}, path)
    loaded = CheckpointLoader.load_checkpoint(str(path))
    assert torch.equal(loaded['state_dict']['a'], torch.ones(2))
