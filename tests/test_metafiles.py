"""The model index: complete, true to the configs, and read by the tools that it is for."""

import shutil
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from clustr_mm.analysis.parameters import count_parameters

ROOT = Path(__file__).resolve().parents[1]
INDEX = ROOT / 'model-index.yml'
FILES = [ROOT / name for name in yaml.safe_load(INDEX.read_text())['Import']]
MODELS = [model for file in FILES for model in yaml.safe_load(file.read_text())['Models']]
LEAVES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/mm*/*.py'))

each_model = pytest.mark.parametrize('model', MODELS, ids=lambda model: model['Name'])


def test_every_leaf_has_one_entry():
    assert sorted(model['Config'] for model in MODELS) == LEAVES
    assert FILES == [ROOT / 'configs' / name / 'metafile.yml' for name in
                     ('mmdet', 'mmseg', 'mmpose', 'mmpretrain')]  # fmt: skip


@each_model
def test_an_entry_is_true_to_its_config(model):
    cfg = Config.fromfile(str(ROOT / model['Config']))
    pytest.importorskip(cfg.default_scope)
    facts = model['Metadata']
    assert model['Name'] == Path(model['Config']).stem
    assert facts['Parameters'] == count_parameters(cfg).total
    assert facts['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    length = {
        'Epochs': cfg.train_cfg.get('max_epochs'),
        'Iterations': cfg.train_cfg.get('max_iters'),
    }
    assert {key: facts.get(key) for key in length} == length
    mini = model['Name'].endswith('_mini')
    assert (facts['Training Data'] == 'ClusTR-MM mini data set') == mini


@each_model
def test_figures_say_where_they_come_from_and_no_weights_are_claimed(model):
    assert 'Weights' not in model
    assert model['Results'], 'mim reads the results of every model'
    for result in model['Results']:
        assert set(result) == {'Task', 'Dataset', 'Metrics'}
        assert result['Dataset'] == model['Metadata']['Training Data']
        for name, value in result['Metrics'].items():
            assert name.endswith(('(paper, not reproduced here)', '(measured here)'))
            assert isinstance(value, float)


def test_the_papers_figures():
    paper = {
        (model['Name'], name.partition(' (')[0]): value
        for model in MODELS
        for result in model['Results']
        for name, value in result['Metrics'].items()
        if '(paper' in name
    }
    assert paper == {
        ('clustr_s_imagenet', 'Top 1 Accuracy'): 83.2,
        ('semfpn_clustr_s_ade20k', 'mIoU'): 48.0,
        ('upernet_clustr_s_ade20k', 'mIoU'): 49.6,
        ('topdown_clustr_s_wholebody_256x192', 'Whole AP'): 0.594,
        ('topdown_clustr_s_wholebody_256x192', 'Whole AR'): 0.697,
    }


def test_modelindex_reads_it_without_a_complaint():
    """The loader of mim and of mmpretrain's model hub."""
    loader = pytest.importorskip('modelindex.load_model_index')
    index = loader.load(str(INDEX))
    index.check(silent=False)
    index.build_models_with_collections()
    assert sorted(model.config for model in index.models) == LEAVES
    collections = {collection.name for collection in index.collections}
    for model in index.models:
        assert model.in_collection in collections
        assert model.full_model.paper['URL'].endswith('2208.13138')
        optimizer = Config.fromfile(str(ROOT / model.config)).optim_wrapper.optimizer.type
        assert optimizer in model.full_model.metadata.data['Training Techniques']
        assert [result.task for result in model.results]


def test_mmpretrains_model_hub_lists_and_builds_ours(monkeypatch):
    pytest.importorskip('mmpretrain')
    from mmpretrain.apis import ModelHub, get_model, list_models

    monkeypatch.setattr(ModelHub, '_models_dict', {})
    ModelHub.register_model_index(INDEX, config_prefix=ROOT)
    monkeypatch.setattr(ModelHub, '_ModelHub__mmpretrain_registered', True)
    names = [
        'clustr_b_imagenet',
        'clustr_pvtb0_tiny_imagenet20',
        'clustr_pvtb2_distilled_imagenet',
        'clustr_pvtb2_imagenet',
        'clustr_pvtb2_imagenet_384',
        'clustr_pvtb2_layer_decay_imagenet',
        'clustr_s_imagenet',
        'clustr_s_imagenet_384',
        'clustr_s_layer_decay_imagenet',
        'clustr_t_imagenet',
        'clustr_t_mini',
    ]
    assert list_models(task='Image Classification') == names
    model = get_model('clustr_t_mini')
    assert type(model.backbone).__name__ == 'ClusTR'


def test_mmengine_finds_a_config_in_an_installed_package(tmp_path):
    """It looks in the package's folder `.mim`, where OpenMMLab's packages carry their configs."""
    from mmengine.config.utils import _get_cfg_metainfo

    mim = tmp_path / '.mim'
    shutil.copytree(ROOT / 'configs', mim / 'configs', ignore=shutil.ignore_patterns('*.pyc'))
    shutil.copy(INDEX, mim)
    found = _get_cfg_metainfo(str(tmp_path), 'mmseg/upernet_clustr_s_ade20k.py')
    assert found['Name'] == 'upernet_clustr_s_ade20k'
    Config.fromfile(str(mim / found['Config']))
