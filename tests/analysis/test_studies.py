"""Studies: what their files say, what their runs leave, and the table that comes of it."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from clustr_mm.analysis.parameters import build_model
from clustr_mm.analysis.scores import best_rate, differences, plot, summary, table, write_tables
from clustr_mm.analysis.study import config_of, fingerprint, load_study
from clustr_mm.analysis.trials import Record, Trials
from clustr_mm.engine.config import load_config
from clustr_mm.engine.errors import UserError
from clustr_mm.models import ClusterAttention, Clusters
from clustr_mm.weights.files import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted(ROOT.glob('tools/analysis/studies/[!_]*.py'))
FROM_SCRATCH = [path for path in STUDIES if not path.stem.startswith(('warm_start', 'swapped'))]
MAIN = runpy.run_path(str(ROOT / 'tools' / 'analysis' / 'compare.py'))['main']
SIDE_BY_SIDE = runpy.run_path(str(ROOT / 'tools' / 'analysis' / 'side_by_side.py'))['main']
MINI = """
config = '{root}/configs/mmpretrain/clustr_t_mini.py'
score = 'accuracy/top1'
shape = (32, 32)
seeds = (3,)
rates = (1e-3,)
rate_search = {{'train_cfg.max_epochs': 1}}
small = dict(
    _delete_=True,
    embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 1), mlp_ratios=(2, 2), reductions=(4, 1),
)
options = {{
    'train_cfg.max_epochs': 2,
    'train_dataloader.batch_size': 10,
    'param_scheduler.0.end': 1,
    'model.backbone.arch': small,
    'model.backbone.out_indices': (1,),
    'model.head.in_channels': 16,
}}
rows = dict(
    clustr=dict(rate=2e-3),
    grid=dict(
        options={{
            'model.backbone.type': 'clustr_mm.analysis.variants.ClusTRVariant',
            'model.backbone.attention': 'grid',
        }}
    ),
)
"""


@pytest.fixture
def mini(tmp_path, monkeypatch):
    """A study of two tiny classifiers, and its data."""
    monkeypatch.chdir(ROOT)
    path = tmp_path / 'tiny.py'
    path.write_text(MINI.format(root=ROOT))
    return path


def record(study, row, seed, score, **other):
    (run,) = (each for each in study.runs(row, 1e-3) if each.seed == seed)
    facts = dict(
        study=study.name, row=row, seed=seed, rate=1e-3, split='test', score=score, metrics={},
        parameters=3_500_000, gmac=1.5, train_seconds=300.0, image_seconds=0.2,
        decides=fingerprint(config_of(study, run)), config=study.config, options={},
        init_from=None, measured=dict(date='2026-11-29'),
    )  # fmt: skip
    return Record(**{**facts, **other})


@pytest.mark.slow
@pytest.mark.parametrize('path', FROM_SCRATCH, ids=lambda path: path.stem)
def test_every_row_of_every_study_can_be_built_and_counted(path, monkeypatch):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    from clustr_mm.analysis.flops import count_macs
    from clustr_mm.analysis.parameters import build_empty

    monkeypatch.chdir(ROOT)
    study = load_study(str(path))
    floors = set() if path.stem == 'pretrain' else {'blind', 'mean'}
    assert {'clustr', 'pvtv2_b0', 'resnet18', *floors} <= study.rows.keys()
    macs = {}
    for row in study.rows:
        runs = [*study.search(row), *study.runs(row, 1e-3)]
        assert len({run.name for run in runs}) == len(runs)
        parts = count_macs(build_empty(config_of(study, runs[-1])), *study.shape)
        macs[row] = sum(kinds.total() for kinds in parts.values())
    if floors:
        assert macs['blind'] < macs['mean'] < macs['clustr']
    assert 'dense' not in macs or macs['one_scale'] < macs['clustr'] < macs['dense']


@pytest.mark.parametrize('name', ['swapped_camvid', 'warm_start_camvid', 'warm_start_tokens'])
def test_rows_that_are_tested_without_training_have_the_weights_they_are_given(name, monkeypatch):
    pytest.importorskip('mmseg')
    from clustr_mm.analysis.parameters import build_empty

    monkeypatch.chdir(ROOT)
    study = load_study(f'tools/analysis/studies/{name}.py')
    shapes = {}
    for row in study.rows:
        if row.endswith(('_1', '_5', '_16')):  # trained on
            continue
        model = build_empty(config_of(study, study.runs(row, None)[0]))
        shapes[row.removesuffix('_0')] = {
            key: value.shape for key, value in model.state_dict().items()
        }
    if name == 'swapped_camvid':
        assert all(each == shapes['clustr'] for each in shapes.values())
    else:  # tools/analysis/warm_start.py makes the mean another network
        for row, each in shapes.items():
            if row != 'teacher':
                assert each == shapes['mean' if row.startswith('mean') else 'none']
        assert shapes['mean'] != shapes['none']


def test_a_class_is_said_by_every_pixel():
    from clustr_mm.analysis.every_pixel import LabelEveryPixel

    results = LabelEveryPixel()(dict(img=torch.zeros(4, 6, 3).numpy(), gt_label=3))
    assert results['gt_seg_map'].shape == (4, 6) and (results['gt_seg_map'] == 3).all()
    assert results['gt_seg_map'].dtype == 'uint8' and results['seg_fields'] == ['gt_seg_map']


@pytest.mark.slow
def test_a_study_is_run_recorded_and_not_run_again(mini, tmp_path, capsys, monkeypatch):
    pytest.importorskip('mmpretrain')
    make = runpy.run_path(str(ROOT / 'tools' / 'make_mini_data.py'))['main']
    data = str(tmp_path / 'data')
    make([data, '--layout', 'imagenet', '--train', '20', '--val', '10', '--size', '32', '32'])
    capsys.readouterr()
    arguments = [str(mini), '--data-root', data, '--records', str(tmp_path / 'records')]
    arguments += ['--work-dir', str(tmp_path / 'work'), '--rows', 'clustr']

    MAIN([*arguments, '--jobs', '2', '--out', str(tmp_path / 'out')])
    out, progress = capsys.readouterr()
    assert '1 of 1: clustr_seed3: accuracy/top1' in progress and 'left: 0:00:00' in progress
    heading, _, line = out.splitlines()
    assert heading.count('|') == line.count('|') == 9 and line.split()[1] == 'clustr'
    file = tmp_path / 'records' / 'tiny' / 'clustr_seed3.json'
    said = Record(**json.loads(file.read_text()))
    assert (said.split, said.seed, said.rate) == ('test', 3, 2e-3)
    assert 0 <= said.score == said.metrics['accuracy/top1'] <= 100
    assert said.train_seconds > 0 < said.image_seconds < 60 and said.parameters > 1000
    assert said.measured['command'].startswith('python ') and said.measured['threads'] == 1
    assert sorted(each.name for each in (tmp_path / 'out').iterdir()) == [
        'cost.png', 'table.csv', 'table.md',
    ]  # fmt: skip
    assert (tmp_path / 'out' / 'table.md').read_text() == out
    trained = load_config(str(tmp_path / 'work' / 'tiny' / 'clustr_seed3' / 'config.py'))
    assert tuple(trained.model.backbone.arch.reductions) == (4, 1)
    assert trained.optim_wrapper.optimizer.lr == 2e-3 and trained.randomness.seed == 3

    # What it found is drawn beside the truth, of the first images by name.
    drawn = ['--rows', 'clustr', '--seed', '3', '--images', '2', '--out', str(tmp_path / 'drawn')]
    folders = [arguments[0], '--data-root', data, '--work-dir', str(tmp_path / 'work')]
    SIDE_BY_SIDE([*folders, *drawn])
    said_now = capsys.readouterr().out.splitlines()
    files = [Path(line) for line in said_now if line.endswith('.png')]
    first = sorted(path.stem for path in Path(data, 'val').rglob('*.*'))[:2]
    assert [file.stem for file in files] == [f'1_{first[0]}', f'2_{first[1]}']
    width, height = Image.open(files[0]).size
    assert width == pytest.approx(3 * height, rel=0.1), 'truth, prediction, clusters'
    for wrong, message in (
        (['--rows', 'clus'], "--rows clus: not in the study; did you mean 'clustr'"),
        (['--rows', 'clustr', '--seed', '4'], '--seed 4: row clustr has 3'),
        (['--rows', 'clustr', '--seed', '3', '--images', '0'], '--images is 0; use at least 1'),
        (['--rows', 'grid', '--seed', '3'], 'let compare.py train the row grid first'),
    ):
        with pytest.raises(UserError, match=message):
            SIDE_BY_SIDE([*folders, *wrong])

    # Done is done: neither the work folder nor the data are looked at.
    monkeypatch.setattr('clustr_mm.analysis.trials._run_tool', lambda *_: pytest.fail('ran again'))
    MAIN(arguments)
    assert capsys.readouterr().out == out
    # Trained is trained: only the test is left, and that fails here.
    file.unlink()
    with pytest.raises(pytest.fail.Exception, match='ran again'):
        MAIN(arguments)
    assert (tmp_path / 'work' / 'tiny' / 'clustr_seed3' / 'trained.json').is_file()

    # The record of another recipe is no record of this one.
    file.write_text(json.dumps({**said.__dict__, 'decides': 'another'}))
    with pytest.raises(UserError, match='of another recipe.*remove it to run that anew'):
        MAIN(arguments)


@pytest.mark.slow
def test_weights_of_a_seed_are_tested_without_training(mini, tmp_path, capsys):
    pytest.importorskip('mmpretrain')
    make = runpy.run_path(str(ROOT / 'tools' / 'make_mini_data.py'))['main']
    counts = ['--train', '10', '--val', '10', '--size', '32', '32']
    make([str(tmp_path / 'data'), '--layout', 'imagenet', *counts])
    options = "'load_from': '{folder}/start_{{seed}}.pth', 'train_cfg.max_epochs': 0"
    row = f'dict(seeds=(4, 5), rate=0.0, options={{{options.format(folder=tmp_path)}}})'
    mini.write_text(mini.read_text().replace('dict(rate=2e-3)', row))
    study = load_study(str(mini))
    runs = study.runs('clustr', 0.0)
    assert [run.name for run in runs] == ['clustr_seed4', 'clustr_seed5']
    trials = Trials(study, tmp_path / 'records', tmp_path / 'work', str(tmp_path / 'data'))
    weights = build_model(config_of(study, runs[1])).state_dict()
    for key in ('head.fc.weight', 'head.fc.bias'):
        weights[key] = torch.zeros_like(weights[key])
    weights['head.fc.bias'][1] = 1.0  # it says one class to all
    torch.save({'state_dict': weights}, tmp_path / 'start_5.pth')
    record = trials.do(runs[1])
    assert record.train_seconds == 0 and record.score == pytest.approx(10)
    with pytest.raises(UserError, match='start_4'):
        trials.do(runs[0])
    # Trained on, they are where it starts.
    on = {**study.rows['clustr']['options'], 'train_cfg.max_epochs': 1}
    study = replace(study, rows={'on': dict(seeds=(5,), rate=0.0, options=on)})
    trials = Trials(study, tmp_path / 'records', tmp_path / 'work', str(tmp_path / 'data'))
    record = trials.do(study.runs('on', 0.0)[0])
    assert record.train_seconds > 0 and record.score == pytest.approx(10)
    log = (tmp_path / 'work' / 'tiny' / 'on_seed5' / 'train.log').read_text()
    assert f'Load checkpoint from {tmp_path}/start_5.pth' in log
    capsys.readouterr()
    study = replace(study, rows={'clustr': dict(rate=0.0, options={'train_cfg.max_epochs': 0})})
    with pytest.raises(UserError, match='trains for 0 epochs; give it weights as load_from'):
        trials.do(study.runs('clustr', 0.0)[0])


@pytest.mark.slow
def test_weights_of_the_warm_start(tmp_path, capsys, monkeypatch):
    """Each file is what its name says, and the model of its row takes it whole."""
    pytest.importorskip('mmpretrain')
    make = runpy.run_path(str(ROOT / 'tools' / 'make_mini_data.py'))['main']
    make([str(tmp_path / 'data'), '--layout', 'imagenet', '--train', '80', '--val', '10'])
    tool = runpy.run_path(str(ROOT / 'tools' / 'analysis' / 'warm_start.py'))
    monkeypatch.setitem(tool['main'].__globals__['NUMBERS'], 'sigma32', 8)
    monkeypatch.setitem(tool['main'].__globals__['NUMBERS'], 'full256', 12)
    monkeypatch.chdir(ROOT)
    study = load_study('tools/analysis/studies/warm_start.py')
    torch.manual_seed(0)
    cfg = config_of(study, study.runs('teacher', 0.0)[0])
    weights = build_model(cfg).state_dict() | {'neck.weight': torch.ones(2)}
    for seed in (4, 5):
        torch.save({'state_dict': weights}, tmp_path / f'teacher_{seed}.pth')
    arguments = [str(tmp_path / 'teacher_{seed}.pth'), str(tmp_path / 'data' / 'train')]
    out = tmp_path / 'out'
    tool['main']([*arguments, '--out', str(out), '--seeds', '4', '5', '--leave-out', '2'])
    assert 'seed 5: none, sigma32, full256, drawn, random_kv, mean in' in capsys.readouterr().out
    made = {
        path.stem: read_checkpoint(str(path))['state_dict'] for path in out.glob('*.safetensors')
    }
    for each in made.values():
        assert torch.equal(each.pop('neck.weight'), weights['neck.weight'])
    value = 'backbone.stages.1.blocks.0.attn.kvs.1.weight'
    assert torch.equal(made['none_4'][value], made['none_5'][value])
    for name in ('drawn', 'sigma32', 'full256', 'random_kv'):
        assert not torch.equal(made[f'{name}_4'][value], made[f'{name}_5'][value])
    for name in ('none', 'random_kv', 'mean'):
        model = build_model(config_of(study, study.runs(f'{name}_0', 0.0)[0]))
        model.load_state_dict(made[f'{name}_4'], strict=True)
    # The mean is what cluster attention gives with uniform weights and every token for itself.
    block = model.backbone.stages[0].blocks[0]
    whole = ClusterAttention(32, 1, reduction=8)
    start = 'backbone.stages.0.blocks.0.attn.'
    own = {k.removeprefix(start): v for k, v in made['full256_4'].items() if k.startswith(start)}
    whole.load_state_dict({k: v * 0 if k.startswith('q.') else v for k, v in own.items()})
    x = torch.randn(2, 48, 32)
    single = Clusters((None, None), (48, 48))
    torch.testing.assert_close(block.attn(x), whole(x, clusters=single), rtol=0, atol=1e-5)
    # The pictures at each class's end are not looked at.
    last = sorted((tmp_path / 'data' / 'train').glob('*'))[0]
    with pytest.raises(UserError, match='has 8 pictures beside those left out, not 12'):
        tool['main'](
            [arguments[0], str(last), '--out', str(out), '--seeds', '4', '--leave-out', '0']
        )
    for path in sorted(last.iterdir())[-2:]:
        path.write_bytes(b'no picture')
    tool['main']([*arguments, '--out', str(out), '--seeds', '4', '--leave-out', '2'])
    with pytest.raises(UserError, match='folder nowhere does not exist; give one of'):
        tool['main']([arguments[0], 'nowhere', '--out', str(out), '--seeds', '4'])
    monkeypatch.setitem(tool['main'].__globals__['NUMBERS'], 'sigma32', 61)
    with pytest.raises(UserError, match='has 60 pictures beside those left out, not 61'):
        tool['main']([*arguments, '--out', str(out), '--seeds', '4', '--leave-out', '2'])


@pytest.mark.slow
def test_a_run_that_fails_says_where_its_log_is(mini, tmp_path):
    pytest.importorskip('mmpretrain')
    study = load_study(str(mini))
    trials = Trials(study, tmp_path / 'records', tmp_path / 'work', str(tmp_path / 'nowhere'))
    with pytest.raises(UserError, match=r'train\.log ends with: error: .*nowhere'):
        trials.do(study.runs('clustr', None)[0])


def test_rates_are_chosen_on_validation_and_scores_kept_apart(mini):
    study = load_study(str(mini))
    assert study.search('clustr') == [] and best_rate(study, [], 'clustr') == 2e-3
    (run,) = study.search('grid')
    assert run.name == 'grid_rate0.001' and run.options['train_cfg.max_epochs'] == 1
    study = replace(study, rates=(1e-3, 2e-3))
    tried = [
        record(study, 'grid', 3, score, rate=rate, split='val')
        for rate, score in ((1e-3, 40.0), (2e-3, 60.0))
    ]
    assert best_rate(study, tried[:1], 'grid') is None, 'not before all are tried'
    assert best_rate(study, tried, 'grid') == 2e-3
    text = table(study, [], tried)
    assert 'validation split by rate' in text and text.splitlines()[-1].split()[3::2] == [
        '40.00',
        '60.00',
    ]
    searched = config_of(study, study.search('grid')[0])
    assert searched.test_dataloader.dataset.data_prefix == 'val'
    assert searched.val_dataloader is None, 'nothing is validated on the way'


def test_table_has_mean_and_sample_deviation(mini, tmp_path):
    study = replace(load_study(str(mini)), seeds=(0, 1, 2), factor=100.0)
    records = [record(study, 'grid', seed, 0.5 + seed / 100) for seed in (2, 0, 1)]
    records.append(record(study, 'clustr', 0, 0.6, train_seconds=None))
    lines = summary(study, records)
    assert [line['row'] for line in lines] == ['clustr', 'grid'], "in the study's order"
    assert lines[1]['score'] == pytest.approx(51) and lines[1]['deviation'] == pytest.approx(1)
    assert lines[0]['deviation'] is None and lines[0]['train_seconds'] is None
    text = table(study, lines, [])
    assert '51.00 ± 1.00' in text and '50.00, 51.00, 52.00' in text
    assert 'seeds alone' not in text, 'rows of one seed and of three'
    write_tables(tmp_path / 'out', study, lines, [])
    plot(tmp_path / 'out', study, lines)
    assert (tmp_path / 'out' / 'cost.png').stat().st_size > 5000


def test_means_are_held_against_what_the_seeds_alone_would_make_of_them():
    lines = [
        dict(score=score, deviation=deviation, seeds='0:1.00 1:2.00 2:3.00 3:4.00')
        for score, deviation in ((1.0, 0.1), (2.0, 0.5), (3.0, 0.7))
    ]
    assert differences(lines) == pytest.approx((1.0, 0.25))
    assert differences(lines[:2]) is None, 'two rows have no deviation to speak of'
    assert differences([*lines[:2], dict(lines[2], seeds='0:3.00')]) is None


def test_fingerprint_is_of_what_decides_a_score_alone(mini):
    study = load_study(str(mini))
    (run,) = study.runs('grid', 1e-3)
    cfg = config_of(study, run)
    same = config_of(study, replace(run, seed=4), '/somewhere/else')
    same.default_hooks.logger.interval = 7
    assert fingerprint(same) == fingerprint(cfg)
    for key, value in (
        ('optim_wrapper.optimizer.lr', 2e-3),
        ('model.backbone.attention', 'random'),
        ('train_dataloader.batch_size', 11),
    ):
        other = config_of(study, replace(run, options={**run.options, key: value}, rate=None))
        assert fingerprint(other) != fingerprint(cfg)


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ("score = 'accuracy/top1'", '', 'has no score; give it one'),
        ('seeds = (3,)', 'seeds = 3', 'seeds is 3, of another kind'),
        ('rates =', 'rate =', "has 'rate'; did you mean 'rates'"),
        ('clustr=dict(rate=2e-3)', 'clustr=dict(lr=2e-3)', "no key 'lr'"),
        ('clustr=dict(rate=2e-3)', "clustr=dict(rate='gird')", "takes its rate from 'gird'"),
        ('clustr=dict', "**{'a b': dict()}, clustr=dict", "row 'a b'"),
    ],
)
def test_mistakes_in_a_study_are_named(mini, old, new, message):
    mini.write_text(mini.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        load_study(str(mini))


def test_mistakes_on_the_command_line_are_named(mini, tmp_path):
    for arguments, message in (
        (['no.py'], 'study no.py does not exist'),
        ([str(mini), '--jobs', '0'], '--jobs is 0'),
        ([str(mini), '--rows', 'clust'], "--rows clust: not in the study; did you mean 'clustr'"),
    ):
        with pytest.raises(UserError, match=message):
            MAIN(arguments)
    mini.write_text(mini.read_text().replace('train_cfg.max_epochs', 'train_cgf.max_epochs'))
    with pytest.raises(UserError, match="no 'train_cgf' in the config"):
        MAIN([str(mini), '--rows', 'clustr'])
    mini.write_text(MINI.format(root=ROOT).replace('_delete_=True', '_delete_=False'))
    study = load_study(str(mini))
    with pytest.raises(UserError, match='row clustr: .* You may set `_delete_=True`'):
        config_of(study, study.runs('clustr', None)[0])
