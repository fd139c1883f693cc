"""tools/check_data.py on small data sets, whole and damaged."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope

from clustr_mm.datasets import DataFileError
from clustr_mm.datasets.audit import audit
from clustr_mm.datasets.mini import MiniData, build
from clustr_mm.engine import UserError
from clustr_mm.engine.config import guard_data, load_config, set_data_root

ROOT = Path(__file__).parents[1]
CONFIGS = {
    'ade20k': 'configs/mmseg/upernet_clustr_t_mini.py',
    'coco': 'configs/mmdet/mask_rcnn_clustr_t_mini.py',
    'imagenet': 'configs/mmpretrain/clustr_t_mini.py',
    'coco_wholebody': 'configs/mmpose/topdown_clustr_t_mini.py',
}


def _make(tmp_path: Path, layout: str) -> Path:
    # Enough that a person with keypoints, and each class, is among them.
    return build(tmp_path / layout, MiniData(layout, 20, 20, (64, 64), 0))[layout]


def _faults(layout: str, root: Path, **options: bool) -> list[str]:
    cfg = load_config(str(ROOT / CONFIGS[layout]))
    set_data_root(cfg, str(root))
    return list(audit(cfg, print, lambda *_: None, **options))


@pytest.mark.parametrize(
    ('option', 'words'), [('foo', 'KEY=VALUE'), ('train_cfg=3', 'set one of them')]
)
def test_mistyped_config_option_is_refused(option: str, words: str) -> None:
    main = runpy.run_path(str(ROOT / 'tools' / 'check_data.py'))['main']
    with pytest.raises(UserError, match=words):
        main([str(ROOT / CONFIGS['ade20k']), '--cfg-options', option])


@pytest.mark.parametrize('layout', CONFIGS)
def test_whole_data_has_no_fault(layout: str, tmp_path: Path) -> None:
    assert _faults(layout, _make(tmp_path, layout), decode=True) == []


def test_missing_empty_and_cut_images_are_each_named(tmp_path: Path) -> None:
    root = _make(tmp_path, 'coco')
    missing, empty, cut = sorted((root / 'train2017').iterdir())[:3]
    missing.unlink()
    empty.write_bytes(b'')
    cut.write_bytes(cut.read_bytes()[:-200])
    faults = _faults('coco', root)
    assert len(faults) == 2
    assert missing.name in faults[0] and 'No such file' in faults[0]
    assert empty.name in faults[1] and 'empty' in faults[1]
    assert any(
        cut.name in fault and 'truncated' in fault for fault in _faults('coco', root, decode=True)
    )


def test_an_image_of_another_size_than_annotated(tmp_path: Path) -> None:
    root = _make(tmp_path, 'coco')
    first = min((root / 'val2017').iterdir())
    cv2.imwrite(str(first), np.zeros((32, 48, 3), np.uint8))
    (fault,) = _faults('coco', root, decode=True)
    assert '32x48' in fault and '64x64' in fault


def test_label_maps(tmp_path: Path) -> None:
    root = _make(tmp_path, 'ade20k')
    high, colour, gone, *_ = sorted((root / 'annotations' / 'training').iterdir())
    cv2.imwrite(str(high), np.full((64, 64), 200, np.uint8))
    cv2.imwrite(str(colour), np.zeros((64, 64, 3), np.uint8))
    gone.unlink()
    faults = _faults('ade20k', root)
    assert len(faults) == 3
    assert high.name in faults[0] and 'label 199 (in the file one more)' in faults[0]
    assert colour.name in faults[1] and 'no label map: shape (64, 64, 3)' in faults[1]
    assert gone.name in faults[2] and 'No such file' in faults[2]


def test_a_broken_image_hides_no_broken_label_map(tmp_path: Path) -> None:
    root = _make(tmp_path, 'ade20k')
    image = min((root / 'images' / 'training').iterdir())
    labels = root / 'annotations' / 'training' / f'{image.stem}.png'
    for file in (image, labels):
        file.write_bytes(file.read_bytes()[:99])
    faults = _faults('ade20k', root, decode=True)
    assert [str(image) in faults[0], str(labels) in faults[1], len(faults)] == [True, True, 2]
    (fault,) = _faults('ade20k', root)
    assert str(labels) in fault


def test_label_maps_of_all_150_classes_are_judged_as_in_training(tmp_path: Path) -> None:
    root = _make(tmp_path, 'ade20k')
    (root / 'mini_data.json').unlink(missing_ok=True)
    high = min((root / 'annotations' / 'training').iterdir())
    cv2.imwrite(str(high), np.full((64, 64), 151, np.uint8))
    cfg = load_config(str(ROOT / 'configs' / 'mmseg' / 'upernet_clustr_t_ade20k.py'))
    set_data_root(cfg, str(root))
    (fault,) = audit(cfg, print, lambda *_: None, subset=True)
    assert str(high) in fault and 'label 150 (in the file one more)' in fault
    guard_data(cfg, ('train',))
    init_default_scope('mmseg')
    with pytest.raises(DataFileError) as refused:
        list(DATASETS.build(cfg.train_dataloader.dataset))
    assert str(refused.value) == fault


def test_what_a_classs_folder_holds_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _make(tmp_path, 'imagenet')
    first, *_, last = sorted((root / 'train').iterdir())
    min(first.iterdir()).unlink()
    renamed = min(last.iterdir())
    renamed.rename(renamed.with_suffix('.dat'))
    assert _faults('imagenet', root) == []
    said = capsys.readouterr().out
    assert f'train: from 1 ({first.name}) to 2 images a class' in said
    assert f'1 file passed over as no images, the first {renamed.with_suffix(".dat")}' in said


def test_counts_of_the_public_data_set(tmp_path: Path) -> None:
    root = _make(tmp_path, 'coco_wholebody')
    (root / 'mini_data.json').unlink(missing_ok=True)
    (tmp_path / 'coco_wholebody' / 'mini_data.json').unlink(missing_ok=True)
    faults = _faults('coco_wholebody', root)
    assert ['118,287' in faults[0], '5,000' in faults[1]] == [True, True]
    assert _faults('coco_wholebody', root, subset=True) == []


def test_the_tool_ends_with_one_line_a_fault_and_status_1(tmp_path: Path) -> None:
    root = _make(tmp_path, 'imagenet')
    folder = min((root / 'train').iterdir())
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    command = [sys.executable, ROOT / 'tools' / 'check_data.py', ROOT / CONFIGS['imagenet']]
    done = subprocess.run(
        [*command, '--data-root', root], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1, done.stdout + done.stderr
    count, lone = (line for line in done.stdout.splitlines() if line.startswith('fault: '))
    assert 'num_classes is 10' in count and '9 classes' in count
    assert f'different folders of classes ({folder.name} in one only)' in lone
    assert done.stderr.splitlines()[-1].startswith('error: 2 faults in the data')
    assert 'Traceback' not in done.stderr


def test_annotations_that_no_run_can_use(tmp_path: Path) -> None:
    root = _make(tmp_path, 'coco')
    path = root / 'annotations' / 'instances_train2017.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['bbox'][2] = float('nan')
    path.write_text(json.dumps(content))
    (fault,) = _faults('coco', root)
    assert 'nan' in fault and str(path) in fault
