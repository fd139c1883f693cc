"""publish_checkpoint.py: weights as others load them, with where they come from."""

import hashlib
import json
import runpy
from pathlib import Path

import pytest
import torch
from mmengine.logging import MessageHub
from safetensors import safe_open

from clustr_mm import ClusTR
from clustr_mm.weights.files import CheckpointError, load_pretrained, read_checkpoint
from clustr_mm.weights.publish import publish

TOOL = Path(__file__).parents[2] / 'tools' / 'publish_checkpoint.py'


@pytest.fixture(scope='module')
def backbone():
    return ClusTR(arch='tiny')


@pytest.fixture
def best(tmp_path, backbone):
    """What a run leaves as its best checkpoint."""
    weights = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    hub = MessageHub.get_instance('test_publish')
    path = tmp_path / 'best_coco_segm_mAP_epoch_9.pth'
    hub.update_info('best_ckpt', f'/elsewhere/{path.name}')
    hub.update_info('best_score', 0.443)
    meta = dict(
        cfg="model = dict(type='MaskRCNN')",
        epoch=9,
        iter=4500,
        seed=0,
        mmengine_version='0.10',
        dataset_meta=dict(classes=('person', 'clock')),
    )
    content = dict(
        state_dict={**weights, 'head.weight': torch.ones(2, 3)},
        meta=meta,
        message_hub=hub.state_dict(),
        optimizer=dict(state={0: torch.zeros(1000)}),
    )
    torch.save(content, path)
    return path


def metadata(path):
    with safe_open(path, framework='pt') as file:
        return file.metadata()


def test_weights_hash_and_origin(best, tmp_path, backbone):
    path = publish(str(best), str(tmp_path / 'new' / 'folder'), name='mask_rcnn')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f'mask_rcnn-{digest[:8]}.safetensors'
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    weights = read_checkpoint(path)['state_dict']
    assert torch.equal(weights['head.weight'], torch.ones(2, 3))
    assert len(weights) == 1 + len(backbone.state_dict())
    meta = metadata(path)
    assert meta['score'] == 'coco_segm_mAP 0.4430'
    assert meta['arch'] == 'tiny'
    assert 'MaskRCNN' in meta['config']
    assert json.loads(meta['classes']) == ['person', 'clock']
    assert json.loads(meta['versions'])['torch'] == torch.__version__


def test_a_backbone_starts_another_model(best, tmp_path, backbone):
    path = publish(str(best), str(tmp_path), part='backbone', score='mAP 1')
    assert metadata(path)['score'] == 'mAP 1'
    other = ClusTR(arch='tiny')
    load_pretrained(other, dict(checkpoint=str(path), prefix='backbone.'))
    key = 'stages.2.blocks.5.attn.kvs.1.weight'
    assert torch.equal(other.state_dict()[key], backbone.state_dict()[key])


def test_what_cannot_be_published_is_one_line_and_leaves_nothing(tmp_path):
    source = tmp_path / 'x.pth'
    torch.save(dict(state_dict={'head.weight': torch.ones(1)}), source)
    with pytest.raises(CheckpointError, match="'backbone.'"):
        publish(str(source), str(tmp_path / 'out'), part='backbone')
    with pytest.raises(CheckpointError, match='cannot make folder'):
        publish(str(source), str(source / 'out'))
    source.write_bytes(source.read_bytes()[:-10])
    with pytest.raises(CheckpointError):
        publish(str(source), str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


def test_command_line(best, tmp_path, capsys):
    main = runpy.run_path(str(TOOL))['main']
    main([str(best), '--out-dir', str(tmp_path), '--name', 'net', '--part', 'backbone'])
    (path,) = tmp_path.glob('net-*.safetensors')
    assert capsys.readouterr().out.startswith(f'{path}: backbone weights, ')
    main([str(path), '--show'])
    assert 'arch: tiny' in capsys.readouterr().out
