"""Parameters of full models: right, and the documentation's table is what the tool prints."""

import runpy
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from clustr_mm.analysis.parameters import count_parameters

for library in ('mmdet', 'mmseg', 'mmpose', 'mmpretrain'):
    pytest.importorskip(library)

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
TOOL = runpy.run_path(str(ROOT / 'tools' / 'analysis' / 'count_params.py'))


@pytest.mark.slow
def test_the_documentation_holds_what_the_tool_prints(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TOOL['main']([])
    printed = capsys.readouterr().out
    assert (ROOT / 'docs' / 'models.md').read_text() == printed, (
        'a model has changed: python tools/analysis/count_params.py > docs/models.md'
    )
    rows = [line for line in printed.splitlines() if line.startswith('| `configs/')]
    assert len(rows) == len(list(CONFIGS.glob('mm*/*.py')))


@pytest.mark.parametrize(
    'name', ['mmseg/upernet_clustr_pvtb0_mini', 'mmdet/mask_rcnn_clustr_t_mini']
)
def test_parts_are_those_of_the_model_that_trains(name):
    cfg = Config.fromfile(str(CONFIGS / f'{name}.py'))
    counted = count_parameters(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    parts = {key: sum(p.numel() for p in part.parameters()) for key, part in model.named_children()}
    assert counted.total == sum(parts.values())
    assert counted.backbone == parts['backbone'] and counted.neck == parts.get('neck', 0)
    assert counted.heads == sum(n for key, n in parts.items() if key.endswith('head')) > 0


def test_given_configs_alone_are_counted(capsys):
    path = str(CONFIGS / 'mmpose' / 'topdown_clustr_t_wholebody_256x192.py')
    TOOL['main']([path])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f'<!-- python tools/analysis/count_params.py {path} -->'
    assert [line for line in lines if '.py`' in line and '|' in line] == [lines[-1]]


def test_a_config_without_a_model_is_named():
    path = str(CONFIGS / '_base_' / 'datasets' / 'ade20k.py')
    with pytest.raises(ValueError, match='ade20k.py has no model with a backbone'):
        TOOL['main']([path])
