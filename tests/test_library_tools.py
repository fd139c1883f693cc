"""The engineer's promise: a config that has worked for years, and `custom_imports`.

Each library's own config with our backbone is trained and tested by the library's own tools and by
ours, side by side: what they write is equal. Our own leaves run in the library's tools, too.
"""

import ast
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpose')
pytest.importorskip('mmpretrain')

from clustr_mm.datasets.mini.mini import MiniData, build
from clustr_mm.engine import cli

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ('train', 'val', 'test')
LOADERS = [
    f'{split}_dataloader.{option}'
    for split in SPLITS
    for option in ('num_workers=0', 'persistent_workers=False')
]
LOADERS += ['val_dataloader.dataset.indices=4', 'test_dataloader.dataset.indices=4']
# Ten steps, and what may be at chance: the order of samples and their augmentation.
STEPS = ['randomness.seed=0', 'default_hooks.logger.interval=1', 'train_dataloader.batch_size=2']
ONE_EPOCH = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=9']
EPOCH = ['train_dataloader.dataset.indices=20', *ONE_EPOCH]
CHANNELS = 'in_channels=[64, 128, 256, 512]'


def coco(root, annotations):
    """What moves a COCO config to a folder, as a user writes it."""
    lines = [f"{s}_dataloader = dict(dataset=dict(data_root='{root}/'))" for s in SPLITS]
    file = f'{root}/annotations/{annotations}'
    lines += [f'{s}_evaluator = dict(ann_file={file!r})' for s in ('val', 'test')]
    return '\n'.join(lines) + '\n'


def imagenet(root, split, folder, pipeline):  # 'ImageNet' would insist on a thousand folders
    return (
        f"{split}_dataloader = dict(dataset=dict(_delete_=True, type='CustomDataset', "
        f'data_root={str(root)!r}, data_prefix={folder!r}, pipeline={{{{_base_.{pipeline}}}}}))\n'
    )


def foreign(library, data):
    """The library's own config, what a user changes in it, and options that make it small."""
    if library == 'mmseg':
        return (
            'upernet/upernet_r18_4xb4-160k_ade20k-512x512.py',
            "model = dict(pretrained=None, backbone=dict(_delete_=True, type='ClusTR', "
            f"arch='tiny'), decode_head=dict({CHANNELS}), auxiliary_head=dict(in_channels=256))\n",
            [
                'train_cfg.max_iters=10', 'train_cfg.val_interval=99',
                'default_hooks.checkpoint.interval=10', 'default_hooks.visualization.interval=1',
                'model.data_preprocessor.size=(64,64)', 'model.decode_head.channels=32',
                'model.decode_head.norm_cfg.type=BN', 'model.auxiliary_head.norm_cfg.type=BN',
                'train_dataloader.dataset.pipeline.2.scale=(128,64)',
                'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
                'val_dataloader.dataset.pipeline.1.scale=(128,64)',
                'test_dataloader.dataset.pipeline.1.scale=(128,64)',
                *(f'{s}_dataloader.dataset.data_root={data["ade20k"]}' for s in SPLITS),
            ],
        )  # fmt: skip
    if library == 'mmdet':
        return (
            'retinanet/retinanet_r50_fpn_1x_coco.py',
            "model = dict(backbone=dict(_delete_=True, type='ClusTR', arch='tiny'), neck=dict("
            f'{CHANNELS}, out_channels=32), bbox_head=dict(in_channels=32, feat_channels=32, '
            'stacked_convs=1), test_cfg=dict(nms_pre=20, score_thr=0.0, max_per_img=5))\n'
            + coco(data['coco'], 'instances_val2017.json'),
            [
                *EPOCH,
                'train_dataloader.dataset.pipeline.2.scale=(96,96)',
                'val_dataloader.dataset.pipeline.1.scale=(96,96)',
                'test_dataloader.dataset.pipeline.1.scale=(96,96)',
            ],
        )  # fmt: skip
    if library == 'mmpose':
        return (
            'wholebody_2d_keypoint/topdown_heatmap/coco-wholebody/'
            'td-hm_res50_8xb64-210e_coco-wholebody-256x192.py',
            "model = dict(backbone=dict(_delete_=True, type='ClusTR', arch='tiny'), "
            'head=dict(in_channels=512))\n'
            + coco(data['coco_wholebody'], 'coco_wholebody_val_v1.0.json'),
            [
                *EPOCH,
                'val_dataloader.dataset.bbox_file=None', 'test_dataloader.dataset.bbox_file=None',
            ],
        )  # fmt: skip
    return (
        'resnet/resnet18_8xb32_in1k.py',
        "model = dict(backbone=dict(_delete_=True, type='ClusTR', arch='tiny', "
        'out_indices=(3,)), head=dict(num_classes=10))\n'
        + imagenet(data['imagenet'], 'train', 'train', 'train_pipeline')
        + imagenet(data['imagenet'], 'val', 'val', 'test_pipeline')
        + imagenet(data['imagenet'], 'test', 'val', 'test_pipeline'),
        EPOCH,
    )


# What a test writes: options, and what of it is compared byte by byte.
OUTPUTS = dict(
    mmdet=['--out', 'out.pkl', '--show-dir', 'shown'],
    mmseg=['--out', 'out', '--show-dir', 'shown'],
    mmpose=['--out', 'out.json', '--dump', 'dump.pkl', '--show-dir', 'shown'],
    mmpretrain=['--out', 'out.pkl', '--out-item', 'pred', '--show-dir', 'shown'],
)
LEAVES = dict(
    mmdet=('mmdet/mask_rcnn_clustr_t_mini.py', 'coco', 'instances_val2017.json'),
    mmseg=('mmseg/upernet_clustr_pvtb0_mini.py', 'ade20k', None),
    mmpose=('mmpose/topdown_clustr_t_mini.py', 'coco', 'coco_wholebody_val_v1.0.json'),
    mmpretrain=('mmpretrain/clustr_t_mini.py', 'imagenet', None),
)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> dict[str, Path]:
    """A few small scenes in every layout."""
    mini = MiniData(layout='all', train=24, val=10, size=(64, 64))
    return build(tmp_path_factory.mktemp('data') / 'mini', mini)


def own_tools(library) -> Path:
    module = pytest.importorskip(library)
    return Path(module.__file__).parent / '.mim' / 'tools'


def start(folder, script, *arguments):
    """Starts a tool in a folder of its own, as a user does."""
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '-1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said[-4000:]
    return said


def scalars(folder):
    """What a run logged by steps, without times."""
    (path,) = folder.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    timed = ('time', 'data_time', 'memory')
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def metrics(folder):
    (path,) = folder.glob('*/*.json')
    return {k: v for k, v in json.loads(path.read_text()).items() if 'time' not in k}


def plain(content):
    """A pickle's content with tensors and arrays as lists: their bytes hold what nobody reads."""
    if hasattr(content, 'tolist'):
        return content.tolist()
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    return [plain(each) for each in content] if isinstance(content, list | tuple) else content


def files(folder):
    return {
        str(path.relative_to(folder)): (
            plain(pickle.loads(path.read_bytes())) if path.suffix == '.pkl' else path.read_bytes()
        )
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.suffix in ('.pkl', '.png', '.jpg') or path.name == 'out.json'
    }


def in_minutes(*few):
    """All libraries; those that are not among the few when there is time."""
    slow, long = pytest.mark.slow, pytest.mark.long
    return pytest.mark.parametrize(
        'library', [pytest.param(name, marks=slow if name in few else long) for name in LEAVES]
    )


# Four runs a library. Without the others: their own tools run our leaves below, test_odd_data.py
# trains and tests all four in ours, and test_foreign_configs.py has more of mmdet's and mmpose's.
@in_minutes('mmseg')
def test_ours_are_the_librarys_own(library, data, tmp_path):
    base, changes, small = foreign(library, data)
    tools = own_tools(library)
    sides = dict(own=tools, ours=ROOT / 'tools')
    for name in sides:
        (tmp_path / name).mkdir()
        (tmp_path / name / 'plugged.py').write_text(
            f"_base_ = '{(tools.parent / 'configs' / base).resolve()}'\n"
            f"custom_imports = dict(imports=['clustr_mm'])\n{changes}"
        )
    options = ['--cfg-options', *LOADERS, *STEPS, *small]
    runs = [
        start(tmp_path / name, side / 'train.py', 'plugged.py', *options)
        for name, side in sides.items()
    ]
    for run in runs:
        finish(run)
    own, ours = (tmp_path / name / 'work_dirs' / 'plugged' for name in sides)
    assert (own / 'plugged.py').read_text() == (ours / 'plugged.py').read_text()
    assert len(scalars(own)) >= 10
    assert scalars(own) == scalars(ours)

    (checkpoint,) = own.glob('[ie]*_1*.pth')  # and mmpose's best beside it
    writes = [*OUTPUTS[library], '--work-dir', 'tested']
    runs = [
        start(tmp_path / name, side / 'test.py', 'plugged.py', checkpoint, *writes, *options)
        for name, side in sides.items()
    ]
    for run in runs:
        finish(run)
    own, ours = (tmp_path / name for name in sides)
    assert metrics(own / 'tested') == metrics(ours / 'tested')
    stamp = {n: min(p.name for p in (s / 'tested').iterdir() if p.is_dir()) for n, s in
             (('own', own), ('ours', ours))}  # fmt: skip
    written = [
        {name.replace(stamp[side], 'STAMP'): content for name, content in files(place).items()}
        for side, place in (('own', own), ('ours', ours))
    ]
    assert written[0].keys() == written[1].keys()
    assert any('shown' in name for name in written[0])
    assert [name for name in written[0] if written[0][name] != written[1][name]] == []


# mmseg's own tools run above.
@in_minutes('mmdet')
def test_our_leaves_run_in_the_librarys_own_tools(library, data, tmp_path):
    leaf, layout, annotations = LEAVES[library]
    root = data[layout]
    text = f"_base_ = '{ROOT / 'configs' / leaf}'\n"
    if annotations:
        text += coco(root, annotations)
    else:
        text += ''.join(
            f'{s}_dataloader = dict(dataset=dict(data_root={str(root)!r}))\n' for s in SPLITS
        )
    (tmp_path / 'leaf.py').write_text(text)
    options = [*LOADERS, 'train_dataloader.batch_size=2', 'test_dataloader.batch_size=1']
    if library == 'mmseg':
        options += ['train_cfg.max_iters=2', 'default_hooks.checkpoint.interval=2']
    else:
        options += ['train_dataloader.dataset.indices=4', *ONE_EPOCH]
        options += ['default_hooks.checkpoint.interval=1']
    options = ['--work-dir', 'work', '--cfg-options', *options, 'train_cfg.val_interval=9']
    finish(start(tmp_path, own_tools(library) / 'train.py', 'leaf.py', *options))
    (checkpoint,) = (tmp_path / 'work').glob('[ie]*_*.pth')  # and the best one beside it
    # mmdet's own augmented test knows no masks, and mmpose has none.
    ways = [OUTPUTS[library], *([['--tta']] if library in ('mmseg', 'mmpretrain') else [])]
    runs = [
        start(tmp_path, own_tools(library) / 'test.py', 'leaf.py', checkpoint, *way, *options)
        for way in ways
    ]
    for run in runs:
        finish(run)
    assert any('shown' in name for name in files(tmp_path))


@pytest.mark.parametrize('library', LEAVES)
@pytest.mark.parametrize('tool', ['train', 'test'])
def test_ours_take_every_option_of_the_librarys(library, tool):
    tree = ast.parse((own_tools(library) / f'{tool}.py').read_text())
    names = [
        [word.value for word in node.args]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == 'add_argument'
    ]
    assert ['config'] in names and ['--launcher'] in names
    own = {**cli._SHARED, **(cli._TRAIN if tool == 'train' else cli._TEST)}
    known = {'config', 'checkpoint', *(word for each in own for word in each.split())}
    assert {word for words in names for word in words} <= known
